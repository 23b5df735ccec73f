"""Results of all ranks on rank 0, in one order: that of the images, and of the neurons.

So what comes out does not depend on the number of ranks, beyond the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.comm.grid import ProcessGrid
    from sparsednn.inference import OutputSink

__all__ = ["Gathering", "finish_softmax"]


class Gathering:
    """Who has which rows and images, and how they come together.

    Parameters
    ----------
    world, grid
        All ranks, as D data groups of M ranks each.
    owners
        ``(n_out,)``: the part of each output; None if every rank has all rows (M = 1).
    n_out, n_images
        Of the network, and of all groups together.

    Attributes
    ----------
    mine
        The outputs that this rank owns, ascending.

    All methods are collective over `world`.
    """

    def __init__(
        self,
        world: Communicator,
        grid: ProcessGrid,
        owners: NDArray[np.int32] | None,
        n_out: int,
        n_images: int,
    ) -> None:
        self._world, self._grid = world, grid
        self._group, self._across = grid.along(1), grid.along(0)
        self._n_images, self._n_out = n_images, n_out
        vector = np.zeros(n_out, np.int32) if owners is None else owners
        self._rows = [np.flatnonzero(vector == part) for part in range(grid.shape[1])]
        self.mine = self._rows[grid.coordinates[1]]

    def outputs(self, outputs: NDArray[np.float32], begin: int, sink: OutputSink | None) -> None:
        """Put a block of images together and hand it to rank 0's `sink`.

        Parameters
        ----------
        outputs
            ``(own rows, images)`` of this rank's images of the block.
        begin
            The first of these, among all images.

        Rank 0 holds the block twice for a moment.
        """
        starts = self._world.gather(np.array([begin, outputs.shape[1]], np.int64))
        pieces = self._world.gather(outputs.reshape(-1))
        if starts is None or pieces is None or sink is None:
            return
        first = min(int(start) for start, _ in starts)
        width = max(int(start + columns) for start, columns in starts) - first
        block = np.empty((self._n_out, width), np.float32)
        for rank, ((start, columns), piece) in enumerate(zip(starts, pieces, strict=True)):
            rows = self._rows[self._grid.coordinates_of(rank)[1]]
            at = int(start) - first
            block[rows, at : at + int(columns)] = piece.reshape(rows.size, int(columns))
        sink(first, block)

    def categories(
        self, flags: NDArray[np.uint8], ranges: Sequence[tuple[int, int]]
    ) -> NDArray[np.int64]:
        """Images that end alive, 0-based, on rank 0; none elsewhere.

        Parameters
        ----------
        flags
            For each of this rank's images, whether one of its own outputs is nonzero; afterwards,
            whether any output is.
        ranges
            This rank's images among all, see `inputs.image_ranges`.
        """
        none = np.empty(0, np.int64)
        if self._group.size > 1:
            self._group.allreduce(flags, "or")
        if self._group.rank:
            return none
        bounds = self._across.gather(np.array(ranges, np.int64).reshape(-1))
        pieces = self._across.gather(flags)
        if bounds is None or pieces is None:
            return none
        alive = np.zeros(self._n_images, np.bool_)
        for theirs, piece in zip(bounds, pieces, strict=True):
            at = 0
            for begin, end in theirs.reshape(-1, 2):
                alive[begin:end] = piece[at : at + end - begin] != 0
                at += end - begin
        return np.flatnonzero(alive).astype(np.int64)


def finish_softmax(z: NDArray[np.float32], group: Communicator) -> None:
    """Softmax over the rows of all ranks, ``(own rows, images)``, in place; two allreduces."""
    if not z.shape[1]:
        return
    top = z.max(axis=0, initial=-np.inf)
    group.allreduce(top, "max")
    np.exp(z - top, out=z)
    total = z.sum(axis=0, dtype=np.float32)
    group.allreduce(total, "sum")
    z /= total
