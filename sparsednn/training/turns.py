"""Work that the ranks of a node should not do at the same time: one first, then the others.

Compiling, say: the first fills the cache on disk, the others read it. Must not know: the work.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsednn.comm.alone import Alone

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["in_turn"]


def in_turn(world: Communicator, work: Callable[[], object]) -> None:
    """Do the work on every rank, on one of each node before its others; collective."""
    if isinstance(world, Alone):
        work()
        return
    from sparsednn.comm.mpi import load_mpi

    node = world.raw.Split_type(load_mpi().COMM_TYPE_SHARED)
    if node.rank == 0:
        work()
    node.Barrier()
    if node.rank:
        work()
    node.Free()
