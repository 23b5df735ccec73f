"""The direct convolution: which pixels, which filters, and in which memory; see `direct_loops`.

A part has some rows of the output (pixels, where the kernel is 1×1), or some blocks of filters,
whichever makes the largest part smaller. Where the windows reach over the border, the rows that
they meet are copied into the workspace with zeros around them, at most `_TILE` bytes at a time, so
that they stay in the second-level cache. Must not know: threads, other ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import read_only
from sparsednn.dense.concurrency.cpu import direct_loops
from sparsednn.dense.concurrency.cpu.layout import flat, part_counts, pixel_step, shared, vector
from sparsednn.dense.concurrency.cpu.products import Call, Product, finishing, in_order
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.convolution import ConvolutionShape

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.cpu.kernels import CpuKernels

__all__ = ["bind_direct", "direct_algorithms"]

Array = NDArray[Any]
Whole = NDArray[np.int64]

_TILE = 384 << 10
#: A fully connected layer wants its kernel packed, as large as it is: only for so many images.
_LEAST_IMAGES = 8


@dataclass(frozen=True)
class _Cut:
    """What a part does: rows (pixels, where windows are uniform), and blocks of filters."""

    rows: tuple[int, int]
    blocks: tuple[int, int]


def direct_algorithms(product: Product, lanes: int, itemsize: int) -> list[Algorithm]:
    """Return the ways to cut, as `Kernels.algorithms`."""
    g = product.geometry
    if product.covers_image and g.images < _LEAST_IMAGES:
        return []
    blocks = len(_blocks(g, itemsize))
    return [
        Algorithm("direct", parts, _tile_elements(product, parts, itemsize) * itemsize)
        for parts in part_counts(lanes, max(_units(product), blocks))
    ]


def bind_direct(
    kernels: CpuKernels,
    product: Product,
    algorithm: Algorithm,
    part: int,
    tensors: Mapping[str, Array],
    workspace: Array,
) -> Call:
    """See `Kernels.bind`."""
    g, x, y = product.geometry, tensors[product.x], tensors[product.y]
    cut = _cut(product, algorithm.parts, x.itemsize)[part]
    blocks = _blocks(g, x.itemsize)
    packed, tail = _packed(kernels, product), _packed_tail(kernels, product)
    mine = np.ascontiguousarray(blocks[slice(*cut.blocks)])
    x_step, y_step = pixel_step(x), pixel_step(y)
    padded, uniform = _is_padded(product), _is_uniform(product)
    places, runs, run = _windows(product, x_step, x.itemsize)
    segments = _segments(product, cut.rows, x_step, y_step, x.itemsize)
    if not len(segments) or not len(mine):
        return _nothing
    across = _extent(g, 1, g.output_width)
    plan = np.array(
        [
            run,
            _pixel_bytes(product, x_step, x.itemsize) if uniform else 0,
            y_step,
            padded,
            g.height,
            g.width,
            g.width * x_step,
            x_step,
            g.channels,
            min(g.padding[1], across),
            across,
        ],
        np.int64,
    )
    work = vector(workspace, (int(segments[:, 4].max()),), x.dtype)
    stage = product.stages[0]
    calls: list[Call] = [
        partial(
            direct_loops.convolve, flat(x), work, packed, tail, flat(y), places, runs, mine,
            segments, plan, stage.floor(x.dtype),
        )
    ]  # fmt: skip
    filters = int(mine[0, 3]), int(mine[-1, 3] + mine[-1, 4])
    scale = 1 if uniform else g.output_width
    pixels = cut.rows[0] * scale, cut.rows[1] * scale
    return in_order(calls + finishing(kernels, product.stages[1:], y, pixels, filters))


# -- shapes --------------------------------------------------------------------------------------


def _is_padded(product: Product) -> bool:
    return product.geometry.padding != (0, 0)


def _is_uniform(product: Product) -> bool:
    """Whether all windows, of all images, have the same distance from each other."""
    g = product.geometry
    return product.covers_image or (product.pointwise and g.stride == (1, 1))


def _units(product: Product) -> int:
    return product.pixels if _is_uniform(product) else product.rows


def _extent(g: ConvolutionShape, axis: int, windows: int) -> int:
    """Rows or columns that so many windows meet."""
    return (windows - 1) * g.stride[axis] + (g.taps[axis] - 1) * g.dilation[axis] + 1


def _pixel_bytes(product: Product, x_step: int, itemsize: int) -> int:
    """From window to window, where that is uniform."""
    g = product.geometry
    return (g.height * g.width if product.covers_image else 1) * x_step * itemsize


@lru_cache(maxsize=1024)
def _blocks(g: ConvolutionShape, itemsize: int) -> Whole:
    """See `direct_loops.convolve`."""
    one = direct_loops.lanes(f"f{itemsize}")
    largest = direct_loops.VECTORS * one
    filters, channels = g.filters // g.groups, g.channels // g.groups
    deep = channels * g.taps[0] * g.taps[1]
    rows, kernel_at, tail_at = [], 0, 0
    for group in range(g.groups):
        for first in range(0, filters, largest):
            filled = min(largest, filters - first)
            width = largest if filled > one else one
            rows.append((kernel_at, tail_at, group * channels, group * filters + first, filled))
            kernel_at, tail_at = kernel_at + deep * width, tail_at + 3 * width
    return np.array(rows, np.int64).reshape(-1, 5)


def _sizes(g: ConvolutionShape, itemsize: int) -> tuple[int, int]:
    """Elements of the packed kernel, and of the packed tail."""
    last = _blocks(g, itemsize)[-1]
    one = direct_loops.lanes(f"f{itemsize}")
    width = direct_loops.VECTORS * one if last[4] > one else one
    deep = g.channels // g.groups * g.taps[0] * g.taps[1]
    return int(last[0]) + deep * width, int(last[1]) + 3 * width


def _windows(product: Product, x_step: int, itemsize: int) -> tuple[Whole, Whole, int]:
    """Places of windows and of their runs, in bytes, and elements of a run."""
    g = product.geometry
    pixel, row = x_step, g.width * x_step
    if _is_padded(product):
        pixel, row = g.channels, _extent(g, 1, g.output_width) * g.channels
    if _is_uniform(product):
        distance = _pixel_bytes(product, x_step, itemsize)
        places = np.arange(direct_loops.tile_pixels()) * distance
    else:
        down = np.arange(g.output_height) * (g.stride[0] * row)
        across = np.arange(g.output_width) * (g.stride[1] * pixel)
        places = np.add.outer(down, across).reshape(-1) * itemsize
    channels = g.channels // g.groups
    rows = np.arange(g.taps[0]) * (g.dilation[0] * row)
    if g.taps[1] == 1 or (g.dilation[1] == 1 and pixel == channels):
        return places, rows * itemsize, g.taps[1] * channels
    columns = np.arange(g.taps[1]) * (g.dilation[1] * pixel)
    return places, np.add.outer(rows, columns).reshape(-1) * itemsize, channels


def _segments(
    product: Product, rows: tuple[int, int], x_step: int, y_step: int, itemsize: int
) -> Whole:
    """See `direct_loops.convolve`: for each image, or as many rows of it as the cache holds."""
    g = product.geometry
    if rows[0] == rows[1]:
        return np.empty((0, 5), np.int64)
    if _is_uniform(product):
        distance = _pixel_bytes(product, x_step, 1)
        found = [(rows[0] * distance, rows[0] * y_step, rows[1] - rows[0], 0, 0)]
        return np.array(found, np.int64)
    most = _tile_rows(g, itemsize) if _is_padded(product) else g.output_height
    found = []
    line = rows[0]
    while line < rows[1]:
        image, first = divmod(line, g.output_height)
        last = min(first + most, g.output_height, first + rows[1] - line)
        x_at = image * g.height * g.width * x_step
        top = first * g.stride[0] - g.padding[0]
        tile = 0
        if _is_padded(product):
            tile = _extent(g, 0, last - first) * _extent(g, 1, g.output_width) * g.channels
        else:
            x_at += top * g.width * x_step
        pixels = (last - first) * g.output_width
        found.append((x_at, line * g.output_width * y_step, pixels, top, tile))
        line += last - first
    return np.array(found, np.int64)


def _tile_rows(g: ConvolutionShape, itemsize: int) -> int:
    """Rows of windows whose tile is not larger than `_TILE`; about as many in each tile."""
    row = _extent(g, 1, g.output_width) * g.channels * itemsize
    rows = 1
    while rows < g.output_height and _extent(g, 0, rows + 1) * row <= _TILE:
        rows += 1
    return -(-g.output_height // -(-g.output_height // rows))


def _tile_elements(product: Product, parts: int, itemsize: int) -> int:
    """Elements of the largest tile of any part."""
    if not _is_padded(product):
        return 0
    return max(
        (int(row[4]) for cut in _cut(product, parts, itemsize)
         for row in _segments(product, cut.rows, 0, 0, itemsize)),
        default=0,
    )  # fmt: skip


@lru_cache(maxsize=4096)
def _cut(product: Product, parts: int, itemsize: int) -> tuple[_Cut, ...]:
    """Cut along what makes the largest part smaller; of equal ones the one that shares less."""
    g, blocks = product.geometry, _blocks(product.geometry, itemsize)
    units, scale = _units(product), 1 if _is_uniform(product) else g.output_width
    one = direct_loops.lanes(f"f{itemsize}")
    widths = np.where(blocks[:, 4] > one, direct_loops.VECTORS, 1)
    multiples = (direct_loops.tile_pixels(), 1) if scale == 1 else (1,)
    ways = [
        tuple(_Cut(shared(units, parts, n, each), (0, len(blocks))) for n in range(parts))
        for each in multiples
    ]
    by_filters = tuple(_Cut((0, units), shared(len(blocks), parts, n)) for n in range(parts))
    kernel_words = g.filters * product.depth
    if kernel_words > g.images * g.channels * g.height * g.width:
        ways.insert(0, by_filters)
    else:
        ways.append(by_filters)

    def largest(way: tuple[_Cut, ...]) -> float:
        return max(
            _cost((cut.rows[1] - cut.rows[0]) * scale) * float(widths[slice(*cut.blocks)].sum())
            for cut in way
        )

    return min(ways, key=largest)


def _cost(pixels: int) -> float:
    """What so many pixels take, in pixels of full tiles: small tiles keep fewer sums."""
    full, rest = divmod(pixels, direct_loops.tile_pixels())
    return full * direct_loops.tile_pixels() + rest + 2 * bool(rest)


# -- packed parameters ---------------------------------------------------------------------------


def _packed(kernels: CpuKernels, product: Product) -> Array:
    g = product.geometry
    blocks = _blocks(g, kernels.dtype.itemsize)

    def renew(packed: Array) -> None:
        direct_loops.pack(read_only(kernels.parameters[product.kernel]), packed, blocks)

    size = _sizes(g, kernels.dtype.itemsize)[0]
    found: Array = kernels.kept(
        ("direct", product.kernel), lambda: np.zeros(size, kernels.dtype), renew
    )
    return found


def _packed_tail(kernels: CpuKernels, product: Product) -> Array:
    """``(3, filters of the block)`` for each block."""
    g, stage = product.geometry, product.stages[0]
    blocks = _blocks(g, kernels.dtype.itemsize)
    one = direct_loops.lanes(kernels.dtype)

    def renew(tail: Array) -> None:
        values = np.empty((3, g.filters), kernels.dtype)
        stage.fill(values, kernels.parameters)
        for _, at, _, first, filled in blocks.tolist():
            width = direct_loops.VECTORS * one if filled > one else one
            tail[at : at + 3 * width].reshape(3, width)[:, :filled] = values[
                :, first : first + filled
            ]

    size = _sizes(g, kernels.dtype.itemsize)[1]
    found: Array = kernels.kept(
        ("direct tail", product.kernel, stage), lambda: np.zeros(size, kernels.dtype), renew
    )
    return found


def _nothing() -> None:
    """Do nothing: of a task that has fewer rows than parts."""
