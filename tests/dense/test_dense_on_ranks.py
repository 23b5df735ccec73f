"""Dense networks through real mpiexec: every algorithm, whole networks, trainings."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpi_runs import require_mpi

HERE = Path(__file__).parent
CHECKS = sorted(HERE.glob("check_*.py"))
#: What is tried on many ranks, and on another MPI, too.
CORE = [HERE / "check_convolution.py", HERE / "check_model.py"]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_checks(ranks: int) -> None:
    done = require_mpi("openmpi").check(ranks, *CHECKS, timeout=300)
    assert done.stderr == ""  # nor does MPI complain, as of requests that were not freed


@pytest.mark.parametrize(("name", "ranks"), [("openmpi", 6), ("openmpi", 8), ("mpich", 3)])
def test_core(name: str, ranks: int) -> None:
    require_mpi(name).check(ranks, *CORE, timeout=300)


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
