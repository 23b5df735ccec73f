"""The check programs on 1 to 4 ranks of every MPI, one start for each."""

from __future__ import annotations

from pathlib import Path

import pytest

CHECKS = sorted(Path(__file__).parent.glob("check_*.py"))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_checks(mpi, ranks):
    done = mpi.check(ranks, *CHECKS)
    assert done.stderr == ""  # nor does MPI complain, as of requests that were not freed
