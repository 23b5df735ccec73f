"""Who owns what of a convolution's tensors on a grid: the layouts that all its algorithms share.

With the six grid axes (b, h, w, g, k, c) of `grids.Grid.axes`:

========  =======================  ==========================================================
tensor    axes                     divided over
========  =======================  ==========================================================
input     images, channels, h, w   b; groups over g, channels of a group over (c, k); h; w
kernel    filters, channels, r, s  groups over g, filters of a group over k; (c, b, h, w)
output    images, filters, h, w    b; groups over g, filters of a group over (k, c); h; w
========  =======================  ==========================================================

Nothing is on two ranks, except with `REPLICATE` kernels, which are on all ranks of (b, h, w). What
a rank *computes* is the block of the output that (b, h, w, g, k) gives it, summed over the channels
that c gives it.

Must not know: messages, arrays of numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.convolution import ConvolutionShape, Window
from sparsednn.dense.grids import REPLICATE, B, C, G, H, K, Placement, W
from sparsednn.dense.layout import Axis, Layout, bounds

__all__ = ["Distribution", "RankShare", "halo_intervals", "share_of"]


@dataclass(frozen=True, slots=True)
class Distribution:
    """The layouts of one convolution on one grid.

    Attributes
    ----------
    grid
        The six grid axes.
    input, output
        At rest, ``(images, channels, height, width)``.
    kernel
        At rest, ``(filters, channels / groups, rows, columns)``.
    bias
        ``(filters,)``: divided as the output's filters, on all ranks of (b, h, w).
    extended
        The input with halos: what a rank's own channels need of the rows and columns of others.
    """

    shape: ConvolutionShape
    placement: Placement
    grid: tuple[int, int, int, int, int, int]
    input: Layout
    output: Layout
    kernel: Layout
    bias: Layout
    extended: Layout

    @classmethod
    def of(cls, shape: ConvolutionShape, placement: Placement) -> Distribution:
        """Work out who owns what."""
        grid = placement.grid.axes(shape.groups)
        groups = shape.groups
        over = () if placement.mode == REPLICATE else (C, B, H, W)
        filters = Axis(shape.filters, (K, C), groups, (G,))
        source = Layout.on_grid(
            grid,
            [
                Axis(shape.images, (B,)),
                Axis(shape.channels, (C, K), groups, (G,)),
                Axis(shape.height, (H,)),
                Axis(shape.width, (W,)),
            ],
        )
        target = Layout.on_grid(
            grid,
            [
                Axis(shape.images, (B,)),
                filters,
                Axis(shape.output_height, (H,)),
                Axis(shape.output_width, (W,)),
            ],
        )
        kernel = Layout.on_grid(
            grid,
            [
                Axis(shape.filters, (K,), groups, (G,)),
                Axis(shape.channels // groups, over),
                Axis(shape.taps[0]),
                Axis(shape.taps[1]),
            ],
        )
        extended = source
        for axis in (0, 1):
            extended = extended.with_axis(
                axis + 2,
                source.shape[axis + 2],
                halo_intervals(
                    target.intervals[axis + 2], source.shape[axis + 2], shape.window(axis)
                ),
            )
        return cls(
            shape, placement, grid, source, target, kernel,
            Layout.on_grid(grid, [filters]), extended,
        )  # fmt: skip


def halo_intervals(outputs: NDArray[np.int64], size: int, window: Window) -> NDArray[np.int64]:
    """Return ``(ranks, 1, 2)``: which inputs, of `size`, each rank's interval of outputs reads."""
    first, last = outputs[:, 0, 0], outputs[:, 0, 1]
    low = first * window.stride - window.before
    # As Window.needed, for all at once.
    high = (last - 1) * window.stride - window.before + window.dilation * (window.taps - 1) + 1
    needed = np.where((first < last)[:, None], np.stack([low, high], axis=1), 0)
    return np.clip(needed, 0, size)[:, None, :]


@dataclass(frozen=True, slots=True)
class RankShare:
    """What one rank computes of a convolution, in numbers.

    Attributes
    ----------
    images, groups, filters
        Of the rank's block of the output; filters of each group.
    channels
        ``[first, last)`` of each group's channels: the part of this rank's c-layer.
    inputs, kernels
        Cuts of `channels` by owner: of the input along k, of the kernel along (b, h, w).
    outputs
        Cuts of the rank's filters by owner along c, from 0.
    pads
        Zeros at the top, left, bottom and right of the extended tile.
    extended, output
        ``(height, width)`` of the extended input, of the output.
    """

    images: int
    groups: int
    filters: int
    channels: tuple[int, int]
    inputs: tuple[int, ...]
    kernels: tuple[int, ...]
    outputs: tuple[int, ...]
    pads: tuple[int, int, int, int]
    extended: tuple[int, int]
    output: tuple[int, int]

    def pieces(self) -> list[tuple[int, int, int, int]]:
        """Return the panels ``(first, last, input owner, kernel owner)`` of the c-layer.

        Each is all inside of one input owner's and one kernel owner's channels.
        """
        cuts = sorted({*self.inputs, *self.kernels})
        found = []
        for first, last in pairwise(cuts):
            owners = [
                next(i for i in range(len(edges) - 1) if edges[i] <= first < edges[i + 1])
                for edges in (self.inputs, self.kernels)
            ]
            found.append((first, last, owners[0], owners[1]))
        return found


def share_of(distribution: Distribution, coordinates: tuple[int, ...]) -> RankShare:
    """Return the share of the rank at these coordinates of the six grid axes."""
    shape, grid = distribution.shape, distribution.grid

    def part(size: int, axis: int) -> tuple[int, int]:
        cuts = bounds(size, grid[axis])
        return cuts[coordinates[axis]], cuts[coordinates[axis] + 1]

    def finer(size: int, axis: int, inner: int) -> tuple[int, ...]:
        """Cuts of this rank's part along an axis into `inner` parts."""
        cuts = bounds(size, grid[axis] * inner)
        first = coordinates[axis] * inner
        return tuple(cuts[first : first + inner + 1])

    channels, filters = shape.channels // shape.groups, shape.filters // shape.groups
    images, groups, own_filters = (
        last - first
        for first, last in (part(shape.images, B), part(shape.groups, G), part(filters, K))
    )
    sides = []
    for axis, where in ((0, H), (1, W)):
        size = (shape.height, shape.width)[axis]
        first, last = part((shape.output_height, shape.output_width)[axis], where)
        low, high = shape.window(axis).needed(first, last)
        inside = max(0, min(high, size) - max(low, 0))
        # All that is needed may be padding: what lies in front counts as that, the rest as behind.
        before = min(max(0, -low), high - low)
        sides.append((before, high - low - before - inside, inside, last - first))
    finer_filters = finer(filters, K, grid[C])
    replicated = distribution.placement.mode == REPLICATE
    layer = part(channels, C)
    return RankShare(
        images=images,
        groups=groups,
        filters=own_filters,
        channels=layer,
        inputs=finer(channels, C, grid[K]),
        kernels=layer if replicated else finer(channels, C, grid[B] * grid[H] * grid[W]),
        outputs=tuple(cut - finer_filters[0] for cut in finer_filters),
        pads=(sides[0][0], sides[1][0], sides[0][1], sides[1][1]),
        extended=(sides[0][2], sides[1][2]),
        output=(sides[0][3], sides[1][3]),
    )
