"""Dense networks through real mpiexec: every algorithm, whole networks, trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_runs import require_mpi

CHECKS = sorted(Path(__file__).parent.glob("check_*.py"))


@pytest.mark.parametrize("ranks", [2, 3, 4, 6, 8])
def test_checks(ranks: int) -> None:
    done = require_mpi("openmpi").check(ranks, *CHECKS, timeout=300)
    assert done.stderr == ""  # nor does MPI complain, as of requests that were not freed


def test_checks_on_another_mpi() -> None:
    require_mpi("mpich").check(3, *CHECKS, timeout=300)


def test_checks_on_one_rank() -> None:
    """The same programs, without MPI."""
    import runpy

    from sparsednn.comm import Alone

    ran = 0
    for program in CHECKS:
        for name, check in runpy.run_path(str(program)).items():
            if name.startswith("check_"):
                check(Alone())
                ran += 1
    assert ran >= len(CHECKS)
