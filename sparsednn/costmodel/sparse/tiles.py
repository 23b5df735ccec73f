"""How wide a tile is on a platform, and how many tiles a run has: as the engines choose.

One rank alone takes `kernels.sizes.choose_tiling` of the whole network; ranks that share the
neurons the smallest of what each would choose (`distributed.compiled`). Both ask
`kernels.sizes.tile_columns`: a tile's two layers should fill half of the last private cache, else a
panel of three vectors if it fits the shared one.

Must not know: seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.errors import UsageError
from sparsednn.machine import Machine

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["Tiles", "machine_of", "tiles_of", "training_columns"]

#: Where a platform does not say: the last cache that cores share, over the private one.
_SHARED_OVER_PRIVATE: Final = 32
_GPU_COLUMNS: Final = 32  # a GPU's tiles are whole multiples of it
_TRAINED_AT_LEAST: Final = 64  # columns of a tile of training
_LARGEST_MESSAGE: Final = 2**31 - 1  # elements, an MPI count


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of a run.

    Attributes
    ----------
    columns
        Of a full tile.
    full, rest
        Full tiles of the stream (thread) that has the most to do, and the columns of the narrower
        tile behind them; 0 if that stream has none.
    total
        Tiles of all streams of a rank.
    threads
        Streams that have a tile.
    images
        Of all streams of a rank.
    """

    columns: int
    full: int
    rest: int
    total: int
    threads: int
    images: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of the tiles of that stream, in order."""
        return (self.columns,) * self.full + ((self.rest,) if self.rest else ())


def machine_of(platform: Platform) -> Machine:
    """Return what `kernels.sizes` wants to know of a platform's core.

    ``measured["machine"]`` may have ``l3_bytes`` and ``l3_shared_by``; otherwise a last cache of 32
    times the private one is taken, for 16 cores at most.
    """
    known: Mapping[str, Any] = platform.measured.get("machine", {})
    private = int(platform.processor.cache_bytes)
    return Machine(
        processor=platform.name,
        cores=platform.node.processors,
        l1d=0,
        l2=private,
        l3=int(known.get("l3_bytes", _SHARED_OVER_PRIVATE * private)),
        l3_shared_by=int(known.get("l3_shared_by", min(16, platform.node.processors))),
        memory=int(platform.node.memory_bytes),
        guessed=(),
    )


def tiles_of(
    platform: Platform, work: SparseWork, images: int, threads: int, tile: int | None = None
) -> Tiles:
    """Return the tiles of a run on so many images of one data group.

    Parameters
    ----------
    platform, work
        The machine, and what its ranks do.
    images
        Of the group.
    threads
        Of each rank; each is a stream of tiles.
    tile
        Columns of a tile; None: what the engine would choose.

    Raises
    ------
    UsageError
        If there is no image, no thread, or a tile has no column.
    """
    for name, value in (("images", images), ("threads", threads), ("tile", tile or 1)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")
    columns = tile or _choose(platform, work, images, threads)
    total = -(-images // columns)
    threads = min(threads, total)
    # Tiles are dealt out one by one; the last one may be narrower, and is somebody's last.
    most = -(-total // threads)
    rest = images % columns
    mine = rest if (total - 1) % threads == 0 else 0
    return Tiles(columns, most - (1 if mine else 0), mine, total, threads, images)


def training_columns(platform: Platform, work: SparseWork, batch: int, threads: int = 1) -> int:
    """Return the most images of a piece of a step, as `training.compiled` chooses.

    At least 64 where the batch has so many: fewer would not pay for the weights.
    """
    from sparsednn.kernels.sizes import tile_columns

    received = work.words_received
    floats = int((work.neurons[:-1] + work.neurons[1:] + received).max())
    suits, _ = tile_columns(floats, machine_of(platform), threads)
    words = max(1, int(np.maximum(work.words_sent, received).max()))
    return max(1, min(batch, max(suits, _TRAINED_AT_LEAST), _LARGEST_MESSAGE // words))


def _choose(platform: Platform, work: SparseWork, images: int, threads: int) -> int:
    from sparsednn.kernels.sizes import tile_columns

    received = work.words_received
    if platform.processor.kind == "gpu":
        rows = int((work.neurons[:-1] + work.neurons[1:] + received).max())
        room = int(platform.memory_per_rank() / 2) // (4 * max(1, rows)) // _GPU_COLUMNS
        wanted = -(-images // _GPU_COLUMNS)
        return _GPU_COLUMNS * max(1, min(wanted, room))
    cpu = machine_of(platform)
    if work.ranks == 1:
        return tile_columns(2 * int(work.widths.max()), cpu, threads)[0]
    floats = int((work.neurons[:-1] + work.neurons[1:] + received).max())
    suits, _ = tile_columns(floats, cpu, threads)
    words = max(1, int(np.maximum(work.words_sent, received).max()))
    return max(1, min(suits, -(-images // threads), _LARGEST_MESSAGE // words))
