"""`predict_step`: seconds of a step of training a CNN, or of a forward pass, on any placement.

Mirrored operation by operation on ``runs.stepper``, `dense.model` and ``layers``: the pictures; for
every operation what has to move in front of it, then its local time (`local`), products with their
collectives (`products`), batch normalisation with its sums; the loss; the same backwards; the wait
for sums that are under way; the optimizer. Every rank has a clock (`timeline`); what they do
together begins when the last is there. ::

    seconds = max over ranks of the clock at the end
    data parallelism, equal parts, no overlap:
        Σ_layers forward(b/P) + Σ_layers backward(b/P) + Σ_layers allreduce(K + bias) + update

Words are `flow.total_words`, summed over ranks; memory is `planning.memory.flow_memory`: the same
numbers as those of the planner, and of the counters of a real run. Must not know: how local times
and collectives are found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.dense.local import LocalCosts
from sparsednn.costmodel.dense.products import ProductTimes
from sparsednn.costmodel.dense.timeline import Timeline
from sparsednn.costmodel.dense.transfers import Transfers
from sparsednn.costmodel.dense.work import (
    BACKWARD,
    FORWARD,
    plane_rows,
    planes_of,
    theta_sizes,
    touched_bytes,
)
from sparsednn.costmodel.prediction import Prediction
from sparsednn.dense.flow import Flow, Step, make_flow
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import B, G, Grid, H, K, Placement, W
from sparsednn.dense.operations import BatchNorm, Input
from sparsednn.dense.planning.memory import flow_memory

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["predict_step"]

#: Sums of loss, right answers and images, in float64.
_SCORE_BYTES: Final = 24.0
#: Statistics are summed in float64.
_WIDE: Final = 8


def predict_step(
    platform: Platform,
    graph: OperationGraph,
    images: int,
    placements: Mapping[str, Placement] | None,
    ranks: int,
    *,
    backend: str = "auto",
    threads: int = 1,
    training: bool = True,
    optimizer_slots: int = 1,
    itemsize: int = 4,
) -> Prediction:
    """Predict one step of SGD, or one forward pass.

    Parameters
    ----------
    platform
        Where; calibrated (``measured["dense"]``, ``measured["collectives"]``) or not.
    graph, images
        The network, and images of a step, of all ranks together.
    placements
        Of every convolution and fully connected layer, by name; None: data parallelism.
    ranks
        How many; the platform must have room for them.
    backend, threads
        What computes on each rank; see `LocalCosts.of`.
    training
        Whole steps; otherwise forward passes, as ``cnn bench --inference`` does them.
    optimizer_slots
        Arrays like the parameters that the optimizer has (memory only).
    itemsize
        Bytes of a number.

    Returns
    -------
    Prediction
        Parts are the phases of ``cnn bench``: data, forward, backward, gradients, update. Details
        have ``backend``, ``threads``, ``calibrated``, and ``operations``: seconds of each in each
        phase.

    Raises
    ------
    UsageError
        If the platform has no room, or as `flow.make_flow`.
    FormatError
        If a measured table of the platform cannot be used.
    """
    platform.check_ranks(ranks)
    if placements is None:
        from sparsednn.dense.flow import products

        placements = dict.fromkeys(products(graph), Placement(Grid(b=ranks), "data"))
    flow = make_flow(graph, images, placements, ranks)
    local = LocalCosts.of(platform, backend, threads, ranks=ranks)
    step = _Step(flow, local, Transfers(platform, ranks, itemsize), training=training)
    seconds, charged = step.run()
    multiply_adds = sum(
        operation.forward_flops(images, *graph.input_shapes(operation.name)) / 2
        for operation in graph
    )
    return Prediction(
        seconds=seconds,
        parts=step.timeline.phases,
        charged=charged,
        words=int(flow.total_words(training=training).sum()),
        memory_bytes=float(
            flow_memory(
                graph, flow, itemsize=itemsize, training=training, optimizer_slots=optimizer_slots
            )
        ),
        edges=multiply_adds,
        details={
            "backend": local.backend,
            "threads": threads,
            "calibrated": local.calibrated,
            "operations": _table(step.timeline),
        },
    )


class _Step:
    """One step on a timeline.

    Parameters
    ----------
    flow, local, transfers
        What is done where, and what it takes.
    training
        Whether there is a backward pass.
    """

    def __init__(
        self, flow: Flow, local: LocalCosts, transfers: Transfers, *, training: bool
    ) -> None:
        self.flow, self.local, self.transfers = flow, local, transfers
        self._training = training
        ranks = transfers.ranks
        platform = transfers.platform
        link = platform.within if ranks <= platform.node.ranks else platform.between
        self.timeline = Timeline(ranks, 0.0 if link is None else link.overlap)
        self._touched = touched_bytes(flow, training=training, itemsize=transfers.itemsize)
        self._steps = {
            name: step for name, step in flow.steps.items() if not isinstance(step.operation, Input)
        }
        self._products = {
            name: ProductTimes(step, local, transfers, self._touched)
            for name, step in self._steps.items()
            if step.distribution is not None
        }

    def run(self) -> tuple[float, dict[str, float]]:
        """Return the seconds of the slowest rank, and what they are charged to."""
        time = self.timeline
        start = next(iter(self.flow.steps.values())).output.layout
        sizes = tuple(start.lengths(axis) for axis in range(4))
        self._plane("data", (*sizes, *sizes[1:]))
        time.lap("data")
        for name, step in self._steps.items():
            self._forward(name, step)
            time.lap("forward", name)
        logits = tuple(self.flow.logits.lengths(axis) for axis in range(4))
        self._logits(back=False)
        self._plane("loss_forward", (*logits, *logits[1:]))
        self._scores()
        time.lap("forward", "loss")
        if self._training:
            self._plane("loss_backward", (*logits, *logits[1:]))
            self._logits(back=True)
            time.lap("backward", "loss")
            for name, step in reversed(self._steps.items()):
                self._backward(name, step)
                time.lap("backward", name)
            self._plane("gradients", (len(self.flow.steps), *[1] * 6))
            time.finish()
            time.lap("gradients")
            self._plane("update", (theta_sizes(self.flow), *[1] * 6))
            time.lap("update")
        return time.end()

    # -- operations ------------------------------------------------------------------------------

    def _forward(self, name: str, step: Step) -> None:
        self._moves(step, back=False)
        if name in self._products:
            self._products[name].forward(self.timeline)
            return
        self._local(step, FORWARD)
        if isinstance(step.operation, BatchNorm) and self._training:
            self._statistics(step, 1)
            self._statistics(step, 1)

    def _backward(self, name: str, step: Step) -> None:
        if name in self._products:
            self._products[name].backward(self.timeline)
        elif step.input_gradient:
            if isinstance(step.operation, BatchNorm):
                self._statistics(step, 2)
            self._local(step, BACKWARD)
        if step.input_gradient:
            self._moves(step, back=True)

    def _local(self, step: Step, which: str) -> None:
        rows = planes_of(step, self._touched)
        found = self.local.seconds(f"{step.operation.kind}_{which}", rows)
        self.timeline.compute(found.by_bound())

    def _plane(self, kind: str, sizes: tuple[NDArray[np.int64] | int, ...]) -> None:
        rows = plane_rows(sizes, self._touched)
        self.timeline.compute(self.local.seconds(kind, rows).by_bound())

    # -- messages --------------------------------------------------------------------------------

    def _moves(self, step: Step, *, back: bool) -> None:
        for source, need in zip(step.sources, step.needs, strict=True):
            self.transfers.move(self.timeline, source.layout, need, back=back)

    def _logits(self, *, back: bool) -> None:
        last = next(reversed(self.flow.steps.values())).output.layout
        self.transfers.move(self.timeline, last, self.flow.logits, back=back)

    def _statistics(self, step: Step, arrays: int) -> None:
        """Sums over the ranks that hold a part of the same channels."""
        grid = step.output.grid
        group = grid[B] * grid[H] * grid[W], grid[G] * grid[K] * grid[-1]
        channels = float(step.output.layout.lengths(1).max(initial=0))
        if group[0] > 1:
            nbytes = arrays * channels * _WIDE
            self.timeline.together(self.transfers.collective("allreduce", group, nbytes))

    def _scores(self) -> None:
        """The sum of the loss, on its way during the backward pass; a forward pass has none."""
        ranks = self.transfers.ranks
        if ranks > 1 and self._training:
            group = ranks, 1
            seconds = self.transfers.collective("allreduce", group, _SCORE_BYTES, started=True)
            self.timeline.start(seconds)


def _table(timeline: Timeline) -> dict[str, dict[str, float]]:
    """Operation → phase → seconds."""
    found: dict[str, dict[str, float]] = {}
    for (phase, name), seconds in timeline.operations.items():
        if name:
            found.setdefault(name, {})[phase] = seconds
    return found
