"""Measure what each way to do each task takes on the CPU, alone and beside others.

Tasks of the same shapes are measured once, and what was measured is kept in a file for each device
(`ProfileStore`). Inputs are random numbers: on zeros, some kernels are quicker. Each task has its
tensors just read or written, as it will find them in a pass.

Must not know: schedules.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.cpu.overheads import measure_overheads
from sparsednn.dense.concurrency.kernels import Algorithm, Kernels
from sparsednn.dense.concurrency.profile import Choice, Profile, way_key
from sparsednn.dense.concurrency.profile_store import ProfileStore
from sparsednn.dense.concurrency.tasks import IMAGE, LOSS, Task, TaskGraph
from sparsednn.dense.operations import Pool

__all__ = ["measure_pairs", "measure_profile", "task_key"]

#: Seconds and runs of one measurement: until both are reached, or `_MOST_RUNS`.
_LEAST_SECONDS: Final = 0.003
_LEAST_RUNS: Final = 3
_MOST_RUNS: Final = 25
#: How often a pair runs: whatever else the machine does makes it slower, never quicker.
_TRIES: Final = 2
#: Ways that are this many times slower than the best of a task are not looked at beside others.
_WORTH: Final = 1.5
#: Bytes that the neighbour goes through which is bound by memory.
_STREAM: Final = 64 << 20


def task_key(tasks: TaskGraph, task: Task) -> str:
    """Return what determines the time of a task: what it does, on what shapes, lying how."""
    operations = [tasks.graph.operation(name).as_json() | {"name": ""} for name in task.operations]
    lying = [
        (tasks.tensors[name].shape, tasks.tensors[tasks.root(name)[0]].shape[1])
        for name in (*task.reads, *task.writes)
    ]
    content = [task.action, operations, lying, tasks.itemsize, tasks.training]
    digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return f"{task.action} {operations[0]['kind'] if operations else ''} {digest}"


def measure_profile(
    tasks: TaskGraph,
    kernels: Kernels,
    store: ProfileStore | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Profile:
    """Return the times of all ways to do all tasks.

    Parameters
    ----------
    tasks, kernels
        What to measure. Gradients of parameters are overwritten.
    store
        What was measured before; what is new is added. The caller saves it.
    progress
        Is called with the number of ways measured and that of all.
    """
    store = ProfileStore(kernels.device) if store is None else store
    keys = {task.name: task_key(tasks, task) for task in tasks}
    ways = {task.name: kernels.algorithms(tasks, task) for task in tasks}
    first_of = {key: name for name, key in reversed(keys.items())}
    missing = [
        (name, [way for way in ways[name] if store.seconds(way_key(key, way)) is None])
        for key, name in first_of.items()
    ]
    total, done = sum(len(some) for _, some in missing), 0
    with _as_lane(kernels):
        for name, some in missing:
            if not some:
                continue
            bench = _Bench(tasks, tasks.tasks[name], kernels)
            for way in some:
                store.put(way_key(keys[name], way), bench.seconds(way))
                done += 1
                if progress is not None:
                    progress(done, total)
        _measure_shares(tasks, kernels, store, first_of, ways)
    choices = {
        name: [store.choice(way, way_key(keys[name], way)) for way in some]
        for name, some in ways.items()
    }
    launch, wait = measure_overheads()
    return Profile(
        kernels.device, kernels.lanes, choices, launch, wait, pairs=store.pairs, keys=keys
    )


def measure_pairs(
    tasks: TaskGraph,
    kernels: Kernels,
    profile: Profile,
    wanted: Iterable[tuple[tuple[str, Choice], tuple[str, Choice]]],
    store: ProfileStore | None = None,
) -> int:
    """Measure how tasks slow each other down; returns how many pairs were new.

    Both run over and over side by side; what counts is the time of each run meanwhile.
    """
    found = 0
    for (one, mine), (other, its) in wanted:
        pair = profile.key(one, mine.algorithm), profile.key(other, its.algorithm)
        if pair in profile.pairs or mine.seconds <= 0 or its.seconds <= 0:
            continue
        first = _Bench(tasks, tasks.tasks[one], kernels).call(mine.algorithm)
        second = _Bench(tasks, tasks.tasks[other], kernels).call(its.algorithm)
        with _as_lane(kernels):
            alone = _median(first), _median(second)
            tries = [_side_by_side(kernels, first, second) for _ in range(_TRIES)]
        together = min(own for own, _ in tries), min(its for _, its in tries)
        profile.pairs[pair] = max(1.0, together[0] / alone[0])
        profile.pairs[pair[1], pair[0]] = max(1.0, together[1] / alone[1])
        if store is not None:
            store.put_pair(pair, profile.pairs[pair])
            store.put_pair((pair[1], pair[0]), profile.pairs[pair[1], pair[0]])
        found += 1
    return found


@contextmanager
def _as_lane(kernels: Kernels) -> Iterator[None]:
    """The calling thread as a lane's."""
    before = getattr(kernels, "enter_lane", lambda: 1)()
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        getattr(kernels, "leave_lane", lambda before: None)(before)


class _Bench:
    """A task with memory of its own."""

    def __init__(self, tasks: TaskGraph, task: Task, kernels: Kernels) -> None:
        self._tasks, self._task, self._kernels = tasks, task, kernels
        random = np.random.default_rng(0)
        self._tensors: dict[str, Any] = {}
        arenas: dict[str, Any] = {}
        for name in (*task.reads, *task.writes):
            root = tasks.root(name)[0]
            if root not in arenas:
                arenas[root] = kernels.arena(max(64, tasks.tensors[root].bytes))
            self._tensors[name] = kernels.view(tasks, name, arenas[root], 0)
        for name in task.reads:
            _fill(self._tensors[name], tasks, task, random)

    def call(self, way: Algorithm) -> Callable[[], None]:
        """Return a call of the first part."""
        if self._task.action in (IMAGE, LOSS):
            return _nothing
        workspace = self._kernels.arena(max(64, way.workspace))
        return self._kernels.bind(
            self._tasks, self._task, way, 0, self._tensors, workspace[: way.workspace]
        )

    def seconds(self, way: Algorithm) -> float:
        """Measure a way."""
        if self._task.action in (IMAGE, LOSS):
            return 0.0
        return _median(self.call(way))


def _fill(array: Any, tasks: TaskGraph, task: Task, random: np.random.Generator) -> None:
    if array.dtype.kind == "u":  # numbers of taps
        operation = tasks.operation(task)
        taps = prod(operation.taps) if isinstance(operation, Pool) else 1
        array[...] = random.integers(0, taps, array.shape)
    else:
        # Deviations of statistics are positive; so are half of the activations.
        values = random.standard_normal(array.shape, np.float32)
        array[...] = np.abs(values) + 0.1 if array.ndim == 2 else values


def _median(call: Callable[[], None]) -> float:
    call()
    times: list[float] = []
    total = 0.0
    while len(times) < _MOST_RUNS and (len(times) < _LEAST_RUNS or total < _LEAST_SECONDS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        total += times[-1]
    return statistics.median(times)


def _side_by_side(
    kernels: Kernels, first: Callable[[], None], second: Callable[[], None]
) -> tuple[float, float]:
    """Median seconds of both while the other one runs."""
    ready, stop = threading.Barrier(2), threading.Event()
    other: list[float] = []

    def beside() -> None:
        with _as_lane(kernels):
            second()
            ready.wait()
            while not stop.is_set():
                start = time.perf_counter()
                second()
                other.append(time.perf_counter() - start)

    thread = threading.Thread(target=beside, daemon=True)
    thread.start()
    ready.wait()
    own = _median(first)
    while len(other) < _LEAST_RUNS:
        first()
    stop.set()
    thread.join()
    return own, statistics.median(other)


def _measure_shares(
    tasks: TaskGraph,
    kernels: Kernels,
    store: ProfileStore,
    first_of: dict[str, str],
    ways: dict[str, tuple[Algorithm, ...]],
) -> None:
    """Find how much each task is slowed down by one that is bound by memory."""
    if kernels.lanes < 2:
        return
    stream: Callable[[], None] | None = None
    for key, name in first_of.items():
        times = {way: store.seconds(way_key(key, way)) or 0.0 for way in ways[name]}
        best = min(time * way.parts for way, time in times.items())
        for way, alone in times.items():
            worth = alone > 0 and alone * way.parts <= _WORTH * best
            if not worth or store.has_share(way_key(key, way)):
                continue
            stream = stream or _stream()
            call = _Bench(tasks, tasks.tasks[name], kernels).call(way)
            slowed, _ = _side_by_side(kernels, call, stream)
            store.put_share(way_key(key, way), min(1.0, max(0.0, slowed / alone - 1.0)))


def _stream() -> Callable[[], None]:
    """A call that does nothing but go through memory."""
    source: NDArray[np.float32] = np.ones(_STREAM // 4, np.float32)
    target = np.zeros_like(source)
    pieces = [slice(at, at + (1 << 18)) for at in range(0, source.size, 1 << 18)]
    at = 0

    def call() -> None:
        nonlocal at
        np.copyto(target[pieces[at]], source[pieces[at]])
        at = (at + 1) % len(pieces)

    return call


def _nothing() -> None:
    return
