"""`ProcessGrid`: the ranks as an n-dimensional grid, and the communicators along its axes.

Must not know: what is divided along an axis (rows, columns, images, layers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sparsednn.comm.communicator import Communicator
from sparsednn.errors import UsageError

__all__ = ["ProcessGrid"]


class ProcessGrid:
    """Ranks in row-major order: the last axis varies fastest, as in a C-contiguous array.

    Parameters
    ----------
    world
        The communicator whose ranks are arranged; stays the caller's.
    shape
        Ranks along each axis; at least one axis, each at least 1.

    Attributes
    ----------
    shape
        As given.
    coordinates
        Of this rank, one for each axis.

    Raises
    ------
    UsageError
        If the shape is none, or does not have as many places as there are ranks.
    """

    __slots__ = ("_along", "_world", "coordinates", "shape")

    shape: tuple[int, ...]
    coordinates: tuple[int, ...]

    def __init__(self, world: Communicator, shape: Sequence[int]) -> None:
        self.shape = tuple(int(size) for size in shape)
        if not self.shape or min(self.shape) < 1:
            raise UsageError(f"grid {self}: each axis needs at least one rank")
        if math.prod(self.shape) != world.size:
            raise UsageError(
                f"grid {self} has {math.prod(self.shape)} places for {world.size} ranks"
            )
        self._world = world
        self._along: dict[tuple[int, ...], Communicator] = {}
        self.coordinates = self.coordinates_of(world.rank)

    @staticmethod
    def parse(text: str) -> tuple[int, ...]:
        """Read a shape as a person types it.

        >>> ProcessGrid.parse("2x3")
        (2, 3)

        Raises
        ------
        UsageError
            If it is not positive numbers with ``x`` between them.
        """
        sizes = text.strip().lower().replace("×", "x").split("x")
        # int() alone would take "+2", "1_0" and " 2", too.
        if not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
            raise UsageError(f"grid '{text}' is not like 4, 2x2 or 2x3x1")
        return tuple(int(size) for size in sizes)

    def coordinates_of(self, rank: int) -> tuple[int, ...]:
        """Coordinates of a rank of the world."""
        if not 0 <= rank < self._world.size:
            raise UsageError(f"grid {self}: no rank {rank}")
        reverse = []
        for size in reversed(self.shape):
            rank, coordinate = divmod(rank, size)
            reverse.append(coordinate)
        return tuple(reversed(reverse))

    def rank_of(self, coordinates: Sequence[int]) -> int:
        """Rank in the world of the given coordinates, one for each axis."""
        place = tuple(coordinates)
        if len(place) != len(self.shape) or not all(
            0 <= coordinate < size for coordinate, size in zip(place, self.shape, strict=True)
        ):
            raise UsageError(f"grid {self}: no place {place}")
        rank = 0
        for coordinate, size in zip(place, self.shape, strict=True):
            rank = rank * size + coordinate
        return rank

    def along(self, *axes: int) -> Communicator:
        """Communicator of the ranks that differ from this one in the given axes only.

        Ranks are in row-major order of these axes. Collective over the whole world the first time
        that a set of axes is asked for, and kept: every rank asks for the same sets in the same
        order. Shares the world's `Traffic`. The grid owns it; `free` frees it. No axes, or axes of
        length one, give a communicator of one rank.

        Raises
        ------
        UsageError
            If an axis is not one of the grid's, or is named twice.
        """
        chosen = tuple(sorted(axes))
        if len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(len(self.shape))):
            raise UsageError(f"grid {self}: no axes {', '.join(map(str, axes))}")
        if chosen not in self._along:
            fixed = [
                0 if axis in chosen else coordinate
                for axis, coordinate in enumerate(self.coordinates)
            ]
            # The group is named after the rank of it that is first in all its axes.
            group = self._world.split(self.rank_of(fixed), self._world.rank)
            if group is None:  # split gives None for color None only
                raise AssertionError("split left out a rank that has a color")
            self._along[chosen] = group
        return self._along[chosen]

    def free(self) -> None:
        """Free the communicators of `along` (collective); a second time does nothing."""
        while self._along:
            self._along.popitem()[1].free()

    def __str__(self) -> str:
        """Return the shape, as `parse` reads it."""
        return "x".join(map(str, self.shape)) or "''"

    def __repr__(self) -> str:
        """Return shape and coordinates."""
        return f"ProcessGrid({self}, coordinates={self.coordinates})"
