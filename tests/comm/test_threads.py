"""`limit_threads` (in processes of their own: libraries keep what they were told), and the quota.

`threads_per_rank` is checked on real ranks, by check_threads.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sparsednn import machine
from sparsednn.comm.threads import limit_threads
from sparsednn.errors import UsageError

THREADS = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS",
)  # fmt: skip


def limited(code: str, **variables: str) -> dict:
    """Run code, and return the environment's variables and the threads of the loaded libraries."""
    environ = {name: value for name, value in os.environ.items() if name not in THREADS}
    report = (
        "import json, os, threadpoolctl\n"
        f"names = {THREADS!r}\n"
        "pools = [pool['num_threads'] for pool in threadpoolctl.threadpool_info()]\n"
        "print(json.dumps({'pools': pools} | {n: os.environ.get(n) for n in names}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{code}\n{report}"],
        env={**environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LIMIT = "from sparsednn.comm.threads import limit_threads\n"


def test_loaded_and_later_libraries_are_limited():
    found = limited(f"import numpy, scipy.linalg\n{LIMIT}limit_threads(3)\nlimit_threads(1)")
    pools = found.pop("pools")
    assert pools
    assert set(pools) == {1}
    assert found == dict.fromkeys(THREADS, "1")


def test_what_the_user_has_set_stays():
    found = limited(f"import numpy\n{LIMIT}limit_threads(1)", OPENBLAS_NUM_THREADS="2")
    assert found["OPENBLAS_NUM_THREADS"] == "2"
    assert found["OMP_NUM_THREADS"] == found["NUMBA_NUM_THREADS"] == "1"
    if (os.cpu_count() or 1) > 1:
        assert 2 in found["pools"]


def test_numba_that_is_loaded_is_left_alone():
    found = limited(f"import numba\n{LIMIT}limit_threads(1)")
    assert found["NUMBA_NUM_THREADS"] is None
    assert found["OMP_NUM_THREADS"] == "1"


def test_no_threads():
    with pytest.raises(UsageError, match="0 threads"):
        limit_threads(0)


@pytest.mark.parametrize(
    ("text", "cores"),
    [("150000 100000", 2), ("1000 100000", 1), ("max 100000", None), ("", None), ("x y", None)],
)
def test_quota(tmp_path, monkeypatch, text, cores):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    monkeypatch.setattr(machine, "_CPU_QUOTA", file)
    assert machine.quota_cores() == cores
    mask = len(os.sched_getaffinity(0))
    assert machine.available_cores() == min(mask, cores or mask)


def test_no_quota(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CPU_QUOTA", tmp_path / "none")
    assert machine.quota_cores() is None
