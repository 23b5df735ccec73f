"""`ConcurrentBatch`: a batch of a model on one rank, with independent operations side by side.

It takes the place of `model.PlacedBatch`: same images, same parameters, same gradients. Tests
between epochs, and batches of other sizes, stay serial: a plan is for one number of images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
from sparsednn.dense.concurrency.cpu.lanes import LaneExecution
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.tasks import TaskGraph, gradient_of
from sparsednn.dense.layers.base import Array
from sparsednn.dense.model import DenseModel, PlacedBatch
from sparsednn.errors import UsageError

__all__ = ["ConcurrentBatch", "make_kernels", "run_concurrently"]


def make_kernels(model: DenseModel, lanes: int, *, training: bool) -> CpuKernels:
    """Return kernels on a model's parameters and gradients.

    Raises
    ------
    UsageError
        If the model is on several ranks, or on a device.
    """
    if model.world.size > 1:
        raise UsageError(
            f"independent operations side by side are for one rank, there are {model.world.size}: "
            "leave out --concurrent, or --ranks"
        )
    if model.setting.local.on_device:
        raise UsageError("--concurrent runs on the CPU: leave out --backend cupy")
    store = model.parameters
    parameters = dict(store.tiles()) | dict(store.tiles(trained=False))
    gradients = dict(store.views(store.gradient))
    return CpuKernels(
        lanes,
        parameters,
        gradients=gradients if training else None,
        dtype=model.setting.dtype,
        training=training,
    )


def run_concurrently(
    model: DenseModel,
    schedule_for: Callable[[TaskGraph, CpuKernels], Schedule],
    *,
    images: int,
    lanes: int,
    training: bool,
) -> Schedule:
    """Let a model do batches of so many images concurrently, from now on; returns the plan.

    Parameters
    ----------
    model
        On one rank. Where it only looks at pictures, its numbers must be what they will be: kernels
        are packed here; in training they may change.
    schedule_for
        Gives the plan.
    images, lanes, training
        What the plan is for.

    Raises
    ------
    UsageError
        As `make_kernels`, and as `schedule_for` does.
    """
    kernels = make_kernels(model, lanes, training=training)
    itemsize = model.setting.dtype.itemsize
    tasks = TaskGraph(model.graph, images, training=training, itemsize=itemsize)
    kernels.parameters_changed()
    # Whoever looks for the quickest plan makes passes, and these move the running statistics.
    buffers = model.parameters.buffers.copy()
    schedule = schedule_for(tasks, kernels)
    model.parameters.buffers[...] = buffers

    def make(of: DenseModel, number: int) -> PlacedBatch:
        if number != images:
            return PlacedBatch(of, number)
        return ConcurrentBatch(of, number, LaneExecution(tasks, schedule, kernels))

    model.make_batch = make
    return schedule


class ConcurrentBatch(PlacedBatch):
    """A network, planned for a number of images, its tasks on lanes.

    Parameters
    ----------
    model, images
        As `PlacedBatch`.
    execution
        Of as many images; becomes this object's.
    """

    def __init__(self, model: DenseModel, images: int, execution: LaneExecution) -> None:
        super().__init__(model, images)
        self._execution = execution
        tasks, tensors = execution.tasks, execution.tensors
        self._image: Array = tensors[tasks.graph.input]
        self._output: Array = tensors[tasks.output]
        self._gradient: Array | None = tensors.get(gradient_of(tasks.output))

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Return the logits; see `PlacedBatch.forward`."""
        if training != self._execution.tasks.training:
            return super().forward(x, training=training)
        watch = self._model.watch
        watch.start()
        if training:  # the optimizer has changed them
            self._execution.kernels.parameters_changed()
        np.copyto(self._image, x.transpose(0, 2, 3, 1))
        self._execution.forward()
        logits = np.array(self._output).reshape(self.images, -1)
        watch.lap("forward", "concurrent")
        return logits

    def backward(self, gradient: Array) -> None:
        """Fill the store's gradient; see `PlacedBatch.backward`."""
        watch = self._model.watch
        watch.start()
        if self._gradient is not None:
            self._gradient[...] = gradient.reshape(self._gradient.shape)
        self._execution.backward()
        watch.lap("backward", "concurrent")

    def free(self) -> None:
        """End the threads, too."""
        self._execution.close()
        super().free()
