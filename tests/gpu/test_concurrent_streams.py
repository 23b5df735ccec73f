"""Schedules on streams: in any order that events allow, results are those of one, bit by bit."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import networkx as nx
import numpy as np
import pytest
from gpu.late_cupy import LateCudnn, LateCupy, array_at
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.comm import Alone
from sparsednn.dense.concurrency.gpu import kernels as kernels_module
from sparsednn.dense.concurrency.gpu.kernels import CupyKernels
from sparsednn.dense.concurrency.gpu.measuring import measure_gpu_pairs, measure_gpu_profile
from sparsednn.dense.concurrency.gpu.products import WORKSPACE, CublasProducts
from sparsednn.dense.concurrency.gpu.streams import StreamExecution, needed_waits
from sparsednn.dense.concurrency.gpu.twin import TwinCupy, TwinProducts
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.schedule import Placed, Schedule
from sparsednn.dense.concurrency.tasks import TaskGraph, gradient_of
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, make_placement
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.local.choose import make_backend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks.pathnet import pathnet
from sparsednn.dense.operations import Concatenate, Convolution, FullyConnected, Input
from sparsednn.errors import (
    DeviceMemoryError,
    MissingDependencyError,
    ShapeError,
    SparseDNNError,
    UsageError,
)
from tiny_network import random_batch, tiny_network

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
IMAGES, LANES = 3, 3


def parameters_of(graph: OperationGraph, dtype: Any) -> dict[str, Any]:
    """Initial ones, with running statistics that are not trivial."""
    random = np.random.default_rng(3)
    found = initial_parameters(graph, 1, dtype)
    for name, values in found.items():
        if "running" in name or values.ndim == 1:
            values[...] = random.uniform(0.5, 1.5, values.shape)
    return found


def make_kernels(
    graph: OperationGraph, xp: Any, *, itemsize: int = 8, cudnn: Any = None
) -> CupyKernels:
    parameters = parameters_of(graph, f"float{8 * itemsize}")
    return CupyKernels(
        graph, parameters, LANES, itemsize=itemsize, xp=xp, cudnn=cudnn, products=TwinProducts(xp)
    )


def make_schedule(
    tasks: TaskGraph, kernels: CupyKernels, seed: int, *, way: int | None = None, lanes: int = LANES
) -> Schedule:
    """Any order, lanes, ways and memory that are safe.

    `way`: which of each task's ways, None: any.
    """
    random = np.random.default_rng(seed)
    order, waiting = [], {task.name: set(tasks.waits.predecessors(task.name)) for task in tasks}
    while waiting:
        ready = [name for name, waits in waiting.items() if not waits]
        # Mostly the first, so that branches are finished and their memory is free.
        name = ready[0] if random.random() < 0.5 else ready[int(random.integers(len(ready)))]
        order.append(name)
        del waiting[name]
        for waits in waiting.values():
            waits.discard(name)
    number = {name: at for at, name in enumerate(order)}
    items: list[Placed] = []
    before: list[set[int]] = []
    for at, name in enumerate(order):
        lane = int(random.integers(lanes))
        waits = {number[one] for one in tasks.waits.predecessors(name)}
        if at and random.random() < 0.2:
            waits.add(int(random.integers(at)))  # as for the sake of memory
        ways = kernels.algorithms(tasks, tasks.tasks[name])
        chosen = ways[int(random.integers(len(ways))) if way is None else way % len(ways)]
        others = tuple(sorted(one for one in waits if items[one].lane != lane))
        direct = waits | {one for one in range(at) if items[one].lane == lane}
        before.append(direct.union(*(before[one] for one in direct)))
        items.append(Placed(name, 0, chosen, lane, float(at), at + 1.5, waits=others))
    offsets, spaces, size = _placed(tasks, items, before)
    items = [replace(item, workspace=spaces.get(at, -1)) for at, item in enumerate(items)]
    return Schedule(
        tuple(items), kernels.lanes, offsets, size, 0, kernels.device, tasks.graph.identity,
        tasks.images, tasks.training, tasks.itemsize, "random",
    )  # fmt: skip


def _placed(
    tasks: TaskGraph, items: list[Placed], before: list[set[int]]
) -> tuple[dict[str, int], dict[int, int], int]:
    """Where tensors and workspaces lie: two share memory if one's users are before the other's."""
    users: dict[Any, set[int]] = {}
    sizes: dict[Any, int] = {}
    for at, item in enumerate(items):
        task = tasks.tasks[item.task]
        for name in (*task.reads, *task.writes):
            root = tasks.root(name)[0]
            users.setdefault(root, set()).add(at)
            sizes[root] = tasks.tensors[root].bytes
        if item.algorithm.workspace:
            users[at], sizes[at] = {at}, item.algorithm.workspace
    output = tasks.root(tasks.output)[0]

    def apart(one: Any, other: Any) -> bool:
        if one == output:  # is looked at in the end
            return False
        return all(first in before[last] for first in users[one] for last in users[other])

    found: dict[Any, int] = {}
    for block in sorted(sizes, key=lambda block: -sizes[block]):
        taken = sorted(
            (found[other], found[other] + sizes[other])
            for other in found
            if not apart(block, other) and not apart(other, block)
        )
        at = 0
        for first, last in taken:
            if at + sizes[block] <= first:
                break
            at = max(at, -(-last // 64) * 64)
        found[block] = at
    offsets = {block: at for block, at in found.items() if isinstance(block, str)}
    spaces = {block: at for block, at in found.items() if isinstance(block, int)}
    return offsets, spaces, max(found[block] + sizes[block] for block in found)


def run(execution: StreamExecution, x: Any, passes: int = 1) -> dict[str, Any]:
    """Logits, gradients and buffers of the last of some passes; those before see other images."""
    kernels, tasks = execution.kernels, execution.tasks
    found: dict[str, Any] = {}
    for number in range(passes):
        execution.tensors[tasks.graph.input].set(x if number + 1 == passes else x[::-1].copy() + 1)
        execution.forward()
        logits = kernels.xp.asnumpy(execution.tensors[tasks.output])
        found["logits"] = logits
        if tasks.training:
            execution.tensors[gradient_of(tasks.output)].set(np.tanh(logits))
            execution.backward()
            found |= {k: kernels.xp.asnumpy(v) for k, v in kernels.gradients.items()}
            found |= {f"after {k}": kernels.xp.asnumpy(v) for k, v in kernels.parameters.items()}
    return found


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert np.isfinite(values).all(), name
        assert np.array_equal(found[name], values), name


def oracle(graph: OperationGraph, x: Any, *, training: bool) -> dict[str, Any]:
    """The same by the layers of a dense model."""
    placements = {each: make_placement(Grid(), "data") for each in products(graph)}
    model = DenseModel(Alone(), graph, placements, make_backend("reference"), dtype=np.float64)
    given = parameters_of(graph, np.float64)
    for trained in (True, False):
        for name, tile in model.parameters.tiles(trained=trained):
            tile[...] = given[name]
    batch = model.batch(len(x))
    logits = batch.forward(x, training=training).copy()
    found = {"logits": logits[:, :, None, None]}
    if training:
        batch.backward(np.tanh(logits))
        store = model.parameters
        found |= dict(store.gathered(store.gradient) or {})
        found |= {f"after {k}": v for k, v in store.tiles(trained=False)}
    model.free()
    return found


# -- the kernels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("way", range(5))
def test_kernels_compute_what_layers_do(training: bool, fuse: bool, way: int) -> None:
    graph, xp = tiny_network(), TwinCupy()
    x, _ = random_batch(graph, IMAGES, 7)
    cudnn = LateCudnn(xp) if way < 2 else None
    kernels = make_kernels(graph, xp, cudnn=cudnn)
    tasks = TaskGraph(graph, IMAGES, training=training, itemsize=8, fuse=fuse)
    schedule = make_schedule(tasks, kernels, 0, way=way)
    found = run(StreamExecution(tasks, schedule, kernels), x)
    for name, values in oracle(graph, x, training=training).items():
        scale = max(1e-3, float(np.abs(values).max()))
        np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-11 * scale, err_msg=name)
    if cudnn is not None:
        kinds = ("forward", "input", "kernel") if training else ("forward",)
        assert cudnn.executed == {(kind, way * 2) for kind in kinds}


def test_ways_have_workspace_and_names_of_their_own() -> None:
    graph, xp = tiny_network(), TwinCupy()
    kernels = make_kernels(graph, xp, cudnn=LateCudnn(xp))
    tasks = TaskGraph(graph, 8, training=True, itemsize=8)
    for task in tasks:
        ways = kernels.algorithms(tasks, task)
        assert len({way.name for way in ways}) == len(ways) >= 1
        assert {way.parts for way in ways} == {1}
    by_name = {way.name: way for way in kernels.algorithms(tasks, tasks.tasks["b"])}
    assert list(by_name) == [
        "cudnn eng0", "cudnn eng2_k1=3", "columns", "columns of 2 images", "columns of 1 image"
    ]  # fmt: skip
    assert by_name["cudnn eng2_k1=3"].workspace == 256
    assert by_name["columns of 1 image"].workspace < by_name["columns"].workspace / 7
    assert kernels.plans is not None
    assert "Deselecting" in kernels.plans.refused[0][1]
    refusing = make_kernels(graph, xp, cudnn=LateCudnn(xp, refuses=True))
    assert refusing.algorithms(tasks, tasks.tasks["a"]) == (Algorithm("product"),)


def test_cudnn_has_aligned_operands() -> None:
    """Its engines may load 16 bytes at a time; channels of a larger tensor may lie between."""
    graph = OperationGraph("odd")
    graph.add(Input("image", (2, 5, 5)))
    ends = [graph.add(Convolution(name, 1, (1, 1)), "image") for name in ("first", "second")]
    graph.add(FullyConnected("fc", 3), graph.add(Concatenate("both"), *ends))
    xp = TwinCupy()
    kernels = make_kernels(graph.finish(), xp, itemsize=4, cudnn=LateCudnn(xp))
    tasks = TaskGraph(graph, 2)
    first, second = (kernels.algorithms(tasks, tasks.tasks[name]) for name in ("first", "second"))
    assert first[0].name == "cudnn eng0"
    assert [way.name for way in second] == ["product"]


def test_cupy_has_the_names_that_are_used() -> None:
    cupy = pytest.importorskip("cupy")
    for name in (
        "add", "asarray", "asnumpy", "copyto", "divide", "empty", "equal", "greater", "isnan",
        "logical_and", "logical_or", "maximum", "multiply", "sqrt", "subtract", "zeros",
        "lib.stride_tricks.as_strided", "cuda.Event", "cuda.MemoryPool.malloc", "cuda.Stream",
        "cuda.Stream.begin_capture", "cuda.Stream.end_capture", "cuda.Stream.wait_event",
        "cuda.Event.record", "cuda.Event.synchronize", "cuda.Graph.launch",
        "cuda.get_current_stream", "cuda.get_elapsed_time", "cuda.using_allocator",
        "cuda.runtime.getDeviceProperties", "cuda.MemoryPointer.mem", "ndarray.set",
        "cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor", "RawKernel.attributes",
    ):  # fmt: skip
        found = cupy
        for part in name.split("."):
            found = getattr(found, part)


def test_kernels_renew_what_is_made_of_parameters() -> None:
    graph, xp = tiny_network(), LateCupy(0)
    x, _ = random_batch(graph, IMAGES, 7)
    kernels = make_kernels(graph, xp)
    tasks = TaskGraph(graph, IMAGES, itemsize=8)
    execution = StreamExecution(tasks, make_schedule(tasks, kernels, 0), kernels)
    before = run(execution, x, passes=3)["logits"]
    kernels.parameters["bn1.weight"].set(2 * xp.asnumpy(kernels.parameters["bn1.weight"]))
    kernels.parameters_changed()
    after = run(execution, x)["logits"]
    assert not np.allclose(before, after)
    fresh = make_kernels(graph, xp)
    fresh.parameters["bn1.weight"].set(2 * xp.asnumpy(fresh.parameters["bn1.weight"]))
    again = run(StreamExecution(tasks, execution.schedule, fresh), x)["logits"]
    assert np.array_equal(after, again)


# -- any order that events allow -------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_streams_give_what_one_stream_gives(training: bool, graphs: bool, seed: int | None) -> None:
    graph = tiny_network()
    x, _ = random_batch(graph, IMAGES, 7)
    x = x.astype(np.float32)
    tasks = TaskGraph(graph, IMAGES, training=training)
    twin = TwinCupy()
    serial = make_kernels(graph, twin, itemsize=4, cudnn=LateCudnn(twin))
    schedule = make_schedule(tasks, serial, seed or 0)
    assert len({item.lane for item in schedule.items}) > 1
    expected = run(StreamExecution(tasks, schedule, serial, streams=False, graphs=False), x, 3)
    late = LateCupy(seed)
    cudnn = LateCudnn(late)
    kernels = make_kernels(graph, late, itemsize=4, cudnn=cudnn)
    execution = StreamExecution(tasks, schedule, kernels, graphs=graphs)
    assert_same(run(execution, x, 3), expected)
    assert late.launches == (2 * (1 + training) if graphs else 0)
    assert late.late > 50
    assert cudnn.handles <= LANES + 1
    assert execution.held_bytes == 0
    execution.close()
    kernels.close()
    assert cudnn.handles == 0


def test_wide_networks_and_reused_memory() -> None:
    """Many modules side by side, in an arena that is smaller than all tensors together."""
    graph = pathnet((2, 8, 8), 5, layers=3, modules=6)
    x, _ = random_batch(graph, 2, 1)
    tasks = TaskGraph(graph, 2, training=True, itemsize=8)
    twin = TwinCupy()
    serial = make_kernels(graph, twin)
    for seed in range(4):
        schedule = make_schedule(tasks, serial, seed)
        once = sum(root.bytes for root in tasks.roots)
        once += sum(item.algorithm.workspace for item in schedule.items)
        assert schedule.arena_bytes < 0.8 * once
        expected = run(StreamExecution(tasks, schedule, serial, streams=False), x)
        kernels = make_kernels(graph, LateCupy(seed))
        assert_same(run(StreamExecution(tasks, schedule, kernels), x), expected)


@pytest.mark.parametrize("graphs", [False, True])
def test_a_missing_wait_is_noticed(graphs: bool) -> None:
    """Each wait that does not follow from others is dropped in turn: some order shows it."""
    graph = tiny_network()
    x, _ = random_batch(graph, IMAGES, 7)
    tasks = TaskGraph(graph, IMAGES, itemsize=8)
    twin = TwinCupy()
    serial = make_kernels(graph, twin)
    schedule = make_schedule(tasks, serial, 1, way=-1)
    expected = run(StreamExecution(tasks, schedule, serial, streams=False), x, 2)
    program = [(at, item.lane, item.waits) for at, item in enumerate(schedule.items)]
    waits = [(item, wait) for item, some in needed_waits(program).items() for wait in some]
    assert len(waits) > 3

    def shows(item: int, wait: int) -> bool:
        items = list(schedule.items)
        left = tuple(each for each in items[item].waits if each != wait)
        items[item] = replace(items[item], waits=left)
        for seed in (None, *range(12)):
            kernels = make_kernels(graph, LateCupy(seed))
            broken = replace(schedule, items=tuple(items))
            execution = StreamExecution(tasks, broken, kernels, graphs=graphs)
            found = run(execution, x, 2)
            if not np.array_equal(found["logits"], expected["logits"]):
                return True
        return False

    unnoticed = [(item, wait) for item, wait in waits if not shows(item, wait)]
    for item, wait in unnoticed:  # of memory alone: few orders show these
        pair = schedule.items[wait].task, schedule.items[item].task
        nothing = pair[0] == graph.input  # which the caller has done
        assert nothing or not nx.has_path(tasks.waits, *pair), pair
    assert len(unnoticed) < len(waits) / 2


def test_memory_that_is_given_too_early_is_noticed() -> None:
    """What is read together lies in one place, or a plan's workspace lies in what it reads."""
    graph = tiny_network()
    x, _ = random_batch(graph, IMAGES, 7)
    tasks = TaskGraph(graph, IMAGES, itemsize=8)
    twin = TwinCupy()
    serial = make_kernels(graph, twin, cudnn=LateCudnn(twin))
    schedule = make_schedule(tasks, serial, 1, way=1)
    expected = run(StreamExecution(tasks, schedule, serial), x)["logits"]

    def differs(broken: Schedule) -> bool:
        late = LateCupy(0)
        kernels = make_kernels(graph, late, cudnn=LateCudnn(late))
        found = run(StreamExecution(tasks, broken, kernels), x)["logits"]
        return not np.array_equal(found, expected)

    assert not differs(schedule)
    read = [tasks.root(name)[0] for name in tasks.tasks["sum"].reads]
    assert differs(
        replace(schedule, offsets=schedule.offsets | {read[0]: schedule.offsets[read[1]]})
    )
    for at, item in enumerate(schedule.items):
        if item.task == "b":
            over = replace(item, workspace=schedule.offsets[tasks.tasks["b"].reads[0]])
            items = (*schedule.items[:at], over, *schedule.items[at + 1 :])
    assert differs(replace(schedule, items=items))


@given(st.data())
def test_waits_that_are_left_out_follow_from_others(data: Any) -> None:
    lanes, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 14))
    program = []
    for at in range(size):
        lane = data.draw(st.integers(0, lanes - 1))
        earlier = [one for one, other, _ in program if other != lane]
        waits = data.draw(st.lists(st.sampled_from(earlier), unique=True)) if earlier else []
        program.append((at, lane, tuple(waits)))

    def reach(waits: dict[int, tuple[int, ...]]) -> list[set[int]]:
        before: list[set[int]] = []
        for at, lane, _ in program:
            direct = set(waits[at])
            direct |= {one for one, other, _ in program[:at] if other == lane}
            before.append(direct.union(*(before[one] for one in direct)))
        return before

    whole = {at: waits for at, _, waits in program}
    needed = needed_waits(program)
    assert reach(needed) == reach(whole)
    for at, some in needed.items():
        assert set(some) <= set(whole[at])
        for wait in some:  # none of them follows from the rest
            less = needed | {at: tuple(one for one in some if one != wait)}
            assert wait not in reach(less)[at]


# -- switches, errors ------------------------------------------------------------------------------


def test_all_four_ways_to_run_agree_and_are_timed() -> None:
    graph = tiny_network()
    x, _ = random_batch(graph, IMAGES, 7)
    tasks = TaskGraph(graph, IMAGES, itemsize=8)
    results = []
    for streams in (False, True):
        for graphs in (False, True):
            kernels = make_kernels(graph, LateCupy(5))
            schedule = make_schedule(tasks, kernels, 2, way=0)
            execution = StreamExecution(tasks, schedule, kernels, streams=streams, graphs=graphs)
            results.append(run(execution, x, 2))
            assert execution.seconds(passes=2) > 0
            moments = execution.traced(backward=False)
            assert sorted(index for index, _, _ in moments) == list(range(len(schedule.items)))
            assert all(start <= end for _, start, end in moments)
            assert (execution.events[0] > 0) == streams
    for found in results[1:]:
        assert_same(found, results[0])


def test_profiles_are_measured_by_events() -> None:
    graph, xp = tiny_network(), LateCupy(1)
    kernels = make_kernels(graph, xp, cudnn=LateCudnn(xp))
    tasks = TaskGraph(graph, 2, training=True, itemsize=8)
    told: list[tuple[int, int]] = []
    profile = measure_gpu_profile(
        tasks, kernels, progress=lambda *row: told.append(row), copied_bytes=1 << 12
    )
    assert set(profile.choices) == set(tasks.tasks)
    assert told[-1][0] == told[-1][1]
    for task in tasks:
        ways = kernels.algorithms(tasks, task)
        assert tuple(one.algorithm for one in profile.choices[task.name]) == ways
        assert all(0 <= one.memory_share <= 1 for one in profile.choices[task.name])
    concurrent = make_schedule(tasks, kernels, 0)
    new = measure_gpu_pairs(tasks, kernels, profile, [concurrent], most=3)
    assert 0 < new <= 3
    assert len(profile.pairs) in (2 * new, 2 * new - 1)
    assert all(1.0 <= slower <= 2.0 for slower in profile.pairs.values())
    assert not measure_gpu_pairs(tasks, kernels, profile, [concurrent], most=new)


def test_plans_of_something_else_are_refused() -> None:
    graph = tiny_network()
    kernels = make_kernels(graph, TwinCupy())
    tasks = TaskGraph(graph, IMAGES, itemsize=8)
    schedule = make_schedule(tasks, kernels, 0, way=0)
    for change, text in (
        ({"lanes": 2}, "lanes 2, here it is 3"),
        ({"device": "other"}, "device other"),
        ({"images": 4}, "images 4"),
        ({"training": True}, "training True"),
        ({"itemsize": 4}, "itemsize 4"),
        ({"network": "x"}, "network x"),
    ):
        with pytest.raises(UsageError, match=text):
            StreamExecution(tasks, replace(schedule, **change), kernels)
    items = (replace(schedule.items[0], waits=(1,)), *schedule.items[1:])
    with pytest.raises(UsageError, match=r"item 0 .* waits for item 1, which is not in front"):
        StreamExecution(tasks, replace(schedule, items=items), kernels)
    items = tuple(replace(one, algorithm=Algorithm("winograd")) for one in schedule.items)
    with pytest.raises(UsageError, match="there is no way 'winograd' on NumPy twin"):
        StreamExecution(tasks, replace(schedule, items=items), kernels)
    with pytest.raises(UsageError, match="0 lanes"):
        CupyKernels(graph, {}, 0, xp=TwinCupy())


def test_captures_obey_the_rules_of_cuda() -> None:
    """What the twin would let pass, the device would not."""
    xp = TwinCupy()
    first, second = xp.cuda.Stream(non_blocking=True), xp.cuda.Stream(non_blocking=True)
    array = xp.zeros((1,), np.float32)
    outside = xp.cuda.Event()
    outside.record(second)
    first.begin_capture()
    with pytest.raises(SparseDNNError, match="allocated within a capture"):
        xp.empty((1,), np.float32)
    with pytest.raises(SparseDNNError, match="outside of the capture"):
        first.wait_event(outside)
    event = xp.cuda.Event()
    event.record(first)
    second.wait_event(event)
    with second:
        xp.add(array, 1.0, out=array)
    with pytest.raises(SparseDNNError, match="before all its streams are joined"):
        first.end_capture()
    with pytest.raises(SparseDNNError, match="without 'out' allocates"):
        xp.add(array, array)


def test_gpu_is_needed() -> None:
    cupy = pytest.importorskip("cupy")
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        devices = 0
    if devices:
        pytest.skip("there is a GPU")
    graph = tiny_network()
    with pytest.raises(MissingDependencyError, match=r"^no usable NVIDIA GPU was found") as caught:
        CupyKernels(graph, parameters_of(graph, np.float32))
    assert "\n" not in str(caught.value)


def test_frontend_without_cudnn_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def version() -> int:
        raise RuntimeError("Unable to find symbol cudnnGetVersion")

    monkeypatch.setattr(kernels_module, "find_spec", lambda name: None)
    assert kernels_module._usable_cudnn() is None
    monkeypatch.setattr(kernels_module, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "cudnn", SimpleNamespace(backend_version=version))
    with pytest.raises(MissingDependencyError, match=r"cannot use cuDNN .Unable to find symbol"):
        kernels_module._usable_cudnn()


def test_too_little_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = make_kernels(tiny_network(), TwinCupy())

    def empty(shape: Any, dtype: Any) -> Any:
        raise MemoryError("Out of memory allocating 64 bytes")

    monkeypatch.setattr(kernels.xp, "empty", empty)
    with pytest.raises(DeviceMemoryError, match="64 bytes are wanted in one piece") as caught:
        kernels.arena(64)
    assert caught.value.wanted == 64


def test_what_a_capture_allocates_is_kept() -> None:
    """A library that takes memory within a capture gets what nobody else will have."""
    graph, xp = tiny_network(), TwinCupy()
    x, _ = random_batch(graph, IMAGES, 7)

    @contextmanager
    def using_allocator(allocate: Any) -> Any:
        assert allocate(500).mem.size == 512
        yield

    xp.cuda.using_allocator = using_allocator
    xp.cuda.MemoryPool = lambda: SimpleNamespace(
        malloc=lambda size: SimpleNamespace(mem=SimpleNamespace(size=512))
    )
    kernels = make_kernels(graph, xp)
    tasks = TaskGraph(graph, IMAGES, training=True, itemsize=8)
    execution = StreamExecution(tasks, make_schedule(tasks, kernels, 0, way=0), kernels)
    run(execution, x)
    assert execution.held_bytes == 0
    run(execution, x, 3)
    assert execution.held_bytes == 2 * 512
    execution.close()
    execution.close()


# -- cuBLAS ----------------------------------------------------------------------------------------


class FakeCublas:
    """Computes column by column, from addresses, as the library does."""

    def __init__(self) -> None:
        self.handles: dict[int, dict[str, Any]] = {}

    def cublasCreate_v2(self, handle: Any) -> int:  # noqa: N802 - cuBLAS's name
        handle._obj.value = len(self.handles) + 1000
        self.handles[handle._obj.value] = {}
        return 0

    def cublasDestroy_v2(self, handle: Any) -> int:  # noqa: N802 - as above
        del self.handles[handle.value]
        return 0

    def cublasSetStream_v2(self, handle: Any, stream: Any) -> int:  # noqa: N802 - as above
        self.handles[handle.value] = {"stream": stream.value or 0}
        return 0

    def cublasSetWorkspace_v2(self, handle: Any, address: Any, size: Any) -> int:  # noqa: N802
        assert address.value % 256 == 0 or size.value == WORKSPACE
        assert "stream" in self.handles[handle.value]  # setting the stream resets it
        self.handles[handle.value]["workspace"] = address.value
        return 0

    def cublasSgemmStridedBatched(self, *arguments: Any) -> int:  # noqa: N802 - as above
        return self._gemm(np.float32, ctypes.c_float, *arguments)

    def cublasDgemmStridedBatched(self, *arguments: Any) -> int:  # noqa: N802 - as above
        return self._gemm(np.float64, ctypes.c_double, *arguments)

    def _gemm(self, dtype: Any, scalar: Any, handle: Any, *rest: Any) -> int:
        assert "workspace" in self.handles[handle.value]
        how_a, how_b, m, n, k = (one.value for one in rest[:5])
        alpha, a, lda, step_a, b, ldb, step_b, beta, c, ldc, step_c, batch = rest[5:]
        assert isinstance(alpha._obj, scalar)

        def matrices(address: Any, lead: Any, step: Any, rows: int, columns: int) -> Any:
            assert lead.value >= max(1, rows)
            return array_at(
                address.value, (batch.value, rows, columns), (step.value, 1, lead.value), dtype
            )

        left = matrices(a, lda, step_a, *((k, m) if how_a else (m, k)))
        right = matrices(b, ldb, step_b, *((n, k) if how_b else (k, n)))
        out = matrices(c, ldc, step_c, m, n)
        left = left.swapaxes(1, 2) if how_a else left
        right = right.swapaxes(1, 2) if how_b else right
        out[...] = alpha._obj.value * (left @ right) + beta._obj.value * (
            out if beta._obj.value else 0
        )
        return 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [(1, 3, 4, 5), (3, 2, 1, 4), (2, 1, 4, 3), (4, 3, 5, 1)])
def test_products_by_cublas(dtype: Any, sizes: tuple[int, ...]) -> None:
    batch, m, n, k = sizes
    random = np.random.default_rng(0)
    xp = TwinCupy()
    library = FakeCublas()
    mine = CublasProducts(xp, library)
    a = xp.asarray(random.standard_normal((batch, m + 1, k)).astype(dtype))[:, :m]
    b = xp.asarray(random.standard_normal((batch, k, n)).astype(dtype))
    turned_a = xp.asarray(np.ascontiguousarray(a.inside.swapaxes(1, 2))).swapaxes(1, 2)
    turned_b = xp.asarray(np.ascontiguousarray(b.inside.swapaxes(1, 2))).swapaxes(1, 2)
    space = xp.zeros((batch, m + 2, n), dtype)
    out = space[:, 1 : m + 1]
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    for left in (a, turned_a, a[0], turned_a[0]):
        for right in (b, turned_b, b[0], turned_b[0]):
            expected = np.zeros(out.shape, dtype) + left.inside @ right.inside
            mine.run(left, right, out)
            np.testing.assert_allclose(out.inside, expected, atol=tolerance)
            mine.run(left, right, out, accumulate=True)
            np.testing.assert_allclose(out.inside, 2 * expected, atol=tolerance)
    assert not space.inside[:, [0, m + 1]].any()
    with xp.cuda.Stream(non_blocking=True):
        mine.run(a, b, out)
    assert [one["stream"] for one in library.handles.values()] == [0, 1]
    assert len({one["workspace"] for one in library.handles.values()}) == 2
    with pytest.raises(ShapeError, match="product"):
        mine.run(a, b, xp.zeros((batch, m, n + 1), dtype))
    gaps = xp.zeros((2, 4, 6), dtype)[:, :, ::2]
    with pytest.raises(ShapeError, match="neither rows nor columns"):
        mine.run(gaps, xp.zeros((3, 5), dtype), xp.zeros((2, 4, 5), dtype))
    mine.close()
    assert not library.handles


def test_cublas_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", SimpleNamespace())
    with pytest.raises(MissingDependencyError, match="cuBLAS cannot be loaded") as caught:
        CublasProducts(TwinCupy())
    assert "\n" not in str(caught.value)


def test_whole_networks_by_cublas() -> None:
    """Every product that a network makes is one that cuBLAS can do."""
    graph = tiny_network()
    x, _ = random_batch(graph, IMAGES, 7)
    xp = TwinCupy()
    kernels = CupyKernels(
        graph, parameters_of(graph, np.float64), LANES, itemsize=8, xp=xp,
        products=CublasProducts(xp, FakeCublas()),
    )  # fmt: skip
    other = make_kernels(graph, TwinCupy())
    tasks = TaskGraph(graph, IMAGES, training=True, itemsize=8)
    for way in range(3):
        schedule = make_schedule(tasks, kernels, 0, way=way)
        found = run(StreamExecution(tasks, schedule, kernels, graphs=False), x)
        expected = run(StreamExecution(tasks, schedule, other, graphs=False), x)
        for name, values in expected.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-9, atol=1e-10, err_msg=name)


# -- a real GPU, and the benchmark -----------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("training", [False, True])
def test_streams_on_a_device(training: bool) -> None:
    cupy = pytest.importorskip("cupy")
    graph = tiny_network()
    x, _ = random_batch(graph, IMAGES, 7)
    tasks = TaskGraph(graph, IMAGES, training=training, itemsize=8)
    results = []
    for streams in (False, True):
        for graphs in (False, True):
            try:
                kernels = CupyKernels(graph, parameters_of(graph, np.float64), LANES, itemsize=8)
            except MissingDependencyError as error:
                pytest.skip(str(error))
            schedule = make_schedule(tasks, kernels, 1)
            execution = StreamExecution(tasks, schedule, kernels, streams=streams, graphs=graphs)
            results.append(run(execution, x, 3))
    for found in results[1:]:
        assert_same(found, results[0])
    first = run(StreamExecution(tasks, schedule, make_gpu(graph)), x)
    for name, values in oracle(graph, x, training=training).items():
        np.testing.assert_allclose(first[name], values, rtol=1e-8, atol=1e-9, err_msg=name)
    assert cupy.cuda.runtime.getDeviceCount()


def make_gpu(graph: OperationGraph) -> CupyKernels:
    return CupyKernels(graph, parameters_of(graph, np.float64), LANES, itemsize=8)


def test_dry_run_of_the_benchmark(tmp_path: Path) -> None:
    file = tmp_path / "concurrency.json"
    command = [
        sys.executable, str(BENCHMARKS / "concurrency_gpu.py"), "--dry-run", "--json", str(file)
    ]  # fmt: skip
    # NumPy's threads would wait for each other where tests run side by side.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text())
    assert figures["dry_run"]
    row = figures["runs"][0]
    assert {one["how"] for one in row["ways"]} == {"serial", "streams", "graphs", "both"}
    assert all(one["images_per_second"] > 0 for one in row["ways"])
    assert figures["results_differ"] == 0
