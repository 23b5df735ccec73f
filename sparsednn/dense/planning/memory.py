"""Memory of each rank for a placed network: closed forms, as `layers` and `model` hold it.

The peak of a network is taken as all that lies between its passes and all that any operation keeps
for the backward pass, at the same time as the largest need of a single operation while it runs, its
tiles of input and output included; each at the rank that has most. Of an operation:

==============  ====================================================================================
product         see `product_memory`; where its input has been moved, that array, too
ReLU            keeps its output, which is the next one's input; writes over its own input
normalisation   keeps its input; four numbers per channel, and what the optimizer has
max pooling     keeps where the largest were: one byte each, up to 255 taps
moves           buffers of what is sent and received, both ways, as long as the batch is planned
==============  ====================================================================================

Exact: parameters, buffers, what is kept. Upper bounds: the sum above, since what is kept goes in
the course of the backward pass; outputs that wait for a reader further on; inputs of products,
which are counted as kept even where only the moved copy is.

Not in it: a library's workspace (im2col's columns, oneDNN's), MPI's own buffers, the data set, and
plans for another number of images (what is left at the end of an epoch).

Must not know: how grids are chosen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.flow import Flow, Step
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.layout import Layout
from sparsednn.dense.operations import (
    Add,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    MaxPool,
    Relu,
)
from sparsednn.dense.planning.product_memory import ProductMemory, product_memory
from sparsednn.dense.volume import halo_words

__all__ = [
    "ProductMemory",
    "StepMemory",
    "flow_memory",
    "keeps_output",
    "loss_memory",
    "product_memory",
    "step_memory",
]

_Words = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StepMemory:
    """Bytes of each rank, ``(ranks,)`` int64, that one operation takes.

    Attributes
    ----------
    resident
        From the beginning to the end of a training step: parameters, buffers, all that is kept.
    transient
        The most that it needs in addition while it runs.
    """

    resident: _Words
    transient: _Words


def keeps_output(graph: OperationGraph, name: str) -> bool:
    """Whether an operation's output counts as kept until the backward pass; known without a grid.

    It is where the operation itself keeps it (ReLU), a product or batch normalisation reads it (a
    product that has it moved keeps the moved one instead: there this is an upper bound), or
    somebody reads it later than by the next operation.
    """
    order = {operation.name: place for place, operation in enumerate(graph)}
    if isinstance(graph.operation(name), Relu):
        return True
    readers = graph.successors(name)
    if any(order[reader] > order[name] + 1 for reader in readers):
        return True
    keepers = (BatchNorm, Convolution, FullyConnected)
    return any(isinstance(graph.operation(reader), keepers) for reader in readers)


def step_memory(
    step: Step,
    *,
    output_kept: bool,
    itemsize: int = 4,
    training: bool = True,
    optimizer_slots: int = 0,
    product: ProductMemory | None = None,
) -> StepMemory:
    """Return the bytes of all ranks for one operation of a network.

    Parameters
    ----------
    step
        What is done where.
    output_kept
        See `keeps_output`.
    itemsize
        Bytes of a number: 4 or 8.
    training, optimizer_slots
        As for `product_memory`.
    product
        What `product_memory` says, where it has been asked.
    """
    output = step.output.layout.sizes()
    sources = np.zeros_like(output)
    copies, buffers = np.zeros_like(output), np.zeros_like(output)
    for source, need in zip(step.sources, step.needs, strict=True):
        before, after = source.layout.sizes(), need.sizes()
        sources = sources + before
        common = source.layout.common(need)
        if not (np.array_equal(before, common) and np.array_equal(after, common)):
            copies = copies + after
            sent, received = before - common, after - common
            if step.halo:
                over = source.rows_over + source.columns_over
                sent, received = halo_words(source.layout, need, source.grid, over)
            buffers = buffers + sent + received
    operation = step.operation
    resident, transient = buffers, sources + copies + output
    more = 0  # bytes that are no numbers
    if step.distribution is not None:
        if product is None:
            product = product_memory(
                step.distribution,
                has_bias=bool(getattr(operation, "bias", False)),
                input_gradient=step.input_gradient,
                training=training,
                optimizer_slots=optimizer_slots,
            )
        resident = resident + product.parameters + product.buffers + product.kept
        # A moved input is kept by the product; where halos or gathered parts make a new array of
        # it, it is not, but that is known to `product` only.
        resident = resident + copies * training
        forward = sources + copies + product.forward - product.kept
        backward = output + product.backward - product.kept + sources
        transient = np.maximum(forward, backward)
    elif isinstance(operation, BatchNorm):
        channels = step.output.layout.lengths(1)
        resident = resident + channels * (2 * (2 + optimizer_slots if training else 1) + 2)
    elif isinstance(operation, (Add, Concatenate)) and training:
        # Backwards: the sum's gradient, its parts, and each where its source lies.
        transient = output + copies + sources
    elif isinstance(operation, MaxPool) and training:
        more = operation.taps[0] * operation.taps[1]
        more = 1 if more < 2**8 else 2 if more < 2**16 else 4
    if training and output_kept:
        resident = resident + output
    return StepMemory(
        np.asarray(resident * itemsize + output * more, np.int64),
        np.asarray(transient * itemsize, np.int64),
    )


def loss_memory(last: Layout, logits: Layout, *, itemsize: int = 4) -> StepMemory:
    """Return the bytes of all ranks for the loss: logits where they are made and where it has them.

    Five arrays of logits are at work there.
    """
    there = logits.sizes()
    moved = last.sizes() + there - 2 * last.common(logits)
    return StepMemory(moved * itemsize, (last.sizes() + 5 * there) * itemsize)


def flow_memory(
    graph: OperationGraph,
    flow: Flow,
    *,
    itemsize: int = 4,
    training: bool = True,
    optimizer_slots: int = 0,
) -> int:
    """Return the bytes that no rank needs more than: Σ resident + the largest transient.

    Parameters as for `step_memory`.
    """
    last = next(reversed(flow.steps.values())).output.layout
    found = [loss_memory(last, flow.logits, itemsize=itemsize)]
    found += [
        step_memory(
            step, output_kept=keeps_output(graph, name), itemsize=itemsize, training=training,
            optimizer_slots=optimizer_slots,
        )
        for name, step in flow.steps.items()
    ]  # fmt: skip
    resident = sum(int(each.resident.max(initial=0)) for each in found)
    return resident + max(int(each.transient.max(initial=0)) for each in found)
