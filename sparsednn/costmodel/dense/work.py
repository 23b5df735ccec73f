"""What every rank computes in a step: a `Work` for each pass of each operation, from the flow.

Shapes are those of `sparsednn.dense.distributed` and ``layers``: of a product the block of the
output that a rank computes, with all channels of its c-layer; of other operations the tile of the
input. All ranks at once, so that a thousand of them cost no more than one. Must not know: seconds,
messages.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.dense.features import PLANE, PRODUCT, Rows
from sparsednn.dense.distribution import Distribution
from sparsednn.dense.flow import Flow, Step
from sparsednn.dense.grids import B, C, G, H, K, W
from sparsednn.dense.operations import BatchNorm, Input, Pool

__all__ = [
    "BACKWARD", "FIRST", "FORWARD", "LocalWork", "ProductShares", "local_work", "plane_rows",
    "planes_of", "sort_of", "theta_sizes", "touched_bytes",
]  # fmt: skip

FORWARD, BACKWARD, FIRST = "forward", "backward", "first"

_Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ProductShares:
    """What ranks compute of a product, and how they are grouped.

    Attributes
    ----------
    sort
        ``matrix``, ``pointwise`` or ``window``; see `features`.
    images, groups, channels, filters
        ``(ranks,)``: of a group's channels and filters, those of its c-layer and k-part.
    extended, output
        Two ``(ranks,)`` each: rows and columns.
    row, column, layers
        Ranks that share the input, the kernel, the sums of an output: (number, ranks apart).
    """

    distribution: Distribution
    sort: str
    images: _Counts
    groups: _Counts
    channels: _Counts
    filters: _Counts
    extended: tuple[_Counts, _Counts]
    output: tuple[_Counts, _Counts]
    row: tuple[int, int]
    column: tuple[int, int]
    layers: tuple[int, int]

    @classmethod
    def of(cls, distribution: Distribution) -> ProductShares:
        """Work them out."""
        shape, grid = distribution.shape, distribution.grid
        places = np.unravel_index(np.arange(distribution.input.ranks), grid)

        def part(size: int, axis: int) -> _Counts:
            parts, index = grid[axis], places[axis]
            return np.asarray(size * (index + 1) // parts - size * index // parts)

        extended, output = distribution.extended, distribution.output
        last = (grid[G] * grid[K] * grid[C], grid[K] * grid[C], grid[C])
        return cls(
            distribution,
            sort_of(shape.covers_image, shape.taps, shape.padding),
            extended.lengths(0),
            part(shape.groups, G),
            part(shape.channels // shape.groups, C),
            part(shape.filters // shape.groups, K),
            (extended.lengths(2), extended.lengths(3)),
            (output.lengths(2), output.lengths(3)),
            (grid[K], last[2]),
            (grid[B] * grid[H] * grid[W], last[0]),
            (grid[C], 1),
        )

    @property
    def source(self) -> _Counts:
        """``(ranks,)``: numbers in the extended input of the c-layer."""
        height, width = self.extended
        return self.images * self.groups * self.channels * height * width

    @property
    def kernel(self) -> _Counts:
        """``(ranks,)``: numbers in the kernel of the c-layer."""
        taps = self.distribution.shape.taps
        return self.groups * self.filters * self.channels * taps[0] * taps[1]

    @property
    def result(self) -> _Counts:
        """``(ranks,)``: numbers in the block of the output."""
        height, width = self.output
        return self.images * self.groups * self.filters * height * width

    @property
    def uneven(self) -> NDArray[np.bool_]:
        """``(ranks,)``: whether the padding differs between opposite sides: inner borders."""
        shape, grid = self.distribution.shape, self.distribution.grid
        found = np.zeros(len(self.images), np.bool_)
        for axis, along in ((0, H), (1, W)):
            if grid[along] > 1 and shape.padding[axis]:
                found |= True
        return found

    def rows(self, nbytes: NDArray[np.float64], channels: int | None = None) -> Rows:
        """Return ``(ranks, columns)`` as `features.PRODUCT`.

        Parameters
        ----------
        nbytes
            ``(ranks,)``: what the step touches.
        channels
            Of a panel; None: all of the c-layer.
        """
        shape = self.distribution.shape
        ranks = len(self.images)
        depth = self.channels if channels is None else np.minimum(channels, self.channels)
        columns = (
            self.images, depth * self.groups, *self.extended, self.filters, shape.taps[0],
            shape.taps[1], shape.stride[0], shape.padding[0], *self.output, nbytes,
        )  # fmt: skip
        assert len(columns) == len(PRODUCT)
        return np.stack([np.broadcast_to(np.asarray(one, float), ranks) for one in columns], 1)


def sort_of(covers: bool, taps: tuple[int, int], padding: tuple[int, int]) -> str:
    """Return which sort a product is; see `features`."""
    if covers:
        return "matrix"
    return "pointwise" if taps == (1, 1) and padding == (0, 0) else "window"


def plane_rows(
    sizes: tuple[_Counts | int, ...], nbytes: NDArray[np.float64], *,
    taps: tuple[int, int] = (1, 1), stride: int = 1, parts: int = 1,
) -> Rows:  # fmt: skip
    """Return ``(ranks, columns)`` as `features.PLANE`.

    Parameters
    ----------
    sizes
        Images, channels, rows, columns of the input; channels, rows, columns of the output.
    nbytes
        ``(ranks,)``: what the step touches.
    taps, stride, parts
        Of a window; how many inputs there are.
    """
    columns = (*sizes, *taps, stride, parts, nbytes)
    assert len(columns) == len(PLANE)
    return np.stack([np.broadcast_to(np.asarray(one, float), nbytes.shape) for one in columns], 1)


def planes_of(step: Step, nbytes: NDArray[np.float64]) -> Rows:
    """Return the rows of an operation that is no product."""
    source, target = step.needs[0], step.output.layout
    operation = step.operation
    window = {}
    if isinstance(operation, Pool):
        window = {"taps": operation.taps, "stride": operation.stride[0]}
    sizes = [source.lengths(axis) for axis in range(4)]
    sizes += [target.lengths(axis) for axis in range(1, 4)]
    return plane_rows(tuple(sizes), nbytes, parts=len(step.inputs), **window)  # type: ignore[arg-type]


def theta_sizes(flow: Flow) -> _Counts:
    """Return ``(ranks,)``: trained numbers of each rank."""
    total = np.zeros(flow.logits.ranks, np.int64)
    for step in flow.steps.values():
        if step.distribution is not None:
            total += step.distribution.kernel.sizes()
            if getattr(step.operation, "bias", False):
                total += step.distribution.bias.sizes()
        elif isinstance(step.operation, BatchNorm):
            total += 2 * step.output.layout.lengths(1)
    return total


def touched_bytes(flow: Flow, *, training: bool, itemsize: int = 4) -> NDArray[np.float64]:
    """Return ``(ranks,)``: bytes of activations and parameters that a step goes through.

    In training every activation has a gradient, and a parameter a gradient and a momentum.
    """
    numbers = sum(step.output.layout.sizes() for step in flow.steps.values())
    activations, parameters = (2, 3) if training else (1, 1)
    touched = activations * np.asarray(numbers) + parameters * theta_sizes(flow)
    return np.asarray(itemsize * touched, np.float64)


@dataclass(frozen=True, eq=False)
class LocalWork:
    """One pass of one operation on all ranks, as if nothing came from or went to others.

    Attributes
    ----------
    kind
        One of `features.KINDS`.
    rows
        ``(ranks, columns)``, see `features`.
    laps
        Keys of `sparsednn.dense.stopwatch.Stopwatch.seconds` that its time is under.
    """

    kind: str
    rows: Rows
    laps: tuple[tuple[str, str], ...]


def local_work(flow: Flow, *, training: bool, itemsize: int = 4) -> list[LocalWork]:
    """Return all that ranks compute in a step (or a forward pass), in order of the forward pass."""
    nbytes = touched_bytes(flow, training=training, itemsize=itemsize)
    start = next(iter(flow.steps.values())).output.layout
    sizes = [start.lengths(axis) for axis in range(4)]
    found = [LocalWork("data", plane_rows((*sizes, *sizes[1:]), nbytes), (("data", ""),))]
    for name, step in flow.steps.items():
        if isinstance(step.operation, Input):
            continue
        at = (FORWARD, name), (BACKWARD, name)
        if step.distribution is not None:
            shares = ProductShares.of(step.distribution)
            rows = shares.rows(nbytes)
            found.append(LocalWork(f"{shares.sort}_{FORWARD}", rows, at[:1]))
            back = BACKWARD if step.input_gradient else FIRST
            if training:
                found.append(LocalWork(f"{shares.sort}_{back}", rows, at[1:]))
            continue
        rows, kind = planes_of(step, nbytes), step.operation.kind
        found.append(LocalWork(f"{kind}_{FORWARD}", rows, at[:1]))
        if training and step.input_gradient:
            found.append(LocalWork(f"{kind}_{BACKWARD}", rows, at[1:]))
    last = [flow.logits.lengths(axis) for axis in range(4)]
    logits = plane_rows((*last, *last[1:]), nbytes)
    found.append(LocalWork(f"loss_{FORWARD}", logits, ((FORWARD, "loss"),)))
    if training:
        names = [*flow.steps, ""]
        count = plane_rows((len(flow.steps), 1, 1, 1, 1, 1, 1), nbytes)
        theta = plane_rows((theta_sizes(flow), 1, 1, 1, 1, 1, 1), nbytes)
        found += [
            LocalWork(f"loss_{BACKWARD}", logits, ((BACKWARD, "loss"),)),
            LocalWork("gradients", count, tuple(("gradients", each) for each in names)),
            LocalWork("update", theta, (("update", ""),)),
        ]
    return found
