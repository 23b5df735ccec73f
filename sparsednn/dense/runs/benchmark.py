"""How fast a network is trained, or looked through, on these ranks: steps on pictures made here.

Called by all ranks alike. Pixels are random and never zero: zeros would be quicker. Parameters move
(little), so nothing dies.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.datasets.pictures import load_pictures
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import Input, shape_text
from sparsednn.dense.planning.request import Planning
from sparsednn.dense.runs.placing import place_network
from sparsednn.dense.runs.stepper import PHASES, CnnStepper, picture_block
from sparsednn.errors import UsageError
from sparsednn.training.optimizers import SGD

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["BenchResult", "bench_network"]

#: Steps before the clock counts: compiled code is loaded, buffers are there, threads run.
WARM_UP: Final = 3
_RATE: Final = 1e-4
_BATCHES: Final = 4  # different ones, one after another


@dataclass(frozen=True)
class BenchResult:
    """What was measured.

    Attributes
    ----------
    backend
        Name of what computed.
    plan
        Where all layers were.
    step_seconds
        The median of all steps; of the slowest rank.
    images_per_second
        By that.
    phase_seconds
        Of a step, mean of all steps, on rank 0; see `stepper.PHASES`.
    layers
        Of each operation ``name``, ``kind`` and, as for phases, ``forward``, ``backward`` and
        ``gradients`` (the wait at the end).
    words_sent, words_predicted
        Of all ranks in a step, as counted and by formula.
    """

    backend: str
    plan: Any
    step_seconds: float
    images_per_second: float
    phase_seconds: dict[str, float]
    layers: list[dict[str, Any]]
    words_sent: int
    words_predicted: int


def bench_network(
    world: Communicator,
    graph: OperationGraph,
    *,
    batch_size: int = 64,
    steps: int = 10,
    training: bool = True,
    planning: Planning | None = None,
    backend: str = "auto",
    threads: int = 1,
    dtype: str = "float32",
) -> BenchResult:
    """Do so many steps, after `WARM_UP` others.

    Parameters
    ----------
    world, planning, backend, threads, dtype
        As for `trainer.CnnRun`.
    graph
        The network.
    batch_size
        Images of a step.
    steps
        How many are measured.
    training
        Whole steps of SGD with momentum; otherwise forward passes.

    Raises
    ------
    UsageError
        If sizes are below 1; as `placing.place_network`.
    """
    for name, value in (("--batch-size", batch_size), ("--steps", steps)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")
    optimizer = SGD(momentum=0.9)
    plan, model = place_network(
        world, graph, planning, batch_size, backend=backend, threads=threads, dtype=dtype,
        training=training, slots=len(optimizer.slots),
    )  # fmt: skip
    name = f"synthetic:{shape_text(graph.image).replace('×', 'x')}:{graph.classes}"
    pictures = load_pictures(name, limit=batch_size * _BATCHES)
    mean, std = pictures.moments()
    pictures = replace(pictures, mean=mean, std=std)
    stepper = CnnStepper(model, optimizer, threads=threads)
    batch = model.batch(batch_size)
    taken: list[float] = []
    traffic = world.traffic
    before = 0
    for number in range(1, WARM_UP + steps + 1):
        first = (number - 1) % _BATCHES * batch_size
        ids = np.arange(first, first + batch_size)
        if number == WARM_UP + 1:
            model.watch.clear()
            before = traffic.words() - traffic.words("score")
        world.barrier()
        start = time.perf_counter()
        if training:
            stepper.train(pictures, ids, rate=_RATE, step=number)
        else:
            model.watch.start()
            x = picture_block(pictures, ids, batch.input, model.setting.dtype)
            model.watch.lap("data")
            batch.forward(x)
        taken.append(time.perf_counter() - start)
    sent = traffic.words() - traffic.words("score") - before
    words = np.array([sent // steps, stepper.words(batch_size, training=training)], np.int64)
    world.allreduce(words)
    slowest = np.array([median(taken[WARM_UP:])])
    world.allreduce(slowest, "max")
    watch = model.watch
    phases = watch.phases()
    per_layer = {phase: watch.operations(phase) for phase in PHASES}
    result = BenchResult(
        backend=model.setting.local.name,
        plan=plan,
        step_seconds=float(slowest[0]),
        images_per_second=batch_size / float(slowest[0]),
        phase_seconds={name: phases.get(name, 0.0) / steps for name in PHASES if name in phases},
        layers=[
            {"name": operation.name, "kind": operation.kind}
            | {
                phase: per_layer[phase].get(operation.name, 0.0) / steps
                for phase in (("forward", "backward", "gradients") if training else ("forward",))
            }
            for operation in graph
            if not isinstance(operation, Input)
        ],
        words_sent=int(words[0]),
        words_predicted=int(words[1]),
    )
    model.free()
    return result
