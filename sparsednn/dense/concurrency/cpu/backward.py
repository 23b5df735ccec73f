"""All ways to do the tasks of the way back on the CPU, and the calls that do them.

Arrays have the channels last; any may be some channels of a wider one. A task is cut so that parts
write different elements and no sum is divided: results have the same bits wherever parts run.

==============  ====================================================================================
gradients of    products, columns (`gradient_products`), oneDNN where PyTorch is installed
products        (`gradient_onednn`); the bias's gradient is with the kernel's, parts by filters
ReLU, pooling   compiled loops (`gradient_passes`); parts by pixels, by rows of all images
normalisation   one compiled loop, two passes over its channels; parts by channels
concatenation   copies; parts by pixels
sums            additions block after block, in the order of the task; parts by pixels
==============  ====================================================================================

Must not know: schedules, lanes, where arrays lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu.gradient_passes import Parameters, pass_of
from sparsednn.dense.concurrency.cpu.gradient_products import (
    Array,
    Buffer,
    Call,
    Cut,
    GradientPart,
    InputColumns,
    InputMirrored,
    InputProduct,
    KernelColumns,
    KernelProduct,
    bias_gradient,
)
from sparsednn.dense.concurrency.cpu.layout import part_counts, shared, vector
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.tasks import INPUT_GRADIENT, KERNEL_GRADIENT, Task, TaskGraph
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.operations import Convolution, FullyConnected

__all__ = ["backward_algorithms", "bind_backward"]

_WAYS: dict[str, tuple[type[GradientPart], ...]] = {
    KERNEL_GRADIENT: (KernelProduct, KernelColumns),
    INPUT_GRADIENT: (InputProduct, InputMirrored, InputColumns),
}
#: Each buffer in a workspace is a multiple of so many bytes.
_ALIGNED = 64


def backward_algorithms(kernels: Parameters, tasks: TaskGraph, task: Task) -> tuple[Algorithm, ...]:
    """Return all ways to do a task of the way back; the first is the default."""
    if task.action not in _WAYS:
        work, dtype = pass_of(tasks, task), np.dtype(kernels.dtype)
        return tuple(
            Algorithm(
                work.name, parts, max(_size(work.buffers(dtype, p, parts)) for p in range(parts))
            )
            for parts in part_counts(kernels.lanes, work.extent)
        )
    shape = _geometry(tasks, task)
    return tuple(
        Algorithm(
            way.name,
            parts,
            max(_size(_buffers(kernels, tasks, task, way, p, parts)) for p in range(parts)),
        )
        for way in _ways(kernels, task, shape)
        for parts in part_counts(kernels.lanes, way.extent(shape))
    )


def bind_backward(
    kernels: Parameters,
    tasks: TaskGraph,
    task: Task,
    algorithm: Algorithm,
    part: int,
    tensors: Mapping[str, Array],
    workspace: NDArray[np.uint8],
) -> Call:
    """Return a call that does one part of a task; see `Kernels.bind`."""
    parts = algorithm.parts
    if task.action not in _WAYS:
        work = pass_of(tasks, task)
        buffers = _taken(workspace, work.buffers(np.dtype(kernels.dtype), part, parts))
        return work.bind(kernels, tensors, buffers, part, parts)
    shape, name = _geometry(tasks, task), task.operations[0]
    (way,) = (each for each in _ways(kernels, task, shape) if each.name == algorithm.name)
    buffers = _taken(workspace, _buffers(kernels, tasks, task, way, part, parts))
    dy, bound = tensors[task.reads[0]], way(_cut(kernels, tasks, task, part, parts))
    if task.action == INPUT_GRADIENT:
        kernel, dx = kernels.parameters[f"{name}.weight"], tensors[task.writes[0]]
        return bound.bind(dy, kernel, dx, buffers)
    d_kernel = kernels.gradients[f"{name}.weight"]
    if not _has_bias(tasks, task):
        return bound.bind(dy, tensors[task.reads[1]], d_kernel, buffers)
    product = bound.bind(dy, tensors[task.reads[1]], d_kernel, buffers[:-1])
    d_bias, filters = kernels.gradients[f"{name}.bias"], shared(shape.filters, parts, part)
    bias = bias_gradient(dy, d_bias, filters, buffers[-1])

    def call() -> None:
        product()
        bias()

    return call


def _ways(kernels: Parameters, task: Task, shape: ConvolutionShape) -> list[type[GradientPart]]:
    """All ways to make a gradient of a product."""
    found = [way for way in _WAYS[task.action] if way.extent(shape)]
    if found[0] in (KernelProduct, InputProduct):  # columns would be copies of what is there
        found = found[:1]
    if kernels.has_torch and np.dtype(kernels.dtype) == np.float32:
        from sparsednn.dense.concurrency.cpu import gradient_onednn as onednn

        ways = onednn.INPUT_WAYS if task.action == INPUT_GRADIENT else onednn.KERNEL_WAYS
        found += [way for way in ways if way.extent(shape)]
    return found


def _cut(kernels: Parameters, tasks: TaskGraph, task: Task, part: int, parts: int) -> Cut:
    sliced = any(tasks.tensors[each].base is not None for each in task.reads)
    return Cut(_geometry(tasks, task), np.dtype(kernels.dtype), parts, part, sliced)


def _buffers(
    kernels: Parameters,
    tasks: TaskGraph,
    task: Task,
    way: type[GradientPart],
    part: int,
    parts: int,
) -> list[Buffer]:
    """Working space of a gradient; the last is for the bias's sums."""
    buffers = list(way(_cut(kernels, tasks, task, part, parts)).buffers)
    if task.action == KERNEL_GRADIENT and _has_bias(tasks, task):
        first, last = shared(_geometry(tasks, task).filters, parts, part)
        buffers.append(((last - first,), np.float64))
    return buffers


def _geometry(tasks: TaskGraph, task: Task) -> ConvolutionShape:
    operation = tasks.operation(task)
    assert isinstance(operation, (Convolution, FullyConnected))  # only these have such tasks
    return operation.geometry(tasks.images, tasks.graph.input_shapes(operation.name)[0])


def _has_bias(tasks: TaskGraph, task: Task) -> bool:
    return bool(getattr(tasks.operation(task), "bias", False))


def _size(buffers: Sequence[Buffer]) -> int:
    return sum(_bytes(each) for each in buffers)


def _bytes(buffer: Buffer) -> int:
    shape, dtype = buffer
    return -(-prod(shape) * np.dtype(dtype).itemsize // _ALIGNED) * _ALIGNED


def _taken(workspace: NDArray[np.uint8], buffers: Sequence[Buffer]) -> list[Array]:
    """The buffers, one after the other in a workspace."""
    found, at = [], 0
    for shape, dtype in buffers:
        found.append(vector(workspace, shape, dtype, at))
        at += _bytes((shape, dtype))
    return found
