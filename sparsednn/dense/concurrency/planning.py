"""From a network to the quickest schedule on this machine: profile, schedules, trial.

The profile tells what tasks take; schedules are made and compared by prediction; tasks that the
best one puts beside each other are measured in pairs, and it is made anew; then the best of each
kind runs, in turns, and the quickest is taken. The serial ones are among them, so what is taken is
never slower than one operation after the other, but for noise.

Must not know: networks of models, files.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from sparsednn.dense.concurrency.cpu.lanes import LaneExecution
from sparsednn.dense.concurrency.kernels import Kernels
from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.profile_store import ProfileStore
from sparsednn.dense.concurrency.profiling import measure_pairs, measure_profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.planner import Effort, plan
from sparsednn.dense.concurrency.scheduling.serial import serial_schedule
from sparsednn.dense.concurrency.tasks import TaskGraph, gradient_of
from sparsednn.dense.concurrency.timeline import Run
from sparsednn.dense.concurrency.trial import Trial, choice_of, pairs_beside

__all__ = ["in_place", "make_profile", "try_schedules"]

#: Pairs that are measured: those that are beside each other for longest.
_PAIRS = 24
#: Schedules that take this many times as long as the best are not run for longer than that.
_NEAR = 1.2
#: Passes of each schedule in a trial, at least.
_ROUNDS = 7


def make_profile(
    tasks: TaskGraph,
    kernels: Kernels,
    store: ProfileStore,
    *,
    workspace_limit: int | None = None,
    seed: int = 0,
    effort: Effort = "normal",
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Profile, list[Schedule]]:
    """Measure tasks, make schedules, measure pairs that run side by side, and make them again.

    Raises
    ------
    UsageError
        If the workspace limit cannot be kept.
    """
    profile = measure_profile(tasks, kernels, store, progress=progress)
    profile = in_place(tasks, kernels, profile, workspace_limit)
    # The first plans are to tell what runs beside what.
    schedules = plan(tasks, profile, workspace_limit=workspace_limit, seed=seed, effort="quick")
    concurrent = [one for one in schedules if not one.name.startswith("serial")]
    pairs = pairs_beside(profile, concurrent)[:_PAIRS]
    measure_pairs(tasks, kernels, profile, pairs, store)
    return profile, plan(tasks, profile, workspace_limit=workspace_limit, seed=seed, effort=effort)


def in_place(
    tasks: TaskGraph, kernels: Kernels, profile: Profile, workspace_limit: int | None = None
) -> Profile:
    """Scale all ways to do a task by what it takes in a pass, over what it took by itself.

    Over and over, a task finds its parameters in the cache; in a pass it mostly does not. This is
    of the network, not of the task's shapes, and so it is not kept in the store.
    """
    schedule = serial_schedule(tasks, profile, "one", workspace_limit)
    execution = LaneExecution(tasks, schedule, kernels)
    try:
        _random_images(execution)
        _pass(execution)
        passes = [_traced(execution) for _ in range(_ROUNDS)]
    finally:
        execution.close()
    times: dict[int, list[float]] = {}
    for runs in passes:
        for run in runs:
            times.setdefault(run.item, []).append(run.end - run.start)
    ratios = {}
    for number, found in times.items():
        item = schedule.items[number]
        alone = choice_of(profile, item.task, item.algorithm).seconds
        if alone > 0:
            ratios[item.task] = statistics.median(found) / alone
    choices = {
        name: [replace(one, seconds=one.seconds * ratios.get(name, 1.0)) for one in some]
        for name, some in profile.choices.items()
    }
    return replace(profile, choices=choices)


def try_schedules(
    tasks: TaskGraph,
    kernels: Kernels,
    schedules: list[Schedule],
    *,
    rounds: int = _ROUNDS,
    seconds: float = 3.0,
) -> Trial:
    """Run all schedules in turns, and choose.

    Parameters
    ----------
    tasks, kernels
        What to run.
    schedules
        At least one.
    rounds, seconds
        How many passes of each at least, and for how long in all.
    """
    executions = [LaneExecution(tasks, one, kernels) for one in schedules]
    try:
        for execution in executions:
            _random_images(execution)
            _pass(execution)
        times = [[_pass(execution)] for execution in executions]
        end = time.perf_counter() + seconds
        going = list(zip(executions, times, strict=True))
        for _ in range(rounds - 1):
            for execution, found in going:
                found.append(_pass(execution))
        # Those that are far behind need not be known better.
        near = _NEAR * min(map(statistics.median, times))
        going = [one for one in going if statistics.median(one[1]) <= near]
        while time.perf_counter() < end:
            for execution, found in going:
                found.append(_pass(execution))
        medians = tuple(map(statistics.median, times))
        runs = tuple(_traced(execution) for execution in executions)
    finally:
        for execution in executions:
            execution.close()
    return Trial(tuple(schedules), medians, max(map(len, times)), runs)


def _pass(execution: LaneExecution) -> float:
    start = time.perf_counter()
    if execution.tasks.training:  # parameters are new in each pass
        execution.kernels.parameters_changed()
    execution.forward()
    if execution.tasks.training:
        execution.backward()
    return time.perf_counter() - start


def _traced(execution: LaneExecution) -> list[Run]:
    found = execution.traced(backward=False)
    if execution.tasks.training:
        found += execution.traced(backward=True)
    first = found[0][1] if found else 0.0
    return [Run(item, start - first, end - first) for item, start, end in found]


def _random_images(execution: LaneExecution) -> None:
    random = np.random.default_rng(0)
    tasks = execution.tasks
    for name in (tasks.graph.input, gradient_of(tasks.output)):
        if name in execution.tensors:
            array = execution.tensors[name]
            array[...] = random.standard_normal(array.shape, np.float32)
