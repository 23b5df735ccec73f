"""How even the work of a layer can be at all, found before anything is partitioned.

Rows cannot be cut: a row heavier than a part may be, or a layer of 10 rows on 64 ranks, makes a
bound unreachable. Then the best that was found is the bound, and a warning says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit, read_only
from sparsednn.network import SparseNetwork

__all__ = ["Balance", "balanced_labels", "layer_balance"]


@jit
def _deal(order: NDArray[np.int64], weights: NDArray[np.int64], labels: NDArray[np.int32],
          heap: NDArray[np.int64], loads: NDArray[np.int64]) -> None:  # fmt: skip
    """Give each item in turn to the lightest part; `heap` holds the parts, the lightest first."""
    parts = heap.size
    for item in order:
        part = heap[0]
        labels[item] = part
        loads[part] += weights[item]
        at = 0
        while True:  # sink the part to where it belongs; equal loads in the order of parts
            child = 2 * at + 1
            if child >= parts:
                break
            right = child + 1
            if right < parts and (
                loads[heap[right]] < loads[heap[child]]
                or (loads[heap[right]] == loads[heap[child]] and heap[right] < heap[child])
            ):
                child = right
            below = heap[child]
            if loads[below] > loads[part] or (loads[below] == loads[part] and below > part):
                break
            heap[at] = below
            at = child
        heap[at] = part


def balanced_labels(weights: NDArray[np.int64], parts: int) -> NDArray[np.int32]:
    """Divide weights evenly: heaviest first, each to the lightest part (Graham's LPT rule).

    Parameters
    ----------
    weights
        ``(n,)`` int64, not negative.
    parts
        Number of parts.

    Returns
    -------
    ``(n,)`` int32 labels; the largest part is at most 4/3 of the least possible.
    """
    labels = np.zeros(weights.size, dtype=np.int32)
    order = np.argsort(-weights, kind="stable")
    heap, loads = np.arange(parts, dtype=np.int64), np.zeros(parts, dtype=np.int64)
    _deal(order, read_only(np.ascontiguousarray(weights, dtype=np.int64)), labels, heap, loads)
    return labels


@dataclass(frozen=True, slots=True)
class Balance:
    """What a layer's parts may weigh.

    Attributes
    ----------
    caps
        ``(n_layers,)`` int64: the largest weight (nonzeros) of a part in each layer that the
        partition may have: what the user asked for, or the least that was found reachable.
    wanted
        ``(n_layers,)`` int64: ``floor((1 + imbalance) × mean)``.
    total
        ``(n_layers,)`` int64: nonzeros of each layer.
    parts
        Number of parts.
    """

    caps: NDArray[np.int64]
    wanted: NDArray[np.int64]
    total: NDArray[np.int64]
    parts: int

    def imbalance(self, layer: int) -> float:
        """Return the cap as an excess over the mean: 0.03 for a part 3 % above it."""
        if not self.total[layer]:
            return 0.0
        return float(self.caps[layer]) * self.parts / float(self.total[layer]) - 1.0

    @property
    def warnings(self) -> Sequence[str]:
        """One line for each run of layers in which the wanted balance cannot be reached."""
        lines = []
        short = np.flatnonzero(self.caps > self.wanted)
        for run in np.split(short, np.flatnonzero(np.diff(short) != 1) + 1):
            if run.size:
                least = max(self.imbalance(int(k)) for k in run)
                where = f"layer {run[0] + 1}"
                if run.size > 1:
                    where = f"layers {run[0] + 1} to {run[-1] + 1}"
                lines.append(
                    f"{where}: {self.parts} parts cannot be balanced as asked; the least "
                    f"imbalance found is {least:.3g}, which is allowed there"
                )
        return lines


def layer_balance(network: SparseNetwork, parts: int, imbalance: float) -> Balance:
    """Find what balance each layer can have (weights: nonzeros of the rows)."""
    total = np.array([layer.nnz for layer in network], dtype=np.int64)
    # Above `parts` an imbalance asks for nothing; a huge one would overflow.
    wanted = np.floor((1.0 + min(imbalance, parts)) * total / parts).astype(np.int64)
    wanted = np.minimum(wanted, total)
    caps = wanted.copy()
    seen: dict[bytes, int] = {}
    for k, layer in enumerate(network):
        weights = np.diff(layer.indptr)
        key = weights.tobytes()
        if key not in seen:
            labels = balanced_labels(weights, parts)
            loads = np.bincount(labels, weights=weights, minlength=parts)
            seen[key] = int(loads.max())
        caps[k] = max(caps[k], seen[key])
    return Balance(caps, wanted, total, parts)
