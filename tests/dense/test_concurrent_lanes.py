"""A schedule on threads: nothing is read before it is written, or after it is overwritten."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from sparsednn.dense.concurrency.cpu.lanes import LaneExecution
from sparsednn.dense.concurrency.cpu.overheads import measure_overheads
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.networks import make_network
from sparsednn.errors import UsageError
from stamped_kernels import RaceError, StampedKernels, random_profile


def tasks_of(name: str, *, training: bool) -> TaskGraph:
    return TaskGraph(make_network(name, image=(3, 32, 32), classes=4), 1, training=training)


def schedules_of(
    tasks: TaskGraph, kernels: StampedKernels, seed: int, limit: int | None = None
) -> list[Schedule]:
    profile = random_profile(tasks, kernels, seed)
    return plan(tasks, profile, workspace_limit=limit, seed=seed, effort="quick")


def passes(execution: LaneExecution, times: int) -> None:
    try:
        for _ in range(times):
            execution.forward()
            if execution.tasks.training:
                execution.backward()
    finally:
        execution.close()


@pytest.mark.parametrize(
    ("name", "training", "lanes", "limit"),
    [
        ("googlenet", False, 2, None),
        ("googlenet", False, 3, 8192),
        ("resnet20", True, 2, 4096),
        ("pathnet", False, 4, None),
        ("pathnet", True, 2, 12288),
    ],
)
def test_no_races(name: str, training: bool, lanes: int, limit: int | None) -> None:
    """Whatever tasks take, each finds what it reads; the arena's reuse included."""
    tasks = tasks_of(name, training=training)
    kernels = StampedKernels(lanes, seed=lanes)
    for schedule in schedules_of(tasks, kernels, lanes, limit):
        if limit is not None:
            assert schedule.workspace_bytes <= limit
        passes(LaneExecution(tasks, schedule, kernels), 3)


def test_a_missing_wait_is_noticed() -> None:
    """The test above can fail: without waits, somebody reads what is not there."""
    tasks = tasks_of("googlenet", training=False)
    kernels = StampedKernels(2, slowest=5e-4)
    schedule = next(one for one in schedules_of(tasks, kernels, 1) if one.name != "serial-one")
    hasty = replace(schedule, items=tuple(replace(one, waits=()) for one in schedule.items))
    with pytest.raises(RaceError):
        passes(LaneExecution(tasks, hasty, kernels), 20)


def test_an_error_ends_all_lanes() -> None:
    """What a task raises comes to the caller, from any lane; the next pass works again."""
    tasks = tasks_of("pathnet", training=False)
    failing = {"now": True}

    class Failing(StampedKernels):
        def bind(self, tasks: TaskGraph, task: Any, *given: Any) -> Callable[[], None]:
            call = super().bind(tasks, task, *given)

            def one() -> None:
                if failing["now"] and task.name == "layer2.module3.conv":
                    raise ValueError("a kernel that cannot")
                call()

            return one

    kernels = Failing(3)
    assert any(task.name == "layer2.module3.conv" for task in tasks) or failing.pop("now")
    for schedule in schedules_of(tasks, kernels, 5):
        execution = LaneExecution(tasks, schedule, kernels)
        failing["now"] = True
        with pytest.raises(ValueError, match="cannot"):
            execution.forward()
        failing["now"] = False
        passes(execution, 2)


def test_threads_end() -> None:
    """Closing ends the threads, also twice."""
    tasks = tasks_of("googlenet", training=False)
    kernels = StampedKernels(3, slowest=0)
    before = threading.active_count()
    execution = LaneExecution(tasks, schedules_of(tasks, kernels, 1)[0], kernels)
    assert threading.active_count() == before + 2
    execution.close()
    execution.close()
    assert threading.active_count() == before
    with pytest.raises(UsageError, match="3 lanes, there are 2"):
        LaneExecution(tasks, execution.schedule, StampedKernels(2))


def test_moments() -> None:
    """A traced pass tells when each item ran: none before what it waits for."""
    tasks = tasks_of("pathnet", training=True)
    kernels = StampedKernels(2)
    schedule = schedules_of(tasks, kernels, 3)[0]
    execution = LaneExecution(tasks, schedule, kernels)
    found = execution.traced(backward=False) + execution.traced(backward=True)
    execution.close()
    assert sorted(item for item, _, _ in found) == list(range(len(schedule.items)))
    ends = {item: end for item, _, end in found}
    for item, start, end in found:
        assert start <= end
        assert all(ends[each] <= start for each in schedule.items[item].waits)


def test_overheads() -> None:
    """From lane to lane takes longer than from task to task."""
    launch, wait = measure_overheads()
    assert 0 < launch < wait < 0.1
