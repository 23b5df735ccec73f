"""The joint model: candidate chains, the best recombination of them, and local search.

1. *Candidates*: chains that partitioners made layer after layer (`multiphase`), ownership rules,
   and annealing from scratch on the problem of all layers (`units`).
2. *Recombination*: the best choice of a candidate per layer, parts renamed where that helps
   (`recombine`): never worse than the best candidate.
3. *Local search* from there and from the best candidates, at low temperature; recombined again.

Every step keeps the best that was seen, so the result is never worse than the best candidate that
keeps to the balance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, ShapeError
from sparsednn.machine import machine
from sparsednn.network import SparseNetwork
from sparsednn.partitioners.balance import Balance, balanced_labels
from sparsednn.partitioners.groups import balanced_limits, row_groups
from sparsednn.partitioners.hypergraph import FREE
from sparsednn.partitioners.joint.anneal import anneal, make_state, words
from sparsednn.partitioners.joint.recombine import recombine
from sparsednn.partitioners.joint.units import UnitModel
from sparsednn.partitioners.multiphase import settle_free

__all__ = ["Effort", "JointResult", "joint"]

_HOT = (6.0, 8.0, 4.0, 12.0)
"""First temperatures of runs from scratch, in words: where units begin to settle depends on the
sizes of nets, so they differ."""

_SETTLING = 600
"""Sweeps that a run from scratch needs to be worth its time."""

_WARM, _COOL, _COLD = 2.0, 1.0, 0.3
"""First temperatures for what is settled already, and the last one of every run."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to search; fixed by numbers, not by time, so that a result can be repeated.

    Attributes
    ----------
    proposals
        Moves and swaps that all annealing runs together propose, about; a million takes between
        a third of a second and a second.
    sweeps
        Proposals per unit of one annealing run, at most.
    starts
        Annealing runs from scratch, at most.
    """

    proposals: int = 120_000_000
    sweeps: int = 2_000
    starts: int = 8

    def plan(self, n_units: int, *, chains: bool) -> tuple[int, int]:
        """Return sweeps per run and runs from scratch for a problem of so many units.

        Many short runs, put together by recombination, are better than few long ones; but a run
        that is too short settles nowhere, and cannot compete with `chains` that were optimised
        layer by layer: then these are only refined.
        """
        n_units = max(n_units, 1)
        sweeps = max(20, min(self.sweeps, self.proposals // (4 * n_units)))
        if chains and sweeps < _SETTLING:
            return sweeps, 0
        starts = self.proposals // (sweeps * n_units) - 1
        return sweeps, max(2, min(self.starts, starts))


@dataclass(frozen=True, slots=True)
class JointResult:
    """What the joint search found.

    Attributes
    ----------
    owners
        One ``(n_k,)`` int32 vector per neuron layer, inputs included.
    words
        Its words, as the search counted them.
    candidates
        Words of each candidate chain and of each stage, by name, in the order they were made.
    left_out
        Chains that break a layer's cap, and so could not be candidates.
    """

    owners: list[NDArray[np.int32]]
    words: int
    candidates: dict[str, int]
    left_out: tuple[str, ...] = ()


def joint(
    network: SparseNetwork,
    balance: Balance,
    *,
    chains: Mapping[str, Sequence[NDArray[np.int32]]] | None = None,
    optimised: bool = False,
    effort: Effort | None = None,
    seed: int = 1,
    threads: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> JointResult:
    """Partition all layers together.

    Parameters
    ----------
    network
        The network.
    balance
        How heavy parts may be in each layer.
    chains
        Candidates by name: one owner vector per neuron layer, inputs included. One that breaks
        a layer's cap is left out.
    optimised
        Whether some of the chains were optimised layer by layer (and are not just rules).
    effort
        How long to search.
    seed
        The same seed (and chains) gives the same result, whatever `threads` is.
    threads
        Threads of the search.
    progress
        Called with the stage's name and the share of it that is done.

    Raises
    ------
    ShapeError
        If a chain does not fit the network, or has a part out of range.
    InputError
        If the search needs more memory than the machine has.
    """
    effort = effort or Effort()
    for name, owners in (chains or {}).items():
        _check_chain(network, balance.parts, name, owners)
    groups = row_groups(network)
    limits = balanced_limits(network, groups, balance)
    model = UnitModel(network, groups=groups, heaviest=limits)
    coarse = _Level(model, balance, progress)
    waiting = {
        name: owners[1:]
        for name, owners in (chains or {}).items()
        if not coarse.add(name, owners[1:])
    }
    sweeps, starts = effort.plan(model.n_units, chains=optimised)
    for start in range(starts):
        coarse.anneal(
            f"annealing {start + 1} of {starts}",
            coarse.even(),
            hot=_HOT[start % len(_HOT)],
            sweeps=sweeps,
            seed=seed * 1_000_003 + start,
            threads=threads,
        )
    best = coarse.recombine("recombined")
    again = seed * 1_000_003 + starts
    coarse.anneal("refining", best, hot=_WARM, sweeps=sweeps, seed=again, threads=threads)
    best = coarse.recombine("refined, recombined")
    last = coarse
    # Rows apart from their equals matter where groups had to be cut, or a chain has cut them.
    cut = any(limit < layer.nnz for limit, layer in zip(limits, network, strict=True))
    busy = sum(int(np.count_nonzero(np.diff(layer.indptr))) for layer in network)
    left_out = list(waiting)
    if (cut or waiting) and busy > model.n_units:
        rows = UnitModel(network, groups=groups, heaviest=[1] * len(network))
        last = _Level(rows, balance, progress)
        last.add("units", model.owners_of(best))
        left_out = [name for name, chain in waiting.items() if not last.add(name, chain)]
        best = last.recombine("rows recombined")
        if cut:
            sweeps, _ = effort.plan(rows.n_units, chains=True)
            last.anneal(
                "refining rows", best, hot=_COOL, sweeps=sweeps, seed=again, threads=threads
            )
            best = last.recombine("rows refined, recombined")
    owners = [np.full(network.n_in, FREE, dtype=np.int32), *last.model.owners_of(best)]
    return JointResult(
        settle_free(network, owners, balance.parts),
        min(last.found.values()),
        coarse.found | last.found,
        tuple(left_out),
    )


def _check_chain(
    network: SparseNetwork, parts: int, name: str, owners: Sequence[NDArray[np.int32]]
) -> None:
    """Keep from the compiled loops what they could not survive."""
    sizes = [network.n_in, *(layer.n_out for layer in network)]
    found = [vector.size for vector in owners]
    if found != sizes:
        raise ShapeError(f"chain '{name}' has vectors of {found}, the network's layers {sizes}")
    for k, vector in enumerate(owners[1:], 1):
        if not 0 <= int(vector.min()) <= int(vector.max()) < parts:
            raise ShapeError(f"chain '{name}': layer_{k} has a part outside 0 to {parts - 1}")


def _check_memory(model: UnitModel, parts: int) -> None:
    needed = 2 * 4 * model.arrays.net_size.size * parts  # rows and owned, int32 each
    memory = machine().memory
    if needed > memory // 2:
        raise InputError(
            f"the joint search needs {needed / 2**30:.1f} GiB for {model.arrays.net_size.size:,} "
            f"nets and {parts} parts, and this machine has {memory / 2**30:.1f} GiB: use fewer "
            "parts, or --method multiphase"
        )


class _Level:
    """A problem and the chains that were found for it."""

    def __init__(
        self,
        model: UnitModel,
        balance: Balance,
        progress: Callable[[str, float], None] | None,
    ) -> None:
        _check_memory(model, balance.parts)
        self.model, self.balance = model, balance
        self.progress = progress
        self.pool: list[NDArray[np.int32]] = []
        self.found: dict[str, int] = {}

    def even(self) -> NDArray[np.int32]:
        """Labels that are balanced and nothing else."""
        first, weight = self.model.arrays.first_unit, self.model.arrays.unit_weight
        return np.concatenate(
            [balanced_labels(weight[low:high], self.balance.parts) for low, high in pairwise(first)]
        )

    def add(self, name: str, rows: Sequence[NDArray[np.int32]]) -> bool:
        """Take a chain (the parts of each layer's rows) in, if balanced and with units whole."""
        labels = self.model.labels_of(rows)
        if labels is None:
            return False
        state = make_state(self.model.arrays, labels, self.balance.parts)
        if (state.loads.max(axis=1) > self.balance.caps).any():
            return False
        self._keep(name, labels, words(self.model.arrays, state))
        return True

    def _keep(self, name: str, labels: NDArray[np.int32], cost: int) -> None:
        self.found[name] = cost - self.model.free_columns
        self.pool.append(labels)

    def anneal(
        self,
        name: str,
        labels: NDArray[np.int32],
        *,
        hot: float,
        sweeps: int,
        seed: int,
        threads: int,
    ) -> None:
        """Search from `labels`."""
        told = self.progress
        report = None if told is None else lambda share: told(name, share)
        found = anneal(
            self.model.arrays, labels, self.balance.caps, self.balance.parts, hot=hot, cold=_COLD,
            sweeps=sweeps, seed=seed, threads=threads, progress=report,
        )  # fmt: skip
        self._keep(name, *found)

    def recombine(self, name: str) -> NDArray[np.int32]:
        """Put together the best of all chains."""
        labels, cost = recombine(self.model.arrays, self.pool, self.balance.parts)
        self._keep(name, labels, cost)
        return labels
