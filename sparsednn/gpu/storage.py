"""How values are stored on a device: float32, float16 or bfloat16; sums are float32 always.

NumPy has no bfloat16: such arrays are uint16, the upper halves of float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import UsageError

__all__ = ["PRECISIONS", "TILE", "narrow", "store_of", "stored_dtype", "widen"]

#: Columns of a tile, as in ``sources/storage.cuh``.
TILE = 32

#: Names of the ways to store, by the number that the kernels know (macro STORE).
PRECISIONS = ("fp32", "fp16", "bf16")

_DTYPES: tuple[type[np.generic], ...] = (np.float32, np.float16, np.uint16)


def store_of(precision: str) -> int:
    """Return the number of a precision.

    Raises
    ------
    UsageError
        If there is none of this name.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"--precision is one of {', '.join(PRECISIONS)}: '{precision}'")
    return PRECISIONS.index(precision)


def stored_dtype(store: int) -> type[np.generic]:
    """Type of an array of stored values."""
    return _DTYPES[store]


def widen(values: NDArray[Any], store: int) -> NDArray[np.float32]:
    """Stored values as float32."""
    if store == 2:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32, copy=False)


def narrow(values: NDArray[Any], store: int) -> NDArray[Any]:
    """float32 as it is stored, rounded to nearest even; infinite where float16 ends."""
    wide = np.asarray(values, np.float32)
    if store == 0:
        return wide
    if store == 1:
        with np.errstate(over="ignore"):
            return wide.astype(np.float16)
    bits = wide.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(wide), quiet, rounded).astype(np.uint16)
