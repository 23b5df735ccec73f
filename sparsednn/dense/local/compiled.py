"""What CPU backends share: pooling, ReLU and batch normalisation with compiled loops on threads.

Must not know: how convolutions are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsednn._jit import read_only
from sparsednn.dense.local import channel_loops, loops
from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.dense.local.memory import keep_freed_memory
from sparsednn.dense.local.parts import Parts
from sparsednn.dense.local.reference import ReferenceBackend, where_dtype
from sparsednn.dense.local.windows import check_output, no_pads, output_size

__all__ = ["CompiledBackend"]

#: Elements that one more thread has to have for itself, in loops that touch each a few times.
_LEAST = 32_768


class CompiledBackend(ReferenceBackend):
    """`ReferenceBackend` on NumPy's arrays with compiled loops in place of NumPy's temporaries.

    Parameters
    ----------
    threads
        Planes or channels are dealt out to so many.
    """

    def __init__(self, threads: int = 1) -> None:
        super().__init__(threads)
        self.parts = Parts(threads)
        keep_freed_memory()

    def max_pool(
        self, x: Array, *, taps: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0)
    ) -> tuple[Array, Array]:
        """See `LocalBackend.max_pool`; `where` has the number of the tap, row by row."""
        y = np.empty((*x.shape[:2], *output_size(x.shape, taps, stride, pads)), x.dtype)
        where = np.empty(y.shape, where_dtype(taps))
        source, target, tap = _planes(read_only(x)), _planes(y), _planes(where)
        if taps == stride == (2, 2) and no_pads(pads):
            self._share(
                len(source), x.size, lambda *part: loops.max_pool_2x2(source, target, tap, *part)
            )
        else:
            none = int(np.iinfo(where.dtype).max)
            self._share(
                len(source),
                y.size * taps[0] * taps[1],
                lambda *part: loops.max_pool(
                    source, target, tap, none, taps, stride, pads[:2], *part
                ),
            )
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
        check_output(dy.shape, x_shape, x_shape[1], taps, stride, pads)
        dx = np.empty(x_shape, dy.dtype)
        source, tap, target = _planes(read_only(dy)), _planes(read_only(where)), _planes(dx)
        none = int(np.iinfo(where.dtype).max)
        self._share(
            len(target),
            dx.size,
            lambda *part: loops.max_pool_gradient(
                source, tap, target, none, taps, stride, pads[:2], *part
            ),
        )
        return dx

    def average_pool(
        self, x: Array, *, taps: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0), count: float | Array
    ) -> Array:
        """See `LocalBackend.average_pool`."""
        size = output_size(x.shape, taps, stride, pads)
        y = np.empty((*x.shape[:2], *size), x.dtype)
        source, target, divisors = _planes(read_only(x)), _planes(y), _divisors(count, size, x)
        self._share(
            len(source),
            y.size * taps[0] * taps[1],
            lambda *part: loops.average_pool(
                source, target, divisors, taps, stride, pads[:2], *part
            ),
        )
        return y

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
        check_output(dy.shape, x_shape, x_shape[1], taps, stride, pads)
        dx = np.empty(x_shape, dy.dtype)
        source, target = _planes(read_only(dy)), _planes(dx)
        divisors = _divisors(count, dy.shape[2:], dy)
        self._share(
            len(target),
            dy.size * taps[0] * taps[1],
            lambda *part: loops.average_pool_gradient(
                source, target, divisors, taps, stride, pads[:2], *part
            ),
        )
        return dx

    def relu(self, x: Array, *, in_place: bool = False) -> Array:
        """See `LocalBackend.relu`."""
        y = x if in_place else np.empty(x.shape, x.dtype)
        source, target = read_only(_flat(x)), _flat(y)

        def part(first: int, last: int) -> None:
            if in_place:
                loops.relu_in_place(target[first:last])
            else:
                loops.relu(source[first:last], target[first:last])

        self._share(x.size, x.size, part)
        return y

    def relu_gradient(self, dy: Array, y: Array, *, in_place: bool = False) -> Array:
        """See `LocalBackend.relu_gradient`."""
        dx = dy if in_place else np.empty(dy.shape, dy.dtype)
        from_y, at, target = read_only(_flat(dy)), read_only(_flat(y)), _flat(dx)

        def part(first: int, last: int) -> None:
            here = slice(first, last)
            if in_place:
                loops.relu_gradient_in_place(target[here], at[here])
            else:
                loops.relu_gradient(from_y[here], at[here], target[here])

        self._share(dy.size, dy.size, part)
        return dx

    def channel_sums(self, x: Array) -> Array:
        """See `LocalBackend.channel_sums`."""
        source, out = read_only(_pixels(x)), np.empty(x.shape[1])
        self._share(out.size, x.size, lambda *part: channel_loops.sums(source, out, *part))
        return out

    def channel_squares(self, x: Array, mean: Array) -> Array:
        """See `LocalBackend.channel_squares`."""
        source, out, middle = read_only(_pixels(x)), np.empty(x.shape[1]), _channels(mean)
        self._share(
            out.size, x.size, lambda *part: channel_loops.squares(source, middle, out, *part)
        )
        return out

    def normalize(
        self, x: Array, mean: Array, inverse_std: Array, gamma: Array, beta: Array
    ) -> Array:
        """See `LocalBackend.normalize`; one scale is rounded to the tile's dtype."""
        y = np.empty(x.shape, x.dtype)
        source, target, channels = read_only(_rows(x)), _rows(y), x.shape[1]
        scale = _channels(_channels(inverse_std) * _channels(gamma), x.dtype)
        middle, shift = _channels(mean, x.dtype), _channels(beta, x.dtype)
        self._share(
            len(source),
            x.size,
            lambda *part: channel_loops.normalize(
                source, middle, scale, shift, target, channels, *part
            ),
        )
        return y

    def normalize_gradient_sums(
        self, dy: Array, x: Array, mean: Array, inverse_std: Array
    ) -> tuple[Array, Array]:
        """See `LocalBackend.normalize_gradient_sums`."""
        from_y, source = read_only(_pixels(dy)), read_only(_pixels(x))
        plain, weighted, middle = np.empty(x.shape[1]), np.empty(x.shape[1]), _channels(mean)
        self._share(
            plain.size,
            x.size,
            lambda *part: channel_loops.gradient_sums(
                from_y, source, middle, plain, weighted, *part
            ),
        )
        weighted *= _channels(inverse_std)
        return plain, weighted

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
        """See `LocalBackend.normalize_gradient`; scales are rounded to the tile's dtype."""
        dx = np.empty(x.shape, x.dtype)
        from_y, source, target = read_only(_rows(dy)), read_only(_rows(x)), _rows(dx)
        wide = _channels(inverse_std)
        scale = _channels(wide * _channels(gamma), x.dtype)
        slope = _channels(wide * _channels(mean_dy_xhat), x.dtype)
        middle, shift = _channels(mean, x.dtype), _channels(mean_dy, x.dtype)
        self._share(
            len(source),
            x.size,
            lambda *part: channel_loops.normalize_gradient(
                from_y, source, middle, slope, scale, shift, target, x.shape[1], *part
            ),
        )
        return dx

    def _share(self, size: int, work: int, function: Callable[[int, int], None]) -> None:
        """Call ``function(first, last)`` on parts of `size` things with `work` elements in all."""
        if size:
            bounds = self.parts.bounds(size, work, _LEAST)
            self.parts.run(bounds, lambda number, first, last: function(first, last))


def _planes(a: Array) -> Array:
    """``(images · channels, height, width)``."""
    return a.reshape(a.shape[0] * a.shape[1], *a.shape[2:])


def _rows(a: Array) -> Array:
    """``(images · channels, pixels)``."""
    return a.reshape(a.shape[0] * a.shape[1], a.shape[2] * a.shape[3])


def _pixels(a: Array) -> Array:
    """``(images, channels, pixels)``."""
    return a.reshape(*a.shape[:2], a.shape[2] * a.shape[3])


def _flat(a: Array) -> Array:
    return a.reshape(-1)


def _channels(a: Array, dtype: Any = np.float64) -> Array:
    return np.ascontiguousarray(a, dtype)


def _divisors(count: float | Array, size: Pair, like: Array) -> Array:
    """`count` for each window, ``(height, width)`` of the output, of the tile's dtype."""
    return np.ascontiguousarray(np.broadcast_to(np.asarray(count, like.dtype), size))
