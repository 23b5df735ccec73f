"""Start ranks on this machine, let them measure, and read what they found.

Each number of ranks is a start of its own: a library that knows of more ranks than cores lets them
give way to each other, and that changes every figure. Must not know: what is measured.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsednn.comm.launcher import Launcher, find_launcher, run_command
from sparsednn.comm.mpi import launched
from sparsednn.errors import LaunchError, MissingDependencyError, UsageError

__all__ = ["find_ranks", "measure_ranks"]

_PROGRAM = "sparsednn.costmodel.calibration.rank_program"
#: Seconds that no honest measurement takes.
_LIMIT = 300.0


def find_ranks() -> Launcher:
    """Find the launcher, before anything has been measured.

    Raises
    ------
    UsageError
        If this process is itself a rank.
    MissingDependencyError
        If there is no MPI or no launcher for it; says what to install, and how to go on without.
    """
    if launched() is not None:
        raise UsageError("calibrate starts ranks itself: not under mpirun")
    try:
        return find_launcher()
    except MissingDependencyError as error:
        raise MissingDependencyError(
            f"links cannot be measured: {error} (or --no-ranks, for links of a documented machine)"
        ) from None


def measure_ranks(
    ranks: int,
    request: Mapping[str, Any],
    *,
    launcher: Launcher | None = None,
    environ: Mapping[str, str] | None = None,
    timeout: float = _LIMIT,
) -> dict[str, Any]:
    """Start so many ranks and return what `rank_program.answer` returned.

    Raises
    ------
    LaunchError
        If the ranks fail, say nothing, or take longer than `timeout` seconds.
    """
    with (
        tempfile.TemporaryDirectory(prefix="sparsednn-calibrate-") as folder,
        tempfile.TemporaryFile() as said,
    ):
        question, reply = Path(folder) / "request.json", Path(folder) / "answer.json"
        question.write_text(json.dumps(dict(request)), encoding="utf-8")
        outcome = run_command(
            ranks,
            [sys.executable, "-m", _PROGRAM, str(question), str(reply)],
            environ=environ,
            launcher=launcher,
            stdout=said,
            stderr=said,
            timeout=timeout,
        )
        if outcome.code or not reply.exists():
            said.seek(0)
            lines = said.read().decode(errors="replace").replace("\0", "").splitlines()
            ours = [line for line in lines if line.startswith("sparsednn: error: ")]
            words = (ours or [line for line in lines if line.strip("-=* ")])[:1]
            told = outcome.failure or " ".join(words).removeprefix("sparsednn: error: ")
            reason = told or f"exit code {outcome.code}"
            raise LaunchError(f"measuring on {ranks} ranks failed: {reason[:300]}")
        found: dict[str, Any] = json.loads(reply.read_text(encoding="utf-8"))
        return found
