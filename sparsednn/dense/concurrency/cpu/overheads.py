"""What it costs that there are lanes: from task to task on one, and from one to the other.

Measured with the very execution, on tasks that do nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu.lanes import LaneExecution
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.schedule import Placed, Schedule
from sparsednn.dense.concurrency.tasks import Task, TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import Input, Relu

__all__ = ["measure_overheads"]

_LENGTH = 200
_TIMES = 9


class _Nothing:
    """Kernels that do nothing, on two lanes."""

    device = "nothing"

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def algorithms(self, tasks: TaskGraph, task: Task) -> tuple[Algorithm, ...]:
        """One way."""
        return (Algorithm("nothing"),)

    def bind(
        self,
        tasks: TaskGraph,
        task: Task,
        algorithm: Algorithm,
        part: int,
        tensors: Mapping[str, Any],
        workspace: Any,
    ) -> Callable[[], None]:
        """Nothing."""
        return lambda: None

    def arena(self, size: int) -> NDArray[np.uint8]:
        """Memory."""
        return np.zeros(size, np.uint8)

    def view(self, tasks: TaskGraph, tensor: str, arena: Any, offset: int) -> Any:
        """No tensor."""
        return arena[:0]

    def parameters_changed(self) -> None:
        """Nothing."""


def measure_overheads() -> tuple[float, float]:
    """Return seconds from task to task on a lane, and from the end of one to the next on another.

    Of a chain that stays on one lane, and one that goes to and fro between two.
    """
    graph = OperationGraph("chain")
    name = graph.add(Input("image", (1, 1, 1)))
    for number in range(_LENGTH):
        name = graph.add(Relu(f"relu{number}"), name)
    tasks = TaskGraph(graph.finish(), 1, fuse=False)
    return _per_task(tasks, 1), _per_task(tasks, 2)


def _per_task(tasks: TaskGraph, lanes: int) -> float:
    items = tuple(
        Placed(
            task.name, 0, Algorithm("nothing"), number % lanes, float(number), float(number),
            waits=(number - 1,) if number and lanes > 1 else (),
        )
        for number, task in enumerate(tasks)
    )  # fmt: skip
    offsets = {tensor.name: 0 for tensor in tasks.roots}
    schedule = Schedule(
        items, lanes, offsets, 64, 0, "nothing", tasks.graph.identity, 1, False, 4, "chain"
    )
    execution = LaneExecution(tasks, schedule, _Nothing(lanes))
    try:
        times = []
        for _ in range(_TIMES):
            start = time.perf_counter()
            execution.forward()
            times.append((time.perf_counter() - start) / len(items))
        return min(times)  # whatever else the machine does makes it slower
    finally:
        execution.close()
