"""One contender of `cnn.py`, in a process (or ranks) of its own: trains for some seconds.

``python benchmarks/_cnn_rivals.py CASE`` (JSON of `CnnCase`) prints a line of JSON: seconds of each
step, and the first losses. Everybody trains the same network from the same parameters on the same
pictures, which are random and never zero, with the same optimizer (SGD, momentum 0.9).
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WARM_UP, _LEAST = 5, 6  # steps that do not count, and that do at least
_RATE, _MOMENTUM = 1e-3, 0.9
_BATCHES = 4


@dataclass(frozen=True)
class CnnCase:
    """A contender: `how` is "pytorch", or the name of one of our backends."""

    network: str
    how: str
    algorithm: str = "data"
    threads: int = 1
    ranks: int = 1
    batch: int = 64
    seconds: float = 3.0

    @property
    def name(self) -> str:
        where = f"{self.ranks} rank{'s' * (self.ranks > 1)} × {self.threads} thread"
        how = "PyTorch" if self.how == "pytorch" else f"ours ({self.how}, {self.algorithm})"
        return f"{how}, {where}{'s' * (self.threads > 1)}"


def main() -> None:
    case = CnnCase(**json.loads(sys.argv[1]))
    if case.how == "pytorch":
        os.environ["OMP_NUM_THREADS"] = str(case.threads)
        step, told = _pytorch(case)
    else:
        step, told = _ours(case)
    losses = [step(number) for number in range(_WARM_UP)]
    seconds: list[float] = []
    end = time.perf_counter() + case.seconds
    # Ranks must do the same number of steps: as many as rank 0 finds time for.
    while told["go_on"](len(seconds) < _LEAST or time.perf_counter() < end):
        start = time.perf_counter()
        step(_WARM_UP + len(seconds))
        seconds.append(time.perf_counter() - start)
    if told["rank"] == 0:
        print(json.dumps({"seconds": seconds, "losses": losses}))


def _pictures(case: CnnCase) -> tuple[Any, list[Any], list[Any]]:
    import numpy as np

    from sparsednn.dense.networks import make_network

    graph = make_network(case.network)
    source = np.random.default_rng(0)
    images = [
        (source.random((case.batch, *graph.image)) + 0.1).astype(np.float32)
        for _ in range(_BATCHES)
    ]
    labels = [source.integers(graph.classes, size=case.batch) for _ in range(_BATCHES)]
    return graph, images, labels


def _ours(case: CnnCase) -> tuple[Callable[[int], float], dict[str, Any]]:
    from sparsednn.comm import Alone, world
    from sparsednn.comm.threads import limit_threads

    comm = world() if case.ranks > 1 else Alone()
    limit_threads(case.threads)
    import numpy as np

    from sparsednn.dense.local.choose import make_backend
    from sparsednn.dense.model import DenseModel
    from sparsednn.dense.planning.planner import plan_network
    from sparsednn.training.optimizers import make_optimizer

    graph, images, labels = _pictures(case)
    plan = plan_network(graph, case.batch, comm.size, algorithm=case.algorithm)
    model = DenseModel(comm, graph, plan.placements, make_backend(case.how, case.threads))
    batch = model.batch(case.batch)
    tiles = [np.ascontiguousarray(x[np.ix_(*batch.input.indices())]) for x in images]
    mine = slice(*batch.labels)
    store = model.parameters
    optimizer = make_optimizer("sgd", momentum=_MOMENTUM)
    slots = {name: np.zeros_like(store.theta) for name in optimizer.slots}

    def step(number: int) -> float:
        logits = batch.forward(tiles[number % _BATCHES], training=True)
        score, gradient = batch.score(logits, labels[number % _BATCHES][mine])
        batch.backward(gradient / np.float32(case.batch))
        optimizer.update(
            store.theta, store.gradient, slots, rate=_RATE, step=number + 1, threads=case.threads
        )
        total = np.array([score.loss])
        comm.allreduce(total, verb="score")
        return float(total[0]) / case.batch

    def go_on(flag: bool) -> bool:
        decision = np.array([flag if comm.rank == 0 else False])
        comm.allreduce(decision, "or", verb="score")
        return bool(decision[0])

    return step, {"rank": comm.rank, "go_on": go_on}


def _pytorch(case: CnnCase) -> tuple[Callable[[int], float], dict[str, Any]]:
    import torch

    from sparsednn.dense.initial import initial_parameters
    from sparsednn.dense.state_dict import to_torch

    torch.set_num_threads(case.threads)
    graph, images, labels = _pictures(case)
    arrays = to_torch(graph, initial_parameters(graph))
    network = _module(graph, {name: torch.from_numpy(array) for name, array in arrays.items()})
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=_RATE, momentum=_MOMENTUM)
    loss_of = torch.nn.CrossEntropyLoss()
    given = [
        (torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(images, labels, strict=True)
    ]

    def step(number: int) -> float:
        x, y = given[number % _BATCHES]
        optimizer.zero_grad()
        loss = loss_of(network(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, {"rank": 0, "go_on": lambda flag: flag}


def _module(graph: Any, state: dict[str, Any]) -> Any:
    """The network as PyTorch's users write it: modules, and a forward function that calls them."""
    import torch
    from torch import nn

    from sparsednn.dense import operations as ops

    made: dict[str, Any] = {}
    for operation in graph:
        shapes = graph.input_shapes(operation.name)
        match operation:
            case ops.Convolution():
                made[operation.name] = nn.Conv2d(
                    shapes[0][0], operation.filters, operation.taps, operation.stride,
                    operation.padding, operation.dilation, operation.groups, operation.bias,
                )  # fmt: skip
            case ops.FullyConnected():
                size = shapes[0][0] * shapes[0][1] * shapes[0][2]
                made[operation.name] = nn.Linear(size, operation.filters, operation.bias)
            case ops.MaxPool():
                made[operation.name] = nn.MaxPool2d(
                    operation.taps, operation.stride, operation.padding,
                    ceil_mode=operation.ceil_mode,
                )  # fmt: skip
            case ops.AveragePool():
                made[operation.name] = nn.AvgPool2d(
                    operation.taps, operation.stride, operation.padding,
                    count_include_pad=operation.count_include_pad,
                )  # fmt: skip
            case ops.Relu():
                made[operation.name] = nn.ReLU(inplace=True)
            case ops.BatchNorm():
                made[operation.name] = nn.BatchNorm2d(
                    shapes[0][0], operation.epsilon, operation.momentum
                )
    for name, module in made.items():
        for key, tensor in {
            **dict(module.named_parameters()),
            **dict(module.named_buffers()),
        }.items():
            if f"{name}.{key}" in state:
                tensor.data.copy_(state[f"{name}.{key}"])

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(made.values())

        def forward(self, x: Any) -> Any:
            outputs = {graph.input: x}
            for operation in graph.operations[1:]:
                given = [outputs[source] for source in graph.predecessors(operation.name)]
                match operation:
                    case ops.Add():
                        y = given[0] + given[1]
                    case ops.Concatenate():
                        y = torch.cat(given, 1)
                    case ops.FullyConnected():
                        y = made[operation.name](given[0].flatten(1))
                    case _:
                        y = made[operation.name](given[0])
                outputs[operation.name] = y
            return outputs[graph.output].flatten(1)

    return Network()


if __name__ == "__main__":
    main()
