"""Gradients of convolutions and fully connected layers with the channels last, by NumPy's BLAS.

Each class is a way to do one part of a gradient: made from the geometry alone, it says which
`buffers` it wants; `bind` gives the call, in which everything that is Python has been done before.

==================  ================================================================================
`KernelProduct`     1×1 taps, or taps that cover the image: ``dK = dYᵀ · X``; parts by filters
`InputProduct`      the same: ``dX = dY · K``; parts by pixels, or by channels
`KernelColumns`     ``dK = dYᵀ · columns(X)``, block after block of pixels; parts by channels, which
                    makes no column twice, or by filters where channels are few or in groups
`InputColumns`      ``columns⁻¹(dY · K)``, added up; parts by images, or by channels
`InputMirrored`     stride 1: ``columns(dY) · mirrored K``; parts by pixels
==================  ================================================================================

Kernels are ``(filters, channels, taps)`` and columns ``(pixels, taps · channels)``, so kernels and
their gradients are turned on the way. Sums are in an order that geometry and parts alone decide.

Must not know: tasks, schedules, other libraries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil, prod
from typing import Any, ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu import gradient_loops as loops
from sparsednn.dense.concurrency.cpu.layout import flat, matrix, pixel_step, shared
from sparsednn.dense.convolution import ConvolutionShape

__all__ = [
    "Buffer",
    "Call",
    "Cut",
    "GradientPart",
    "InputColumns",
    "InputMirrored",
    "InputProduct",
    "KernelColumns",
    "KernelProduct",
    "bias_gradient",
    "images_or_channels",
    "is_plain_product",
]

Array: TypeAlias = NDArray[Any]
Call: TypeAlias = Callable[[], None]
Buffer: TypeAlias = tuple[tuple[int, ...], Any]
"""Shape and dtype of working space."""
Range: TypeAlias = tuple[int, int]

#: Bytes of columns at a time: they stay in a core's own cache.
_BLOCK = 768 << 10
#: Pixels at a time where the products are added up: so that adding takes little beside multiplying.
_LEAST_PIXELS = 384
#: Channels that a part must have for itself.
_LEAST_CHANNELS = 16


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of which gradient.

    `sliced` says whether what is read may be some channels of a wider array.
    """

    shape: ConvolutionShape
    dtype: Any
    parts: int = 1
    part: int = 0
    sliced: bool = False

    def of(self, extent: int) -> Range:
        """Return which of `extent` things belong to the part."""
        return shared(extent, self.parts, self.part)


class GradientPart(Protocol):
    """A way to do one part of a gradient; `buffers` is the working space that it wants."""

    name: ClassVar[str]
    buffers: list[Buffer]

    def __init__(self, cut: Cut, /) -> None: ...

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Return into how many parts it can be cut; 0 where this is no way."""

    def bind(self, dy: Array, other: Array, out: Array, buffers: Sequence[Array], /) -> Call:
        """Return the call that fills this part of `out`.

        `other` is the input for a kernel's gradient, the kernel for an input's.
        """


class KernelProduct:
    """A product of two matrices; what is read with a stride, or as a whole image, is copied."""

    name: ClassVar[str] = "product"

    def __init__(self, cut: Cut) -> None:
        shape, dtype = cut.shape, cut.dtype
        self._shape, self._filters = shape, cut.of(shape.filters)
        self.buffers: list[Buffer] = []
        if shape.covers_image:
            if shape.height * shape.width > 1:
                whole = (shape.channels, shape.height, shape.width)
                self.buffers = [((shape.images, *whole), dtype)]
        elif shape.stride != (1, 1):
            size = (shape.images, shape.output_height, shape.output_width, shape.channels)
            self.buffers = [(size, dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Filters."""
        return shape.filters if _is_product(shape) else 0

    def bind(self, dy: Array, x: Array, d_kernel: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        here = slice(*self._filters)
        from_y, out = matrix(dy)[:, here].T, _matrix(d_kernel[here])
        if not buffers:
            source = matrix(x)
            return lambda: _discard(np.matmul(from_y, source, out=out))
        (copy,) = buffers
        if self._shape.covers_image:
            met = x.transpose(0, 3, 1, 2)
        else:
            met = x[:, :: self._shape.stride[0], :: self._shape.stride[1]]
        source = copy.reshape(from_y.shape[1], out.shape[1])

        def call() -> None:
            np.copyto(copy, met)
            np.matmul(from_y, source, out=out)

        return call


class InputProduct:
    """A product of two matrices; what has a stride, or is a whole image, is copied from it."""

    name: ClassVar[str] = "product"

    def __init__(self, cut: Cut) -> None:
        shape, dtype = cut.shape, cut.dtype
        self._shape = shape
        self._pixels = cut.of(_inputs(shape))
        self._channels = cut.of(shape.channels)
        self.buffers: list[Buffer] = []
        channels = self._channels[1] - self._channels[0]
        if shape.covers_image:
            if shape.height * shape.width > 1:
                size = (shape.images, channels, shape.height, shape.width)
                self.buffers = [(size, dtype)]
        elif shape.stride != (1, 1):
            size = (shape.images, shape.output_height, shape.output_width, channels)
            self.buffers = [(size, dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Pixels; channels where there is one pixel to an image, or a stride."""
        if not _is_product(shape):
            return 0
        return _inputs(shape) if is_plain_product(shape) else shape.channels

    def bind(self, dy: Array, kernel: Array, dx: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        from_y = matrix(dy)
        if is_plain_product(self._shape):
            here = slice(*self._pixels)
            source, out, weights = from_y[here], matrix(dx)[here], _matrix(kernel)
            return lambda: _discard(np.matmul(source, weights, out=out))
        here = slice(*self._channels)
        weights, target = _columns_of(kernel, *self._channels), dx[..., here]
        if not buffers:
            out = matrix(dx)[:, here]
            return lambda: _discard(np.matmul(from_y, weights, out=out))
        (copy,) = buffers
        product = copy.reshape(from_y.shape[0], weights.shape[1])
        if self._shape.covers_image:
            turned = copy.transpose(0, 2, 3, 1)

            def call() -> None:
                np.matmul(from_y, weights, out=product)
                np.copyto(target, turned)

            return call
        met = target[:, :: self._shape.stride[0], :: self._shape.stride[1]]

        def call_strided() -> None:
            np.matmul(from_y, weights, out=product)
            target.fill(0)
            np.copyto(met, copy)

        return call_strided


class KernelColumns:
    """Products with columns of the input, added up over blocks of pixels."""

    name: ClassVar[str] = "columns"

    def __init__(self, cut: Cut) -> None:
        shape, dtype = cut.shape, cut.dtype
        self._shape = shape
        if self._by_channels(shape):
            filters, channels = (0, shape.filters), cut.of(shape.channels)
        else:
            filters, channels = cut.of(shape.filters), (0, shape.channels)
        self._pieces = list(_pieces(shape, filters, channels))
        depth = prod(shape.taps) * max(last - first for _, (first, last) in self._pieces)
        few = max(last - first for (first, last), _ in self._pieces)
        self._blocks = _blocks(0, _outputs(shape), depth * np.dtype(dtype).itemsize, _LEAST_PIXELS)
        most = max(last - first for first, last in self._blocks)
        self.buffers: list[Buffer] = [((most * depth,), dtype), ((few * depth,), dtype)]
        if len(self._blocks) > 1:
            self.buffers.append(((few * depth,), dtype))

    @staticmethod
    def _by_channels(shape: ConvolutionShape) -> bool:
        return shape.groups == 1 and shape.channels >= _LEAST_CHANNELS

    @classmethod
    def extent(cls, shape: ConvolutionShape) -> int:
        """Channels or filters."""
        if cls._by_channels(shape):
            return shape.channels // (_LEAST_CHANNELS // 2)
        return shape.filters

    def bind(self, dy: Array, x: Array, d_kernel: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        shape, taps = self._shape, prod(self._shape.taps)
        windows = (shape.output_height, shape.output_width)
        steps = []
        for filters, channels in self._pieces:
            few, wide = filters[1] - filters[0], channels[1] - channels[0]
            sums = [each[: few * taps * wide].reshape(few, -1) for each in buffers[1:]]
            total, part = sums[0], sums[-1]
            source = flat(x[..., slice(*channels)])
            turn = (
                total.reshape(-1), *_inside_group(shape, channels), taps,
                d_kernel[slice(*filters)].reshape(-1), few,
            )  # fmt: skip
            from_y = matrix(dy)[:, slice(*filters)]
            products = []
            for first, last in self._blocks:
                columns = buffers[0][: (last - first) * taps * wide]
                fill = (
                    source, pixel_step(x), (shape.height, shape.width), columns, wide, windows,
                    shape.taps, shape.stride, shape.dilation, shape.padding, first, last,
                )  # fmt: skip
                met = columns.reshape(last - first, taps * wide)
                products.append((fill, from_y[first:last].T, met))
            steps.append((products, total, part, turn))

        def call() -> None:
            for products, total, part, turn in steps:
                target = total
                for fill, gradient, met in products:
                    loops.fill_columns(*fill)
                    np.matmul(gradient, met, out=target)
                    if target is not total:
                        np.add(total, target, out=total)
                    target = part
                loops.taps_last(*turn)

        return call


class InputColumns:
    """Columns of the gradient by a product, added up where they came from."""

    name: ClassVar[str] = "columns"

    def __init__(self, cut: Cut) -> None:
        shape, dtype = cut.shape, cut.dtype
        self._shape = shape
        pixels = shape.output_height * shape.output_width
        self._images, self._channels = images_or_channels(cut)
        self._pieces = list(_pieces(shape, (0, shape.filters), self._channels))
        depth = prod(shape.taps) * max(last - first for _, (first, last) in self._pieces)
        few = shape.filters // shape.groups
        first, last = (image * pixels for image in self._images)
        self._blocks = _blocks(first, last, depth * np.dtype(dtype).itemsize)
        most = max(last - first for first, last in self._blocks)
        self.buffers: list[Buffer] = [((few * depth,), dtype), ((most * depth,), dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Images, or channels."""
        return max(shape.images, shape.channels)

    def bind(self, dy: Array, kernel: Array, dx: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        shape, taps = self._shape, prod(self._shape.taps)
        windows = (shape.output_height, shape.output_width)
        whole = dx[slice(*self._images), :, :, slice(*self._channels)]
        steps = []
        for filters, channels in self._pieces:
            few, wide = filters[1] - filters[0], channels[1] - channels[0]
            packed = buffers[0][: few * taps * wide]
            turn = (
                kernel[slice(*filters)].reshape(-1), *_inside_group(shape, channels), taps,
                packed, few,
            )  # fmt: skip
            turned = packed.reshape(few, taps * wide)
            target = flat(dx[..., slice(*channels)])
            from_y = matrix(dy)[:, slice(*filters)]
            products = []
            for first, last in self._blocks:
                columns = buffers[1][: (last - first) * taps * wide]
                add = (
                    columns, wide, target, pixel_step(dx), (shape.height, shape.width), windows,
                    shape.taps, shape.stride, shape.dilation, shape.padding, first, last,
                )  # fmt: skip
                out = columns.reshape(last - first, taps * wide)
                products.append((from_y[first:last], out, add))
            steps.append((turn, turned, products))

        def call() -> None:
            whole.fill(0)
            for turn, turned, products in steps:
                loops.taps_first(*turn)
                for gradient, out, add in products:
                    np.matmul(gradient, turned, out=out)
                    loops.add_columns(*add)

        return call


class InputMirrored:
    """A convolution of the output's gradient with the mirrored kernel."""

    name: ClassVar[str] = "mirrored"

    def __init__(self, cut: Cut) -> None:
        shape, dtype = cut.shape, cut.dtype
        self._shape = shape
        self._pieces = list(_pieces(shape, (0, shape.filters), (0, shape.channels)))
        few, wide = shape.filters // shape.groups, shape.channels // shape.groups
        depth = prod(shape.taps) * few
        self._blocks = _blocks(*cut.of(_inputs(shape)), depth * np.dtype(dtype).itemsize)
        most = max(last - first for first, last in self._blocks)
        self.buffers: list[Buffer] = [((depth * wide,), dtype), ((most * depth,), dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Pixels of the input."""
        return _inputs(shape) if shape.stride == (1, 1) else 0

    def bind(self, dy: Array, kernel: Array, dx: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        shape, taps = self._shape, prod(self._shape.taps)
        vertical, horizontal = (
            apart * (tap - 1) - pad
            for apart, tap, pad in zip(shape.dilation, shape.taps, shape.padding, strict=True)
        )
        corner = vertical, horizontal
        size = (shape.output_height, shape.output_width)
        steps = []
        for filters, channels in self._pieces:
            few, wide = filters[1] - filters[0], channels[1] - channels[0]
            weights = kernel.reshape(shape.filters, wide, taps)[slice(*filters), :, ::-1]
            packed = buffers[0].reshape(taps, few, wide)
            kernel_matrix = packed.reshape(taps * few, wide)
            source, target = flat(dy[..., slice(*filters)]), matrix(dx)[:, slice(*channels)]
            products = []
            for first, last in self._blocks:
                columns = buffers[1][: (last - first) * taps * few]
                fill = (
                    source, pixel_step(dy), size, columns, few, (shape.height, shape.width),
                    shape.taps, (1, 1), shape.dilation, corner, first, last,
                )  # fmt: skip
                products.append((fill, columns.reshape(last - first, -1), target[first:last]))
            steps.append((weights.transpose(2, 0, 1), packed, kernel_matrix, products))

        def call() -> None:
            for weights, packed, kernel_matrix, products in steps:
                np.copyto(packed, weights)
                for fill, columns, out in products:
                    loops.fill_columns(*fill)
                    np.matmul(columns, kernel_matrix, out=out)

        return call


def bias_gradient(dy: Array, d_bias: Array, filters: Range, sums: Array) -> Call:
    """Return the call that fills some filters of `d_bias`; `sums` are working space."""
    here = slice(*filters)
    arguments: tuple[Any, ...] = (
        flat(dy[..., here]),
        pixel_step(dy),
        prod(dy.shape[:3]),
        sums,
        d_bias[here],
    )
    return partial(loops.channel_sums, *arguments)


def images_or_channels(cut: Cut) -> tuple[Range, Range]:
    """Return which images and channels of the input belong to a part: some of the one kind.

    Images where all parts get as many; otherwise channels, if there are enough.
    """
    shape = cut.shape
    if shape.images % cut.parts == 0 or shape.channels < cut.parts:
        return cut.of(shape.images), (0, shape.channels)
    return (0, shape.images), cut.of(shape.channels)


def _matrix(kernel: Array) -> Array:
    return kernel.reshape(len(kernel), prod(kernel.shape[1:]))


def _columns_of(kernel: Array, first: int, last: int) -> Array:
    """Some channels of a kernel as a matrix, the same memory."""
    taps = prod(kernel.shape[2:])
    return _matrix(kernel)[:, first * taps : last * taps]


def _discard(result: Any) -> None:
    """A call has no result."""


def is_plain_product(shape: ConvolutionShape) -> bool:
    """Whether the output has the input's pixels, and each depends on that one alone."""
    return _is_product(shape) and shape.taps == (1, 1) and shape.stride == (1, 1)


def _is_product(shape: ConvolutionShape) -> bool:
    if shape.groups != 1:
        return False
    return shape.covers_image or (shape.taps == (1, 1) and shape.padding == (0, 0))


def _inputs(shape: ConvolutionShape) -> int:
    return shape.images * shape.height * shape.width


def _outputs(shape: ConvolutionShape) -> int:
    return shape.images * shape.output_height * shape.output_width


def _inside_group(shape: ConvolutionShape, channels: Range) -> tuple[int, int, int]:
    """Channels of a group, and which of them `channels` are."""
    wide = shape.channels // shape.groups
    first = channels[0] % wide
    return wide, first, first + channels[1] - channels[0]


def _pieces(
    shape: ConvolutionShape, filters: Range, channels: Range
) -> Iterator[tuple[Range, Range]]:
    """Filters and channels of each group that are in both ranges."""
    few, wide = shape.filters // shape.groups, shape.channels // shape.groups
    for group in range(shape.groups):
        low = max(filters[0], group * few), max(channels[0], group * wide)
        high = min(filters[1], (group + 1) * few), min(channels[1], (group + 1) * wide)
        if low[0] < high[0] and low[1] < high[1]:
            yield (low[0], high[0]), (low[1], high[1])


def _blocks(first: int, last: int, row: int, least: int = 1) -> list[Range]:
    """Blocks of pixels of about the same size with `row` bytes for each, `least` pixels or all."""
    many = ceil((last - first) / max(least, _BLOCK // row))
    return [
        (first + low, first + high)
        for low, high in (shared(last - first, many, number) for number in range(many))
    ]
