"""A device for each rank: the ranks of a machine share its GPUs, and all ranks compute alike."""

from __future__ import annotations

from collections.abc import Callable

from sparsednn.comm.alone import Alone
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.failure import together
from sparsednn.gpu import find_device
from sparsednn.gpu.device import Device

__all__ = ["find_devices"]


def find_devices(
    choice: str, world: Communicator, tell: Callable[[str], None] | None = None
) -> Device | None:
    """Find this rank's device; collective, see `find_device`.

    Rank r of a machine gets its GPU r, modulo their number. With ``auto`` all ranks get a GPU, or
    none does.

    Parameters
    ----------
    choice, tell
        As for `find_device`; `tell` is called on rank 0 only, with the reason of the first rank
        that has one.
    world
        All ranks. Nothing is counted as traffic.

    Raises
    ------
    SparseDNNError
        As `find_device` does, on all ranks alike.
    """
    if choice == "cpu":
        return None
    rank = _rank_of_machine(world)
    reasons: list[str] = []
    with together(world, "finding a GPU"):
        device = find_device(choice, rank, reasons.append)
    if not world.any_rank(device is None):
        return device
    told = [text for text in world.allgather_text("".join(reasons)) if text]
    if world.rank == 0 and tell is not None and told:
        tell(told[0])
    return None


def _rank_of_machine(world: Communicator) -> int:
    """Count the ranks of this machine before us."""
    if isinstance(world, Alone):
        return 0
    from sparsednn.comm.mpi import load_mpi

    node = world.raw.Split_type(load_mpi().COMM_TYPE_SHARED)
    try:
        return int(node.rank)
    finally:
        node.Free()
