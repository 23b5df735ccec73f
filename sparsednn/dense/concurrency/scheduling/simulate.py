"""Predicted times of tasks on lanes: the wrapper of the compiled simulation (`engine`).

Must not know: memory, who asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.scheduling.engine import by_priority, by_queues
from sparsednn.dense.concurrency.scheduling.problem import UNLIMITED, Problem, Slot
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import UsageError

__all__ = ["Part", "Run", "Times", "dispatch", "simulate", "work_off"]

Part = tuple[str, int]
"""A task, and which part of it."""


@dataclass(frozen=True, slots=True)
class Times:
    """What a simulation predicts.

    Attributes
    ----------
    start, end
        Seconds since the beginning of the pass, of each part.
    """

    start: dict[Part, float]
    end: dict[Part, float]

    @property
    def seconds(self) -> float:
        """Of the whole pass."""
        return max(self.end.values(), default=0.0)


@dataclass(frozen=True, slots=True)
class Run:
    """A simulated pass, in arrays.

    Attributes
    ----------
    chosen
        ``(tasks,)`` choice of each task.
    lane, start, end, order
        ``(slots,)``; lane -1: not used with this choice. `order` counts starts: it respects all
        dependencies.
    seconds
        Of the pass; infinity where the queues got stuck, and the rest means nothing.
    """

    chosen: NDArray[np.int64]
    lane: NDArray[np.int64]
    start: NDArray[np.float64]
    end: NDArray[np.float64]
    order: NDArray[np.int64]
    seconds: float

    def slots(self) -> list[Slot]:
        """Slots that are used, in the order of their starts."""
        used = np.flatnonzero(self.lane >= 0)
        found: list[int] = used[np.argsort(self.order[used])].tolist()
        return found

    def queues(self, lanes: int) -> list[list[Slot]]:
        """Slots of each lane, in order."""
        rows: list[list[Slot]] = [[] for _ in range(lanes)]
        for slot in self.slots():
            rows[int(self.lane[slot])].append(slot)
        return rows


def dispatch(
    problem: Problem,
    chosen: NDArray[np.int64],
    priority: NDArray[np.float64],
    weight: float = 0.0,
) -> Run:
    """Simulate lanes that take what has the highest priority; see `engine.by_priority`."""
    slots = len(problem.arrays.task_of)
    run = Run(
        chosen.copy(), np.empty(slots, np.int64), np.empty(slots), np.empty(slots),
        np.empty(slots, np.int64), 0.0,
    )  # fmt: skip
    seconds = by_priority(
        problem.arrays, run.chosen, priority, weight, run.lane, run.start, run.end, run.order
    )
    return _timed(run, seconds)


def work_off(
    problem: Problem,
    chosen: NDArray[np.int64],
    queues: Sequence[Sequence[Slot]],
    waits: Mapping[Slot, Iterable[Slot]] | None = None,
    *,
    limited: bool = True,
) -> Run:
    """Simulate lanes that work off their queues; see `engine.by_queues`.

    `limited`: whether parts also wait until there is room for their workspace; not where the waits
    make that sure.
    """
    arrays = problem.arrays if limited else problem.arrays._replace(capacity=UNLIMITED)
    slots = len(arrays.task_of)
    lengths = np.zeros(slots + 1, np.int64)
    wait_for: list[int] = []
    for slot in sorted(waits or ()):
        others = list((waits or {})[slot])
        lengths[slot + 1] = len(others)
        wait_for += others
    run = Run(
        chosen, np.empty(slots, np.int64), np.empty(slots), np.empty(slots),
        np.empty(slots, np.int64), 0.0,
    )  # fmt: skip
    seconds = by_queues(
        arrays,
        chosen,
        np.concatenate(([0], np.cumsum([len(queue) for queue in queues]))).astype(np.int64),
        np.array([slot for queue in queues for slot in queue], np.int64),
        np.cumsum(lengths),
        np.array(wait_for, np.int64),
        run.lane, run.start, run.end, run.order,
    )  # fmt: skip
    return _timed(run, seconds)


def _timed(run: Run, seconds: float) -> Run:
    return Run(run.chosen, run.lane, run.start, run.end, run.order, seconds)


def simulate(
    tasks: TaskGraph,
    profile: Profile,
    choices: Mapping[str, Choice],
    sequences: Sequence[Sequence[Part]],
    waits: Mapping[Part, Iterable[Part]] | None = None,
) -> Times:
    """Predict when each part starts and ends.

    Parameters
    ----------
    choices
        How each task is done.
    sequences
        What each lane does, in order: at most as many lanes as the profile has.
    waits
        What parts must await beyond the dependencies of their tasks.

    Raises
    ------
    UsageError
        If a part is missing or there twice, or the lanes wait for each other for ever.
    """
    if len(sequences) > profile.lanes:
        raise UsageError(f"a schedule on {len(sequences)} lanes: there are {profile.lanes}")
    for name in tasks.tasks:
        if name not in choices:
            raise UsageError(f"a schedule without a choice for task {name}")
    chosen = {name: [choices[name]] for name in tasks.tasks}
    problem = Problem(
        tasks,
        Profile(
            profile.device, profile.lanes, chosen, profile.launch_seconds, profile.wait_seconds,
            profile.pairs, profile.keys,
        ),
    )  # fmt: skip
    numbers = {
        (name, slot - first): slot
        for task, name in enumerate(problem.names)
        for first in (int(problem.arrays.slot_of[task]),)
        for slot in problem.slots(task, task)
    }
    given = [part for sequence in sequences for part in sequence]
    if len(given) != len(numbers) or set(given) != set(numbers):
        odd = sorted(set(given) ^ set(numbers)) or [part for part in given if given.count(part) > 1]
        raise UsageError(
            f"a schedule must have each part once: see part {odd[0][1]} of task {odd[0][0]}"
        )
    queues = [[numbers[part] for part in sequence] for sequence in sequences]
    queues += [[] for _ in range(profile.lanes - len(sequences))]
    run = work_off(
        problem,
        np.arange(len(problem.names)),
        queues,
        {numbers[part]: [numbers[each] for each in first] for part, first in (waits or {}).items()},
    )
    if run.seconds == np.inf:
        raise UsageError("a schedule whose lanes wait for each other for ever")
    return Times(
        {part: float(run.start[slot]) for part, slot in numbers.items()},
        {part: float(run.end[slot]) for part, slot in numbers.items()},
    )
