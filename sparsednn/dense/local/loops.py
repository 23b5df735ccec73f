"""Compiled loops over tiles: columns of windows and their sums, pooling, normalisation.

Each works on some planes, images or channels only, ``[first, last)``, so that threads can share one
call out among them; none reads what another part writes. Inner loops count from 0 and do not
branch, or they would not become vector code. Must not know: threads, BLAS.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = [
    "add_columns",
    "average_pool",
    "average_pool_gradient",
    "fill_columns",
    "max_pool",
    "max_pool_2x2",
    "max_pool_gradient",
    "relu",
    "relu_gradient",
    "relu_gradient_in_place",
    "relu_in_place",
]

Real = NDArray[np.floating[Any]]


@jit
def _reach(outputs: int, size: int, stride: int, shift: int, first: int) -> tuple[int, int]:
    """Windows ``[low, high)`` from `first` to `outputs` whose tap, at `shift`, meets the tile."""
    if stride == 1:  # without divisions, which took as long as to copy the elements
        low = min(outputs, max(first, -shift))
        return low, max(low, min(outputs, size - shift))
    low = min(outputs, max(first, (-shift + stride - 1) // stride))
    return low, max(low, min(outputs, (size - 1 - shift) // stride + 1))


@jit
def _zero_edges(out: Real, rows: int, wo: int, low: int, high: int) -> None:
    """Zero what is left of `low` and from `high` on in the first `rows` rows."""
    step = np.uint64(wo)
    for j in range(low):
        for i in range(np.uint64(rows)):
            out[i * step + np.uint64(j)] = 0
    for j in range(high, wo):
        for i in range(np.uint64(rows)):
            out[i * step + np.uint64(j)] = 0


@jit
def _fill_tap(
    plane: Real,
    out: Real,
    size: tuple[int, int],
    rows: tuple[int, int],
    wo: int,
    stride: tuple[int, int],
    shift: tuple[int, int],
) -> None:
    """Write what one tap meets in a flat `plane` of `size`, for `rows` of windows, to `out`."""
    top, bottom = _reach(rows[1], size[0], stride[0], shift[0], rows[0])
    low, high = _reach(wo, size[1], stride[1], shift[1], 0)
    if top == bottom or low == high:
        out[:] = 0
        return
    out[: (top - rows[0]) * wo] = 0
    out[(bottom - rows[0]) * wo :] = 0
    inner = out[(top - rows[0]) * wo : (bottom - rows[0]) * wo]
    source = plane[(top * stride[0] + shift[0]) * size[1] :]
    if stride[0] == 1 and stride[1] == 1 and wo == size[1]:
        # As many windows as elements in a row: one run for all rows. At its ends elements of
        # the neighbouring rows come in, where zeros belong.
        a, b = np.uint64(low), np.uint64(low + shift[1])
        for j in range(np.uint64((bottom - top - 1) * wo + high - low)):
            inner[a + j] = source[b + j]
        _zero_edges(inner, bottom - top, wo, low, high)
        return
    if high - low < wo:
        _zero_edges(inner, bottom - top, wo, low, high)
    for i in range(bottom - top):
        a = np.uint64(i * wo + low)
        b = np.uint64(i * stride[0] * size[1] + low * stride[1] + shift[1])
        if stride[1] == 1:
            for j in range(np.uint64(high - low)):
                inner[a + j] = source[b + j]
        elif stride[1] == 2:
            for j in range(np.uint64(high - low)):
                inner[a + j] = source[b + np.uint64(2) * j]
        else:
            for j in range(np.uint64(high - low)):
                inner[a + j] = source[b + np.uint64(stride[1]) * j]


@jit
def _add_tap(
    part: Real,
    plane: Real,
    size: tuple[int, int],
    rows: tuple[int, int],
    wo: int,
    stride: tuple[int, int],
    shift: tuple[int, int],
) -> None:
    """Transpose of `_fill_tap`: add `part` to `plane`; zeros the edges of `part`."""
    top, bottom = _reach(rows[1], size[0], stride[0], shift[0], rows[0])
    low, high = _reach(wo, size[1], stride[1], shift[1], 0)
    if top == bottom or low == high:
        return
    inner = part[(top - rows[0]) * wo : (bottom - rows[0]) * wo]
    target = plane[(top * stride[0] + shift[0]) * size[1] :]
    if stride[0] == 1 and stride[1] == 1 and wo == size[1]:
        _zero_edges(inner, bottom - top, wo, low, high)
        a, b = np.uint64(low), np.uint64(low + shift[1])
        for j in range(np.uint64((bottom - top - 1) * wo + high - low)):
            target[b + j] += inner[a + j]
        return
    for i in range(bottom - top):
        a = np.uint64(i * wo + low)
        b = np.uint64(i * stride[0] * size[1] + low * stride[1] + shift[1])
        if stride[1] == 1:
            for j in range(np.uint64(high - low)):
                target[b + j] += inner[a + j]
        else:
            for j in range(np.uint64(high - low)):
                target[b + np.uint64(stride[1]) * j] += inner[a + j]


@jit
def fill_columns(
    x: Real,
    columns: Real,
    images: tuple[int, int],
    rows: tuple[int, int],
    wo: int,
    steps: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    """Write what each tap meets in the `rows` of windows of some `images` of `x` ``(b, c, h, w)``.

    Tap (i, j) of channel c of the n-th of the images goes to ``columns[n · steps[0] + ((c r + i) s
    + j) · steps[1]:]``, row of windows after row, `wo` elements each. `corner` is (top, left) pads;
    negative ones cut rows or columns away.
    """
    _, channels, h, w = x.shape
    long = (rows[1] - rows[0]) * wo
    for n in range(images[1] - images[0]):
        for c in range(channels):
            plane = x[images[0] + n, c].reshape(h * w)
            for ti in range(taps[0]):
                for tj in range(taps[1]):
                    at = n * steps[0] + ((c * taps[0] + ti) * taps[1] + tj) * steps[1]
                    shift = (ti * dilation[0] - corner[0], tj * dilation[1] - corner[1])
                    _fill_tap(plane, columns[at : at + long], (h, w), rows, wo, stride, shift)


@jit
def add_columns(
    columns: Real,
    x: Real,
    images: tuple[int, int],
    rows: tuple[int, int],
    wo: int,
    steps: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    corner: tuple[int, int],
) -> None:
    """Add to each element of `x` what `fill_columns` would have taken from it (its transpose).

    `columns` are spoiled.
    """
    _, channels, h, w = x.shape
    long = (rows[1] - rows[0]) * wo
    for n in range(images[1] - images[0]):
        for c in range(channels):
            plane = x[images[0] + n, c].reshape(h * w)
            for ti in range(taps[0]):
                for tj in range(taps[1]):
                    at = n * steps[0] + ((c * taps[0] + ti) * taps[1] + tj) * steps[1]
                    shift = (ti * dilation[0] - corner[0], tj * dilation[1] - corner[1])
                    _add_tap(columns[at : at + long], plane, (h, w), rows, wo, stride, shift)


@jit
def max_pool_2x2(
    x: Real, y: Real, where: NDArray[np.unsignedinteger[Any]], first: int, last: int
) -> None:
    """Largest of 2×2 elements, stride 2, no pads, on planes ``(n, h, w)``; `where` 0 to 3."""
    for n in range(first, last):
        for i in range(y.shape[1]):
            upper, lower = x[n, 2 * i], x[n, 2 * i + 1]
            best, tap = y[n, i], where[n, i]
            two, one = np.uint64(2), np.uint64(1)
            for j in range(np.uint64(y.shape[2])):
                a, b = upper[two * j], upper[two * j + one]
                c, d = lower[two * j], lower[two * j + one]
                wins = (b > a) | (b != b)
                m = b if wins else a
                t = 1 if wins else 0
                wins = (d > c) | (d != d)
                k = d if wins else c
                u = 3 if wins else 2
                wins = (k > m) | (k != k)
                best[j] = k if wins else m
                tap[j] = u if wins else t


@jit
def max_pool(
    x: Real,
    y: Real,
    where: NDArray[np.unsignedinteger[Any]],
    none: int,
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Largest element of each window on planes ``(n, h, w)``, and the number of its tap.

    `none` stands in `where` for a window of pads only.
    """
    h, w = x.shape[1:]
    ho, wo = y.shape[1:]
    for n in range(first, last):
        for i in range(ho):
            best, tap = y[n, i], where[n, i]
            best[:] = -np.inf
            tap[:] = none
            for ti in range(taps[0]):
                row = i * stride[0] + ti - corner[0]
                if row < 0 or row >= h:
                    continue
                for tj in range(taps[1]):
                    number = ti * taps[1] + tj
                    shift = tj - corner[1]
                    low = min(wo, max(0, (-shift + stride[1] - 1) // stride[1]))
                    high = max(low, min(wo, (w - 1 - shift) // stride[1] + 1))
                    if low == high:
                        continue
                    source = x[n, row, low * stride[1] + shift :]
                    most, at = best[low:high], tap[low:high]
                    # The compiler makes vector code of a step that it knows.
                    if stride[1] == 2:
                        two = np.uint64(2)
                        for j in range(np.uint64(high - low)):
                            v, m, t = source[two * j], most[j], at[j]
                            wins = (v > m) | (v != v) | (t == none)
                            most[j] = v if wins else m
                            at[j] = number if wins else t
                    else:
                        step = np.uint64(stride[1])
                        for j in range(np.uint64(high - low)):
                            v, m, t = source[step * j], most[j], at[j]
                            wins = (v > m) | (v != v) | (t == none)
                            most[j] = v if wins else m
                            at[j] = number if wins else t


@jit
def max_pool_gradient(
    dy: Real,
    where: NDArray[np.unsignedinteger[Any]],
    dx: Real,
    none: int,
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Transpose of `max_pool`; writes all of the planes of `dx`."""
    w = dx.shape[2]
    ho, wo = dy.shape[1:]
    # Where the taps lie from the corner of their window on, in a flat plane. Unsigned numbers wrap
    # around, so a corner in the pads is right, too.
    offsets = np.empty(taps[0] * taps[1], np.uint64)
    for number in range(offsets.size):
        offsets[number] = number // taps[1] * w + number % taps[1]
    step = np.uint64(stride[1])
    for n in range(first, last):
        plane = dx[n].reshape(dx.shape[1] * w)
        plane[:] = 0
        for i in range(ho):
            from_y, tap = dy[n, i], where[n, i]
            at = np.uint64((i * stride[0] - corner[0]) * w - corner[1])
            for j in range(np.uint64(wo)):
                met = np.uint64(tap[j])
                if met != none:
                    plane[at + j * step + offsets[met]] += from_y[j]


@jit
def average_pool(
    x: Real,
    y: Real,
    count: Real,
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Sum of each window over `count` ``(ho, wo)``, on planes ``(n, h, w)``."""
    h, w = x.shape[1:]
    ho, wo = y.shape[1:]
    for n in range(first, last):
        for i in range(ho):
            top = i * stride[0] - corner[0]
            for j in range(wo):
                left = j * stride[1] - corner[1]
                total = x.dtype.type(0)
                for row in range(max(0, top), min(h, top + taps[0])):
                    for column in range(max(0, left), min(w, left + taps[1])):
                        total += x[n, row, column]
                y[n, i, j] = total / count[i, j]


@jit
def average_pool_gradient(
    dy: Real,
    dx: Real,
    count: Real,
    taps: tuple[int, int],
    stride: tuple[int, int],
    corner: tuple[int, int],
    first: int,
    last: int,
) -> None:
    """Transpose of `average_pool`; writes all of the planes of `dx`."""
    h, w = dx.shape[1:]
    ho, wo = dy.shape[1:]
    for n in range(first, last):
        dx[n] = 0
        for i in range(ho):
            top = i * stride[0] - corner[0]
            for j in range(wo):
                left = j * stride[1] - corner[1]
                share = dy[n, i, j] / count[i, j]
                for row in range(max(0, top), min(h, top + taps[0])):
                    for column in range(max(0, left), min(w, left + taps[1])):
                        dx[n, row, column] += share


@jit
def relu(x: Real, y: Real) -> None:
    """``max(x, 0)`` of flat arrays that do not overlap."""
    zero = x.dtype.type(0)
    for i in range(np.uint64(x.size)):
        v = x[i]
        y[i] = zero if v <= zero else v


@jit
def relu_in_place(x: Real) -> None:
    """`relu` on one array: with two that overlap the compiler's vector code is left out."""
    zero = x.dtype.type(0)
    for i in range(np.uint64(x.size)):
        v = x[i]
        x[i] = zero if v <= zero else v


@jit
def relu_gradient(dy: Real, y: Real, dx: Real) -> None:
    """`dy`, and 0 where ``y == 0``, in flat arrays that do not overlap."""
    zero = dy.dtype.type(0)
    for i in range(np.uint64(y.size)):
        v = dy[i]
        dx[i] = v if y[i] != 0 else zero


@jit
def relu_gradient_in_place(dy: Real, y: Real) -> None:
    """`relu_gradient` that overwrites `dy`."""
    zero = dy.dtype.type(0)
    for i in range(np.uint64(y.size)):
        v = dy[i]
        dy[i] = v if y[i] != 0 else zero
