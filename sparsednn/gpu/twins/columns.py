"""Twins of ``columns.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.twins import TILE, Defines, Floats, narrow, tiles_of, widen

__all__ = [
    "alive_columns",
    "count_living",
    "keep_living",
    "load_dense",
    "load_images",
    "store_dense",
    "tell_living",
]


def _tiles(columns: NDArray[np.int32]) -> int:
    return -(-int(columns[0]) // TILE)


def alive_columns(alive: NDArray[np.uint32], count: int) -> NDArray[np.int64]:
    """Numbers of the living ones among the first `count` columns."""
    column = np.arange(count)
    bits = alive[column // TILE] >> (column % TILE).astype(np.uint32)
    return np.flatnonzero(bits & 1)


def load_images(
    defines: Defines, x: NDArray[Any], indptr: NDArray[np.int64], features: NDArray[Any],
    values: Floats | None, base: np.int64, images: np.int32, x_lines: np.int32,
    columns: NDArray[np.int32], ids: NDArray[np.int32],
) -> None:  # fmt: skip
    """Sparse images into zeroed lines."""
    count = int(images)
    columns[0] = count
    ids[:count] = np.arange(count)
    first, last = int(indptr[0] - base), int(indptr[count] - base)
    image = np.repeat(np.arange(count), np.diff(indptr[: count + 1]))
    found = np.ones(last - first, np.float32) if values is None else values[first:last]
    here = tiles_of(x, -(-count // TILE), int(x_lines))
    here[image // TILE, features[first:last].astype(np.int64), image % TILE] = narrow(
        found, defines
    )


def load_dense(
    defines: Defines, x: NDArray[Any], dense: Floats, n: np.int32, images: np.int32,
    stride: np.int64, x_lines: np.int32, columns: NDArray[np.int32],
) -> None:  # fmt: skip
    """Dense columns into tiles; columns beyond them become zero."""
    count, lines = int(images), int(n)
    columns[0] = count
    tiles = -(-count // TILE)
    flat = dense.reshape(-1)
    padded = np.zeros((lines, tiles * TILE), np.float32)
    for line in range(lines):
        padded[line, :count] = flat[line * int(stride) : line * int(stride) + count]
    here = tiles_of(x, tiles, int(x_lines))
    here[:, :lines] = narrow(padded.reshape(lines, tiles, TILE).transpose(1, 0, 2), defines)


def count_living(
    defines: Defines, alive: NDArray[np.uint32], columns: NDArray[np.int32],
    offsets: NDArray[np.int32], living: NDArray[np.int32],
) -> None:  # fmt: skip
    """Where each tile's living columns go, and how many there are."""
    count, tiles = int(columns[0]), _tiles(columns)
    if count % TILE:
        alive[tiles - 1] &= np.uint32((1 << (count % TILE)) - 1)
    each = np.bitwise_count(alive[:tiles]).astype(np.int64)
    offsets[:tiles] = np.cumsum(each) - each
    living[0] = each.sum()


def keep_living(
    defines: Defines, x: NDArray[Any], y: NDArray[Any], alive: NDArray[np.uint32],
    offsets: NDArray[np.int32], columns: NDArray[np.int32], living: NDArray[np.int32],
    ids: NDArray[np.int32], kept_ids: NDArray[np.int32], n: np.int32, x_lines: np.int32,
    y_lines: np.int32,
) -> None:  # fmt: skip
    """Living columns move together; the rest of the last tile becomes zero."""
    chosen = alive_columns(alive, int(columns[0]))
    kept, lines = int(living[0]), int(n)
    before = tiles_of(x, _tiles(columns), int(x_lines))[:, :lines]
    after = tiles_of(y, -(-kept // TILE), int(y_lines))[:, :lines]
    flat = np.zeros((lines, after.shape[0] * TILE), after.dtype)
    flat[:, : chosen.size] = before[chosen // TILE, :, chosen % TILE].T
    after[...] = flat.reshape(lines, -1, TILE).transpose(1, 0, 2)
    kept_ids[:kept] = ids[chosen]


def tell_living(
    defines: Defines, alive: NDArray[np.uint32], columns: NDArray[np.int32],
    ids: NDArray[np.int32], flags: NDArray[np.uint8],
) -> None:  # fmt: skip
    """Flag the images of living columns."""
    flags[ids[alive_columns(alive, int(columns[0]))]] = 1


def store_dense(
    defines: Defines, y: NDArray[Any], dense: Floats, n: np.int32, columns: NDArray[np.int32],
    stride: np.int64, y_lines: np.int32, ids: NDArray[np.int32] | None,
) -> None:  # fmt: skip
    """Tiles to dense columns, each at the place of its image."""
    count, lines = int(columns[0]), int(n)
    here = widen(tiles_of(y, _tiles(columns), int(y_lines))[:, :lines], defines)
    flat = here.transpose(1, 0, 2).reshape(lines, -1)[:, :count]
    place = np.arange(count) if ids is None else ids[:count].astype(np.int64)
    out = dense.reshape(-1)
    for line in range(lines):
        out[line * int(stride) + place] = flat[line]
