"""Measure what each way to do each task takes on a GPU.

A way is captured some times one behind the other, and the graph timed by events: what the host does
in between, many times longer than a small kernel, is not in it. Tasks of the same shapes are
measured once. How much of its time a task is bound by memory is estimated: the bytes that it has to
bring in that time, over what a copy moves.

Must not know: schedules.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from sparsednn.dense.concurrency.gpu.kernels import CupyKernels
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile, way_key
from sparsednn.dense.concurrency.profile_store import ProfileStore
from sparsednn.dense.concurrency.profiling import task_key
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.tasks import Task, TaskGraph
from sparsednn.dense.concurrency.trial import PlacedChoice, pairs_beside

__all__ = ["measure", "measure_gpu_pairs", "measure_gpu_profile"]

#: Launches of a graph, and calls in it.
_REPEATS: Final = 5
_CALLS: Final = 10


def measure(kernels: CupyKernels, call: Callable[[], None], *, calls: int = _CALLS) -> float:
    """Return the device's seconds of a call, by events: the median of some runs.

    Parameters
    ----------
    call
        Queues work on the current stream: `CupyKernels.stream` 0. It is run once before.
    calls
        How many are captured in a graph; 0: one is queued by itself, with what the host takes.
    """
    cuda, stream = kernels.xp.cuda, kernels.stream(0)
    ready = cuda.Event(disable_timing=True)
    ready.record(cuda.get_current_stream())
    stream.wait_event(ready)
    with stream:
        call()
        run = call
        if calls:
            stream.begin_capture()
            for _ in range(calls):
                call()
            graph = stream.end_capture()
            run = graph.launch
            run()
        times = []
        for _ in range(_REPEATS):
            start, end = cuda.Event(disable_timing=False), cuda.Event(disable_timing=False)
            start.record(stream)
            run()
            end.record(stream)
            end.synchronize()  # so memory may be let go behind the last one
            times.append(float(cuda.get_elapsed_time(start, end)) / 1e3 / max(1, calls))
    return statistics.median(times)


def measure_gpu_profile(
    tasks: TaskGraph,
    kernels: CupyKernels,
    *,
    progress: Callable[[int, int], None] | None = None,
    calls: int = _CALLS,
    copied_bytes: int = 256 << 20,
    store: ProfileStore | None = None,
) -> Profile:
    """Return the times of all ways to do all tasks.

    Parameters
    ----------
    tasks, kernels
        What to measure. Gradients of parameters, and running statistics, are overwritten.
    progress
        Is called with the number of tasks measured and that of all, equal ones counted once.
    calls
        How many of each way are timed together.
    copied_bytes
        Of the copy that tells what memory can do.
    store
        What was measured before on this device; what is new is added. The caller saves it.
    """
    store = ProfileStore(kernels.device) if store is None else store
    keys = {task.name: task_key(tasks, task) for task in tasks}
    first_of = {key: name for name, key in reversed(keys.items())}
    bandwidth = _bandwidth(kernels, copied_bytes)
    found: dict[str, list[Choice]] = {}
    for number, (key, name) in enumerate(first_of.items()):
        task = tasks.tasks[name]
        ways = kernels.algorithms(tasks, task)
        missing = [way for way in ways if store.seconds(way_key(key, way)) is None]
        tensors = _tensors(tasks, task, kernels) if missing else {}
        for way in missing:
            one = _choice(tasks, task, way, tensors, kernels, bandwidth, calls)
            store.put(way_key(key, way), one.seconds)
            store.put_share(way_key(key, way), one.memory_share)
        found[key] = [store.choice(way, way_key(key, way)) for way in ways]
        if progress is not None:
            progress(number + 1, len(first_of))
    choices = {name: found[key] for name, key in keys.items()}
    wait = _wait_seconds(kernels)
    # The gap between kernels of a stream is in their times already.
    return Profile(kernels.device, kernels.lanes, choices, 0.0, wait, pairs=store.pairs, keys=keys)


def measure_gpu_pairs(
    tasks: TaskGraph,
    kernels: CupyKernels,
    profile: Profile,
    schedules: list[Schedule],
    *,
    most: int = 24,
    store: ProfileStore | None = None,
) -> int:
    """Measure how much two tasks slow each other down that schedules put side by side.

    Both are captured as two branches of a graph, each as often as takes about the same time alone.
    Together they take once (they share the device well) to twice (one fills it) the longer of the
    two times: that is taken for the slow-down of both.

    Parameters
    ----------
    profile
        `pairs` is added to.
    schedules
        Of these tasks and times; pairs that are side by side for longest come first.
    most
        Pairs that are looked at.
    store
        Is added to, too.

    Returns
    -------
    How many were new.
    """
    new = 0
    for one, other in pairs_beside(profile, schedules)[:most]:
        pair = profile.key(one[0], one[1].algorithm), profile.key(other[0], other[1].algorithm)
        if pair in profile.pairs:
            continue
        slower = _slowdown(tasks, kernels, one, other)
        for both in (pair, pair[::-1]):
            profile.pairs[both] = slower
            if store is not None:
                store.put_pair(both, slower)
        new += 1
    return new


def _slowdown(
    tasks: TaskGraph, kernels: CupyKernels, one: PlacedChoice, other: PlacedChoice
) -> float:
    cuda = kernels.xp.cuda
    calls = []
    for name, way in (one, other):
        task = tasks.tasks[name]
        workspace = kernels.arena(max(64, way.algorithm.workspace))[: way.algorithm.workspace]
        tensors = _tensors(tasks, task, kernels)
        calls.append(kernels.bind(tasks, task, way.algorithm, 0, tensors, workspace))
    longer = max(one[1].seconds, other[1].seconds)
    if min(one[1].seconds, other[1].seconds) <= 0:
        return 1.0
    counts = [min(100, max(1, round(_CALLS * longer / way.seconds))) for _, way in (one, other)]
    beside = kernels.stream(1)

    def alone(which: int) -> None:
        for _ in range(counts[which]):
            calls[which]()

    def together() -> None:
        here, fork, join = cuda.get_current_stream(), cuda.Event(), cuda.Event()
        fork.record(here)
        beside.wait_event(fork)
        with beside:
            alone(1)
        alone(0)
        join.record(beside)
        here.wait_event(join)

    apart = max(measure(kernels, partial(alone, which), calls=1) for which in (0, 1))
    return min(2.0, max(1.0, measure(kernels, together, calls=1) / apart))


def _choice(
    tasks: TaskGraph, task: Task, way: Algorithm, tensors: dict[str, Any], kernels: CupyKernels,
    bandwidth: float, calls: int,
) -> Choice:  # fmt: skip
    if way.name == "none":
        return Choice(way, 0.0)
    workspace = kernels.arena(max(64, way.workspace))[: way.workspace]
    call = kernels.bind(tasks, task, way, 0, tensors, workspace)
    seconds = measure(kernels, call, calls=calls)
    share = task.bytes / bandwidth / seconds if seconds > 0 else 0.0
    return Choice(way, seconds, min(1.0, share))


def _tensors(tasks: TaskGraph, task: Task, kernels: CupyKernels) -> dict[str, Any]:
    """Memory of a task's own, with random numbers in what it reads."""
    random = np.random.default_rng(0)
    arenas: dict[str, Any] = {}
    for name in (*task.reads, *task.writes):
        root = tasks.tensors[tasks.root(name)[0]]
        if root.name in arenas:
            continue
        values = random.standard_normal(root.bytes // 4 + 1, np.float32).view(np.uint8)
        if root.itemsize in (1, 2):  # numbers of taps
            values[:] = 0
        elif root.itemsize == 8:  # statistics, or float64: positive
            values = (np.abs(random.standard_normal(root.bytes // 8 + 1)) + 0.1).view(np.uint8)
        arenas[root.name] = kernels.xp.asarray(values)
    return {
        name: kernels.view(tasks, name, arenas[tasks.root(name)[0]], 0)
        for name in (*task.reads, *task.writes)
    }


def _bandwidth(kernels: CupyKernels, size: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source, target = kernels.arena(size), kernels.arena(size)
    seconds = measure(kernels, lambda: kernels.xp.copyto(target, source), calls=4)
    return 2 * size / max(seconds, 1e-9)


def _wait_seconds(kernels: CupyKernels) -> float:
    """How much later a kernel begins behind one of another stream than behind one of its own."""
    cuda, copy = kernels.xp.cuda, kernels.xp.copyto
    first, second = kernels.arena(64), kernels.arena(64)
    other = kernels.stream(1)

    def crossing() -> None:
        here = cuda.get_current_stream()
        for to in (other, here):
            event = cuda.Event(disable_timing=True)
            event.record(cuda.get_current_stream() if to is other else other)
            to.wait_event(event)
            with to:
                copy(second, first)

    def staying() -> None:
        copy(second, first)
        copy(second, first)

    return max(0.0, (measure(kernels, crossing) - measure(kernels, staying)) / 2)
