"""Passes over the outputs of a batch, column by column (image by image): what losses are made of.

With thousands of output neurons a loss in plain NumPy takes as long as a sparse layer: comparisons,
conversions and reductions along the first axis each go through memory on their own. These loops
run along rows, which lie contiguously, for all columns at once, and so become vector code. exp is
not among them: NumPy's is vector code, a compiled loop's is not.

Arrays are ``(rows, B)``, C-contiguous, float32 or float64; sums are float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = ["add_column_sums", "count_misses", "raise_to", "scale_columns", "subtract_from_columns"]

_Floats = NDArray[np.floating[Any]]


@jit
def raise_to(largest: _Floats, array: _Floats) -> None:
    """Make each ``largest[c]`` at least the largest number of column c; NaN does not count."""
    for r in range(array.shape[0]):
        row = array[r]
        for c in range(row.size):
            largest[c] = row[c] if row[c] > largest[c] else largest[c]


@jit
def count_misses(
    misses: NDArray[np.float64],
    array: _Floats,
    largest: _Floats,
    rows: NDArray[np.int32],
    labels: NDArray[np.int64],
) -> None:
    """Set ``misses[c]`` to 1 where a row in front of the label is as large as the largest.

    `rows` ``(rows,)`` are the numbers that labels refer to.
    """
    for r in range(array.shape[0]):
        row, number = array[r], np.int64(rows[r])
        for c in range(row.size):
            ahead = (row[c] == largest[c]) & (number < labels[c])
            misses[c] = 1.0 if ahead else misses[c]


@jit
def subtract_from_columns(array: _Floats, numbers: _Floats) -> None:
    """``array[:, c] -= numbers[c]``."""
    for r in range(array.shape[0]):
        row = array[r]
        for c in range(row.size):
            row[c] -= numbers[c]


@jit
def add_column_sums(sums: NDArray[np.float64], array: _Floats) -> None:
    """``sums[c] += the sum of column c``."""
    for r in range(array.shape[0]):
        row = array[r]
        for c in range(row.size):
            sums[c] += np.float64(row[c])


@jit
def scale_columns(array: _Floats, factors: _Floats) -> None:
    """``array[:, c] *= factors[c]``."""
    for r in range(array.shape[0]):
        row = array[r]
        for c in range(row.size):
            row[c] *= factors[c]
