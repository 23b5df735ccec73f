"""`Layout`: which rank owns which block of a tensor.

An axis is cut by the grid's axes that divide it: part i of p of n elements is ``[n·i // p,
n·(i+1) // p)``, so sizes differ by at most one, and there may be empty ones. Where two grid axes
divide the same tensor axis, the parts of the first are cut further by the second; since
``n·(i·q) // (p·q) = n·i // p``, cuts of the finer division are also cuts of the coarser.

A block is a product of intervals, mostly one along each axis. Several there are where an axis is
made of pieces: channels of groups that are divided inside each group, and concatenated channels.
The local array of a block has the intervals of each axis after each other.

Must not know: messages, and what the axes mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import ShapeError

__all__ = ["Axis", "Block", "Layout", "bounds", "concatenated", "overlaps"]

Interval = tuple[int, int]


def bounds(size: int, parts: int) -> list[int]:
    """Return the ``parts + 1`` cuts of an axis.

    >>> bounds(7, 3)
    [0, 2, 4, 7]
    """
    return [size * part // parts for part in range(parts + 1)]


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a tensor: for each axis its intervals, ascending, none of them empty."""

    intervals: tuple[tuple[Interval, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the local array."""
        return tuple(sum(stop - start for start, stop in axis) for axis in self.intervals)

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    def slices(self) -> tuple[slice, ...]:
        """Return the block as slices of the whole tensor.

        Raises
        ------
        ShapeError
            If there is more than one interval along an axis.
        """
        if any(len(axis) > 1 for axis in self.intervals):
            raise ShapeError(f"a block of several intervals is no slice: {self.intervals}")
        return tuple(slice(*axis[0]) if axis else slice(0, 0) for axis in self.intervals)

    def indices(self) -> tuple[NDArray[np.int64], ...]:
        """Return the global positions along each axis; with `numpy.ix_` they pick the block."""
        return tuple(
            np.concatenate([np.arange(*interval) for interval in axis] or [np.arange(0)])
            for axis in self.intervals
        )


def overlaps(one: Block, other: Block) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Yield the boxes that two blocks share: slices of the local array of the one, of the other."""
    per_axis = []
    for mine, theirs in zip(one.intervals, other.intervals, strict=True):
        found = []
        at = 0
        for start, stop in mine:
            there = 0
            for first, last in theirs:
                low, high = max(start, first), min(stop, last)
                if low < high:
                    found.append(
                        (
                            slice(at + low - start, at + high - start),
                            slice(there + low - first, there + high - first),
                        )
                    )
                there += last - first
            at += stop - start
        if not found:
            return
        per_axis.append(found)
    for box in itertools.product(*per_axis):
        yield tuple(pair[0] for pair in box), tuple(pair[1] for pair in box)


@dataclass(frozen=True, slots=True)
class Axis:
    """How one axis of a tensor is divided.

    Parameters
    ----------
    size
        Elements.
    over
        Positions of the grid axes that divide it, the coarsest first.
    groups, groups_over
        The elements form so many groups of equal size; `groups_over` divide the groups, `over`
        divides each of them.
    """

    size: int
    over: tuple[int, ...] = ()
    groups: int = 1
    groups_over: tuple[int, ...] = ()

    def intervals(self, grid: Sequence[int]) -> NDArray[np.int64]:
        """Return ``(ranks, n, 2)``: the intervals of each rank, some of them empty."""
        ranks = math.prod(grid)
        places = np.unravel_index(np.arange(ranks), tuple(grid))
        first, last = _parts(self.size // self.groups, self.over, grid, places)
        if self.groups == 1 and math.prod(grid[axis] for axis in self.groups_over) == 1:
            return np.stack([first, last], axis=1)[:, None, :]
        size = self.size // self.groups
        group_first, group_last = _parts(self.groups, self.groups_over, grid, places)
        if math.prod(grid[axis] for axis in self.over) == 1:  # whole groups, one after the other
            return np.stack([group_first * size, group_last * size], axis=1)[:, None, :]
        most = int((group_last - group_first).max(initial=0))
        groups = group_first[:, None] + np.arange(most)
        there = groups < group_last[:, None]
        pairs = np.stack([groups * size + first[:, None], groups * size + last[:, None]], axis=2)
        return np.where(there[:, :, None], pairs, 0)


def _parts(
    size: int, over: Sequence[int], grid: Sequence[int], places: Sequence[NDArray[np.intp]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last element of every rank's part."""
    index = np.zeros(math.prod(grid), np.int64)
    parts = 1
    for axis in over:
        index = index * grid[axis] + places[axis]
        parts *= grid[axis]
    return size * index // parts, size * (index + 1) // parts


class Layout:
    """The blocks of all ranks.

    Parameters
    ----------
    shape
        Of the whole tensor.
    intervals
        For each axis ``(ranks, n, 2)`` int64: each rank's intervals ``[start, stop)``, ascending;
        empty ones do not count.

    Notes
    -----
    Activations and kernels at rest are disjoint: every element has one owner. What ranks *need*
    (tiles with halos, replicated kernels) are layouts, too, and overlap.
    """

    __slots__ = ("_sizes", "intervals", "ranks", "shape")

    def __init__(self, shape: Sequence[int], intervals: Sequence[NDArray[np.int64]]) -> None:
        self.shape = tuple(int(size) for size in shape)
        self.intervals = tuple(intervals)
        self.ranks = len(self.intervals[0])
        self._sizes: NDArray[np.int64] | None = None
        if len(self.intervals) != len(self.shape) or any(
            axis.ndim != 3 or axis.shape[0] != self.ranks or axis.shape[2] != 2
            for axis in self.intervals
        ):
            raise ShapeError(
                f"layout of {self.shape}: intervals of shapes "
                f"{[axis.shape for axis in self.intervals]}, one (ranks, n, 2) per axis is needed"
            )

    @classmethod
    def on_grid(cls, grid: Sequence[int], axes: Sequence[Axis]) -> Layout:
        """Divide a tensor over a grid, axis by axis; what no grid axis divides is on all of it."""
        return cls([axis.size for axis in axes], [axis.intervals(grid) for axis in axes])

    def block(self, rank: int) -> Block:
        """Return what a rank owns; a rank without elements has no intervals along some axis."""
        return Block(
            tuple(
                tuple((int(a), int(b)) for a, b in axis[rank] if a < b) for axis in self.intervals
            )
        )

    def lengths(self, axis: int) -> NDArray[np.int64]:
        """Return ``(ranks,)``: the length of each rank's block along an axis."""
        pairs = self.intervals[axis]
        return np.asarray(np.maximum(pairs[:, :, 1] - pairs[:, :, 0], 0).sum(axis=1))

    def sizes(self) -> NDArray[np.int64]:
        """Return ``(ranks,)``: elements of each rank; worked out once, to be read only."""
        if self._sizes is None:
            sizes = np.ones(self.ranks, np.int64)
            for axis in range(len(self.shape)):
                sizes *= self.lengths(axis)
            sizes.flags.writeable = False
            self._sizes = sizes
        return self._sizes

    def common(self, other: Layout) -> NDArray[np.int64]:
        """Return ``(ranks,)``: elements that a rank has in both layouts."""
        if self.shape != other.shape or self.ranks != other.ranks:
            raise ShapeError(
                f"layouts of {self.shape} on {self.ranks} ranks and of {other.shape} on "
                f"{other.ranks} ranks have nothing to compare"
            )
        common = np.ones(self.ranks, np.int64)
        for mine, theirs in zip(self.intervals, other.intervals, strict=True):
            low = np.maximum(mine[:, :, None, 0], theirs[:, None, :, 0])
            high = np.minimum(mine[:, :, None, 1], theirs[:, None, :, 1])
            common *= np.maximum(high - low, 0).sum(axis=(1, 2))
        return common

    def same_as(self, other: Layout) -> bool:
        """Whether every rank has the same block in both."""
        if self.shape != other.shape or self.ranks != other.ranks:
            return False
        sizes = self.sizes()
        return bool(
            np.array_equal(sizes, other.sizes()) and np.array_equal(self.common(other), sizes)
        )

    def with_axis(self, axis: int, size: int, intervals: NDArray[np.int64]) -> Layout:
        """Return the layout with another division of one axis."""
        shape, all_intervals = list(self.shape), list(self.intervals)
        shape[axis], all_intervals[axis] = size, intervals
        return Layout(shape, all_intervals)

    def __repr__(self) -> str:
        """Return shape and ranks."""
        return f"Layout({self.shape} on {self.ranks} ranks)"


def concatenated(layouts: Sequence[Layout], axis: int) -> Layout:
    """Return the layout of tensors that stand after each other along an axis.

    Each rank keeps what it has of every one of them, in the same order.

    Raises
    ------
    ShapeError
        If they differ along another axis.
    """
    first = layouts[0]
    intervals = []
    at = 0
    for layout in layouts:
        for other in range(len(first.shape)):
            if other != axis and (
                layout.shape[other] != first.shape[other]
                or not np.array_equal(layout.intervals[other], first.intervals[other])
            ):
                raise ShapeError(
                    f"{layout!r} and {first!r} cannot be concatenated along axis {axis}: they are "
                    f"not divided alike along axis {other}"
                )
        pairs = layout.intervals[axis]
        there = pairs[:, :, 1:] > pairs[:, :, :1]
        intervals.append(np.where(there, pairs + at, 0))
        at += layout.shape[axis]
    return first.with_axis(axis, at, np.concatenate(intervals, axis=1))
