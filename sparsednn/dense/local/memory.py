"""Memory that is freed stays with the process: activations are made and freed in every step.

Must not know: what is kept in it.
"""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache

__all__ = ["keep_freed_memory"]

#: Names of mallopt's parameters in glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
#: The largest threshold that glibc takes: half of its HEAP_MAX_SIZE.
_LARGEST = 32 << 20


@lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Tell the C library not to give back blocks of up to 32 MiB to the system.

    By default, glibc asks the system for a block of some hundred kilobytes at each allocation and
    returns it when it is freed, or cuts freed memory from the end of the heap. The next one is then
    new, and the system fills it with zeros page by page while it is written: for a feature map of a
    megabyte that took longer than its convolution (0.9 against 0.1 ms). NumPy and PyTorch both
    allocate from there. Done once for the whole process.

    Returns
    -------
    Whether it has been done; False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST)) and bool(mallopt(_M_TRIM_THRESHOLD, 1 << 30))
