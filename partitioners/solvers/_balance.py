"""Balance without a native library: what can be reached, reaching it, and repairing.

Knows weights and labels; of nets only what a move costs.
"""

from __future__ import annotations

import heapq
import logging
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.partitioners.hypergraph import FREE, Hypergraph

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["balance_bound", "pack", "rebalance"]

_LOG = logging.getLogger(__name__)


def balance_bound(hypergraph: Hypergraph, parts: int, imbalance: float) -> int:
    """The weight that no part has to exceed.

    It is ``floor((1 + imbalance) · total / parts)``; where `pack` does not reach that (vertices
    cannot be cut, and fixed ones not moved), what `pack` reaches. So the bound can always be
    kept. Never more than the total.
    """
    weights = hypergraph.vertex_weights
    total = int(weights.sum())
    # The hair more is for an imbalance that was computed from a whole weight, and rounded down.
    allowed = min(math.floor((1.0 + imbalance) * total / parts * (1.0 + 1e-14)), total)
    free = hypergraph.fixed == FREE
    # The last vertex went to a part that had at most the mean of the others, so `pack` ends at
    # most so much above the mean; with that the slower question is answered, mostly.
    heaviest = int(weights[free].max(initial=0))
    if not weights[~free].any() and total + (parts - 1) * heaviest <= allowed * parts:
        return allowed
    reached = hypergraph.part_weights(pack(hypergraph, parts), parts)
    return max(allowed, int(reached.max()))


def pack(
    hypergraph: Hypergraph, parts: int, order: NDArray[np.int64] | None = None
) -> NDArray[np.int32]:
    """Deal the free vertices to the part that is lightest each time, whatever their nets.

    Parameters
    ----------
    hypergraph
        Fixed vertices stay where they are.
    parts
        Number of parts.
    order
        The free vertices in the order in which they are dealt; None: heaviest first (Graham's
        LPT rule: at most 4/3 of the best maximum if no fixed vertex has weight).

    Returns
    -------
    ``(n_vertices,)`` int32. Ties go to the part with fewest vertices, then to the first.
    """
    labels = hypergraph.fixed.copy()
    free = np.flatnonzero(labels == FREE)
    if order is None:
        order = free[np.argsort(-hypergraph.vertex_weights[free], kind="stable")]
    kept = labels[labels != FREE]
    loads = np.zeros(parts, dtype=np.int64)
    np.add.at(loads, kept, hypergraph.vertex_weights[labels != FREE])
    # Fixed vertices are not counted, just weighed: they stand for ranks, not for rows.
    heap = [(load, 0, part) for part, load in enumerate(loads.tolist())]
    heapq.heapify(heap)
    dealt = []
    for weight in hypergraph.vertex_weights[order].tolist():
        load, count, part = heap[0]
        dealt.append(part)
        heapq.heapreplace(heap, (load + weight, count + 1, part))
    labels[order] = dealt
    return labels


def rebalance(
    hypergraph: Hypergraph, labels: NDArray[np.int32], parts: int, bound: int
) -> NDArray[np.int32]:
    """Move vertices out of parts above the bound, those that cost least first.

    The heaviest part gives up the free vertex whose move to a part with room adds the least cost
    per weight that is to go. Where no single vertex fits, it is swapped for a lighter one; where
    that is impossible, too, `pack` deals all anew, and a warning is logged.

    Parameters
    ----------
    hypergraph, labels, parts
        A whole partition, ``(n_vertices,)`` int32.
    bound
        At least `balance_bound`, which makes success certain.

    Returns
    -------
    The labels, the given ones themselves if they keep the bound. The same call has the same
    result. Memory: an int32 per net and part, if anything has to move.
    """
    loads = hypergraph.part_weights(labels, parts)
    if int(loads.max(initial=0)) <= bound:
        return labels
    state = _Moves(hypergraph, labels, parts, loads)
    moved = 0
    # Each step takes weight off what is above the bound and puts no part above it, so this ends.
    while int(loads.max()) > bound:
        if not (state.move_one(bound) or state.swap_one(bound)):
            _LOG.warning(
                "part %d of weight %d cannot be brought to %d by moves: dealt anew, by weight only",
                int(loads.argmax()),
                int(loads.max()),
                bound,
            )
            return pack(hypergraph, parts)
        moved += 1
    _LOG.info("%d vertices moved to keep the balance", moved)
    return state.labels


class _Moves:
    """Labels, loads and pins per net and part, kept up to date while vertices move."""

    def __init__(
        self,
        hypergraph: Hypergraph,
        labels: NDArray[np.int32],
        parts: int,
        loads: NDArray[np.int64],
    ) -> None:
        self.labels = labels.copy()
        self._loads = loads
        self._weights = hypergraph.vertex_weights
        self._net_weights = hypergraph.net_weights
        self._movable = (hypergraph.fixed == FREE) & (hypergraph.vertex_weights > 0)
        self._nets_of = _nets_of_vertices(hypergraph)
        nets = np.repeat(np.arange(hypergraph.n_nets), np.diff(hypergraph.net_ptr))
        keys = nets * parts + labels[hypergraph.pins]
        counts = np.bincount(keys, minlength=hypergraph.n_nets * parts)
        self._counts = counts.astype(np.int32).reshape(hypergraph.n_nets, parts)

    def move_one(self, bound: int) -> bool:
        """Move the best vertex out of the heaviest part; False if none fits anywhere."""
        source = int(self._loads.argmax())
        vertices = np.flatnonzero(self._movable & (self.labels == source))
        weights = self._weights[vertices]
        fits = weights[:, None] + self._loads[None, :] <= bound
        if not fits.any():
            return False
        loss = self._losses(vertices, source).astype(np.float64)
        useful = np.minimum(weights, self._loads[source] - bound)[:, None]
        # A loss is shared by the weight that it buys; a gain is as good as it is.
        score = np.where(fits, np.where(loss > 0, loss / useful, loss), np.inf)
        at, target = divmod(int(score.argmin()), score.shape[1])
        self._move(int(vertices[at]), target)
        return True

    def swap_one(self, bound: int) -> bool:
        """Swap a vertex of the heaviest part for a lighter one elsewhere; False if none fits."""
        source = int(self._loads.argmax())
        vertices = np.flatnonzero(self._movable & (self.labels == source))
        weights = self._weights[vertices]
        best = (0, 0, 0, 0)
        for target in np.argsort(self._loads, kind="stable").tolist():
            room = bound - int(self._loads[target])
            others = np.flatnonzero(self._movable & (self.labels == target))
            if room <= best[0] or not others.size or not vertices.size:
                continue
            others = others[np.argsort(self._weights[others], kind="stable")]
            # For each vertex the lightest partner for which the target still has room.
            partner = np.searchsorted(self._weights[others], weights - room)
            found = np.minimum(partner, others.size - 1)
            relief = np.where(partner < others.size, weights - self._weights[others[found]], 0)
            at = int(relief.argmax())
            if int(relief[at]) > best[0]:
                best = (int(relief[at]), int(vertices[at]), int(others[found[at]]), target)
        relieved, vertex, other, target = best
        if not relieved:
            return False
        self._move(vertex, target)
        self._move(other, source)
        return True

    def _losses(self, vertices: NDArray[np.int64], source: int) -> NDArray[np.int64]:
        """``(vertices, parts)``: what the cost grows by if a vertex goes from `source` there."""
        nets = self._nets_of[vertices]
        entered = nets @ ((self._counts == 0) * self._net_weights[:, None])
        left = nets @ ((self._counts[:, source] == 1) * self._net_weights)
        losses: NDArray[np.int64] = entered - left[:, None]
        return losses

    def _move(self, vertex: int, target: int) -> None:
        source = int(self.labels[vertex])
        nets = self._nets_of.indices[
            self._nets_of.indptr[vertex] : self._nets_of.indptr[vertex + 1]
        ]
        self._counts[nets, source] -= 1
        self._counts[nets, target] += 1
        self._loads[source] -= self._weights[vertex]
        self._loads[target] += self._weights[vertex]
        self.labels[vertex] = target


def _nets_of_vertices(hypergraph: Hypergraph) -> csr_array:
    """``(n_vertices, n_nets)`` of ones."""
    from scipy.sparse import csc_array

    ones = np.ones(hypergraph.n_pins, dtype=np.int64)
    shape = (hypergraph.n_vertices, hypergraph.n_nets)
    return csc_array((ones, hypergraph.pins, hypergraph.net_ptr), shape=shape).tocsr()
