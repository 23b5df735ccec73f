"""Independent operations side by side give what one after the other gives: bit by bit with the same
kernels, and to rounding what `DenseModel` gives."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from branching import random_network
from sparsednn.comm.alone import Alone
from sparsednn.dense.concurrency.batch import ConcurrentBatch, make_kernels, run_concurrently
from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
from sparsednn.dense.concurrency.cpu.lanes import LaneExecution
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.runs.placing import place_network
from sparsednn.errors import UsageError

REPEATS = 50


def placed(graph: OperationGraph, images: int, *, training: bool, dtype: str) -> DenseModel:
    _, model = place_network(
        Alone(), graph, None, images, backend="im2col", dtype=dtype, training=training, seed=3
    )
    dice = np.random.default_rng(1)
    for store in (model.parameters.theta, model.parameters.buffers):
        store += 0.1 * np.abs(dice.standard_normal(store.shape))
    return model


def any_profile(tasks: TaskGraph, kernels: CpuKernels, seed: int) -> Profile:
    """Times that make the planner take any of the ways there are."""
    dice = random.Random(seed)
    choices = {
        task.name: [
            Choice(way, dice.random() / way.parts, dice.random())
            for way in kernels.algorithms(tasks, task)
        ]
        for task in tasks
    }
    return Profile(kernels.device, kernels.lanes, choices)


def one_after_the_other(schedule: Schedule) -> Schedule:
    """The same parts by the same algorithms in the same memory, all on the first lane."""
    items = tuple(replace(one, lane=0, waits=()) for one in schedule.items)
    return replace(schedule, items=items)


def passes(
    model: DenseModel, tasks: TaskGraph, kernels: CpuKernels, schedule: Schedule, times: int
) -> list[tuple[Any, ...]]:
    """Logits, gradients and running statistics of each pass, from the same numbers."""
    dice = np.random.default_rng(7)
    x = dice.standard_normal((tasks.images, *tasks.graph.image)).astype(kernels.dtype)
    dy = dice.standard_normal((tasks.images, tasks.graph.classes)).astype(kernels.dtype)
    execution = LaneExecution(tasks, schedule, kernels)
    batch = ConcurrentBatch(model, tasks.images, execution)
    buffers = model.parameters.buffers.copy()
    found = []
    for _ in range(times):
        model.parameters.buffers[...] = buffers
        model.parameters.gradient[...] = np.nan
        logits = batch.forward(x, training=tasks.training)
        if tasks.training:
            batch.backward(dy)
        found.append((logits, model.parameters.gradient.copy(), model.parameters.buffers.copy()))
    batch.free()
    model.parameters.buffers[...] = buffers
    return found


@pytest.mark.parametrize("training", [False, True])
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32 - 1))
def test_side_by_side_is_one_after_the_other(training: bool, seed: int) -> None:
    """Random networks of branches, random plans, fifty times: the same bits each time."""
    dice = random.Random(seed)
    graph = random_network(dice, most=10)
    model = placed(graph, 2, training=training, dtype=dice.choice(("float32", "float64")))
    kernels = make_kernels(model, dice.choice((2, 2, 3, 4)), training=training)
    kernels.parameters_changed()
    tasks = TaskGraph(graph, 2, training=training, itemsize=kernels.dtype.itemsize)
    schedules = plan(tasks, any_profile(tasks, kernels, seed), effort="quick", seed=seed)
    schedule = next(one for one in schedules if not one.name.startswith("serial"))
    (truth,) = passes(model, tasks, kernels, one_after_the_other(schedule), 1)
    for number, found in enumerate(passes(model, tasks, kernels, schedule, REPEATS)):
        for mine, its in zip(found, truth, strict=True):
            assert mine.tobytes() == its.tobytes(), f"pass {number} differs"
    model.free()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["lenet5", "resnet20", "googlenet", "pathnet"])
def test_networks_give_what_the_model_gives(name: str, training: bool) -> None:
    """Logits, gradients and running statistics in float64, by whatever kernels there are."""
    channels = 1 if name == "lenet5" else 3
    graph = make_network(name, image=(channels, 16, 16), classes=5)
    model = placed(graph, 2, training=training, dtype="float64")
    kernels = make_kernels(model, 2, training=training)
    kernels.parameters_changed()
    tasks = TaskGraph(graph, 2, training=training, itemsize=8)
    dice = np.random.default_rng(7)
    x, dy = dice.standard_normal((2, *graph.image)), dice.standard_normal((2, 5))
    buffers = model.parameters.buffers.copy()
    batch = model.batch(2)
    truth = [batch.forward(x, training=training)]
    if training:
        batch.backward(dy)
        truth.append(model.parameters.gradient.copy())
    truth.append(model.parameters.buffers.copy())
    model.parameters.buffers[...] = buffers
    schedule = plan(tasks, any_profile(tasks, kernels, 5), effort="quick")[0]
    logits, gradient, statistics = passes(model, tasks, kernels, schedule, 1)[0]
    found = [logits, gradient, statistics] if training else [logits, statistics]
    for mine, its in zip(found, truth, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-9, atol=1e-11 * np.abs(its).max(initial=1.0))
    model.free()


def test_a_model_that_is_told_to() -> None:
    """Batches of that size run concurrently, others and tests between steps do not."""
    graph = make_network("pathnet", image=(3, 8, 8), classes=4)
    model = placed(graph, 4, training=True, dtype="float32")
    before = model.parameters.buffers.copy()

    def some(tasks: TaskGraph, kernels: CpuKernels) -> Schedule:
        model.parameters.buffers += 1  # as measuring does
        return plan(tasks, any_profile(tasks, kernels, 1), effort="quick")[0]

    schedule = run_concurrently(model, some, images=4, lanes=2, training=True)
    assert (schedule.images, schedule.lanes, schedule.training) == (4, 2, True)
    assert np.array_equal(model.parameters.buffers, before)
    assert isinstance(model.batch(4), ConcurrentBatch)
    assert not isinstance(model.batch(3), ConcurrentBatch)
    x = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    serial = placed(graph, 4, training=True, dtype="float32")
    expected = serial.batch(4).forward(x, training=False)
    assert np.array_equal(model.batch(4).forward(x, training=False), expected)
    close = model.batch(4).forward(x, training=True)
    np.testing.assert_allclose(close, expected, rtol=1e-4, atol=1e-4)
    model.free()
    serial.free()


def test_steps_of_training() -> None:
    """What the optimizer changes is seen by the next pass: the losses of three steps, and all
    parameters behind them, are those of the serial model."""
    graph = make_network("resnet20", image=(3, 16, 16), classes=4)
    dice = np.random.default_rng(2)
    x, labels = dice.standard_normal((3, 4, 3, 16, 16)), dice.integers(0, 4, (3, 4))
    found = []
    for lanes in (0, 2):
        model = placed(graph, 4, training=True, dtype="float64")
        if lanes:
            run_concurrently(
                model,
                lambda tasks, kernels: plan(tasks, any_profile(tasks, kernels, 9), effort="quick")[
                    0
                ],
                images=4,
                lanes=lanes,
                training=True,
            )
        losses = []
        for one, right in zip(x, labels, strict=True):
            batch = model.batch(4)
            score, gradient = batch.score(batch.forward(one, training=True), right)
            batch.backward(gradient)
            model.parameters.theta -= 0.02 * model.parameters.gradient
            losses.append(score.loss)
        found.append((losses, model.parameters.theta.copy(), model.parameters.buffers.copy()))
        model.free()
    for mine, its in zip(*found, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-7, atol=1e-9)


def test_ranks_and_devices_are_refused() -> None:
    """One line for what concurrency is not for."""
    model = placed(make_network("lenet5"), 1, training=False, dtype="float32")

    class Two:
        size = 2

    world, model.world = model.world, Two()  # type: ignore[assignment]
    with pytest.raises(UsageError, match="are for one rank, there are 2"):
        make_kernels(model, 2, training=False)
    model.world = world
    model.setting.local.on_device = True
    with pytest.raises(UsageError, match="leave out --backend cupy"):
        make_kernels(model, 2, training=False)
    model.free()
