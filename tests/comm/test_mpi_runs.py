"""The tool that starts ranks for tests: what it does when they fail or hang."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from mpi_runs import run_session

HANG = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], str(os.getpid())).touch()
print("hanging", flush=True)
time.sleep(100)
"""

CHECKS = """
def check_good(world):
    assert world.size == 2

def check_bad(world):
    assert world.rank == 0, "not this one"
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_hangs_is_killed_and_told(mpi, tmp_path):
    with pytest.raises(pytest.fail.Exception, match="killed after 4 seconds") as failure:
        mpi.run(2, ["-c", HANG, tmp_path], timeout=4)
    assert "hanging" in str(failure.value)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_failed_check_is_told(mpi, tmp_path):
    program = tmp_path / "check_it.py"
    program.write_text(CHECKS)
    with pytest.raises(pytest.fail.Exception) as failure:
        mpi.check(2, program)
    text = str(failure.value)
    assert "ok check_good" in text
    assert "rank 1 of 2: check_bad failed" in text
    assert "AssertionError: not this one" in text


def test_a_bad_exit_code_fails(mpi):
    with pytest.raises(pytest.fail.Exception, match="exit code"):
        mpi.run(1, ["-c", "raise SystemExit(3)"])
    assert mpi.run(1, ["-c", "raise SystemExit(3)"], check=False).returncode == 3


def test_an_outer_launcher_is_forgotten(mpi, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "9")
    monkeypatch.setenv("PMI_SIZE", "9")
    environ = mpi.environ({"EXTRA": "1"})
    assert not {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"} & environ.keys()
    assert environ["EXTRA"] == "1"


def test_a_command_without_mpi():
    done = run_session([sys.executable, "-c", "print('×')"], os.environ, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, "×")
