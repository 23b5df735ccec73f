"""Compiled loops of batch normalisation, channel by channel.

A channel is summed by one thread in a fixed order, in lanes that the compiler can keep in a vector,
so sums do not depend on the number of threads. Must not know: threads, other ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = ["gradient_sums", "normalize", "normalize_gradient", "squares", "sums"]

Real = NDArray[np.floating[Any]]
Wide = NDArray[np.float64]

_LANES = 16


@jit
def sums(x: Real, out: Wide, first: int, last: int) -> None:
    """``out[c] = Σ x[:, c, :]`` with `x` ``(images, channels, pixels)``."""
    images, _, pixels = x.shape
    lanes = np.empty(_LANES)
    for c in range(first, last):
        lanes[:] = 0
        for n in range(images):
            row = x[n, c]
            for j in range(pixels // _LANES):
                part = row[j * _LANES : (j + 1) * _LANES]
                for lane in range(_LANES):
                    lanes[lane] += np.float64(part[lane])
            for j in range(pixels // _LANES * _LANES, pixels):
                lanes[j % _LANES] += np.float64(row[j])
        out[c] = lanes.sum()


@jit
def squares(x: Real, mean: Wide, out: Wide, first: int, last: int) -> None:
    """``out[c] = Σ (x[:, c, :] - mean[c])²``."""
    images, _, pixels = x.shape
    lanes = np.empty(_LANES)
    for c in range(first, last):
        lanes[:] = 0
        m = mean[c]
        for n in range(images):
            row = x[n, c]
            for j in range(pixels // _LANES):
                part = row[j * _LANES : (j + 1) * _LANES]
                for lane in range(_LANES):
                    d = np.float64(part[lane]) - m
                    lanes[lane] += d * d
            for j in range(pixels // _LANES * _LANES, pixels):
                d = np.float64(row[j]) - m
                lanes[j % _LANES] += d * d
        out[c] = lanes.sum()


@jit
def gradient_sums(
    dy: Real, x: Real, mean: Wide, plain: Wide, weighted: Wide, first: int, last: int
) -> None:
    """``plain[c] = Σ dy`` and ``weighted[c] = Σ dy · (x - mean)``."""
    images, _, pixels = x.shape
    ones, products = np.empty(_LANES), np.empty(_LANES)
    for c in range(first, last):
        ones[:] = 0
        products[:] = 0
        m = mean[c]
        for n in range(images):
            row, from_y = x[n, c], dy[n, c]
            for j in range(pixels // _LANES):
                part, g = row[j * _LANES : (j + 1) * _LANES], from_y[j * _LANES : (j + 1) * _LANES]
                for lane in range(_LANES):
                    wide = np.float64(g[lane])
                    ones[lane] += wide
                    products[lane] += wide * (np.float64(part[lane]) - m)
            for j in range(pixels // _LANES * _LANES, pixels):
                wide = np.float64(from_y[j])
                ones[j % _LANES] += wide
                products[j % _LANES] += wide * (np.float64(row[j]) - m)
        plain[c] = ones.sum()
        weighted[c] = products.sum()


@jit
def normalize(
    x: Real, mean: Real, scale: Real, beta: Real, y: Real, channels: int, first: int, last: int
) -> None:
    """``(x - mean) · scale + beta`` on planes ``(images · channels, pixels)``."""
    for n in range(first, last):
        c = n % channels
        m, a, b = mean[c], scale[c], beta[c]
        row, out = x[n], y[n]
        for j in range(row.size):
            out[j] = (row[j] - m) * a + b


@jit
def normalize_gradient(
    dy: Real,
    x: Real,
    mean: Real,
    slope: Real,
    scale: Real,
    mean_dy: Real,
    dx: Real,
    channels: int,
    first: int,
    last: int,
) -> None:
    """``(dy - mean_dy - (x - mean) · slope) · scale`` on planes ``(images · channels, pixels)``."""
    for n in range(first, last):
        c = n % channels
        m, t, a, g = mean[c], slope[c], scale[c], mean_dy[c]
        row, from_y, out = x[n], dy[n], dx[n]
        for j in range(row.size):
            out[j] = (from_y[j] - g - (row[j] - m) * t) * a
