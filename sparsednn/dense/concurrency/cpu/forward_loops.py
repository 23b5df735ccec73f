"""Compiled loops of the forward pass, channels last: the inner loop runs over channels.

Memory is flat (see `layout.flat`); `step` is the distance from a pixel to the next one, in
elements. Inner loops count from 0 and do not branch, or they would not become vector code.

Must not know: tasks, threads, BLAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = [
    "add",
    "add_to",
    "average_pool",
    "copy_columns",
    "finish",
    "finish_from",
    "max_pool",
    "max_pool_where",
    "normalize_batch",
    "rectify",
    "rectify_in_place",
]

Real = NDArray[np.floating[Any]]
Whole = NDArray[np.int64]


@jit
def finish(y: Real, step: int, pixels: int, channels: int, values: Real, floor: Any) -> None:
    """``(y - values[0]) · values[1] + values[2]``, not less than `floor`, in place."""
    mean, scale, shift = values[0], values[1], values[2]
    for p in range(pixels):
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = (row[c] - mean[c]) * scale[c] + shift[c]
            row[c] = floor if z <= floor else z


@jit
def finish_from(
    x: Real,
    x_step: int,
    y: Real,
    step: int,
    pixels: int,
    channels: int,
    values: Real,
    floor: Any,
) -> None:
    """As `finish`, from other memory."""
    mean, scale, shift = values[0], values[1], values[2]
    for p in range(pixels):
        source = x[p * x_step : p * x_step + channels]
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = (source[c] - mean[c]) * scale[c] + shift[c]
            row[c] = floor if z <= floor else z


@jit
def rectify(
    x: Real, x_step: int, y: Real, step: int, pixels: int, channels: int, floor: Any
) -> None:
    """`x`, not less than `floor`; NaN stays NaN."""
    for p in range(pixels):
        source = x[p * x_step : p * x_step + channels]
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = source[c]
            row[c] = floor if z <= floor else z


@jit
def rectify_in_place(y: Real, step: int, pixels: int, channels: int, floor: Any) -> None:
    """`rectify` on one array: with two that overlap the compiler's vector code is left out."""
    for p in range(pixels):
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = row[c]
            row[c] = floor if z <= floor else z


@jit
def add(
    a: Real,
    a_step: int,
    b: Real,
    b_step: int,
    y: Real,
    step: int,
    pixels: int,
    channels: int,
    floor: Any,
) -> None:
    """``a + b``, not less than `floor`."""
    for p in range(pixels):
        first = a[p * a_step : p * a_step + channels]
        second = b[p * b_step : p * b_step + channels]
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = first[c] + second[c]
            row[c] = floor if z <= floor else z


@jit
def add_to(
    x: Real, x_step: int, y: Real, step: int, pixels: int, channels: int, floor: Any
) -> None:
    """``y + x``, not less than `floor`, in `y`."""
    for p in range(pixels):
        source = x[p * x_step : p * x_step + channels]
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = row[c] + source[c]
            row[c] = floor if z <= floor else z


@jit
def normalize_batch(
    x: Real,
    x_step: int,
    y: Real,
    step: int,
    pixels: int,
    gamma: Real,
    beta: Real,
    running_mean: Real,
    running_variance: Real,
    mean: NDArray[np.float64],
    inverse: NDArray[np.float64],
    epsilon: float,
    momentum: float,
    floor: Any,
) -> None:
    """Batch normalisation in training, of some channels: as many as `gamma` has.

    Two passes in float64 give mean and variance, four pixels at a time; the third normalises.
    """
    channels = gamma.size
    total = np.zeros(channels)
    for p in range(0, pixels // 4 * 4, 4):
        r0 = x[p * x_step : p * x_step + channels]
        r1 = x[(p + 1) * x_step : (p + 1) * x_step + channels]
        r2 = x[(p + 2) * x_step : (p + 2) * x_step + channels]
        r3 = x[(p + 3) * x_step : (p + 3) * x_step + channels]
        for c in range(np.uint64(channels)):
            total[c] += (np.float64(r0[c]) + np.float64(r1[c])) + (
                np.float64(r2[c]) + np.float64(r3[c])
            )
    for p in range(pixels // 4 * 4, pixels):
        r0 = x[p * x_step : p * x_step + channels]
        for c in range(np.uint64(channels)):
            total[c] += np.float64(r0[c])
    for c in range(channels):
        mean[c] = total[c] / pixels
    total[:] = 0
    for p in range(0, pixels // 2 * 2, 2):
        r0 = x[p * x_step : p * x_step + channels]
        r1 = x[(p + 1) * x_step : (p + 1) * x_step + channels]
        for c in range(np.uint64(channels)):
            d0 = np.float64(r0[c]) - mean[c]
            d1 = np.float64(r1[c]) - mean[c]
            total[c] += d0 * d0 + d1 * d1
    for p in range(pixels // 2 * 2, pixels):
        r0 = x[p * x_step : p * x_step + channels]
        for c in range(np.uint64(channels)):
            d0 = np.float64(r0[c]) - mean[c]
            total[c] += d0 * d0
    middle, scale = np.empty(channels, x.dtype), np.empty(channels, x.dtype)
    shift = beta.copy()
    for c in range(channels):
        variance = total[c] / pixels
        unbiased = variance * (pixels / max(1, pixels - 1))
        running_mean[c] += momentum * (mean[c] - running_mean[c])
        running_variance[c] += momentum * (unbiased - running_variance[c])
        inverse[c] = 1.0 / np.sqrt(variance + epsilon)
        middle[c] = mean[c]
        scale[c] = inverse[c] * np.float64(gamma[c])
    for p in range(pixels):
        source = x[p * x_step : p * x_step + channels]
        row = y[p * step : p * step + channels]
        for c in range(np.uint64(channels)):
            z = (source[c] - middle[c]) * scale[c] + shift[c]
            row[c] = floor if z <= floor else z


@jit
def _inside(at: int, taps: int, size: int) -> tuple[int, int]:
    """Taps ``[first, last)`` of a window that begins at `at` which meet the image."""
    first = max(0, -at)
    return first, max(first, min(taps, size - at))


@jit
def max_pool(
    x: Real,
    x_step: int,
    y: Real,
    step: int,
    channels: int,
    image: tuple[int, int],
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Largest element of each window, for rows ``[first, last)`` of all images of the output.

    `image` and `size` are height and width of x and of y; `corner` is the padding on top and on the
    left. NaN is the largest; a window of pads only gives -inf.
    """
    for line in range(first, last):
        n, i = line // size[0], line % size[0]
        top = i * stride[0] - corner[0]
        t0, t1 = _inside(top, taps[0], image[0])
        for j in range(size[1]):
            left = j * stride[1] - corner[1]
            s0, s1 = _inside(left, taps[1], image[1])
            at = (line * size[1] + j) * step
            row = y[at : at + channels]
            if t0 == t1 or s0 == s1:
                row[:] = -np.inf
                continue
            begin = (n * image[0] + top + t0) * image[1] + left
            source = x[(begin + s0) * x_step : (begin + s0) * x_step + channels]
            for c in range(np.uint64(channels)):
                row[c] = source[c]
            for t in range(t0, t1):
                begin = (n * image[0] + top + t) * image[1] + left
                s = s0 + 1 if t == t0 else s0
                while s + 3 <= s1:
                    p = (begin + s) * x_step
                    a = x[p : p + channels]
                    b = x[p + x_step : p + x_step + channels]
                    d = x[p + 2 * x_step : p + 2 * x_step + channels]
                    for c in range(np.uint64(channels)):
                        m, v = row[c], a[c]
                        m = v if (v > m) | (v != v) else m
                        v = b[c]
                        m = v if (v > m) | (v != v) else m
                        v = d[c]
                        m = v if (v > m) | (v != v) else m
                        row[c] = m
                    s += 3
                while s < s1:
                    p = (begin + s) * x_step
                    a = x[p : p + channels]
                    for c in range(np.uint64(channels)):
                        m, v = row[c], a[c]
                        row[c] = v if (v > m) | (v != v) else m
                    s += 1


@jit
def max_pool_where(
    x: Real,
    x_step: int,
    y: Real,
    step: int,
    where: NDArray[np.unsignedinteger[Any]],
    none: int,
    channels: int,
    image: tuple[int, int],
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """As `max_pool`, and in `where` the number of the tap; of equal elements the first.

    `where` has pixels of `channels` elements; `none` stands for a window of pads only.
    """
    for line in range(first, last):
        n, i = line // size[0], line % size[0]
        top = i * stride[0] - corner[0]
        t0, t1 = _inside(top, taps[0], image[0])
        for j in range(size[1]):
            left = j * stride[1] - corner[1]
            s0, s1 = _inside(left, taps[1], image[1])
            at = (line * size[1] + j) * step
            row = y[at : at + channels]
            at = (line * size[1] + j) * channels
            tap = where[at : at + channels]
            if t0 == t1 or s0 == s1:
                row[:] = -np.inf
                tap[:] = none
                continue
            for t in range(t0, t1):
                begin = (n * image[0] + top + t) * image[1] + left
                for s in range(s0, s1):
                    p = (begin + s) * x_step
                    source = x[p : p + channels]
                    number = t * taps[1] + s
                    if t == t0 and s == s0:
                        for c in range(np.uint64(channels)):
                            row[c] = source[c]
                        tap[:] = number
                        continue
                    for c in range(np.uint64(channels)):
                        v, m, k = source[c], row[c], tap[c]
                        wins = (v > m) | (v != v)
                        row[c] = v if wins else m
                        tap[c] = number if wins else k


@jit
def average_pool(
    x: Real,
    x_step: int,
    y: Real,
    step: int,
    count: Real,
    channels: int,
    image: tuple[int, int],
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Sum of each window over `count` ``(height, width)``; otherwise as `max_pool`."""
    for line in range(first, last):
        n, i = line // size[0], line % size[0]
        top = i * stride[0] - corner[0]
        t0, t1 = _inside(top, taps[0], image[0])
        for j in range(size[1]):
            left = j * stride[1] - corner[1]
            s0, s1 = _inside(left, taps[1], image[1])
            at = (line * size[1] + j) * step
            row = y[at : at + channels]
            row[:] = 0
            for t in range(t0, t1):
                begin = (n * image[0] + top + t) * image[1] + left
                for s in range(s0, s1):
                    p = (begin + s) * x_step
                    source = x[p : p + channels]
                    for c in range(np.uint64(channels)):
                        row[c] += source[c]
            by = count[i, j]
            for c in range(np.uint64(channels)):
                row[c] /= by


@jit
def copy_columns(
    x: Real,
    x_step: int,
    columns: Real,
    group: tuple[int, int],
    image: tuple[int, int],
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Write the windows of rows ``[first, last)`` of all images to `columns`.

    One window after the other, tap by tap, ``group[1]`` channels each from ``group[0]`` on.
    """
    channels = group[1]
    deep = taps[0] * taps[1] * channels
    together = x_step == channels and dilation[1] == 1
    for line in range(first, last):
        n, i = line // size[0], line % size[0]
        for j in range(size[1]):
            left = j * stride[1] - corner[1]
            whole = together and left >= 0 and left + taps[1] <= image[1]
            at = ((line - first) * size[1] + j) * deep
            for t in range(taps[0]):
                row = i * stride[0] + t * dilation[0] - corner[0]
                target = columns[at + t * taps[1] * channels : at + (t + 1) * taps[1] * channels]
                if row < 0 or row >= image[0]:
                    target[:] = 0
                    continue
                begin = (n * image[0] + row) * image[1] * x_step + group[0]
                if whole:
                    source = x[begin + left * x_step : begin + left * x_step + target.size]
                    for c in range(np.uint64(target.size)):
                        target[c] = source[c]
                    continue
                for s in range(taps[1]):
                    column = left + s * dilation[1]
                    one = target[s * channels : (s + 1) * channels]
                    if column < 0 or column >= image[1]:
                        one[:] = 0
                        continue
                    p = begin + column * x_step
                    source = x[p : p + channels]
                    for c in range(np.uint64(channels)):
                        one[c] = source[c]
