"""Convolutions as matrices: the kernel alone (im2col), or the whole convolution (Toeplitz).

Images are flattened as PyTorch and ONNX do it (NCHW): the value of channel ``c`` at ``(y, x)`` is
input number ``(c·h + y)·w + x``. The whole convolution is the sparse matrix

    T[(k·h_out + y)·w_out + x, (c·h + y·stride + i·dilation - top)·w + (x·…)] = kernel[k, c, i, j]

wherever the column lies inside the image, so ``T @ image`` is what ``conv2d`` (a
cross-correlation) gives, and T chains with other layers. It holds each kernel weight once per
output pixel: fine for the images of small networks, not for those of photographs. Pooling is no
matrix that these chains hold (a maximum is not linear). Knows nothing about files.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, ShapeError
from sparsednn.formats._csr import CsrArrays, row_pointers

__all__ = ["Convolution", "kernel_matrix", "same_padding", "toeplitz"]


@dataclass(frozen=True, slots=True)
class Convolution:
    """The geometry of one convolution.

    Parameters
    ----------
    kernel
        Shape ``(k, c / groups, r, s)`` of the kernel.
    image
        ``(c, h, w)`` of what enters.
    stride, dilation
        Vertical and horizontal.
    pads
        Zeros added at the top, left, bottom, right.

    Raises
    ------
    ShapeError
        If the kernel does not fit the image.
    """

    kernel: tuple[int, int, int, int]
    image: tuple[int, int, int]
    stride: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        """Check that there is at least one output pixel, and that channels form groups."""
        k, c, r, s = self.kernel
        shown = "×".join(map(str, self.image))
        if min(*self.kernel, *self.image, *self.stride, *self.dilation) < 1 or min(self.pads) < 0:
            raise ShapeError(
                f"kernel {self.kernel}, image {shown}, strides {self.stride} and dilations "
                f"{self.dilation} must be positive, pads {self.pads} must not be negative"
            )
        if self.image[0] % c or k % (self.image[0] // c):
            raise ShapeError(
                f"kernel {self.kernel} takes {c} channels, the image {shown} has {self.image[0]}: "
                "no number of groups fits"
            )
        if min(self.output[1:]) < 1:
            raise ShapeError(f"kernel {r}×{s} is larger than the padded image {shown}")
        if math.prod(self.image) >= 2**31:
            raise ShapeError(f"image {shown} has more than 2^31 - 1 values")

    @property
    def groups(self) -> int:
        """Groups of channels that do not mix; as many as there are channels: depthwise."""
        return self.image[0] // self.kernel[1]

    @property
    def output(self) -> tuple[int, int, int]:
        """``(k, h_out, w_out)`` of what comes out."""
        sizes = [
            (size + before + after - dilation * (taps - 1) - 1) // stride + 1
            for size, before, after, dilation, taps, stride in zip(
                self.image[1:],
                self.pads[:2],
                self.pads[2:],
                self.dilation,
                self.kernel[2:],
                self.stride,
                strict=True,
            )
        ]
        return self.kernel[0], sizes[0], sizes[1]

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_out, n_in)`` of the matrix."""
        return math.prod(self.output), math.prod(self.image)


def same_padding(taps: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> tuple[int, ...]:
    """Pads (top, left, bottom, right) that keep the image's size at stride 1.

    Where they cannot be equal the larger one is at the bottom or right, as in PyTorch.
    """
    total = [d * (t - 1) for t, d in zip(taps, dilation, strict=True)]
    return total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2


def kernel_matrix(kernel: NDArray[Any]) -> NDArray[Any]:
    """Flatten a kernel ``(k, c, r, s)`` to ``(k, c·r·s)``: its product with im2col patches.

    Column ``(channel·r + i)·s + j`` is the weight of that channel at tap ``(i, j)``.
    """
    return kernel.reshape(kernel.shape[0], -1)


def toeplitz(kernel: NDArray[np.float32], geometry: Convolution) -> CsrArrays:
    """Build the matrix ``geometry.shape`` of a whole convolution; zeros of the kernel are left out.

    Parameters
    ----------
    kernel
        ``geometry.kernel`` float32.
    geometry
        Image, stride, pads and dilation.

    Returns
    -------
    CsrArrays
        int64 row pointers, int32 columns (ascending), float32 values.

    Raises
    ------
    InputError
        If a weight of the kernel is NaN or infinite, naming its place.
    MemoryError
        If the matrix is larger than the memory of this machine, saying how large.
    """
    if not np.isfinite(kernel).all():
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(kernel))[0])
        raise InputError(f"kernel weight {at} is {kernel[at]}: it must be finite")
    (_, h, w), (k, h_out, w_out) = geometry.image, geometry.output
    _check_memory(geometry, 0)
    y, y_inside = _positions(geometry, 0)
    x, x_inside = _positions(geometry, 1)
    places = np.nonzero(kernel)
    nnz = int(np.sum(y_inside.sum(axis=1)[places[2]] * x_inside.sum(axis=1)[places[3]]))
    _check_memory(geometry, nnz)
    counts = np.empty((k, h_out * w_out), np.int64)
    indices = np.empty(nnz, np.int32)
    values = np.empty(nnz, np.float32)
    per_group = k // geometry.groups
    ends = np.searchsorted(places[0], np.arange(k + 1))
    done = 0
    for out in range(k):  # one output channel at a time bounds the temporary arrays
        c, i, j = (part[ends[out] : ends[out + 1]] for part in places[1:])
        channel = c + (out // per_group) * geometry.kernel[1]
        # Axes (y, x, tap): in C order rows ascend, and within one row the columns do, because
        # the taps come in the order of channel, i, j.
        inside = y_inside[i].T[:, None, :] & x_inside[j].T[None, :, :]
        column = (channel * h + y[i].T)[:, None, :] * w + x[j].T[None, :, :]
        weight = np.broadcast_to(kernel[out, c, i, j], inside.shape)
        counts[out] = inside.sum(axis=2).reshape(-1)
        end = done + int(counts[out].sum())
        indices[done:end] = column[inside]
        values[done:end] = weight[inside]
        done = end
    return CsrArrays(row_pointers(counts.reshape(-1)), indices, values)


def _positions(geometry: Convolution, axis: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Where tap t of output p reads along one axis, ``(taps, outputs)``; and whether inside."""
    taps = np.arange(geometry.kernel[2 + axis])[:, None] * geometry.dilation[axis]
    outputs = np.arange(geometry.output[1 + axis])[None, :] * geometry.stride[axis]
    at = taps + outputs - geometry.pads[axis]
    return at, (at >= 0) & (at < geometry.image[1 + axis])


def _check_memory(geometry: Convolution, nnz: int) -> None:
    """Refuse what could only end with the system killing the program."""
    need = 8 * nnz + 16 * geometry.shape[0]
    if not hasattr(os, "sysconf"):
        return
    have = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if need > have:
        raise MemoryError(
            f"the convolution of {'×'.join(map(str, geometry.image))} images is a matrix of "
            f"{nnz} weights, {need / 2**30:.1f} GiB; this machine has {have / 2**30:.1f} GiB"
        )
