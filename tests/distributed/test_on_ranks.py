"""The row-wise engine through real mpiexec, on every MPI that is installed."""

from __future__ import annotations

from pathlib import Path

from mpi_runs import MpiRuns, require_mpi

HERE = Path(__file__).resolve().parent
ENGINE, RUN = HERE / "check_engine.py", HERE / "check_run.py"


def test_engine_and_runs(mpi_and_ranks: tuple[MpiRuns, int]) -> None:
    mpi, ranks = mpi_and_ranks
    mpi.check(ranks, ENGINE, RUN, timeout=500)


def test_eight_ranks() -> None:
    """More ranks than some layers have rows, four to a core here."""
    require_mpi("openmpi").check(8, ENGINE, timeout=500)
