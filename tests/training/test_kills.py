"""A training whose ranks are killed again and again loses nothing: kill_runs.py, a few times."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mpi_runs import require_mpi, run_session

PROGRAM = Path(__file__).with_name("kill_runs.py")


# A start of the ranks takes seconds. The seeds choose ways: 0 and 1, and 2, of `SAVES`.
@pytest.mark.parametrize(("name", "times", "seed"), [("openmpi", 2, 0), ("mpich", 2, 2)])
def test_killed_and_resumed(name: str, times: int, seed: int) -> None:
    mpi = require_mpi(name)
    command = [sys.executable, str(PROGRAM), "--mpi", name, "--times", str(times)]
    done = run_session([*command, "--seed", str(seed)], mpi.environ(), 300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^kill \d+: ", done.stdout, re.MULTILINE)) == times
    assert f"{times} kills, each resumed; " in done.stdout
