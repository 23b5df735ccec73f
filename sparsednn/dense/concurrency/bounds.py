"""How much there is to gain: work, critical path, and how many tasks could run at one time.

With costs c(t) of tasks: work W = Σ c(t); critical path C = the most expensive chain of tasks that
wait for each other. However many lanes there are, W / C is the most that running tasks side by side
gains over running one after another; on p lanes no more than p (Brent 1974, Graham 1969).
A *level* is the tasks whose longest chain in front has the same number of tasks; none of them waits
for another of its level. (Pourghassemi et al., SPAA 2020, ask the same of networks on GPUs.)

Must not know: how tasks are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx

from sparsednn.dense.concurrency.tasks import LOSS, Task, TaskGraph

__all__ = ["Bounds", "Level", "bounds_of", "flops_and_words"]


@dataclass(frozen=True, slots=True)
class Level:
    """Tasks that could run at one time.

    Attributes
    ----------
    tasks
        Names, the most expensive first.
    work, longest
        Costs of all of them, and of the most expensive.
    """

    tasks: tuple[str, ...]
    work: float
    longest: float

    @property
    def gain(self) -> float:
        """Most that running them side by side gains: 1 where one has all of the work."""
        return self.work / self.longest if self.longest else 1.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a pass costs at least.

    Attributes
    ----------
    work, critical_path
        In the unit of the costs.
    path
        The tasks of the critical path, in order.
    levels
        From the first on.
    tasks
        How many tasks there are.
    """

    work: float
    critical_path: float
    path: tuple[str, ...]
    levels: tuple[Level, ...]
    tasks: int

    @property
    def bound(self) -> float:
        """Most that any number of lanes can gain: work / critical path."""
        return self.work / self.critical_path if self.critical_path else 1.0

    @property
    def width(self) -> int:
        """Tasks of the widest level."""
        return max((len(level.tasks) for level in self.levels), default=0)

    def as_json(self) -> dict[str, Any]:
        """Return numbers and names."""
        return {
            "work": self.work,
            "critical_path": self.critical_path,
            "bound": self.bound,
            "tasks": self.tasks,
            "levels": len(self.levels),
            "width": self.width,
            "path": list(self.path),
        }


def bounds_of(tasks: TaskGraph, costs: Mapping[str, float], *, part: str = "all") -> Bounds:
    """Return the bounds of a pass, or of one direction of it.

    Parameters
    ----------
    tasks
        The pass.
    costs
        Of each task, by name: seconds, flops, words; none is negative.
    part
        "forward", "backward" or "all". Of all, the loss has a level of its own between the two.
    """
    chosen = [task for task in tasks if _belongs(task, part)]
    waits = tasks.waits.subgraph([task.name for task in chosen])
    behind: dict[str, tuple[float, str | None]] = {}
    for task in chosen:  # in the serial order: what it waits for has been looked at
        before = max(
            ((behind[each][0], each) for each in waits.predecessors(task.name)),
            default=(0.0, None),
        )
        behind[task.name] = before[0] + costs[task.name], before[1]
    end = max(behind, key=lambda name: behind[name][0], default=None)
    longest = behind[end][0] if end is not None else 0.0
    path: list[str] = []
    while end is not None:
        path.append(end)
        end = behind[end][1]
    levels = tuple(_level(names, costs) for names in networkx.topological_generations(waits))
    work = sum(costs[task.name] for task in chosen)
    return Bounds(work, longest, tuple(reversed(path)), levels, len(chosen))


def _belongs(task: Task, part: str) -> bool:
    if part == "all":
        return True
    return task.action != LOSS and task.backward == (part == "backward")


def _level(names: list[str], costs: Mapping[str, float]) -> Level:
    ordered = sorted(names, key=lambda name: -costs[name])
    each = [costs[name] for name in ordered]
    return Level(tuple(ordered), sum(each), max(each))


def flops_and_words(tasks: TaskGraph) -> dict[str, float]:
    """Return a cost of each task that is of no device: flops, or words where there are more.

    Arithmetic and memory take turns to be what a task waits for: products have more flops than
    words, everything else some flops for each word that memory brings.
    """
    return {task.name: float(max(task.flops, task.bytes // tasks.itemsize)) for task in tasks}
