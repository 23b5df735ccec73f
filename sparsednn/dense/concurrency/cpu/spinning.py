"""Waiting awake for what another thread writes: to be woken takes longer than many a task.

Compiled, so that the interpreter is free meanwhile.
"""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic, jit

__all__ = ["address_of", "spin_until"]


def _load(typingctx: Any, address: Any) -> Any:
    """``int64`` at an address, read from memory each time, nothing behind it before it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, ordering="acquire", align=8)

    return types.int64(types.int64), codegen


_read = intrinsic(_load)


def _relax(typingctx: Any, zero: Any) -> Any:
    """Tell the processor that this is a waiting loop: the other thread of a core goes on faster."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            pause = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.sse2.pause")
            builder.call(pause, [])
        return context.get_constant(types.int64, 0)

    return types.int64(types.int64), codegen


_pause = intrinsic(_relax)


@jit
def spin_until(address: int, value: int, turns: int) -> bool:
    """Return whether the int64 at an address has reached a value, after so many looks at most."""
    for _ in range(turns):
        if _read(address) >= value:
            return True
        _pause(0)
    return False


def address_of(cells: NDArray[np.int64], index: int) -> int:
    """Return where a cell is; it must stay there."""
    return int(cells.ctypes.data) + 8 * index
