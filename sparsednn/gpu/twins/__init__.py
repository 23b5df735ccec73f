"""What each kernel computes, in NumPy: one module per ``.cu`` file, one function per kernel.

A function takes the macros, then the kernel's own arguments. Arrays are whatever shape the engine
has given them: a kernel sees memory, and so does its twin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu import storage
from sparsednn.gpu.storage import TILE

__all__ = ["TILE", "Defines", "Floats", "narrow", "store", "tiles_of", "widen"]

Defines = Mapping[str, Any]
Floats = NDArray[np.float32]


def tiles_of(memory: NDArray[Any], tiles: int, lines: int) -> NDArray[Any]:
    """See memory as ``(tiles, lines, TILE)``; a view."""
    return memory.reshape(-1)[: tiles * lines * TILE].reshape(tiles, lines, TILE)


def store(defines: Defines) -> int:
    """How values are stored: 0 float32, 1 float16, 2 bfloat16."""
    return int(defines.get("STORE", 0))


def widen(values: NDArray[Any], defines: Defines) -> Floats:
    """Stored values as float32."""
    return storage.widen(values, store(defines))


def narrow(values: NDArray[Any], defines: Defines) -> NDArray[Any]:
    """float32 as it is stored."""
    return storage.narrow(values, store(defines))
