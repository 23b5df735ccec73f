"""The door to MPI, from outside: launchers' environments, missing parts, launchers that differ."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mpi_runs import find_mpi, require_mpi
from sparsednn.comm import mpi as door
from sparsednn.comm.mpi import Launched, launched
from sparsednn.errors import MissingDependencyError

OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "PMIX_RANK": "3"}
HYDRA = {"PMI_SIZE": "4", "PMI_RANK": "1", "PMI_FD": "9", "MPI_LOCALNRANKS": "2"}
STEP = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0"}
BATCH = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_NPROCS": "8", "SLURM_PROCID": "0"}
PROXY = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}  # of a launcher that uses srun itself


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (OPEN_MPI, Launched("Open MPI", 4, 3)),
        (HYDRA, Launched("MPICH", 4, 1)),
        (STEP, Launched("Slurm", 8, 5)),
        (STEP | {"PMIX_RANK": "5", "PMIX_NAMESPACE": "slurm.pmix.1.0"}, Launched("Slurm", 8, 5)),
        (STEP | {"PMI_SIZE": "8", "PMI_RANK": "5"}, Launched("Slurm", 8, 5)),  # --mpi=pmi2
        (BATCH, None),
        (BATCH | OPEN_MPI | PROXY, Launched("Open MPI", 4, 3)),
        (BATCH | HYDRA | PROXY, Launched("MPICH", 4, 1)),
        (
            BATCH | HYDRA | {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "1"},
            Launched("MPICH", 4, 1),
        ),
        ({"PALS_RANKID": "2", "PMI_SIZE": "4", "PMI_RANK": "2"}, Launched("PALS", 4, 2)),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, None),
        ({"PMI_SIZE": "four", "PMI_RANK": "1"}, None),
        ({"PMI_SIZE": "4", "PMI_RANK": "4"}, None),
    ],
)
def test_launched(environ, expected):
    assert launched(environ) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11",
            ("Open MPI", "5.0.11"),
        ),
        ("MPICH Version:      5.0.2\nMPICH Release date: x\nMPICH ABI: 1", ("MPICH", "5.0.2")),
        ("Intel(R) MPI Library 2021.10 for Linux* OS\n\0", ("Intel MPI", "2021.10")),
        (
            "MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)\n",
            ("Cray MPICH", "8.1.25.17"),
        ),
        ("MVAPICH2 Version      :\t2.3.7\nMVAPICH2 Release date : x", ("MVAPICH", "2.3.7")),
        ("A new MPI 1.0\nmore", ("A new MPI 1.0", "?")),
        ("", ("unknown MPI", "?")),
    ],
)
def test_library_names(text, expected):
    assert door.parse_version(text) == expected


def test_without_mpi4py(monkeypatch):
    for name in ("mpi4py", "mpi4py.MPI"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"mpi4py is not installed: install 'sparse"):
        door.load_mpi()


def python(code, environ):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


TELL = """
from sparsednn.comm.mpi import {name}
from sparsednn.errors import SparseDNNError
try:
    found = {name}()
except SparseDNNError as error:
    print(f"{{type(error).__name__}}: {{error}}")
else:
    print(found)
"""


def test_without_a_library(tmp_path):
    pytest.importorskip("mpi4py")
    if isinstance(runs := find_mpi("openmpi"), str):
        pytest.skip(runs)
    missing = tmp_path / "libmpi.so"
    done = python(TELL.format(name="load_mpi"), runs.environ({"MPI4PY_LIBMPI": str(missing)}))
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("MissingDependencyError: mpi4py finds no MPI: cannot load MPI library")
    assert str(missing) in line


def test_importing_the_package_loads_no_mpi():
    modules = "mpi, traffic, communicator, neighbours, grid, failure"
    done = python(
        f"import sys; from sparsednn.comm import {modules}; print('mpi4py' in sys.modules)", None
    )
    assert done.stdout == "False\n", done.stderr


def test_a_plain_process_is_a_world_of_one(mpi):
    done = python(TELL.format(name="world"), mpi.environ())
    assert (done.stdout, done.stderr) == ("Communicator(rank 0 of 1)\n", "")


def test_open_mpi_launcher_with_mpich(tmp_path):
    """MPICH ends the process in MPI_Init here, so it is found out before."""
    runs, mpich = require_mpi("openmpi"), require_mpi("mpich")
    done = runs.run(2, ["-W", "error", "-c", TELL.format(name="world")], env=mpich.environment)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(
            "LaunchError: the launcher of Open MPI started 2 ranks, but mpi4py loads MPICH "
        )
        assert line.endswith(
            "(rank 0 of 1): start with the mpirun of MPICH, or set MPI4PY_LIBMPI to the libmpi.so "
            "of Open MPI"
        )


def test_mpich_launcher_with_open_mpi(tmp_path):
    """Every rank is alone; mpi4py's own warning of it would be an error here, and is not there."""
    runs, mpich = require_mpi("openmpi"), require_mpi("mpich")
    script = tmp_path / "tell.py"
    script.write_text(TELL.format(name="world"))
    environ = {key: value for key, value in mpich.environ().items() if key != "MPI4PY_LIBMPI"}
    command = [str(mpich.mpirun), "-n", "2", sys.executable, "-W", "error", str(script)]
    done = subprocess.run(
        command, env={**environ, **runs.environment},
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert line.startswith(
            "LaunchError: the launcher of MPICH started 2 ranks, but mpi4py loads Open MPI "
        )
        assert "start with the mpirun of Open MPI, or set MPI4PY_LIBMPI" in line
