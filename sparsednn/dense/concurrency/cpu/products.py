"""Convolutions and fully connected layers: what all ways to do them share, and those with BLAS.

"product" multiplies the pixels as they lie: 1×1 kernels (of other strides after a copy), and
kernels that cover the image. "columns" copies windows to columns a few rows at a time, so that they
stay in the cache; "whole columns" all of them at once: more memory, larger products.

Must not know: other libraries, threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu import forward_loops
from sparsednn.dense.concurrency.cpu.layout import (
    flat,
    matrix,
    part_counts,
    pixel_step,
    shared,
    vector,
)
from sparsednn.dense.concurrency.cpu.tails import Stage, stages_of
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.operations import Convolution, FullyConnected

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
    from sparsednn.dense.concurrency.tasks import Task, TaskGraph

__all__ = ["Call", "Product", "bind_blas", "blas_algorithms", "finishing", "in_order"]

Array = NDArray[Any]
Call = Callable[[], None]

#: Bytes of columns at a time: half of a usual second-level cache.
_BLOCK = 512 << 10


@dataclass(frozen=True)
class Product:
    """A convolution, or a fully connected layer, with what is fused behind it.

    Attributes
    ----------
    geometry
        Of the convolution; a fully connected layer's taps are its image.
    kernel
        Full name of the weights.
    stages
        What comes behind the product.
    x, y
        Tensors.
    """

    geometry: ConvolutionShape
    kernel: str
    stages: tuple[Stage, ...]
    x: str
    y: str

    @classmethod
    def of(cls, tasks: TaskGraph, task: Task) -> Product:
        """Look a task up."""
        operation = tasks.operation(task)
        assert isinstance(operation, (Convolution, FullyConnected))
        (shape,) = tasks.graph.input_shapes(operation.name)
        bias = f"{operation.name}.bias" if operation.bias else None
        return cls(
            operation.geometry(tasks.images, shape),
            f"{operation.name}.weight",
            tuple(stages_of(tasks.graph, task.operations[1:], bias)),
            task.reads[0],
            task.writes[0],
        )

    @property
    def rows(self) -> int:
        """Rows of the output, of all images."""
        return self.geometry.images * self.geometry.output_height

    @property
    def pixels(self) -> int:
        """Pixels of the output, of all images."""
        return self.rows * self.geometry.output_width

    @property
    def covers_image(self) -> bool:
        """Whether the kernel is as large as the image, and not a single pixel."""
        g = self.geometry
        whole = (g.height, g.width) == g.taps and g.padding == (0, 0) and g.groups == 1
        return whole and g.taps != (1, 1)

    @property
    def pointwise(self) -> bool:
        """Whether the kernel is 1×1 without padding."""
        return self.geometry.taps == (1, 1) and self.geometry.padding == (0, 0)

    @property
    def depth(self) -> int:
        """Products in one sum."""
        g = self.geometry
        return g.channels // g.groups * prod(g.taps)


def in_order(calls: list[Call]) -> Call:
    """Return one call that makes all of them."""
    if len(calls) == 1:
        return calls[0]

    def run() -> None:
        for call in calls:
            call()

    return run


def finishing(
    kernels: CpuKernels,
    stages: tuple[Stage, ...],
    y: Array,
    pixels: tuple[int, int],
    channels: tuple[int, int],
) -> list[Call]:
    """Return calls that do stages in place, on some pixels and channels of an output."""
    step = pixel_step(y)
    calls: list[Call] = []
    here = flat(y, channels[0])[pixels[0] * step :]
    count, width = pixels[1] - pixels[0], channels[1] - channels[0]
    for stage in stages if count and width else ():
        floor = stage.floor(y.dtype)
        if stage.affine:
            values = kernels.values(stage, y.shape[3], channels)
            calls.append(partial(forward_loops.finish, here, step, count, width, values, floor))
        elif stage.relu:
            calls.append(partial(forward_loops.rectify_in_place, here, step, count, width, floor))
    return calls


def blas_algorithms(product: Product, lanes: int, itemsize: int) -> list[Algorithm]:
    """Return the ways with BLAS, as `Kernels.algorithms`."""
    g = product.geometry
    found = []
    if product.pointwise or product.covers_image:
        for parts in part_counts(lanes, max(product.pixels, g.filters)):
            size = 0
            if product.covers_image:
                size = prod(g.input_shape) * itemsize
            elif g.stride != (1, 1):
                size = product.pixels * g.channels * itemsize
            found.append(Algorithm("product", parts, size))
    if not product.covers_image and not (product.pointwise and g.stride == (1, 1)):
        for name in ("columns", "whole columns"):
            for parts in part_counts(lanes, product.rows):
                rows = max(
                    last - first
                    for first, last in (shared(product.rows, parts, n) for n in range(parts))
                )
                block = min(rows, _block_rows(product, itemsize)) if name == "columns" else rows
                size = block * g.output_width * product.depth * itemsize
                found.append(Algorithm(name, parts, size))
    return found


def bind_blas(
    kernels: CpuKernels,
    product: Product,
    algorithm: Algorithm,
    part: int,
    tensors: Mapping[str, Array],
    workspace: Array,
) -> Call:
    """See `Kernels.bind`."""
    if algorithm.name == "product":
        return _bind_product(kernels, product, algorithm, part, tensors, workspace)
    return _bind_columns(kernels, product, algorithm, part, tensors, workspace)


def _bind_product(
    kernels: CpuKernels,
    product: Product,
    algorithm: Algorithm,
    part: int,
    tensors: Mapping[str, Array],
    workspace: Array,
) -> Call:
    g, x, y = product.geometry, tensors[product.x], tensors[product.y]
    pixels, filters = (0, product.pixels), (0, g.filters)
    group_filters = g.filters // g.groups
    if g.groups == 1 and g.filters > product.pixels:
        filters = shared(g.filters, algorithm.parts, part, 16)
    else:
        pixels = shared(product.pixels, algorithm.parts, part)
    if pixels[0] == pixels[1] or filters[0] == filters[1]:
        return _nothing
    calls: list[Call] = []
    kernel = kernels.parameters[product.kernel].reshape(g.filters, -1)
    if product.covers_image:
        source = vector(workspace, (g.images, g.channels, g.height, g.width), x.dtype)
        calls.append(partial(np.copyto, source, x.transpose(0, 3, 1, 2)))
        left = source.reshape(g.images, -1)[slice(*pixels)]
    elif g.stride != (1, 1):
        strided = x[:, :: g.stride[0], :: g.stride[1]]
        strided = strided[:, : g.output_height, : g.output_width]
        source = vector(workspace, strided.shape, x.dtype)
        calls.append(partial(np.copyto, source, strided))
        left = source.reshape(product.pixels, g.channels)[slice(*pixels)]
    else:
        left = matrix(x)[slice(*pixels)]
    right = matrix(y)[slice(*pixels)]
    channels = g.channels // g.groups
    for n in range(g.groups):
        wanted = filters if g.groups == 1 else (n * group_filters, (n + 1) * group_filters)
        source = left if g.groups == 1 else left[:, n * channels : (n + 1) * channels]
        weights = kernel[slice(*wanted)].T
        calls.append(partial(np.matmul, source, weights, out=right[:, slice(*wanted)]))
    return in_order(calls + finishing(kernels, product.stages, y, pixels, filters))


def _bind_columns(
    kernels: CpuKernels,
    product: Product,
    algorithm: Algorithm,
    part: int,
    tensors: Mapping[str, Array],
    workspace: Array,
) -> Call:
    g, x, y = product.geometry, tensors[product.x], tensors[product.y]
    first, last = shared(product.rows, algorithm.parts, part)
    some = max(1, last - first)
    if algorithm.name == "columns":
        some = min(some, _block_rows(product, x.itemsize))
    weights = _columns_kernel(kernels, product)
    memory, step, target = flat(x), pixel_step(x), matrix(y)
    channels, filters = g.channels // g.groups, g.filters // g.groups
    image, size = (g.height, g.width), (g.output_height, g.output_width)
    calls: list[Call] = []
    for begin in range(first, last, some):
        end = min(last, begin + some)
        pixels = begin * g.output_width, end * g.output_width
        columns = vector(workspace, (pixels[1] - pixels[0], product.depth), x.dtype)
        for n in range(g.groups):
            calls.append(
                partial(
                    forward_loops.copy_columns, memory, step, columns.reshape(-1),
                    (n * channels, channels), image, size, g.taps, g.stride, g.dilation, g.padding,
                    begin, end,
                )
            )  # fmt: skip
            out = target[slice(*pixels), n * filters : (n + 1) * filters]
            calls.append(partial(np.matmul, columns, weights[n], out=out))
        calls += finishing(kernels, product.stages, y, pixels, (0, g.filters))
    return in_order(calls) if calls else _nothing


def _block_rows(product: Product, itemsize: int) -> int:
    row = product.geometry.output_width * product.depth * itemsize
    return max(1, _BLOCK // row)


def _columns_kernel(kernels: CpuKernels, product: Product) -> Array:
    """``(groups, taps · channels of a group, filters of a group)``."""
    g = product.geometry
    filters, channels = g.filters // g.groups, g.channels // g.groups
    shape = g.groups, *g.taps, channels, filters

    def renew(packed: Array) -> None:
        kernel = kernels.parameters[product.kernel]
        grouped = kernel.reshape(g.groups, filters, channels, *g.taps)
        packed.reshape(shape)[...] = grouped.transpose(0, 3, 4, 2, 1)

    found: Array = kernels.kept(
        ("columns", product.kernel),
        lambda: np.empty((g.groups, product.depth, filters), kernels.dtype),
        renew,
    )
    return found


def _nothing() -> None:
    """Do nothing: of a task that has fewer rows than parts."""
