"""Losses: PyTorch's autograd, finite differences, ranks, tiles, and numbers that are none."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.activations import Activation
from sparsednn.errors import ShapeError, UsageError
from sparsednn.training.losses import (
    LOSSES,
    Score,
    Targets,
    derivative,
    loss_gradient,
    score,
)

ACTIVATIONS = ["identity", "relu", "clamped_relu:0.7", "sigmoid", "tanh", "softmax"]


class One:
    """A group of one rank; nothing is to be sent."""

    size = 1

    def allreduce(self, array: Any, op: str = "sum") -> None:
        raise AssertionError("an allreduce of one rank")


class Ranks:
    """A group of ranks that are threads. As MPI's, its maximum may lose a NaN."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = [0] * size
        self._barrier = threading.Barrier(size)
        self._parts: list[Any] = [None] * size
        self._rank = threading.local()

    def allreduce(self, array: Any, op: str = "sum") -> None:
        assert array.flags.c_contiguous
        rank = self._rank.number
        self.calls[rank] += 1
        self._parts[rank] = array.copy()
        self._barrier.wait(timeout=20)
        assert len({(part.shape, part.dtype) for part in self._parts}) == 1
        combine = {"sum": np.add, "max": np.fmax}[op]
        array[...] = combine.reduce(self._parts)
        self._barrier.wait(timeout=20)

    def run(self, work: Any) -> list[Any]:
        """What ``work(rank)`` returns on each rank."""
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def on_rank(rank: int) -> None:
            self._rank.number = rank
            try:
                results[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=on_rank, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return results


def problem(
    n_out: int, batch: int, kind: str, seed: int, dtype: Any = np.float64
) -> tuple[Any, Targets]:
    """Return z and targets: labels, probabilities (columns that sum to 1), or any values."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n_out, batch)).astype(dtype) * 2
    if kind == "labels":
        return z, Targets(rng.integers(n_out, size=batch), None)
    values = rng.random((n_out, batch)).astype(dtype)
    if kind == "probabilities":
        values /= values.sum(axis=0)
    return z, Targets(None, values)


def outputs(activation: Activation, z: Any) -> Any:
    """What `loss_gradient` takes: softmax is left to it. In the dtype of z."""
    if activation.kind == "softmax":
        return z
    if activation.kind == "sigmoid":
        return 1 / (1 + np.exp(-z))
    if activation.kind == "clamped_relu":
        return np.clip(z, 0, z.dtype.type(activation.limit))
    return activation.apply(z)


def whole(loss: str, activation: str, z: Any, targets: Targets, images: int = 0) -> Any:
    """Score and gradient on one rank."""
    act = Activation.parse(activation)
    y = outputs(act, z)
    rows = np.arange(z.shape[0], dtype=np.int32)
    before = y.copy()
    result = loss_gradient(loss, act, y, targets, rows, z.shape[0], images or z.shape[1], One())
    np.testing.assert_array_equal(y, before)
    assert score(loss, act, y, targets, rows, z.shape[0], One()) == result[0]
    return result


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities", "values"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_pytorch(loss: str, activation: str, kind: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    f = torch.nn.functional
    z, targets = problem(7, 13, kind, 3, dtype)
    found, gradient = whole(loss, activation, z, targets)
    assert gradient.dtype == dtype

    leaf = torch.tensor(z.T, requires_grad=True)
    of = {
        "identity": lambda x: x,
        "relu": f.relu,
        "clamped_relu:0.7": lambda x: f.hardtanh(x, 0.0, 0.7),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        # Cross-entropy takes the logits.
        "softmax": (lambda x: x) if loss == "cross-entropy" else lambda x: f.softmax(x, dim=1),
    }
    y = of[activation](leaf)
    if targets.labels is None:
        wanted = torch.tensor(np.ascontiguousarray(targets.values.T))
    else:
        wanted = torch.tensor(targets.labels)
        if loss == "mse":
            wanted = f.one_hot(wanted, 7).to(y.dtype)
    value = f.cross_entropy(y, wanted) if loss == "cross-entropy" else f.mse_loss(y, wanted)
    value.backward()
    tolerance = 3e-6 if dtype == np.float32 else 1e-13
    assert found.loss / 13 == pytest.approx(value.item(), rel=tolerance)
    np.testing.assert_allclose(gradient, leaf.grad.numpy().T, rtol=tolerance, atol=tolerance / 10)
    assert found.images == 13
    if targets.labels is None:
        assert found.correct == 0
    else:
        assert found.correct == np.count_nonzero(
            outputs(Activation.parse(activation), z).argmax(axis=0) == targets.labels
        )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["labels", "values"])
def test_finite_differences(loss: str, activation: str, kind: str) -> None:
    z, targets = problem(5, 3, kind, 8)
    _, gradient = whole(loss, activation, z, targets)
    step = 1e-6
    for place in np.ndindex(z.shape):
        moved = []
        for sign in (1, -1):
            shifted = z.copy()
            shifted[place] += sign * step
            mean = whole(loss, activation, shifted, targets)[0].loss / z.shape[1]
            moved.append(mean)
        slope = (moved[0] - moved[1]) / (2 * step)
        assert gradient[place] == pytest.approx(slope, rel=1e-6, abs=1e-8)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(LOSSES),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(["labels", "values"]),
    st.integers(2, 4),
    st.integers(1, 9),
    st.integers(0, 6),
    st.integers(0, 10**6),
)
def test_ranks_give_what_one_rank_gives(
    loss: str, activation: str, kind: str, size: int, n_out: int, batch: int, seed: int
) -> None:
    z, targets = problem(n_out, batch, kind, seed)
    # Few different numbers: ties between ranks, also of the largest.
    z = np.round(z)
    images = batch + 1
    expected, expected_gradient = whole(loss, activation, z, targets, images)
    owner = np.random.default_rng(seed + 1).integers(size, size=n_out)
    act = Activation.parse(activation)
    group = Ranks(size)

    def work(rank: int) -> Any:
        rows = np.flatnonzero(owner == rank).astype(np.int32)  # perhaps none
        values = None if targets.values is None else targets.values[rows]
        own = Targets(targets.labels, values)
        y = outputs(act, z[rows])
        found, gradient = loss_gradient(loss, act, y, own, rows, n_out, images, group)
        return rows, found, gradient, score(loss, act, y, own, rows, n_out, group)

    gradient = np.full_like(z, np.nan)
    for rows, found, part, again in group.run(work):
        gradient[rows] = part
        assert found == again
        assert found.loss == pytest.approx(expected.loss, rel=1e-12, abs=1e-14)
        assert (found.correct, found.images) == (expected.correct, batch)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-14)
    # As the docstring says, here for two calls.
    most = 3 if loss == "mse" and activation == "softmax" else 2
    fewest = most if kind == "labels" or activation == "softmax" or loss != "mse" else 1
    assert group.calls == [2 * fewest] * size


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(LOSSES),
    st.sampled_from(ACTIVATIONS),
    st.sampled_from(["labels", "values"]),
    st.integers(1, 8),
    st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    st.integers(0, 10**6),
)
def test_tiles_add_up_to_the_batch(
    loss: str, activation: str, kind: str, n_out: int, tiles: list[int], seed: int
) -> None:
    batch = sum(tiles)
    z, (labels, values) = problem(n_out, batch, kind, seed)
    expected, expected_gradient = whole(loss, activation, z, Targets(labels, values))
    total, parts, first = Score(), [], 0
    for width in tiles:
        part = slice(first, first + width)
        own = Targets(
            None if labels is None else labels[part], None if values is None else values[:, part]
        )
        found, gradient = whole(loss, activation, z[:, part], own, batch)
        total, first = total + found, first + width
        parts.append(gradient)
    assert total.loss == pytest.approx(expected.loss, rel=1e-13)
    assert (total.correct, total.images) == (expected.correct, batch)
    # Not bit by bit: NumPy adds up a single column in another order than several.
    found = np.concatenate(parts, axis=1)
    np.testing.assert_allclose(found, expected_gradient, rtol=1e-12, atol=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6), st.integers(0, 8), st.integers(0, 10**6))
def test_ties_go_to_the_lowest_neuron(n_out: int, batch: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    z = rng.integers(-1, 2, (n_out, batch)).astype(np.float32)
    labels = rng.integers(n_out, size=batch)
    expected = np.count_nonzero(z.argmax(axis=0) == labels) if batch else 0
    for loss in LOSSES:
        for activation in ("identity", "softmax"):
            found, _ = whole(loss, activation, z, Targets(labels, None), batch + 1)
            assert found.correct == expected


def test_large_logits_do_not_overflow() -> None:
    z = np.array([[3e38, -3e38, 1e4], [-3e38, -3e38, 1e4 - 1], [0, -3e38, -1e4]], np.float32)
    found, gradient = whole("cross-entropy", "softmax", z, Targets(np.array([0, 1, 0]), None))
    assert found.loss == pytest.approx(np.log(3) + np.log1p(np.exp(-1)), rel=1e-7)
    assert found.correct == 2
    np.testing.assert_allclose(gradient[:, 1] * 3, [1 / 3, -2 / 3, 1 / 3], rtol=1e-6)


def test_a_small_loss_keeps_its_digits() -> None:
    # A float32 sum of softmax's denominator would be exactly 1, and the loss exactly 0.
    z = np.array([[20.0], [0.0]], np.float32)
    found, _ = whole("cross-entropy", "identity", z, Targets(np.array([0]), None))
    assert found.loss == pytest.approx(np.log1p(np.exp(-20.0)), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ["identity", "sigmoid", "softmax"])
@pytest.mark.parametrize("kind", ["labels", "values"])
@pytest.mark.parametrize("bad_row", [0, 3])
def test_nan_is_not_hidden(loss: str, activation: str, kind: str, bad_row: int) -> None:
    z, targets = problem(4, 2, kind, 5, np.float32)
    act = Activation.parse(activation)
    y = outputs(act, z)
    y[bad_row, 1] = np.nan
    labels = None if targets.labels is None else y.argmax(axis=0)
    group = Ranks(2)

    def work(rank: int) -> Any:
        rows = np.arange(2 * rank, 2 * rank + 2, dtype=np.int32)
        values = None if targets.values is None else targets.values[rows]
        return loss_gradient(loss, act, y[rows], Targets(labels, values), rows, 4, 2, group)

    results = group.run(work)
    assert all(np.isnan(found.loss) for found, _ in results)
    assert [found.correct for found, _ in results] == [int(kind == "labels")] * 2
    gradient = np.concatenate([part for _, part in results])
    assert np.isnan(gradient[bad_row, 1])
    assert np.isfinite(gradient[:, 0]).all()


@pytest.mark.parametrize("activation", ACTIVATIONS[:-1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_derivative(activation: str, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    f = torch.nn.functional
    act = Activation.parse(activation)
    # The kinks too, and sigmoid and tanh where they saturate.
    z = np.array([[-40, -1.5, -0.0, 0, 0.3], [0.5, 0.7, 0.70001, 1.5, 40]], dtype)
    found = derivative(act, outputs(act, z))
    assert found.dtype == dtype
    leaf = torch.tensor(z, requires_grad=True)
    y = {
        "identity": lambda x: x * 1,
        "relu": f.relu,
        "clamped_relu": lambda x: f.hardtanh(x, 0.0, act.limit),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[act.kind](leaf)
    y.backward(torch.ones_like(y))
    tolerance = 1e-6 if dtype == np.float32 else 1e-14
    np.testing.assert_allclose(found, leaf.grad.numpy(), rtol=tolerance, atol=tolerance / 10)


def test_what_is_refused() -> None:
    y = np.zeros((2, 3), np.float32)
    rows = np.arange(2, dtype=np.int32)
    labels = np.zeros(3, np.int64)
    act = Activation("identity")

    def call(loss: str, targets: Targets, rows: Any = rows, images: int = 3) -> None:
        loss_gradient(loss, act, y, targets, rows, 2, images, One())

    with pytest.raises(UsageError, match="--loss: unknown loss 'hinge': known are cross-entropy"):
        call("hinge", Targets(labels, None))
    for targets in (Targets(None, None), Targets(labels, y)):
        with pytest.raises(UsageError, match="exactly one of both"):
            call("mse", targets)
    with pytest.raises(UsageError, match="a mean over 2 images, with 3 of them given"):
        call("mse", Targets(labels, None), images=2)
    with pytest.raises(ShapeError, match=r"outputs have shape \(2, 3\), expected \(1, batch\)"):
        call("mse", Targets(labels, None), rows=rows[:1])
    with pytest.raises(ShapeError, match="labels have shape"):
        call("mse", Targets(labels[:2], None))
    with pytest.raises(ShapeError, match="target values have shape"):
        call("mse", Targets(None, y[:1]))
    with pytest.raises(UsageError, match="softmax has no derivative"):
        derivative(Activation("softmax"), y)
