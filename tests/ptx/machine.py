"""Runs a grid: all threads of many blocks are the lanes of NumPy arrays.

Lanes stand at blocks of straight-line code. Each step takes the lowest block at which anybody
stands and runs it for all who stand there; where code is structured, lanes that went different
ways meet again. Lanes that wait for others (barriers, warp-wide instructions) are parked until
those have come; if nobody else can run, that is a deadlock and an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptx.access import LOCAL_WINDOW, SHARED_WINDOW, Accesses, Fault
from ptx.helpers import HELPERS, KernelFault
from ptx.kernel import Kernel, power_of_two
from ptx.memory import BASE, Arena, Space
from ptx.races import CLOCK, SERIAL
from ptx.warps import Warps

__all__ = ["Activation", "Batch", "KernelError"]

HELPERS["SHARED_WINDOW"], HELPERS["LOCAL_WINDOW"] = SHARED_WINDOW, LOCAL_WINDOW  # type: ignore[assignment]


def _address_space(address: Any) -> Any:
    return np.where(address >= np.uint64(BASE), 0, np.where(address >= LOCAL_WINDOW, 2, 1))


HELPERS["address_space"] = _address_space


class KernelError(Exception):
    """A kernel's fault, with the kernel, the instruction, the block and the thread."""


class Activation:
    """The lanes that run together: indices `sel` (sorted), or None for all; `n` is how many."""

    __slots__ = ("cache", "m", "n", "sel")

    def __init__(self, m: Batch, sel: NDArray[np.intp] | None) -> None:
        self.m, self.sel = m, sel
        self.n = m.lanes if sel is None else len(sel)
        self.cache: dict[str, Any] = {}

    def special(self, name: str) -> Any:
        """Return a special register, or another value that each lane has."""
        if self.sel is None:
            return self.m.special(name)
        value = self.cache.get(name)
        if value is None:
            value = self.m.special(name)
            if value.ndim:
                value = value.take(self.sel)
            if "clock" not in name and "timer" not in name:
                self.cache[name] = value
        return value

    def base(self, space: str) -> Any:
        """Return where the lanes' parts of shared or local memory begin."""
        return self.special(f"{space}_base")

    def lane(self, number: int) -> int:
        """Return the lane's number in the batch."""
        return number if self.sel is None else int(self.sel[number])

    def part(self, chosen: NDArray[np.intp]) -> Activation:
        """Return some of the lanes."""
        return Activation(self.m, chosen if self.sel is None else self.sel[chosen])

    def forget(self) -> None:
        """Drop what a barrier changes."""
        self.cache.pop("stamp", None)
        self.cache.pop("floor", None)


class Batch(Accesses, Warps):
    """Some blocks of a launch, running.

    Parameters
    ----------
    first, blocks
        The blocks: `first` and the following ones.
    grid
        Extents of the grid.
    serial
        Serial number of the launch; block ``b`` has ``serial + 1 + b``.
    """

    def __init__(
        self,
        kernel: Kernel,
        arena: Arena,
        parameters: bytes,
        first: int,
        blocks: int,
        grid: tuple[int, int],
        threads: int,
        dynamic: int,
        serial: int,
        *,
        spaces: dict[str, Space],
        initcheck: bool,
        early_exit: bool,
        steps: int,
        counters: Any = None,
    ) -> None:
        self.kernel, self.code = kernel, kernel.code
        self.first, self.blocks, self.threads = first, blocks, threads
        self.lanes = blocks * threads
        self.initcheck, self.early_exit, self.steps = initcheck, early_exit, steps
        self.launch = np.int64(serial) << np.int64(SERIAL)
        self.counters, self.describe = counters, arena.describe
        self._parameters = parameters
        self.strides = {
            "shared": power_of_two(kernel.dynamic + dynamic + 1),
            "local": power_of_two(kernel.local_bytes + 1),
        }
        self.spaces = {"global": arena, **spaces}
        tid = np.tile(np.arange(threads, dtype=np.uint32), blocks)
        block = np.repeat(np.arange(first, first + blocks, dtype=np.int64), threads)
        self.local_block = block - first
        self.values: dict[str, Any] = {
            "%tid.x": tid,
            "%ctaid.x": _scalar((block % grid[0]).astype(np.uint32), blocks),
            "%ctaid.y": _scalar((block // grid[0]).astype(np.uint32), blocks),
            "%laneid": tid & np.uint32(31),
            "%warpid": tid >> np.uint32(5),
        }
        one, zero = np.uint32(1), np.uint32(0)
        self.values |= {
            "%ntid.x": np.uint32(threads),
            "%nctaid.x": np.uint32(grid[0]),
            "%nctaid.y": np.uint32(grid[1]),
            "%dynamic_smem_size": np.uint32(dynamic),
            "%total_smem_size": np.uint32(dynamic + kernel.static_bytes),
            "%nwarpid": np.uint32(-(-threads // 32)),
            **dict.fromkeys(("%ntid.y", "%ntid.z", "%nctaid.z", "%nsmid"), one),
            **dict.fromkeys(("%tid.y", "%tid.z", "%ctaid.z", "%smid", "%gridid"), zero),
        }
        self._tick = 1
        self._who = (np.int64(serial) + 1 + block << np.int64(SERIAL)) | (tid + 1).astype(np.int64)
        self.stamp = self._who | np.int64(1 << CLOCK)
        self.floor = (self._who >> SERIAL << SERIAL) | np.int64(1 << CLOCK)
        self.values["shared_base"] = self.local_block * np.int64(self.strides["shared"])
        self.values["local_base"] = np.arange(self.lanes) * np.int64(self.strides["local"])
        self.exited = np.zeros(self.lanes, bool)
        self.executed = 0
        self.lane_instructions = 0
        self.setup_warps(tid)
        self.values["warp"] = self.warp

    # -- what generated code asks

    def special(self, name: str) -> Any:
        """Return a special register for all lanes: an array, or one number."""
        if name == "stamp":
            return self.stamp
        if name == "floor":
            return self.floor
        if "clock" in name or "timer" in name:
            wide = "64" in name or "timer" in name
            return (np.uint64 if wide else np.uint32)(self.executed & 0xFFFFFFFF)
        if name.startswith("%lanemask_"):
            return self.lane_mask(name[10:])
        try:
            return self.values[name]
        except KeyError:
            raise NotImplementedError(f"special register {name}") from None

    def parameter(self, at: int, dtype: np.dtype[Any]) -> Any:
        """Return a part of the kernel's parameters."""
        return np.frombuffer(self._parameters, dtype, 1, at)[0]

    def store(self, R: list[Any], number: int, sel: NDArray[np.intp], value: Any) -> None:
        """Set some lanes of a register."""
        register = R[number]
        if not register.ndim:
            register = R[number] = np.full(self.lanes, register)
        register[sel] = value

    def trap(self, pc: int, act: Activation) -> None:
        """Stop the kernel."""
        raise Fault("trap", act.lane(0), pc)

    def sync_block(self, act: Activation) -> None:
        """Let the lanes' blocks go on to their next epoch."""
        self._advance(act, np.int64(self._tick + 1) << CLOCK, whole=True)

    def sync_warp(self, act: Activation, mask: Any) -> None:
        """Let the lanes' warps go on in time."""
        self._advance(act, np.int64(self._tick + 1) << CLOCK, whole=False)

    def _advance(self, act: Activation, time: np.int64, whole: bool) -> None:
        self._tick += 1
        act.forget()
        if act.sel is None:
            self.stamp = self._who | time
            if whole:
                self.floor = (self._who >> SERIAL << SERIAL) | time
        else:
            who = self._who[act.sel]
            self.stamp[act.sel] = who | time
            if whole:
                self.floor[act.sel] = (who >> SERIAL << SERIAL) | time

    def reduce_block(self, act: Activation, value: Any, operation: str) -> Any:
        """Return what ``bar.red`` gives: the count, or whether all or any."""
        block = self.local_block if act.sel is None else self.local_block[act.sel]
        value = np.broadcast_to(value, act.n)
        true = np.bincount(block, value, self.blocks)[block]
        if operation == "popc":
            return true.astype(np.uint32)
        every = np.bincount(block, minlength=self.blocks)[block]
        return true == every if operation == "and" else true > 0

    # -- scheduling

    def run(self) -> None:
        """Run all lanes to their end."""
        try:
            with np.errstate(all="ignore"):
                self._run()
        except Fault as fault:
            raise self._error(fault.message, fault.lane, fault.pc) from None
        except KernelFault as fault:
            raise self._error(fault.message, self.acting.lane(fault.index), fault.pc) from None

    def _run(self) -> None:
        functions, blocks, R = self.code.functions, self.code.blocks, list(self.code.initial)
        groups: dict[int, list[Any]] = {}
        parked: dict[int, list[Any]] = {}
        act, here = Activation(self, None), 0
        while True:
            block = blocks[here]
            self.at, self.acting = here, act
            if block.kind:
                ready = self._ready(here, act, R, parked)
                if ready is None:
                    after: Any = None
                else:
                    act = ready
                    after = functions[here](self, act, R, act.sel)
            else:
                after = functions[here](self, act, R, act.sel)
            if after is not None:
                length = block.end - block.first
                self.executed += length
                self.lane_instructions += length * act.n
                if self.executed > self.steps:
                    raise Fault(f"more than {self.steps} instructions: endless?", act.lane(0))
                if not isinstance(after, int):
                    after = self._diverge(after, act, groups)
                if after is not None and after < 0:
                    if act.sel is not None:
                        self.exited[act.sel] = True
                    after = None
                if after is not None:
                    if after not in parked and (not groups or after < min(groups)):
                        here = after
                        continue
                    groups.setdefault(after, []).append(act.sel)
            if not groups:
                if not parked:
                    return
                self._wake(parked, groups)
            here = min(groups)
            act = self._merge(groups.pop(here) + parked.pop(here, []))

    def _diverge(self, after: Any, act: Activation, groups: dict[int, list[Any]]) -> int | None:
        """Send the lanes where a branch sends them; return the block if it is one for all."""
        if len(after) == 3:
            condition, then, other = after
            if not condition.ndim:
                return int(then if condition else other)
            true = np.flatnonzero(condition)
            if len(true) == act.n:
                return int(then)
            if not len(true):
                return int(other)
            ways = [(then, true), (other, np.flatnonzero(~condition))]
        else:
            index, table = after
            if np.any(index >= len(table)):
                raise Fault("brx.idx beyond its table", act.lane(0))
            if not index.ndim:
                return int(table[index])
            to = table[index]
            ways = [(int(block), np.flatnonzero(to == block)) for block in np.unique(to)]
        for block, chosen in ways:
            lanes = chosen if act.sel is None else act.sel[chosen]
            groups.setdefault(block, []).append(lanes)
        return None

    def _merge(self, parts: list[Any]) -> Activation:
        if len(parts) == 1:
            lanes = parts[0]
        else:
            lanes = np.concatenate(parts)
            if len(lanes) < self.lanes:
                lanes.sort(kind="stable")
        if lanes is None or len(lanes) == self.lanes:
            return Activation(self, None)
        return Activation(self, lanes)

    def _ready(
        self, here: int, act: Activation, R: list[Any], parked: dict[int, list[Any]]
    ) -> Activation | None:
        """Return the lanes for which all whom they wait for have come; park the others."""
        if act.sel is None:
            return act
        if self.code.blocks[here].kind == "block":
            present = np.zeros(self.lanes, bool)
            present[act.sel] = True
            if self.early_exit:
                present |= self.exited
            good = present.reshape(self.blocks, self.threads).all(axis=1)[self.local_block[act.sel]]
        else:
            good = self.complete(act, self.code.masks[here](act, R, act.sel))
        if good.all():
            return act
        parked.setdefault(here, []).append(act.sel[~good])
        return act.part(np.flatnonzero(good)) if good.any() else None

    def _wake(self, parked: dict[int, list[Any]], groups: dict[int, list[Any]]) -> None:
        """Look again at the barriers when nobody else can run; if none opens: a deadlock."""
        if self.early_exit:
            for here, parts in list(parked.items()):
                lanes = np.concatenate(parts)
                present = self.exited.copy()
                present[lanes] = True
                full = present.reshape(self.blocks, self.threads).all(axis=1)
                if self.code.blocks[here].kind == "block" and full[self.local_block[lanes]].any():
                    groups[here] = [lanes]
                    del parked[here]
                    return
        waiting = {self.code.blocks[here].first: np.concatenate(p) for here, p in parked.items()}
        places = "; ".join(
            f"{len(lanes)} threads (first: {self.place(int(lanes.min()))}) "
            f"at {self.instruction(pc)}"
            for pc, lanes in waiting.items()
        )
        gone = f", {int(self.exited.sum())} threads have ended" if self.exited.any() else ""
        pc, lanes = next(iter(waiting.items()))
        raise Fault(
            f"deadlock: a barrier or warp-wide instruction in divergent code; waiting: "
            f"{places}{gone}",
            int(lanes.min()),
            pc,
        )

    # -- messages

    def instruction(self, pc: int) -> str:
        """Return an instruction's line and text."""
        ins = self.kernel.entry.instructions[pc]
        return f"PTX line {ins.line}: {ins.text}"

    def place(self, lane: int) -> str:
        """Return a lane's block and thread."""
        return f"block {self.first + lane // self.threads} thread {lane % self.threads}"

    def _error(self, message: str, lane: int | None, pc: int | None) -> KernelError:
        if pc is None:
            pc = self.code.blocks[self.at].first
        who = "" if lane is None else f", {self.place(lane)}"
        return KernelError(f"kernel {self.kernel.name}{who}, {self.instruction(pc)}: {message}")


def _scalar(values: NDArray[Any], blocks: int) -> Any:
    """Return one number for one block."""
    return values[0] if blocks == 1 else values
