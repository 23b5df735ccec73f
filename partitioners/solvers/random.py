"""Random rows of equal weight: the baseline that every partitioner has to beat."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._balance import balance_bound, pack
from sparsednn.partitioners.solvers._native import check_call
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["RandomSolver"]


class RandomSolver:
    """Deal the free vertices in random order, each to the part that is lightest by then."""

    @property
    def info(self) -> SolverInfo:
        """Name only."""
        return SolverInfo("random")

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide as `Solver.solve`, within `imbalance` where that can be reached.

        For equal weights the parts are as even as possible. Where weights differ so much that
        the random order fails the bound, heavy vertices are dealt first, in random order among
        equals. Vertices without weight are dealt evenly, too. NumPy's PCG64 makes the same
        partition from the same seed on every machine.
        """
        check_call(parts, imbalance, seed)
        rng = np.random.Generator(np.random.PCG64(seed))
        free = np.flatnonzero(hypergraph.fixed == FREE)
        order = rng.permutation(free)
        labels = pack(hypergraph, parts, order)
        bound = balance_bound(hypergraph, parts, imbalance)
        if int(hypergraph.part_weights(labels, parts).max()) > bound:
            order = order[np.argsort(-hypergraph.vertex_weights[order], kind="stable")]
            labels = pack(hypergraph, parts, order)
        weightless = order[hypergraph.vertex_weights[order] == 0]
        labels[weightless] = rng.permutation(weightless.size) % parts
        return labels
