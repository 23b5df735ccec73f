"""`GridPool`: communicators of the grids that a network's layers use, each made once.

A network of a hundred layers has a few different grids; a communicator is dear, and MPI has only
so many. Must not know: layers.
"""

from __future__ import annotations

from sparsednn.comm.communicator import Communicator
from sparsednn.comm.grid import ProcessGrid
from sparsednn.comm.staged import HostCopies, Staged

__all__ = ["GridPool"]


class GridPool:
    """Process grids by shape, on the same ranks.

    Parameters
    ----------
    world
        All ranks; stays the caller's.
    copies
        Copies arrays to the host and back, if they are not there; None: they are.

    Notes
    -----
    Every rank asks for the same shapes, and for the same axes of them, in the same order:
    communicators are made collectively the first time.
    """

    def __init__(self, world: Communicator, copies: HostCopies | None = None) -> None:
        self.world, self.copies = world, copies
        self._grids: dict[tuple[int, ...], ProcessGrid] = {}

    def grid(self, shape: tuple[int, ...]) -> ProcessGrid:
        """Return the grid of this shape."""
        if shape not in self._grids:
            self._grids[shape] = ProcessGrid(self.world, shape)
        return self._grids[shape]

    def along(self, shape: tuple[int, ...], *axes: int) -> Communicator | Staged:
        """Return the ranks that differ from this one along these axes of a grid, and their verbs.

        For arrays of the kind that `copies` says.
        """
        ranks = self.grid(shape).along(*axes)
        return ranks if self.copies is None else Staged(ranks, self.copies)

    def free(self) -> None:
        """Free all communicators (collective)."""
        while self._grids:
            self._grids.popitem()[1].free()
