"""`plan`: all schedules worth measuring, by their predicted time.

Must not know: how they are run.
"""

from __future__ import annotations

from typing import Final, Literal

from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.assemble import assemble
from sparsednn.dense.concurrency.scheduling.listing import WEIGHTS, list_run
from sparsednn.dense.concurrency.scheduling.problem import Problem
from sparsednn.dense.concurrency.scheduling.search import Budget, improved
from sparsednn.dense.concurrency.scheduling.serial import serial
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import UsageError

__all__ = ["EFFORTS", "Effort", "plan"]

Effort = Literal["quick", "normal", "thorough"]

EFFORTS: Final[dict[Effort, Budget]] = {
    "quick": Budget(500, 1.0),
    "normal": Budget(10_000, 10.0),
    "thorough": Budget(100_000, 90.0),
}
"""What the search may take."""


def plan(
    tasks: TaskGraph,
    profile: Profile,
    *,
    workspace_limit: int | None = None,
    seed: int = 0,
    effort: Effort = "normal",
) -> list[Schedule]:
    """Return the serial, list and search schedules, the one predicted quickest first.

    Their names: "serial", "serial-one", "serial-all" (of tasks in as many parts as is best, in one,
    in as many as lanes), "list", "search"; of equal ones, the simpler is in front.

    Parameters
    ----------
    workspace_limit
        Bytes at one time; None: any number.
    seed
        Of the search; the same gives the same schedules, unless its time ran out.
    effort
        How long to search.

    Raises
    ------
    InputError
        If the profile lacks a task.
    UsageError
        If the limit is too small for a task, or there is no such effort.
    """
    if effort not in EFFORTS:
        raise UsageError(f"effort is one of {', '.join(EFFORTS)}, found {effort!r}")
    problem = Problem(tasks, profile, workspace_limit)
    found = [serial(problem, "one"), serial(problem, "all"), serial(problem, "best")]
    lists = []
    for weight in WEIGHTS:
        run = list_run(problem, weight)
        lists.append(assemble(problem, run.chosen, run.queues(profile.lanes), "list"))
    found.append(min(lists, key=lambda schedule: schedule.seconds))
    found.append(improved(problem, found, seed, EFFORTS[effort]))
    return sorted(found, key=lambda schedule: schedule.seconds)
