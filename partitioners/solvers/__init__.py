"""Partitioners of one hypergraph, by name.

Importing this loads no solver; `get_solver` loads the one that is asked for.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.partitioners.solvers.base import Solver

__all__ = ["SOLVERS", "get_solver", "presets"]

SOLVERS: Final[dict[str, str]] = {
    "kahypar": "KaHyPar: fewest words; one thread (pip install kahypar)",
    "mtkahypar": "Mt-KaHyPar: nearly as few words, many threads (pip install mtkahypar)",
    "block": "contiguous blocks of rows of equal weight",
    "cyclic": "row i to part i mod K",
    "random": "random rows, parts of equal weight: the baseline",
    "file": "parts that another tool has written",
    "command": "another partitioner's program that reads hMetis files",
}
"""Name and one line for ``--help``."""


def presets(name: str) -> tuple[str, ...]:
    """The presets of a solver, the default first; empty if it has none. Loads no library."""
    if name == "kahypar":
        from sparsednn.partitioners.solvers import kahypar

        return kahypar.PRESETS
    if name == "mtkahypar":
        from sparsednn.partitioners.solvers import mtkahypar

        return mtkahypar.PRESETS
    _known(name)
    return ()


def get_solver(
    name: str,
    *,
    preset: str | None = None,
    threads: int | None = None,
    quiet: bool = True,
    path: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> Solver:
    """Make a solver.

    Parameters
    ----------
    name
        One of `SOLVERS`.
    preset
        One of ``presets(name)``; None for the default.
    threads
        For ``mtkahypar``; None for the cores of this process. The other solvers have one thread,
        and refuse more.
    quiet
        False: what the library or program prints goes to standard error. Standard output stays
        free for results.
    path
        For ``file``: the part file, or the folder with one per layer.
    command
        For ``command``: the program and its arguments (`CommandSolver`).

    Raises
    ------
    UsageError
        For an unknown name or preset, an option that the solver does not have, or a missing one.
    MissingDependencyError
        If the solver's library is not installed.
    """
    _known(name)
    if preset is not None and not presets(name):
        raise UsageError(f"{name}: has no presets, found {preset!r}")
    if threads not in (None, 1) and name != "mtkahypar":
        raise UsageError(f"{name}: runs on one thread, {threads} were asked for")
    for option, value in (("path", path), ("command", command)):
        needed = name == {"path": "file", "command": "command"}[option]
        if needed and value is None:
            raise UsageError(f"{name}: needs a {option}")
        if value is not None and not needed:
            raise UsageError(f"{name}: takes no {option}, found {os.fspath(value)!r}")
    if name == "kahypar":
        from sparsednn.partitioners.solvers.kahypar import KahyparSolver

        return KahyparSolver(preset=preset, quiet=quiet)
    if name == "mtkahypar":
        from sparsednn.partitioners.solvers.mtkahypar import MtKahyparSolver

        return MtKahyparSolver(preset=preset, threads=threads, quiet=quiet)
    if name == "block":
        from sparsednn.partitioners.solvers.block import BlockSolver

        return BlockSolver()
    if name == "cyclic":
        from sparsednn.partitioners.solvers.cyclic import CyclicSolver

        return CyclicSolver()
    if name == "random":
        from sparsednn.partitioners.solvers.random import RandomSolver

        return RandomSolver()
    if name == "file":
        from sparsednn.partitioners.solvers.file import FileSolver

        return FileSolver(path or "")
    from sparsednn.partitioners.solvers.command import CommandSolver

    return CommandSolver(command or "", quiet=quiet)


def _known(name: str) -> None:
    if name not in SOLVERS:
        raise UsageError(f"no partitioner {name!r}; there are {', '.join(SOLVERS)}")
