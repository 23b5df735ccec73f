"""One contender of `concurrency.py`, in a process of its own: passes of a network for some seconds.

``python benchmarks/_concurrency_rivals.py CASE`` (JSON of `Case`) prints a line of JSON: seconds of
each pass by plan, and the logits of the first image. All have the same parameters and images, which
are random and never zero.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_WARM_UP, _LEAST = 3, 5


@dataclass(frozen=True)
class Case:
    """A contender: `how` is "plans" (ours, a pass of each in turns), "model" (ours, without
    plans), "pytorch" or "pytorch-channels-last"."""

    network: str
    how: str
    batch: int
    threads: int
    seconds: float
    plans: tuple[str, ...] = ()


def main() -> None:
    case = Case(**json.loads(sys.argv[1]))
    os.environ["OMP_NUM_THREADS"] = str(case.threads)
    made = {"plans": _plans, "model": _model}.get(case.how, _pytorch)
    passes = made(case)
    logits = {name: one() for name, one in passes.items()}
    for _ in range(_WARM_UP):
        for one in passes.values():
            one()
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    end = time.perf_counter() + case.seconds
    while len(next(iter(seconds.values()))) < _LEAST or time.perf_counter() < end:
        for name, one in passes.items():
            start = time.perf_counter()
            one()
            seconds[name].append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds, "logits": logits}))


def _given(case: Case) -> tuple[Any, Any]:
    import numpy as np

    from sparsednn.dense.networks import make_network

    graph = make_network(case.network)
    random = np.random.default_rng(1)
    return graph, random.standard_normal((case.batch, *graph.image)).astype(np.float32)


def _placed(case: Case) -> tuple[Any, Any]:
    from sparsednn.comm.alone import Alone
    from sparsednn.dense.runs.placing import place_network

    graph, x = _given(case)
    _, model = place_network(Alone(), graph, None, case.batch, threads=case.threads, training=False)
    return model, x


def _first(logits: Any) -> list[float]:
    found: list[float] = logits[0, :8].tolist()
    return found


def _plans(case: Case) -> dict[str, Callable[[], list[float]]]:
    from sparsednn.dense.concurrency.batch import ConcurrentBatch, make_kernels
    from sparsednn.dense.concurrency.cpu.lanes import LaneExecution
    from sparsednn.dense.concurrency.schedule_file import load_schedule
    from sparsednn.dense.concurrency.tasks import TaskGraph

    model, x = _placed(case)
    kernels = make_kernels(model, case.threads, training=False)
    kernels.parameters_changed()
    tasks = TaskGraph(model.graph, case.batch)

    def one(path: str) -> Callable[[], list[float]]:
        schedule = load_schedule(path, tasks, kernels.device)
        batch = ConcurrentBatch(model, case.batch, LaneExecution(tasks, schedule, kernels))
        return lambda: _first(batch.forward(x))

    return {Path(path).stem: one(path) for path in case.plans}


def _model(case: Case) -> dict[str, Callable[[], list[float]]]:
    model, x = _placed(case)
    batch = model.batch(case.batch)
    return {"model": lambda: _first(batch.forward(x))}


def _pytorch(case: Case) -> dict[str, Callable[[], list[float]]]:
    import torch
    from _cnn_rivals import _module

    from sparsednn.dense.initial import initial_parameters
    from sparsednn.dense.state_dict import to_torch

    torch.set_num_threads(case.threads)
    graph, images = _given(case)
    arrays = to_torch(graph, initial_parameters(graph))
    network = _module(graph, {name: torch.from_numpy(array) for name, array in arrays.items()})
    network.eval()
    x = torch.from_numpy(images)
    if case.how == "pytorch-channels-last":
        x = x.to(memory_format=torch.channels_last)
        network = network.to(memory_format=torch.channels_last)

    def one() -> list[float]:
        with torch.inference_mode():
            return _first(network(x))

    return {case.how: one}


if __name__ == "__main__":
    main()
