"""Counts of memory traffic, for models of performance: bytes, 32-byte sectors, bank conflicts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ptx.access import Accesses
    from ptx.machine import Activation

__all__ = ["Traffic"]


@dataclass
class Traffic:
    """What all launches of a kernel together have asked for.

    Attributes
    ----------
    load_bytes, store_bytes
        Global memory, as the threads asked (atomics are stores).
    load_sectors, store_sectors
        Distinct sectors of 32 bytes, per warp and instruction.
    shared_accesses
        Warps that ran a load, store or atomic of shared memory.
    wavefronts
        Turns that these took: the most distinct words that one of the 32 banks had to give, per
        warp (and per half or quarter of it for 8 and 16 bytes).
    """

    load_bytes: int = 0
    store_bytes: int = 0
    load_sectors: int = 0
    store_sectors: int = 0
    shared_accesses: int = 0
    wavefronts: int = 0

    def access(
        self, batch: Accesses, space: str, act: Activation, at: Any, width: int, *, store: bool
    ) -> None:
        """Count one instruction."""
        at = np.broadcast_to(at, act.n)
        warp = act.special("warp")
        if space == "global":
            sectors = len(np.unique((warp << 40) | (at >> 5)))
            if store:
                self.store_bytes += act.n * width
                self.store_sectors += sectors
            else:
                self.load_bytes += act.n * width
                self.load_sectors += sectors
        elif space == "shared":
            self.shared_accesses += len(np.unique(warp))
            turn = (
                warp
                if width <= 4
                else warp * (width // 4) + act.special("%laneid") // (128 // width)
            )
            words = (at >> 2)[:, None] + np.arange(max(1, width // 4))
            turns = np.broadcast_to(turn[:, None], words.shape)
            keys = np.unique((turns.astype(np.int64) << 36) | words)
            banks = ((keys >> 36) << 5) | (keys & 31)
            where, counts = np.unique(banks, return_counts=True)
            group = where >> 5
            heads = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
            self.wavefronts += int(np.maximum.reduceat(counts, heads).sum())
