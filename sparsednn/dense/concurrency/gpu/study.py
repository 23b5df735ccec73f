"""A network's independent operations side by side on one GPU: profile, plans, trial.

The way of `planning` and `runs.concurrency`, with the device's clock: schedules run as graphs on
streams, the serial ones on one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.dense.concurrency.gpu.kernels import CupyKernels
from sparsednn.dense.concurrency.gpu.measuring import measure_gpu_pairs, measure_gpu_profile
from sparsednn.dense.concurrency.gpu.streams import StreamExecution
from sparsednn.dense.concurrency.profile import Profile
from sparsednn.dense.concurrency.profile_store import ProfileStore
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.planner import Effort, plan
from sparsednn.dense.concurrency.tasks import TaskGraph, gradient_of
from sparsednn.dense.concurrency.timeline import Run
from sparsednn.dense.concurrency.trial import Trial
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import initial_parameters

__all__ = ["gpu_trial", "try_on_gpu"]

_ROUNDS, _PASSES = 9, 10


def gpu_trial(
    graph: OperationGraph,
    *,
    images: int,
    training: bool,
    lanes: int,
    workspace_limit: int | None,
    dtype: str,
    seed: int,
    effort: Effort,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    kernels: CupyKernels | None = None,
    **quickly: Any,
) -> tuple[TaskGraph, Profile, Trial]:
    """Measure a network on the current GPU.

    Parameters
    ----------
    graph, images, training, lanes, workspace_limit, dtype, seed, effort, progress
        As of `runs.concurrency.study_concurrency`; lanes are streams.
    folder
        Where profiles are kept; None: nowhere.
    kernels
        On another device than the current GPU (tests: `twin`).
    quickly
        For `measure_gpu_profile`.

    Raises
    ------
    MissingDependencyError
        Without CuPy, or a GPU.
    UsageError
        If the workspace limit cannot be kept.
    """
    itemsize = np.dtype(dtype).itemsize
    if kernels is None:
        parameters = initial_parameters(graph, seed=seed)
        kernels = CupyKernels(graph, parameters, lanes, itemsize=itemsize)
    tasks = TaskGraph(graph, images, training=training, itemsize=itemsize)
    try:
        store = ProfileStore(kernels.device, folder)
        profile = measure_gpu_profile(tasks, kernels, progress=progress, store=store, **quickly)
        schedules = plan(tasks, profile, workspace_limit=workspace_limit, seed=seed, effort=effort)
        concurrent = [one for one in schedules if not one.name.startswith("serial")]
        if measure_gpu_pairs(tasks, kernels, profile, concurrent, store=store):
            schedules = plan(
                tasks, profile, workspace_limit=workspace_limit, seed=seed, effort=effort
            )
        store.save()
        return tasks, profile, try_on_gpu(tasks, kernels, schedules)
    finally:
        kernels.close()


def try_on_gpu(tasks: TaskGraph, kernels: CupyKernels, schedules: list[Schedule]) -> Trial:
    """Run all schedules in turns, as graphs; the serial ones on one stream."""
    executions = [
        StreamExecution(tasks, one, kernels, streams=not one.name.startswith("serial"))
        for one in schedules
    ]
    random = np.random.default_rng(0)
    ways = (False, True) if tasks.training else (False,)
    try:
        for execution in executions:
            for name in (tasks.graph.input, gradient_of(tasks.output)):
                if name in execution.tensors:
                    array = execution.tensors[name]
                    values = random.standard_normal(array.shape, np.float32)
                    array.set(np.ascontiguousarray(values, array.dtype))
            for _ in range(3):  # eagerly, captured, launched
                _pass(execution)
        times: list[list[float]] = [[] for _ in executions]
        for _ in range(_ROUNDS):
            for execution, found in zip(executions, times, strict=True):
                found.append(sum(execution.seconds(backward=way, passes=_PASSES) for way in ways))
        medians = tuple(statistics.median(found) for found in times)
        runs = tuple(_traced(execution) for execution in executions)
    finally:
        for execution in executions:
            execution.close()
    return Trial(tuple(schedules), medians, _ROUNDS, runs)


def _pass(execution: StreamExecution) -> None:
    execution.forward()
    if execution.tasks.training:
        execution.backward()


def _traced(execution: StreamExecution) -> list[Run]:
    """The way back begins where the way there has ended: the device's clock is of one direction."""
    runs = [Run(*row) for row in execution.traced(backward=False)]
    if execution.tasks.training:
        end = max((run.end for run in runs), default=0.0)
        back = execution.traced(backward=True)
        runs += [Run(item, end + start, end + stop) for item, start, stop in back]
    return runs
