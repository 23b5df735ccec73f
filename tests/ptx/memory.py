"""Memory that knows, byte by byte, what may be touched and what has been written.

A `Space` is a flat range of bytes with a *shadow*: one mark per byte, 0 where nothing is allocated,
`MAPPED` where something is, and `WRITTEN` where it also has contents. One gather of the shadow,
seen as numbers as wide as the access, checks bounds and contents at once.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ptx.races import RaceLog

__all__ = ["BASE", "Arena", "Space"]

MAPPED, WRITTEN = 1, 3
#: Shadow of a whole access, by its width in bytes.
_MAPPED = {width: np.dtype(f"u{width}").type(int("01" * width, 16)) for width in (1, 2, 4, 8)}
_WRITTEN = {width: np.dtype(f"u{width}").type(int("03" * width, 16)) for width in (1, 2, 4, 8)}

#: Address of the arena's first byte; shared and local memory have windows below it.
BASE = 0x7200_0000_0000
_NORESERVE = 0x4000  # Linux: pages that are never touched cost nothing
_REST = 1 << 24  # bytes of freed memory that wait before they are used again


def _buffer(size: int) -> NDArray[np.uint8]:
    """Return zeros that take memory only when they are touched."""
    if size < 1 << 16 or not sys.platform.startswith("linux"):
        return np.zeros(size, np.uint8)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)


class Space:
    """`size` bytes with their shadow, and the log of who touched them."""

    def __init__(self, name: str, size: int, races: bool) -> None:
        self.name, self.size = name, size
        self.data = _buffer(size)
        self.shadow = _buffer(size)
        self.log = RaceLog(size, _buffer) if races else None
        self.views = {width: self.data.view(f"u{width}") for width in (1, 2, 4, 8)}
        self.marks = {width: self.shadow.view(f"u{width}") for width in (1, 2, 4, 8)}

    def readable(self, at: Any, width: int, written: bool) -> Any:
        """Return which accesses of `width` bytes at `at` are allowed; True if all."""
        if width == 16:
            first = self.readable(at, 8, written)
            second = self.readable(at + 8, 8, written)
            return True if first is True and second is True else np.logical_and(first, second)
        marks = self.marks[width].take(at >> (width.bit_length() - 1))
        good = marks == _WRITTEN[width]
        if good.all():
            return True
        if not written:
            good = (marks & _MAPPED[width]) == _MAPPED[width]
        return True if good.all() else good

    def load(self, at: Any, size: int, count: int) -> Any:
        """Return `count` numbers of `size` bytes each, which stand together at `at`."""
        place = at >> (size.bit_length() - 1)
        if count == 1:
            return self.views[size].take(place)
        return [self.views[size].take(place + part) for part in range(count)]

    def store(self, at: Any, size: int, values: Any) -> None:
        """Write numbers that stand together; checked already."""
        place = at >> (size.bit_length() - 1)
        view, marks, mark = self.views[size], self.marks[size], _WRITTEN[size]
        for part, value in enumerate(values):
            view[place + part if part else place] = value
            marks[place + part if part else place] = mark


class _Block:
    """The owner of an allocation: an array's ``base``, so that it lives as long as any view."""

    def __init__(self, address: int, size: int) -> None:
        self.__array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


class Arena(Space):
    """A device's global memory: allocations far apart, freed when their arrays are gone.

    Parameters
    ----------
    limit
        Bytes that can be allocated at a time.
    """

    def __init__(self, limit: int, races: bool = True) -> None:
        span = 1 << max(24, (4 * limit - 1).bit_length())
        super().__init__("global", span, races)
        self.limit, self.used = limit, 0
        self._origin = self.data.__array_interface__["data"][0]
        self._next = 1 << 16  # a null pointer with an offset hits nothing
        self._live: dict[int, tuple[int, str]] = {}  # offset -> (bytes, what)
        self._free: list[tuple[int, int]] = []  # (offset, bytes), in order
        self._resting: deque[tuple[int, int]] = deque()  # freed lately: not used again at once
        self._resting_bytes = 0

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Return an array in this memory; `MemoryError` if there is no room."""
        of = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * of.itemsize
        if size > self.limit - self.used:
            raise MemoryError(size)
        room = -(-max(size, 1) // 256) * 256 + max(4096, min(size, 1 << 20) // 4 // 256 * 256)
        offset = self._place(room)
        if offset < 0:
            raise MemoryError(size)
        owner = _Block(self._origin + offset, max(size, 1))
        array = np.asarray(owner)[:size].view(of).reshape(shape)
        weakref.finalize(owner, self._release, offset, room, size).atexit = False
        self._live[offset] = (size, f"{of} array of shape {shape}")
        self.used += size
        self.shadow[offset : offset + size] = MAPPED
        return array

    def _place(self, room: int) -> int:
        for number, (start, length) in enumerate(self._free):
            if length >= room:
                self._free[number] = (start + room, length - room)
                return start
        if self._next + room <= self.size:
            self._next += room
            return self._next - room
        if self._resting:
            self._rested(0)
            return self._place(room)
        return -1

    def _rested(self, most: int) -> None:
        """Let what was freed first be used again, until `most` bytes rest."""
        while self._resting_bytes > most:
            self._free.append(self._resting.popleft())
            self._resting_bytes -= self._free[-1][1]
        joined: list[tuple[int, int]] = []
        for start, length in sorted(self._free):
            if joined and sum(joined[-1]) == start:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            elif length:
                joined.append((start, length))
        self._free = joined

    def _release(self, offset: int, room: int, size: int) -> None:
        self.shadow[offset : offset + room] = 0
        self.used -= size
        del self._live[offset]
        if not self._live:  # start again
            self._next, self._free, self._resting_bytes = 1 << 16, [], 0
            self._resting.clear()
        else:
            self._resting.append((offset, room))
            self._resting_bytes += room
            if self._resting_bytes > _REST:
                self._rested(_REST // 2)

    def offset(self, array: NDArray[Any]) -> int:
        """Return where an array is; `ValueError` if it is not in this memory, or has gaps."""
        offset = array.__array_interface__["data"][0] - self._origin
        if not 0 <= offset < self.size:
            raise ValueError("an array that is not in the device's memory")
        if not array.flags.c_contiguous:
            raise ValueError("an array that is not contiguous")
        return offset

    def written(self, array: NDArray[Any], mark: int = WRITTEN) -> None:
        """Note that the host has filled an array (or, with `MAPPED`, that it is unwritten)."""
        if array.nbytes:
            start = self.offset(array)
            self.shadow[start : start + array.nbytes] = mark

    def describe(self, offset: int) -> str:
        """Say what is at an offset, or what is next to it."""
        below = [start for start in self._live if start <= offset]
        if not below:
            return "no allocation is there"
        start = max(below)
        size, what = self._live[start]
        if offset < start + size:
            return f"byte {offset - start} of the {what}"
        return f"{offset - start - size} bytes behind the end of the {what}"
