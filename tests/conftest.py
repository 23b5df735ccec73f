"""Fixtures that several test files share."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path

import pytest

from mpi_runs import IMPLEMENTATIONS, MpiRuns, require_mpi

#: Test files whose tests start ranks.
_START_RANKS = re.compile(r"mpi_runs|mpiexec|comm.launcher|--ranks|doctor")

#: Of these, those that may share the cores with others.
_PATIENT = re.compile(r"tests/(dense|gpu)/|_cnn\.py")

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def mnist_folder() -> Path:
    """The folder with the MNIST idx files, or skip with the reason."""
    candidates = [SHARED / "mnist"]
    if "SPARSEDNN_DATA" in os.environ:
        data = Path(os.environ["SPARSEDNN_DATA"])
        candidates = [data, data / "mnist", *candidates]
    for folder in candidates:
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    pytest.skip("no MNIST files: set SPARSEDNN_DATA to the folder that has them")


@pytest.fixture(scope="session")
def official_categories() -> Path:
    """The official answer for 1024 neurons, 120 layers, or skip with the reason."""
    path = SHARED / "graph-challenge" / "neuron1024-l120-categories.tsv"
    if not path.exists():
        pytest.skip("no official Graph Challenge categories file beside the checkout")
    return path


@pytest.fixture(scope="session", params=IMPLEMENTATIONS)
def mpi(request: pytest.FixtureRequest) -> MpiRuns:
    """Each MPI implementation in turn, or skip with the reason; see mpi_runs.py."""
    return require_mpi(request.param)


#: Starts are dear: all rank counts on one MPI and one of them on the other, where nothing depends
#: on the library beyond what `tests/comm` holds against both.
_STARTS = [("openmpi", 1), ("openmpi", 2), ("openmpi", 3), ("openmpi", 4), ("mpich", 3)]


@pytest.fixture(scope="session", params=_STARTS, ids=lambda start: "-".join(map(str, start)))
def mpi_and_ranks(request: pytest.FixtureRequest) -> tuple[MpiRuns, int]:
    """An MPI implementation and a number of ranks, or skip with the reason."""
    name, ranks = request.param
    return require_mpi(name), ranks


@lru_cache
def _starts_ranks(file: Path) -> bool:
    return _START_RANKS.search(file.read_text(encoding="utf-8")) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What starts ranks first, so that what is short is left to fill up the end.

    Those that share one worker come first, then files that start ranks beside them: they are few
    tests and minutes long. (xdist by itself puts files with few tests last.)
    """
    if config.getoption("numprocesses", None) or hasattr(config, "workerinput"):
        items.sort(key=lambda item: _turn(item.path))


def _turn(file: Path) -> int:
    if file.suffix != ".py" or not _starts_ranks(file):
        return 2
    return 1 if _PATIENT.search(str(file)) else 0


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Deal the tests out to workers (``-n 2``): what starts ranks stays on one, mostly.

    Ranks that spin while they wait would otherwise fight for the cores with those of another test,
    and tests of faults and signals have limits of seconds. Other tests go file by file, so that
    each module's fixtures are made once; so do those of dense networks and GPUs: their check
    programs have minutes, and without them that one worker would be the last by far.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            if _PATIENT.search(file) or not _starts_ranks(config.rootpath / file):
                return file
            return "ranks"

    return ByFile(config, log)
