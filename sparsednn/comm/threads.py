"""How many threads a rank may use, and to keep libraries to it.

Every rank's BLAS would take all cores of the node, times the ranks. So the cores are divided once,
and the number is told to every library that has threads. Must not know: what the threads do.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from sparsednn.comm.communicator import Communicator
from sparsednn.comm.mpi import load_mpi
from sparsednn.errors import UsageError
from sparsednn.machine import available_cores, quota_cores

__all__ = ["limit_threads", "threads_per_rank"]

#: The variables that the libraries read which threadpoolctl can also talk to.
_VARIABLES = {
    "openmp": ("OMP_NUM_THREADS",),
    "openblas": ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"),
    "mkl": ("MKL_NUM_THREADS", "OMP_NUM_THREADS"),
    "blis": ("BLIS_NUM_THREADS", "OMP_NUM_THREADS"),
}
_FOR_LATER = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS",
)
#: Those that we have set ourselves, and may set again.
_ours: set[str] = set()


def threads_per_rank(world: Communicator) -> int:
    """Divide the cores of each node among its ranks.

    Parameters
    ----------
    world
        All ranks that run at the same time.

    Returns
    -------
    int
        Cores of this rank's node that its ranks may use (the union of their affinity masks, cut by
        the CPU quota of their container), divided by the ranks on the node; at least 1. The same
        on all ranks of a node, and what is left over is left idle.

    Notes
    -----
    Collective: a split of `world` by shared memory, then three small allreduces on the node. None
    is counted as traffic. Launchers that bind ranks to cores of their own make the masks disjoint,
    those that bind nothing make them equal; the union is right for both.
    """
    mpi = load_mpi()
    node = world.raw.Split_type(mpi.COMM_TYPE_SHARED)
    try:
        ranks = int(node.Get_size())
        if hasattr(os, "sched_getaffinity"):
            mine = sorted(os.sched_getaffinity(0))
            length = np.array([mine[-1] + 1], np.int64)
            node.Allreduce(mpi.IN_PLACE, length, op=mpi.MAX)
            mask = np.zeros(int(length[0]), np.uint8)
            mask[mine] = 1
            node.Allreduce(mpi.IN_PLACE, mask, op=mpi.MAX)
            cores = int(np.count_nonzero(mask))
        else:
            cores = available_cores()
        # Ranks in containers of their own would each have this quota. That they share one is the
        # usual case, and too few threads are the smaller harm.
        quota = np.array([quota_cores() or np.iinfo(np.int64).max], np.int64)
        node.Allreduce(mpi.IN_PLACE, quota, op=mpi.MIN)
    finally:
        node.Free()
    return max(1, min(cores, int(quota[0])) // ranks)


def limit_threads(count: int) -> None:
    """Keep the libraries of this process to so many threads.

    BLAS and OpenMP libraries that are loaded are told at once, those that are loaded later (numba,
    too) through their environment variables. What the user has set in the environment stays. May
    be called again with another number.

    Parameters
    ----------
    count
        Threads, at least 1.

    Raises
    ------
    UsageError
        If `count` is less than 1.
    """
    if count < 1:
        raise UsageError(f"{count} threads: at least 1 is needed")
    users = {name for name in os.environ if name not in _ours}
    _limit_loaded(count, users)
    for name in _FOR_LATER:
        # numba reads its variable again whenever it compiles, and refuses a change once its
        # threads run. They are only for its own parallel loops, of which there are none here.
        if name in users or (name == "NUMBA_NUM_THREADS" and "numba" in sys.modules):
            continue
        os.environ[name] = str(count)
        _ours.add(name)


def _limit_loaded(count: int, users: set[str]) -> None:
    from threadpoolctl import ThreadpoolController

    controller = ThreadpoolController()
    for library, names in _VARIABLES.items():
        if not users.intersection(names):
            # Works at once; it would be undone only by leaving it as a context manager.
            controller.select(internal_api=library).limit(limits=count)
