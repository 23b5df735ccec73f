"""Layer after layer with fixed vertices: the multi-phase model of the paper, in both directions.

Demirci & Ferhatosmanoglu (ICS 2021, arXiv 2104.11805): layer ``k`` is partitioned given the
owners of layer ``k - 1``. Backward, layer ``k`` is partitioned given who needs its outputs in
layer ``k + 1``; its own columns then count as if their owners could still choose, which is what the
layer before will pay at least.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.partitioners.balance import Balance
from sparsednn.partitioners.groups import NO_UNIT, balanced_limits, pieces, row_groups
from sparsednn.partitioners.hypergraph import FREE, Hypergraph, layer_hypergraph
from sparsednn.partitioners.metrics import needs
from sparsednn.partitioners.solvers.base import Solver
from sparsednn.patterns import equal_rows

__all__ = ["multiphase", "settle_free"]

Progress = Callable[[int, int], None]
"""Called with the number of layers done and of all layers."""


def multiphase(
    network: SparseNetwork,
    solver: Solver,
    balance: Balance,
    *,
    seed: int,
    backward: bool = False,
    together: bool = False,
    progress: Progress | None = None,
) -> list[NDArray[np.int32]]:
    """Partition layer after layer.

    Parameters
    ----------
    network
        The network.
    solver
        What divides one layer's hypergraph.
    balance
        How heavy parts may be.
    seed
        Given to the solver for each layer.
    backward
        From the last layer to the first.
    together
        Rows of the same pattern stay together (`balanced_limits`: as far as the balance can be
        kept with that). The problems are many times smaller where patterns repeat; where they do
        not, nothing changes.
    progress
        Called after each layer.

    Returns
    -------
    One ``(n_k,)`` int32 vector per neuron layer, inputs included. Neurons that do no work (inputs,
    empty rows) are given to a part that needs them. A layer that equals an earlier one, with the
    same surroundings, is not solved again.
    """
    n_layers = len(network)
    limits = balanced_limits(network, row_groups(network), balance) if together else []
    found: dict[bytes, NDArray[np.int32]] = {}
    owners: list[NDArray[np.int32]] = [np.full(network.n_in, FREE, dtype=np.int32)]
    owners += [np.full(layer.n_out, FREE, dtype=np.int32) for layer in network]
    for step in range(n_layers):
        k = n_layers - 1 - step if backward else step
        layer = network[k]
        before = owners[k] if step and not backward else None
        after = needs(network[k + 1], owners[k + 2], balance.parts) if step and backward else None
        key = _key(layer, before, after, int(balance.caps[k]))
        if key not in found:
            units = _Units(layer, limits[k] if together else None)
            hypergraph = units.hypergraph(balance.parts, before, after)
            hypergraph.check(balance.parts)
            labels = solver.solve(
                hypergraph, balance.parts, imbalance=balance.imbalance(k), seed=seed
            )
            found[key] = units.rows(labels)
        owners[k + 1] = found[key].copy()
        if progress is not None:
            progress(step + 1, n_layers)
    return settle_free(network, owners, balance.parts)


class _Units:
    """What is moved as one: single rows, or rows of equal pattern of at most `heaviest` weight."""

    def __init__(self, layer: SparseLayer, heaviest: int | None) -> None:
        self._weights = np.diff(layer.indptr)
        if heaviest is None:
            self._unit_of = np.arange(layer.n_out, dtype=np.int32)
            self._layer = layer
            self._count = np.ones(layer.n_out, dtype=np.int64)
        else:
            leader = equal_rows(layer.indptr, layer.indices)
            self._unit_of, first, self._count = pieces(leader, self._weights, heaviest)
            self._layer = _rows_of(layer, first)
        self._busy = self._weights > 0

    def hypergraph(
        self, parts: int, before: NDArray[Any] | None, after: NDArray[np.bool_] | None
    ) -> Hypergraph:
        """The hypergraph of the units; words and work are those of their rows."""
        n_units = self._count.size
        words = None
        if after is not None:
            words = np.zeros((n_units, parts), dtype=np.int64)
            inside = self._unit_of != NO_UNIT
            np.add.at(words, self._unit_of[inside], after[inside])
        made = layer_hypergraph(self._layer, parts, owners=before, following=words)
        made.vertex_weights[:n_units] *= self._count
        return made

    def rows(self, labels: NDArray[np.int32]) -> NDArray[np.int32]:
        """``(n_out,)``: the part of each row, `FREE` for empty ones."""
        rows = np.full(self._unit_of.size, FREE, dtype=np.int32)
        rows[self._busy] = labels[self._unit_of[self._busy]]
        return rows


def _rows_of(layer: SparseLayer, rows: NDArray[np.int64]) -> SparseLayer:
    """A layer of some of the rows."""
    sizes = layer.indptr[rows + 1] - layer.indptr[rows]
    indptr = np.concatenate(([0], np.cumsum(sizes)))
    place = np.repeat(layer.indptr[rows] - indptr[:-1], sizes) + np.arange(indptr[-1])
    return SparseLayer(indptr, layer.indices[place], layer.values[place], layer.n_in, check=False)


def settle_free(
    network: SparseNetwork, owners: Sequence[NDArray[np.int32]], parts: int
) -> list[NDArray[np.int32]]:
    """Give neurons that are still `FREE` to a part that needs them.

    Any of the parts that need a neuron saves the same one word; they take turns, so that inputs
    are spread. A neuron that nobody needs goes round in turn.
    """
    settled = [vector.copy() for vector in owners]
    for k, vector in enumerate(settled):
        free = np.flatnonzero(vector == FREE)
        if not free.size:
            continue
        vector[free] = free % parts
        if k == len(network):
            continue
        needed = needs(network[k], settled[k + 1], parts)[free]
        count = np.count_nonzero(needed, axis=1)
        wanted = free % np.maximum(count, 1) + 1
        turn = np.cumsum(needed, axis=1, dtype=np.int32) == wanted[:, np.newaxis]
        vector[free[count > 0]] = np.argmax(turn, axis=1)[count > 0]
    return settled


def _key(
    layer: SparseLayer,
    before: NDArray[Any] | None,
    after: NDArray[Any] | None,
    cap: int,
) -> bytes:
    digest = hashlib.blake2b(f"{layer.shape} {cap}".encode())
    for array in (layer.indptr, layer.indices, before, after):
        digest.update(b"|" if array is None else np.ascontiguousarray(array).data)
    return digest.digest()
