"""Who touched which word last, and whether that was in order.

Time is counted in *stamps*, one 63-bit number per thread: the block's serial number (unique over
all launches), a clock that goes on whenever the thread passes ``__syncthreads`` or ``__syncwarp``,
and the thread's number in its block. Each word remembers the stamp of its last writer and of its
last reader; two accesses of one word, one of them a plain write, must be by the same thread, or in
order:

- threads of one block by a ``__syncthreads`` between them (`floor` is the stamp of the last one),
- threads of one warp also by a ``__syncwarp``,
- threads of different blocks only by the end of the kernel.

A word that many have read remembers only that: many of a warp, of a block, or of the grid.
Words of 4 bytes are watched; narrower accesses are watched byte by byte, in a second log.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLOCK", "SERIAL", "Race", "RaceLog", "Who"]

#: Where in a stamp the serial number and the clock begin; the lowest 12 bits say who.
SERIAL, CLOCK = 39, 12
_WHO = np.int64((1 << CLOCK) - 1)
_TIME = np.int64(((1 << (SERIAL - CLOCK)) - 1) << CLOCK)
_WARPS = np.int64(2048)  # who: several threads of warp `who - 2048`; 0: of several warps


class Who(NamedTuple):
    """Who accesses: stamps, the stamps of the last barrier, and the launch's first stamp."""

    stamp: NDArray[np.int64]
    floor: NDArray[np.int64]
    launch: np.int64


class Race(Exception):  # noqa: N818
    """Two accesses without order: number of the access in `Who`, and the other's instruction."""

    def __init__(self, which: int, other: int, wrote: bool, entry: int) -> None:
        super().__init__("race")
        self.which, self.other, self.wrote, self.entry = which, other, wrote, entry


def _warp(who: Any) -> Any:
    """Return the warp of a stamp's lowest bits; -1 for several."""
    return np.where(who >= _WARPS, who - _WARPS, np.where(who == 0, -1, (who - 1) >> 5))


class _Log:
    """Writers and readers of equal cells."""

    def __init__(self, cells: int, buffer: Callable[[int], NDArray[np.uint8]]) -> None:
        self.writer = buffer(8 * cells).view(np.int64)
        self.reader = buffer(8 * cells).view(np.int64)
        self.writer_pc = buffer(4 * cells).view(np.int32)
        self.reader_pc = buffer(4 * cells).view(np.int32)

    @staticmethod
    def unordered(entry: Any, who: Who, near: bool) -> tuple[Any, Any] | None:
        """Return which entries are concurrent with us (others' or not), and of these the own."""
        hot = np.flatnonzero(entry >= (who.floor if near else who.launch))
        if not len(hot):
            return None
        entry, stamp, floor = entry[hot], who.stamp[hot], who.floor[hot]
        elsewhere = (entry >> SERIAL) != (stamp >> SERIAL)
        other, mine = entry & _WHO, stamp & _WHO
        warp = _warp(other)
        ordered = (entry < floor) | (
            (warp == (mine - 1) >> 5) & ((entry & _TIME) < (stamp & _TIME))
        )
        found = elsewhere | (~ordered & (other != mine))
        return (hot[found], elsewhere[found]) if found.any() else None

    def note(
        self, table: NDArray[np.int64], cells: Any, who: Who, near: bool, pc_table: Any, pc: int
    ) -> None:
        """Enter us as the last reader or writer, together with those we are concurrent with."""
        stamp = who.stamp
        old = table.take(cells)
        found = self.unordered(old, who, near)
        table[cells] = stamp
        pc_table[cells] = pc
        back = table.take(cells)
        lost = back != stamp
        many = lost.any()
        if found is None and not many:
            return
        level = np.zeros(len(cells), np.int8)
        if many:
            twice = np.flatnonzero(lost)
            level[twice] = self._level(back[twice], stamp[twice])
        if found is not None:
            hot, _ = found
            level[hot] = np.maximum(level[hot], self._level(old[hot], stamp[hot]))
        for rank in (1, 2, 3):
            chosen = np.flatnonzero(level == rank)
            if not len(chosen):
                continue
            if rank == 3:
                table[cells[chosen]] = who.launch
                continue
            key = stamp[chosen] & ~_WHO
            if rank == 1:
                key |= _WARPS + (((stamp[chosen] & _WHO) - 1) >> 5)
            table[cells[chosen]] = key

    @staticmethod
    def _level(entry: Any, stamp: Any) -> Any:
        """Return what two concurrent threads share: 1 their warp, 2 their block, 3 the grid."""
        level = np.where(_warp(entry & _WHO) == ((stamp & _WHO) - 1) >> 5, 1, 2)
        return np.where((entry >> SERIAL) != (stamp >> SERIAL), 3, level)

    def check(self, cells: Any, who: Who, near: bool, write: bool, atomic: bool, same: Any) -> None:
        """Raise `Race` if an earlier access is out of order with ours."""
        entry = self.writer.take(cells)
        found = self.unordered(entry, who, near)
        if found is not None:
            hot, _ = found
            pcs = self.writer_pc[cells[hot]]
            bad = np.ones(len(hot), bool)
            if atomic:
                bad &= (pcs & 1) == 0
            elif write and same is not None:
                bad &= ~(same[hot] & ((pcs & 1) == 0))
            if bad.any():
                first = int(np.flatnonzero(bad)[0])
                raise Race(int(hot[first]), int(pcs[first] >> 1), True, int(entry[hot[first]]))
        if write:
            entry = self.reader.take(cells)
            found = self.unordered(entry, who, near)
            if found is not None:
                first = int(found[0][0])
                pc = int(self.reader_pc[cells[first]] >> 1)
                raise Race(first, pc, False, int(entry[first]))


class RaceLog:
    """The log of a space of `size` bytes; `near` spaces belong to one block (shared memory)."""

    def __init__(self, size: int, buffer: Callable[[int], NDArray[np.uint8]]) -> None:
        self.words = _Log(-(-size // 4), buffer)
        self._size, self._buffer = size, buffer
        self.bytes: _Log | None = None  # made when something narrower than a word is touched

    def access(
        self,
        at: Any,
        width: int,
        who: Who,
        near: bool,
        pc: int,
        *,
        write: bool = False,
        atomic: bool = False,
        same: Any = None,
    ) -> None:
        """Check and enter accesses of `width` bytes at `at`.

        Parameters
        ----------
        same
            For plain writes: whether the value is the one that is there already (which is allowed
            twice in a row).
        """
        narrow = width < 4
        if narrow and self.bytes is None:
            self.bytes = _Log(self._size, self._buffer)
        cells, shift = (at, 0) if narrow else (at >> 2, 2)
        parts = width >> shift
        if parts > 1:
            cells = (cells[:, None] + np.arange(parts)).ravel()
            wide = Who(np.repeat(who.stamp, parts), np.repeat(who.floor, parts), who.launch)
            all_same = None if same is None else np.repeat(same, parts)
        else:
            wide, all_same = who, same
        own, other = (self.bytes, self.words) if narrow else (self.words, self.bytes)
        try:
            own.check(cells, wide, near, write, atomic, all_same)
        except Race as race:
            race.which //= parts
            raise
        if other is not None:
            if narrow:
                other.check(at >> 2, who, near, write, atomic, same)
            else:
                step = np.arange(width)
                spread = Who(np.repeat(who.stamp, width), np.repeat(who.floor, width), who.launch)
                again = None if same is None else np.repeat(same, width)
                try:
                    other.check((at[:, None] + step).ravel(), spread, near, write, atomic, again)
                except Race as race:
                    race.which //= width
                    raise
        mark = pc << 1 | atomic
        if write:
            own.note(own.writer, cells, wide, near, own.writer_pc, mark)
        else:
            own.note(own.reader, cells, wide, near, own.reader_pc, mark)
