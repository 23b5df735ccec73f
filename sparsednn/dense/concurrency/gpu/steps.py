"""What is no product, as steps that write into memory that is there: a CUDA graph can hold them.

The backends' methods return new arrays, and a graph would find their memory given to others. So
each step here is a call of the array module with ``out``: it queues one kernel on the current
stream, and allocates nothing. What is in between is *scratch*, a part of the task's workspace.
Results are those of `ReferenceBackend` up to rounding.

Must not know: tasks, streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.gpu.products import Products
from sparsednn.dense.local.base import Array, Pads, Pair
from sparsednn.dense.local.windows import no_pads, tap_slices

__all__ = ["Scratch", "Step", "Steps", "Tools", "flat", "inner", "moved"]

Step: TypeAlias = Callable[[], None]
#: Shape and dtype of an array that a way wants while it runs.
Scratch: TypeAlias = tuple[tuple[int, ...], str]


@dataclass(frozen=True, slots=True)
class Tools:
    """What steps are made of.

    Attributes
    ----------
    xp
        Array module: CuPy, or what stands for it.
    products
        Matrix products.
    constants
        Arrays of ones, and others that never change.
    """

    xp: Any
    products: Products
    constants: dict[Any, Array]

    def ones(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Ones; made once."""
        key = shape, dtype
        if key not in self.constants:
            self.constants[key] = self.xp.asarray(np.ones(shape, dtype))
        return self.constants[key]

    def constant(self, values: NDArray[Any]) -> Array:
        """The same array on the device; made once."""
        key = values.shape, str(values.dtype), values.tobytes()
        if key not in self.constants:
            self.constants[key] = self.xp.asarray(values)
        return self.constants[key]

    def strided(self, a: Array, shape: Sequence[int], strides: Sequence[int]) -> Array:
        """Another view of the same memory; strides in bytes."""
        return self.xp.lib.stride_tricks.as_strided(a, tuple(shape), tuple(strides))


def flat(tools: Tools, x: Array) -> Array:
    """``(images, channels, pixels)`` of a tensor, whose images may lie apart."""
    b, c, h, w = x.shape
    return tools.strided(x, (b, c, h * w), (*x.strides[:2], x.itemsize))


def inner(padded: Array, shape: Sequence[int], pads: Pads) -> Array:
    """The image inside its padding."""
    return padded[:, :, pads[0] : pads[0] + shape[2], pads[1] : pads[1] + shape[3]]


def moved(source: Array, tap: Pair, size: Pair, stride: Pair, dilation: Pair = (1, 1)) -> Array:
    """What one tap of all windows meets."""
    rows, columns = tap_slices(tap, size, stride, dilation)
    return source[:, :, rows, columns]


def padded_shape(shape: Sequence[int], pads: Pads) -> tuple[int, ...]:
    """Shape with the padding."""
    return shape[0], shape[1], pads[0] + shape[2] + pads[2], pads[1] + shape[3] + pads[3]


class Steps:
    """Makes steps; lists of them are to be done in order, on one stream."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self.xp = tools.xp

    # -- elementwise -----------------------------------------------------------------------------

    def copy(self, target: Array, source: Array | float, where: Array | None = None) -> Step:
        """``target = source``, broadcast; only `where` that is true."""
        if where is None:
            return partial(self.xp.copyto, target, source)
        return partial(self.xp.copyto, target, source, where=where)

    def ufunc(self, name: str, *operands: Array | float) -> Step:
        """``operands[-1] = name(*operands[:-1])``."""
        return partial(getattr(self.xp, name), *operands[:-1], out=operands[-1])

    def product(self, a: Array, b: Array, out: Array, *, accumulate: bool = False) -> Step:
        """See `Products.run`."""
        return partial(self.tools.products.run, a, b, out, accumulate=accumulate)

    def per_channel(self, values: Array) -> Array:
        """``(1, channels, 1, 1)``."""
        return values.reshape(1, -1, 1, 1)

    def relu(self, y: Array) -> Step:
        """In place."""
        return self.ufunc("maximum", y, y.dtype.type(0), y)

    def relu_gradient(self, dy: Array, y: Array, dx: Array, mask: Array) -> list[Step]:
        """`dy`, and 0 where the output was 0."""
        return [
            self.ufunc("equal", y, y.dtype.type(0), mask),
            self.copy(dx, dy),
            self.copy(dx, 0.0, where=mask),
        ]

    def scaled(self, x: Array, scale: Array, shift: Array, y: Array) -> list[Step]:
        """``x · scale + shift``, both ``(channels,)``."""
        return [
            self.ufunc("multiply", x, self.per_channel(scale), y),
            self.ufunc("add", y, self.per_channel(shift), y),
        ]

    def sum(self, parts: Sequence[Array], total: Array) -> list[Step]:
        """From the first to the last."""
        first = self.ufunc("add", parts[0], parts[1], total)
        return [first, *(self.ufunc("add", total, each, total) for each in parts[2:])]

    # -- sums over images and pixels -------------------------------------------------------------

    def channel_sums(self, x: Array, partial_sums: Array, sums: Array) -> list[Step]:
        """Sums of ``x`` ``(images, channels, pixels)`` in ``sums`` ``(channels,)``, in its dtype.

        By products with ones: a reduction of CuPy's may allocate. `partial_sums` is ``(images,
        channels)``.
        """
        b, c, pixels = x.shape
        dtype = str(x.dtype)
        ones = self.tools.ones
        return [
            self.product(x, ones((pixels, 1), dtype), partial_sums.reshape(b, c, 1)),
            self.product(
                ones((1, 1, b), dtype), partial_sums.reshape(1, b, c), sums.reshape(1, 1, c)
            ),
        ]

    # -- pooling ---------------------------------------------------------------------------------

    def max_pool_scratch(self, x: Sequence[int], y: Sequence[int], pads: Pads, dtype: str,
                         kept: bool) -> tuple[Scratch, ...]:  # fmt: skip
        """What `max_pool` wants."""
        padding = () if no_pads(pads) else ((padded_shape(x, pads), dtype),)
        return (*padding, *([(tuple(y), "bool")] * 2 if kept else []))

    def max_pool(
        self, x: Array, y: Array, where: Array | None, window: tuple[Pair, Pair, Pads],
        scratch: Sequence[Array],
    ) -> list[Step]:  # fmt: skip
        """Largest of each window; with `where`, the number of the tap that had it."""
        taps, stride, pads = window
        size = y.shape[2], y.shape[3]
        steps, source, masks = [], x, list(scratch)
        if not no_pads(pads):
            source = masks.pop(0)
            steps += [self.copy(source, -np.inf), self.copy(inner(source, x.shape, pads), x)]
        if where is None:
            for number, tap in enumerate(_taps(taps)):
                met = moved(source, tap, size, stride)
                steps.append(self.ufunc("maximum", y, met, y) if number else self.copy(y, met))
            return steps
        wins, other = masks
        is_image = np.zeros((1, 1, *padded_shape(x.shape, pads)[2:]), np.bool_)
        inner(is_image, x.shape, pads)[...] = True
        none = int(np.iinfo(np.dtype(str(where.dtype))).max)
        steps += [self.copy(y, -np.inf), self.copy(where, none)]
        for number, tap in enumerate(_taps(taps)):
            met = moved(source, tap, size, stride)
            there = np.ascontiguousarray(moved(is_image, tap, size, stride))
            steps += [
                self.ufunc("greater", met, y, wins),
                self.ufunc("isnan", met, other),
                self.ufunc("logical_or", wins, other, wins),
                self.ufunc("equal", where, where.dtype.type(none), other),
                self.ufunc("logical_or", wins, other, wins),
                self.ufunc("logical_and", wins, self.tools.constant(there), wins),
                self.copy(y, met, where=wins),
                self.copy(where, number, where=wins),
            ]
        return steps

    def max_pool_gradient_scratch(
        self, x: Sequence[int], y: Sequence[int], pads: Pads, dtype: str
    ) -> tuple[Scratch, ...]:
        """What `max_pool_gradient` wants."""
        padding = () if no_pads(pads) else ((padded_shape(x, pads), dtype),)
        return (*padding, (tuple(y), "bool"), (tuple(y), dtype))

    def max_pool_gradient(
        self, dy: Array, where: Array, dx: Array, window: tuple[Pair, Pair, Pads],
        scratch: Sequence[Array],
    ) -> list[Step]:  # fmt: skip
        """Add each `dy` to the element that was the largest."""
        taps, stride, pads = window
        target, mask, masked = (dx, *scratch) if no_pads(pads) else scratch
        steps = [self.copy(target, 0.0)]
        for number, tap in enumerate(_taps(taps)):
            met = moved(target, tap, (dy.shape[2], dy.shape[3]), stride)
            steps += [
                self.ufunc("equal", where, where.dtype.type(number), mask),
                self.copy(masked, 0.0),
                self.copy(masked, dy, where=mask),
                self.ufunc("add", met, masked, met),
            ]
        if target is not dx:
            steps.append(self.copy(dx, inner(target, dx.shape, pads)))
        return steps

    def average_pool_scratch(
        self, x: Sequence[int], y: Sequence[int], window: tuple[Pair, Pair, Pads], dtype: str,
        *, gradient: bool,
    ) -> tuple[Scratch, ...]:  # fmt: skip
        """What `average_pool` or its gradient wants."""
        padding = () if no_pads(window[2]) else ((padded_shape(x, window[2]), dtype),)
        return (*padding, (tuple(y), dtype)) if gradient else padding

    def average_pool(
        self, x: Array, y: Array, window: tuple[Pair, Pair, Pads], count: NDArray[Any],
        scratch: Sequence[Array],
    ) -> list[Step]:  # fmt: skip
        """Sum of each window over `count`, ``(height, width)``; of a whole image by a product."""
        taps, stride, pads = window
        divisor = self.tools.constant(count.astype(str(y.dtype)))
        divide = self.ufunc("divide", y, divisor, y)
        if _whole(x.shape, y.shape, taps, pads):
            ones = self.tools.ones((prod(taps), 1), str(x.dtype))
            return [self.product(flat(self.tools, x), ones, flat(self.tools, y)), divide]
        steps, source = [], x
        if not no_pads(pads):
            (source,) = scratch
            steps += [self.copy(source, 0.0), self.copy(inner(source, x.shape, pads), x)]
        for number, tap in enumerate(_taps(taps)):
            met = moved(source, tap, (y.shape[2], y.shape[3]), stride)
            steps.append(self.ufunc("add", y, met, y) if number else self.copy(y, met))
        return [*steps, divide]

    def average_pool_gradient(
        self, dy: Array, dx: Array, window: tuple[Pair, Pair, Pads], count: NDArray[Any],
        scratch: Sequence[Array],
    ) -> list[Step]:  # fmt: skip
        """Add ``dy / count`` to all elements of each window."""
        taps, stride, pads = window
        divisor = self.tools.constant(count.astype(str(dy.dtype)))
        share = scratch[-1]
        steps = [self.ufunc("divide", dy, divisor, share)]
        if _whole(dx.shape, dy.shape, taps, pads):
            return [*steps, self.copy(dx, share)]
        target = dx if no_pads(pads) else scratch[0]
        steps.append(self.copy(target, 0.0))
        for tap in _taps(taps):
            met = moved(target, tap, (dy.shape[2], dy.shape[3]), stride)
            steps.append(self.ufunc("add", met, share, met))
        if target is not dx:
            steps.append(self.copy(dx, inner(target, dx.shape, pads)))
        return steps

    # -- batch normalisation in training ---------------------------------------------------------

    def normalize_scratch(self, x: Sequence[int], *, gradient: bool) -> tuple[Scratch, ...]:
        """What `normalize` or its gradient wants: float64, as its sums are."""
        b, c, h, w = x
        wide: Scratch = ((b, c, h * w), "float64")
        return ((wide,) * (2 if gradient else 1)) + (((b, c), "float64"), ((2, c), "float64"))

    def normalize(
        self, x: Array, y: Array, statistics: Array, parameters: Sequence[Array],
        settings: tuple[float, float], scratch: Sequence[Array],
    ) -> list[Step]:  # fmt: skip
        """Mean and deviation of the batch, two passes; running ones move towards them.

        `parameters` are gamma, beta, running mean and variance, `settings` epsilon and momentum.
        """
        gamma, beta, running_mean, running_variance = parameters
        epsilon, momentum = settings
        wide, partial_sums, small = scratch
        (b, _, pixels), narrow = wide.shape, flat(self.tools, x)
        count = b * pixels
        mean, inverse, sums, spare = statistics[0], statistics[1], small[0], small[1]

        def over(values: Array) -> Array:
            return values.reshape(1, -1, 1)

        steps = [
            self.copy(wide, narrow),
            *self.channel_sums(wide, partial_sums, sums),
            self.ufunc("divide", sums, float(count), mean),
            self.ufunc("subtract", wide, over(mean), wide),
            self.ufunc("multiply", wide, wide, wide),
            *self.channel_sums(wide, partial_sums, sums),
            self.ufunc("divide", sums, float(count), sums),
            self.ufunc("add", sums, epsilon, inverse),
            self.ufunc("sqrt", inverse, inverse),
            self.ufunc("divide", 1.0, inverse, inverse),
            self.ufunc("multiply", sums, count / max(1, count - 1), sums),
        ]
        for running, found in ((running_mean, mean), (running_variance, sums)):
            steps += [
                self.ufunc("subtract", found, running, spare),
                self.ufunc("multiply", spare, momentum, spare),
                self.ufunc("add", running, spare, running),
            ]
        return [
            *steps,
            self.ufunc("subtract", narrow, over(mean), wide),
            self.ufunc("multiply", wide, over(inverse), wide),
            self.ufunc("multiply", wide, over(gamma), wide),
            self.ufunc("add", wide, over(beta), wide),
            self.copy(flat(self.tools, y), wide),
        ]

    def normalize_gradient(
        self, dy: Array, x: Array, dx: Array | None, statistics: Array, gamma: Array,
        gradients: Sequence[Array], scratch: Sequence[Array],
    ) -> list[Step]:  # fmt: skip
        """Gradients of gamma and beta (`gradients`), and of the input, where one is wanted."""
        hat, wide, partial_sums, small = scratch
        count = wide.shape[0] * wide.shape[2]
        narrow_dy = flat(self.tools, dy)

        def over(values: Array) -> Array:
            return values.reshape(1, -1, 1)

        steps = [
            self.ufunc("subtract", flat(self.tools, x), over(statistics[0]), hat),
            self.ufunc("multiply", hat, over(statistics[1]), hat),
            self.copy(wide, narrow_dy),
            *self.channel_sums(wide, partial_sums, small[0]),
            self.ufunc("multiply", wide, hat, wide),
            *self.channel_sums(wide, partial_sums, small[1]),
            self.copy(gradients[1], small[0]),
            self.copy(gradients[0], small[1]),
        ]
        if dx is None:
            return steps
        return [
            *steps,
            self.ufunc("divide", small, float(count), small),
            self.ufunc("multiply", hat, over(small[1]), hat),
            self.ufunc("add", hat, over(small[0]), hat),
            self.ufunc("subtract", narrow_dy, hat, hat),
            self.ufunc("multiply", hat, over(gamma), hat),
            self.ufunc("multiply", hat, over(statistics[1]), hat),
            self.copy(flat(self.tools, dx), hat),
        ]


def _taps(taps: Pair) -> Iterator[Pair]:
    return product(range(taps[0]), range(taps[1]))


def _whole(x: Sequence[int], y: Sequence[int], taps: Pair, pads: Pads) -> bool:
    """Whether the one window is the image."""
    return no_pads(pads) and tuple(x[2:]) == taps and tuple(y[2:]) == (1, 1)
