"""Serial and concurrent time of a network, from a profile and from a platform's rooflines."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branching import random_profile, random_tasks
from sparsednn.costmodel.dense.concurrent import platform_profile, predict_pass
from sparsednn.costmodel.platform import load_platform
from sparsednn.dense.concurrency.bounds import bounds_of
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import Convolution, Input, Relu
from sparsednn.errors import UsageError

PLATFORM = load_platform("node-64")


def test_rooflines_by_hand() -> None:
    """A product is bound by arithmetic, a ReLU of much by memory; two parts take half each."""
    net = OperationGraph("two")
    image = net.add(Input("image", (64, 256, 256)))
    net.add(Relu("relu"), net.add(Convolution("conv", 64, (3, 3), padding=(1, 1)), image))
    tasks = TaskGraph(net.finish(), 1, fuse=False)
    profile = platform_profile(tasks, PLATFORM, 2)
    core = PLATFORM.processor
    one, both = profile.choices["conv"]
    assert (one.algorithm.parts, both.algorithm.parts) == (1, 2)
    flops = 2 * 64 * 64 * 9 * 256 * 256
    assert one.seconds == pytest.approx(flops / (core.gemm_efficiency * core.flops))
    assert both.seconds == pytest.approx(one.seconds / 2)
    moved = 2 * 64 * 256 * 256 * 4
    assert profile.choices["relu"][0].seconds == pytest.approx(moved / core.memory_bandwidth)
    assert profile.choices["image"][0].seconds == 0


@pytest.mark.parametrize("name", ["googlenet", "vgg16"])
def test_networks_on_a_platform(name: str) -> None:
    """No plan is quicker than the work on all lanes; chains gain by parts alone."""
    tasks = TaskGraph(make_network(name), 4)
    profile = platform_profile(tasks, PLATFORM, 4)
    costs = {task: some[0].seconds for task, some in profile.choices.items()}
    found = {one.name: one for one in plan(tasks, profile, effort="quick")}
    work = bounds_of(tasks, costs).work
    assert found["search"].seconds >= work / 4
    assert found["search"].seconds <= found["serial"].seconds <= found["serial-one"].seconds
    assert found["serial-one"].seconds >= work
    prediction = predict_pass(tasks, found["search"], profile)
    assert prediction.seconds == found["search"].seconds
    assert prediction.memory_bytes == found["search"].arena_bytes


@settings(max_examples=25, deadline=None)
@given(tasks=random_tasks(most=8), seed=st.integers(0, 2**32 - 1))
def test_parts_add_up(tasks: TaskGraph, seed: int) -> None:
    """Whatever profile: seconds are all somewhere, and none is negative."""
    dice = random.Random(seed)
    profile = random_profile(dice, tasks, dice.randint(1, 3))
    for schedule in plan(tasks, profile, effort="quick"):
        found = predict_pass(tasks, schedule, profile)
        for shares in (found.parts, found.charged):
            assert sum(shares.values()) == pytest.approx(schedule.seconds)
            assert min(shares.values()) >= -1e-12


def test_what_cannot_be_predicted_is_told() -> None:
    """GPUs, and more lanes than cores."""
    tasks = TaskGraph(make_network("lenet5"), 1)
    with pytest.raises(UsageError, match="is measured, not predicted"):
        platform_profile(tasks, load_platform("gpu-node-8"), 2)
    with pytest.raises(UsageError, match="1000 lanes on a node of"):
        platform_profile(tasks, PLATFORM, 1000)
