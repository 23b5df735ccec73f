"""The readable backend: one product or sum for each tap of the window; the truth for the others.

Uses only what NumPy and CuPy share, so it is also what a GPU runs for all that is no convolution.
Must not know: blocks that fit in caches, threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.dense.local.windows import check_output, output_size, pad, tap_slices, unpad
from sparsednn.errors import ShapeError

__all__ = ["ReferenceBackend", "check_convolution", "where_dtype"]


def check_convolution(x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], groups: int) -> None:
    """Raise ShapeError unless channels, filters and groups of both fit together."""
    if len(x_shape) != 4 or len(kernel_shape) != 4 or 0 in kernel_shape[2:]:
        raise ShapeError(
            f"convolution: found an input {tuple(x_shape)} and a kernel {tuple(kernel_shape)}, "
            "expected (images, channels, height, width) and (filters, channels, r, s)"
        )
    if groups < 1 or x_shape[1] != kernel_shape[1] * groups or kernel_shape[0] % groups:
        raise ShapeError(
            f"convolution: {x_shape[1]} channels and {kernel_shape[0]} filters do not fit a kernel "
            f"{tuple(kernel_shape)} in {groups} groups"
        )


def where_dtype(taps: Pair) -> type[np.unsignedinteger[Any]]:
    """Smallest type for the number of a tap; its largest value says that there was none."""
    numbers = taps[0] * taps[1]
    return np.uint8 if numbers < 2**8 else np.uint16 if numbers < 2**16 else np.uint32


def _taps(taps: Pair) -> Iterator[Pair]:
    return product(range(taps[0]), range(taps[1]))


class ReferenceBackend:
    """`LocalBackend` on the array module `xp` (numpy or cupy).

    Parameters
    ----------
    threads
        Not used: each product is the library's own.
    xp
        Module of the arrays.
    """

    name = "reference"
    on_device = False

    def __init__(self, threads: int = 1, xp: Any = np) -> None:
        self.threads = threads
        self.xp = xp

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
        check_convolution(x.shape, kernel.shape, groups)
        xp, (b, c), (k, _, *taps) = self.xp, x.shape[:2], kernel.shape
        ho, wo = output_size(x.shape, (taps[0], taps[1]), stride, pads, dilation)
        padded = pad(xp, x, pads)
        y = xp.zeros((b, groups, k // groups, ho * wo), x.dtype)
        for i, j in _taps((taps[0], taps[1])):
            rows, columns = tap_slices((i, j), (ho, wo), stride, dilation)
            met = padded[:, :, rows, columns].reshape(b, groups, c // groups, ho * wo)
            y += xp.matmul(self._tap(kernel, i, j, groups), met)
        return y.reshape(b, k, ho, wo)

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
        check_convolution(x_shape, kernel.shape, groups)
        xp, (b, c, h, w), (k, _, *taps) = self.xp, x_shape, kernel.shape
        check_output(dy.shape, x_shape, k, (taps[0], taps[1]), stride, pads, dilation)
        ho, wo = dy.shape[2:]
        top, left, bottom, right = pads
        padded = xp.zeros((b, c, top + h + bottom, left + w + right), dy.dtype)
        grouped = dy.reshape(b, groups, k // groups, ho * wo)
        for i, j in _taps((taps[0], taps[1])):
            rows, columns = tap_slices((i, j), (ho, wo), stride, dilation)
            part = xp.matmul(self._tap(kernel, i, j, groups).swapaxes(-1, -2), grouped)
            padded[:, :, rows, columns] += part.reshape(b, c, ho, wo)
        return unpad(xp, padded, x_shape, pads)

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
        check_convolution(x.shape, kernel_shape, groups)
        xp, (b, c), (k, _, *taps) = self.xp, x.shape[:2], kernel_shape
        check_output(dy.shape, x.shape, k, (taps[0], taps[1]), stride, pads, dilation)
        ho, wo = dy.shape[2:]
        padded = pad(xp, x, pads)
        grouped = dy.reshape(b, groups, k // groups, ho * wo)
        dkernel = xp.zeros(kernel_shape, x.dtype)
        for i, j in _taps((taps[0], taps[1])):
            rows, columns = tap_slices((i, j), (ho, wo), stride, dilation)
            met = padded[:, :, rows, columns].reshape(b, groups, c // groups, ho * wo)
            part = xp.matmul(grouped, met.swapaxes(-1, -2)).sum(axis=0)
            dkernel[:, :, i, j] = part.reshape(k, c // groups)
        return dkernel

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
        """See `LocalBackend.convolution_gradients`."""
        dx = self.convolution_input_gradient(
            dy, kernel, x.shape, stride=stride, pads=pads, dilation=dilation, groups=groups
        )
        dkernel = self.convolution_kernel_gradient(
            x, dy, kernel.shape, stride=stride, pads=pads, dilation=dilation, groups=groups
        )
        return dx, dkernel

    def max_pool(
        self, x: Array, *, taps: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0)
    ) -> tuple[Array, Array]:
        """See `LocalBackend.max_pool`; `where` has the number of the tap, row by row."""
        xp = self.xp
        size = output_size(x.shape, taps, stride, pads)
        padded = pad(xp, x, pads, -np.inf)
        is_image = pad(xp, xp.ones((1, 1, *x.shape[2:]), bool), pads, False)
        dtype = where_dtype(taps)
        none = np.iinfo(dtype).max
        y = xp.full((*x.shape[:2], *size), -np.inf, x.dtype)
        where = xp.full(y.shape, none, dtype)
        for number, tap in enumerate(_taps(taps)):
            met = (slice(None), slice(None), *tap_slices(tap, size, stride, (1, 1)))
            values = padded[met]
            wins = is_image[met] & ((where == none) | (values > y) | xp.isnan(values))
            y = xp.where(wins, values, y)
            where = xp.where(wins, dtype(number), where)
        return y, where

    def max_pool_gradient(
        self,
        dy: Array,
        where: Array,
        x_shape: Shape,
        *,
        taps: Pair,
        stride: Pair,
        pads: Pads = (0, 0, 0, 0),
    ) -> Array:
        """See `LocalBackend.max_pool_gradient`."""
        return self._spread(
            lambda number: self.xp.where(where == number, dy, dy.dtype.type(0)),
            dy,
            x_shape,
            (taps, stride, pads),
        )

    def average_pool(
        self, x: Array, *, taps: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0), count: float | Array
    ) -> Array:
        """See `LocalBackend.average_pool`."""
        size = output_size(x.shape, taps, stride, pads)
        padded = pad(self.xp, x, pads)
        total = self.xp.zeros((*x.shape[:2], *size), x.dtype)
        for tap in _taps(taps):
            rows, columns = tap_slices(tap, size, stride, (1, 1))
            total += padded[:, :, rows, columns]
        total /= count
        return total

    def average_pool_gradient(
        self,
        dy: Array,
        x_shape: Shape,
        *,
        taps: Pair,
        stride: Pair,
        pads: Pads = (0, 0, 0, 0),
        count: float | Array,
    ) -> Array:
        """See `LocalBackend.average_pool_gradient`."""
        share = (dy / count).astype(dy.dtype, copy=False)
        return self._spread(lambda number: share, dy, x_shape, (taps, stride, pads))

    def relu(self, x: Array, *, in_place: bool = False) -> Array:
        """See `LocalBackend.relu`."""
        return self.xp.maximum(x, x.dtype.type(0), out=x if in_place else None)

    def relu_gradient(self, dy: Array, y: Array, *, in_place: bool = False) -> Array:
        """See `LocalBackend.relu_gradient`."""
        if not in_place:
            return self.xp.where(y == 0, dy.dtype.type(0), dy)
        dy[y == 0] = 0
        return dy

    def channel_sums(self, x: Array) -> Array:
        """See `LocalBackend.channel_sums`."""
        return x.sum(axis=(0, 2, 3), dtype=np.float64)

    def channel_squares(self, x: Array, mean: Array) -> Array:
        """See `LocalBackend.channel_squares`."""
        return ((x.astype(np.float64) - self._wide(mean)) ** 2).sum(axis=(0, 2, 3))

    def normalize(
        self, x: Array, mean: Array, inverse_std: Array, gamma: Array, beta: Array
    ) -> Array:
        """See `LocalBackend.normalize`."""
        y = (x - self._wide(mean)) * self._wide(inverse_std) * self._wide(gamma)
        return (y + self._wide(beta)).astype(x.dtype, copy=False)

    def normalize_gradient_sums(
        self, dy: Array, x: Array, mean: Array, inverse_std: Array
    ) -> tuple[Array, Array]:
        """See `LocalBackend.normalize_gradient_sums`."""
        x_hat = (x - self._wide(mean)) * self._wide(inverse_std)
        return self.channel_sums(dy), self.channel_sums(dy * x_hat)

    def normalize_gradient(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        inverse_std: Array,
        gamma: Array,
        mean_dy: Array,
        mean_dy_xhat: Array,
    ) -> Array:
        """See `LocalBackend.normalize_gradient`."""
        x_hat = (x - self._wide(mean)) * self._wide(inverse_std)
        dx = dy - self._wide(mean_dy) - x_hat * self._wide(mean_dy_xhat)
        return (dx * (self._wide(gamma) * self._wide(inverse_std))).astype(x.dtype, copy=False)

    def to_host(self, a: Array) -> NDArray[Any]:
        """See `LocalBackend.to_host`."""
        return np.asarray(a)

    def from_host(self, a: NDArray[Any]) -> Array:
        """See `LocalBackend.from_host`."""
        return self.xp.asarray(a)

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `LocalBackend.empty`."""
        return self.xp.empty(shape, dtype)

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `LocalBackend.zeros`."""
        return self.xp.zeros(shape, dtype)

    def _tap(self, kernel: Array, i: int, j: int, groups: int) -> Array:
        """Weights of one tap, ``(groups, filters of a group, channels of a group)``."""
        return kernel[:, :, i, j].reshape(groups, kernel.shape[0] // groups, kernel.shape[1])

    def _wide(self, per_channel: Array) -> Array:
        """``(1, channels, 1, 1)`` float64."""
        return self.xp.asarray(per_channel, np.float64).reshape(1, -1, 1, 1)

    def _spread(
        self, part: Any, dy: Array, x_shape: Shape, window: tuple[Pair, Pair, Pads]
    ) -> Array:
        """Add ``part(number of the tap)``, of dy's shape, where that tap has met the tile."""
        taps, stride, pads = window
        check_output(dy.shape, x_shape, x_shape[1], taps, stride, pads)
        b, c, h, w = x_shape
        top, left, bottom, right = pads
        padded = self.xp.zeros((b, c, top + h + bottom, left + w + right), dy.dtype)
        for number, tap in enumerate(_taps(taps)):
            rows, columns = tap_slices(tap, dy.shape[2:], stride, (1, 1))
            padded[:, :, rows, columns] += part(number)
        return unpad(self.xp, padded, x_shape, pads)
