"""Convolutions and their gradients as columns and products, in memory that is there.

The ways differ in how many images at a time become columns, and so in workspace. Fully connected
layers and 1×1 convolutions are products as they lie. Must not know: tasks, cuDNN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from sparsednn.dense.concurrency.gpu.steps import Scratch, Step, Steps, flat, inner, moved
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.local.base import Array, Pads

__all__ = ["Make", "ProductWay", "product_ways"]

#: From the two inputs, the output, and scratch to steps.
Make: TypeAlias = Callable[[Array, Array, Array, Sequence[Array]], list[Step]]


@dataclass(frozen=True, slots=True)
class ProductWay:
    """A way to do a convolution.

    Attributes
    ----------
    name
        "product", "columns", or "columns of N images".
    scratch
        What it wants while it runs.
    make
        ``make(x, kernel, y, scratch)`` forward, ``(dy, kernel, dx, …)`` and ``(x, dy, dkernel, …)``
        for the gradients.
    """

    name: str
    scratch: tuple[Scratch, ...]
    make: Make


def product_ways(
    steps: Steps, shape: ConvolutionShape, operation: str, dtype: str
) -> list[ProductWay]:
    """Return the ways, the one with most workspace first.

    Parameters
    ----------
    operation
        "forward", "input" or "kernel".
    """
    made = _Products(steps, shape, dtype)
    makers = {
        "forward": (made.plain_forward, made.forward),
        "input": (made.plain_input, made.input_gradient),
        "kernel": (made.plain_kernel, made.kernel_gradient),
    }
    plain, by_columns = makers[operation]
    ways: list[ProductWay] = []
    if made.plain:
        ways.append(ProductWay("product", (), plain))
        if operation != "kernel" or shape.covers_image or shape.images == 1:
            return ways
    for images in sorted({1, -(-shape.images // 4), shape.images}, reverse=True):
        if made.plain and images == 1:
            continue
        name = "columns" if images == shape.images else f"columns of {images} images"
        name = "columns of 1 image" if name == "columns of 1 images" else name
        scratch = made.scratch(images, kernel=operation == "kernel")
        ways.append(ProductWay(name, scratch, by_columns(images)))
    return ways


class _Products:
    def __init__(self, steps: Steps, shape: ConvolutionShape, dtype: str) -> None:
        self.steps, self.shape, self.dtype = steps, shape, dtype
        self.tools = steps.tools
        (top, left), groups = shape.padding, shape.groups
        self.pads: Pads = (top, left, top, left)
        self.groups = groups
        self.filters, self.channels = shape.filters // groups, shape.channels // groups
        self.depth = self.channels * prod(shape.taps)
        self.size = shape.output_height, shape.output_width
        self.pixels = prod(self.size)
        self.pointwise = shape.taps == (1, 1) == shape.stride and not any(self.pads)
        self.covers = shape.covers_image and groups == 1
        self.plain = self.pointwise or self.covers

    def scratch(self, images: int, *, kernel: bool) -> tuple[Scratch, ...]:
        """Columns, the padded images, and for the kernel's gradient the other one's turned."""
        shape = self.shape
        found: list[Scratch] = [((images * self.groups * self.depth * self.pixels,), self.dtype)]
        if kernel:
            found.append(((images * shape.filters * self.pixels,), self.dtype))
        if any(self.pads):
            rows = shape.height + self.pads[0] + self.pads[2]
            columns = shape.width + self.pads[1] + self.pads[3]
            found.append(((images * shape.channels * rows * columns,), self.dtype))
        return tuple(found)

    # -- products as they lie --------------------------------------------------------------------

    def _matrix(self, x: Array) -> Array:
        """``(images, values of an image)``."""
        return self.tools.strided(x, (len(x), prod(x.shape[1:])), (x.strides[0], x.itemsize))

    def _grouped(self, x: Array, channels: int) -> Iterator[Array]:
        """``(images, channels of a group, pixels)`` of each group."""
        whole = flat(self.tools, x)
        for group in range(self.groups):
            yield whole[:, group * channels : (group + 1) * channels]

    def _kernels(self, kernel: Array, *, turned: bool) -> Iterator[Array]:
        """``(filters of a group, depth)`` of each group, or the transpose."""
        whole = kernel.reshape(self.groups, self.filters, self.depth)
        for group in range(self.groups):
            yield whole[group].T if turned else whole[group]

    def plain_forward(self, x: Array, kernel: Array, y: Array, _: Sequence[Array]) -> list[Step]:
        if self.covers:
            weights = kernel.reshape(self.filters, self.depth)
            return [self.steps.product(self._matrix(x)[None], weights.T, self._matrix(y)[None])]
        return self._pointwise(x, kernel, y, turned=False)

    def plain_input(self, dy: Array, kernel: Array, dx: Array, _: Sequence[Array]) -> list[Step]:
        if self.covers:
            weights = kernel.reshape(self.filters, self.depth)
            return [self.steps.product(self._matrix(dy)[None], weights, self._matrix(dx)[None])]
        return self._pointwise(dy, kernel, dx, turned=True)

    def _pointwise(self, x: Array, kernel: Array, y: Array, *, turned: bool) -> list[Step]:
        into, out = (self.filters, self.channels) if turned else (self.channels, self.filters)
        return [
            self.steps.product(weights, one, other)
            for weights, one, other in zip(
                self._kernels(kernel, turned=turned),
                self._grouped(x, into),
                self._grouped(y, out),
                strict=True,
            )
        ]

    def plain_kernel(self, x: Array, dy: Array, dkernel: Array, _: Sequence[Array]) -> list[Step]:
        if self.covers:
            target = dkernel.reshape(1, self.filters, self.depth)
            return [self.steps.product(self._matrix(dy).T[None], self._matrix(x), target)]
        target = dkernel.reshape(self.groups, self.filters, self.depth)
        return [
            self.steps.product(
                flat(self.tools, dy)[image].reshape(self.groups, self.filters, self.pixels),
                flat(self.tools, x)[image]
                .reshape(self.groups, self.channels, self.pixels)
                .swapaxes(1, 2),
                target,
                accumulate=image > 0,
            )
            for image in range(self.shape.images)
        ]

    # -- by columns ------------------------------------------------------------------------------

    def _chunks(self, images: int) -> Iterator[tuple[slice, int]]:
        for first in range(0, self.shape.images, images):
            last = min(self.shape.images, first + images)
            yield slice(first, last), last - first

    def _padded(self, x: Array, scratch: Sequence[Array]) -> tuple[list[Step], Array]:
        """Steps that put zeros around images, and the result; the images themselves: none."""
        if not any(self.pads):
            return [], x
        padded = self._padding(x, scratch)
        return [
            self.steps.copy(padded, 0.0),
            self.steps.copy(inner(padded, x.shape, self.pads), x),
        ], padded

    def _padding(self, x: Array, scratch: Sequence[Array]) -> Array:
        top, left, bottom, right = self.pads
        b, c, h, w = x.shape
        return _fit(scratch[-1], (b, c, top + h + bottom, left + w + right))

    def _windows(self, source: Array, *, images_last: bool) -> Array:
        """``(images, channels, r, s, rows, columns)`` of padded images: a view.

        With `images_last` they stand behind the taps.
        """
        (b, c), shape = source.shape[:2], self.shape
        image, channel, row, element = source.strides
        apart = shape.dilation[0] * row, shape.dilation[1] * element
        step = shape.stride[0] * row, shape.stride[1] * element
        if images_last:
            return self.tools.strided(
                source, (c, *shape.taps, b, *self.size), (channel, *apart, image, *step)
            )
        return self.tools.strided(
            source, (b, c, *shape.taps, *self.size), (image, channel, *apart, *step)
        )

    def _by_group(self, kernel: Array, columns: Array, y: Array, *, back: bool) -> list[Step]:
        """Products of all groups and images, in as few calls as can be."""
        b = len(y)
        channels = self.filters
        weights = kernel.reshape(self.groups, self.filters, self.depth)
        grid = columns.reshape(b, self.groups, self.depth, self.pixels)
        found = []
        if self.groups > b:
            outs = flat(self.tools, y)
            for image in range(b):
                out = outs[image].reshape(self.groups, channels, self.pixels)
                found.append(
                    self.steps.product(weights.swapaxes(1, 2), out, grid[image])
                    if back
                    else self.steps.product(weights, grid[image], out)
                )
            return found
        for group, out in enumerate(self._grouped(y, channels)):
            found.append(
                self.steps.product(weights[group].T, out, grid[:, group])
                if back
                else self.steps.product(weights[group], grid[:, group], out)
            )
        return found

    def forward(self, images: int) -> Make:
        """Columns of the input, and products with them."""

        def make(x: Array, kernel: Array, y: Array, scratch: Sequence[Array]) -> list[Step]:
            found = []
            for some, count in self._chunks(images):
                padding, source = self._padded(x[some], scratch)
                windows = self._windows(source, images_last=False)
                columns = _fit(scratch[0], windows.shape)
                found += [*padding, self.steps.copy(columns, windows)]
                flat_columns = columns.reshape(count, self.groups, self.depth, self.pixels)
                found += self._by_group(kernel, flat_columns, y[some], back=False)
            return found

        return make

    def input_gradient(self, images: int) -> Make:
        """Products first; each tap's columns are added where they came from."""

        def make(dy: Array, kernel: Array, dx: Array, scratch: Sequence[Array]) -> list[Step]:
            found = []
            shape = self.shape
            for some, count in self._chunks(images):
                dims = count, self.groups * self.channels, *shape.taps, *self.size
                columns = _fit(scratch[0], dims)
                grid = columns.reshape(count, self.groups, self.depth, self.pixels)
                found += self._by_group(kernel, grid, dy[some], back=True)
                part = dx[some]
                target = self._padding(part, scratch) if any(self.pads) else part
                found.append(self.steps.copy(target, 0.0))
                for i in range(shape.taps[0]):
                    for j in range(shape.taps[1]):
                        met = moved(target, (i, j), self.size, shape.stride, shape.dilation)
                        found.append(self.steps.ufunc("add", met, columns[:, :, i, j], met))
                if target is not part:
                    found.append(self.steps.copy(part, inner(target, part.shape, self.pads)))
            return found

        return make

    def kernel_gradient(self, images: int) -> Make:
        """Columns and the output's gradient with images inside: one product for many of them."""

        def make(x: Array, dy: Array, dkernel: Array, scratch: Sequence[Array]) -> list[Step]:
            found = []
            target = dkernel.reshape(self.groups, self.filters, self.depth)
            for some, count in self._chunks(images):
                padding, source = self._padded(x[some], scratch)
                windows = self._windows(source, images_last=True)
                columns = _fit(scratch[0], windows.shape)
                turned = _fit(scratch[1], (self.shape.filters, count, self.pixels))
                found += [
                    *padding,
                    self.steps.copy(columns, windows),
                    self.steps.copy(turned, flat(self.tools, dy[some]).swapaxes(0, 1)),
                    self.steps.product(
                        turned.reshape(self.groups, self.filters, count * self.pixels),
                        columns.reshape(self.groups, self.depth, count * self.pixels).swapaxes(
                            1, 2
                        ),
                        target,
                        accumulate=some.start > 0,
                    ),
                ]
            return found

        return make


def _fit(scratch: Array, shape: Sequence[int]) -> Array:
    """The beginning of a piece of scratch, in a shape."""
    return scratch[: prod(shape)].reshape(tuple(shape))
