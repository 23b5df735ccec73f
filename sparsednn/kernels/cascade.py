"""The cascade: tiles of columns through all layers, kept full while their columns die.

Columns die (become all zero) at very different layers; in the official networks 3 % live through
layer 13. Sending a tile straight through all layers would mostly multiply dead lanes; waiting for
all columns after each layer would push everything through main memory. So every thread keeps a
small *pool* in front of some layers. A tile runs on until less than `keep` of it is alive in front
of a layer that has a pool; its live columns are packed into that pool. A pool that holds a full
tile is run next, the deepest first, so that all tiles in flight stay full and the memory is
bounded: a pool has room for two tiles. What is left at the end is run from the first pool to the
last.

Columns never mix, so neither the order nor the threads change any result, bit by bit.

With a `Link` the neurons are divided among ranks: every layer exchanges rows (`linked`), and a
column is dead when it is dead on all ranks. All decisions (which tile next, what to pack) follow
from that agreement alone, so that all ranks take the same ones. `link` is None otherwise, and
numba leaves these branches out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.kernels.linked import Link, agree, multiply_linked
from sparsednn.kernels.microkernel import LANES, atomic_add, compress
from sparsednn.kernels.packing import CLAMP, PackedNetwork
from sparsednn.kernels.tiles import Tiling, activate, multiply_layer

__all__ = ["Images", "Workspace", "run_cascade"]

#: Rows that are all zero are looked for while at least one in so many is.
_FEW_ZEROS = 8


class Images(NamedTuple):
    """Input columns and where their results go; shared by the threads.

    The features of image i are ``narrow`` or ``wide`` (the other is empty) at
    ``indptr[i]:indptr[i+1]``; no `values` means all ones. `nonzero` ``(images,)`` is set to 1
    for images that end alive; `outputs` is ``(n_out, images)``, or ``(0, 0)`` if not wanted.
    """

    indptr: NDArray[np.int64]
    narrow: NDArray[np.uint16]
    wide: NDArray[np.int32]
    values: NDArray[np.float32]
    nonzero: NDArray[np.uint8]
    outputs: NDArray[np.float32]


class Workspace(NamedTuple):
    """One thread's own memory; `width` is that of the widest layer, `stride` a tile's.

    Made with `entry`, `held` and `filled` zero, and left so that it could be used again.

    `held` is the number of columns in each pool. `filled` says which rows are not all zero: two
    rows for `scratch`, one for `entry` (the tile that images are written into, zero where `filled`
    is), then one per pool.
    """

    scratch: NDArray[np.float32]  # (2, width * stride)
    entry: NDArray[np.float32]  # (n_in * stride,)
    alive: NDArray[np.int32]  # (stride,)
    pools: NDArray[np.float32]  # (pools, width * pool_stride)
    pool_ids: NDArray[np.int64]  # (pools, pool_stride)
    held: NDArray[np.int64]  # (pools,)
    filled: NDArray[np.uint8]  # (3 + pools, width)
    order: NDArray[np.int32]  # (2, longest pattern), see multiply_layer
    ids: NDArray[np.int64]  # (columns,)


@jit
def _expand(
    images: Images,
    first: int,
    columns: int,
    x: NDArray[np.float32],
    rows: int,
    ld: int,
    filled: NDArray[np.uint8],
) -> None:
    """Write images `first` … into a tile and note the rows that are `filled`.

    Of the tile, only the rows that `filled` has from last time are not zero. Indices are unsigned,
    because numba looks at every signed one for a count from the end; this loop is felt.
    """
    stride = np.uint64(ld)
    for row in range(rows):
        if filled[row] != 0:
            filled[row] = 0
            for at in range(row * ld, (row + 1) * ld):
                x[at] = np.float32(0)
    ones = images.values.size == 0
    for c in range(columns):
        column = np.uint64(c)
        begin = np.uint64(images.indptr[first + c])
        end = np.uint64(images.indptr[first + c + 1])
        if images.narrow.size:
            for k in range(begin, end):
                feature = np.uint64(images.narrow[k])
                x[feature * stride + column] = np.float32(1) if ones else images.values[k]
                filled[feature] = np.uint8(1)
        else:
            for k in range(begin, end):
                feature = np.uint64(images.wide[k])
                x[feature * stride + column] = np.float32(1) if ones else images.values[k]
                filled[feature] = np.uint8(1)


@jit
def _pack(tiling: Tiling, work: Workspace, pool: int, y: int, rows: int, columns: int) -> None:
    """Append the live columns of the tile at address `y` to a pool, row by row."""
    alive = work.alive
    alive[columns:] = 0
    held = work.held[pool]
    words = alive.ctypes.data
    target = work.pools[pool].ctypes.data + 4 * held
    for row in range(rows):
        source = y + 4 * row * tiling.stride
        place = target + 4 * row * tiling.pool_stride
        for at in range(0, 4 * columns, 4 * LANES):
            place += 4 * compress(source + at, words + at, place)
    for c in range(columns):
        if alive[c] != 0:
            work.pool_ids[pool, held] = work.ids[c]
            held += 1
    work.held[pool] = held


@jit
def _take(tiling: Tiling, work: Workspace, pool: int, rows: int, columns: int) -> None:
    """Remove the first `columns` columns of a pool: what is behind them moves to the front."""
    left = work.held[pool] - columns
    work.held[pool] = left
    if left == 0:
        work.filled[3 + pool, :] = 0
        return
    x = work.pools[pool]
    for row in range(rows):
        at = row * tiling.pool_stride
        for c in range(left):
            x[at + c] = x[at + columns + c]
    work.pool_ids[pool, :left] = work.pool_ids[pool, columns : columns + left]


@jit
def _finish(
    images: Images,
    work: Workspace,
    y: NDArray[np.float32],
    rows: int,
    ld: int,
    columns: int,
) -> None:
    """Note which images end nonzero and, where wanted, write their output columns."""
    for c in range(columns):
        if work.alive[c] != 0:
            images.nonzero[work.ids[c]] = 1
    if images.outputs.shape[0] == rows:
        for r in range(rows):
            for c in range(columns):
                images.outputs[r, work.ids[c]] = y[r * ld + c]


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
def _worth_knowing(filled: NDArray[np.uint8]) -> bool:
    """Whether enough rows are all zero for leaving them out to pay."""
    count = 0
    for row in range(filled.size):
        count += filled[row]
    return count * _FEW_ZEROS <= filled.size * (_FEW_ZEROS - 1)


@jit
def _advance(
    net: PackedNetwork,
    tiling: Tiling,
    images: Images,
    work: Workspace,
    link: Link | None,
    layer: int,
    source: NDArray[np.float32],
    ld: int,
    source_filled: NDArray[np.uint8],
    columns: int,
    droppable_from: int,
) -> int:
    """Take the tile ``work.ids[:columns]`` from `layer` to the end, into a pool, or to its death.

    While enough rows of the tile are all zero (blank borders of images, above all), they are left
    out of the products; `known` says which, and is empty as soon as this does not pay any more.
    Returns MPI's error code (0: none).
    """
    layers = net.width.size - 1
    stride = tiling.stride
    alive = work.alive
    nothing = work.filled[0][:0]
    known = source_filled
    x = source.ctypes.data
    side = 0
    while True:
        y = work.scratch[side]
        rows = net.width[layer + 1]
        alive[:] = 0
        if known.size and not _worth_knowing(known):
            known = nothing
        mark = nothing
        code = net.code[layer] if link is None else net.code[3 * layer]
        if known.size and code == CLAMP:
            mark = work.filled[side][:rows]
            mark[:] = 0
        marks = mark.ctypes.data if mark.size else 0
        if link is None:
            multiply_layer(
                net, layer, x, ld, y.ctypes.data, stride, columns, alive.ctypes.data, marks, known,
                work.order,
            )  # fmt: skip
        else:
            error = multiply_linked(
                net, link, layer, x, ld, y.ctypes.data, stride, columns, alive.ctypes.data, marks,
                known, work.order,
            )  # fmt: skip
            if error != 0:
                return error
        known = mark
        if code != CLAMP:
            activate(y, rows, stride, columns, code)
            _mark_nonzero(y, rows, stride, columns, alive)
        layer += 1
        if layer == layers:
            _finish(images, work, y, rows, stride, columns)
            return 0
        pool = tiling.pool_of_layer[layer]
        if layer >= droppable_from and (link is None or pool >= 0):
            if link is not None:
                error = agree(link, layer, alive, columns)
                if error != 0:
                    return error
            live = 0
            for c in range(columns):
                if alive[c] != 0:
                    live += 1
            if live == 0:
                return 0
            if pool >= 0 and live < tiling.keep * tiling.columns:
                _pack(tiling, work, pool, y.ctypes.data, rows, columns)
                pool_filled = work.filled[3 + pool]
                for row in range(rows):
                    pool_filled[row] |= known[row] if known.size else np.uint8(1)
                return 0
        x = y.ctypes.data
        ld = stride
        side = 1 - side


@jit
def run_cascade(
    net: PackedNetwork,
    tiling: Tiling,
    images: Images,
    work: Workspace,
    droppable_from: int,
    next_tile: NDArray[np.int64],
    link: Link | None,
    tile_step: int,
) -> int:
    """One thread's share of all input columns; `next_tile` is an atomic counter of all threads.

    From layer `droppable_from` on, dead columns may be dropped. With a `link`, tiles are dealt in
    a fixed order instead, as all ranks must take the same: `next_tile` is this stream's own
    counter, which goes on by `tile_step`. Returns MPI's error code (0: none).
    """
    columns = tiling.columns
    held = work.held
    depth = held.size
    layer_of_pool = np.zeros(depth, np.int64)
    for layer in range(tiling.pool_of_layer.size):
        if tiling.pool_of_layer[layer] >= 0:
            layer_of_pool[tiling.pool_of_layer[layer]] = layer
    more = True
    while True:
        # Full pools first, the deepest of all: their tiles are the ones still in the cache.
        pool = depth - 1
        while pool >= 0 and held[pool] < columns:
            pool -= 1
        if pool < 0 and more:
            first = columns * atomic_add(next_tile.ctypes.data, tile_step)
            n = min(columns, images.indptr.size - 1 - first)
            if n <= 0:
                more = False
                continue
            for c in range(n):
                work.ids[c] = first + c
            filled = work.filled[2][: net.width[0]]
            x = work.entry
            _expand(images, first, n, x, net.width[0], tiling.stride, filled)
            error = _advance(
                net, tiling, images, work, link, 0, x, tiling.stride, filled, n, droppable_from
            )
            if error != 0:
                return error
            continue
        if pool < 0:
            pool = 0
            while pool < depth and held[pool] == 0:
                pool += 1
            if pool == depth:
                return 0
        n = min(columns, held[pool])
        work.ids[:n] = work.pool_ids[pool, :n]
        layer = layer_of_pool[pool]
        filled = work.filled[3 + pool][: net.width[layer]]
        x = work.pools[pool]
        error = _advance(
            net, tiling, images, work, link, layer, x, tiling.pool_stride, filled, n, droppable_from
        )
        if error != 0:
            return error
        _take(tiling, work, pool, net.width[layer], n)
