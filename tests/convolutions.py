"""Random convolutions, and what PyTorch (or the reference backend) makes of them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.errors import ShapeError


def random_shape(source: np.random.Generator, *, images: int | None = None) -> ConvolutionShape:
    """A convolution of small, odd sizes."""
    while True:
        groups = int(source.choice([1, 1, 1, 2, 3]))
        try:
            return ConvolutionShape(
                images=int(source.integers(1, 8)) if images is None else images,
                channels=groups * int(source.integers(1, 6)),
                height=int(source.integers(1, 12)),
                width=int(source.integers(1, 12)),
                filters=groups * int(source.integers(1, 7)),
                taps=(int(source.integers(1, 5)), int(source.integers(1, 5))),
                stride=(int(source.integers(1, 4)), int(source.integers(1, 3))),
                padding=(int(source.integers(0, 3)), int(source.integers(0, 3))),
                dilation=(int(source.integers(1, 3)), int(source.integers(1, 3))),
                groups=groups,
            )
        except ShapeError:
            continue


@dataclass
class Truth:
    """Numbers of a whole convolution: what goes in, what comes out, and all gradients."""

    x: NDArray[Any]
    kernel: NDArray[Any]
    bias: NDArray[Any]
    dy: NDArray[Any]
    y: NDArray[Any]
    dx: NDArray[Any]
    d_kernel: NDArray[Any]
    d_bias: NDArray[Any]


def truth_of(shape: ConvolutionShape, seed: int, comm: Any = None) -> Truth:
    """The same on all ranks of `comm`; one of them computes."""
    source = np.random.default_rng(seed)
    x = source.standard_normal(shape.input_shape)
    kernel = source.standard_normal(shape.kernel_shape)
    bias = source.standard_normal(shape.filters)
    dy = source.standard_normal(shape.output_shape)
    results = [np.empty_like(dy), np.empty_like(x), np.empty_like(kernel)]
    if comm is None or comm.rank == 0:
        results = _computed(shape, x, kernel, bias, dy)
    if comm is not None:
        for result in results:
            comm.broadcast(result)
    return Truth(x, kernel, bias, dy, *results, dy.sum(axis=(0, 2, 3)))


def _computed(shape: ConvolutionShape, x: Any, kernel: Any, bias: Any, dy: Any) -> list[Any]:
    if find_spec("torch") is not None:
        import torch

        tensors = [torch.from_numpy(a.copy()).requires_grad_() for a in (x, kernel)]
        y = torch.nn.functional.conv2d(
            *tensors, torch.from_numpy(bias), shape.stride, shape.padding, shape.dilation,
            shape.groups,
        )  # fmt: skip
        y.backward(torch.from_numpy(dy))
        return [y.detach().numpy().copy(), *(t.grad.numpy().copy() for t in tensors)]
    from sparsednn.dense.local.reference import ReferenceBackend

    local = ReferenceBackend()
    pads = (*shape.padding, *shape.padding)
    how = {"stride": shape.stride, "pads": pads, "dilation": shape.dilation, "groups": shape.groups}
    dx, dk = local.convolution_gradients(x, dy, kernel, **how)
    return [local.convolution(x, kernel, **how) + bias[:, None, None], dx, dk]


def block_of(array: NDArray[Any], layout: Any, rank: int) -> NDArray[Any]:
    """A rank's block of a whole tensor, contiguous."""
    return np.ascontiguousarray(array[np.ix_(*layout.block(rank).indices())])
