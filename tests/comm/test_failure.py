"""`abort` ends all ranks, whatever they do, with one line and the exit code."""

from __future__ import annotations

import pytest

ABORT = """
import sys, time
from sparsednn.comm.failure import abort, together
from sparsednn.comm.mpi import world
from sparsednn.errors import FormatError
comm, failing = world(), int(sys.argv[1])
comm.barrier()
half = comm.split(comm.rank % 2)
if comm.rank == failing:
    try:
        raise FormatError("w.tsv: line 3:\\nno number")
    except FormatError as error:
        abort(half, error, 7)
if comm.rank % 2:
    comm.barrier()  # for the one that does not come
time.sleep(100)
"""

TOGETHER = """
from sparsednn.comm.failure import abort, together
from sparsednn.comm.mpi import world
from sparsednn.errors import FormatError, SparseDNNError
comm = world()
try:
    with together(comm, "reading"):
        if comm.rank == 1:
            raise FormatError("no number")
except SparseDNNError as error:
    abort(comm, error, error.exit_code)
"""


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_all_end_when_one_fails(mpi, failing, tmp_path):
    script = tmp_path / "abort.py"
    script.write_text(ABORT)
    done = mpi.run(3, [script, str(failing)], check=False, timeout=30)
    assert done.returncode == 7
    (line,) = [line for line in done.stderr.splitlines() if "sparsednn: error" in line]
    # The rank in its own communicator is the one that is told.
    assert line == f"sparsednn: error: rank {failing // 2}: w.tsv: line 3: no number"
    assert "Traceback" not in done.stderr


def test_debug_shows_where(mpi, tmp_path):
    script = tmp_path / "abort.py"
    script.write_text(ABORT)
    done = mpi.run(1, [script, "0"], check=False, timeout=30, env={"SPARSEDNN_DEBUG": "1"})
    assert done.returncode == 7
    assert "Traceback" in done.stderr
    assert "raise FormatError" in done.stderr


def test_a_rank_is_named_once(mpi, tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = mpi.run(2, script, check=False, timeout=30)
    assert done.returncode == 3
    lines = [line for line in done.stderr.splitlines() if "sparsednn: error" in line]
    assert lines
    assert set(lines) == {"sparsednn: error: rank 1: no number"}
