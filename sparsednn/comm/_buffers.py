"""What every verb does with an array before MPI sees it: check, flatten, cut into pieces.

Arrays are NumPy's, and may be CuPy's: nothing is done to them here but to look at their
attributes, reshape and slice. Must not know: communicators and ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.mpi import load_mpi
from sparsednn.errors import ShapeError, UsageError

__all__ = ["Array", "as_counts", "empty", "flat", "mpi_operation", "mpi_type", "pieces"]

#: A NumPy array, or one of CuPy; there is no common type to name.
Array = Any

_types: dict[str, Any] = {}


def mpi_type(array: Array, what: str) -> Any:
    """Return the MPI datatype of an array's elements.

    Raises
    ------
    UsageError
        If MPI has no such type (objects, strings, foreign byte order).
    """
    code = array.dtype.char
    if code not in _types:
        mpi = load_mpi()
        try:
            _types[code] = mpi.Datatype.fromcode(code)
        except ValueError:
            _types[code] = mpi.DATATYPE_NULL
    found = _types[code]
    if not found or not array.dtype.isnative:
        raise UsageError(f"{what}: MPI has no type for elements of dtype {array.dtype}")
    return found


def mpi_operation(array: Array, op: str) -> Any:
    """Return MPI's operation for an array's elements: there is more than one "or".

    Raises
    ------
    UsageError
        If there is none of this name ("sum", "max", "min", "or"), or not for these elements.
    """
    mpi = load_mpi()
    kind = array.dtype.kind
    if op == "or" and kind in "iub":
        return mpi.LOR if kind == "b" else mpi.BOR
    if op == "sum" and kind in "iufc":
        return mpi.SUM
    if op in ("max", "min") and kind in "iuf":
        return mpi.MAX if op == "max" else mpi.MIN
    if op not in ("sum", "max", "min", "or"):
        raise UsageError(f"operation '{op}' is none of sum, max, min, or")
    raise UsageError(f"operation '{op}' is not defined for elements of dtype {array.dtype}")


def flat(array: Array, what: str, *, written: bool = False) -> Array:
    """Return a one-dimensional view of a C-contiguous array.

    Raises
    ------
    UsageError
        If it is no array, or is written to and read-only.
    ShapeError
        If it is not C-contiguous: MPI reads memory, not strides.
    """
    if not hasattr(array, "dtype") or not hasattr(array, "reshape"):
        raise UsageError(f"{what}: an array is needed, found {type(array).__name__}")
    if not array.flags.c_contiguous:
        raise ShapeError(f"{what}: array of shape {array.shape} is not C-contiguous")
    if written and not getattr(array.flags, "writeable", True):
        raise UsageError(f"{what}: the array that receives is read-only")
    return array.reshape(-1)


def pieces(array: Array, limit: int) -> Iterator[Array]:
    """Cut a flat array into pieces of at most `limit` elements; an empty one has none."""
    for first in range(0, array.size, limit):
        yield array[first : first + limit]


def empty(like: Array, size: int) -> Array:
    """Return a new flat array of the same kind (NumPy or CuPy) and dtype."""
    return np.empty_like(like, shape=(size,))


def as_counts(counts: Sequence[int] | NDArray[Any], ranks: int, what: str) -> list[int]:
    """Check element counts, one for each rank, and return them as plain integers.

    Raises
    ------
    ShapeError
        If there is not one count for each rank, or one is negative or no integer.
    """
    array = np.asarray(counts)
    if array.shape != (ranks,):
        raise ShapeError(f"{what}: counts of shape {array.shape} for {ranks} ranks")
    if array.dtype.kind not in "iu" or int(array.min()) < 0:
        raise ShapeError(f"{what}: counts must be integers from 0, found {array.tolist()}")
    return [int(count) for count in array]
