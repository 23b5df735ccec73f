"""`GridPool`: communicators of the grids that a network's layers use, each made once.

A network of a hundred layers has a few different grids; a communicator is dear, and MPI has only
so many. Must not know: layers.
"""

from __future__ import annotations

from sparsednn.comm.communicator import Communicator
from sparsednn.comm.grid import ProcessGrid

__all__ = ["GridPool"]


class GridPool:
    """Process grids by shape, on the same ranks.

    Every rank asks for the same shapes, and for the same axes of them, in the same order:
    communicators are made collectively the first time.
    """

    def __init__(self, world: Communicator) -> None:
        self.world = world
        self._grids: dict[tuple[int, ...], ProcessGrid] = {}

    def grid(self, shape: tuple[int, ...]) -> ProcessGrid:
        """Return the grid of this shape."""
        if shape not in self._grids:
            self._grids[shape] = ProcessGrid(self.world, shape)
        return self._grids[shape]

    def free(self) -> None:
        """Free all communicators (collective)."""
        while self._grids:
            self._grids.popitem()[1].free()
