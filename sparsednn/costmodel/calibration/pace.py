"""How fast this machine is at this moment: a small, fixed piece of work, timed again and again.

A virtual machine shares cores, caches and memory with others whom nobody here sees: the same loop
takes one and a half times as long for minutes, then not, and changes within milliseconds. Times
that were taken at different moments cannot be compared as they are. So whoever measures runs a
*probe* before and after, and divides by how much slower than usual it was: what is left is the
machine at its usual pace, whatever that was when the pace was set.

The probe is a sparse product on a tile that fits the second cache: arithmetic, loads that are
scattered, and a few hundred kilobytes. Other work need not be slowed down in the same measure; what
this leaves over is noise, and the medians' business.

Must not know: what else is timed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from sparsednn.costmodel.calibration.sparse import Loop, block_matrix, make_loop

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["Pace", "rank_pace"]

_WIDTH: Final = 640
_HEIGHT: Final = 2
_LENGTH: Final = 32
_COLUMNS: Final = 48
_PASSES: Final = 12  # of a probe: about a third of a millisecond
_SETTING: Final = 400  # probes that set the pace
_USUAL: Final = 0.25  # their quantile: others are there more often than not


class Pace:
    """Tells how slow the machine is.

    Parameters
    ----------
    seconds
        Of the probe at the usual pace; None: it is set now, which takes a third of a second.
    agree
        Takes this process's slowness and returns what all use; on ranks the mean of all.
    crowded
        Whether more threads than cores run: then the probe's own time on a core counts, not how
        long it waited for one.

    Attributes
    ----------
    seconds
        As given, or set.
    """

    def __init__(
        self,
        seconds: float | None = None,
        *,
        agree: Callable[[float], float] | None = None,
        crowded: bool = False,
    ) -> None:
        random = np.random.default_rng(1)
        layer = block_matrix(_WIDTH, _WIDTH, _HEIGHT, _LENGTH, random)
        self._loop: Loop = make_loop(layer, _COLUMNS, random)
        self._agree = agree or (lambda slowness: slowness)
        self._clock = time.thread_time if crowded else time.perf_counter
        self._loop(1)
        self.seconds = seconds or self._usual()

    def _usual(self) -> float:
        return float(np.quantile([self._probe() for _ in range(_SETTING)], _USUAL))

    def _probe(self) -> float:
        self._loop(2)  # its tile comes back into the cache
        begin = self._clock()
        self._loop(_PASSES)
        return self._clock() - begin

    def slowness(self) -> float:
        """Return how many times longer than usual the probe takes now."""
        return self._agree(self._probe() / self.seconds)


def rank_pace(comm: Communicator, seconds: float | None) -> Pace:
    """Return the pace of ranks that measure together: their slowness is the mean of all.

    Parameters
    ----------
    comm
        All of them; making a pace, and asking it, is collective.
    seconds
        Of the probe at the usual pace; None: it is set now, by each rank for itself.
    """
    from sparsednn.machine import machine

    def mean(slowness: float) -> float:
        total = np.array([slowness])
        comm.allreduce(total)
        return float(total[0]) / comm.size

    return Pace(seconds, agree=mean, crowded=comm.size > machine().cores)
