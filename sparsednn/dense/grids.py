"""Grids of ranks for a convolution, and the algorithms that run on them, by name.

A grid ``P_b × P_h × P_w × P_k × P_c`` says into how many parts images, rows, columns, filters and
channels are divided; its product is the number of ranks. Ranks are numbered in row-major order, the
last axis fastest. With groups, ``P_k`` divides the groups first and then the filters of a group:
``P_g = gcd(P_k, groups)``; so inside, a grid has six axes.

===========  =============================================  =======================================
algorithm    grid                                           how
===========  =============================================  =======================================
``data``     P_b = P                                        kernels on every rank, gradients summed
``spatial``  P_b·P_h·P_w = P, P_h·P_w > 1                   the same, with halos
``filter``   P_k = P                                        `GATHER`
``channel``  P_c = P                                        `GATHER`
``2d``       P_c = 1                                        `STREAM`
``2.5d``     any                                            `STREAM`
``3d``       any                                            `GATHER`
===========  =============================================  =======================================

`STREAM` brings panels of channels one after the other (SUMMA), so a rank never holds more of what
is not its own than two panels; `GATHER` brings all at once, keeps it for the backward pass, and so
sends less; `REPLICATE` has all of a kernel on every rank. See `distributed` for the steps, and Li
et al. (SPAA 2021, arXiv 2105.13480) for the 2D, 2.5D and 3D family.

Must not know: tensors, messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from sparsednn.comm.grid import ProcessGrid
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.errors import UsageError

__all__ = [
    "ALGORITHMS",
    "AXES",
    "GATHER",
    "REPLICATE",
    "STREAM",
    "Grid",
    "Placement",
    "factorizations",
    "legal_placements",
    "make_placement",
]

#: How the parts that a rank does not own come to it.
STREAM: Final = "stream"
GATHER: Final = "gather"
REPLICATE: Final = "replicate"

ALGORITHMS: Final = ("data", "spatial", "filter", "channel", "2d", "2.5d", "3d")
AXES: Final = ("images", "rows", "columns", "filters", "channels")

#: Positions of the six axes of `Grid.axes`.
B, H, W, G, K, C = range(6)


class Grid(NamedTuple):
    """Ranks along images, rows, columns, filters and channels."""

    b: int = 1
    h: int = 1
    w: int = 1
    k: int = 1
    c: int = 1

    @property
    def ranks(self) -> int:
        """Ranks altogether."""
        return math.prod(self)

    @property
    def bhw(self) -> int:
        """Ranks that share a kernel's filters and channels: ``P_b·P_h·P_w``."""
        return self.b * self.h * self.w

    def axes(self, groups: int = 1) -> tuple[int, int, int, int, int, int]:
        """Return ``(P_b, P_h, P_w, P_g, P_k / P_g, P_c)``.

        >>> Grid(k=4).axes(groups=6)
        (1, 1, 1, 2, 2, 1)
        """
        of_groups = math.gcd(self.k, groups)
        return self.b, self.h, self.w, of_groups, self.k // of_groups, self.c

    @staticmethod
    def parse(text: str) -> Grid:
        """Read a grid as a person types it.

        >>> Grid.parse("2x1x1x2x1")
        Grid(b=2, h=1, w=1, k=2, c=1)

        Raises
        ------
        UsageError
            If it is not five positive numbers with ``x`` between them.
        """
        sizes = ProcessGrid.parse(text)
        if len(sizes) != 5 or min(sizes) < 1:
            raise UsageError(
                f"grid '{text}': five positive numbers are needed, ranks along images, rows, "
                "columns, filters and channels, as in 2x1x1x2x1"
            )
        return Grid(*sizes)

    def __str__(self) -> str:
        """Return the grid as `parse` reads it."""
        return "x".join(map(str, self))


@dataclass(frozen=True, slots=True, order=True)
class Placement:
    """Where and how a convolution runs: a grid, and an algorithm.

    `mode` is `STREAM`, `GATHER` or `REPLICATE`.
    """

    grid: Grid
    algorithm: str

    @property
    def mode(self) -> str:
        """How parts of others come to a rank."""
        if self.algorithm in ("data", "spatial"):
            return REPLICATE
        return STREAM if self.algorithm in ("2d", "2.5d") else GATHER

    def check(self) -> None:
        """Raise UsageError if the algorithm is unknown, or is none of such a grid."""
        if self.algorithm not in ALGORITHMS:
            raise UsageError(
                f"algorithm '{self.algorithm}' is unknown: known are {', '.join(ALGORITHMS)}"
            )
        if not _allowed(self.algorithm, self.grid):
            raise UsageError(
                f"algorithm {self.algorithm}: {_RULES[self.algorithm]}; the grid is {self.grid}"
            )

    def __str__(self) -> str:
        """Return algorithm and grid."""
        return f"{self.algorithm} on {self.grid}"


_RULES: Final = {
    "data": "all ranks are along the images",
    "spatial": "all ranks are along images, rows and columns",
    "filter": "all ranks are along the filters",
    "channel": "all ranks are along the channels",
    "2d": "there is one rank along the channels",
    "2.5d": "any grid",
    "3d": "any grid",
}


def _allowed(algorithm: str, grid: Grid) -> bool:
    if algorithm == "data":
        return grid.b == grid.ranks
    if algorithm == "spatial":
        return grid.bhw == grid.ranks
    if algorithm == "filter":
        return grid.k == grid.ranks
    if algorithm == "channel":
        return grid.c == grid.ranks
    return algorithm != "2d" or grid.c == 1


def make_placement(grid: Grid, algorithm: str) -> Placement:
    """Return the placement, checked; see `Placement.check`."""
    placement = Placement(grid, algorithm)
    placement.check()
    return placement


@lru_cache(maxsize=64)
def factorizations(ranks: int) -> tuple[Grid, ...]:
    """All grids of so many ranks, in ascending order."""
    return tuple(Grid(*sizes) for sizes in _products(ranks, 5))


def _products(number: int, factors: int) -> Iterator[tuple[int, ...]]:
    if factors == 1:
        yield (number,)
        return
    for first in range(1, number + 1):
        if number % first == 0:
            for rest in _products(number // first, factors - 1):
                yield (first, *rest)


def legal_placements(
    shape: ConvolutionShape, ranks: int, algorithm: str | None = None
) -> list[Placement]:
    """All placements that leave no rank without work, where there are any such.

    A grid is legal where no axis has more parts than the tensor has there: images, output rows and
    columns, filters, and channels of a group. Where no grid of an algorithm is (more ranks than
    there is work), those with the least parts too many are given: ranks without work are allowed,
    networks with small layers on many ranks must run.

    Parameters
    ----------
    shape
        The convolution.
    ranks
        Of all grids.
    algorithm
        Only this one; None: all, each grid under every name that it goes by, but ``2.5d`` only
        with P_c > 1, where it differs from ``2d``, and ``spatial`` only with P_h·P_w > 1.

    Raises
    ------
    UsageError
        If the algorithm is unknown.
    """
    if algorithm is not None and algorithm not in ALGORITHMS:
        Placement(Grid(), algorithm).check()
    found: list[Placement] = []
    for name in ALGORITHMS if algorithm is None else (algorithm,):
        grids = [grid for grid in factorizations(ranks) if _wanted(name, grid)]
        excess = [_excess(grid, shape) for grid in grids]
        least = min(excess, default=1.0)
        if algorithm is None and least > 1.0:
            continue
        found += [
            Placement(grid, name) for grid, much in zip(grids, excess, strict=True) if much == least
        ]
    if not found:  # more ranks than work
        return legal_placements(shape, ranks, "3d") + legal_placements(shape, ranks, "2.5d")
    return found


def _wanted(name: str, grid: Grid) -> bool:
    if not _allowed(name, grid):
        return False
    if name == "2.5d":
        return grid.c > 1 or grid.ranks == 1
    if name == "spatial":
        return grid.h * grid.w > 1 or grid.ranks == 1
    return True


def _excess(grid: Grid, shape: ConvolutionShape) -> float:
    """How many times too many parts there are; 1.0 for a legal grid."""
    b, h, w, g, k, c = grid.axes(shape.groups)
    filters, channels = shape.filters // shape.groups, shape.channels // shape.groups
    sizes = (
        (b, shape.images),
        (h, min(shape.height, shape.output_height)),
        (w, min(shape.width, shape.output_width)),
        (g, shape.groups),
        (k, filters),
        (c, channels),
    )
    return math.prod(max(1.0, parts / max(1, size)) for parts, size in sizes)
