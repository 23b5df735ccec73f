"""Twins of ``exchange.cu``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.twins import TILE, Defines, narrow, tiles_of, widen

__all__ = ["add_lines", "gather_lines", "scatter_lines"]


def _tiles(columns: NDArray[np.int32]) -> int:
    return -(-int(columns[0]) // TILE)


def _bits(values: NDArray[Any]) -> NDArray[Any]:
    """Stored values as they are: what is moved only is not rounded."""
    return values.view(np.uint32 if values.itemsize == 4 else np.uint16)


def _messages(
    packed: NDArray[Any], starts: NDArray[np.int32], messages: np.int32, tiles: int
) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Packed lines of each message, and its values ``(tiles, lines, TILE)``; a view."""
    flat = packed.reshape(-1)
    for m in range(int(messages)):
        first, last = int(starts[m]), int(starts[m + 1])
        values = flat[tiles * first * TILE : tiles * last * TILE]
        yield slice(first, last), values.reshape(tiles, last - first, TILE)


def gather_lines(
    defines: Defines, x: NDArray[Any], packed: NDArray[Any], lines: NDArray[np.int32] | None,
    first_line: np.int32, starts: NDArray[np.int32], messages: np.int32,
    columns: NDArray[np.int32], x_lines: np.int32,
) -> None:  # fmt: skip
    """Chosen lines of all tiles into messages."""
    tiles = _tiles(columns)
    here = _bits(tiles_of(x, tiles, int(x_lines)))
    for some, values in _messages(_bits(packed), starts, messages, tiles):
        chosen = (
            np.arange(some.start, some.stop) + int(first_line) if lines is None else lines[some]
        )
        values[...] = here[:, chosen]


def scatter_lines(
    defines: Defines, packed: NDArray[Any], x: NDArray[Any], first_line: np.int32,
    starts: NDArray[np.int32], messages: np.int32, columns: NDArray[np.int32], x_lines: np.int32,
) -> None:  # fmt: skip
    """Messages into lines that lie one behind another."""
    tiles, at = _tiles(columns), int(first_line)
    here = _bits(tiles_of(x, tiles, int(x_lines)))
    for some, values in _messages(_bits(packed), starts, messages, tiles):
        here[:, at + some.start : at + some.stop] = values


def add_lines(
    defines: Defines, packed: NDArray[Any], x: NDArray[Any], lines: NDArray[np.int32],
    first: NDArray[np.int32], places: NDArray[np.int32], n: np.int32, starts: NDArray[np.int32],
    columns: NDArray[np.int32], x_lines: np.int32,
) -> None:  # fmt: skip
    """Messages added to lines, in the order of the places."""
    tiles, pairs = _tiles(columns), places.reshape(-1, 2)
    here = tiles_of(x, tiles, int(x_lines))
    messages = [values for _, values in _messages(packed, starts, np.int32(starts.size - 1), tiles)]
    for r in range(int(n)):
        line = int(lines[r])
        total = widen(here[:, line], defines)
        for message, i in pairs[int(first[r]) : int(first[r + 1])]:
            total = total + widen(messages[message][:, i], defines)
        here[:, line] = narrow(total, defines)
