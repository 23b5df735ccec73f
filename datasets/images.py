"""Images as binary inputs of any square size: the Fourier interpolation of the Graph Challenge.

The challenge made its inputs of MNIST in this way (graphchallenge.org, Sparse DNN): all images
stand side by side in one wide picture, the picture is interpolated by zero-padding its 2-D
Fourier transform, and a pixel becomes 1 where the magnitude exceeds half of the largest one.
Because it is one picture, images ring into their neighbours and share one maximum, so an image
cannot be interpolated alone: a subset is the subset of the transform of all.

The padded picture of 60,000 images has 31 GB at 256 × 256, so it is never formed. The transform
is a product of a horizontal and a vertical one: the horizontal one is done once by FFT and kept
(28 long rows), the vertical one is a small matrix that is applied to a few images at a time,
once to find the maximum and once to compare with it.

This module knows NumPy arrays and `InputSet`; no file, no data set, no network.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, ShapeError
from sparsednn.inputs import InputSet

__all__ = ["interpolate_images", "square_side"]

# Pixels that are interpolated at a time: two float64 arrays of this size take 2 MiB, about an L2
# cache. Less makes the matrix products too small for two threads.
_CHUNK_PIXELS = 1 << 17

Real = NDArray[np.float64]


def square_side(neurons: int) -> int:
    """Side of the square image that has `neurons` pixels.

    >>> square_side(1024)
    32

    Raises
    ------
    InputError
        If `neurons` is not the square of a positive whole number.
    """
    side = math.isqrt(neurons) if neurons > 0 else 0
    if side < 1 or side * side != neurons:
        raise InputError(
            f"an image needs a square number of neurons (1024 = 32 × 32), found {neurons}"
        )
    return side


def interpolate_images(
    images: NDArray[np.uint8], side: int, *, limit: int | None = None, name: str = "images"
) -> InputSet:
    """Interpolate images to ``side × side`` and make them binary, as the Graph Challenge does.

    With the images side by side in a picture ``P (h, w·n)``, the value of pixel (p, m) is
    ``|ifft2(pad(fftshift(fft2(P))))[p, m]|``, where pad adds zeros around the transform until it
    is ``(side, side·n)``. A pixel is 1 where its value is more than half of the largest value of
    the whole picture, else 0. Double precision throughout.

    Parameters
    ----------
    images
        ``(n, h, w)``, uint8.
    side
        Height and width of the results in pixels: at least ``h`` and ``w``, at most 2**15.
    limit
        Return the first `limit` images only, exactly as they are in the set of all `n`: the
        transform and its maximum are those of all images, so this saves memory, and about half of
        the time. None, or any number from `n` upwards: all.
    name
        Name of the input set.

    Returns
    -------
    InputSet
        ``side²`` features, one column per image, all stored entries 1 (``values`` is None).
        Feature ``column · side + row`` (0-based) is the pixel (row, column). Indices are uint16 as
        long as ``side² <= 65536``, else int32.

    Raises
    ------
    InputError
        If there is no image, all are black, they are not uint8, or `side` or `limit` is out of
        range.
    ShapeError
        If `images` is not three-dimensional.

    Notes
    -----
    Peak memory beside the arguments: ``8·h·side·n`` bytes for the horizontal transform (3.4 GB for
    60,000 images of 28 × 28 at side 256), plus 2 bytes (uint16) per nonzero; afterwards, without
    the transform, twice the latter.
    """
    pixels = np.asarray(images)
    if pixels.ndim != 3:
        raise ShapeError(f"{name}: images must be (images, height, width), found {pixels.shape}")
    if pixels.dtype != np.uint8:
        raise InputError(f"{name}: images must be uint8, found {pixels.dtype}")
    n, height, width = pixels.shape
    if not pixels.size:
        raise InputError(f"{name}: there are no pixels in images of shape {pixels.shape}")
    if not max(height, width) <= side <= 2**15:
        raise InputError(
            f"{name}: images of {height} × {width} pixels can be interpolated to a side of "
            f"{max(height, width)} to 32768 pixels, found {side}"
        )
    if limit is not None and limit < 0:
        raise InputError(f"{name}: limit must not be negative, found {limit}")
    if not pixels.any():
        raise InputError(f"{name}: all images are black")
    wanted = n if limit is None else min(limit, n)

    picture = _Picture.of(pixels, side)
    # Squares are compared, hence a quarter. Where a value is half of the maximum in exact
    # arithmetic (side == w, say), rounding must not decide, nor the BLAS of the day: it is 0.
    threshold = picture.largest_square() / 4.0 * (1.0 + 1e-12)
    dtype = np.uint16 if side * side <= 2**16 else np.int32
    parts: list[NDArray[Any]] = []
    indptr = np.zeros(wanted + 1, np.int64)
    done = total = 0
    for squares in picture.squares(wanted):
        count = squares.shape[0] // side
        lit = np.flatnonzero(squares > threshold)
        ends = np.arange(1, count + 1) * (side * side)
        indptr[done + 1 : done + count + 1] = total + np.searchsorted(lit, ends)
        done, total = done + count, total + lit.size
        parts.append((lit % (side * side)).astype(dtype))
    del picture  # before the parts are joined: it is the larger one
    indices = np.concatenate(parts) if parts else np.zeros(0, dtype)
    return InputSet(indptr, indices, None, side * side, name=name, check=False)


@dataclass(frozen=True, slots=True)
class _Picture:
    """All images side by side, interpolated horizontally; the vertical half is still to do.

    An even number of samples has a Nyquist term, frequency -N/2, and no partner at +N/2. Padding
    leaves it alone on the negative side, so it becomes a single complex exponential, and the
    interpolated picture is complex. Horizontally (of ``N = w·n`` samples) its exponential is
    ``e(m) = exp(-iπ·m·w/side)``, whatever `n`. So with the rest, ``r`` (real, irfft), and the
    Nyquist coefficients ``c`` (real, one per row), the picture is ``V (r + c e)``, where the
    vertical matrix is ``V = R + u a`` with a real ``R`` and ``a = (1, -1, 1, …)`` for the vertical
    Nyquist term. Both real parts of that are products with ``[r; Re e; Im e]``, the second one
    with three rows only, ``[a r; Re e; Im e]``: the picture costs a real product, not a complex
    one.

    Attributes
    ----------
    rows
        ``(h, side·n)``: r.
    exponential
        ``(2·side, 2)``: real and imaginary part of e(m), which has a period of ``2·side``.
    alternating
        ``(h,)``: a.
    real, imaginary
        ``(h + 2, side)`` and ``(3, side)``: what the columns above are multiplied with, transposed.
    side
        Height of the picture.
    """

    rows: Real
    exponential: Real
    alternating: Real
    real: Real
    imaginary: Real
    side: int

    @classmethod
    def of(cls, images: NDArray[np.uint8], side: int) -> _Picture:
        _, height, width = images.shape
        rows, nyquist = _interpolate_rows(images, side)
        angle = -np.pi / side * (np.arange(2 * side) * width % (2 * side))
        vertical, single = _vertical(height, side)
        alternating = np.where(np.arange(height) % 2, -1.0, 1.0)
        # V c, the column that e(m) is multiplied with: real and imaginary part.
        column = vertical @ nyquist + single * (alternating @ nyquist)
        full = vertical + np.outer(single.real, alternating)
        return cls(
            rows=rows,
            exponential=np.stack([np.cos(angle), np.sin(angle)], axis=1),
            alternating=alternating,
            real=np.vstack([full.T, column.real, -column.imag]),
            imaginary=np.vstack([single.imag, column.imag, column.real]),
            side=side,
        )

    def squares(self, images: int) -> Iterator[Real]:
        """Squared magnitudes of the first `images`, a few images at a time.

        Yields ``(side·count, side)``, one row per column of the picture: flattened, pixel (row,
        column) of an image is number ``column·side + row``. The array is valid until the next one
        is asked for.
        """
        side, height = self.side, self.rows.shape[0]
        step = max(1, _CHUNK_PIXELS // (side * side)) * side
        a, b, c = (np.empty((step, k)) for k in (height + 2, 3, side))
        d = np.empty((step, side))
        for first in range(0, images * side, step):
            last = min(first + step, images * side)
            k = last - first
            wave = self.exponential[np.arange(first, last) % (2 * side)]
            a[:k, :height] = self.rows[:, first:last].T
            b[:k, 0] = a[:k, :height] @ self.alternating
            a[:k, height:] = b[:k, 1:] = wave
            np.matmul(a[:k], self.real, out=c[:k])
            np.matmul(b[:k], self.imaginary, out=d[:k])
            np.multiply(c[:k], c[:k], out=c[:k])
            np.multiply(d[:k], d[:k], out=d[:k])
            yield np.add(c[:k], d[:k], out=c[:k])

    def largest_square(self) -> float:
        """Largest squared magnitude of the whole picture."""
        images = self.rows.shape[1] // self.side
        return max(float(squares.max()) for squares in self.squares(images))


def _interpolate_rows(images: NDArray[np.uint8], side: int) -> tuple[Real, Real]:
    """Interpolate each row of pixels, ``w·n`` samples, to ``side·n``, without the Nyquist term.

    Returns the rows ``(h, side·n)`` and the Nyquist terms ``(h,)`` (zeros if ``w·n`` is odd).
    """
    from scipy import fft

    n, height, width = images.shape
    before, after = n * width, n * side
    rows = np.empty((height, after))
    nyquist = np.zeros(height)
    spectrum = np.zeros(after // 2 + 1, np.complex128)
    for i in range(height):
        # One row at a time: the spectra of all rows would double the memory.
        half = fft.rfft(images[:, i, :].ravel().astype(np.float64))
        if before % 2 == 0:
            nyquist[i] = half[-1].real / before
            half[-1] = 0.0
        # irfft divides by its own length; a sample must keep its value where it is hit again.
        spectrum[: half.size] = half * (side / width)
        rows[i] = fft.irfft(spectrum, after)
    return rows, nyquist


def _vertical(height: int, side: int) -> tuple[Real, NDArray[np.complex128]]:
    """Return the matrix that interpolates `height` samples to `side`: real part and Nyquist term.

    Returns ``R (side, height)`` and ``u (side,)``; the whole matrix is ``R + u a``, a = (1, -1, …).
    """
    distance = np.arange(side)[:, None] / side - np.arange(height)[None, :] / height
    frequencies = np.arange(1, (height - 1) // 2 + 1)
    real = 1.0 + 2.0 * np.cos(2.0 * np.pi * distance[:, :, None] * frequencies).sum(axis=2)
    single = np.zeros(side, np.complex128)
    if height % 2 == 0:
        single = np.exp(-1j * np.pi * height / side * np.arange(side)) / height
    return real / height, single
