"""`Stopwatch`: where the time of a step goes, by phase and by operation.

Laps follow each other, so all of the time is somewhere. Must not know: what is done in it.
"""

from __future__ import annotations

import time

__all__ = ["Stopwatch"]


class Stopwatch:
    """Seconds of this rank.

    Attributes
    ----------
    seconds
        Phase and name of an operation ("" for a phase without) → seconds.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = {}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a lap here; what was since the last one belongs to none."""
        self._last = time.perf_counter()

    def lap(self, phase: str, name: str = "") -> None:
        """End a lap, and begin the next one."""
        now = time.perf_counter()
        key = phase, name
        self.seconds[key] = self.seconds.get(key, 0.0) + now - self._last
        self._last = now

    def phases(self) -> dict[str, float]:
        """Return the seconds of each phase, in the order in which they came."""
        found: dict[str, float] = {}
        for (phase, _), seconds in self.seconds.items():
            found[phase] = found.get(phase, 0.0) + seconds
        return found

    def operations(self, phase: str) -> dict[str, float]:
        """Return the seconds of each operation in a phase."""
        return {name: value for (of, name), value in self.seconds.items() if of == phase and name}

    def clear(self) -> None:
        """Forget all laps."""
        self.seconds.clear()
        self.start()
