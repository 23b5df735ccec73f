"""Gradients of convolutions by PyTorch's oneDNN kernels, on NumPy's memory with the channels last.

PyTorch sees ``(images, channels, height, width)`` in its layout "channels last", which is ours.
Kernels are turned to it by our own loop, several times faster than PyTorch's copies. What PyTorch
returns is its own and copied to its place. Most of the buffer of a way is never touched: it stands
for what PyTorch allocates meanwhile, the result, packed kernels, and copies of what is some
channels of a wider array. oneDNN's own working space is not in it. float32 only: oneDNN has no
float64.

Imported only where PyTorch is installed. Must not know: tasks, schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sparsednn.dense.concurrency.cpu import gradient_loops as loops
from sparsednn.dense.concurrency.cpu.gradient_products import (
    Array,
    Buffer,
    Call,
    Cut,
    GradientPart,
    images_or_channels,
    is_plain_product,
)
from sparsednn.dense.concurrency.cpu.layout import matrix
from sparsednn.dense.convolution import ConvolutionShape

__all__ = ["INPUT_WAYS", "KERNEL_WAYS"]


class KernelOnednn:
    """Gradient of some filters."""

    name: ClassVar[str] = "onednn"

    def __init__(self, cut: Cut) -> None:
        shape = self._shape = cut.shape
        self._filters = cut.of(shape.filters)
        few = self._filters[1] - self._filters[0]
        words = 2 * few * prod(shape.kernel_shape[1:])
        if cut.sliced or few < shape.filters:
            words += shape.images * few * shape.output_height * shape.output_width
        if cut.sliced:
            words += prod(shape.input_shape)
        self.buffers: list[Buffer] = [((words,), cut.dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Filters; with groups it is one part; 0 where a plain product is better."""
        if is_plain_product(shape):
            return 0
        return shape.filters if shape.groups == 1 else 1

    def bind(self, dy: Array, x: Array, d_kernel: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        here = slice(*self._filters)
        out = d_kernel[here]
        few, channels, taps = len(out), out.shape[1], prod(out.shape[2:])
        # Of the kernel, only the shape and the layout are looked at: the result's.
        like = _tensor(out.reshape(few, *out.shape[2:], channels))
        arguments = (
            _tensor(dy[..., here]), _tensor(x), like, None, *_geometry(self._shape),
            [False, True, False],
        )  # fmt: skip
        backward, flat = torch.ops.aten.convolution_backward.default, out.reshape(-1)

        def call() -> None:
            found = backward(*arguments)[1].permute(0, 2, 3, 1).contiguous().view(-1).numpy()
            loops.taps_last(found, channels, 0, channels, taps, flat, few)

        return call


class InputOnednn:
    """Gradient of some images, or of some channels."""

    name: ClassVar[str] = "onednn"

    def __init__(self, cut: Cut) -> None:
        shape = self._shape = cut.shape
        self._images, self._channels = images_or_channels(cut)
        images, channels = (last - first for first, last in (self._images, self._channels))
        words = images * channels * shape.height * shape.width
        words += 2 * shape.filters * prod(shape.taps) * min(channels, shape.kernel_shape[1])
        if cut.sliced:
            words += images * prod(shape.output_shape[1:])
        self.buffers: list[Buffer] = [((words,), cut.dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Images, or channels; with groups one part; 0 where a plain product is better."""
        if is_plain_product(shape):
            return 0
        return max(shape.images, shape.channels) if shape.groups == 1 else 1

    def bind(self, dy: Array, kernel: Array, dx: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        here, channels = slice(*self._images), self._channels
        out, wide = _tensor(dx[here, :, :, slice(*channels)]), kernel.shape[1]
        if self._shape.groups == 1:
            wide = channels[1] - channels[0]
        turned = buffers[0][: len(kernel) * wide * prod(self._shape.taps)]
        first = channels[0] if self._shape.groups == 1 else 0
        turn = (
            kernel.reshape(-1), kernel.shape[1], first, first + wide, prod(self._shape.taps),
            turned, len(kernel),
        )  # fmt: skip
        weights = _tensor(turned.reshape(len(kernel), *self._shape.taps, wide))
        # Of the input, only the shape and the layout are looked at: those of its gradient.
        wanted = [True, False, False]
        arguments = (_tensor(dy[here]), out, weights, None, *_geometry(self._shape), wanted)
        backward = torch.ops.aten.convolution_backward.default

        def call() -> None:
            loops.taps_first(*turn)
            out.copy_(backward(*arguments)[0])

        return call


class InputOnednnMirrored:
    """Gradient of some images as a convolution with the mirrored kernel, which is packed first.

    oneDNN's own gradient has no vector code for few filters.
    """

    name: ClassVar[str] = "onednn mirrored"

    def __init__(self, cut: Cut) -> None:
        shape = self._shape = cut.shape
        self._images = cut.of(shape.images)
        images = self._images[1] - self._images[0]
        words = images * prod(shape.input_shape[1:]) + 2 * prod(shape.kernel_shape)
        if cut.sliced:
            words += images * prod(shape.output_shape[1:])
        self.buffers: list[Buffer] = [((words,), cut.dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Images; 0 where this is no way."""
        fits = shape.stride == (1, 1) and shape.groups == 1 and min(_around(shape)) >= 0
        fits = fits and not is_plain_product(shape)
        return shape.images if fits else 0

    def bind(self, dy: Array, kernel: Array, dx: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        here, around, dilation = slice(*self._images), _around(self._shape), self._shape.dilation
        out, source, weights = _tensor(dx[here]), _tensor(dy[here]), torch.from_numpy(kernel)
        turned, size = weights.transpose(0, 1), list(source.shape)
        mirror = torch.ops.aten.flip.default
        pack = torch.ops.mkldnn._reorder_convolution_weight.default
        convolve = torch.ops.mkldnn._convolution_pointwise.default

        def call() -> None:
            packed = pack(mirror(turned, [2, 3]).contiguous(), around, (1, 1), dilation, 1, size)
            out.copy_(convolve(source, packed, None, around, (1, 1), dilation, 1, "none", [], ""))

        return call


class KernelOnednnMatrix:
    """The product of two matrices that gives some filters of a kernel with one tap."""

    name: ClassVar[str] = "onednn product"

    def __init__(self, cut: Cut) -> None:
        shape = cut.shape
        self._filters = cut.of(shape.filters)
        few = self._filters[1] - self._filters[0]
        words = few * shape.channels
        words += shape.images * shape.height * shape.width * (few + shape.channels)
        self.buffers: list[Buffer] = [((words,), cut.dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Filters; 0 where this is no way."""
        return shape.filters if is_plain_product(shape) else 0

    def bind(self, dy: Array, x: Array, d_kernel: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        here = slice(*self._filters)
        from_y, source = torch.from_numpy(matrix(dy)[:, here]), torch.from_numpy(matrix(x))
        out = torch.from_numpy(d_kernel[here, :, 0, 0])
        return _product(from_y.T, source.T, out)


class InputOnednnMatrix:
    """The same for the gradient of some pixels."""

    name: ClassVar[str] = "onednn product"

    def __init__(self, cut: Cut) -> None:
        shape = cut.shape
        self._pixels = cut.of(shape.images * shape.height * shape.width)
        pixels = self._pixels[1] - self._pixels[0]
        words = pixels * shape.channels + shape.filters * shape.channels
        if cut.sliced:
            words += pixels * shape.filters
        self.buffers: list[Buffer] = [((words,), cut.dtype)]

    @staticmethod
    def extent(shape: ConvolutionShape) -> int:
        """Pixels of the input; 0 where this is no way."""
        fits = is_plain_product(shape)
        return shape.images * shape.height * shape.width if fits else 0

    def bind(self, dy: Array, kernel: Array, dx: Array, buffers: Sequence[Array]) -> Call:
        """See `GradientPart`."""
        here = slice(*self._pixels)
        from_y, out = torch.from_numpy(matrix(dy)[here]), torch.from_numpy(matrix(dx)[here])
        return _product(from_y, torch.from_numpy(kernel[:, :, 0, 0]).T, out)


def _product(one: Tensor, other: Tensor, out: Tensor) -> Call:
    """Return the call for ``out = one · otherᵀ``."""
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def call() -> None:
        out.copy_(multiply(one, other, None, "none", [], ""))

    return call


def _around(shape: ConvolutionShape) -> tuple[int, int]:
    """Zeros around the output's gradient for the convolution with the mirrored kernel."""
    vertical, horizontal = (
        apart * (taps - 1) - pad
        for apart, taps, pad in zip(shape.dilation, shape.taps, shape.padding, strict=True)
    )
    return vertical, horizontal


def _geometry(shape: ConvolutionShape) -> tuple[Any, ...]:
    """Stride, padding, dilation, not transposed, no padding of the output, groups."""
    return shape.stride, shape.padding, shape.dilation, False, (0, 0), shape.groups


def _tensor(a: Array) -> Tensor:
    """``(images, channels, height, width)`` on the memory of an array with the channels last."""
    return torch.from_numpy(a).permute(0, 3, 1, 2)


KERNEL_WAYS: tuple[type[GradientPart], ...] = (KernelOnednnMatrix, KernelOnednn)
INPUT_WAYS: tuple[type[GradientPart], ...] = (
    InputOnednnMatrix,
    InputOnednn,
    InputOnednnMirrored,
)
