"""Twins of ``training.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.orders import Order
from sparsednn.gpu.packing import BUNDLE_ROWS, FIELDS
from sparsednn.gpu.twins import TILE, Defines, Floats, tiles_of
from sparsednn.kernels.packing import CLAMP, SIGMOID, TANH

__all__ = [
    "backward_layer",
    "derivative",
    "load_picked",
    "multiply_derivative",
    "refresh_transposed",
    "sampled",
]

_AT = {name: place for place, name in enumerate(FIELDS)}
_ENDS = tuple(_AT[f"ends_{size}"] for size in BUNDLE_ROWS)


def _tiles(columns: NDArray[np.int32]) -> int:
    return -(-int(columns[0]) // TILE)


def load_picked(
    defines: Defines, x: Floats, indptr: NDArray[np.int64], features: NDArray[Any],
    values: Floats | None, orders: NDArray[np.int32], x_lines: np.int32,
) -> None:  # fmt: skip
    """Chosen images of a resident set into zeroed lines."""
    count = int(orders[Order.COUNT])
    here = tiles_of(x, _tiles(orders), int(x_lines))
    for column, image in enumerate(orders[Order.FIRST_PICK : Order.FIRST_PICK + count]):
        some = slice(int(indptr[image]), int(indptr[image + 1]))
        lines = features[some].astype(np.int64)
        here[column // TILE, lines, column % TILE] = 1 if values is None else values[some]


def refresh_transposed(
    defines: Defines, source: Floats, place: NDArray[np.uint32], to: Floats, n: np.int64
) -> None:
    """Weights in the order of the transposed product."""
    to[: int(n)] = source[place[: int(n)].astype(np.int64)]


def derivative(y: Floats, code: int, low: np.float32, high: np.float32) -> Floats:
    """f' in terms of y; zero at the kinks."""
    if code == CLAMP:
        inside = (np.isneginf(low) | (y > low)) & (np.isposinf(high) | (y < high))
        return np.asarray(inside, np.float32)
    if code == SIGMOID:
        return y * (np.float32(1) - y)
    if code == TANH:
        return np.float32(1) - y * y
    return np.ones_like(y)


def _bundles(
    fields: NDArray[np.int64], bundles: NDArray[np.int32]
) -> Iterator[tuple[int, NDArray[np.int32]]]:
    """Rows of a bundle, and the bundle, in the layer's order."""
    first, begin = int(fields[_AT["bundle_first"]]), 0
    for size, field in zip(BUNDLE_ROWS, _ENDS, strict=True):
        end = int(fields[field])
        for bundle in bundles.reshape(-1, 4)[first + begin : first + end]:
            yield size, bundle
        begin = end


def backward_layer(
    defines: Defines, delta: Floats, s: Floats, table: NDArray[np.int64], limits: Floats,
    bundles: NDArray[np.int32], index: NDArray[Any], weight: Floats, rows: NDArray[np.int32],
    none: Floats | None, number: np.int32, columns: NDArray[np.int32], y: Floats | None,
    d_lines: np.int32, s_lines: np.int32, y_lines: np.int32, near: np.int32,
) -> None:  # fmt: skip
    """``s = (Wᵀ delta) f'(y)``; without y the sums alone."""
    fields, tiles = table.reshape(-1, 16)[number], _tiles(columns)
    at_index, at_weight, at_row = (
        int(fields[_AT[name]]) for name in ("index_first", "weight_first", "row_first")
    )
    from_, to = tiles_of(delta, tiles, int(d_lines)), tiles_of(s, tiles, int(s_lines))
    low, high = limits.reshape(-1, 2)[number]
    for size, (pattern, connections, at, row) in _bundles(fields, bundles):
        lines = rows[at_row + row : at_row + row + size]
        taken = from_[:, index[at_index + pattern :][:connections].astype(np.int64)]
        w = weight[at_weight + at :][: connections * size].reshape(connections, size)
        sums = np.zeros((tiles, size, TILE), np.float32)
        if connections:  # NumPy's einsum reads what lies where an empty operand is: 0 · NaN
            sums = np.einsum("tkc,kr->trc", taken, w)
        if y is not None:
            saved = tiles_of(y, tiles, int(y_lines))[:, lines]
            sums = sums * derivative(saved, int(fields[_AT["code"]]), low, high)
        to[:, lines] = sums


def multiply_derivative(
    defines: Defines, s: Floats, y: Floats, n: np.int32, columns: NDArray[np.int32],
    s_lines: np.int32, y_lines: np.int32, code: np.int32, low: np.float32, high: np.float32,
) -> None:  # fmt: skip
    """``s *= f'(y)`` for the first n lines."""
    tiles, count = _tiles(columns), int(n)
    here = tiles_of(s, tiles, int(s_lines))[:, :count]
    here *= derivative(tiles_of(y, tiles, int(y_lines))[:, :count], int(code), low, high)


def sampled(
    defines: Defines, x: Floats, delta: Floats, gradient: Floats, bias_gradient: Floats,
    table: NDArray[np.int64], samples: NDArray[np.int64], index: NDArray[Any],
    rows: NDArray[np.int32], pieces: NDArray[np.int32], number: np.int32,
    orders: NDArray[np.int32], first_tile: np.int32, together: np.int32, x_lines: np.int32,
    d_lines: np.int32,
) -> None:  # fmt: skip
    """Gradients of the stored weights and of the biases of a layer, over some tiles."""
    tiles, first = _tiles(orders), int(first_tile)
    if first >= tiles:
        return
    some = slice(first, min(first + int(together), tiles))
    xs = tiles_of(x, tiles, int(x_lines))[some]
    ds = tiles_of(delta, tiles, int(d_lines))[some]
    fields, mine = table.reshape(-1, 16)[number], samples.reshape(-1, 8)[number]
    at_index, at_weight, at_row = (
        int(fields[_AT[name]]) for name in ("index_first", "weight_first", "row_first")
    )
    add = first > 0 or bool(orders[Order.ADD_PIECE])
    begin = 0
    for size, end in zip(BUNDLE_ROWS, mine[1:5].tolist(), strict=True):
        here = pieces.reshape(-1, 4)[int(mine[0]) + begin : int(mine[0]) + end]
        for pattern, at, row, connections in here:
            lines = index[at_index + pattern :][:connections].astype(np.int64)
            d = ds[:, rows[at_row + row : at_row + row + size]]
            dots = np.einsum("trc,tkc->kr", d, xs[:, lines]).reshape(-1)
            to = gradient[at_weight + at :][: connections * size]
            to[:] = to + dots if add else dots
        begin = end
    biases = int(mine[5])
    sums = ds[:, rows[at_row : at_row + biases]].sum(axis=(0, 2))
    to = bias_gradient[at_row : at_row + biases]
    to[:] = to + sums if add else sums
