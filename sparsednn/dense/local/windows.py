"""Windows that move over a tile: how many there are, and the elements that one tap meets.

Works on NumPy's and CuPy's arrays alike. Must not know what is computed with the elements.
"""

from __future__ import annotations

from typing import Any

from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.errors import ShapeError

__all__ = ["check_output", "no_pads", "output_extent", "output_size", "pad", "tap_slices", "unpad"]


def output_extent(size: int, pads: int, taps: int, stride: int, dilation: int = 1) -> int:
    """Windows that fit into `size` elements with `pads` more around them (both sides together)."""
    return max(0, (size + pads - dilation * (taps - 1) - 1) // stride + 1)


def output_size(
    shape: tuple[int, ...], taps: Pair, stride: Pair, pads: Pads, dilation: Pair = (1, 1)
) -> Pair:
    """Rows and columns of windows on a tile of `shape` ``(…, height, width)``."""
    top, left, bottom, right = pads
    return (
        output_extent(shape[-2], top + bottom, taps[0], stride[0], dilation[0]),
        output_extent(shape[-1], left + right, taps[1], stride[1], dilation[1]),
    )


def check_output(
    dy_shape: tuple[int, ...],
    x_shape: tuple[int, ...],
    filters: int,
    taps: Pair,
    stride: Pair,
    pads: Pads,
    dilation: Pair = (1, 1),
) -> None:
    """Raise ShapeError unless `dy_shape` is what a convolution of `x_shape` gives."""
    expected = (x_shape[0], filters, *output_size(x_shape, taps, stride, pads, dilation))
    if tuple(dy_shape) != expected:
        raise ShapeError(
            f"gradient of the output: found {tuple(dy_shape)}, expected {expected} for an input "
            f"{tuple(x_shape)}, taps {taps}, stride {stride}, pads {pads}, dilation {dilation}"
        )


def no_pads(pads: Pads) -> bool:
    """Whether nothing is added at any side."""
    return not any(pads)


def pad(xp: Any, x: Array, pads: Pads, value: float = 0.0) -> Array:
    """`x` with `value` around its rows and columns; `x` itself where nothing is added."""
    if no_pads(pads):
        return x
    top, left, bottom, right = pads
    b, c, h, w = x.shape
    padded = xp.full((b, c, top + h + bottom, left + w + right), value, x.dtype)
    padded[:, :, top : top + h, left : left + w] = x
    return padded


def unpad(xp: Any, padded: Array, shape: Shape, pads: Pads) -> Array:
    """The tile of `shape` inside `padded`, C-contiguous."""
    if no_pads(pads):
        return padded
    top, left, _, _ = pads
    return xp.ascontiguousarray(padded[:, :, top : top + shape[2], left : left + shape[3]])


def tap_slices(tap: Pair, size: Pair, stride: Pair, dilation: Pair) -> tuple[slice, slice]:
    """Rows and columns of the padded tile that `tap` meets in ``size`` rows, columns of windows.

    With no window at all, these are empty.
    """
    slices = []
    for i, n, step, apart in zip(tap, size, stride, dilation, strict=True):
        slices.append(slice(i * apart, i * apart + (n - 1) * step + 1 if n else i * apart, step))
    return slices[0], slices[1]
