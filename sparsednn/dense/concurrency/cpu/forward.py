"""Forward tasks that are no products: normalisation, pooling, ReLU, sums, concatenation.

All have one algorithm, "loops"; it is cut along pixels or rows, batch normalisation in training
along channels: each part then sees all values of its own. Must not know: threads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu import forward_loops
from sparsednn.dense.concurrency.cpu.layout import flat, matrix, part_counts, pixel_step, shared
from sparsednn.dense.concurrency.cpu.products import Call, finishing, in_order
from sparsednn.dense.concurrency.cpu.tails import stages_of
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.operations import AveragePool, BatchNorm, Concatenate, MaxPool, Pool
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
    from sparsednn.dense.concurrency.tasks import Task, TaskGraph

__all__ = ["bind_loops", "loop_algorithms"]

Array = NDArray[Any]
Tensors = Mapping[str, Array]

#: Channels of a cache line of float32: what parts along channels are multiples of.
_LINE: Final = 16


def loop_algorithms(tasks: TaskGraph, task: Task, lanes: int) -> list[Algorithm]:
    """Return the ways to cut, as `Kernels.algorithms`."""
    operation = tasks.operation(task)
    images, channels, height, width = tasks.tensors[task.writes[0]].shape
    extent = images * height * width
    if isinstance(operation, BatchNorm) and tasks.training:
        extent = -(-channels // _LINE)
    elif isinstance(operation, Pool):
        extent = images * height
    return [Algorithm("loops", parts) for parts in part_counts(lanes, extent)]


def bind_loops(
    kernels: CpuKernels, tasks: TaskGraph, task: Task, parts: int, part: int, tensors: Tensors
) -> Call:
    """See `Kernels.bind`."""
    operation = tasks.operation(task)
    if isinstance(operation, Pool):
        return _bind_pool(kernels, tasks, task, operation, parts, part, tensors)
    if isinstance(operation, BatchNorm) and tasks.training:
        return _bind_batch_norm(kernels, tasks, task, operation, parts, part, tensors)
    y = tensors[task.writes[0]]
    pixels = shared(prod(y.shape[:3]), parts, part)
    if pixels[0] == pixels[1]:
        return _nothing
    if isinstance(operation, Concatenate):
        return _bind_concatenate(tasks, task, operation, pixels, tensors)
    sources = [tensors[name] for name in task.reads]
    if len(sources) > 1:
        return _bind_sum(kernels, tasks, task, sources, y, pixels)
    (x,) = sources
    stages = stages_of(tasks.graph, task.operations, None)
    stage, floor = stages[0], stages[0].floor(y.dtype)
    step, x_step = pixel_step(y), pixel_step(x)
    from_x, to_y = flat(x)[pixels[0] * x_step :], flat(y)[pixels[0] * step :]
    count, channels = pixels[1] - pixels[0], y.shape[3]
    calls: list[Call] = []
    if stage.affine:
        values = kernels.values(stage, channels, (0, channels))
        calls.append(
            partial(
                forward_loops.finish_from, from_x, x_step, to_y, step, count, channels, values,
                floor,
            )
        )  # fmt: skip
    else:
        count, channels, steps = _joined(count, channels, (x_step, step))
        calls.append(
            partial(forward_loops.rectify, from_x, steps[0], to_y, steps[1], count, channels, floor)
        )
    return in_order(calls + finishing(kernels, tuple(stages[1:]), y, pixels, (0, y.shape[3])))


def _joined(pixels: int, channels: int, steps: tuple[int, ...]) -> tuple[int, int, tuple[int, ...]]:
    """Return all pixels as one where nothing lies between them: for loops that are alike for all
    channels."""
    if all(step == channels for step in steps):
        return 1, pixels * channels, (pixels * channels,) * len(steps)
    return pixels, channels, steps


def _bind_sum(
    kernels: CpuKernels,
    tasks: TaskGraph,
    task: Task,
    sources: list[Array],
    y: Array,
    pixels: tuple[int, int],
) -> Call:
    stages = stages_of(tasks.graph, task.operations[1:], None)
    low = y.dtype.type(-np.inf)
    # A normalisation comes before its stage's floor: then that is a pass of its own.
    last, later = (low, stages) if stages[0].affine else (stages[0].floor(y.dtype), stages[1:])
    steps = tuple(pixel_step(each) for each in (*sources, y))
    memory = [
        flat(each)[pixels[0] * step :] for each, step in zip((*sources, y), steps, strict=True)
    ]
    count, channels, steps = _joined(pixels[1] - pixels[0], y.shape[3], steps)
    floors = [low] * (len(sources) - 2) + [last]
    calls: list[Call] = [
        partial(
            forward_loops.add, memory[0], steps[0], memory[1], steps[1], memory[-1], steps[-1],
            count, channels, floors[0],
        )
    ]  # fmt: skip
    calls += [
        partial(
            forward_loops.add_to, memory[n], steps[n], memory[-1], steps[-1], count, channels,
            floors[n - 1],
        )
        for n in range(2, len(sources))
    ]  # fmt: skip
    return in_order(calls + finishing(kernels, tuple(later), y, pixels, (0, y.shape[3])))


def _bind_concatenate(
    tasks: TaskGraph, task: Task, operation: Concatenate, pixels: tuple[int, int], tensors: Tensors
) -> Call:
    """Copy what is not in its place already."""
    calls: list[Call] = []
    target = matrix(tensors[task.writes[0]])[slice(*pixels)]
    channel = 0
    for source in tasks.graph.predecessors(operation.name):
        channels = tasks.graph.shape(source)[0]
        if source in task.reads:
            here = target[:, channel : channel + channels]
            calls.append(partial(np.copyto, here, matrix(tensors[source])[slice(*pixels)]))
        channel += channels
    return in_order(calls)


def _bind_batch_norm(
    kernels: CpuKernels,
    tasks: TaskGraph,
    task: Task,
    operation: BatchNorm,
    parts: int,
    part: int,
    tensors: Tensors,
) -> Call:
    x, y, statistics = tensors[task.reads[0]], tensors[task.writes[0]], tensors[task.writes[1]]
    first, last = shared(y.shape[3], parts, part, _LINE)
    if first == last:
        return _nothing
    stages = stages_of(tasks.graph, task.operations, None)
    here = slice(first, last)
    gamma, beta, running_mean, running_variance = (
        kernels.parameters[f"{operation.name}.{name}"][here]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    calls: list[Call] = [
        partial(
            forward_loops.normalize_batch, flat(x, first), pixel_step(x), flat(y, first),
            pixel_step(y), prod(y.shape[:3]), gamma, beta, running_mean, running_variance,
            statistics[0, here], statistics[1, here], operation.epsilon, operation.momentum,
            stages[0].floor(y.dtype),
        )
    ]  # fmt: skip
    later = finishing(kernels, tuple(stages[1:]), y, (0, prod(y.shape[:3])), (first, last))
    return in_order(calls + later)


def _bind_pool(
    kernels: CpuKernels,
    tasks: TaskGraph,
    task: Task,
    operation: Pool,
    parts: int,
    part: int,
    tensors: Tensors,
) -> Call:
    x, y = tensors[task.reads[0]], tensors[task.writes[0]]
    first, last = shared(y.shape[0] * y.shape[1], parts, part)
    if first == last:
        return _nothing
    channels, image, size = y.shape[3], x.shape[1:3], y.shape[1:3]
    window = operation.taps, operation.stride, operation.padding
    source, target = (flat(x), pixel_step(x)), (flat(y), pixel_step(y))
    if isinstance(operation, AveragePool):
        shape: Any = tasks.graph.input_shapes(operation.name)[0]
        count = np.ascontiguousarray(operation.divisors(shape).astype(y.dtype))
        return partial(
            forward_loops.average_pool, *source, *target, count, channels, image, size, *window,
            first, last,
        )  # fmt: skip
    assert isinstance(operation, MaxPool)
    if len(task.writes) == 1:
        return partial(
            forward_loops.max_pool, *source, *target, channels, image, size, *window, first, last
        )
    where = tensors[task.writes[1]]
    none = int(np.iinfo(where.dtype).max)
    if prod(operation.taps) > none:
        raise UsageError(f"{operation}: a window of more than {none} elements cannot be trained")
    return partial(
        forward_loops.max_pool_where, *source, *target, flat(where), none, channels, image, size,
        *window, first, last,
    )  # fmt: skip


def _nothing() -> None:
    """Do nothing: of a task that has fewer rows than parts."""
