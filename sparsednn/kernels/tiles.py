"""Compiled loops over tiles of columns: one layer of a tile, and the cascade through all layers.

A *tile* is a block of columns (images) whose activations of two neighbouring layers fit the cache
together, stored ``(neurons, ld)`` with an odd number of cache lines per row, so that a power-of-two
number of neurons does not fall into a few cache sets.

**The cascade.** Columns die (become all zero) at very different layers; in the official networks
3 % live through layer 13. Sending a tile straight through all layers would mostly multiply dead
lanes; waiting for all columns after each layer would push everything through main memory. So every
thread keeps a small *pool* in front of some layers. A tile runs on until less than `keep` of it is
alive in front of a layer that has a pool; its live columns are packed into that pool. A pool that
holds a full tile is run next, the deepest first, so that all tiles in flight stay full and the
memory is bounded: at most two tiles per pool. What is left at the end is run from the first pool to
the last. Columns never mix, so neither the order nor the threads change any result, bit by bit.
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
    atomic_add,
    compress,
    multiply,
)
from sparsednn.kernels.packing import CLAMP, SIGMOID, SOFTMAX, PackedNetwork

__all__ = ["Tiling", "multiply_columns", "run_cascade"]

_M11, _M12, _M13 = (multiply[1, v] for v in (1, 2, 3))
_M21, _M22, _M23 = (multiply[2, v] for v in (1, 2, 3))
_M41, _M42, _M43 = (multiply[4, v] for v in (1, 2, 3))
# Where eight rows do not fit the registers, no block has eight rows; the names must still exist.
_M81, _M82, _M83 = (multiply[min(8, MAX_ROWS), v] for v in (1, 2, 3))
#: Rows that are all zero are looked for while at least one in so many is.
_FEW_ZEROS = 8


class Tiling(NamedTuple):
    """Sizes of a cascade: columns per tile, row strides, and which layers have a pool.

    ``pool_of_layer[l]`` is the pool in front of layer l, or -1; ``keep`` is the fraction of a tile
    that must be alive to go on without packing.
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
) -> None:
    """One layer without its second activation pass: ``y = clamp(W x + b)`` on `columns` columns.

    `x`, `y` are addresses of ``(n_in, ldx)`` and ``(n_out, ldy)`` float32, `alive` of int32 words,
    one per column. Columns are rounded up to whole vectors: all three must have room for that.

    `source_filled` ``(n_in,)`` says which rows of `x` are not all zero (empty: all count as such),
    `filled` is the address of the same for `y` (0: not wanted). `order` ``(2, longest pattern)``
    has 0, 1, 2 … in its first row; the second is working space.
    """
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
            start = net.group_pattern[group]
            found = 0
            for k in range(n):
                order[1, found] = k
                found += source_filled[net.pattern[start + k]]
            n = found
        for first in range(0, vectors, MAX_VECTORS):
            v = min(MAX_VECTORS, vectors - first)
            at = 4 * LANES * first
            for block in range(net.group_block[group], net.group_block[group + 1]):
                row = net.block_row[block]
                rows = net.block_row[block + 1] - row
                w = weights + 4 * net.block_weight[block]
                b = bias + 4 * row
                t = target + 4 * row
                if rows == 8:
                    if v == 3:
                        _M83(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                    elif v == 2:
                        _M82(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                    else:
                        _M81(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                elif rows == 4:
                    if v == 3:
                        _M43(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                    elif v == 2:
                        _M42(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                    else:
                        _M41(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                elif rows == 2:
                    if v == 3:
                        _M23(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                    elif v == 2:
                        _M22(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                    else:
                        _M21(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                elif v == 3:
                    _M13(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                elif v == 2:
                    _M12(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)
                else:
                    _M11(x + at, ldx, p, w, o, n, b, t, y + at, ldy, lo, hi, alive + at, filled)


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
def _expand(
    indptr: NDArray[np.int64],
    narrow: NDArray[np.uint16],
    wide: NDArray[np.int32],
    values: NDArray[np.float32],
    first: int,
    columns: int,
    x: NDArray[np.float32],
    rows: int,
    ld: int,
    filled: NDArray[np.uint8],
) -> None:
    """Write images `first` … into the zeroed columns of a tile; note the rows that are `filled`.

    The feature indices are `narrow` or `wide`, the other is empty; no `values` means all ones.
    """
    x[: rows * ld] = np.float32(0)
    filled[:rows] = 0
    ones = values.size == 0
    for c in range(columns):
        begin, end = indptr[first + c], indptr[first + c + 1]
        if narrow.size:
            for k in range(begin, end):
                row = np.int64(narrow[k])
                x[row * ld + c] = np.float32(1) if ones else values[k]
                filled[row] = 1
        else:
            for k in range(begin, end):
                row = np.int64(wide[k])
                x[row * ld + c] = np.float32(1) if ones else values[k]
                filled[row] = 1


@jit
def _pack_live(
    y: int, ldy: int, rows: int, columns: int, alive: int, pool: int, ldp: int, count: int
) -> None:
    """Append the live columns of a tile to a pool, row by row (addresses; strides in elements)."""
    for row in range(rows):
        source = y + 4 * row * ldy
        target = pool + 4 * (row * ldp + count)
        for at in range(0, columns, LANES):
            target += 4 * compress(source + 4 * at, alive + 4 * at, target)


@jit
def _finish(
    y: NDArray[np.float32],
    rows: int,
    ld: int,
    columns: int,
    ids: NDArray[np.int64],
    alive: NDArray[np.int32],
    nonzero: NDArray[np.uint8],
    outputs: NDArray[np.float32],
) -> None:
    """Note which images end nonzero and, where wanted, write their output columns."""
    for c in range(columns):
        if alive[c] != 0:
            nonzero[ids[c]] = 1
    if outputs.shape[0] == rows:
        for r in range(rows):
            for c in range(columns):
                outputs[r, ids[c]] = y[r * ld + c]


@jit
def _mark_nonzero(
    y: NDArray[np.float32], rows: int, ld: int, columns: int, alive: NDArray[np.int32]
) -> None:
    """Recompute the alive words after a second activation pass."""
    alive[:columns] = 0
    for r in range(rows):
        for c in range(columns):
            if y[r * ld + c] != 0:
                alive[c] = 1


@jit
def _advance(
    net: PackedNetwork,
    tiling: Tiling,
    layer: int,
    source: NDArray[np.float32],
    ld: int,
    columns: int,
    ids: NDArray[np.int64],
    scratch: NDArray[np.float32],
    alive: NDArray[np.int32],
    pools: NDArray[np.float32],
    pool_ids: NDArray[np.int64],
    pool_count: NDArray[np.int64],
    pool_filled: NDArray[np.uint8],
    source_filled: NDArray[np.uint8],
    filled: NDArray[np.uint8],
    order: NDArray[np.int32],
    droppable_from: int,
    nonzero: NDArray[np.uint8],
    outputs: NDArray[np.float32],
) -> None:
    """Take a tile from `layer` to the end, into a pool, or until all of it is dead.

    While enough rows of the tile are all zero (blank borders of images, above all), they are left
    out of the products; `known` says which, and is empty as soon as this does not pay any more.
    """
    layers = net.code.size
    nothing = filled[0][:0]
    known = source_filled
    stride = tiling.stride
    x = source.ctypes.data
    side = 1 if x == scratch[0].ctypes.data else 0
    while True:
        y = scratch[side]
        rows = net.width[layer + 1]
        alive[:] = 0
        if known.size:
            count = 0
            for row in range(known.size):
                count += known[row]
            if count * _FEW_ZEROS > known.size * (_FEW_ZEROS - 1):
                known = nothing
        mark = nothing
        if known.size and net.code[layer] == CLAMP:
            mark = filled[side][:rows]
            mark[:] = 0
        multiply_layer(
            net, layer, x, ld, y.ctypes.data, stride, columns, alive.ctypes.data,
            mark.ctypes.data if mark.size else 0, known, order,
        )  # fmt: skip
        known = mark
        if net.code[layer] != CLAMP:
            activate(y, rows, stride, columns, net.code[layer])
            _mark_nonzero(y, rows, stride, columns, alive)
        layer += 1
        if layer == layers:
            _finish(y, rows, stride, columns, ids, alive, nonzero, outputs)
            return
        if layer >= droppable_from:
            live = 0
            for c in range(columns):
                if alive[c] != 0:
                    live += 1
            if live == 0:
                return
            pool = tiling.pool_of_layer[layer]
            if pool >= 0 and live < tiling.keep * tiling.columns:
                alive[columns:] = 0
                count = pool_count[pool]
                _pack_live(
                    y.ctypes.data,
                    stride,
                    rows,
                    columns,
                    alive.ctypes.data,
                    pools[pool].ctypes.data,
                    tiling.pool_stride,
                    count,
                )
                for c in range(columns):
                    if alive[c] != 0:
                        pool_ids[pool, count] = ids[c]
                        count += 1
                pool_count[pool] = count
                for row in range(rows):
                    pool_filled[pool, row] |= known[row] if known.size else np.uint8(1)
                return
        x = y.ctypes.data
        ld = stride
        side = 1 - side


@jit
def run_cascade(
    net: PackedNetwork,
    tiling: Tiling,
    indptr: NDArray[np.int64],
    narrow: NDArray[np.uint16],
    wide: NDArray[np.int32],
    values: NDArray[np.float32],
    droppable_from: int,
    next_tile: NDArray[np.int64],
    scratch: NDArray[np.float32],
    alive: NDArray[np.int32],
    pools: NDArray[np.float32],
    pool_ids: NDArray[np.int64],
    filled: NDArray[np.uint8],
    order: NDArray[np.int32],
    nonzero: NDArray[np.uint8],
    outputs: NDArray[np.float32],
) -> None:
    """One thread's share of all input columns: see the module's text.

    `next_tile` is shared by the threads (an atomic counter), as are the inputs, `nonzero`
    ``(images,)`` and `outputs` ``(n_out, images)`` (or ``(0, 0)`` if not wanted), of which every
    column is written by one thread. `scratch` ``(2, width * stride)``, `alive`, `pools`
    ``(pools, width * pool_stride)``, `pool_ids`, `filled` ``(2 + pools, width)`` and `order` are
    the thread's own.
    """
    images = indptr.size - 1
    columns = tiling.columns
    depth = pools.shape[0]
    layer_of_pool = np.zeros(depth, np.int64)
    for layer in range(tiling.pool_of_layer.size):
        if tiling.pool_of_layer[layer] >= 0:
            layer_of_pool[tiling.pool_of_layer[layer]] = layer
    count = np.zeros(depth, np.int64)
    pool_filled = filled[2:]
    pool_filled[:] = 0
    ids = np.empty(columns, np.int64)
    more = True
    while True:
        # Full pools first, the deepest of all: their tiles are the ones still in the cache.
        pool = depth - 1
        while pool >= 0 and count[pool] < columns:
            pool -= 1
        if pool < 0 and more:
            first = columns * atomic_add(next_tile.ctypes.data, 1)
            if first < images:
                n = min(columns, images - first)
                for c in range(n):
                    ids[c] = first + c
                _expand(
                    indptr, narrow, wide, values, first, n, scratch[0], net.width[0],
                    tiling.stride, filled[0],
                )  # fmt: skip
                _advance(
                    net, tiling, 0, scratch[0], tiling.stride, n, ids, scratch, alive,
                    pools, pool_ids, count, pool_filled, filled[0][: net.width[0]], filled,
                    order, droppable_from, nonzero, outputs,
                )  # fmt: skip
            else:
                more = False
            continue
        if pool < 0:
            pool = 0
            while pool < depth and count[pool] == 0:
                pool += 1
            if pool == depth:
                return
        n = min(columns, count[pool])
        ids[:n] = pool_ids[pool, :n]
        layer = layer_of_pool[pool]
        _advance(
            net, tiling, layer, pools[pool], tiling.pool_stride, n, ids, scratch, alive,
            pools, pool_ids, count, pool_filled, pool_filled[pool][: net.width[layer]], filled,
            order, droppable_from, nonzero, outputs,
        )  # fmt: skip
        rest = count[pool] - n
        if not rest:
            pool_filled[pool, :] = 0
        if rest:
            held = pools[pool]
            for row in range(net.width[layer]):
                at = row * tiling.pool_stride
                for c in range(rest):
                    held[at + c] = held[at + n + c]
            pool_ids[pool, :rest] = pool_ids[pool, n : n + rest]
        count[pool] = rest


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
