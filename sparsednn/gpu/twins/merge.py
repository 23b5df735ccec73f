"""Twins of ``merge.cu``; another hash table would do: what is equal is decided by comparison."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.twins import TILE, Defines, tiles_of
from sparsednn.gpu.twins.columns import alive_columns

__all__ = ["compare_columns", "drop_equal", "enter_columns", "hash_columns"]


def _mix(h: NDArray[np.uint64]) -> NDArray[np.uint64]:
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(0xFF51AFD7ED558CCD)
    h = h ^ (h >> np.uint64(33))
    h = h * np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    return values.view(np.uint32 if values.itemsize == 4 else np.uint16)


def hash_columns(
    defines: Defines, x: NDArray[Any], columns: NDArray[np.int32], n: np.int32,
    x_lines: np.int32, hashes: NDArray[np.uint64],
) -> None:  # fmt: skip
    """Add a hash of every column, dead ones included."""
    tiles = -(-int(columns[0]) // TILE)
    here = _bits(tiles_of(x, tiles, int(x_lines))[:, : int(n)])
    line = np.arange(1, int(n) + 1, dtype=np.uint64) << np.uint64(32)
    hashes[: tiles * TILE] += _mix(line[:, None] | here).sum(axis=1, dtype=np.uint64).reshape(-1)


def enter_columns(
    defines: Defines, hashes: NDArray[np.uint64], alive: NDArray[np.uint32],
    columns: NDArray[np.int32], table: NDArray[np.uint64], first: NDArray[np.uint32],
    slots: NDArray[np.uint32], mask: np.uint32,
) -> None:  # fmt: skip
    """Find the first living column of every hash."""
    for column in alive_columns(alive, int(columns[0])):
        key = hashes[column] or np.uint64(1)
        slot = int(_mix(np.array([key]))[0] >> np.uint64(20)) & int(mask)
        while table[slot] not in (0, key):
            slot = (slot + 1) & int(mask)
        table[slot], slots[column] = key, slot
        first[slot] = max(first[slot], ~np.uint32(column))


def compare_columns(
    defines: Defines, x: NDArray[Any], alive: NDArray[np.uint32], columns: NDArray[np.int32],
    first: NDArray[np.uint32], slots: NDArray[np.uint32], n: np.int32, x_lines: np.int32,
    differs: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Tell candidates that differ from their leader."""
    tiles = -(-int(columns[0]) // TILE)
    here = _bits(tiles_of(x, tiles, int(x_lines))[:, : int(n)])
    for column in alive_columns(alive, int(columns[0])):
        leader = int(~first[slots[column]])
        own = here[column // TILE, :, column % TILE]
        if leader != column and (own != here[leader // TILE, :, leader % TILE]).any():
            differs[column] = 1


def drop_equal(
    defines: Defines, alive: NDArray[np.uint32], columns: NDArray[np.int32],
    first: NDArray[np.uint32], slots: NDArray[np.uint32], differs: NDArray[np.uint8],
    ids: NDArray[np.int32], merged: NDArray[np.int32],
) -> None:  # fmt: skip
    """End columns that are equal to their leader."""
    for column in alive_columns(alive, int(columns[0])):
        leader = int(~first[slots[column]])
        if leader != column and not differs[column]:
            merged[ids[column]] = ids[leader] + 1
            alive[column // TILE] &= ~np.uint32(1 << (column % TILE))
