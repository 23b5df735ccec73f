"""What the time of an operation of a dense network depends on: work, by kind and shape.

A *kind* is one pass of one kind of operation: ``window_forward``, ``relu_backward``, … Products are
of three sorts, since backends treat them differently (`sparsednn.dense.local.torch_backend`):

============  ======================================================================================
``matrix``    the kernel covers its image: one matrix product
``pointwise`` 1×1 taps and no padding: a matrix product for each image, layouts converted or not
``window``    all others: windows, with borders, in blocks of 16 filters and channels
============  ======================================================================================

and of three passes: ``forward``, ``backward`` (both gradients), ``first`` (the kernel's alone, of a
layer in front of which nothing is trained).

For each kind there are *terms*, `terms_of`: a time is a sum of them, each with a coefficient that
is not negative (seconds per flop, per element, per row, per call); and *coordinates*,
`coordinates_of`: where in the space of shapes an operation lies, mostly logarithms to base 2, so
that a distance of 1 is a factor of two. Nothing here is seconds. Must not know: platforms, graphs.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "KINDS", "LENGTHS", "PLANE", "PRODUCT", "PRODUCTS", "Rows", "coordinates_of", "overhead_terms",
    "terms_of",
]  # fmt: skip

#: ``(operations, columns)``: one operation in a row.
Rows = NDArray[np.float64]

#: Columns of a row of a product; `bytes`: what the whole step touches, see `_cold`.
PRODUCT: Final = (
    "images", "channels", "rows", "columns", "filters", "taps", "tap_columns", "stride", "padding",
    "output_rows", "output_columns", "bytes",
)  # fmt: skip
#: Columns of a row of any other operation; `outputs` are channels of the output, `parts` inputs.
PLANE: Final = (
    "images", "channels", "rows", "columns", "outputs", "output_rows", "output_columns", "taps",
    "tap_columns", "stride", "parts", "bytes",
)  # fmt: skip

_SORTS: Final = ("matrix", "pointwise", "window")
_BETWEEN: Final = (
    *("relu", "batch_norm", "max_pool", "average_pool", "add", "concatenate", "loss"),
)
PRODUCTS: Final = tuple(
    f"{sort}_{each}" for sort in _SORTS for each in ("forward", "backward", "first")
)
_PLANES: Final = (
    *(f"{kind}_{each}" for kind in _BETWEEN for each in ("forward", "backward")),
    *("data", "update", "gradients"),
)
KINDS: Final = PRODUCTS + _PLANES

#: Filters and channels come in blocks of so many: a vector of float32.
_BLOCK: Final = 16
#: Elements from which on an activation lies in no private cache any more.
_LARGE: Final = 1 << 18
#: A step that touches so little finds everything in the caches again; with 2^7 times as much,
#: nothing, not even code.
_WARM: Final = 1 << 20
_DOUBLINGS: Final = 7.0

#: Over which distance in each coordinate the error of the terms is much the same.
LENGTHS: Final = {
    "matrix": (3.0, 6.0, 6.0, 6.0, 3.0),
    "pointwise": (6.0, 6.0, 6.0, 6.0, 3.0, 5.0, 3.0),
    "window": (6.0, 6.0, 6.0, 6.0, 6.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 5.0, 4.0),
    "plane": (6.0, 8.0, 6.0, 6.0, 2.0, 2.0, 5.0),
}


def _cold(nbytes: NDArray[np.float64]) -> NDArray[np.float64]:
    """How cold the caches are, from 0 to 1, in a step that touches so many bytes."""
    doublings = np.log2(np.maximum(nbytes, 1.0) / _WARM) / _DOUBLINGS
    return np.asarray(np.clip(doublings, 0.0, 1.0))


def _blocks(count: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded up to whole blocks."""
    return np.asarray(np.ceil(count / _BLOCK) * _BLOCK)


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log2(np.maximum(values, 0.5)))


def terms_of(kind: str, rows: Rows) -> NDArray[np.float64]:
    """Return ``(operations, terms)``: of a call, of a cold call, then of the work."""
    if kind in PRODUCTS:
        return _product_terms(kind.partition("_")[0], rows)
    return _plane_terms(kind, rows)


def overhead_terms() -> int:
    """How many of the first terms are neither arithmetic nor traffic."""
    return 2


def _product_terms(sort: str, rows: Rows) -> NDArray[np.float64]:
    b, c, h, w, k, r, s, stride, _, ho, wo, nbytes = rows.T
    one, cold = np.ones_like(b), _cold(nbytes)
    x, y, kernel = b * c * h * w, b * k * ho * wo, k * c * r * s
    flops = y * c * r * s
    large = np.maximum(x + y - _LARGE, 0.0)
    common = [one, cold, flops, x, y, kernel, cold * kernel, large, b]
    if sort == "matrix":
        more = [b * _blocks(k) * c * r * s]
    elif sort == "pointwise":
        more = [b * ho * wo * _blocks(k) * _blocks(c)]
    else:
        more = [
            b * ho * wo * _blocks(k) * _blocks(c) * r * s,
            b * ho * wo * _blocks(k) * c * r * s,
            b * ho * wo * k * _blocks(c) * r * s,
            b * ho * r * _blocks(k) * _blocks(c),
            y * r * s,
            b * ho * wo * c * r * s,  # columns of windows
            b * ho * c * r * s,  # their rows
            # their gradients are scattered, not gathered, where that is less
            np.where((stride > 1) | (k > 2 * c), b * ho * wo * c * r * s, 0.0),
        ]
    return np.stack(common + more, axis=1)


def _plane_terms(kind: str, rows: Rows) -> NDArray[np.float64]:
    b, c, h, w, k, ho, wo, r, s, stride, _, nbytes = rows.T
    one, cold = np.ones_like(b), _cold(nbytes)
    x, y = b * c * h * w, b * k * ho * wo
    large = np.maximum(x - _LARGE, 0.0)
    if not kind.startswith(("max_pool", "average_pool")):
        lanes = b * c * np.mod(h * w, _BLOCK)  # what is left of a plane after whole vectors
        return np.stack([one, cold, x, large, cold * x, b * c, b * c * h, lanes, y], axis=1)
    # 2×2 by 2 has a loop of its own; others go tap by tap over short rows, or along a window.
    plain = (r == 2) & (s == 2) & (stride == 2)
    taps = np.where(plain, 0.0, y * r * s)
    runs = np.where(plain, 0.0, b * k * ho * r * s)
    return np.stack(
        [one, cold, np.where(plain, x, 0.0), np.where(plain, 0.0, x), large, y, taps,
         np.where(stride == 1, taps, 0.0), runs, b * k * ho],
        axis=1,
    )  # fmt: skip


def coordinates_of(kind: str, rows: Rows) -> NDArray[np.float64]:
    """Return ``(operations, coordinates)``, in units of `LENGTHS`."""
    sort = kind.partition("_")[0] if kind in PRODUCTS else "plane"
    if sort == "plane":
        b, c, h, w, _, _, _, r, _, stride, _, nbytes = rows.T
        found = [_log(b), _log(c), _log(h * w), _log(b * c * h * w), 2 * _log(r), stride]
    else:
        b, c, h, w, k, r, _, stride, padding, ho, wo, nbytes = rows.T
        if sort == "matrix":
            found = [_log(b), _log(c * h * w), _log(k)]
        elif sort == "pointwise":
            found = [_log(b), _log(c), _log(k), _log(ho * wo), 3.0 * (stride > 1)]
        else:
            found = [
                _log(b), _log(c), _log(k), _log(ho), _log(wo), 2 * _log(r), 3.0 * (stride > 1),
                1.0 * (padding > 0), 2.0 * (c < 4), 2.0 * (c < _BLOCK), 2.0 * (k < _BLOCK),
            ]  # fmt: skip
    found.append(_DOUBLINGS * _cold(nbytes))
    if sort != "plane":
        found.append(1.0 * (k % _BLOCK == 0))
    return np.asarray(np.stack(found, axis=1) / np.asarray(LENGTHS[sort]))
