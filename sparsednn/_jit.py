"""The one place where numba's compiler is called: typed, nogil, cached on disk.

numba has no type hints, so `mypy --strict` would reject every decorated function; the wrapper
keeps the signature. Import this only inside modules that hold compiled loops: ``--help`` and
``inspect`` must not load numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

__all__ = ["jit"]

P = ParamSpec("P")
T = TypeVar("T")


def jit(function: Callable[P, T]) -> Callable[P, T]:
    """Compile `function` on its first call: no Python objects, GIL released, cached on disk.

    IEEE arithmetic is kept as written (no fastmath), so a result does not depend on how a loop
    happened to be vectorised. Division by zero follows NumPy (no Python exception).
    """
    compiled = numba.njit(function, nogil=True, cache=True, error_model="numpy")
    return cast(Callable[P, T], compiled)
