"""Text files as arrays of bytes: load them, find their end, count and cut their lines.

Knows nothing of what the lines hold, and needs NumPy only: ``inspect`` counts lines with it.
"""

from __future__ import annotations

import gzip
import mmap
import os
import stat
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError
from sparsednn.formats._common import reading

__all__ = ["after_last_newline", "cuts", "load", "newlines", "stripped"]

_MAP_FROM = 32 << 20  # below this, reading is faster than taking page faults
_BLANK = b" \t\r\n"


def load(path: Path) -> NDArray[np.uint8]:
    """All bytes of the file, mapped if it is large."""
    with reading(path):
        if path.suffix == ".gz":
            try:
                with gzip.open(path) as packed:
                    return np.frombuffer(packed.read(), np.uint8)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise FormatError(f"{path}: not a whole gzip file: {error}") from error
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_size >= _MAP_FROM and stat.S_ISREG(status.st_mode):
                return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            return np.frombuffer(file.read(), np.uint8)


def stripped(text: NDArray[np.uint8]) -> int:
    """Length without blanks and newlines at the end."""
    end = int(text.size)
    while end:
        block = text[max(end - 4096, 0) : end].tobytes()
        kept = len(block.rstrip(_BLANK))
        end -= len(block) - kept
        if kept:
            return end
    return 0


def after_last_newline(text: NDArray[np.uint8], end: int) -> int:
    """Place behind the last newline of ``text[:end]``; 0 if there is none."""
    at = end
    while at:
        block = text[max(at - 4096, 0) : at].tobytes()
        found = block.rfind(b"\n")
        if found >= 0:
            return at - len(block) + found + 1
        at -= len(block)
    return 0


def cuts(text: NDArray[np.uint8], body: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut ``text[:body]``, which ends in a newline, into pieces of about `size` that do, too."""
    start = 0
    while start < body:
        stop = min(start + size, body)
        while stop < body and text[stop - 1] != 10:
            window = text[stop : min(stop + 4096, body)].tobytes()
            found = window.find(b"\n")
            stop += found + 1 if found >= 0 else len(window)
        yield start, stop
        start = stop


def newlines(text: NDArray[np.uint8], start: int, stop: int) -> int:
    """Count the newlines of ``text[start:stop]``."""
    step = 1 << 18  # the comparison's result stays in the cache
    return sum(
        int(np.count_nonzero(text[a : min(a + step, stop)] == 10)) for a in range(start, stop, step)
    )
