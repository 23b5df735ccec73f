"""Which placements of a product are worth looking at: a few of hundreds.

Sorted out by closed forms of the mean over ranks, which are fast: what the cheapest cannot make up
for any more (`hopeless`), then all but the best in words, in memory, of each algorithm, and of each
division of images, rows and columns, on which it depends what neighbours have to move.

Must not know: networks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.grids import (
    ALGORITHMS,
    GATHER,
    REPLICATE,
    STREAM,
    Grid,
    Placement,
    factorizations,
    legal_placements,
    make_placement,
)
from sparsednn.dense.planning.placement_costs import mean_words
from sparsednn.errors import UsageError

__all__ = [
    "Candidate",
    "grid_placements",
    "legal_or_grid",
    "mean_memory",
    "narrowed",
    "uniform_placements",
]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A placement, and means over ranks: no more than what the busiest rank has.

    Attributes
    ----------
    words
        See `placement_costs.mean_words`.
    resident, transient
        Words of memory, about.
    """

    placement: Placement
    words: float
    resident: float
    transient: float

    @classmethod
    def of(
        cls,
        shape: ConvolutionShape,
        placement: Placement,
        *,
        has_bias: bool,
        input_gradient: bool,
        training: bool,
        optimizer_slots: int,
    ) -> Candidate:
        """Work out the means; see `placement_costs.mean_words`."""
        key = placement.grid, placement.mode
        words = mean_words(
            shape, *key, has_bias=has_bias, input_gradient=input_gradient, training=training
        )
        memory = mean_memory(shape, *key, training=training, optimizer_slots=optimizer_slots)
        return cls(placement, words, *memory)

    @property
    def memory(self) -> float:
        """Words of memory altogether, about."""
        return self.resident + self.transient

    def order(self) -> tuple[float, int]:
        """What comes first: few words; among equals the plainest algorithm."""
        return self.words, ALGORITHMS.index(self.placement.algorithm)


def grid_placements(grid: Grid, algorithm: str | None = None) -> list[Placement]:
    """All that differs on a grid, each under its plainest name; or the algorithm asked for.

    Raises
    ------
    UsageError
        If the algorithm is unknown, or is none of such a grid.
    """
    if algorithm is not None:
        return [make_placement(grid, algorithm)]
    ranks = grid.ranks
    if ranks == 1:
        return [Placement(grid, "data")]
    whole = "filter" if grid.k == ranks else "channel" if grid.c == ranks else "3d"
    found = [Placement(grid, whole), Placement(grid, "2d" if grid.c == 1 else "2.5d")]
    if grid.bhw == ranks:
        found.insert(0, Placement(grid, "data" if grid.b == ranks else "spatial"))
    return found


def uniform_placements(ranks: int, algorithm: str | None = None) -> Iterator[Placement]:
    """All placements on so many ranks, whatever the layer."""
    for grid in factorizations(ranks):
        try:
            found = grid_placements(grid, algorithm)
        except UsageError:
            continue
        # As `legal_placements`: a name that says more than the grid is not used.
        plain = (algorithm == "2.5d" and grid.c == 1) or (
            algorithm == "spatial" and grid.h * grid.w == 1
        )
        if not plain or ranks == 1:
            yield from found


def legal_or_grid(
    shape: ConvolutionShape, ranks: int, algorithm: str | None, grid: Grid | None
) -> list[Placement]:
    """Return the placements among which to choose: all legal ones, or those of one grid."""
    if grid is not None:
        return grid_placements(grid, algorithm)
    legal = legal_placements(shape, ranks, algorithm)
    if algorithm is not None:
        return legal
    grids = dict.fromkeys(placement.grid for placement in legal)
    return [one for each in grids for one in grid_placements(each)]


def mean_memory(
    shape: ConvolutionShape, grid: Grid, mode: str, *, training: bool, optimizer_slots: int
) -> tuple[float, float]:
    """Return about how many words of memory a product takes: resident, transient; means of ranks.

    `memory.product_memory` without halos, and with equal parts.
    """
    axes = grid.axes(shape.groups)
    ranks, row = grid.ranks, axes[4]
    kernel = prod(shape.kernel_shape)
    source, output = (prod(each) / ranks for each in (shape.input_shape, shape.output_shape))
    copies = 2 + optimizer_slots if training else 1
    if mode == REPLICATE:
        return kernel * copies, 2 * output + source + (source + kernel) * training
    own = kernel / ranks
    wide_source, wide_kernel = source * row, own * grid.bhw
    wide_output = output * grid.c
    if mode == GATHER:
        kept = wide_source * (row > 1) + wide_kernel * (grid.bhw > 1)
        work = (wide_source + wide_kernel) * (3 if training else 2) + wide_output
        return own * copies + kept * training, work + kept * (not training)
    assert mode == STREAM
    panel = (wide_source + wide_kernel) / max(row, grid.bhw)
    room = 2 * panel * (max(row, grid.bhw) > 1)
    work = max(3 * wide_output, (wide_output + source + 3 * panel) * training)
    return own * copies + room, work + source


def narrowed(every: Sequence[Candidate], most: int, always: Iterable[Placement]) -> list[Placement]:
    """Return at most about `most` placements: the best of several kinds, and those of `always`.

    `every` is in ascending order of words; so is the result.
    """
    kept = {id(one) for one in every if one.placement in set(always)}

    def take(some: Iterable[Candidate], number: int) -> None:
        for one in list(some)[:number]:
            kept.add(id(one))

    if len(every) <= most:
        take(every, most)
        return [one.placement for one in every]
    frugal = sorted(every, key=lambda one: (one.memory, one.words))
    take(every, most // 3)
    take(frugal, most // 8)
    for mode in (REPLICATE, GATHER, STREAM):
        take((one for one in every if one.placement.mode == mode), max(2, most // 16))
        take((one for one in frugal if one.placement.mode == mode), max(2, most // 16))
    take(_front(every), most // 6)
    divisions: dict[tuple[int, ...], Candidate] = {}
    for one in every:
        divisions.setdefault(tuple(one.placement.grid[:3]), one)
    others = [one for one in divisions.values() if id(one) not in kept]
    take(others, max(0, most - len(kept)))
    return [one.placement for one in every if id(one) in kept]


def _front(every: Sequence[Candidate]) -> list[Candidate]:
    """Those than which no other is better in both words and memory."""
    found: list[Candidate] = []
    for one in every:
        if not found or one.memory < found[-1].memory:
            found.append(one)
    return found
