"""Kernels of the processor, forward: against the readable backend and the serial model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from concurrent_runs import SerialRun, initial_parameters
from sparsednn.comm import Alone
from sparsednn.dense.concurrency.cpu import layout
from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.tasks import FORWARD, TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, Placement
from sparsednn.dense.local import make_backend
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)
from sparsednn.errors import InputError, UsageError

REFERENCE = ReferenceBackend()
TOLERANCE = {np.dtype(np.float32): 2e-5, np.dtype(np.float64): 1e-11}
LANES = 3


def pads_of(operation: Any, shape: Any) -> Any:
    if isinstance(operation, (MaxPool, AveragePool)):
        return operation.pads(shape)
    return (*operation.padding, *operation.padding)


def expected(
    graph: OperationGraph, parameters: Any, x: Any, training: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All outputs ``(images, channels, height, width)``, and what else a training pass leaves."""
    values: dict[str, Any] = {graph.input: x}
    more: dict[str, Any] = {}
    for operation in graph:
        name = operation.name
        sources = [values[source] for source in graph.predecessors(name)]
        own = {
            each.name.rpartition(".")[2]: parameters[each.name]
            for each in graph.parameters_of(name)
        }
        if isinstance(operation, (Convolution, FullyConnected)):
            how = {}
            if isinstance(operation, Convolution):
                how = {
                    "stride": operation.stride,
                    "pads": pads_of(operation, None),
                    "dilation": operation.dilation,
                    "groups": operation.groups,
                }
            y = REFERENCE.convolution(sources[0], own["weight"], **how)
            if "bias" in own:
                y = y + own["bias"].reshape(1, -1, 1, 1)
        elif isinstance(operation, (MaxPool, AveragePool)):
            shape = graph.input_shapes(name)[0]
            window: Any = {"taps": operation.taps, "stride": operation.stride}
            window["pads"] = operation.pads(shape)
            if isinstance(operation, MaxPool):
                y, more[f"{name}:where"] = REFERENCE.max_pool(sources[0], **window)
            else:
                count = operation.divisors(shape).astype(x.dtype)
                y = REFERENCE.average_pool(sources[0], **window, count=count)
        elif isinstance(operation, BatchNorm):
            mean, variance = own["running_mean"], own["running_var"]
            if training:
                count = sources[0].size // sources[0].shape[1]
                mean = REFERENCE.channel_sums(sources[0]) / count
                variance = REFERENCE.channel_squares(sources[0], mean) / count
                unbiased = variance * (count / max(1, count - 1))
                for key, new in (("running_mean", mean), ("running_var", unbiased)):
                    more[f"{name}.{key}"] = own[key] + operation.momentum * (new - own[key])
            inverse = 1 / np.sqrt(variance.astype(np.float64) + operation.epsilon)
            if training:
                more[f"{name}:statistics"] = np.stack([mean, inverse])
            y = REFERENCE.normalize(sources[0], mean, inverse, own["weight"], own["bias"])
        elif isinstance(operation, Relu):
            y = REFERENCE.relu(sources[0])
        elif isinstance(operation, Add):
            y = sum(sources[1:], start=sources[0])
        elif isinstance(operation, Concatenate):
            y = np.concatenate(sources, axis=1)
        else:
            continue
        values[name] = y
    return values, more


def close(found: Any, wanted: Any, dtype: Any, what: str) -> None:
    assert found.shape == wanted.shape, what
    scale = np.abs(wanted[np.isfinite(wanted)]).max(initial=1.0)
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=TOLERANCE[np.dtype(dtype)] * scale, err_msg=what
    )


def check(
    graph: OperationGraph,
    images: int = 2,
    dtype: Any = np.float64,
    training: bool = False,
    fuse: bool = True,
    x: Any = None,
) -> None:
    """Run all algorithms in all parts; each output, and what is kept, as it should be."""
    tasks = TaskGraph(
        graph, images, training=training, itemsize=np.dtype(dtype).itemsize, fuse=fuse
    )
    if x is None:
        x = np.random.default_rng(1).standard_normal((images, *graph.image)).astype(dtype)
    initial = initial_parameters(graph, dtype)
    values, more = expected(graph, initial, x, training)
    parameters = {name: array.copy() for name, array in initial.items()}
    kernels = CpuKernels(LANES, parameters, dtype=dtype, training=training)
    most = max(len(kernels.algorithms(tasks, task)) for task in tasks if task.action == FORWARD)
    for turn in range(most):

        def choose(task: Any, found: tuple[Algorithm, ...], turn: int = turn) -> Algorithm:
            assert len(set(found)) == len(found)
            return found[turn % len(found)]

        for name, array in initial.items():
            parameters[name][...] = array
        run = SerialRun(kernels, tasks, choose, actions=(FORWARD,))
        run.forward(x)
        for task in run.tasks:
            if task.action != FORWARD:
                continue
            what = f"{task.name}: {choose(task, kernels.algorithms(tasks, task))}"
            for name in task.writes:
                found = run.tensors[name]
                if name.endswith(":statistics"):
                    close(found, more[name], np.float64 if dtype == np.float64 else dtype, what)
                    continue
                found = found.transpose(0, 3, 1, 2)
                if name.endswith(":where"):
                    assert np.array_equal(found, more[name]), what
                else:
                    close(found, values[name], dtype, what)
        for name, array in more.items():
            if name in parameters:
                close(parameters[name], array, dtype, name)


def network(image: Any, *operations: Any) -> OperationGraph:
    """A chain; an operation with names behind it reads those."""
    graph = OperationGraph("test")
    last = graph.add(Input("image", image))
    for each in operations:
        operation, *sources = each if isinstance(each, tuple) else (each,)
        last = graph.add(operation, *(sources or [last]))
    return graph.finish()


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[OperationGraph, int]:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    few, pair = st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))
    channels, filters = draw(few) * groups, draw(st.sampled_from([1, 2, 7, 16, 17, 35])) * groups
    taps, dilation, stride = draw(pair), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 4)))
    least = [max(1, (t - 1) * d + 1 - 2 * p) for t, d, p in zip(taps, dilation, padding, strict=1)]
    size = [low + draw(st.integers(0, 9)) for low in least]
    operation = Convolution(
        "conv", filters, taps, stride, padding, dilation, groups, bias=draw(st.booleans())
    )
    tail = draw(
        st.sampled_from(
            [
                [],
                [Relu("relu")],
                [BatchNorm("norm"), Relu("relu")],
                [Relu("relu"), BatchNorm("norm")],
            ]
        )
    )
    return network((channels, *size), operation, *tail), draw(few)


def one(image: Any, *args: Any, images: int = 1, **more: Any) -> tuple[OperationGraph, int]:
    return network(image, Convolution("conv", *args, **more), BatchNorm("n"), Relu("r")), images


@settings(max_examples=40, deadline=None)
@given(convolutions(), st.booleans())
@example(one((1, 1, 1), 1, (1, 1)), True)
@example(one((3, 5, 5), 20, (5, 5), images=3), True)  # covers the image
@example(one((4, 15, 9), 40, (1, 1), (2, 3), images=2), False)
@example(one((20, 14, 14), 70, (3, 3), (1, 1), (1, 1)), True)
@example(one((3, 1, 1), 5, (3, 3), (1, 1), (1, 1)), False)  # taps of which one meets the image
@example(one((2, 3, 1), 5, (1, 2), (1, 1), (0, 4)), False)  # windows of padding alone
@example(one((6, 7, 7), 6, (3, 3), (2, 2), (1, 1), groups=6), True)
def test_products(case: tuple[OperationGraph, int], single: bool) -> None:
    graph, images = case
    check(graph, images, np.float32 if single else np.float64)


def test_tiles_of_cut_images(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rows that do not fit the cache are padded piece by piece.
    from sparsednn.dense.concurrency.cpu import direct, products

    monkeypatch.setattr(direct, "_TILE", 4000)
    monkeypatch.setattr(products, "_BLOCK", 4000)
    direct._cut.cache_clear()
    check(*one((6, 17, 9), 20, (3, 3), (2, 1), (1, 2), images=3))
    direct._cut.cache_clear()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("images", [1, 9])
def test_fully_connected(images: int, dtype: Any) -> None:
    graph = network((3, 4, 5), FullyConnected("fc1", 37), Relu("r"), FullyConnected("fc2", 10))
    check(graph, images, dtype)


@st.composite
def pools(draw: st.DrawFn) -> tuple[OperationGraph, int]:
    taps = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, t // 2)) for t in taps)
    size = [t + draw(st.integers(0, 8)) for t in taps]
    if draw(st.booleans()):
        pool: Any = MaxPool("pool", taps, stride, padding, ceil_mode=draw(st.booleans()))
    else:
        pool = AveragePool("pool", taps, stride, padding, count_include_pad=draw(st.booleans()))
    graph = network((draw(st.sampled_from([1, 3, 18])), *size), Convolution("c", 5, (1, 1)), pool)
    return graph, draw(st.integers(1, 3))


@settings(max_examples=25, deadline=None)
@given(pools(), st.booleans(), st.booleans())
def test_pools(case: tuple[OperationGraph, int], single: bool, training: bool) -> None:
    graph, images = case
    check(graph, images, np.float32 if single else np.float64, training)


@pytest.mark.parametrize("training", [False, True])
def test_of_equal_elements_the_first_and_nan_the_largest(training: bool) -> None:
    graph = network((3, 9, 7), MaxPool("pool", (3, 2), (2, 1), (1, 1)), AveragePool("mean", (2, 2)))
    x = np.random.default_rng(0).integers(-1, 2, (2, *graph.image)).astype(np.float64)
    x[0, 0, 3:6, 2:4] = np.nan
    x[1, :, :4, :4] = -np.inf
    check(graph, 2, training=False, x=x)
    tasks = TaskGraph(graph, 2, training=training, itemsize=8)
    run = SerialRun(CpuKernels(2, {}, dtype=np.float64), tasks, actions=(FORWARD,))
    run.forward(x)
    values, _ = expected(graph, {}, x, False)
    assert np.array_equal(run.tensors["pool"].transpose(0, 3, 1, 2), values["pool"], equal_nan=True)


def test_more_taps_than_a_byte_can_number() -> None:
    graph = network((2, 18, 17), Convolution("c", 2, (1, 1)), MaxPool("pool", (17, 16)))
    check(graph, 2, training=True)


def branches(image: Any = (5, 9, 7)) -> OperationGraph:
    """Concatenations in concatenations, some of whose inputs others read, too; sums; tails."""
    return network(
        image,
        (Convolution("c1", 8, (3, 3), padding=(1, 1)), "image"),
        (BatchNorm("n1"), "c1"),
        (Relu("r1"), "n1"),
        (Convolution("c2", 3, (1, 1), bias=False), "r1"),
        (BatchNorm("n2"), "c2"),
        (Convolution("c3", 5, (3, 1), padding=(1, 0)), "r1"),
        (MaxPool("p1", (3, 3), (1, 1), (1, 1)), "r1"),
        (AveragePool("p2", (3, 3), (1, 1), (1, 1), count_include_pad=False), "r1"),
        (Concatenate("inner"), "n2", "c3", "r1"),
        (Concatenate("outer"), "p1", "inner", "p2", "image", "p1"),
        (BatchNorm("n3"), "outer"),
        (Relu("r3"), "n3"),
        (Convolution("c4", 8, (1, 1)), "r3"),
        (Convolution("c5", 8, (1, 1)), "r1"),
        (Add("sum2"), "c4", "c5"),
        (Relu("r4"), "sum2"),
        (Add("sum4"), "r4", "r1", "r4", "c5"),
        (BatchNorm("n5"), "sum4"),
        (Relu("r5"), "n5"),
        (FullyConnected("fc", 4), "r5"),
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
def test_branches(dtype: Any, training: bool, fuse: bool) -> None:
    check(branches(), 2, dtype, training, fuse)


def test_single_pixels() -> None:
    check(branches((1, 1, 1)), 1, training=True)
    check(branches((1, 1, 1)), 1)


def test_parts_have_the_same_bits_whatever_ran_before() -> None:
    graph, x = branches(), np.random.default_rng(0).standard_normal((2, 5, 9, 7))
    parameters = initial_parameters(graph, np.float64)
    run = SerialRun(CpuKernels(2, parameters, dtype=np.float64), TaskGraph(graph, 2, itemsize=8))
    logits = run(x)
    assert np.array_equal(run(x), logits)
    assert not np.array_equal(run(2 * x), logits)
    assert np.array_equal(run(x), logits)


@pytest.mark.parametrize("turn", range(6))
def test_parameters_changed(turn: int) -> None:
    graph, x = branches(), np.random.default_rng(0).standard_normal((2, 5, 9, 7), np.float32)
    parameters = initial_parameters(graph, np.float32)
    kernels = CpuKernels(1, parameters)
    run = SerialRun(kernels, TaskGraph(graph, 2), lambda _, found: found[turn % len(found)])
    run(x)
    for array in parameters.values():
        array *= 1.5
    kernels.parameters_changed()
    close(run(x), expected(graph, parameters, x, False)[0]["fc"].reshape(2, -1), np.float32, "")
    kept = len(kernels._kept)
    assert kept
    del run
    kernels.parameters_changed()
    assert not kernels._kept


@pytest.mark.parametrize("name", ["smallcnn", "resnet20", "pathnet"])
def test_networks_as_the_serial_model(name: str) -> None:
    graph, images = make_network(name), 2
    placements = {
        each.name: Placement(Grid(), "data")
        for each in graph
        if isinstance(each, (Convolution, FullyConnected))
    }
    model = DenseModel(Alone(), graph, placements, make_backend("im2col"), seed=3)
    parameters = {
        name: array
        for trained in (True, False)
        for name, array in model.parameters.tiles(trained=trained)
    }
    x = np.random.default_rng(0).standard_normal((images, *graph.image), np.float32)
    wanted = model.batch(images).forward(x)
    run = SerialRun(CpuKernels(2, parameters), TaskGraph(graph, images))
    close(run(x), wanted, np.float32, name)
    model.free()


def test_what_cannot_be() -> None:
    with pytest.raises(UsageError, match="lanes: found 0"):
        CpuKernels(0, {})
    with pytest.raises(UsageError, match="float32 or float64"):
        CpuKernels(1, {}, dtype=np.int32)
    graph = network((1, 4, 4), Convolution("c", 2, (3, 3)))
    parameters = initial_parameters(graph, np.float64)
    kernels = CpuKernels(1, parameters, dtype=np.float64, torch=False)
    tasks = TaskGraph(graph, 1)
    with pytest.raises(UsageError, match="elements of 4 bytes"):
        SerialRun(kernels, tasks)
    with pytest.raises(InputError, match="no algorithm 'onednn'"):
        kernels.bind(tasks, tasks.tasks["c"], Algorithm("onednn"), 0, {}, kernels.arena(0))


def test_numbers_of_parts() -> None:
    assert layout.part_counts(1, 9) == (1,)
    assert layout.part_counts(6, 9) == (1, 2, 4, 6)
    assert layout.part_counts(6, 3) == (1, 2)
    assert layout.part_counts(2, 1) == (1,)
