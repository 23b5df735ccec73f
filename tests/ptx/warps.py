"""What the threads of a warp do together: shuffles, votes, reductions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ptx.access import Fault

if TYPE_CHECKING:
    from ptx.machine import Activation

__all__ = ["Warps"]

_UFUNCS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


class Warps:
    """The warp side of a running batch.

    `slots` are the lanes' places if every block had a whole number of warps.
    """

    blocks: int
    threads: int
    lanes: int
    local_block: NDArray[np.int64]

    def setup_warps(self, tid: NDArray[np.uint32]) -> None:
        """Number the warps and note which lanes exist."""
        per_block = -(-self.threads // 32)
        self._warps = self.blocks * per_block
        self.slots = self.local_block * (32 * per_block) + tid
        self.warp = self.slots >> 5
        self._exists = self._bits(self.slots)

    def _bits(self, slots: Any) -> NDArray[np.uint32]:
        """Return, for each warp, which of its lanes are among these slots."""
        present = np.zeros(32 * self._warps, bool)
        present[slots] = True
        return np.packbits(present.reshape(-1, 32), axis=1, bitorder="little").view("<u4").ravel()

    def lane_mask(self, relation: str) -> NDArray[np.uint32]:
        """Return ``%lanemask_lt`` and its like."""
        bit = np.uint32(1) << (self.slots & 31).astype(np.uint32)
        below = bit - np.uint32(1)
        return {
            "eq": bit,
            "lt": below,
            "le": below | bit,
            "gt": ~(below | bit),
            "ge": ~below,
        }[relation]

    def _of(self, act: Activation) -> tuple[Any, Any]:
        """Return the slots and the warps of the lanes."""
        if act.sel is None:
            return self.slots, self.warp
        return self.slots[act.sel], self.warp[act.sel]

    def complete(self, act: Activation, mask: Any) -> Any:
        """Return for which lanes all of their member mask are here."""
        slots, warp = self._of(act)
        missing = self._exists[warp] & ~self._bits(slots)[warp]
        return (missing & mask) == 0

    def active(self, act: Activation) -> NDArray[np.uint32]:
        """Return ``activemask``."""
        slots, warp = self._of(act)
        return self._bits(slots)[warp]

    def _member(self, pc: int | None, act: Activation, mask: Any) -> None:
        """Refuse a member mask without the lane itself."""
        slots, _ = self._of(act)
        out = (np.broadcast_to(mask, act.n) >> (slots & 31).astype(np.uint32)) & np.uint32(1) == 0
        if out.any():
            raise Fault("not in its own member mask", act.lane(int(np.flatnonzero(out)[0])), pc)

    def shuffle(
        self, pc: int, act: Activation, mode: str, value: Any, by: Any, clamp: Any, mask: Any
    ) -> tuple[Any, Any]:
        """Return the other lane's value, and whether there was such a lane in range."""
        slots, _ = self._of(act)
        lane = (slots & 31).astype(np.int32)
        self._member(pc, act, mask)
        segment = ((clamp >> np.uint32(8)) & np.uint32(31)).astype(np.int32)
        limit = (clamp & np.uint32(31)).astype(np.int32)
        by = (by & np.uint32(31)).astype(np.int32)
        most = (lane & segment) | (limit & ~segment)
        if mode == "up":
            other = lane - by
            inside = other >= most
        elif mode == "down":
            other = lane + by
            inside = other <= most
        elif mode == "bfly":
            other = lane ^ by
            inside = other <= most
        else:
            other = (lane & segment) | (by & ~segment)
            inside = other <= most
        other = np.where(inside, other, lane)
        source = slots - lane + other
        if act.sel is None and self.threads % 32 == 0:
            position = source
        else:
            position = np.full(32 * self._warps, -1)
            position[slots] = np.arange(act.n)
            position = position[source]
        strange = (np.broadcast_to(mask, act.n) >> other.astype(np.uint32)) & np.uint32(1) == 0
        strange |= position < 0
        if strange.any():
            first = int(np.flatnonzero(strange)[0])
            raise Fault(
                f"shuffle from lane {int(other[first])}, which does not take part",
                act.lane(first),
                pc,
            )
        return np.broadcast_to(value, act.n)[position], inside

    def vote(self, act: Activation, mode: str, value: Any, mask: Any) -> Any:
        """Return the ballot, or whether any or all of the member mask say true."""
        self._member(None, act, mask)
        slots, warp = self._of(act)
        ballot = self._bits(slots[np.broadcast_to(value, act.n)])[warp] & mask
        if mode == "ballot":
            return ballot
        if mode == "any":
            return ballot != 0
        every = ballot == (mask & self._exists[warp])
        return every if mode == "all" else every | (ballot == 0)

    def reduce_warp(self, act: Activation, operation: str, value: Any, mask: Any) -> Any:
        """Return the sum, extreme, ... over the member mask."""
        self._member(None, act, mask)
        slots, warp = self._of(act)
        value, masks = np.broadcast_to(value, act.n), np.broadcast_to(mask, act.n)
        kind = value.dtype
        limits = np.iinfo(kind)
        neutral = {"min": limits.max, "max": limits.min, "and": ~kind.type(0)}.get(operation, 0)
        result = np.empty(act.n, kind)
        for one in np.unique(masks):  # groups of a warp may come with masks of their own
            chosen = masks == one
            table = np.full(32 * self._warps, neutral, kind)
            table[slots[chosen]] = value[chosen]
            total = _UFUNCS[operation].reduce(table.reshape(-1, 32), axis=1, dtype=kind)
            result[chosen] = total[warp[chosen]]
        return result

    def match(self, act: Activation, value: Any, mask: Any) -> Any:
        """Return which lanes of the member mask have the same value."""
        self._member(None, act, mask)
        slots, warp = self._of(act)
        value = np.broadcast_to(value, act.n)
        table = np.zeros(32 * self._warps, value.dtype)
        there = np.zeros(32 * self._warps, bool)
        table[slots], there[slots] = value, True
        rows = table.reshape(-1, 32)[warp] == value[:, None]
        rows &= there.reshape(-1, 32)[warp]
        bits = np.packbits(rows, axis=1, bitorder="little").view("<u4").ravel()
        return bits & mask

    def elect(self, act: Activation, mask: Any) -> tuple[Any, Any]:
        """Return the lowest lane of the member mask, and who it is."""
        slots, _ = self._of(act)
        mask = np.broadcast_to(mask, act.n)
        low = (mask & (~mask + np.uint32(1))).astype(np.float64)
        leader = np.log2(low).astype(np.uint32)
        return leader, leader == (slots & 31)
