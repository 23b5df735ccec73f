"""Optimizers: PyTorch's rules, the compiled loops bit by bit, and what is refused."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.errors import ShapeError, UsageError
from sparsednn.kernels import updates
from sparsednn.kernels.updates import first_bad, squared_norm
from sparsednn.training.optimizers import SGD, Adam, Optimizer, check_rate, make_optimizer

RULES: list[SGD | Adam] = [
    SGD(),
    SGD(weight_decay=0.02),
    SGD(momentum=0.9),
    SGD(momentum=0.9, weight_decay=0.02),
    SGD(momentum=0.8, nesterov=True),
    SGD(momentum=0.8, nesterov=True, weight_decay=0.02),
    Adam(),
    Adam(beta1=0.5, beta2=0.9, epsilon=1e-3),
    Adam(beta1=0.0, beta2=0.0),
    Adam(weight_decay=0.02),
]


def random_start(optimizer: Optimizer, n: int, dtype: Any, seed: int = 1) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal(n).astype(dtype)
    gradients = rng.standard_normal((6, n)).astype(dtype)
    return theta, gradients, {name: np.zeros(n, dtype) for name in optimizer.slots}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_pytorch(rule: SGD | Adam, dtype: Any) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch==2.13.0")
    theta, gradients, slots = random_start(rule, 37, dtype)
    parameter = torch.tensor(theta, requires_grad=True)
    if isinstance(rule, SGD):
        theirs = torch.optim.SGD([parameter], lr=0.1, **asdict(rule))
    else:
        theirs = torch.optim.Adam(
            [parameter],
            betas=(rule.beta1, rule.beta2),
            eps=rule.epsilon,
            weight_decay=rule.weight_decay,
        )
    for step, gradient in enumerate(gradients, start=1):
        rate = 0.1 / step
        theirs.param_groups[0]["lr"] = rate
        parameter.grad = torch.tensor(gradient)
        theirs.step()
        rule.update(theta, gradient, slots, rate=rate, step=step)
        tolerance = 1e-5 if dtype == np.float32 else 1e-12
        np.testing.assert_allclose(
            theta, parameter.detach().numpy(), rtol=tolerance, atol=tolerance / 10
        )
    names = {"momentum": "momentum_buffer", "first": "exp_avg", "second": "exp_avg_sq"}
    for name, array in slots.items():
        expected = theirs.state[parameter][names[name]].numpy()
        np.testing.assert_allclose(array, expected, rtol=tolerance, atol=tolerance / 10)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_compiled_loops_equal_numpy_bit_by_bit(rule: SGD | Adam, scale: float) -> None:
    theta, gradients, slots = random_start(rule, 1003, np.float32)
    twin_theta = theta.copy()
    twin_slots = [array.copy() for array in slots.values()]
    for step, gradient in enumerate(gradients, start=1):
        before = gradient.copy()
        rule.update(theta, gradient, slots, rate=0.05, step=step, scale=scale)
        if isinstance(rule, SGD):
            rule._update_in_numpy(twin_theta, gradient, twin_slots, rate=0.05, scale=scale)
        else:
            rule._update_in_numpy(
                twin_theta,
                gradient,
                twin_slots,
                size=0.05 / (1 - rule.beta1**step),
                correction=math.sqrt(1 - rule.beta2**step),
                scale=scale,
            )
        np.testing.assert_array_equal(gradient, before)
    np.testing.assert_array_equal(theta, twin_theta)
    for array, twin in zip(slots.values(), twin_slots, strict=True):
        np.testing.assert_array_equal(array, twin)


@pytest.mark.parametrize("rule", [SGD(weight_decay=0.1), SGD(momentum=0.5), Adam()], ids=str)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_a_bit(rule: SGD | Adam, threads: int) -> None:
    n = updates._LARGE + 37
    theta, gradients, slots = random_start(rule, n, np.float32)
    other, others = theta.copy(), {name: array.copy() for name, array in slots.items()}
    for step, gradient in enumerate(gradients[:2], start=1):
        rule.update(theta, gradient, slots, rate=0.1, step=step)
        rule.update(other, gradient, others, rate=0.1, step=step, threads=threads)
    np.testing.assert_array_equal(theta, other)
    for name, array in slots.items():
        np.testing.assert_array_equal(array, others[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scale_comes_before_weight_decay(dtype: Any) -> None:
    theta = np.array([1.0, -2.0], dtype)
    gradient = np.array([4.0, 8.0], dtype)
    gradient.flags.writeable = False
    SGD(weight_decay=0.5).update(theta, gradient, {}, rate=0.5, step=1, scale=0.25)
    np.testing.assert_array_equal(theta, [1 - 0.5 * (1 + 0.5), -2 - 0.5 * (2 - 1)])


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_parameters(rule: SGD | Adam) -> None:
    empty = np.empty(0, np.float32)
    slots = {name: empty.copy() for name in rule.slots}
    rule.update(empty, empty.copy(), slots, rate=0.1, step=1, threads=4)
    assert squared_norm(empty) == 0.0
    assert first_bad(empty) == -1


def test_arrays_that_do_not_fit() -> None:
    three = np.zeros(3, np.float32)

    def update(theta: Any, gradient: Any, slots: Any) -> None:
        SGD(momentum=0.5).update(theta, gradient, slots, rate=0.1, step=1)

    with pytest.raises(ShapeError, match="sgd: no array for momentum"):
        update(three, three, {})
    with pytest.raises(ShapeError, match=r"gradient is float32 \(2,\), theta float32 \(3,\)"):
        update(three, three[:2], {"momentum": three})
    with pytest.raises(ShapeError, match="momentum is float64"):
        update(three, three, {"momentum": np.zeros(3)})
    with pytest.raises(ShapeError, match="gradient is not C-contiguous"):
        update(three, np.zeros(6, np.float32)[::2], {"momentum": three})
    with pytest.raises(ShapeError, match="flat arrays"):
        update(np.zeros((3, 1)), np.zeros((3, 1)), {"momentum": np.zeros((3, 1))})
    with pytest.raises(UsageError, match="count from 1, found step 0"):
        Adam().update(three, three, {"first": three, "second": three}, rate=0.1, step=0)


def test_make_optimizer() -> None:
    assert make_optimizer("sgd") == SGD()
    assert make_optimizer("sgd").slots == ()
    made = make_optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=1e-4)
    assert made == SGD(0.9, True, 1e-4)
    assert made.slots == ("momentum",)
    assert make_optimizer("adam") == Adam()
    made = make_optimizer("adam", betas=(0.8, 0.99), epsilon=1e-6, nesterov=False)
    assert made == Adam(0.8, 0.99, 1e-6)
    assert made.name == "adam"
    assert made.slots == ("first", "second")
    assert asdict(Adam()) == {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("rmsprop", {}, "--optimizer: unknown 'rmsprop': known are sgd, adam"),
        ("adam", {"momentum": 0.9}, "--momentum belongs to --optimizer sgd, not to adam"),
        ("adam", {"momentum": 0.0}, "--momentum belongs to --optimizer sgd"),
        ("adam", {"nesterov": True}, "--nesterov belongs to --optimizer sgd"),
        ("sgd", {"betas": (0.9, 0.99)}, "--betas belongs to --optimizer adam, not to sgd"),
        ("sgd", {"epsilon": 1e-8}, "--epsilon belongs to --optimizer adam"),
        ("sgd", {"momentum": 1.0}, "--momentum must be at least 0 and below 1, found 1.0"),
        ("sgd", {"momentum": math.nan}, "--momentum must be"),
        ("sgd", {"nesterov": True}, "--nesterov needs a --momentum above 0"),
        ("sgd", {"weight_decay": -0.1}, "--weight-decay must be at least 0"),
        ("adam", {"weight_decay": math.inf}, "--weight-decay must be at least 0 and finite"),
        ("adam", {"betas": (0.9,)}, "--betas takes two numbers, found 1"),
        ("adam", {"betas": (0.9, 1.0)}, "--betas must be at least 0 and below 1, found 1.0"),
        ("adam", {"betas": (-0.1, 0.9)}, "--betas must be"),
        ("adam", {"epsilon": 0.0}, "--epsilon must be above 0"),
    ],
)
def test_what_is_refused(name: str, given: dict[str, Any], line: str) -> None:
    with pytest.raises(UsageError, match=line):
        make_optimizer(name, **given)


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_none(rate: float) -> None:
    with pytest.raises(UsageError, match="--lr must be above 0 and finite"):
        check_rate(rate)
    assert check_rate(0.1) == 0.1


@pytest.mark.parametrize("n", [1, 7, 8, updates._BLOCK - 1, updates._BLOCK + 9, updates._LARGE + 5])
def test_squared_norm(n: int) -> None:
    array = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    squares = [float(x) * float(x) for x in array]
    found = squared_norm(array)
    assert found == pytest.approx(math.fsum(squares), rel=1e-13)
    assert {squared_norm(array, threads) for threads in (2, 3, 5)} == {found}
    assert squared_norm(array.astype(np.float64)) == found


def test_squared_norm_does_not_overflow_in_float32_nor_hide_anything() -> None:
    array = np.full(3, 1e30, np.float32)
    assert squared_norm(array) == pytest.approx(3e60)
    assert squared_norm(np.full(3, 1e200)) == math.inf
    # Each block is finite, their sum is not.
    assert squared_norm(np.full(2 * updates._BLOCK, 0.9e154 * 2**0.5 / 2**7)) == math.inf
    array[1] = np.inf
    assert squared_norm(array) == math.inf
    array[2] = np.nan
    assert math.isnan(squared_norm(array))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9000), st.data())
def test_first_bad(n: int, data: st.DataObject) -> None:
    array = np.full(n, np.float32(3e38))
    assert first_bad(array) == -1
    places = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3))
    for place in places:
        array[place] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    assert first_bad(array) == min(places)
    assert first_bad(array.astype(np.float64)) == min(places)
