"""`DenseModel`: a network on ranks, with its parameters; `PlacedBatch`: the same for so many
images.

What depends on the number of images (layouts, messages, buffers) is planned once for each number
that occurs: mostly two, the batch and what is left at the end of an epoch. Parameters do not depend
on it.

A step, on every rank: the rank's tile of the images; forward through all operations in topological
order; the loss where images are divided over all ranks; backward in the opposite order, gradients
of outputs that several operations read are added up; sums of parameters' gradients over ranks are
under way meanwhile, and are waited for at the end.

Must not know: data sets, optimizers, checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.communicator import Communicator
from sparsednn.dense.flow import Flow, make_flow
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Placement
from sparsednn.dense.initial import initial_block
from sparsednn.dense.layers import PlacedOperation, Setting, SoftmaxCrossEntropy, make_placed
from sparsednn.dense.layers.base import Array, parameter_tiles
from sparsednn.dense.layout import Block
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    MaxPool,
    Operation,
    Relu,
)
from sparsednn.dense.parameters import ParameterStore
from sparsednn.dense.pool import GridPool
from sparsednn.dense.stopwatch import Stopwatch
from sparsednn.training.losses import Score

if TYPE_CHECKING:
    from sparsednn.dense.local.base import LocalBackend

__all__ = ["DenseModel", "PlacedBatch"]

#: Sizes of batches that stay planned.
_KEPT_BATCHES = 4
#: Outputs that the operation which made them does not look at again, and makes anew each time.
_DISPOSABLE = (Convolution, FullyConnected, BatchNorm, Add, Concatenate, MaxPool, AveragePool)


class DenseModel:
    """A network whose products are placed on grids of ranks.

    Parameters
    ----------
    world
        All ranks; stays the caller's.
    graph
        The network.
    placements
        Of every product, by name (`planner` finds good ones).
    local
        Computes on a rank.
    dtype
        float32, or float64 for proofs.
    seed
        Of the initial parameters; they do not depend on ranks and grids.

    Attributes
    ----------
    parameters
        This rank's tiles.
    make_batch
        Plans the network for a number of images: `PlacedBatch`, unless somebody knows better.
    watch
        Times all operations; phases are ``forward``, ``backward``, and ``gradients`` for the wait
        until sums over ranks are complete.

    Raises
    ------
    UsageError
        As `flow.make_flow`.
    """

    def __init__(
        self,
        world: Communicator,
        graph: OperationGraph,
        placements: Mapping[str, Placement],
        local: LocalBackend,
        *,
        dtype: Any = np.float32,
        seed: int = 0,
    ) -> None:
        self.world, self.graph, self.placements = world, graph, dict(placements)
        copies = local if local.on_device else None
        self.setting = Setting(GridPool(world, copies), local, np.dtype(dtype))
        self.watch = Stopwatch()
        self.make_batch: Callable[[DenseModel, int], PlacedBatch] = PlacedBatch
        self._batches: dict[int, PlacedBatch] = {}
        flow = make_flow(graph, 1, self.placements, world.size)
        self.parameters = ParameterStore(
            world,
            [parameter_tiles(step, graph.parameters_of(name)) for name, step in flow.steps.items()],
            self.setting.dtype,
            local,
        )
        self.parameters.fill(
            lambda name, block: initial_block(graph, name, block, seed=seed, dtype=dtype)
        )

    def batch(self, images: int) -> PlacedBatch:
        """Return the network planned for so many images; collective the first time."""
        if images not in self._batches:
            while len(self._batches) >= _KEPT_BATCHES:
                self._batches.pop(next(iter(self._batches))).free()
            self._batches[images] = self.make_batch(self, images)
        return self._batches[images]

    def free(self) -> None:
        """Free all messages and communicators (collective); a second time does nothing."""
        while self._batches:
            self._batches.popitem()[1].free()
        self.setting.pool.free()


class PlacedBatch:
    """A network, planned for a number of images.

    Attributes
    ----------
    flow
        How everything lies.
    input
        This rank's block of the images.
    labels
        ``[first, last)``: the images whose labels this rank is to have.
    """

    def __init__(self, model: DenseModel, images: int) -> None:
        self._model = model
        self.flow: Flow = make_flow(model.graph, images, model.placements, model.world.size)
        self.images = images
        steps = list(self.flow.steps.values())
        self._names = list(self.flow.steps)
        self._operations: list[PlacedOperation] = [
            make_placed(model.setting, step, number) for number, step in enumerate(steps) if number
        ]
        self.input: Block = steps[0].output.layout.block(model.world.rank)
        self._loss = SoftmaxCrossEntropy(model.setting, self.flow, len(steps))
        self.labels = self._loss.images
        self._let_overwrite(model.graph)

    def _let_overwrite(self, graph: OperationGraph) -> None:
        """Find operations that may write into what they are given: nobody else will look at it."""
        for name, placed in zip(self._names[1:], self._operations, strict=True):
            operation = placed.step.operation
            if not isinstance(operation, (Relu, Add)):
                continue
            source = placed.step.inputs[0]
            placed.overwrite_input = placed.fresh(0) or (
                isinstance(graph.operation(source), _DISPOSABLE) and self._reads(graph, source) == 1
            )
            placed.overwrite_gradient = self._sole_gradient(graph, name)

    @staticmethod
    def _reads(graph: OperationGraph, name: str) -> int:
        return sum(graph.predecessors(reader).count(name) for reader in graph.successors(name))

    def _sole_gradient(self, graph: OperationGraph, name: str) -> bool:
        """Whether the gradient of an output is an array that only this operation gets."""
        if self._reads(graph, name) != 1:  # a sum over its readers, made for it
            return self._reads(graph, name) > 1
        reader: Operation = graph.operation(graph.successors(name)[0])
        if isinstance(reader, Concatenate):  # which may give parts of its own gradient
            return self._sole_gradient(graph, reader.name)
        return not isinstance(reader, Add)  # which gives the same array to all of its inputs

    def forward(self, x: Array, *, training: bool = False) -> Array:
        """Return this rank's logits ``(images of this rank, classes)``; collective.

        Parameters
        ----------
        x
            This rank's block `input` of the images, of the host.
        training
            Whether `backward` follows.
        """
        store, watch = self._model.parameters, self._model.watch
        watch.start()
        outputs: dict[str, Array] = {self._names[0]: self._model.setting.local.from_host(x)}
        readers = {name: self._reads(self._model.graph, name) for name in self._names}
        for number, placed in enumerate(self._operations, 1):
            step = placed.step
            outputs[self._names[number]] = placed.forward(
                [outputs[source] for source in step.inputs],
                store.theta[store.span(number)],
                store.buffers[store.span(number, trained=False)],
                training=training,
            )
            for source in step.inputs:  # what nobody will read goes
                readers[source] -= 1
                if not readers[source]:
                    del outputs[source]
            watch.lap("forward", self._names[number])
        logits = self._loss.logits(outputs[self._names[-1]])
        watch.lap("forward", "loss")
        return logits

    def score(self, logits: Array, labels: NDArray[np.int64]) -> tuple[Score, Array]:
        """Return this rank's share of the loss, and its gradient; see `layers.loss`."""
        return self._loss.score(logits, labels)

    def backward(self, gradient: Array) -> None:
        """Fill the store's gradient; collective.

        Parameters
        ----------
        gradient
            Of the logits, as `forward` gave them.
        """
        store, watch = self._model.parameters, self._model.watch
        watch.start()
        gradients: dict[str, Array] = {self._names[-1]: self._loss.gradient(gradient)}
        watch.lap("backward", "loss")
        owned: set[str] = set()
        for number in range(len(self._operations), 0, -1):
            placed, name = self._operations[number - 1], self._names[number]
            if name not in gradients:  # nothing is trained up to here, it included
                placed.forget()
                continue
            span = store.span(number)
            found = placed.backward(gradients.pop(name), store.theta[span], store.gradient[span])
            for source, one in zip(placed.step.inputs, found, strict=True):
                if one is None:
                    continue
                if source not in gradients:
                    gradients[source] = one
                elif source in owned:
                    gradients[source] += one
                else:
                    gradients[source] = gradients[source] + one
                    owned.add(source)
            watch.lap("backward", name)
        for name, placed in zip(self._names[1:], self._operations, strict=True):
            placed.finish()
            watch.lap("gradients", name)

    def free(self) -> None:
        """Free the messages (the communicators belong to the model)."""
        for placed in self._operations:
            placed.free()
        self._loss.free()
