"""Compiled loops of the way back with the channels last: columns, pooling, normalisation.

An array here is flat: one run of memory from its first element to its last, and a *step*, how far
it is from one pixel to the next. That is the number of channels, or more for some channels of a
wider array; both are then the same compiled code, in which the compiler sees elements side by side.
Each call works on some rows, pixels or channels only, and none reads what another part writes. Must
not know: threads, tasks, BLAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = [
    "add_columns",
    "average_pool_gradient",
    "channel_sums",
    "fill_columns",
    "max_pool_gradient",
    "normalize_gradient",
    "relu_gradient",
    "taps_first",
    "taps_last",
]

Real = NDArray[np.floating[Any]]
Wide = NDArray[np.float64]
Pair = tuple[int, int]


@jit
def _inside(left: int, size: int, taps: int, dilation: int) -> tuple[int, int]:
    """Taps ``[low, high)`` of a window that begins at `left` and lie in ``[0, size)``."""
    low = 0 if left >= 0 else min(taps, (dilation - 1 - left) // dilation)
    high = 0 if left >= size else min(taps, (size - 1 - left) // dilation + 1)
    return low, max(low, high)


@jit
def fill_columns(
    x: Real,
    step: int,
    size: Pair,
    columns: Real,
    channels: int,
    windows: Pair,
    taps: Pair,
    stride: Pair,
    dilation: Pair,
    corner: Pair,
    first: int,
    last: int,
) -> None:
    """Write what the windows ``[first, last)`` meet, a row of ``taps · channels`` for each.

    `x` are images of `size`; windows are numbered through all images, `windows` rows and columns in
    each. `corner` is how far the first one lies over the upper left edge. Zeros are outside.
    """
    long = taps[1] * channels
    runs = dilation[1] == 1 and step == channels
    zero = columns.dtype.type(0)
    for p in range(first, last):
        n, q = divmod(p, windows[0] * windows[1])
        i, j = divmod(q, windows[1])
        top, left = i * stride[0] - corner[0], j * stride[1] - corner[1]
        low, high = _inside(left, size[1], taps[1], dilation[1])
        for ti in range(taps[0]):
            row = top + ti * dilation[0]
            at = ((p - first) * taps[0] + ti) * long
            out = columns[at : at + long]
            if row < 0 or row >= size[0] or low == high:
                out[:] = zero
                continue
            if high - low < taps[1]:
                out[: low * channels] = zero
                out[high * channels :] = zero
            start = ((n * size[0] + row) * size[1] + left + low * dilation[1]) * step
            if runs:
                many = (high - low) * channels
                source, target = x[start : start + many], out[low * channels : high * channels]
                for k in range(np.uint64(many)):
                    target[k] = source[k]
                continue
            for tj in range(low, high):
                source = x[start : start + channels]
                target = out[tj * channels : (tj + 1) * channels]
                for k in range(np.uint64(channels)):
                    target[k] = source[k]
                start += dilation[1] * step


@jit
def add_columns(
    columns: Real,
    channels: int,
    x: Real,
    step: int,
    size: Pair,
    windows: Pair,
    taps: Pair,
    stride: Pair,
    dilation: Pair,
    corner: Pair,
    first: int,
    last: int,
) -> None:
    """Add to each element of `x` what `fill_columns` would have taken from it (its transpose)."""
    long = taps[1] * channels
    runs = dilation[1] == 1 and step == channels
    for p in range(first, last):
        n, q = divmod(p, windows[0] * windows[1])
        i, j = divmod(q, windows[1])
        top, left = i * stride[0] - corner[0], j * stride[1] - corner[1]
        low, high = _inside(left, size[1], taps[1], dilation[1])
        if low == high:
            continue
        for ti in range(taps[0]):
            row = top + ti * dilation[0]
            if row < 0 or row >= size[0]:
                continue
            at = ((p - first) * taps[0] + ti) * long
            start = ((n * size[0] + row) * size[1] + left + low * dilation[1]) * step
            if runs:
                many = (high - low) * channels
                source = columns[at + low * channels : at + high * channels]
                target = x[start : start + many]
                for k in range(np.uint64(many)):
                    target[k] += source[k]
                continue
            for tj in range(low, high):
                source = columns[at + tj * channels : at + (tj + 1) * channels]
                target = x[start : start + channels]
                for k in range(np.uint64(channels)):
                    target[k] += source[k]
                start += dilation[1] * step


@jit
def taps_first(
    kernel: Real, channels: int, first: int, last: int, taps: int, out: Real, filters: int
) -> None:
    """``(filters, channels, taps)`` → ``(filters, taps, last - first)``: some of the channels."""
    wide = last - first
    for k in range(filters):
        source = kernel[(k * channels + first) * taps : (k * channels + last) * taps]
        target = out[k * taps * wide : (k + 1) * taps * wide]
        for t in range(taps):
            step, at = np.uint64(taps), np.uint64(t)
            row = target[t * wide : (t + 1) * wide]
            for c in range(np.uint64(wide)):
                row[c] = source[c * step + at]


@jit
def taps_last(
    source: Real, channels: int, first: int, last: int, taps: int, kernel: Real, filters: int
) -> None:
    """Undo `taps_first`."""
    wide = last - first
    for k in range(filters):
        part = source[k * taps * wide : (k + 1) * taps * wide]
        target = kernel[(k * channels + first) * taps : (k * channels + last) * taps]
        for t in range(taps):
            step, at = np.uint64(taps), np.uint64(t)
            row = part[t * wide : (t + 1) * wide]
            for c in range(np.uint64(wide)):
                target[c * step + at] = row[c]


@jit
def channel_sums(x: Real, step: int, pixels: int, sums: Wide, out: Real) -> None:
    """``out[c] = Σ x[pixel, c]``, added up in float64, in `sums`."""
    channels = np.uint64(out.size)
    for c in range(channels):
        sums[c] = 0
    for p in range(pixels):
        row = x[p * step : p * step + out.size]
        for c in range(channels):
            sums[c] += np.float64(row[c])
    for c in range(channels):
        out[c] = sums[c]


@jit
def relu_gradient(
    dy: Real,
    dy_step: int,
    y: Real,
    y_step: int,
    dx: Real,
    dx_step: int,
    channels: int,
    first: int,
    last: int,
) -> None:
    """`dy`, and 0 where ``y == 0``, of the pixels ``[first, last)``."""
    zero = dy.dtype.type(0)
    for p in range(first, last):
        from_y = dy[p * dy_step : p * dy_step + channels]
        at = y[p * y_step : p * y_step + channels]
        out = dx[p * dx_step : p * dx_step + channels]
        for c in range(np.uint64(channels)):
            v = from_y[c]
            out[c] = v if at[c] != 0 else zero


@jit
def normalize_gradient(
    dy: Real,
    dy_step: int,
    x: Real,
    x_step: int,
    dx: Real,
    dx_step: int,
    pixels: int,
    mean: Wide,
    inverse: Wide,
    gamma: Real,
    d_gamma: Real,
    d_beta: Real,
    sums: Wide,
    factors: Real,
) -> None:
    """Gradients of batch normalisation; that of the input only where `dx` is not empty.

    ``d_beta = Σ dy``, ``d_gamma = Σ dy · x̂``, and ``dx = gamma · inverse · (dy - mean(dy) - x̂ ·
    mean(dy · x̂))`` with ``x̂ = (x - mean) · inverse`` (Ioffe and Szegedy, ICML 2015). `sums` of
    ``2 · channels`` and `factors` of ``4 · channels`` are working space.
    """
    size = gamma.size
    channels = np.uint64(size)
    plain, weighted = sums[:size], sums[size:]
    plain[:] = 0
    weighted[:] = 0
    for p in range(pixels):
        from_y = dy[p * dy_step : p * dy_step + size]
        row = x[p * x_step : p * x_step + size]
        for c in range(channels):
            wide = np.float64(from_y[c])
            plain[c] += wide
            weighted[c] += wide * (np.float64(row[c]) - mean[c])
    middle, shift = factors[:size], factors[size : 2 * size]
    slope, scale = factors[2 * size : 3 * size], factors[3 * size :]
    for c in range(channels):
        weighted[c] *= inverse[c]
        d_beta[c] = plain[c]
        d_gamma[c] = weighted[c]
        middle[c] = mean[c]
        shift[c] = plain[c] / pixels
        slope[c] = inverse[c] * (weighted[c] / pixels)
        scale[c] = inverse[c] * np.float64(gamma[c])
    if not dx.size:
        return
    for p in range(pixels):
        from_y = dy[p * dy_step : p * dy_step + size]
        row = x[p * x_step : p * x_step + size]
        out = dx[p * dx_step : p * dx_step + size]
        for c in range(channels):
            out[c] = (from_y[c] - shift[c] - (row[c] - middle[c]) * slope[c]) * scale[c]


@jit
def _windows_on(at: int, outputs: int, taps: int, stride: int, before: int) -> tuple[int, int]:
    """Windows ``[low, high)`` along an axis that have the element `at` in them."""
    reach = at + before - taps + 1
    low = 0 if reach <= 0 else (reach + stride - 1) // stride
    return low, min(outputs, (at + before) // stride + 1)


@jit
def max_pool_gradient(
    dy: Real,
    dy_step: int,
    where: NDArray[np.unsignedinteger[Any]],
    where_step: int,
    windows: Pair,
    dx: Real,
    dx_step: int,
    size: Pair,
    channels: int,
    taps: Pair,
    stride: Pair,
    corner: Pair,
    first: int,
    last: int,
) -> None:
    """Write the rows ``[first, last)`` of all images of `dx`.

    Each element looks at the windows it is in, and takes what belongs to it: all channels of a
    pixel in one vector loop, where going from windows to elements is one by one.
    """
    zero = dx.dtype.type(0)
    for r in range(first, last):
        n, y = divmod(r, size[0])
        upper, lower = _windows_on(y, windows[0], taps[0], stride[0], corner[0])
        for x in range(size[1]):
            left, right = _windows_on(x, windows[1], taps[1], stride[1], corner[1])
            start = (r * size[1] + x) * dx_step
            out = dx[start : start + channels]
            out[:] = zero
            for i in range(upper, lower):
                tap = (y + corner[0] - i * stride[0]) * taps[1] + x + corner[1]
                for j in range(left, right):
                    mine = where.dtype.type(tap - j * stride[1])
                    p = (n * windows[0] + i) * windows[1] + j
                    from_y = dy[p * dy_step : p * dy_step + channels]
                    at = where[p * where_step : p * where_step + channels]
                    for c in range(np.uint64(channels)):
                        v = from_y[c]
                        out[c] += v if at[c] == mine else zero


@jit
def average_pool_gradient(
    dy: Real,
    dy_step: int,
    count: Real,
    dx: Real,
    dx_step: int,
    size: Pair,
    channels: int,
    taps: Pair,
    stride: Pair,
    corner: Pair,
    first: int,
    last: int,
) -> None:
    """Write the rows ``[first, last)`` of all images of `dx`; `count` is as large as the output."""
    windows = count.shape
    zero = dx.dtype.type(0)
    for r in range(first, last):
        n, y = divmod(r, size[0])
        upper, lower = _windows_on(y, windows[0], taps[0], stride[0], corner[0])
        for x in range(size[1]):
            left, right = _windows_on(x, windows[1], taps[1], stride[1], corner[1])
            start = (r * size[1] + x) * dx_step
            out = dx[start : start + channels]
            out[:] = zero
            for i in range(upper, lower):
                for j in range(left, right):
                    p = (n * windows[0] + i) * windows[1] + j
                    from_y = dy[p * dy_step : p * dy_step + channels]
                    divisor = count[i, j]
                    for c in range(np.uint64(channels)):
                        out[c] += from_y[c] / divisor
