"""KaHyPar: the best partitions, on one thread.

S. Schlag et al., High-Quality Hypergraph Partitioning, ACM JEA 27 (2022). The presets are settings
files of ours beside this module; `_native` keeps away what the library cannot take.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import MissingDependencyError
from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._native import (
    NativeProblem,
    import_native,
    known_preset,
    solve_native,
)
from sparsednn.partitioners.solvers._silence import native_output
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["PRESETS", "KahyparSolver"]

PRESETS: Final = ("default", "quality")
"""`default`: moves of single rows (FM). `quality`: flows between parts, too; slower."""

_SETTINGS: Final = {"default": "kahypar_km1.ini", "quality": "kahypar_km1_flow.ini"}


class KahyparSolver:
    """Direct K-way partitioning of connectivity-1 with KaHyPar.

    Parameters
    ----------
    preset
        One of `PRESETS`; None for the first.
    quiet
        False: the library's report goes to standard error.

    Raises
    ------
    MissingDependencyError
        If the package ``kahypar`` is not installed, or its settings file is missing.
    UsageError
        If there is no such preset.
    """

    def __init__(self, *, preset: str | None = None, quiet: bool = True) -> None:
        self._preset = known_preset("kahypar", preset, PRESETS)
        self._quiet = quiet
        self._settings = Path(__file__).with_name(_SETTINGS[self._preset])
        self._library, self._version = import_native("kahypar")
        # KaHyPar would end the process.
        if not self._settings.is_file():
            raise MissingDependencyError(
                f"{self._settings}: no such file: the installation is incomplete, "
                "to repair it: pip install --force-reinstall sparsednn"
            )

    @property
    def info(self) -> SolverInfo:
        """Name, version and preset."""
        return SolverInfo("kahypar", self._version, self._preset)

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide as `Solver.solve`; what is checked and raised: `_native.solve_native`."""
        return solve_native(
            self._run, hypergraph, parts, imbalance=imbalance, seed=seed, name="kahypar"
        )

    def _run(self, problem: NativeProblem) -> NDArray[np.int32]:
        graph = problem.hypergraph
        # The library is not thread-safe (its random numbers are global); native_output locks.
        with native_output(quiet=self._quiet):
            native = self._library.Hypergraph(
                graph.n_vertices,
                graph.n_nets,
                graph.net_ptr.tolist(),
                graph.pins.tolist(),
                problem.parts,
                graph.net_weights.tolist(),
                graph.vertex_weights.tolist(),
            )
            for vertex in np.flatnonzero(graph.fixed != FREE).tolist():
                native.fixNodeToBlock(vertex, int(graph.fixed[vertex]))
            context = self._library.Context()
            context.loadINIconfiguration(str(self._settings))
            context.setK(problem.parts)
            context.setEpsilon(problem.epsilon)
            context.setSeed(problem.seed)
            context.suppressOutput(self._quiet)
            self._library.partition(native, context)
            blocks = [native.blockID(vertex) for vertex in range(graph.n_vertices)]
        return np.array(blocks, dtype=np.int32)
