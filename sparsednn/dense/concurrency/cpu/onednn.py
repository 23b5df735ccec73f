"""Convolutions by PyTorch's oneDNN on channels-last tensors, without its autograd.

For inference kernels are packed once as oneDNN wants them; in training they change with every step,
and oneDNN gets them as they are. Results are PyTorch's own memory: they are copied into place by
the pass that adds the bias, normalises and rectifies; that memory counts as workspace.

A part has some images, or else some filters. Must not know: other ways, threads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu import forward_loops
from sparsednn.dense.concurrency.cpu.layout import flat, part_counts, pixel_step, shared
from sparsednn.dense.concurrency.cpu.products import Call, Product, finishing
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.errors import MissingDependencyError

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.cpu.kernels import CpuKernels

__all__ = ["bind_onednn", "has_torch", "load_torch", "onednn_algorithms"]

Array = NDArray[Any]

#: oneDNN packs kernels in blocks of so many filters.
_FILTERS = 16


def has_torch() -> bool:
    """Whether PyTorch is installed."""
    return find_spec("torch") is not None


def load_torch() -> Any:
    """Return the module, with what this needs of it.

    Raises
    ------
    MissingDependencyError
        It is not installed, or was built without oneDNN.
    """
    if not has_torch():
        raise MissingDependencyError(
            "algorithm 'onednn' needs torch: pip install 'sparsednn[torch]'"
        )
    torch: Any = import_module("torch")
    if not torch.backends.mkldnn.is_available():
        raise MissingDependencyError(
            f"algorithm 'onednn': torch {torch.__version__} was built without oneDNN"
        )
    return torch


def onednn_algorithms(product: Product, lanes: int, itemsize: int) -> list[Algorithm]:
    """Return the ways to cut, as `Kernels.algorithms`; float32 only."""
    g = product.geometry
    if itemsize != 4 or product.covers_image:
        return []
    found = []
    for parts in part_counts(lanes, max(g.images, _filter_units(product))):
        images, filters = _largest(product, parts)
        size = images * g.output_height * g.output_width * filters * itemsize
        if filters < g.filters and g.groups > 1:  # PyTorch copies some of the channels
            share = g.channels // g.groups * (filters // (g.filters // g.groups))
            size += images * g.height * g.width * share * itemsize
        found.append(Algorithm("onednn", parts, size))
    return found


def _filter_units(product: Product) -> int:
    g = product.geometry
    return g.groups if g.groups > 1 else -(-g.filters // _FILTERS)


def _by_images(product: Product, parts: int) -> bool:
    images = product.geometry.images
    return images % parts == 0 or images >= 4 * parts or _filter_units(product) < parts


def _cut(product: Product, parts: int, part: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Images and filters of a part; filters of whole groups."""
    g = product.geometry
    if _by_images(product, parts):
        return shared(g.images, parts, part), (0, g.filters)
    unit = g.filters // g.groups if g.groups > 1 else _FILTERS
    return (0, g.images), shared(g.filters, parts, part, unit)


def _largest(product: Product, parts: int) -> tuple[int, int]:
    cuts = [_cut(product, parts, part) for part in range(parts)]
    return max(a[1] - a[0] for a, _ in cuts), max(b[1] - b[0] for _, b in cuts)


class _Weights:
    """A kernel as oneDNN gets it; a new one after the parameters have changed."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self) -> None:
        self.tensor: Any = None


def bind_onednn(
    kernels: CpuKernels,
    product: Product,
    algorithm: Algorithm,
    part: int,
    tensors: Mapping[str, Array],
) -> Call:
    """See `Kernels.bind`; the workspace is PyTorch's to allocate."""
    torch = load_torch()
    g, x, y = product.geometry, tensors[product.x], tensors[product.y]
    images, filters = _cut(product, algorithm.parts, part)
    if images[0] == images[1] or filters[0] == filters[1]:
        return _nothing
    group_filters, group_channels = g.filters // g.groups, g.channels // g.groups
    groups, channels = g.groups, (0, g.channels)
    if filters != (0, g.filters) and g.groups > 1:
        first, last = filters[0] // group_filters, filters[1] // group_filters
        groups, channels = last - first, (first * group_channels, last * group_channels)
    source = torch.from_numpy(x[slice(*images), :, :, slice(*channels)]).permute(0, 3, 1, 2)
    weights = _weights(kernels, product, torch, filters, groups, tuple(source.shape))
    if not kernels.packs:
        convolve = partial(_plain, torch, source, weights, g.stride, g.padding, g.dilation, groups)
    else:
        convolve = partial(
            _packed, torch.ops.mkldnn._convolution_pointwise.default, source, weights,
            list(g.padding), list(g.stride), list(g.dilation), groups,
        )  # fmt: skip
    area = g.output_height * g.output_width
    pixels = images[0] * area, images[1] * area
    step, width = pixel_step(y), filters[1] - filters[0]
    target = flat(y, filters[0])[pixels[0] * step :]
    stage = product.stages[0]
    floor = stage.floor(y.dtype)
    count = pixels[1] - pixels[0]
    values = kernels.values(stage, g.filters, filters)
    later = finishing(kernels, product.stages[1:], y, pixels, filters)

    def run() -> None:
        result = convolve().permute(0, 2, 3, 1).numpy().reshape(-1)
        forward_loops.finish_from(result, width, target, step, count, width, values, floor)
        for call in later:
            call()

    return run


def _packed(
    op: Callable[..., Any],
    source: Any,
    weights: _Weights,
    padding: list[int],
    stride: list[int],
    dilation: list[int],
    groups: int,
) -> Any:
    return op(source, weights.tensor, None, padding, stride, dilation, groups, "none", [], "")


def _plain(
    torch: Any,
    source: Any,
    weights: _Weights,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
) -> Any:
    return torch.conv2d(source, weights.tensor, None, stride, padding, dilation, groups)


def _weights(
    kernels: CpuKernels,
    product: Product,
    torch: Any,
    filters: tuple[int, int],
    groups: int,
    shape: tuple[int, ...],
) -> _Weights:
    g = product.geometry

    def renew(kept: _Weights) -> None:
        array = np.require(kernels.parameters[product.kernel], requirements=["C", "W"])
        plain = torch.from_numpy(array[slice(*filters)])
        if not kernels.packs:
            kept.tensor = plain.contiguous(memory_format=torch.channels_last)
        else:
            kept.tensor = torch.ops.mkldnn._reorder_convolution_weight(
                plain, list(g.padding), list(g.stride), list(g.dilation), groups, list(shape)
            )

    found: _Weights = kernels.kept(("onednn", product.kernel, filters, shape), _Weights, renew)
    return found


def _nothing() -> None:
    """Do nothing: of a task that has fewer images than parts."""


def why_not_packed(torch: Any) -> str | None:
    """Return why kernels cannot be packed for oneDNN with this version; None: they can."""
    missing = [
        name
        for name in ("_convolution_pointwise", "_reorder_convolution_weight")
        if not hasattr(torch.ops.mkldnn, name)
    ]
    return f"torch {torch.__version__} has no {' and '.join(missing)}" if missing else None
