"""A pass through a network with the kernels of a device, one task after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.tasks import IMAGE, TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import initial_block

Choose = Callable[[Any, tuple[Algorithm, ...]], Algorithm]


def first(task: Any, algorithms: tuple[Algorithm, ...]) -> Algorithm:
    return algorithms[0]


def initial_parameters(graph: OperationGraph, dtype: Any, seed: int = 0) -> dict[str, Any]:
    """Initial kernels; biases and normalisations that are not the identity."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, parameter in graph.parameters.items():
        whole = [np.arange(size) for size in parameter.shape]
        if parameter.initial == "normal":
            values = initial_block(graph, name, whole, seed=seed, dtype=dtype)
        else:
            values = rng.uniform(0.5, 1.5, parameter.shape)
            if not name.endswith(("var", "weight")):
                values -= 1.0
        found[name] = np.ascontiguousarray(values, dtype).reshape(parameter.shape)
    return found


class SerialRun:
    """All tasks bound, each root tensor in memory of its own."""

    def __init__(
        self,
        kernels: Any,
        tasks: TaskGraph,
        choose: Choose = first,
        actions: tuple[str, ...] | None = None,
    ) -> None:
        self.kernels, self.tasks = kernels, tasks
        arenas = {root.name: kernels.arena(root.bytes) for root in tasks.roots}
        for arena in arenas.values():
            arena[:] = 0xFF  # NaN: nothing may be read that has not been written
        self.tensors: Mapping[str, Any] = {
            name: kernels.view(tasks, name, arenas[tasks.root(name)[0]], 0)
            for name in tasks.tensors
        }
        self.calls: list[tuple[Any, Algorithm, Callable[[], None]]] = []
        self._workspaces = []
        for task in tasks:
            if actions is not None and task.action not in actions:
                continue
            algorithm = choose(task, kernels.algorithms(tasks, task))
            for part in range(algorithm.parts):
                workspace = kernels.arena(algorithm.workspace)
                workspace[:] = 0xFF
                names = {*task.reads, *task.writes}
                tensors = {name: self.tensors[name] for name in names}
                call = kernels.bind(tasks, task, algorithm, part, tensors, workspace)
                self.calls.append((task, algorithm, call))
        self.image = next(task.writes[0] for task in tasks if task.action == IMAGE)

    def __call__(self, x: Any) -> Any:
        """Logits ``(images, classes)`` of images ``(images, channels, height, width)``."""
        self.forward(x)
        return self.tensors[self.tasks.output].reshape(len(x), -1).copy()

    def forward(self, x: Any) -> None:
        """Make all calls."""
        self.tensors[self.image][...] = x.transpose(0, 2, 3, 1)
        for _, _, call in self.calls:
            call()
