"""`Trial`: schedules that have run, and the one to use; and which tasks schedules put side by side.

Must not know: on what device they ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.timeline import Run

__all__ = ["PlacedChoice", "Trial", "choice_of", "pairs_beside"]

#: A concurrent schedule that gains less than this over the serial one gains nothing but noise.
_GAIN = 1.03

PlacedChoice = tuple[str, Choice]
"""A task, and the way to do it."""


@dataclass(frozen=True)
class Trial:
    """Schedules, and what they took.

    Attributes
    ----------
    schedules
        By predicted time.
    seconds
        Median of each, as measured.
    rounds
        Passes of the quickest; of those that are far behind there are fewer.
    runs
        When each part ran, in one more pass of each.
    """

    schedules: tuple[Schedule, ...]
    seconds: tuple[float, ...]
    rounds: int
    runs: tuple[list[Run], ...]

    def best(self, *, serial: bool) -> tuple[Schedule, float] | None:
        """Return the quickest of those with tasks side by side, or of the serial ones."""
        found = [
            (seconds, number)
            for number, (schedule, seconds) in enumerate(
                zip(self.schedules, self.seconds, strict=True)
            )
            if schedule.name.startswith("serial") == serial
        ]
        if not found:
            return None
        seconds, number = min(found)
        return self.schedules[number], seconds

    @property
    def chosen(self) -> Schedule:
        """The one to use: a serial one, unless another gains more than noise."""
        serial, concurrent = self.best(serial=True), self.best(serial=False)
        if serial is None or (concurrent is not None and serial[1] > _GAIN * concurrent[1]):
            assert concurrent is not None  # there is one schedule at least
            return concurrent[0]
        return serial[0]


def choice_of(profile: Profile, task: str, algorithm: Algorithm) -> Choice:
    """Return what a profile says of a way to do a task."""
    return next(each for each in profile.choices[task] if each.algorithm == algorithm)


def pairs_beside(
    profile: Profile, schedules: Sequence[Schedule]
) -> list[tuple[PlacedChoice, PlacedChoice]]:
    """Return pairs of tasks predicted to run on two lanes at one time, those for longest first.

    Pairs of the same keys are one.
    """
    overlaps: dict[tuple[str, str], float] = {}
    pairs: dict[tuple[str, str], tuple[PlacedChoice, PlacedChoice]] = {}
    for schedule in schedules:
        running: list[int] = []
        for number, item in enumerate(schedule.items):
            running = [each for each in running if schedule.items[each].end > item.start]
            for each in running:
                other = schedule.items[each]
                both = min(item.end, other.end) - item.start
                if other.lane == item.lane or both <= 0:
                    continue
                mine = item.task, choice_of(profile, item.task, item.algorithm)
                its = other.task, choice_of(profile, other.task, other.algorithm)
                key = (
                    profile.key(item.task, item.algorithm),
                    profile.key(other.task, other.algorithm),
                )
                key = key if key[::-1] not in pairs else key[::-1]
                overlaps[key] = overlaps.get(key, 0.0) + both
                pairs.setdefault(key, (mine, its))
            running.append(number)
    return [pairs[key] for key in sorted(overlaps, key=lambda key: -overlaps[key])]
