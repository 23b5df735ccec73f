"""Checks of the door to MPI, from within."""

from __future__ import annotations

import os

import pytest

from sparsednn.comm.mpi import launched, library, load_mpi, world


def check_world_is_a_copy(comm):
    mpi = load_mpi()
    assert world() is comm
    assert comm.size == mpi.COMM_WORLD.Get_size()
    assert mpi.Comm.Compare(comm.raw, mpi.COMM_WORLD) == mpi.CONGRUENT


def check_world_comes_back_after_free(comm):
    first = world()
    copy = first.duplicate()
    raw, first.raw = first.raw, copy.raw
    first.free()
    again = world()
    assert again is not first
    assert again.size == comm.size
    first.raw = raw  # the checks that follow go on with it


def check_the_launcher_is_known(comm):
    here = launched()
    expected = "MPICH" if os.environ.get("MPI4PY_LIBMPI") else "Open MPI"
    assert here is not None
    assert (here.program, here.ranks, here.rank) == (expected, comm.size, comm.rank)


def check_the_library_is_described(comm):
    found = library()
    expected = "MPICH" if os.environ.get("MPI4PY_LIBMPI") else "Open MPI"
    assert found.name == expected
    assert int(found.version.split(".")[0]) >= 3
    assert float(found.standard) >= 3
    assert found.thread_level == "multiple"
    assert found.gpu_aware in (True, False, None)


def check_errors_of_mpi_are_exceptions(comm):
    """As mpi4py has it when it starts MPI itself; otherwise an error would end the process."""
    mpi = load_mpi()
    with pytest.raises(mpi.Exception) as caught:
        comm.raw.Send(bytearray(3), dest=comm.size)
    assert caught.value.Get_error_class() == mpi.ERR_RANK
