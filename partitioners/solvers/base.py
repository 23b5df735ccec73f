"""What every partitioner of one hypergraph looks like from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.partitioners.hypergraph import Hypergraph

__all__ = ["Solver", "SolverInfo"]


@dataclass(frozen=True, slots=True)
class SolverInfo:
    """How a solver makes its parts: goes into the partition file.

    ``version`` is that of the library, None for our own; ``preset`` None where there is none;
    ``deterministic``: the same call gives the same parts, whatever the machine's load.
    """

    name: str
    version: str | None = None
    preset: str | None = None
    threads: int = 1
    deterministic: bool = True


class Solver(Protocol):
    """A partitioner of one hypergraph."""

    @property
    def info(self) -> SolverInfo:
        """Name, version, preset, threads."""
        ...

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide the vertices among the parts.

        Parameters
        ----------
        hypergraph
            Checked by the caller (`Hypergraph.check`). Fixed vertices stay where they are.
        parts
            K >= 1; there may be more parts than vertices.
        imbalance
            The largest part's weight may be ``(1 + imbalance)`` times the mean, where that can be
            reached (vertices cannot be cut).
        seed
            The same seed gives the same parts, if `SolverInfo.deterministic`.

        Returns
        -------
        ``(n_vertices,)`` int32 parts.
        """
        ...
