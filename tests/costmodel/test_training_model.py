"""A step of training, predicted: limits, what adds up, what more of anything does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.costmodel.calibration.engines import random_network
from sparsednn.costmodel.platform import load_platform
from sparsednn.costmodel.prediction import BOUNDS
from sparsednn.costmodel.sparse.kernels import OPTIMIZERS, SparseRates
from sparsednn.costmodel.sparse.training import divided_step, predict_training, training_bytes
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.errors import UsageError

NODE = load_platform("node-64")
CLUSTER = load_platform("infiniband-128")
NETWORK = random_network(96, 2, 16, 3, 0)
ALONE = SparseWork.whole(NETWORK, training=True)


def divided(parts: int, seed: int = 0) -> SparseWork:
    """The network among so many ranks, by chance."""
    random = np.random.default_rng(seed)
    owners = [random.integers(0, parts, 96).astype(np.int32) for _ in range(4)]
    return SparseWork.of(NETWORK, owners, parts, training=True)


@given(
    st.integers(1, 200),
    st.sampled_from(OPTIMIZERS),
    st.sampled_from([1, 2, 3, 5]),
    st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_it_adds_up(batch: int, optimizer: str, parts: int, groups: int) -> None:
    if batch < groups:
        return
    work = ALONE if parts == 1 else divided(parts)
    found = predict_training(NODE, work, batch, groups=groups, optimizer=optimizer)
    assert found.seconds == pytest.approx(sum(found.parts.values()))
    assert found.seconds == pytest.approx(sum(found.charged.values()))
    assert set(found.charged) <= set(BOUNDS)
    assert min(found.parts.values()) >= 0
    back = 2 * work.words_sent.sum()  # with the gradient of the inputs: as in the paper
    gradient = 2 * (groups - 1) * (work.edges.sum() + work.neurons[1:].sum())
    assert found.words == back * batch + gradient


def test_one_rank_sends_nothing() -> None:
    found = predict_training(NODE, ALONE, 64)
    assert found.words == 0
    for name in ("exchange", "imbalance", "gradients", "agreement", "update"):
        assert found.parts[name] == 0
    assert predict_training(NODE, ALONE, 64, optimizer="adam").parts["update"] > 0


def test_more_takes_longer() -> None:
    one = predict_training(NODE, ALONE, 32).seconds
    assert predict_training(NODE, ALONE, 64).seconds > one
    assert predict_training(NODE, ALONE, 32, optimizer="momentum").seconds > one
    work = divided(4)
    slow = predict_training(CLUSTER.scaled(link_latency=4.0), work, 32).seconds
    assert slow > predict_training(CLUSTER, work, 32).seconds
    quick = predict_training(CLUSTER.scaled(flops=4.0), work, 32).seconds
    assert quick < predict_training(CLUSTER, work, 32).seconds


def test_a_team_shares_what_can_be_shared() -> None:
    rates = SparseRates.of(NODE)
    alone, shared, meetings = divided_step(NODE, ALONE, 64, threads=1, rates=rates)
    serial, half, _ = divided_step(NODE, ALONE, 64, threads=2, rates=rates)
    slower = rates.slowdown(2)
    assert meetings == pytest.approx(4 * len(NETWORK))
    assert half == pytest.approx(slower * shared / 2)
    assert serial >= slower * alone


def test_memory_grows_with_the_optimizer() -> None:
    plain, momentum, adam = (training_bytes(ALONE, 64, one)[0] for one in OPTIMIZERS)
    array = 4 * (ALONE.edges.sum() + ALONE.neurons[1:].sum())
    assert momentum - plain == array
    assert adam - momentum == array


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"optimizer": "lion"}, "the optimizer is one of sgd, momentum, adam: 'lion'"),
        ({"groups": 65}, "a step of 64 images cannot be divided among 65 data groups"),
        ({"groups": 0}, "cannot be divided"),
    ],
)
def test_what_cannot_be(how: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        predict_training(NODE, ALONE, 64, **how)  # type: ignore[arg-type]


def test_work_without_the_transposed_packing() -> None:
    with pytest.raises(UsageError, match="not counted for training"):
        predict_training(NODE, SparseWork.whole(NETWORK), 64)
