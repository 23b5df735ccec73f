"""List scheduling by critical path: of all that may run, what most hangs on comes first.

The rank of a task is the time of the longest way from its start to the end of the pass (upward
rank: Topcuoglu, Hariri and Wu, IEEE TPDS 13(3), 2002), each task at its least seconds. A lane that
is free takes the part of highest rank; how the task is done is decided when its first part starts,
by what ends earliest given what runs then.

Without limits, choices and overheads this is Graham's: no longer than (2 - 1/lanes) times the best.

Must not know: memory beyond the workspace limit.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.assemble import assemble
from sparsednn.dense.concurrency.scheduling.problem import Problem
from sparsednn.dense.concurrency.scheduling.simulate import Run, dispatch
from sparsednn.dense.concurrency.tasks import TaskGraph

__all__ = ["WEIGHTS", "list_run", "list_schedule", "ranks"]

#: How much a choice's whole work counts beside its end: none is greedy, and cuts everything; much
#: of it leaves lanes to others.
WEIGHTS = (0.0, 0.3, 1.0, 3.0)


def list_schedule(
    tasks: TaskGraph, profile: Profile, workspace_limit: int | None = None
) -> Schedule:
    """Return the best list schedule over a few weights of work against an early end.

    Parameters
    ----------
    workspace_limit
        Bytes at one time; None: any number.

    Raises
    ------
    InputError
        If the profile lacks a task.
    UsageError
        If the limit is too small for a task.
    """
    problem = Problem(tasks, profile, workspace_limit)
    run = min((list_run(problem, weight) for weight in WEIGHTS), key=lambda run: run.seconds)
    return assemble(problem, run.chosen, run.queues(profile.lanes), "list")


def list_run(problem: Problem, weight: float) -> Run:
    """Return the list schedule of one weight."""
    return dispatch(problem, np.full(len(problem.names), -1), ranks(problem), weight)


def ranks(problem: Problem) -> NDArray[np.float64]:
    """Return a rank for each task, no two alike: those earlier in the serial order win ties."""
    arrays, tasks = problem.arrays, len(problem.names)
    rank = np.zeros(tasks)
    for task in range(tasks - 1, -1, -1):
        own = min(_least(problem, choice) for choice in problem.choices_of(task))
        behind = arrays.after[arrays.after_ptr[task] : arrays.after_ptr[task + 1]]
        rank[task] = own + max((rank[other] for other in behind), default=0.0)
    # A task with all seconds 0 has the rank of what is behind it, and must come first too.
    places = np.lexsort((np.arange(tasks), -rank))
    rank[places] = np.arange(tasks, 0, -1.0)
    return rank


def _least(problem: Problem, choice: int) -> float:
    """Seconds of a task on lanes with nothing else."""
    arrays = problem.arrays
    return float(-(-arrays.parts[choice] // arrays.lanes) * arrays.seconds[choice])
