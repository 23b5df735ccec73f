"""Twins of ``layer.cu``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.packing import BUNDLE_ROWS, FIELDS
from sparsednn.gpu.twins import TILE, Defines, Floats, narrow, tiles_of, widen
from sparsednn.kernels.packing import CLAMP, SIGMOID, TANH

__all__ = ["activate", "layer", "product", "resident", "softmax"]

_AT = {name: place for place, name in enumerate(FIELDS)}


def activate(z: Floats, code: int, low: np.float32, high: np.float32) -> Floats:
    """The activation; NaN stays NaN."""
    if code == CLAMP:
        z = np.where(z < low, low, z)
        return np.where(z > high, high, z)
    if code == SIGMOID:
        e = np.exp(-np.abs(z))
        return np.asarray(np.where(z >= 0, np.float32(1), e) / (np.float32(1) + e), np.float32)
    return np.tanh(z) if code == TANH else z


def product(
    fields: NDArray[np.int64],
    bundles: NDArray[np.int32],
    index: NDArray[Any],
    weight: Floats,
    x: Floats,
    sums: Floats,
) -> NDArray[np.int64]:
    """Add each bundle's products to `sums`, ``(tiles, rows in bundle order, TILE)``.

    Connection by connection, as the kernel does; returns where the rows stand. `x` is
    ``(tiles, lines, TILE)``.
    """
    first, rows = int(fields[_AT["bundle_first"]]), 0
    begin = 0
    for size, field in zip(BUNDLE_ROWS, ("ends_8", "ends_4", "ends_2", "ends_1"), strict=True):
        end = int(fields[_AT[field]])
        for pattern, connections, at, row in bundles[first + begin : first + end]:
            for k in range(connections):
                line = x[:, int(index[pattern + k])]
                w = weight[at + k * size : at + (k + 1) * size]
                sums[:, row : row + size] += w[:, None] * line[:, None, :]
            rows = max(rows, int(row) + size)
        begin = end
    return np.arange(rows)


def _run(
    defines: Defines,
    number: int,
    x: Floats,
    y: NDArray[Any],
    arrays: tuple[NDArray[Any], ...],
) -> NDArray[np.bool_]:
    """One layer of some tiles, ``(tiles, lines, TILE)``; which columns are alive, (tiles, TILE)."""
    table, limits, bundles, index, weight, rows, biases = arrays
    fields = table.reshape(-1, 16)[number]
    at_index, at_weight = int(fields[_AT["index_first"]]), int(fields[_AT["weight_first"]])
    at_row = int(fields[_AT["row_first"]])
    mine = bundles.reshape(-1, 4)[int(fields[0]) :][: int(fields[_AT["ends_1"]])]
    count = int((mine[-1, 3] + 1) if mine.size else 0)
    # The last bundle has one row or more: its size follows from where it stands.
    if mine.size:
        ends = [int(fields[_AT[f"ends_{size}"]]) for size in BUNDLE_ROWS]
        last = next(s for s, e in zip(BUNDLE_ROWS, ends, strict=True) if e == ends[-1])
        count = int(mine[-1, 3]) + last
    target = rows[at_row : at_row + count]
    sums = np.zeros((x.shape[0], count, TILE), np.float32)
    if fields[_AT["add"]]:
        sums += widen(y[:, target], defines)
    wide = widen(weight[at_weight:], defines) if weight.dtype != np.float32 else weight[at_weight:]
    product(fields, bundles.reshape(-1, 4), index[at_index:], wide, x, sums)
    sums += biases[at_row : at_row + count][:, None]
    low, high = limits.reshape(-1, 2)[number]
    out = narrow(activate(sums, int(fields[_AT["code"]]), low, high), defines)
    y[:, target] = out
    return np.asarray((widen(out, defines) != 0).any(axis=1))


def _tell(alive: NDArray[np.uint32] | None, found: NDArray[np.bool_]) -> None:
    if alive is None:
        return
    bits = (found.astype(np.uint64) << np.arange(TILE, dtype=np.uint64)).sum(axis=1)
    alive[: bits.size] |= bits.astype(np.uint32)


def layer(
    defines: Defines, x: NDArray[Any], y: NDArray[Any], table: NDArray[np.int64],
    limits: Floats, bundles: NDArray[np.int32], index: NDArray[Any], weight: NDArray[Any],
    rows: NDArray[np.int32], biases: Floats, number: np.int32, columns: NDArray[np.int32],
    alive: NDArray[np.uint32] | None, x_lines: np.int32, y_lines: np.int32, near: np.int32,
) -> None:  # fmt: skip
    """One layer of all tiles."""
    count, one = int(columns[0]), int(number)
    tiles = -(-count // TILE)
    fields = table.reshape(-1, 16)[one]
    if count > fields[_AT["wide_above"]]:
        one = int(fields[_AT["wide_entry"]])
    arrays = (table, limits, bundles, index, weight, rows, biases)
    here = widen(tiles_of(x, tiles, int(x_lines)), defines)
    _tell(alive, _run(defines, one, here, tiles_of(y, tiles, int(y_lines)), arrays))


def resident(
    defines: Defines, x: NDArray[Any], y: NDArray[Any], table: NDArray[np.int64],
    limits: Floats, bundles: NDArray[np.int32], index: NDArray[Any], weight: NDArray[Any],
    rows: NDArray[np.int32], biases: Floats, first: np.int32, last: np.int32,
    columns: NDArray[np.int32], alive: NDArray[np.uint32] | None, x_lines: np.int32,
    y_lines: np.int32, most_lines: np.int32,
) -> None:  # fmt: skip
    """Several layers of all tiles."""
    tiles = -(-int(columns[0]) // TILE)
    arrays = (table, limits, bundles, index, weight, rows, biases)
    now = np.array(tiles_of(x, tiles, int(x_lines)))
    found = np.zeros((tiles, TILE), np.bool_)
    for number in range(int(first), int(last)):
        n_out = int(table.reshape(-1, 16)[number, _AT["n_out"]])
        following = np.empty((tiles, n_out, TILE), now.dtype)
        found = _run(defines, number, widen(now, defines), following, arrays)
        now = following
    tiles_of(y, tiles, int(y_lines))[:, : now.shape[1]] = now
    _tell(alive, found)


def softmax(
    defines: Defines, y: NDArray[Any], n_out: np.int32, columns: NDArray[np.int32],
    alive: NDArray[np.uint32] | None, y_lines: np.int32,
) -> None:  # fmt: skip
    """Softmax over the rows of each column, in place."""
    tiles = -(-int(columns[0]) // TILE)
    here = tiles_of(y, tiles, int(y_lines))[:, : int(n_out)]
    z = widen(here, defines)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    here[...] = narrow(e / e.sum(axis=1, keepdims=True), defines)
    if alive is not None:
        alive[:tiles] = np.uint32(0xFFFFFFFF)
