"""Any other partitioner: a program that reads hMetis files and writes a part file."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, InputError, MissingDependencyError, UsageError
from sparsednn.partitioners.hmetis import read_parts, write_fix, write_hgr
from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._native import NativeProblem, solve_native
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["CommandSolver"]

_FIELD: Final = re.compile(r"\{([^{}]*)\}")
_FIELDS: Final = ("hgr", "fix", "parts", "imbalance", "seed", "out")


class CommandSolver:
    """Run a program on each hypergraph.

    The program gets the cleaned hypergraph that the native libraries get, too: positive weights,
    no net below two pins, so that it can be any of them.

    Parameters
    ----------
    template
        Program and arguments as in a shell, such as ``shmetis {hgr} {fix} {parts} 5`` or
        ``KaHyPar -h {hgr} -f {fix} -k {parts} -e {imbalance} --seed {seed} -o km1 -m direct
        -p km1.ini -w true``. No shell is started. Replaced are

        - ``{hgr}``, ``{fix}``: the files of the hypergraph and of its fixed vertices;
        - ``{parts}``, ``{seed}``;
        - ``{imbalance}``: epsilon, such as 0.03, for ``(1 + epsilon) · ceil(total / parts)``;
        - ``{out}``: where the program is to write the parts. Without it they are expected where
          hMetis puts them, ``{hgr}.part.{parts}``, or in the only ``*.part*`` file beside it.
    quiet
        False: what the program prints goes to standard error.

    Raises
    ------
    UsageError
        If the template is not a command, or has a field that is not known.
    MissingDependencyError
        If there is no such program.
    """

    def __init__(self, template: str, *, quiet: bool = True) -> None:
        try:
            self._words = shlex.split(template)
        except ValueError as error:
            raise UsageError(f"command {template!r}: {error}") from error
        if not self._words:
            raise UsageError("command: no program")
        self._template = template
        self._quiet = quiet
        self._fields = set(_FIELD.findall(template))
        unknown = sorted(self._fields - set(_FIELDS))
        if unknown:
            known = ", ".join(f"{{{field}}}" for field in _FIELDS)
            raise UsageError(f"command: no field {{{unknown[0]}}}; there are {known}")
        if "hgr" not in self._fields:
            raise UsageError(f"command {template!r}: has no {{hgr}}, the file to read")
        self._program = self._words[0]
        if shutil.which(self._program) is None:
            raise MissingDependencyError(f"command: no program {self._program!r} to run")

    @property
    def info(self) -> SolverInfo:
        """The template stands as preset; whether the program is deterministic is not known."""
        return SolverInfo("command", preset=self._template, deterministic=False)

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Divide as `Solver.solve`; what is checked and raised: `_native.solve_native`.

        Raises
        ------
        InputError
            If the program fails, or writes no partition of this hypergraph.
        UsageError
            If vertices are fixed and the template has no ``{fix}``.
        """
        return solve_native(
            self._run,
            hypergraph,
            parts,
            imbalance=imbalance,
            seed=seed,
            name=f"command {self._program}",
        )

    def _run(self, problem: NativeProblem) -> NDArray[np.int32]:
        graph = problem.hypergraph
        if "fix" not in self._fields and (graph.fixed != FREE).any():
            raise UsageError(
                f"command {self._template!r}: has no {{fix}}, but vertices are fixed (the owners "
                "of the layer's inputs)"
            )
        with tempfile.TemporaryDirectory(prefix="sparsednn-") as made:
            folder = Path(made)
            hgr, fix, out = folder / "layer.hgr", folder / "layer.fix", folder / "layer.out"
            write_hgr(graph, hgr)
            write_fix(graph.fixed, fix)
            values = {
                "hgr": str(hgr),
                "fix": str(fix),
                "parts": str(problem.parts),
                "imbalance": repr(problem.epsilon),
                "seed": str(problem.seed),
                "out": str(out),
            }
            # Word by word, after splitting: a blank in a path stays within its word.
            self._call([_FIELD.sub(lambda found: values[found[1]], word) for word in self._words])
            try:
                return read_parts(
                    self._result(hgr, out, problem.parts), graph.n_vertices, problem.parts
                )
            except FormatError as error:
                # The folder's name is new each time and means nothing afterwards.
                message = str(error).replace(f"{folder}/", "")
                raise InputError(f"command {self._program}: {message}") from error

    def _call(self, words: list[str]) -> None:
        with tempfile.TemporaryFile() as printed, tempfile.TemporaryFile() as errors:
            # Never to standard output, which is for results.
            done = subprocess.run(
                words,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=printed if self._quiet else 2,
                stderr=errors if self._quiet else 2,
            )
            if not done.returncode:
                return
            errors.seek(0)
            printed.seek(0)
            # Some programs print their errors to standard output.
            last = _last_line(errors.read()) or _last_line(printed.read())
        status = done.returncode
        ended = f"exit status {status}" if status > 0 else f"killed by signal {-status}"
        raise InputError(f"command {self._program}: {ended}{': ' if last else ''}{last}")

    def _result(self, hgr: Path, out: Path, parts: int) -> Path:
        if "out" in self._fields:
            return out
        usual = hgr.with_name(f"{hgr.name}.part.{parts}")
        if usual.exists():
            return usual
        found = sorted(path for path in hgr.parent.glob("*.part*") if path.is_file())
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise InputError(
                f"command {self._program}: no {usual.name}, and not one *.part* file beside "
                f"{hgr.name}: {names}"
            )
        return found[0]


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
