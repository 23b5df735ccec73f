"""Rows dealt in turn: row i to part i mod K."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._native import check_call
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["CyclicSolver"]


class CyclicSolver:
    """Deal the free vertices in turn: the i-th to part ``i mod K``, whatever it weighs."""

    @property
    def info(self) -> SolverInfo:
        """Name only."""
        return SolverInfo("cyclic")

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide as `Solver.solve`; numbers of vertices differ by at most 1, weights may more.

        `imbalance` and `seed` change nothing.
        """
        check_call(parts, imbalance, seed)
        labels = hypergraph.fixed.copy()
        free = np.flatnonzero(labels == FREE)
        labels[free] = np.arange(free.size) % parts
        return labels
