"""Convolutions by PyTorch's functions (oneDNN), without its autograd; everything else is ours.

NumPy's memory is handed over as it is. Which way a convolution goes is decided by its shape alone,
so results do not depend on what was measured when. The rules are from measurements (float32, Zen 5,
one and two threads; benchmarks say how they do elsewhere):

====================================  ==============================================================
1×1 without pads of stride 1 (for     products of matrices (`Im2colBackend`): no layout to convert
the input's gradient: any stride);    to and from; a fully connected layer is 4 to 8 times faster,
a kernel that covers the image        the gradient with a stride 2 to 4 times. With several threads,
                                      1×1 of stride 1 is PyTorch's: its threads wait for work
                                      awake, and ours would share the cores with them
gradient of the input, stride 1,      convolution of dy with the mirrored kernel: oneDNN has no
fewer than 16 filters                 vector code for that gradient then (2 to 9 times faster)
gradient of the kernel, 4 to 15       copies of x and dy with the channels last: oneDNN has only
channels                              plain loops else (1.3 to 2 times faster)
all others                            as the arrays lie: a conversion costs more than it saves
====================================  ==============================================================

Must not know: ranks, layers, optimisers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.dense.local.im2col import Im2colBackend, covers_image
from sparsednn.dense.local.reference import check_convolution
from sparsednn.dense.local.windows import output_size, pad, unpad
from sparsednn.errors import ShapeError

__all__ = ["TorchBackend"]

#: oneDNN computes the gradient of the input in blocks of so many filters.
_FILTERS = 16
#: Numbers of channels for which the kernel's gradient is computed with the channels last.
_CHANNELS_LAST = range(4, 16)


class TorchBackend(Im2colBackend):
    """`LocalBackend` of PyTorch on the CPU.

    Parameters
    ----------
    threads
        PyTorch is told in this process, for good.
    """

    name = "torch"

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        torch.set_num_threads(threads)

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
        plan = _plan(x.shape, kernel.shape, stride, pads, dilation, groups)
        if plan.is_product or (plan.is_pointwise and stride == (1, 1) and self.threads == 1):
            return super().convolution(
                x, kernel, stride=stride, pads=pads, dilation=dilation, groups=groups
            )
        source = _tensor(pad(np, x, plan.by_hand))
        return _array(
            torch.conv2d(source, _tensor(kernel), None, stride, plan.around, dilation, groups)
        )

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
        plan = _plan(tuple(x_shape), kernel.shape, stride, pads, dilation, groups)
        plan.check(dy.shape)
        if plan.is_product or (plan.is_pointwise and (stride != (1, 1) or self.threads == 1)):
            return super().convolution_input_gradient(
                dy, kernel, x_shape, stride=stride, pads=pads, dilation=dilation, groups=groups
            )
        if plan.is_mirrored:
            # Always a copy: for NumPy an axis of one element is contiguous backwards, too.
            mirrored = kernel[:, :, ::-1, ::-1].swapaxes(0, 1).copy()
            dx = torch.conv2d(_tensor(dy), _tensor(mirrored), None, 1, plan.outer, dilation)
        else:
            # Of x, only the shape and the layout are looked at.
            like = torch.empty(plan.padded, dtype=_tensor(dy).dtype)
            dx, _, _ = _backward(
                _tensor(dy), like, _tensor(kernel), stride, plan.around, dilation, groups, (1, 0)
            )
        return unpad(np, _array(dx), x_shape, plan.by_hand)

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
        plan = _plan(x.shape, tuple(kernel_shape), stride, pads, dilation, groups)
        plan.check(dy.shape)
        if plan.is_product or (plan.is_pointwise and stride == (1, 1) and self.threads == 1):
            return super().convolution_kernel_gradient(
                x, dy, kernel_shape, stride=stride, pads=pads, dilation=dilation, groups=groups
            )
        from_y, source = _tensor(dy), _tensor(pad(np, x, plan.by_hand))
        if plan.is_channels_last and source.dtype == torch.float32:
            from_y, source = _channels_last(from_y), _channels_last(source)
        like = torch.empty(kernel_shape, dtype=source.dtype)
        _, dkernel, _ = _backward(
            from_y, source, like, stride, plan.around, dilation, groups, (0, 1)
        )
        return _array(dkernel)

    def convolution_gradients(
        self,
        x: Array,
        dy: Array,
        kernel: Array,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> tuple[Array, Array]:
        """See `LocalBackend.convolution_gradients`; one call where both go the plain way."""
        plan = _plan(x.shape, kernel.shape, stride, pads, dilation, groups)
        plan.check(dy.shape)
        if not plan.is_plain:
            return super().convolution_gradients(
                x, dy, kernel, stride=stride, pads=pads, dilation=dilation, groups=groups
            )
        source = _tensor(pad(np, x, plan.by_hand))
        dx, dkernel, _ = _backward(
            _tensor(dy), source, _tensor(kernel), stride, plan.around, dilation, groups, (1, 1)
        )
        return unpad(np, _array(dx), x.shape, plan.by_hand), _array(dkernel)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What follows from the shapes of a convolution.

    `by_hand` is what we add around x, `around` what PyTorch adds, the same at opposite sides;
    `outer` the same for the convolution with the mirrored kernel; `padded` the shape of x with
    `by_hand`. The rest says which rules apply.
    """

    x_shape: Shape
    y_shape: Shape
    by_hand: Pads
    around: Pair
    outer: Pair
    padded: Shape
    is_product: bool
    is_pointwise: bool
    is_mirrored: bool
    is_channels_last: bool

    @property
    def is_plain(self) -> bool:
        rules = self.is_product, self.is_pointwise, self.is_mirrored, self.is_channels_last
        return not any(rules)

    def check(self, dy_shape: tuple[int, ...]) -> None:
        """Raise ShapeError unless `dy_shape` is that of the output."""
        if dy_shape != self.y_shape:
            raise ShapeError(
                f"gradient of the output: found {tuple(dy_shape)}, expected {self.y_shape} for an "
                f"input {self.x_shape}"
            )


@lru_cache(maxsize=4096)
def _plan(
    x_shape: Shape, kernel_shape: Shape, stride: Pair, pads: Pads, dilation: Pair, groups: int
) -> _Plan:
    """Worked out once for each shape: in a step, Python code is never in the cache."""
    check_convolution(x_shape, kernel_shape, groups)
    (b, c, h, w), (k, _, *taps) = x_shape, kernel_shape
    top, left, bottom, right = pads
    around = min(top, bottom), min(left, right)
    by_hand = top - around[0], left - around[1], bottom - around[0], right - around[1]
    outer = dilation[0] * (taps[0] - 1) - around[0], dilation[1] * (taps[1] - 1) - around[1]
    size = output_size(x_shape, (taps[0], taps[1]), stride, pads, dilation)
    is_empty = 0 in x_shape or 0 in kernel_shape or 0 in size  # PyTorch refuses most of these
    return _Plan(
        x_shape,
        (b, k, *size),
        by_hand,
        around,
        outer,
        (b, c, by_hand[0] + h + by_hand[2], by_hand[1] + w + by_hand[3]),
        is_empty or covers_image(x_shape, kernel_shape, size, pads, groups),
        taps == [1, 1] and not any(pads) and groups == 1,
        stride == (1, 1) and groups == 1 and k < _FILTERS and min(outer) >= 0,
        groups == 1 and c in _CHANNELS_LAST,
    )


def _backward(
    dy: Tensor,
    x: Tensor,
    kernel: Tensor,
    stride: Pair,
    around: Pair,
    dilation: Pair,
    groups: int,
    wanted: tuple[int, int],
) -> Any:
    return torch.ops.aten.convolution_backward(
        dy,
        x,
        kernel,
        None,
        stride,
        around,
        dilation,
        False,
        (0, 0),
        groups,
        [*map(bool, wanted), False],
    )


def _channels_last(a: Tensor) -> Tensor:
    return a.contiguous(memory_format=torch.channels_last)


def _tensor(a: Array) -> Tensor:
    """Tensor on the memory of `a`; on a copy where that is read-only, which PyTorch has not."""
    return torch.from_numpy(a if a.flags.carray else np.require(a, requirements=["C", "W"]))


def _array(a: Tensor) -> Array:
    return a.contiguous().numpy()
