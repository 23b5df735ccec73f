"""A pass as it ran: Chrome's trace format for Perfetto, and a picture with a row for each lane.

Must not know: how a pass is run.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.pictures import check_picture, picture

__all__ = ["Run", "plot_gantt", "predicted", "trace_of"]


@dataclass(frozen=True, slots=True)
class Run:
    """Part of a task, as it ran or as it is predicted: seconds since the beginning of the pass."""

    item: int
    start: float
    end: float


def predicted(schedule: Schedule) -> list[Run]:
    """Return a schedule's own times."""
    return [Run(number, item.start, item.end) for number, item in enumerate(schedule.items)]


def trace_of(
    tasks: TaskGraph, schedule: Schedule, rows: Sequence[tuple[str, Sequence[Run]]]
) -> dict[str, Any]:
    """Return a Chrome trace: a process for each of the rows, such as "measured", "predicted".

    Each lane is a thread. Arguments of an event: action, algorithm, part, what it waited for.
    """
    events: list[dict[str, Any]] = []
    for process, (title, runs) in enumerate(rows):
        events.append({"ph": "M", "pid": process, "name": "process_name", "args": {"name": title}})
        for lane in range(schedule.lanes):
            events.append(
                {"ph": "M", "pid": process, "tid": lane, "name": "thread_name",
                 "args": {"name": f"lane {lane}"}}
            )  # fmt: skip
        for run in runs:
            item = schedule.items[run.item]
            task = tasks.tasks[item.task]
            events.append(
                {
                    "ph": "X",
                    "pid": process,
                    "tid": item.lane,
                    "name": item.task,
                    "cat": task.action,
                    "ts": round(run.start * 1e6, 3),
                    "dur": round((run.end - run.start) * 1e6, 3),
                    "args": {
                        "algorithm": item.algorithm.name,
                        "part": f"{item.part + 1} of {item.algorithm.parts}",
                        "operations": list(task.operations),
                        "flops": task.flops // item.algorithm.parts,
                        "waits_for": [schedule.items[each].task for each in item.waits],
                    },
                }
            )
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def plot_gantt(
    tasks: TaskGraph,
    rows: Sequence[tuple[str, Schedule, Sequence[Run]]],
    path: str | os.PathLike[str],
    *,
    title: str,
) -> None:
    """Draw passes below each other on one scale of time, a bar for each part of a task.

    Colours are kinds of operations.

    Raises
    ------
    UsageError, MissingDependencyError
        As `pictures.check_picture`.
    FormatError
        If the file cannot be written.
    """
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.patches import Patch

    kinds = sorted({_kind(tasks, item.task) for _, one, _ in rows for item in one.items})
    colours = {kind: f"C{number % 10}" for number, kind in enumerate(kinds)}
    longest = max((run.end for _, _, runs in rows for run in runs), default=0.0) * 1e3
    height = 1.1 + sum(0.35 + 0.3 * one.lanes for _, one, _ in rows)
    with rc_context({"svg.fonttype": "none"}), picture(path, (10.0, height)) as figure:
        places = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (name, schedule, runs) in zip(places, rows, strict=True):
            for run in runs:
                item = schedule.items[run.item]
                axes.barh(
                    item.lane, (run.end - run.start) * 1e3, left=run.start * 1e3, height=0.8,
                    color=colours[_kind(tasks, item.task)], edgecolor="white", linewidth=0.2,
                )  # fmt: skip
            axes.set_yticks(range(schedule.lanes), [f"lane {n}" for n in range(schedule.lanes)])
            axes.set_ylim(schedule.lanes - 0.4, -0.6)
            axes.set_xlim(0, longest or 1.0)
            axes.set_title(name, fontsize=9, loc="left")
        places[-1].set_xlabel("ms")
        handles = [Patch(color=colour, label=kind) for kind, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7,
                      frameon=False)  # fmt: skip
        figure.suptitle(title, fontsize=11)


def _kind(tasks: TaskGraph, name: str) -> str:
    task = tasks.tasks[name]
    if task.backward or not task.operations:
        return task.action
    return tasks.operation(task).kind.replace("_", " ")
