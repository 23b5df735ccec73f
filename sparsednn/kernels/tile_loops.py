"""Loops over a tile that are no products: writing images into it, derivatives, bias gradients.

They count from 0 and do not branch, or they would not become vector code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.kernels.packing import CLAMP, SIGMOID, TANH, PackedNetwork

__all__ = ["bias_gradients", "load_columns", "multiply_derivative"]

#: Sums of a row over a batch go in so many lanes.
_SUM_LANES = 8
#: Images whose values are written into a tile side by side, where none is left out.
_FEW_IMAGES = 8


@jit
def load_columns(
    indptr: NDArray[np.int64],
    narrow: NDArray[np.uint16],
    wide: NDArray[np.int32],
    values: NDArray[np.float32],
    ids: NDArray[np.int64],
    x: NDArray[np.float32],
    rows: int,
    ld: int,
) -> None:
    """Write the images `ids` into a tile ``(rows, ld)``; everything else there becomes zero."""
    dense = values.size > 0
    for c in range(ids.size):
        dense = dense and indptr[ids[c] + 1] - indptr[ids[c]] == rows
    if dense:
        # Row after row, as the tile lies, of a few images at a time: theirs may be whole pages
        # apart, and fall into the same few sets of the cache.
        for first in range(0, ids.size, _FEW_IMAGES):
            last = min(first + _FEW_IMAGES, ids.size)
            begins = indptr[ids[first:last]].astype(np.uint64)
            for row in range(np.uint64(rows)):
                at = row * np.uint64(ld) + np.uint64(first)
                for c in range(np.uint64(last - first)):
                    x[at + c] = values[begins[c] + row]
        for row in range(rows):
            x[row * ld + ids.size : (row + 1) * ld] = 0
        return
    x[: rows * ld] = 0
    stride = np.uint64(ld)
    ones = values.size == 0
    for c in range(ids.size):
        column = np.uint64(c)
        begin, end = np.uint64(indptr[ids[c]]), np.uint64(indptr[ids[c] + 1])
        for k in range(begin, end):
            feature = np.uint64(narrow[k]) if narrow.size else np.uint64(wide[k])
            x[feature * stride + column] = np.float32(1) if ones else values[k]


@jit
def bias_gradients(
    net: PackedNetwork,
    part: int,
    delta: NDArray[np.float32],
    ld: int,
    columns: int,
    out: NDArray[np.float32],
    add: int,
    scale: np.float32,
) -> None:
    """``g_b (+)= scale * sum of delta over the batch`` of the rows of a part, in `_SUM_LANES`."""
    first = net.group_block[net.layer_group[part]]
    last = net.group_block[net.layer_group[part + 1]]
    lanes = np.empty(_SUM_LANES, np.float32)
    for row in range(net.block_row[first], net.block_row[last]):
        at = net.target[row] * ld
        lanes[:] = 0
        whole = columns // _SUM_LANES * _SUM_LANES
        for c in range(0, whole, _SUM_LANES):
            for i in range(_SUM_LANES):
                lanes[i] += delta[at + c + i]
        for c in range(whole, columns):
            lanes[c - whole] += delta[at + c]
        total = np.float32(0)
        for i in range(_SUM_LANES):
            total += lanes[i]
        total *= scale
        out[row] = out[row] + total if add != 0 else total


@jit
def multiply_derivative(
    s: NDArray[np.float32],
    y: NDArray[np.float32],
    code: int,
    low: np.float32,
    high: np.float32,
) -> None:
    """``s *= f'(y)``, flat and of equal size; f' in terms of y = f(z), zero at kinks.

    Loops count from 0 and conditions do not branch, or they would not become vector code.
    """
    one, zero = np.float32(1), np.float32(0)
    if code == CLAMP:
        if low == -np.inf and high == np.inf:
            return
        for i in range(s.size):
            s[i] = s[i] if (y[i] > low) & (y[i] < high) else zero
    elif code == SIGMOID:
        for i in range(s.size):
            s[i] *= y[i] * (one - y[i])
    elif code == TANH:
        for i in range(s.size):
            s[i] *= one - y[i] * y[i]
