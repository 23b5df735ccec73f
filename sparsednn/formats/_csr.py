"""CSR arrays from what files hold: dense matrices, coordinates. NumPy only, no check of content.

`SparseLayer` checks what comes out of here; the functions only have to survive any numbers.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import ShapeError

__all__ = ["CsrArrays", "compress", "from_coordinates", "row_pointers", "transpose"]

_BLOCK_ITEMS: Final = 1 << 22  # of a dense matrix at a time: what is copied stays small


class CsrArrays(NamedTuple):
    """``indptr (n_out + 1,)`` int64, ``indices (nnz,)`` int32 or int64, ``values (nnz,)``."""

    indptr: NDArray[Any]
    indices: NDArray[Any]
    values: NDArray[Any]


def row_pointers(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Row pointers ``(n + 1,)`` of rows with `counts` ``(n,)`` entries.

    >>> row_pointers(np.array([2, 0, 1])).tolist()
    [0, 2, 2, 3]
    """
    indptr = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=indptr[1:])
    return indptr


def compress(dense: NDArray[Any], mask: NDArray[Any] | None = None) -> CsrArrays:
    """Take the values that are not zero as float32 out of a matrix ``(n_out, n_in)``.

    Parameters
    ----------
    dense
        Of any float type, in any order in memory; read block by block.
    mask
        Of the same shape: what to multiply by, or None.
    """
    n_out, n_in = dense.shape
    step = max(1, _BLOCK_ITEMS // max(n_in, 1))
    counts = np.zeros(n_out, np.int64)
    columns, values = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    for start in range(0, n_out, step):
        rows = slice(start, start + step)
        # Too large for float32 becomes inf, and 0 · inf becomes nan, which the layer will name.
        with np.errstate(over="ignore", invalid="ignore"):
            block = dense[rows] if mask is None else dense[rows] * mask[rows]
            block = np.ascontiguousarray(block, np.float32)
        kept = np.flatnonzero(block)
        counts[rows] = np.count_nonzero(block, axis=1)
        columns.append((kept % n_in).astype(np.int32))
        values.append(block.reshape(-1)[kept])
    return CsrArrays(row_pointers(counts), np.concatenate(columns), np.concatenate(values))


def from_coordinates(
    rows: NDArray[Any], columns: NDArray[Any], values: NDArray[Any], n_out: int
) -> CsrArrays:
    """Sort entries ``(nnz,)`` in any order by row and column; twice the same place stays twice.

    Raises
    ------
    ShapeError
        If the arrays are not flat and equally long, or a row is out of range.
    """
    if not (rows.ndim == 1 and rows.shape == columns.shape == values.shape):
        raise ShapeError(
            f"rows {rows.shape}, columns {columns.shape} and values {values.shape} must be flat "
            "and equally long"
        )
    if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < n_out):
        bad = int(rows.max()) if int(rows.max()) >= n_out else int(rows.min())
        raise ShapeError(f"row {bad} is out of range for {n_out}")
    order = np.lexsort((columns, rows))
    indptr = row_pointers(np.bincount(rows, minlength=n_out))
    return CsrArrays(indptr, columns[order], values[order])


def transpose(matrix: CsrArrays, n_in: int) -> CsrArrays:
    """CSR arrays of the transpose of a matrix of `n_in` columns.

    Raises
    ------
    ShapeError
        If the arrays are no matrix in compressed form.
    """
    indptr, indices, values = matrix
    counts = np.diff(indptr)
    if indptr.size < 1 or np.any(counts < 0) or indptr[0] != 0 or indptr[-1] != indices.size:
        raise ShapeError(f"row pointers {indptr.shape} do not fit {indices.size} columns")
    return from_coordinates(indices, np.repeat(np.arange(counts.size), counts), values, n_in)
