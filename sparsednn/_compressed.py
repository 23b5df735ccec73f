"""Check compressed rows or columns (CSR, CSC) once, so that no kernel meets an impossible index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.errors import InputError, ShapeError

__all__ = ["as_int32", "check_compressed"]


def as_int32(indices: ArrayLike, size: int, minor: str) -> NDArray[np.int32]:
    """Indices as contiguous int32, shared if they are that; too large ones are an error, not cut.

    Raises
    ------
    ShapeError
        If an index does not fit; `minor` is what an index counts, `size` how many there are.
    """
    wide = np.asarray(indices)
    if wide.dtype.itemsize > 4 and wide.size and int(wide.max()) >= 2**31:
        raise ShapeError(f"{minor} {int(wide.max())} is out of range for {size}")
    return np.ascontiguousarray(wide, dtype=np.int32)


def check_compressed(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    values: NDArray[np.float32] | None,
    size: int,
    *,
    major: str,
    minor: str,
    value: Callable[[int, int], str],
) -> None:
    """Reject arrays that are not a matrix in compressed form with ascending indices.

    Parameters
    ----------
    indptr, indices, values
        ``(majors + 1,)``, ``(nnz,)``, ``(nnz,)``; `values` may be None (all ones).
    size
        Indices run from 0 to ``size - 1``.
    major, minor, value
        For messages: what `indptr` and what `indices` count, and how an entry is called.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or an index is out of range.
    InputError
        If indices do not ascend within a major, or a value is NaN or infinite.
    """

    def major_of(position: int) -> int:
        return int(np.searchsorted(indptr, position, side="right")) - 1

    if indices.ndim != 1 or (values is not None and values.shape != indices.shape):
        found = "" if values is None else f" and values {values.shape}"
        raise ShapeError(f"indices {indices.shape}{found} must be flat and equally long")
    if indptr[0] != 0 or indptr[-1] != indices.size:
        raise ShapeError(
            f"indptr runs from {indptr[0]} to {indptr[-1]}, but there are {indices.size} nonzeros"
        )
    if np.any(indptr[1:] < indptr[:-1]):
        raise ShapeError("indptr must not descend")
    if not indices.size:
        return
    if int(indices.min()) < 0 or int(indices.max()) >= size:
        at = int(np.argmax((indices < 0) | (indices >= size)))
        raise ShapeError(
            f"{major} {major_of(at)}: {minor} {int(indices[at])} is out of range for {size}"
        )
    if values is not None and not np.isfinite(values).all():
        at = int(np.argmin(np.isfinite(values)))
        name = value(major_of(at), int(indices[at]))
        raise InputError(f"{name} is {values[at]}: it must be finite")
    ascending = indices[1:] > indices[:-1]
    starts = indptr[1:-1]
    ascending[starts[(starts > 0) & (starts < indices.size)] - 1] = True
    if not ascending.all():
        at = int(np.argmin(ascending)) + 1
        here, before = int(indices[at]), int(indices[at - 1])
        what = "is there twice" if here == before else f"stands behind {minor} {before}"
        raise InputError(f"{major} {major_of(at)}: {minor} {here} {what}; they must ascend")
