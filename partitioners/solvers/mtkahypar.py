"""Mt-KaHyPar: partitions on many threads, close to KaHyPar's in quality.

L. Gottesbüren et al., Scalable High-Quality Hypergraph Partitioning, ACM TALG 20 (2024);
deterministic: L. Gottesbüren & M. Hamann, Euro-Par 2022. `_native` cleans what the library gets.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, UsageError
from sparsednn.machine import available_cores
from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._native import (
    NativeProblem,
    import_native,
    known_preset,
    solve_native,
)
from sparsednn.partitioners.solvers._silence import native_output
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["PRESETS", "MtKahyparSolver", "running_threads"]

PRESETS: Final = (
    "deterministic",
    "deterministic-quality",
    "default",
    "quality",
    "highest-quality",
    "large-k",
)
"""The library's own, the repeatable ones first. `large-k` cannot keep fixed vertices."""

_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")

# The library's thread pool is made once per process; a second `initialize` changes nothing.
_started: dict[str, Any] = {}


def running_threads() -> int | None:
    """Return the threads that the library has in this process, None if it has not begun."""
    running: int | None = _started.get("threads")
    return running


class MtKahyparSolver:
    """Partitioning of connectivity-1 with Mt-KaHyPar.

    Parameters
    ----------
    preset
        One of `PRESETS`; None for the first. The deterministic ones make the same partition from
        the same seed on any number of threads, the others on one thread only. The library's
        deterministic algorithms take no seed from Python: for these the vertices are given
        in an order that the seed decides.
    threads
        Threads of the library, at least 1. None: as many as it already has in this process, or
        the cores of this process.
    quiet
        False: the library's report goes to standard error.

    Raises
    ------
    MissingDependencyError
        If the package ``mtkahypar`` is not installed.
    UsageError
        If there is no such preset, or the library already runs in this process with another
        number of threads: that cannot be changed.
    """

    def __init__(
        self, *, preset: str | None = None, threads: int | None = None, quiet: bool = True
    ) -> None:
        self._preset = known_preset("mtkahypar", preset, PRESETS)
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, found {threads}")
        self._quiet = quiet
        self._library, self._version = import_native("mtkahypar")
        self._initializer, self._threads = self._start(threads)

    def _start(self, threads: int | None) -> tuple[Any, int]:
        if not _started:
            wanted = threads or available_cores()
            with native_output(quiet=self._quiet):
                _started["initializer"] = self._library.initialize(wanted, not self._quiet)
            _started["threads"] = wanted
        running: int = _started["threads"]
        if threads not in (None, running):
            raise UsageError(
                f"mtkahypar already runs with {running} threads in this process, "
                f"which cannot be changed to {threads}"
            )
        return _started["initializer"], running

    @property
    def info(self) -> SolverInfo:
        """Name, version, preset and threads."""
        repeatable = self._preset.startswith("deterministic") or self._threads == 1
        return SolverInfo("mtkahypar", self._version, self._preset, self._threads, repeatable)

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide as `Solver.solve`; what is checked and raised: `_native.solve_native`.

        Raises
        ------
        InputError
            Also if the preset is ``large-k`` and there are fixed vertices.
        """
        return solve_native(
            self._run, hypergraph, parts, imbalance=imbalance, seed=seed, name="mtkahypar"
        )

    def _run(self, problem: NativeProblem) -> NDArray[np.int32]:
        graph, library = problem.hypergraph, self._library
        fixed = bool((graph.fixed != FREE).any())
        if fixed and self._preset == "large-k":
            raise InputError(
                "mtkahypar: the preset large-k cannot keep fixed vertices (the owners of the "
                "layer's inputs); choose default or deterministic"
            )
        preset = getattr(library.PresetType, self._preset.replace("-", "_").upper())
        # Vertex v is the library's number[v].
        number = np.arange(graph.n_vertices)
        if self._preset.startswith("deterministic"):
            number = np.random.Generator(np.random.PCG64(problem.seed)).permutation(number)
        vertex = np.argsort(number)
        nets = [net.tolist() for net in np.split(number[graph.pins], graph.net_ptr[1:-1])]
        errors = (
            library.InvalidInputError,
            library.InvalidParameterError,
            library.UnsupportedOperationError,
            library.SystemError,
        )
        try:
            # The library's random numbers are global; native_output locks.
            with native_output(quiet=self._quiet):
                library.set_seed(problem.seed)
                context = self._initializer.context_from_preset(preset)
                context.set_partitioning_parameters(
                    problem.parts, problem.epsilon, library.Objective.KM1
                )
                context.logging = not self._quiet
                native = self._initializer.create_hypergraph(
                    context,
                    graph.n_vertices,
                    graph.n_nets,
                    nets,
                    graph.vertex_weights[vertex].tolist(),
                    graph.net_weights.tolist(),
                )
                if fixed:
                    native.add_fixed_vertices(graph.fixed[vertex].tolist(), problem.parts)
                partition = native.partition(context).get_partition()
        except errors as error:
            message = " ".join(_COLOURS.sub("", str(error)).split())
            raise InputError(f"mtkahypar: {message}") from error
        return np.array(partition, dtype=np.int32)[number]
