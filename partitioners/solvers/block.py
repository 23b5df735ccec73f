"""Contiguous blocks of rows: what one gets without looking at the connections."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._native import check_call
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["BlockSolver"]


class BlockSolver:
    """Cut the free vertices, in their order, into K blocks of about equal weight."""

    @property
    def info(self) -> SolverInfo:
        """Name only."""
        return SolverInfo("block")

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide as `Solver.solve`; no block is heavier than the mean and one vertex.

        `imbalance` and `seed` change nothing: the blocks are as even as cuts in the order allow,
        which for vertices of very different weight may be less than `imbalance` asks for. Weight
        of fixed vertices is not made up for. Vertices of no weight go with their neighbours.
        """
        check_call(parts, imbalance, seed)
        labels = hypergraph.fixed.copy()
        free = np.flatnonzero(labels == FREE)
        weights = hypergraph.vertex_weights[free]
        if not weights.any():
            weights = np.ones_like(weights)
        # A vertex belongs to the block in which its middle lies, on a scale of twice the weight.
        middles = 2 * np.cumsum(weights) - weights
        total = max(2 * int(weights.sum()), 1)
        labels[free] = np.minimum(middles * parts // total, parts - 1)
        return labels
