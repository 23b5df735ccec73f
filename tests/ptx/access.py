"""Every access of a running grid to memory: find the space, check, log, do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ptx import atomics
from ptx.memory import BASE, Space
from ptx.races import CLOCK, SERIAL, Race, Who

if TYPE_CHECKING:
    from ptx.machine import Activation

__all__ = ["LOCAL_WINDOW", "SHARED_WINDOW", "Accesses", "Fault"]

#: Generic addresses of the block's shared memory and of the thread's local memory.
SHARED_WINDOW = np.uint64(0x7100_0000_0000)
LOCAL_WINDOW = np.uint64(0x7180_0000_0000)


class Fault(Exception):  # noqa: N818 - what CUDA calls it
    """What a thread did wrong; `lane` is its number in the batch."""

    def __init__(self, message: str, lane: int | None = None, pc: int | None = None) -> None:
        super().__init__(message)
        self.message, self.lane, self.pc = message, lane, pc


class Accesses:
    """The memory side of a running batch of blocks (`machine.Batch` is the other side).

    Attributes
    ----------
    spaces
        ``global``, ``shared`` and ``local``.
    strides
        Bytes from one block's (thread's) part of shared (local) memory to the next one's.
    """

    spaces: dict[str, Space]
    strides: dict[str, int]
    initcheck: bool
    launch: np.int64
    blocks: int
    counters: Any = None
    describe: Any = None

    def load(
        self,
        space: str,
        pc: int,
        act: Activation,
        address: Any,
        size: int,
        count: int,
        exempt: bool,
    ) -> Any:
        """Return what the lanes load: an array, or a list of `count` of them."""
        if space == "generic":
            return self._split(pc, act, address, size, count, exempt)
        memory, width = self.spaces[space], size * count
        at = self._offset(space, pc, act, address, width)
        good = memory.readable(at, width, self.initcheck)
        if good is not True:
            self._refuse("load", space, pc, act, at, width, good)
        if memory.log is not None and not exempt:
            self._log(memory, pc, act, at, width)
        if self.counters is not None:
            self.counters.access(self, space, act, at, width, store=False)
        return memory.load(at, size, count)

    def _split(
        self, pc: int, act: Activation, address: Any, size: int, count: int, exempt: bool
    ) -> Any:
        """Load from generic addresses."""
        parts = self._spaces_of(act, address)
        if len(parts) == 1:
            space, part, where, _ = parts[0]
            return self.load(space, pc, part, where, size, count, exempt)
        results = [np.zeros(act.n, f"u{size}") for _ in range(count)]
        for space, part, where, chosen in parts:
            loaded = self.load(space, pc, part, where, size, count, exempt)
            for result, value in zip(results, loaded if count > 1 else [loaded], strict=True):
                result[chosen] = value
        return results if count > 1 else results[0]

    def _spaces_of(self, act: Activation, address: Any) -> list[Any]:
        """Return ``(space, lanes, their addresses there, their places)`` of generic addresses."""
        wide = np.asarray(address).astype("u8")
        kinds = np.where(wide >= np.uint64(BASE), 0, np.where(wide >= LOCAL_WINDOW, 2, 1))
        kinds = np.where(wide < SHARED_WINDOW, 0, kinds)  # faults as a global address
        result = []
        for number, (space, window) in enumerate(
            (("global", np.uint64(0)), ("shared", SHARED_WINDOW), ("local", LOCAL_WINDOW))
        ):
            found = kinds == number
            if found.all():
                return [(space, act, address - window, slice(None))]
            if found.any():
                chosen = np.flatnonzero(found)
                result.append((space, act.part(chosen), wide[chosen] - window, chosen))
        return result

    def save(
        self,
        space: str,
        pc: int,
        act: Activation,
        address: Any,
        size: int,
        values: tuple[Any, ...],
        exempt: bool,
    ) -> None:
        """Store what the lanes store."""
        if space == "generic":
            for name, part, where, chosen in self._spaces_of(act, address):
                own = tuple(value[chosen] if value.ndim else value for value in values)
                self.save(name, pc, part, where, size, own, exempt)
            return
        memory, width = self.spaces[space], size * len(values)
        at = self._vector(self._offset(space, pc, act, address, width), act)
        good = memory.readable(at, width, False)
        if good is not True:
            self._refuse("store", space, pc, act, at, width, good)
        if memory.log is not None and not exempt:
            old = memory.load(at, size, len(values))
            pairs = zip(old if len(values) > 1 else [old], values, strict=True)
            same = np.logical_and.reduce([before == after for before, after in pairs])
            self._log(memory, pc, act, at, width, write=True, same=same)
        if self.counters is not None:
            self.counters.access(self, space, act, at, width, store=True)
        memory.store(at, size, values)
        if memory.log is not None and not exempt and act.n > 1:
            self._collisions(memory, pc, act, at, size, values)

    def _collisions(
        self, memory: Space, pc: int, act: Activation, at: Any, size: int, values: tuple[Any, ...]
    ) -> None:
        """Refuse different values for one word from one instruction."""
        back = memory.load(at, size, len(values))
        for stored, value in zip(back if len(values) > 1 else [back], values, strict=True):
            lost = stored != value
            if lost.any():
                first = int(np.flatnonzero(lost)[0])
                raise Fault(
                    "race: two threads write different values to the same word with this "
                    f"instruction ({self._place(memory, int(at[first]))})",
                    act.lane(first),
                    pc,
                )

    def atomic(
        self,
        space: str,
        pc: int,
        act: Activation,
        address: Any,
        dtype: np.dtype[Any],
        operation: str,
        wanted: bool,
        *values: Any,
    ) -> Any:
        """Let the lanes change words, one after the other; return what they found."""
        if space == "generic":
            parts = self._spaces_of(act, address)
            result = np.zeros(act.n, dtype)
            for name, part, where, chosen in parts:
                own = [value[chosen] if value.ndim else value for value in values]
                found = self.atomic(name, pc, part, where, dtype, operation, wanted, *own)
                if found is not None:
                    result[chosen] = found
            return result
        memory, width = self.spaces[space], dtype.itemsize
        at = self._vector(self._offset(space, pc, act, address, width), act)
        good = memory.readable(at, width, self.initcheck)
        if good is not True:
            self._refuse("atomic", space, pc, act, at, width, good)
        if memory.log is not None:
            self._log(memory, pc, act, at, width, write=True, atomic=True)
        if self.counters is not None:
            self.counters.access(self, space, act, at, width, store=True)
        place = at >> (width.bit_length() - 1)
        return atomics.apply(memory.data.view(dtype), place, operation, wanted, *values)

    def copy(
        self, pc: int, act: Activation, target: Any, source: Any, width: int, wanted: Any
    ) -> None:
        """Copy from global to shared memory (cp.async); zeros beyond `wanted` bytes."""
        if wanted is not None and np.any(wanted != width):
            full = np.broadcast_to(wanted == width, act.n)
            none = np.flatnonzero(~full)
            if np.any(np.broadcast_to(wanted, act.n)[none]):
                raise NotImplementedError("cp.async of part of its bytes")
            zeros = tuple(np.uint32(0) for _ in range(width // 4))
            where = np.broadcast_to(target, act.n)
            self.save("shared", pc, act.part(none), where[none], 4, zeros, False)
            some = np.flatnonzero(full)
            if not len(some):
                return
            act, target = act.part(some), where[some]
            source = np.broadcast_to(source, len(full))[some]
        count = width // 4
        values = self.load("global", pc, act, source, 4, count, False)
        own = tuple(values) if count > 1 else (values,)
        self.save("shared", pc, act, target, 4, own, False)

    # -- addresses

    @staticmethod
    def _vector(at: Any, act: Activation) -> Any:
        return at if at.ndim else np.full(act.n, at)

    def _offset(self, space: str, pc: int, act: Activation, address: Any, width: int) -> Any:
        """Return where in the space's bytes; in range and aligned."""
        if space == "global":
            if address.dtype.itemsize != 8:
                address = address.astype("u8")
            at = address - np.uint64(BASE)
            limit = self.spaces["global"].size
        else:
            at, limit = address, self.strides[space]
        every = int(np.bitwise_or.reduce(at) if at.ndim else at)
        if every >= limit:  # a power of two, so this says that one of them is
            outside = np.flatnonzero(np.atleast_1d(at) >= at.dtype.type(limit))
            first = int(outside[0])
            where = int(np.atleast_1d(address)[first])
            raise Fault(
                f"out of bounds: {width} bytes at {space} address {where:#x}, where nothing is",
                act.lane(first if at.ndim else 0),
                pc,
            )
        if every & (width - 1):
            first = int(np.flatnonzero(np.atleast_1d(at) & at.dtype.type(width - 1))[0])
            where = int(np.atleast_1d(address)[first])
            raise Fault(
                f"misaligned: {width} bytes at {space} address {where:#x}",
                act.lane(first if at.ndim else 0),
                pc,
            )
        if space == "global":
            return at.view("i8")
        return at.astype("i8") + act.base(space)

    # -- faults and races

    def _refuse(
        self, what: str, space: str, pc: int, act: Activation, at: Any, width: int, good: Any
    ) -> None:
        first = int(np.flatnonzero(~np.atleast_1d(good))[0])
        where = int(np.atleast_1d(at)[first])
        memory = self.spaces[space]
        mapped = memory.shadow[where : where + width].all()
        problem = "uninitialised" if mapped else "out of bounds"
        detail = "was never written" if mapped else "is not in any one allocation"
        raise Fault(
            f"{problem}: {what} of {width} bytes that {detail} ({self._place(memory, where)})",
            act.lane(first),
            pc,
        )

    def _place(self, memory: Space, where: int) -> str:
        if memory.name == "global":
            return f"global address {BASE + where:#x}, {self.describe(where)}"
        return f"{memory.name} address {where % self.strides[memory.name]:#x}"

    def _log(
        self,
        memory: Space,
        pc: int,
        act: Activation,
        at: Any,
        width: int,
        *,
        write: bool = False,
        atomic: bool = False,
        same: Any = None,
    ) -> None:
        log = memory.log
        if log is None or memory.name == "local":
            return
        near = memory.name == "shared"
        if at.ndim == 0:
            if width >= 4 and self._uniform(log, act, int(at), width, pc):
                return
            at = np.full(act.n, at)
        who = Who(act.special("stamp"), act.special("floor"), self.launch)
        if not who.stamp.ndim:
            who = Who(np.full(act.n, who.stamp), np.full(act.n, who.floor), self.launch)
        try:
            log.access(at, width, who, near, pc, write=write, atomic=atomic, same=same)
        except Race as race:
            raise self._race(race, memory, pc, act, at, who, write) from None

    def _uniform(self, log: Any, act: Activation, at: int, width: int, pc: int) -> bool:
        """Log that all lanes read one place; False if that needs a closer look."""
        cells = slice(at >> 2, (at + width) >> 2)
        words = log.words
        fresh = self.launch
        if (words.writer[cells] >= fresh).any() or (words.reader[cells] >= fresh).any():
            whole = act.sel is None and self.blocks > 1
            if not (whole and (words.writer[cells] < fresh).all()):
                return False
        if log.bytes is not None and (log.bytes.writer[at : at + width] >= fresh).any():
            return False
        stamp = act.special("stamp")
        first, last = int(stamp[0]), int(stamp[-1])
        if first >> SERIAL != last >> SERIAL:
            words.reader[cells] = fresh
        else:
            words.reader[cells] = first if act.n == 1 else first >> CLOCK << CLOCK
        words.reader_pc[cells] = pc << 1
        return True

    def _race(
        self,
        race: Race,
        memory: Space,
        pc: int,
        act: Activation,
        at: Any,
        who: Who,
        write: bool,
    ) -> Fault:
        other, serial = race.entry & ((1 << CLOCK) - 1), race.entry >> SERIAL
        if serial == int(self.launch) >> SERIAL:
            whom = "threads of several blocks"
        else:
            block = serial - (int(self.launch) >> SERIAL) - 1
            thread = f"thread {other - 1}" if 0 < other <= 1024 else "several threads"
            whom = f"{thread} of block {block}"
        return Fault(
            f"race: {'written' if write else 'read'} here, and "
            f"{'written' if race.wrote else 'read'} by {whom} at {self.instruction(race.other)} "
            f"with no barrier between ({self._place(memory, int(at[race.which]))})",
            act.lane(race.which),
            pc,
        )

    def instruction(self, pc: int) -> str:
        """Return an instruction's line and text."""
        raise NotImplementedError
