"""The one place where numba's compiler is called: typed, nogil, cached on disk.

numba has no type hints, so `mypy --strict` would reject every decorated function; the wrapper
keeps the signature. Import this only inside modules that hold compiled loops: ``--help`` and
``inspect`` must not load numba.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import numba
import numba.extending
import numpy as np
from numpy.typing import NDArray

__all__ = ["intrinsic", "jit", "read_only"]

P = ParamSpec("P")
T = TypeVar("T")
Scalar = TypeVar("Scalar", bound=np.generic)


def jit(function: Callable[P, T]) -> Callable[P, T]:
    """Compile `function` on its first call: no Python objects, GIL released, cached on disk.

    IEEE arithmetic is kept as written (no fastmath), so a result does not depend on how a loop
    happened to be vectorised. Division by zero follows NumPy (no Python exception).
    """
    compiled = numba.njit(function, nogil=True, cache=True, error_model="numpy")
    # numba looks at the function's own file only when it asks whether what is cached is still true;
    # but what is compiled has in it what it calls, and that is in other files.
    index: Any = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
    if index is not None and hasattr(index, "_source_stamp"):
        index._source_stamp = (index._source_stamp, _sources())
    return cast(Callable[P, T], compiled)


@lru_cache(maxsize=1)
def _sources() -> tuple[tuple[str, int, int], ...]:
    """Name, time and size of all files with functions that compiled code calls."""
    here = Path(__file__).parent
    files = [
        Path(__file__),
        here / "comm" / "compiled.py",
        *sorted((here / "kernels").glob("*.py")),
    ]
    stats = [(file.name, file.stat()) for file in files if file.exists()]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


def intrinsic(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make `function` (a typing context and argument types in, signature and code out) callable
    from compiled code; see numba's documentation of ``numba.extending.intrinsic``."""
    return cast(Callable[..., Any], numba.extending.intrinsic(function))


def read_only(array: NDArray[Scalar]) -> NDArray[Scalar]:
    """Return a read-only view.

    numba compiles a function once more for read-only arrays (such as those of a memory-mapped
    file). Arguments that are only read go through here, so that one compilation serves all.
    """
    view = array.view()
    view.flags.writeable = False
    return view
