"""Measuring cases on this machine: files for the ranks, programs started, figures collected.

Cases of one number of ranks are run by one program under one start; the starts of all numbers of
ranks are repeated, so that each case is met by two or more moments of the machine.

Must not know: platforms, predictions, what a rank runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

from sparsednn.costmodel.validation.cases import Case
from sparsednn.costmodel.validation.networks import Files, write_files
from sparsednn.errors import LaunchError, MissingDependencyError, UsageError

__all__ = ["Measured", "check_alone", "measure", "shares_of"]

_PROGRAM: Final = "sparsednn.costmodel.validation.program"
#: After so many seconds a start counts as stuck.
_PATIENCE: Final = 900.0

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found.

    Attributes
    ----------
    rounds
        Name of a case → seconds of one run in each round, in the order of time.
    failed
        Name of a case whose times would mean nothing → why.
    left_out
        Name of a case that cannot be run here → why.
    wall
        As `rounds`, as the clock showed them: those are at the machine's usual pace.
    """

    rounds: dict[str, list[float]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    def seconds(self, case: Case) -> float | None:
        """Return the median over rounds, None if there is none."""
        found = self.rounds.get(case.name)
        return median(found) if found else None


def check_alone() -> None:
    """Refuse to start ranks from a rank.

    Raises
    ------
    UsageError
        If a launcher has started this process.
    """
    from sparsednn.comm.mpi import launched

    if launched() is not None:
        raise UsageError("validate starts the ranks itself: not under mpirun")


def shares_of(rounds: int, starts: int) -> list[int]:
    """Deal rounds out to starts; none is empty.

    >>> shares_of(5, 2), shares_of(1, 2)
    ([3, 2], [1])
    """
    return [share for i in range(starts) if (share := (rounds + starts - 1 - i) // starts)]


def measure(
    cases: Sequence[Case],
    *,
    rounds: int = 5,
    starts: int = 2,
    seconds: float = 0.12,
    pace_seconds: float | None = None,
    progress: Report | None = None,
) -> Measured:
    """Measure cases.

    Parameters
    ----------
    cases
        With different names.
    rounds
        Turns of each case, in all starts together.
    starts
        How often the programs are started.
    seconds
        Of a turn, about; it has three runs at least.
    pace_seconds
        Of the probe at the machine's usual pace (`calibration.pace`), which times are brought to;
        None: every program sets its own.
    progress
        Called with a line now and then, and for everything that is left out.

    Raises
    ------
    UsageError
        If a number is below 1, or this process is itself a rank.
    LaunchError
        If a program fails.
    """
    for what, number in (("--rounds", rounds), ("starts", starts)):
        if number < 1:
            raise UsageError(f"{what} must be at least 1, found {number}")
    check_alone()
    tell = progress or (lambda line: None)
    found = Measured()
    chosen = _startable(cases, found, tell)
    with tempfile.TemporaryDirectory(prefix="sparsednn-validate-") as temporary:
        files = Files(Path(temporary))
        tell(f"preparing {len(chosen)} cases")
        missing = write_files(chosen, files)
        for name, why in missing.items():
            tell(f"left out: {name}: {why}")
        found.left_out.update(missing)
        chosen = [case for case in chosen if case.name not in missing]
        shares = shares_of(rounds, starts)
        for number, share in enumerate(shares, 1):
            for ranks in sorted({case.ranks for case in chosen}):
                these = [case for case in chosen if case.ranks == ranks]
                tell(f"start {number} of {len(shares)}: {len(these)} cases, ranks: {ranks}")
                _start(these, ranks, files, share, (seconds, pace_seconds), found)
    return found


def _startable(cases: Sequence[Case], found: Measured, tell: Report) -> list[Case]:
    """Leave out cases on ranks where there is nothing to start ranks with."""
    several = [case for case in cases if case.ranks > 1]
    if not several:
        return list(cases)
    from sparsednn.comm.launcher import find_launcher

    try:
        find_launcher()
    except MissingDependencyError as error:
        tell(f"left out: {len(several)} cases on 2 and more ranks: {error}")
        found.left_out.update({case.name: str(error) for case in several})
        return [case for case in cases if case.ranks == 1]
    return list(cases)


def _start(
    cases: list[Case],
    ranks: int,
    files: Files,
    rounds: int,
    timing: tuple[float, float | None],
    found: Measured,
) -> None:
    """Run one program to its end, and add what it tells; `timing`: of a turn, of the probe."""
    job, out = files.folder / "job.json", files.folder / "found.json"
    job.write_text(
        json.dumps(
            {
                "folder": str(files.folder), "out": str(out), "ranks": ranks, "rounds": rounds,
                "seconds": timing[0], "pace_seconds": timing[1],
                "cases": [case.as_json() for case in cases],
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", _PROGRAM, str(job)]
    code, failure = _run_alone(command) if ranks == 1 else _run_on(ranks, command)
    if code or not out.exists():
        raise LaunchError(
            f"the program that measures on {ranks} rank{'s' if ranks > 1 else ''} ended with "
            f"exit code {code}{f': {failure}' if failure else ''}"
        )
    told: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    for name, times in told["rounds"].items():
        found.rounds.setdefault(name, []).extend(times)
        found.wall.setdefault(name, []).extend(told["wall"][name])
    found.failed.update(told["failed"])


def _run_alone(command: list[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False,
            timeout=_PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LaunchError(f"measuring on 1 rank took more than {_PATIENCE:g} seconds") from None
    return done.returncode, ""


def _run_on(ranks: int, command: list[str]) -> tuple[int, str]:
    from sparsednn.comm.launcher import run_command

    outcome = run_command(ranks, command, stdout=subprocess.DEVNULL, timeout=_PATIENCE)
    if outcome.code in (130, 143):  # the person has told this process to end; it ended the ranks
        raise KeyboardInterrupt
    return outcome.code, outcome.failure
