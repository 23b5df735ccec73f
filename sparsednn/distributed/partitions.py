"""A partition file for all ranks, and the grid that it makes of them.

Rank 0 reads the file, the others get its vectors by a broadcast.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from sparsednn.comm.failure import together
from sparsednn.errors import UsageError
from sparsednn.partitioners.partition import Partition, PartitionMeta, read_partition

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["broadcast_partition", "grid_shape", "share_partition"]


def share_partition(world: Communicator, path: str | os.PathLike[str]) -> Partition:
    """Read a partition file on rank 0 and give it to all ranks. Collective: two broadcasts.

    Raises
    ------
    InputError
        As `read_partition`, on all ranks.
    """
    read: Partition | None = None
    with together(world, f"reading {path}"):
        if world.rank == 0:
            read = read_partition(path)
    return broadcast_partition(world, read)


def broadcast_partition(world: Communicator, read: Partition | None) -> Partition:
    """Give all ranks a partition that rank 0 has (None elsewhere). Collective: two broadcasts."""
    head = None
    if read is not None:
        head = {
            "parts": read.parts,
            "sizes": [vector.size for vector in read.owners],
            "meta": asdict(read.meta),
        }
    head = world.broadcast_json(head)
    sizes = head["sizes"]
    flat = np.empty(sum(sizes), np.int32) if read is None else np.concatenate(read.owners)
    world.broadcast(flat)
    if read is not None:
        return read
    owners = np.split(flat, np.cumsum(sizes)[:-1])
    return Partition(owners, head["parts"], PartitionMeta(**head["meta"]))


def grid_shape(
    ranks: int,
    parts: int,
    grid: tuple[int, ...] | None,
    *,
    partition: str | os.PathLike[str] | None,
) -> tuple[int, int]:
    """Return ``(D, M)``, or say what does not fit.

    >>> grid_shape(8, 4, None, partition="net.p4.npz")
    (2, 4)
    """
    if grid is None:
        if ranks % parts:
            raise UsageError(
                f"{partition}: has {parts} parts, which do not divide {ranks} ranks: start {parts} "
                f"of them ('mpirun -n {parts} sparsednn …', or --ranks {parts}), or a multiple"
            )
        return ranks // parts, parts
    text = "x".join(map(str, grid))
    if len(grid) != 2:
        raise UsageError(f"--grid {text}: give DxM, data groups times ranks of a group")
    if grid[0] * grid[1] != ranks:
        raise UsageError(f"--grid {text}: needs {grid[0] * grid[1]} ranks, there are {ranks}")
    if grid[1] != parts and partition is None:
        raise UsageError(
            f"--grid {text}: give --partition FILE with {grid[1]} parts (made by 'sparsednn "
            f"partition MODEL --parts {grid[1]} -o FILE')"
        )
    if grid[1] != parts:
        raise UsageError(f"--grid {text}: {partition} has {parts} parts, not {grid[1]}")
    return grid[0], grid[1]
