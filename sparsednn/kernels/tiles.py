"""One layer of a tile, compiled: from packed blocks to calls of the microkernel.

A *tile* is a block of columns (images) whose activations of two neighbouring layers fit the cache
together, stored ``(neurons, stride)`` with an odd number of cache lines per row, so that a
power-of-two number of neurons does not fall into a few cache sets.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.kernels.microkernel import (
    LANES,
    MAX_ROWS,
    MAX_VECTORS,
    WHOLE,
    atomic_add,
    multiply,
)
from sparsednn.kernels.packing import CLAMP, SIGMOID, SOFTMAX, PackedNetwork

__all__ = ["Tiling", "activate", "multiply_columns", "multiply_layer"]

_M11, _M12, _M13 = (multiply[1, v] for v in (1, 2, 3))
_M21, _M22, _M23 = (multiply[2, v] for v in (1, 2, 3))
_M41, _M42, _M43 = (multiply[4, v] for v in (1, 2, 3))
# Where eight rows do not fit the registers, no block has eight rows; the names must still exist.
_M81, _M82, _M83 = (multiply[min(8, MAX_ROWS), v] for v in (1, 2, 3))


class Tiling(NamedTuple):
    """Sizes: columns per tile, elements per row, and which layers have a pool (see `cascade`).

    ``pool_of_layer[l]`` is the pool in front of layer l, or -1; ``keep`` is the fraction of a tile
    that must be alive to go on without packing. Rows of a pool have room for two tiles and one
    vector, as packing writes whole vectors.
    """

    columns: int
    stride: int
    pool_stride: int
    pool_of_layer: NDArray[np.int64]
    keep: float


@jit
def multiply_layer(
    net: PackedNetwork,
    layer: int,
    x: int,
    ldx: int,
    y: int,
    ldy: int,
    columns: int,
    alive: int,
    filled: int,
    source_filled: NDArray[np.uint8],
    order: NDArray[np.int32],
    stage: int = WHOLE,
    base: int | None = None,
) -> None:
    """One layer without its second activation pass: ``y = clamp(W x + b)`` on `columns` columns.

    `x`, `y` are addresses of ``(n_in, ldx)`` and ``(n_out, ldy)`` float32, `alive` of int32 words,
    one per column. Columns are rounded up to whole vectors: all three must have room for that.

    `source_filled` ``(n_in,)`` says which rows of `x` are not all zero (empty: all count as such),
    `filled` is the address of the same for `y` (0: not wanted). `order` ``(2, longest pattern)``
    has 0, 1, 2 … in its first row; the second is working space. `stage` is that of the
    microkernel: FIRST leaves sums in `y`, which LAST goes on with. `base`: see the microkernel.
    """
    go = np.int64(stage)
    skip = source_filled.size > 0
    pattern = net.pattern.ctypes.data
    weights = net.weight.ctypes.data
    bias = net.bias.ctypes.data
    target = net.target.ctypes.data
    lo = net.low[layer]
    hi = net.high[layer]
    vectors = (columns + LANES - 1) // LANES
    for group in range(net.layer_group[layer], net.layer_group[layer + 1]):
        p = pattern + 4 * net.group_pattern[group]
        n = net.group_pattern[group + 1] - net.group_pattern[group]
        o = order[0].ctypes.data
        if skip:
            o = order[1].ctypes.data
            # Unsigned, as numba looks at every signed index for a count from the end.
            start = np.uint64(net.group_pattern[group])
            found = np.uint64(0)
            for k in range(np.uint64(n)):
                order[1, found] = k
                found += np.uint64(source_filled[np.uint64(net.pattern[start + k])])
            n = np.int64(found)
        first = 0
        while first < vectors:
            # A panel of one vector takes nearly as long as one of three: of four, two have two.
            v = 2 if vectors - first == 4 else min(MAX_VECTORS, vectors - first)
            at = 4 * LANES * first
            first += v
            xs, ys, live = x + at, y + at, alive + at
            for block in range(net.group_block[group], net.group_block[group + 1]):
                row = net.block_row[block]
                rows = net.block_row[block + 1] - row
                w = weights + 4 * net.block_weight[block]
                b = bias + 4 * row
                t = target + 4 * row
                if rows == 8:
                    if v == 3:
                        _M83(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                    elif v == 2:
                        _M82(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                    else:
                        _M81(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                elif rows == 4:
                    if v == 3:
                        _M43(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                    elif v == 2:
                        _M42(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                    else:
                        _M41(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                elif rows == 2:
                    if v == 3:
                        _M23(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                    elif v == 2:
                        _M22(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                    else:
                        _M21(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                elif v == 3:
                    _M13(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                elif v == 2:
                    _M12(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)
                else:
                    _M11(xs, ldx, p, w, o, n, b, t, ys, ldy, go, lo, hi, live, filled, base)


@jit
def activate(y: NDArray[np.float32], rows: int, ld: int, columns: int, code: int) -> None:
    """Second pass of sigmoid, tanh and softmax over a tile, in place; `y` is flat."""
    if code == SOFTMAX:
        for c in range(columns):
            top = np.float32(-np.inf)
            for r in range(rows):
                top = max(top, y[r * ld + c])
            total = np.float32(0)
            for r in range(rows):
                e = np.exp(y[r * ld + c] - top)
                y[r * ld + c] = e
                total += e
            for r in range(rows):
                y[r * ld + c] /= total
        return
    one = np.float32(1)
    for r in range(rows):
        for c in range(columns):
            z = y[r * ld + c]
            if code == SIGMOID:
                e = np.exp(-abs(z))
                y[r * ld + c] = (one if z >= 0 else e) / (one + e)
            else:
                y[r * ld + c] = np.tanh(z)


@jit
def multiply_columns(
    net: PackedNetwork,
    tiling: Tiling,
    layer: int,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    next_tile: NDArray[np.int64],
    sources: NDArray[np.float32],
    targets: NDArray[np.float32],
    alive: NDArray[np.int32],
    order: NDArray[np.int32],
) -> None:
    """One thread's share of one layer on dense columns: ``y = f(W x + b)``.

    `x` ``(n_in, batch)`` and `y` ``(n_out, batch)`` are C-contiguous. Several tiles at a time are
    copied through `sources` and `targets` ``(tiles, width * stride)``: in a wide batch every row
    lies on another page, so a gather from there is several times slower than the copy, and the
    copy itself wants long runs. A vector's store must not run into the next row either.
    """
    batch = x.shape[1]
    columns = tiling.columns
    ld = tiling.stride
    tiles = sources.shape[0]
    nothing = np.empty(0, np.uint8)
    while True:
        first = tiles * columns * atomic_add(next_tile.ctypes.data, 1)
        if first >= batch:
            return
        last = min(first + tiles * columns, batch)
        for row in range(x.shape[0]):
            for tile in range(tiles):
                start = first + tile * columns
                for c in range(min(columns, last - start)):
                    sources[tile, row * ld + c] = x[row, start + c]
        for tile in range(tiles):
            n = min(columns, last - first - tile * columns)
            if n > 0:
                source, target = sources[tile].ctypes.data, targets[tile].ctypes.data
                multiply_layer(
                    net, layer, source, ld, target, ld, n, alive.ctypes.data, 0, nothing, order
                )
                if net.code[layer] != CLAMP:
                    activate(targets[tile], y.shape[0], ld, n, net.code[layer])
        for row in range(y.shape[0]):
            for tile in range(tiles):
                start = first + tile * columns
                for c in range(min(columns, last - start)):
                    y[row, start + c] = targets[tile, row * ld + c]
