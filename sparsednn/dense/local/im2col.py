"""Convolution as products of matrices: windows become columns, BLAS multiplies.

Columns are made for a few images, or a few rows of one, at a time, so that BLAS finds them in the
cache (Chellapilla, Puri and Simard 2006; blocked as in Caffe con Troll, Hadjis et al. 2015). Where
the geometry allows, there are none: a 1×1 kernel multiplies the tile as it lies, and a kernel that
covers the image is one product for all images. Must not know: other libraries.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from sparsednn._jit import read_only
from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.dense.local.compiled import CompiledBackend
from sparsednn.dense.local.loops import add_columns, fill_columns
from sparsednn.dense.local.reference import check_convolution
from sparsednn.dense.local.windows import check_output, no_pads, output_size, pad

__all__ = ["Im2colBackend", "covers_image"]

#: Bytes of columns at a time: half of a usual L2 cache.
_BLOCK = 512 << 10
#: Multiply-adds that one more thread has to have for itself.
_LEAST_PRODUCTS = 1_000_000
#: Elements of a row below which it is better to copy whole planes than row after row.
_SHORT_ROW = 64


@dataclass(frozen=True, slots=True)
class _Windows:
    """Windows of one convolution, and what of the output they give."""

    taps: Pair
    stride: Pair
    dilation: Pair
    corner: Pair
    size: Pair


@dataclass(frozen=True, slots=True)
class _Block:
    """Images, and rows of windows on them, whose columns are in memory at one time."""

    images: Pair
    rows: Pair
    pixels: slice


class Im2colBackend(CompiledBackend):
    """`LocalBackend` of NumPy, BLAS and compiled loops.

    Parameters
    ----------
    threads
        Images are dealt out to so many. BLAS itself is set to one thread in this process: two
        levels of threads would be more threads than cores.
    """

    name = "im2col"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        threadpool_limits(1, user_api="blas")
        self._scratch: dict[tuple[int, Any], Array] = {}

    def convolution(
        self,
        x: Array,
        kernel: Array,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """See `LocalBackend.convolution`."""
        check_convolution(x.shape, kernel.shape, groups)
        taps = kernel.shape[2:]
        size = output_size(x.shape, taps, stride, pads, dilation)
        if covers_image(x.shape, kernel.shape, size, pads, groups):
            return self._whole(x, kernel)
        if taps == (1, 1) and stride != (1, 1) and no_pads(pads):
            x, stride = np.ascontiguousarray(x[:, :, :: stride[0], :: stride[1]]), (1, 1)
        wide = _wide_rows(size[1], x.shape[3], stride)
        windows = _Windows(taps, stride, dilation, pads[:2], (size[0], wide))
        y = self._multiply(x, kernel, windows, groups)
        return y if wide == size[1] else np.ascontiguousarray(y[:, :, :, : size[1]])

    def convolution_input_gradient(
        self,
        dy: Array,
        kernel: Array,
        x_shape: Shape,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """See `LocalBackend.convolution_input_gradient`."""
        check_convolution(x_shape, kernel.shape, groups)
        taps = kernel.shape[2:]
        check_output(dy.shape, x_shape, kernel.shape[0], taps, stride, pads, dilation)
        if covers_image(x_shape, kernel.shape, dy.shape[2:], pads, groups):
            return np.matmul(_flat(dy), _flat(kernel)).reshape(x_shape)
        if taps == (1, 1) and stride != (1, 1) and no_pads(pads):
            dx = np.zeros(x_shape, dy.dtype)
            part = self._multiply(dy, _transposed(kernel, groups), _plain(dy), groups)
            dx[:, :, :: stride[0], :: stride[1]] = part
            return dx
        if stride == (1, 1) and len(kernel) <= 2 * x_shape[1]:
            # A convolution of dy with the mirrored kernel: columns are only copied, while the way
            # below adds each to the tile. That has fewer of them where filters are many.
            corner = (dilation[0] * (taps[0] - 1) - pads[0], dilation[1] * (taps[1] - 1) - pads[1])
            windows = _Windows(taps, (1, 1), dilation, corner, x_shape[2:])
            dy = _widened(dy, _wide_rows(dy.shape[3], x_shape[3], stride))
            return self._multiply(dy, _transposed(kernel, groups), windows, groups)
        windows = _Windows(taps, stride, dilation, pads[:2], dy.shape[2:])
        return self._scatter(dy, kernel, x_shape, windows, groups)

    def convolution_kernel_gradient(
        self,
        x: Array,
        dy: Array,
        kernel_shape: Shape,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """See `LocalBackend.convolution_kernel_gradient`."""
        check_convolution(x.shape, kernel_shape, groups)
        taps = kernel_shape[2:]
        check_output(dy.shape, x.shape, kernel_shape[0], taps, stride, pads, dilation)
        if covers_image(x.shape, kernel_shape, dy.shape[2:], pads, groups):
            return np.matmul(_flat(dy).T, _flat(x)).reshape(kernel_shape)
        if taps == (1, 1) and stride != (1, 1) and no_pads(pads):
            x, stride = np.ascontiguousarray(x[:, :, :: stride[0], :: stride[1]]), (1, 1)
        dy = _widened(dy, _wide_rows(dy.shape[3], x.shape[3], stride))
        windows = _Windows(taps, stride, dilation, pads[:2], dy.shape[2:])
        return self._correlate(x, dy, kernel_shape, windows, groups)

    def _whole(self, x: Array, kernel: Array) -> Array:
        """Kernel that covers the image; filters are dealt out to threads."""
        y = np.empty((len(x), len(kernel)), x.dtype)
        flat_x, flat_kernel = _flat(x), _flat(kernel)

        def part(number: int, first: int, last: int) -> None:
            np.matmul(flat_x, flat_kernel[first:last].T, out=y[:, first:last])

        bounds = self.parts.bounds(len(kernel), x.size * len(kernel), _LEAST_PRODUCTS)
        self.parts.run(bounds, part)
        return y.reshape(*y.shape, 1, 1)

    def _multiply(self, x: Array, kernel: Array, windows: _Windows, groups: int) -> Array:
        """``y[image] = kernel · columns``, written where it belongs."""
        b, c, k = len(x), x.shape[1], len(kernel)
        pixels = windows.size[0] * windows.size[1]
        y = np.empty((b, groups, k // groups, pixels), x.dtype)
        if not y.size or not kernel.size:
            y[:] = 0
            return y.reshape(b, k, *windows.size)
        weights = kernel.reshape(groups, k // groups, -1)
        depth = weights.shape[2] * groups
        source = read_only(x)
        as_it_lies = _lies_as_columns(x, windows)

        def part(number: int, first: int, last: int) -> None:
            if as_it_lies:
                flat = x[first:last].reshape(last - first, groups, c // groups, pixels)
                np.matmul(weights, flat, out=y[first:last])
                return
            for block in self._blocks(first, last, depth, windows, x.itemsize):
                images = block.images[1] - block.images[0]
                width = block.pixels.stop - block.pixels.start
                columns = self._columns(number, images * depth * width, x.dtype)
                self._fill(source, columns, block, windows, (depth * width, width))
                matrix = columns.reshape(images, groups, depth // groups, width)
                np.matmul(weights, matrix, out=y[slice(*block.images), :, :, block.pixels])

        bounds = self.parts.bounds(b, y.size * depth // groups, _LEAST_PRODUCTS)
        self.parts.run(bounds, part)
        return y.reshape(b, k, *windows.size)

    def _scatter(
        self, dy: Array, kernel: Array, x_shape: Shape, windows: _Windows, groups: int
    ) -> Array:
        """``columns = kernelᵀ · dy[image]``, added up where they came from."""
        b, k = dy.shape[:2]
        dx = np.zeros(x_shape, dy.dtype)
        if not dy.size or not kernel.size:
            return dx
        weights = kernel.reshape(groups, k // groups, -1).swapaxes(1, 2)
        depth = weights.shape[1] * groups
        grouped = dy.reshape(b, groups, k // groups, -1)

        def part(number: int, first: int, last: int) -> None:
            for block in self._blocks(first, last, depth, windows, dy.itemsize):
                images = block.images[1] - block.images[0]
                width = block.pixels.stop - block.pixels.start
                columns = self._columns(number, images * depth * width, dy.dtype)
                matrix = columns.reshape(images, groups, depth // groups, width)
                np.matmul(weights, grouped[slice(*block.images), :, :, block.pixels], out=matrix)
                add_columns(
                    columns,
                    dx,
                    block.images,
                    block.rows,
                    windows.size[1],
                    (depth * width, width),
                    windows.taps,
                    windows.stride,
                    windows.dilation,
                    windows.corner,
                )

        bounds = self.parts.bounds(b, dy.size * depth // groups, _LEAST_PRODUCTS)
        self.parts.run(bounds, part)
        return dx

    def _correlate(
        self, x: Array, dy: Array, kernel_shape: Shape, windows: _Windows, groups: int
    ) -> Array:
        """``Σ dy · columnsᵀ``, with the pixels of several images side by side in the long sum."""
        b, k = dy.shape[:2]
        if not dy.size or not x.size or 0 in kernel_shape:
            return np.zeros(kernel_shape, x.dtype)
        depth = kernel_shape[1] * windows.taps[0] * windows.taps[1] * groups
        source = read_only(x)
        grouped = dy.reshape(b, groups, k // groups, -1)
        bounds = self.parts.bounds(b, dy.size * depth // groups, _LEAST_PRODUCTS)
        sums = np.zeros((len(bounds), groups, k // groups, depth // groups), x.dtype)
        as_it_lies = _lies_as_columns(x, windows) and grouped.shape[3] >= k // groups

        def part(number: int, first: int, last: int) -> None:
            if as_it_lies:
                flat = x.reshape(b, groups, depth // groups, -1)
                for n in range(first, last):
                    sums[number] += np.matmul(grouped[n], flat[n].swapaxes(1, 2))
                return
            for block in self._blocks(first, last, depth, windows, x.itemsize):
                images = block.images[1] - block.images[0]
                width = block.pixels.stop - block.pixels.start
                columns = self._columns(number, images * depth * width, x.dtype)
                self._fill(source, columns, block, windows, (width, images * width))
                matrix = columns.reshape(groups, depth // groups, images * width)
                from_y = grouped[slice(*block.images), :, :, block.pixels]
                if images == 1:
                    gradient = from_y[0]
                else:
                    gradient = np.ascontiguousarray(from_y.transpose(1, 2, 0, 3))
                    gradient = gradient.reshape(groups, k // groups, images * width)
                sums[number] += np.matmul(gradient, matrix.swapaxes(1, 2))

        self.parts.run(bounds, part)
        total = sums[0]
        for other in sums[1:]:
            total += other
        return total.reshape(kernel_shape)

    def _blocks(
        self, first: int, last: int, depth: int, windows: _Windows, itemsize: int
    ) -> Iterator[_Block]:
        """Blocks of whole images, or of rows of one where that alone is too large."""
        rows, wo = windows.size
        row = max(1, depth * wo * itemsize)
        some = max(1, _BLOCK // (row * rows))
        few = rows if row * rows <= _BLOCK else max(1, _BLOCK // row)
        few = -(-rows // -(-rows // few))
        for image in range(first, last, some):
            for begin in range(0, rows, few):
                end = min(rows, begin + few)
                yield _Block(
                    (image, min(last, image + some)), (begin, end), slice(begin * wo, end * wo)
                )

    def _columns(self, number: int, elements: int, dtype: Any) -> Array:
        """Working space of a thread, reused; the caller overwrites all of it."""
        space = self._scratch.get((number, dtype))
        if space is None or space.size < elements:
            space = self._scratch[number, dtype] = np.empty(elements, dtype)
        return space[:elements]

    @staticmethod
    def _fill(source: Array, columns: Array, block: _Block, windows: _Windows, steps: Pair) -> None:
        fill_columns(
            source,
            columns,
            block.images,
            block.rows,
            windows.size[1],
            steps,
            windows.taps,
            windows.stride,
            windows.dilation,
            windows.corner,
        )


def covers_image(x_shape: Shape, kernel_shape: Shape, size: Pair, pads: Pads, groups: int) -> bool:
    """Whether the kernel is as large as the image: a fully connected layer."""
    same = tuple(x_shape[2:]) == tuple(kernel_shape[2:])
    return same and tuple(size) == (1, 1) and no_pads(pads) and groups == 1


def _lies_as_columns(x: Array, windows: _Windows) -> bool:
    """Whether the tile is its own matrix of columns: 1×1 taps that move by one."""
    return windows.taps == windows.stride == (1, 1) and windows.size == x.shape[2:]


def _flat(a: Array) -> Array:
    """``(images or filters, channels · height · width)``."""
    return a.reshape(len(a), math.prod(a.shape[1:]))


def _wide_rows(windows: int, width: int, stride: Pair) -> int:
    """How many windows of a row are computed: `windows`, or a few too many.

    With as many as the tile is wide, a column is one run of the tile (see `loops`); in short rows
    that saves more than the product takes for windows that are thrown away.
    """
    short = 0 < windows < width <= min(_SHORT_ROW, windows * 3 // 2)
    return width if short and stride == (1, 1) else windows


def _widened(dy: Array, width: int) -> Array:
    """`dy` with zeros at the right of each row."""
    return pad(np, dy, (0, 0, 0, width - dy.shape[3]))


def _plain(a: Array) -> _Windows:
    return _Windows((1, 1), (1, 1), (1, 1), (0, 0), a.shape[2:])


def _transposed(kernel: Array, groups: int) -> Array:
    """Mirrored kernel with filters and channels exchanged in each group: that of the gradient."""
    k, c, r, s = kernel.shape
    mirrored = kernel.reshape(groups, k // groups, c, r, s)[:, :, :, ::-1, ::-1]
    return np.ascontiguousarray(mirrored.swapaxes(1, 2)).reshape(groups * c, k // groups, r, s)
