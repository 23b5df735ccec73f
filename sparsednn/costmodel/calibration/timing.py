"""Time many small things in turns, so that a slow phase of the machine does not hit one of them.

A shared machine has phases of milliseconds to seconds in which everything is slower. Measured one
behind another, each point of a curve would have its own luck; in rounds over all points, all share
it, and the median over the rounds leaves it out. What is slow for longer, or changes faster, is
taken out by a `pace`, if one was set: a probe that runs between all visits. Must not know: what is
timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FULL", "QUICK", "Action", "Effort", "Slowness", "in_rounds", "no_pace", "paced", "repeated",
    "set_pace",
]  # fmt: skip

#: Runs a probe and returns how many times longer than usual it took; see `pace.Pace.slowness`.
Slowness = Callable[[], float]

#: Seconds between two probes, about.
_CHUNK = 0.003


def no_pace() -> float:
    """Take the machine to be at its usual pace always: as it is unless a pace was set."""
    return 1.0


_slowness: Slowness = no_pace


def set_pace(slowness: Slowness) -> None:
    """Let all that is timed in this process from now on be divided by this."""
    global _slowness
    _slowness = slowness


#: Does something so many times, and returns the seconds that it took. On ranks all call the same
#: action with the same number, and it returns the same seconds on all of them.
Action = Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Effort:
    """How much time is spent on one point.

    Attributes
    ----------
    rounds
        Visits to each point, whose median is taken.
    visit_seconds
        That a visit takes about: what is quicker is repeated.
    repeats
        In one visit, at most.
    """

    rounds: int
    visit_seconds: float
    repeats: int = 100_000


FULL = Effort(rounds=7, visit_seconds=0.012)
QUICK = Effort(rounds=3, visit_seconds=0.004)


def repeated(call: Callable[[], object]) -> Action:
    """Make an action of a Python call, timed as a loop."""

    def action(repeats: int) -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        return time.perf_counter() - begin

    return action


def in_rounds(actions: Sequence[Action], effort: Effort) -> NDArray[np.float64]:
    """Return the seconds of one repetition of each action: the median over rounds.

    Parameters
    ----------
    actions
        Each is called once to warm up (compilation, first touch of memory), then until it is known
        how many repetitions make a visit, then once in every round.
    effort
        How many rounds, and how long a visit.

    Returns
    -------
    ``(actions,)`` float64 seconds.
    """
    repeats = [_repeats(action, effort) for action in actions]
    samples = np.empty((effort.rounds, len(actions)))
    for one in samples:
        for place, (action, (count, chunks)) in enumerate(zip(actions, repeats, strict=True)):
            one[place] = paced(action, count, chunks)
    return np.median(samples, axis=0)


def paced(action: Action, repeats: int, chunks: int = 1) -> float:
    """Return the seconds of one repetition at the usual pace.

    So many chunks of so many repetitions, a probe in front of and behind each; the sums of both are
    divided.
    """
    spent, slow = 0.0, 0.5 * _slowness()
    for chunk in range(chunks):
        spent += action(repeats)
        slow += _slowness() * (0.5 if chunk == chunks - 1 else 1.0)
    return spent / (repeats * chunks) / (slow / chunks)


def _repeats(action: Action, effort: Effort) -> tuple[int, int]:
    """How many repetitions make a chunk, and how many chunks a visit."""
    action(1)
    count = 1
    seconds = action(count)
    while seconds < effort.visit_seconds / 8 and count < effort.repeats:
        count *= 4
        seconds = action(count)
    each = max(seconds / count, 1e-9)
    wanted = max(1, min(math.ceil(effort.visit_seconds / each), effort.repeats))
    chunks = max(1, min(round(wanted * each / _CHUNK), wanted))
    return -(-wanted // chunks), chunks
