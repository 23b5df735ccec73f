"""Kernels that compute nothing, but notice every race: each task looks whether all that it reads
has been written in this pass and is still there, takes its time, and stamps what it writes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.tasks import IMAGE, LOSS, Task, TaskGraph


class RaceError(AssertionError):
    """A task has found something else than what it is to read."""


class StampedKernels:
    """`Kernels` whose elements are ``stamp of the tensor``, one for each byte of the arena."""

    device = "stamps"

    def __init__(self, lanes: int, seed: int = 0, slowest: float = 2e-4) -> None:
        self.lanes, self._slowest = lanes, slowest
        self._random = random.Random(seed)

    def algorithms(self, tasks: TaskGraph, task: Task) -> tuple[Algorithm, ...]:
        """Ways with and without parts and workspace."""
        if task.action in (IMAGE, LOSS):
            return (Algorithm("none"),)
        parts = {1, self.lanes}
        return tuple(
            Algorithm(f"room {room}", part, room) for part in sorted(parts) for room in (0, 4096)
        )

    def bind(
        self,
        tasks: TaskGraph,
        task: Task,
        algorithm: Algorithm,
        part: int,
        tensors: Mapping[str, Any],
        workspace: Any,
    ) -> Callable[[], None]:
        """Look, wait, look again, stamp."""
        expected = [
            (self._region(tasks, tensors[read], read, written), _stamp(written))
            for read in task.reads
            for written in _written(tasks)
            if tasks.root(written)[0] == tasks.root(read)[0]
        ]
        mine = [
            (_part(tensors[written], part, algorithm.parts), _stamp(written))
            for written in task.writes
        ]
        seconds = self._random.random() * self._slowest

        def look() -> None:
            for region, stamp in expected:
                if region.size and not (region == stamp).all():
                    raise RaceError(f"{task.name}: what it reads is not there")

        def call() -> None:
            look()
            workspace[...] = part + 1
            time.sleep(seconds)
            look()
            if not (workspace == part + 1).all():
                raise RaceError(f"{task.name}: somebody was in its workspace")
            for region, stamp in mine:
                region[...] = stamp

        return call

    def _region(self, tasks: TaskGraph, view: Any, read: str, written: str) -> Any:
        """What of a tensor that is read a written one covers."""
        if view.ndim != 4:
            return view
        first, start = tasks.root(written)[1], tasks.root(read)[1]
        last = first + tasks.tensors[written].shape[1]
        stop = start + tasks.tensors[read].shape[1]
        return view[..., max(first, start) - start : max(0, min(last, stop) - start)]

    def arena(self, size: int) -> Any:
        """Bytes."""
        return np.zeros(size, np.uint8)

    def view(self, tasks: TaskGraph, tensor: str, arena: Any, offset: int) -> Any:
        """Channels last; each element by its first bytes."""
        root, channel = tasks.root(tensor)
        whole, mine = tasks.tensors[root], tasks.tensors[tensor]
        kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[whole.itemsize]
        memory = arena[offset : offset + whole.bytes].view(kind)
        if len(whole.shape) == 2:
            return memory.reshape(whole.shape)
        images, channels, height, width = whole.shape
        shaped = memory.reshape(images, height, width, channels)
        return shaped[..., channel : channel + mine.shape[1]]

    def parameters_changed(self) -> None:
        """Nothing."""


def _written(tasks: TaskGraph) -> list[str]:
    return [tensor for task in tasks for tensor in task.writes if task.action not in (IMAGE, LOSS)]


def _stamp(tensor: str) -> int:
    """A number that fits into a byte; tensors beside each other in memory have different ones."""
    return 1 + sum(map(ord, tensor)) * 7919 % 254


def _part(view: Any, part: int, parts: int) -> Any:
    cuts = [len(view.T) * number // parts for number in (part, part + 1)]
    return view.T[slice(*cuts)]


def random_profile(tasks: TaskGraph, kernels: StampedKernels, seed: int) -> Profile:
    """Return times that have nothing to do with what tasks do."""
    chance = random.Random(seed)
    choices = {
        task.name: [
            Choice(way, chance.random() / way.parts, chance.random())
            for way in kernels.algorithms(tasks, task)
        ]
        for task in tasks
    }
    return Profile(kernels.device, kernels.lanes, choices, 1e-3, 2e-3)
