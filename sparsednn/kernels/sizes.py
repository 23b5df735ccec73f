"""Choosing sizes from the machine: columns of a tile, row strides, and which layers have pools."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.kernels.microkernel import LANES, MAX_VECTORS
from sparsednn.kernels.tiles import Tiling
from sparsednn.machine import Machine
from sparsednn.network import SparseNetwork

__all__ = ["choose_tiling", "make_tiling", "most_pools", "row_stride", "tile_columns"]

_LINE = 64  # bytes of a cache line
#: Part of the cache that a tile's two layers may fill; the rest is for weights and the pools.
_CACHE_SHARE = 0.5
#: A tile goes on unpacked while this much of it is alive. In the second-level cache, packing a tile
#: costs about as much as multiplying a tenth of it; behind it, more.
_KEEP_NEAR, _KEEP_FAR = 0.75, 0.5
#: Part of the memory that all threads' pools may take if they are all used (they never are).
_POOL_SHARE = 1 / 16
_POOL_LAYERS = 16  # so many layers have a pool each, behind them eight per doubling of the depth


def row_stride(columns: int) -> int:
    """Row stride in elements: an odd number of cache lines that holds `columns`."""
    lines = -(-4 * columns // _LINE)
    return (lines | 1) * _LINE // 4


def _pool_layers(first: int, layers: int, most: int) -> NDArray[np.int64]:
    """Which layers have a pool: each of the first ones, then eight per doubling of the depth.

    Columns die early; a pool in front of each of 1920 layers would cost memory for nothing. No
    layer in front of `first` has one, and there are at most `most`.
    """
    result = np.full(layers + 1, -1, np.int64)
    depth, step, pools = 1, 1, 0
    while depth < layers and pools < most:
        if depth >= first:
            result[depth] = pools
            pools += 1
        if depth >= _POOL_LAYERS * step:
            step *= 2
        depth += step
    return result


def tile_columns(floats: int, cpu: Machine, threads: int) -> tuple[int, bool]:
    """Choose how many columns a tile has, and say whether it fits the second-level cache.

    The `floats` that a column has in two layers should stay in the second-level cache. A tile has
    at least one full panel of the microkernel (its registers are filled only then), as long as this
    fits the thread's share of the last-level cache, and at least one vector in any case.
    """
    panel = LANES * MAX_VECTORS
    per_column = 4 * max(1, floats)
    columns = int(_CACHE_SHARE * cpu.l2) // per_column // panel * panel
    near = columns >= panel
    if not near:
        last_level = int(_CACHE_SHARE * cpu.l3 / max(1, min(threads, cpu.l3_shared_by)))
        columns = min(panel, max(LANES, last_level // per_column // LANES * LANES))
    return min(columns, 16 * panel), near


def most_pools(columns: int, widest: int, cpu: Machine, threads: int) -> int:
    """Return how many pools of a tile's size the memory allows, if `threads` have as many each."""
    per_pool = 4 * max(1, widest) * _pool_stride(columns)
    return int(_POOL_SHARE * (cpu.memory or 4 << 30)) // (threads * per_pool)


def make_tiling(columns: int, near: bool, droppable_from: int, layers: int, pools: int) -> Tiling:
    """Make the tiling for tiles of `columns` columns and at most so many pools."""
    return Tiling(
        columns=columns,
        stride=row_stride(columns),
        pool_stride=_pool_stride(columns),
        pool_of_layer=_pool_layers(max(1, droppable_from), layers, pools),
        keep=_KEEP_NEAR if near else _KEEP_FAR,
    )


def _pool_stride(columns: int) -> int:
    return row_stride(2 * columns + LANES)


def choose_tiling(network: SparseNetwork, cpu: Machine, threads: int) -> Tiling:
    """Choose the tiling of a whole network on one machine."""
    widest = max(network.n_in, *(layer.n_out for layer in network))
    columns, near = tile_columns(2 * widest, cpu, threads)
    pools = most_pools(columns, widest, cpu, threads)
    return make_tiling(columns, near, network.droppable_from, len(network), pools)
