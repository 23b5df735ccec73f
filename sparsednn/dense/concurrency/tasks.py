"""`TaskGraph`: a pass through a network as tasks that read and write tensors, and what must wait
for what.

A *task* is the piece of work that is placed on a lane (a thread, a stream) as a whole, or in parts.
Forward it is an operation with the elementwise ones that follow it and that nobody else looks
between (*fused*). Backward, the two gradients of a product are tasks of their own, since neither
needs the other; gradients of an output that several operations read are added up by a task. The
loss is a task between the two directions.

A *tensor* is what tasks hand on. One may be some channels of another (its `base`): branches that
end in a concatenation write where it wants them, and there is no task for it; on the way back they
read from where it is.

Must not know: how long anything takes, lanes, arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Final

import networkx

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import (
    Add,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Operation,
    Relu,
)

__all__ = [
    "BACKWARD",
    "FORWARD",
    "IMAGE",
    "INPUT_GRADIENT",
    "KERNEL_GRADIENT",
    "LOSS",
    "SUM",
    "Task",
    "TaskGraph",
    "Tensor",
    "gradient_of",
]

IMAGE: Final = "image"
"""Bring the images to where the network's input is."""
FORWARD: Final = "forward"
"""An operation, and what is fused behind it."""
LOSS: Final = "loss"
"""From the logits to their gradient; done by whoever runs the network."""
INPUT_GRADIENT: Final = "input gradient"
"""Of a product."""
KERNEL_GRADIENT: Final = "kernel gradient"
"""Of a product, its bias's included."""
BACKWARD: Final = "backward"
"""All gradients of what is no product."""
SUM: Final = "sum"
"""Of the gradients of one output that several operations read; in the order of `Task.reads`."""

_PRODUCTS = (Convolution, FullyConnected)


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array that tasks hand on.

    Attributes
    ----------
    name
        The operation whose output it is; with ``:gradient`` of it; ``:gradient:R`` the part that
        comes from reader R; ``:where`` which element of a window was the largest;
        ``:statistics`` mean and inverse deviation of a batch normalisation, ``(2, channels)``
        float64.
    shape
        ``(images, channels, height, width)``, whatever the layout in memory; ``(2, channels)`` of
        statistics.
    itemsize
        Bytes of an element.
    base, channel
        The tensor that this is a part of, and the first of its channels there; None: its own.
    """

    name: str
    shape: tuple[int, ...]
    itemsize: int
    base: str | None = None
    channel: int = 0

    @property
    def bytes(self) -> int:
        """Size."""
        return prod(self.shape) * self.itemsize


@dataclass(frozen=True, slots=True)
class Task:
    """A piece of work.

    Attributes
    ----------
    name
        Of its first operation in a forward pass; otherwise with the action: ``conv1 (sum)``.
    action
        `FORWARD` and so on.
    operations
        The operation, and those fused behind it, in order.
    reads, writes
        Tensors.
    flops
        Of all images.
    bytes
        Tensors and parameters that it reads and writes, each once: what memory has to bring.
    """

    name: str
    action: str
    operations: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    flops: int
    bytes: int

    @property
    def backward(self) -> bool:
        """Whether it belongs to the way back, behind the loss."""
        return self.action in (INPUT_GRADIENT, KERNEL_GRADIENT, BACKWARD, SUM)


def gradient_of(name: str) -> str:
    """Name of the tensor with the gradient of an operation's output."""
    return f"{name}:gradient"


class TaskGraph:
    """The tasks of one pass.

    Parameters
    ----------
    graph
        The network, finished.
    images
        Of the pass.
    training
        With the way back; without, batch normalisation uses the running statistics, and is fused.
    itemsize
        Bytes of an activation's element: 4 or 8.
    fuse
        Whether elementwise operations are fused to what is in front of them, and concatenations
        that need no copy left out. Without, there is a task for each operation: what the bounds of
        a network are counted on.

    Attributes
    ----------
    tasks
        By name, in an order that respects all dependencies: the serial one.
    tensors
        By name.
    waits : networkx.DiGraph
        An edge from each task to those that need what it writes.
    output
        The tensor of the logits.
    """

    def __init__(
        self,
        graph: OperationGraph,
        images: int,
        *,
        training: bool = False,
        itemsize: int = 4,
        fuse: bool = True,
    ) -> None:
        self.graph, self.images, self.training = graph, images, training
        self.itemsize, self.fuse = itemsize, fuse
        self.tasks: dict[str, Task] = {}
        self.tensors: dict[str, Tensor] = {}
        self.output = graph.output
        self._parts: dict[str, list[str]] = {}
        self._readers = {
            operation.name: [
                reader
                for reader in graph.successors(operation.name)
                for source in graph.predecessors(reader)
                if source == operation.name
            ]
            for operation in graph
        }
        self._add_forward()
        if training:
            self._add_backward()
        self.waits = self._waits()

    # -- what is in it ---------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Task]:
        """All tasks, in the serial order."""
        return iter(self.tasks.values())

    def __len__(self) -> int:
        """How many tasks there are."""
        return len(self.tasks)

    def operation(self, task: Task) -> Operation:
        """Return the first operation of a task."""
        return self.graph.operation(task.operations[0])

    def root(self, tensor: str) -> tuple[str, int]:
        """Return the tensor that has memory of its own, and where in its channels this begins."""
        channel, found = 0, self.tensors[tensor]
        while found.base is not None:
            channel, found = channel + found.channel, self.tensors[found.base]
        return found.name, channel

    @property
    def roots(self) -> list[Tensor]:
        """All tensors that have memory of their own."""
        return [tensor for tensor in self.tensors.values() if tensor.base is None]

    # -- forward ---------------------------------------------------------------------------------

    def _add_forward(self) -> None:
        graph = self.graph
        fused = self._fused_chains()
        ends = {chain[0]: chain[-1] for chain in fused.values()}
        inside = {name for chain in fused.values() for name in chain[1:]}
        outputs = [operation.name for operation in graph if operation.name not in inside]
        outputs = [ends.get(name, name) for name in outputs]
        homes = self._concatenated(set(outputs)) if self.fuse else {}
        for name in outputs:
            base, channel = homes.get(name, (None, 0))
            self._tensor(name, (self.images, *graph.shape(name)), self.itemsize, base, channel)
        for operation in graph:
            name = operation.name
            if name in inside:
                continue
            chain = fused.get(name, (name,))
            if isinstance(operation, Input):
                self._task(name, IMAGE, chain, (), (name,), 0)
                continue
            reads = graph.predecessors(name)
            if isinstance(operation, Concatenate) and homes:
                reads = tuple(each for each in reads if homes.get(each, ("", 0))[0] != name)
                if not reads:
                    continue
            writes = [chain[-1]]
            if self.training:
                writes += self._kept(operation)
            flops = sum(graph.forward_flops(self.images, each) for each in chain)
            self._task(name, FORWARD, chain, reads, tuple(writes), flops)

    def _kept(self, operation: Operation) -> list[str]:
        """Tensors beside the output that the way back will want."""
        name, shape = operation.name, (self.images, *self.graph.shape(operation.name))
        if isinstance(operation, MaxPool):
            itemsize = 1 if prod(operation.taps) < 256 else 2
            return [self._tensor(f"{name}:where", shape, itemsize)]
        if isinstance(operation, BatchNorm):
            return [self._tensor(f"{name}:statistics", (2, shape[1]), 8)]
        return []

    def _fused_chains(self) -> dict[str, tuple[str, ...]]:
        """First operation of a chain → its operations: elementwise ones join what they read.

        In training, batch normalisation must see all values of a channel before it gives the first
        one, and its input is wanted again: it begins a chain.
        """
        chains: dict[str, tuple[str, ...]] = {}
        if not self.fuse:
            return chains
        first_of: dict[str, str] = {}
        for operation in self.graph:
            name = operation.name
            first_of[name] = name
            elementwise = isinstance(operation, Relu) or (
                isinstance(operation, BatchNorm) and not self.training
            )
            if not elementwise:
                continue
            (source,) = self.graph.predecessors(name)
            first = first_of[source]
            head = self.graph.operation(first)
            takes = isinstance(head, (*_PRODUCTS, Add, BatchNorm))
            # On the way back, each rectifier looks at its own output.
            takes &= not (self.training and isinstance(self.graph.operation(source), Relu))
            if takes and self._readers[source] == [name]:
                chains[first] = (*chains.get(first, (first,)), name)
                first_of[name] = first
        return chains

    def _concatenated(self, outputs: set[str]) -> dict[str, tuple[str, int]]:
        """Outputs that only one concatenation reads → it, and the first channel there."""
        homes: dict[str, tuple[str, int]] = {}
        for operation in self.graph:
            if not isinstance(operation, Concatenate):
                continue
            channel = 0
            for source in self.graph.predecessors(operation.name):
                movable = not isinstance(self.graph.operation(source), Input)
                if movable and source in outputs and len(self._readers[source]) == 1:
                    homes[source] = operation.name, channel
                channel += self.graph.shape(source)[0]
        return homes

    # -- backward --------------------------------------------------------------------------------

    def _add_backward(self) -> None:
        graph = self.graph
        trained: set[str] = set()
        for operation in graph:
            sources = graph.predecessors(operation.name)
            if graph.parameters_of(operation.name) or any(each in trained for each in sources):
                trained.add(operation.name)
        arriving: dict[str, list[str]] = {}
        if self.output in trained:
            self._tensor(gradient_of(self.output), self._shape(self.output), self.itemsize)
            arriving[self.output] = [gradient_of(self.output)]
        self._task(LOSS, LOSS, (), (self.output,), tuple(arriving.get(self.output, ())), 0)
        for operation in reversed(graph.operations):
            name = operation.name
            if name not in trained:
                continue
            given = self._summed(name, arriving.pop(name))
            wanted = [source in trained for source in graph.predecessors(name)]
            for source, tensor in self._backward_of(operation, given, wanted):
                arriving.setdefault(source, []).append(tensor)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.images, *self.graph.shape(name)

    def _summed(self, name: str, parts: list[str]) -> str:
        """The tensor with the whole gradient of an output."""
        if len(parts) == 1:
            return parts[0]
        total = self._tensor(gradient_of(name), self._shape(name), self.itemsize)
        flops = (len(parts) - 1) * prod(self._shape(name))
        self._task(f"{name} ({SUM})", SUM, (name,), tuple(parts), (total,), flops)
        return total

    def _backward_of(
        self, operation: Operation, given: str, wanted: list[bool]
    ) -> list[tuple[str, str]]:
        """Add the tasks of an operation; sources, and the tensors with what they get from it."""
        name, sources = operation.name, self.graph.predecessors(operation.name)
        if isinstance(operation, Add):
            return [(each, given) for each, want in zip(sources, wanted, strict=True) if want]
        results = [
            (each, self._arriving(each, name, index))
            for index, (each, want) in enumerate(zip(sources, wanted, strict=True))
            if want
        ]
        writes = tuple(tensor for _, tensor in results)
        if isinstance(operation, _PRODUCTS):
            flops = self.graph.forward_flops(self.images, name)
            self._task(
                f"{name} ({KERNEL_GRADIENT})",
                KERNEL_GRADIENT,
                (name,),
                (given, *sources),
                (),
                flops,
            )
            if writes:
                self._task(
                    f"{name} ({INPUT_GRADIENT})", INPUT_GRADIENT, (name,), (given,), writes, flops
                )
            return results
        if isinstance(operation, Concatenate) and self.fuse:
            channel = 0
            for index, source in enumerate(sources):
                tensor = self._arriving(source, name, index)
                if wanted[index]:
                    self._tensor(
                        tensor, self._shape(source), self.itemsize, given, channel, again=True
                    )
                channel += self.graph.shape(source)[0]
            return results
        looks_at: tuple[str, ...] = ()
        if isinstance(operation, Relu):
            looks_at = (name,)
        elif isinstance(operation, BatchNorm):
            looks_at = sources[0], f"{name}:statistics"
        elif isinstance(operation, MaxPool):
            looks_at = (f"{name}:where",)
        if writes or self.graph.parameters_of(name):
            flops = self.graph.backward_flops(self.images, name)
            self._task(f"{name} ({BACKWARD})", BACKWARD, (name,), (given, *looks_at), writes, flops)
        return results

    def _arriving(self, source: str, reader: str, index: int) -> str:
        """The tensor with what a source's gradient gets from one of those that read it."""
        if len(self._readers[source]) == 1:
            name = gradient_of(source)
        else:
            name = f"{gradient_of(source)}:{reader}" + (f"#{index}" if index else "")
        return self._tensor(name, self._shape(source), self.itemsize, again=True)

    # -- tasks and tensors -----------------------------------------------------------------------

    def _tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        itemsize: int,
        base: str | None = None,
        channel: int = 0,
        *,
        again: bool = False,
    ) -> str:
        assert again or name not in self.tensors
        if again and base is None and name in self.tensors:
            return name
        self.tensors[name] = Tensor(name, shape, itemsize, base, channel)
        return name

    def _task(
        self,
        name: str,
        action: str,
        operations: tuple[str, ...],
        reads: tuple[str, ...],
        writes: tuple[str, ...],
        flops: int,
    ) -> None:
        touched = sum(self.tensors[each].bytes for each in (*reads, *writes))
        touched += self.itemsize * sum(
            parameter.words
            for operation in operations
            if action != SUM
            for parameter in self.graph.parameters_of(operation)
        )
        self.tasks[name] = Task(name, action, operations, reads, writes, flops, touched)

    def _waits(self) -> networkx.DiGraph:
        waits = networkx.DiGraph()
        waits.add_nodes_from(self.tasks)
        inner: dict[str, list[str]] = {}
        for tensor in self.tensors.values():
            if tensor.base is not None:
                inner.setdefault(tensor.base, []).append(tensor.name)
        writers: dict[str, list[str]] = {}
        for task in self:
            for written in task.writes:
                writers.setdefault(written, []).append(task.name)
        for task in self:
            for read in task.reads:
                for touched in self._touching(read, inner):
                    waits.add_edges_from((each, task.name) for each in writers.get(touched, []))
        return waits

    def _touching(self, name: str, inner: dict[str, list[str]]) -> Iterator[str]:
        """The tensor, those it is a part of, and its parts."""
        above = self.tensors[name].base
        while above is not None:
            yield above
            above = self.tensors[above].base
        below = [name]
        while below:
            found = below.pop()
            yield found
            below += inner.get(found, [])
