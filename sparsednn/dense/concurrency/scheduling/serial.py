"""One task after the other, in the order of the `TaskGraph`: what frameworks do.

The parts of a task run side by side; the next task begins when all of them have ended, as threads
within each operation do it.

Must not know: memory beyond the workspace limit.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.assemble import assemble
from sparsednn.dense.concurrency.scheduling.engine import slowdown
from sparsednn.dense.concurrency.scheduling.problem import Problem
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import UsageError

__all__ = ["Parts", "serial", "serial_choices", "serial_schedule"]

Parts = Literal["best", "one", "all"]
"""Into how many parts tasks are cut: what is quickest, one, or as many as there are lanes."""

_NAMES: dict[Parts, str] = {"best": "serial", "one": "serial-one", "all": "serial-all"}


def serial_schedule(
    tasks: TaskGraph,
    profile: Profile,
    parts: Parts = "best",
    workspace_limit: int | None = None,
) -> Schedule:
    """Return a schedule of one task after the other, each with its quickest choice.

    Parameters
    ----------
    parts
        Which choices to look at; where a task has none of that kind (below the limit), at all.
    workspace_limit
        Bytes at one time; None: any number.

    Raises
    ------
    InputError
        If the profile lacks a task.
    UsageError
        If the limit is too small for a task, or `parts` is none of the three.
    """
    return serial(Problem(tasks, profile, workspace_limit), parts)


def serial(problem: Problem, parts: Parts) -> Schedule:
    """Return the schedule of `serial_schedule`."""
    chosen = serial_choices(problem, parts)
    lanes = problem.profile.lanes
    queues: list[list[int]] = [[] for _ in range(lanes)]
    waits: dict[int, list[int]] = {}
    before: list[int] = []
    for task in range(len(problem.names)):
        slots = list(problem.slots(task, int(chosen[task])))
        for part, slot in enumerate(slots):
            queues[part % lanes].append(slot)
            waits[slot] = before
        before = slots
    return assemble(problem, chosen, queues, _NAMES[parts], waits)


def serial_choices(problem: Problem, parts: Parts) -> NDArray[np.int64]:
    """Return the quickest choices of tasks that run one after the other: ``(tasks,)``.

    Where tasks with several parts cost a wait more, this weighs it: shortest path over tasks, with
    one lane or several in use after each of them.
    """
    if parts not in get_args(Parts):
        raise UsageError(f"parts are one of {', '.join(get_args(Parts))}, found {parts!r}")
    arrays = problem.arrays
    between = max(arrays.launch, arrays.wait)
    # By whether the last task was on several lanes: seconds until then, and the choices.
    ways: dict[bool, tuple[float, tuple[int, ...] | None]] = {False: (0.0, ())}
    trail: list[dict[bool, tuple[int, bool]]] = []
    for task in range(len(problem.names)):
        found: dict[bool, tuple[float, int, bool]] = {}
        for choice in _of_kind(problem, task, parts):
            many = problem.choices[choice].algorithm.parts > 1 and arrays.lanes > 1
            own = _alone(problem, choice)
            for was, (seconds, _) in ways.items():
                total = seconds + own + (between if many or was else arrays.launch)
                if many not in found or total < found[many][0]:
                    found[many] = total, choice, was
        ways = {many: (seconds, None) for many, (seconds, _, _) in found.items()}
        trail.append({many: (choice, was) for many, (_, choice, was) in found.items()})
    chosen = np.empty(len(trail), np.int64)
    many = min(ways, key=lambda way: ways[way][0])
    for task in range(len(trail) - 1, -1, -1):
        chosen[task], many = trail[task][many]
    return chosen


def _of_kind(problem: Problem, task: int, parts: Parts) -> list[int]:
    choices = list(problem.choices_of(task))
    if parts == "best":
        return choices
    wanted = 1 if parts == "one" else problem.profile.lanes
    kind = [each for each in choices if problem.choices[each].algorithm.parts == wanted]
    return kind or choices


def _alone(problem: Problem, choice: int) -> float:
    """Seconds of a task with nothing but its own parts side by side."""
    arrays = problem.arrays
    parts = int(arrays.parts[choice])
    side = min(parts, arrays.lanes)
    if arrays.workspace[choice] > 0:
        side = min(side, int(arrays.capacity // arrays.workspace[choice]))
    rounds = -(-parts // side)
    longer = 1.0 + (side - 1) * (slowdown(arrays, choice, choice) - 1.0)
    return rounds * float(arrays.seconds[choice]) * longer + (rounds - 1) * arrays.launch
