"""Views of tensors in memory, channels last: flat, as matrices, and cut into parts.

Compiled loops get memory flat, and distances in elements: one compilation then serves whole tensors
and slices of channels alike. Must not know: tasks, what is computed.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

__all__ = ["aligned", "flat", "matrix", "part_counts", "pixel_step", "shared", "vector"]

Array = NDArray[Any]

_ALIGNMENT = 64


def aligned(size: int) -> NDArray[np.uint8]:
    """Return ``(size,)`` bytes that begin at a cache line; their pages are not touched yet."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    return memory[begin : begin + size]


def pixel_step(view: Array) -> int:
    """Elements from a pixel to the next one of ``(images, height, width, channels)``.

    It is the same everywhere, since a tensor has all pixels of its root; an axis of one pixel does
    not tell it.
    """
    reach = 1
    for axis in (2, 1, 0):
        if view.shape[axis] > 1:
            return int(view.strides[axis]) // view.itemsize // reach
        reach *= view.shape[axis]
    return int(view.shape[3])


def flat(view: Array, first: int = 0) -> Array:
    """Return the memory from a view's `first` channel to its last element, one-dimensional.

    Writing to it writes to the view's memory.
    """
    view = view[..., first:]
    step = pixel_step(view)
    pixels = prod(view.shape[:3])
    size = (pixels - 1) * step + view.shape[3] if pixels and view.shape[3] else 0
    return as_strided(view, (size,), (view.itemsize,))


def matrix(view: Array) -> Array:
    """Return ``(pixels, channels)`` on the same memory."""
    pixels = prod(view.shape[:3])
    step = pixel_step(view) * view.itemsize
    return as_strided(view, (pixels, view.shape[3]), (step, view.itemsize))


def vector(workspace: Array, shape: tuple[int, ...], dtype: Any, offset: int = 0) -> Array:
    """Return an array in a workspace of bytes, from `offset` on."""
    size = prod(shape) * np.dtype(dtype).itemsize
    found: Array = workspace[offset : offset + size].view(dtype).reshape(shape)
    return found


def part_counts(lanes: int, extent: int) -> tuple[int, ...]:
    """Return into how many parts something is cut: powers of two and `lanes`, up to `extent`."""
    counts = {1, lanes}
    power = 2
    while power < lanes:
        counts.add(power)
        power *= 2
    return tuple(sorted(count for count in counts if count == 1 or count <= extent))


def shared(size: int, parts: int, part: int, multiple: int = 1) -> tuple[int, int]:
    """Return ``[first, last)`` of one part of `size` things; borders are multiples of a number."""
    units = -(-size // multiple)
    first, last = units * part // parts, units * (part + 1) // parts
    return min(size, first * multiple), min(size, last * multiple)
