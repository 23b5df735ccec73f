"""The way back through what is no product: passes over arrays, by compiled loops and NumPy.

Each class is one kind of task: into how many parts it can be cut, the working space of a part, and
the call that does it. Arrays have the channels last. Must not know: schedules, lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from math import prod
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu import gradient_loops as loops
from sparsednn.dense.concurrency.cpu.gradient_products import (
    Array,
    Buffer,
    Call,
)
from sparsednn.dense.concurrency.cpu.layout import flat, matrix, pixel_step, shared
from sparsednn.dense.concurrency.tasks import SUM, Task, TaskGraph, gradient_of
from sparsednn.dense.operations import AveragePool, BatchNorm, Concatenate, MaxPool, Pool, Relu

__all__ = ["Parameters", "Pass", "pass_of"]

#: Bytes of a sum at a time: they stay in the cache while the next one is added.
_BLOCK = 256 << 10
#: Channels that a part of a normalisation has at least: a vector.
_CHANNELS = 16


class Parameters(Protocol):
    """What is looked at of `CpuKernels`; arrays stay where they are."""

    parameters: Mapping[str, NDArray[Any]]
    gradients: Mapping[str, NDArray[Any]]
    dtype: Any
    lanes: int
    has_torch: bool


class Pass(Protocol):
    """A task; `extent` is into how many parts it can be cut."""

    name: ClassVar[str]
    extent: int

    def __init__(self, tasks: TaskGraph, task: Task, /) -> None: ...

    def buffers(self, dtype: Any, part: int, parts: int, /) -> list[Buffer]:
        """Return the working space of a part."""

    def bind(
        self,
        kernels: Parameters,
        tensors: Mapping[str, Array],
        buffers: Sequence[Array],
        part: int,
        parts: int,
        /,
    ) -> Call:
        """Return the call that does a part."""


def pass_of(tasks: TaskGraph, task: Task) -> Pass:
    """Return the way to do a task that is no product's."""
    if task.action == SUM:
        return _Sum(tasks, task)
    operation = tasks.operation(task)
    for kind, way in _WAYS.items():
        if isinstance(operation, kind):
            return way(tasks, task)
    raise AssertionError(f"{task.name}: no task of the way back")


class _Plain:
    """A task without working space, cut by pixels."""

    def __init__(self, tasks: TaskGraph, task: Task) -> None:
        self._task, self._tasks = task, tasks
        images, _, height, width = tasks.tensors[task.reads[0]].shape
        self.extent = images * height * width

    def buffers(self, dtype: Any, part: int, parts: int) -> list[Buffer]:
        """See `Pass`."""
        return []


class _Sum(_Plain):
    """Additions, one array after the other, for a block of pixels at a time."""

    name: ClassVar[str] = "add"

    def bind(
        self,
        kernels: Parameters,
        tensors: Mapping[str, Array],
        buffers: Sequence[Array],
        part: int,
        parts: int,
    ) -> Call:
        """See `Pass`."""
        here = slice(*shared(self.extent, parts, part))
        out = matrix(tensors[self._task.writes[0]])[here]
        first, second, *others = (matrix(tensors[each])[here] for each in self._task.reads)
        rows = max(1, _BLOCK // (out.shape[1] * out.itemsize))
        additions = []
        for start in range(0, len(out), rows):
            block = slice(start, start + rows)
            additions.append((first[block], second[block], out[block]))
            additions += [(out[block], other[block], out[block]) for other in others]

        def call() -> None:
            for one, other, total in additions:
                np.add(one, other, out=total)

        return call


class _Concatenate(_Plain):
    """Copies of some channels."""

    name: ClassVar[str] = "copy"

    def bind(
        self,
        kernels: Parameters,
        tensors: Mapping[str, Array],
        buffers: Sequence[Array],
        part: int,
        parts: int,
    ) -> Call:
        """See `Pass`."""
        here = slice(*shared(self.extent, parts, part))
        dy = matrix(tensors[self._task.reads[0]])[here]
        copies = [
            (matrix(tensors[name])[here], dy[:, first:last])
            for name, first, last in self._written()
        ]

        def call() -> None:
            for target, source in copies:
                np.copyto(target, source)

        return call

    def _written(self) -> list[tuple[str, int, int]]:
        """Names and channels of the inputs whose gradient is wanted; a task names these only."""
        found, channel, wanted = [], 0, list(self._task.writes)
        name = self._task.operations[0]
        for index, source in enumerate(self._tasks.graph.predecessors(name)):
            size = self._tasks.graph.shape(source)[0]
            shared = f"{gradient_of(source)}:{name}" + (f"#{index}" if index else "")
            if wanted and wanted[0] in (gradient_of(source), shared):
                found.append((wanted.pop(0), channel, channel + size))
            channel += size
        return found


class _Relu(_Plain):
    """The gradient where the output is not 0."""

    name: ClassVar[str] = "loop"

    def bind(
        self,
        kernels: Parameters,
        tensors: Mapping[str, Array],
        buffers: Sequence[Array],
        part: int,
        parts: int,
    ) -> Call:
        """See `Pass`."""
        first, last = shared(self.extent, parts, part)
        arrays = [tensors[each] for each in (*self._task.reads, *self._task.writes)]
        channels, rows = arrays[0].shape[3], last - first
        steps = [pixel_step(each) for each in arrays]
        dy, y, dx = (
            (flat(each)[first * step :], step) for each, step in zip(arrays, steps, strict=True)
        )
        if all(step == channels for step in steps):  # one long row
            channels, rows = channels * rows, 1
        arguments: tuple[Any, ...] = (*dy, *y, *dx, channels, 0, rows)
        return partial(loops.relu_gradient, *arguments)


class _BatchNorm:
    """Both sums over a channel, then its gradient; see `gradient_loops.normalize_gradient`."""

    name: ClassVar[str] = "loop"

    def __init__(self, tasks: TaskGraph, task: Task) -> None:
        self._task = task
        self._channels = tasks.tensors[task.reads[0]].shape[1]
        self.extent = max(1, self._channels // _CHANNELS)

    def buffers(self, dtype: Any, part: int, parts: int) -> list[Buffer]:
        """See `Pass`."""
        first, last = shared(self._channels, parts, part)
        return [((2 * (last - first),), np.float64), ((4 * (last - first),), dtype)]

    def bind(
        self,
        kernels: Parameters,
        tensors: Mapping[str, Array],
        buffers: Sequence[Array],
        part: int,
        parts: int,
    ) -> Call:
        """See `Pass`."""
        here = slice(*shared(self._channels, parts, part))
        name = self._task.operations[0]
        dy, x, statistics = (tensors[each] for each in self._task.reads)
        if self._task.writes:
            dx = tensors[self._task.writes[0]]
            out, step = flat(dx[..., here]), pixel_step(dx)
        else:
            out, step = np.empty(0, dy.dtype), 0
        arguments: tuple[Any, ...] = (
            flat(dy[..., here]), pixel_step(dy), flat(x[..., here]), pixel_step(x), out, step,
            prod(x.shape[:3]), statistics[0, here], statistics[1, here],
            kernels.parameters[f"{name}.weight"][here], kernels.gradients[f"{name}.weight"][here],
            kernels.gradients[f"{name}.bias"][here], *buffers,
        )  # fmt: skip
        return partial(loops.normalize_gradient, *arguments)


class _Pool:
    """Each element takes from the windows that it is in; parts are rows of all images."""

    name: ClassVar[str] = "loop"

    def __init__(self, tasks: TaskGraph, task: Task) -> None:
        self._task, operation = task, tasks.operation(task)
        assert isinstance(operation, Pool)
        self._operation = operation
        self._image = tasks.graph.input_shapes(operation.name)[0]
        self.extent = tasks.images * self._image[1]

    def buffers(self, dtype: Any, part: int, parts: int) -> list[Buffer]:
        """See `Pass`."""
        return []

    def bind(
        self,
        kernels: Parameters,
        tensors: Mapping[str, Array],
        buffers: Sequence[Array],
        part: int,
        parts: int,
    ) -> Call:
        """See `Pass`."""
        dy, dx = tensors[self._task.reads[0]], tensors[self._task.writes[0]]
        pool, rows = self._operation, shared(self.extent, parts, part)
        where: tuple[Any, ...] = (
            flat(dx), pixel_step(dx), self._image[1:], self._image[0],
            pool.taps, pool.stride, pool.pads(self._image)[:2], *rows,
        )  # fmt: skip
        source: tuple[Any, ...] = flat(dy), pixel_step(dy)
        if isinstance(pool, AveragePool):
            count = np.ascontiguousarray(pool.divisors(self._image).astype(dy.dtype))
            averaged: tuple[Any, ...] = (*source, count, *where)
            return partial(loops.average_pool_gradient, *averaged)
        tap = tensors[self._task.reads[1]]
        windows = (dy.shape[1], dy.shape[2])
        most: tuple[Any, ...] = flat(tap), pixel_step(tap), windows
        return partial(loops.max_pool_gradient, *source, *most, *where)


_WAYS: dict[type, type[Pass]] = {
    Relu: _Relu,
    BatchNorm: _BatchNorm,
    MaxPool: _Pool,
    AveragePool: _Pool,
    Concatenate: _Concatenate,
}
