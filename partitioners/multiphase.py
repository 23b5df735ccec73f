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
from sparsednn.partitioners.hypergraph import FREE, layer_hypergraph
from sparsednn.partitioners.metrics import needs
from sparsednn.partitioners.solvers.base import Solver

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
    progress
        Called after each layer.

    Returns
    -------
    One ``(n_k,)`` int32 vector per neuron layer, inputs included. Neurons that do no work (inputs,
    empty rows) are given to a part that needs them. A layer that equals an earlier one, with the
    same surroundings, is not solved again.
    """
    n_layers = len(network)
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
            hypergraph = layer_hypergraph(layer, balance.parts, owners=before, following=after)
            hypergraph.check(balance.parts)
            labels = solver.solve(
                hypergraph, balance.parts, imbalance=balance.imbalance(k), seed=seed
            )
            rows = labels[: layer.n_out].copy()
            rows[np.diff(layer.indptr) == 0] = FREE
            found[key] = rows
        owners[k + 1] = found[key].copy()
        if progress is not None:
            progress(step + 1, n_layers)
    return settle_free(network, owners, balance.parts)


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
