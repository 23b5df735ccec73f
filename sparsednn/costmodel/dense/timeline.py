"""`Timeline`: when each rank is where in a step, what its time is charged to, what is under way.

Ranks compute each at its own time. What they do together starts when the last of them is there
(what the others wait is *imbalance*) and takes as long for all. Transfers that were started go on
while ranks compute, at `overlap` of their speed, one after the other (`costmodel.overlap`); what is
left of them when they are waited for is waited. Must not know: what is computed and sent.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.prediction import BOUNDS

__all__ = ["Timeline"]

_Floats = NDArray[np.float64]


class Timeline:
    """The clocks of all ranks, from 0.

    Parameters
    ----------
    ranks
        How many.
    overlap
        Of the link: see `platform.Link`.

    Attributes
    ----------
    now
        ``(ranks,)`` seconds.
    phases, operations
        Seconds of the slowest rank's clock by phase, and by phase and operation.
    """

    def __init__(self, ranks: int, overlap: float) -> None:
        self.now: _Floats = np.zeros(ranks)
        self.phases: dict[str, float] = {}
        self.operations: dict[tuple[str, str], float] = {}
        self._overlap = overlap
        self._charged = {name: np.zeros(ranks) for name in BOUNDS}
        self._under_way: deque[dict[str, float]] = deque()
        self._started = 0
        self._lapped = 0.0

    def compute(self, seconds: Mapping[str, _Floats]) -> None:
        """Let every rank compute: name of `BOUNDS` → ``(ranks,)`` seconds."""
        spent = np.zeros_like(self.now)
        for name, some in seconds.items():
            self._charged[name] += some
            spent += some
        self.now = self.now + spent
        self._progress(self._overlap * float(spent.mean()))

    def together(self, seconds: Mapping[str, float]) -> None:
        """Let all wait for the last one, then do something for so long, by name of `BOUNDS`."""
        self._meet()
        for name, some in seconds.items():
            self._charged[name] += some
            self.now = self.now + some

    def exchange(self, seconds: _Floats, latency: _Floats) -> None:
        """Let all wait for the last one, then each do its messages: ``(ranks,)`` seconds.

        `latency` is what of them does not depend on bytes.
        """
        self._meet()
        self._charged["latency"] += latency
        self._charged["link bandwidth"] += seconds - latency
        self.now = self.now + seconds

    def start(self, seconds: Mapping[str, float]) -> int:
        """Start a transfer that takes so long alone; returns its number."""
        self._under_way.append(dict(seconds))
        self._started += 1
        return self._started

    def finish(self, number: int | None = None) -> None:
        """Wait until a transfer is over, and all that were started before it; None: all of them."""
        last = self._started if number is None else number
        waited: dict[str, float] = {}
        while self._under_way and self._started - len(self._under_way) < last:
            for name, some in self._under_way.popleft().items():
                waited[name] = waited.get(name, 0.0) + some
        if waited:
            self.together(waited)

    def lap(self, phase: str, operation: str = "") -> None:
        """Count what the slowest clock has gone on since the last lap."""
        latest = float(self.now.max())
        spent, self._lapped = latest - self._lapped, latest
        self.phases[phase] = self.phases.get(phase, 0.0) + spent
        key = phase, operation
        self.operations[key] = self.operations.get(key, 0.0) + spent

    def end(self) -> tuple[float, dict[str, float]]:
        """Return the slowest rank's seconds, and charges, mean of ranks, that add up to it."""
        self._meet()
        return float(self.now[0]), {name: float(one.mean()) for name, one in self._charged.items()}

    def _meet(self) -> None:
        latest = self.now.max()
        self._charged["imbalance"] += latest - self.now
        self.now = np.full_like(self.now, latest)

    def _progress(self, seconds: float) -> None:
        """Let what is under way go on for so long, the first first."""
        for transfer in self._under_way:
            left = sum(transfer.values())
            if left > 0:
                keep = max(0.0, left - seconds) / left
                for name in transfer:
                    transfer[name] *= keep
                seconds -= left
            if seconds <= 0:
                return
