"""Pooling, ReLU and batch normalisation of all backends: against loops and against PyTorch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsednn.dense.local import make_backend
from sparsednn.dense.local.compiled import CompiledBackend
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.local.windows import output_size
from sparsednn.errors import ShapeError

REFERENCE = ReferenceBackend()


@pytest.fixture(scope="module", params=["reference", "compiled-1", "compiled-2"])
def backend(request: pytest.FixtureRequest) -> Any:
    name, _, threads = request.param.partition("-")
    return CompiledBackend(int(threads)) if name == "compiled" else REFERENCE


Case = tuple[tuple[int, int, int, int], dict[str, Any]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    small, size = st.integers(0, 3), st.integers(0, 12)
    pair = st.tuples(st.integers(1, 4), st.integers(1, 4))
    pads = st.tuples(*[st.integers(0, 3)] * 4)
    shape = draw(small), draw(small), draw(size), draw(size)
    return shape, {"taps": draw(pair), "stride": draw(pair), "pads": draw(pads)}


def case(shape: Any, taps: Any, stride: Any, pads: Any = (0, 0, 0, 0)) -> Case:
    return shape, {"taps": taps, "stride": stride, "pads": pads}


EDGES = [
    case((2, 3, 8, 8), (2, 2), (2, 2)),
    case((2, 3, 9, 7), (2, 2), (2, 2)),  # a row and a column that no window meets
    case((1, 1, 1, 1), (2, 2), (2, 2)),
    case((1, 1, 1, 1), (1, 1), (1, 1)),
    case((2, 3, 13, 11), (3, 3), (2, 2)),
    case((2, 3, 8, 8), (3, 3), (2, 2), (1, 1, 1, 1)),
    case((2, 3, 8, 8), (3, 3), (2, 2), (1, 0, 0, 1)),
    case((2, 3, 7, 7), (7, 7), (1, 1)),
    case((2, 1, 18, 17), (17, 16), (1, 1)),  # more taps than a byte can number
    case((0, 3, 8, 8), (2, 2), (2, 2)),
    case((2, 3, 3, 3), (2, 2), (1, 1), (3, 3, 3, 3)),  # windows of pads only
]


def windows(case_: Case) -> Any:
    """Index and elements ``(tap number, row, column)`` of each window."""
    shape, window = case_
    size = output_size(shape, window["taps"], window["stride"], window["pads"])
    for i, j in product(*map(range, size)):
        elements = []
        for number, (ti, tj) in enumerate(product(*map(range, window["taps"]))):
            row = i * window["stride"][0] + ti - window["pads"][0]
            column = j * window["stride"][1] + tj - window["pads"][1]
            if 0 <= row < shape[2] and 0 <= column < shape[3]:
                elements.append((number, row, column))
        yield (i, j), elements


def values(rng: np.random.Generator, shape: Any, dtype: Any) -> Any:
    # Few different numbers: there are equal ones in a window.
    a = rng.integers(-3, 3, shape).astype(dtype)
    a.flags.writeable = False
    return a


def check_max_pool(backend: Any, case_: Case, dtype: Any, nan: bool) -> None:
    shape, window = case_
    rng = np.random.default_rng([7, *shape])
    x = values(rng, shape, dtype)
    if nan:
        x = np.where(rng.random(shape) < 0.2, np.nan, x).astype(dtype)
    y, where = backend.max_pool(x, **window)
    dy = values(rng, y.shape, dtype)
    dx = backend.max_pool_gradient(dy, where, shape, **window)
    expected_y, expected_dx = np.full(y.shape, -np.inf), np.zeros(shape)
    for (n, c), ((i, j), elements) in product(np.ndindex(shape[:2]), list(windows(case_))):
        largest, at = -np.inf, None
        for _, row, column in elements:
            v = x[n, c, row, column]
            if at is None or v > largest or np.isnan(v):
                largest, at = v, (row, column)
        if at is not None:
            expected_y[n, c, i, j] = largest
            expected_dx[n, c, at[0], at[1]] += dy[n, c, i, j]
    assert y.dtype == dx.dtype == dtype
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_max_pool_edges(backend: Any, edge: Case, dtype: Any) -> None:
    check_max_pool(backend, edge, dtype, nan=False)
    check_max_pool(backend, edge, dtype, nan=True)


@settings(max_examples=50, deadline=None)
@given(cases(), st.booleans())
def test_max_pool(backend: Any, case_: Case, nan: bool) -> None:
    check_max_pool(backend, case_, np.float64, nan)


def check_average_pool(backend: Any, case_: Case, dtype: Any, seed: int) -> None:
    shape, window = case_
    rng = np.random.default_rng([8, seed, *shape])
    x = rng.standard_normal(shape).astype(dtype)
    size = output_size(shape, window["taps"], window["stride"], window["pads"])
    count: Any = rng.uniform(1, 5, size) if seed % 2 else 3.0
    y = backend.average_pool(x, **window, count=count)
    dy = rng.standard_normal(y.shape).astype(dtype)
    dx = backend.average_pool_gradient(dy, shape, **window, count=count)
    expected_y, expected_dx = np.zeros(y.shape), np.zeros(shape)
    for (i, j), elements in windows(case_):
        divisor = np.broadcast_to(count, size)[i, j]
        for _, row, column in elements:
            expected_y[:, :, i, j] += x[:, :, row, column].astype(float) / divisor
            expected_dx[:, :, row, column] += dy[:, :, i, j].astype(float) / divisor
    assert y.dtype == dx.dtype == dtype
    tolerance = 1e-13 if dtype == np.float64 else 2e-5
    np.testing.assert_allclose(y, expected_y, rtol=0, atol=tolerance)
    np.testing.assert_allclose(dx, expected_dx, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_average_pool_edges(backend: Any, edge: Case, dtype: Any) -> None:
    for seed in (0, 1):
        check_average_pool(backend, edge, dtype, seed)


@settings(max_examples=40, deadline=None)
@given(cases(), st.integers(0, 1))
def test_average_pool(backend: Any, case_: Case, seed: int) -> None:
    check_average_pool(backend, case_, np.float64, seed)


@pytest.mark.parametrize(
    ("taps", "stride", "pads"), [((2, 2), 2, 0), ((3, 3), 2, 1), ((3, 2), 1, 1)]
)
@settings(max_examples=15, deadline=None)
@given(size=st.tuples(st.integers(4, 13), st.integers(4, 13)), nan=st.booleans())
@example(size=(5, 4), nan=True)
def test_pools_of_pytorch(
    backend: Any, taps: Any, stride: int, pads: int, size: Any, nan: bool
) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    rng = np.random.default_rng([9, *size])
    x = values(rng, (2, 3, *size), np.float64)
    if nan:
        x = np.where(rng.random(x.shape) < 0.1, np.nan, x)
    window = {"taps": taps, "stride": (stride, stride), "pads": (pads,) * 4}
    for ours, theirs in (
        (lambda: backend.max_pool(x, **window), functional.max_pool2d),
        (None, functional.avg_pool2d),
    ):
        tensor = torch.tensor(x, requires_grad=True)
        truth = theirs(tensor, taps, stride, pads)
        dy = rng.standard_normal(truth.shape)
        truth.backward(torch.from_numpy(dy))
        if ours is not None:
            y, where = ours()
            dx = backend.max_pool_gradient(dy, where, x.shape, **window)
        else:
            count = float(taps[0] * taps[1])
            y = backend.average_pool(x, **window, count=count)
            dx = backend.average_pool_gradient(dy, x.shape, **window, count=count)
        np.testing.assert_allclose(y, truth.detach().numpy(), rtol=0, atol=1e-13)
        np.testing.assert_allclose(dx, tensor.grad.numpy(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 5, 4, 7), (0, 2, 3, 3), (1, 1, 1, 1), (9, 8, 41, 33)])
def test_relu(backend: Any, shape: Any, dtype: Any) -> None:
    rng = np.random.default_rng(10)
    x = rng.standard_normal(shape).astype(dtype)
    if x.size > 1:
        x.reshape(-1)[:4] = [np.nan, 0.0, -0.0, np.inf]
    dy = rng.standard_normal(shape).astype(dtype)
    y = backend.relu(x)
    np.testing.assert_array_equal(y, np.where(np.isnan(x), x, np.where(x > 0, x, 0)))
    expected = np.where(y == 0, 0, dy)
    kept = x.copy(), dy.copy()
    np.testing.assert_array_equal(backend.relu_gradient(dy, y), expected)
    np.testing.assert_array_equal(x, kept[0])
    np.testing.assert_array_equal(dy, kept[1])
    assert backend.relu(x, in_place=True) is x
    assert backend.relu_gradient(dy, y, in_place=True) is dy
    np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(dy, expected)
    assert y.dtype == dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape", [(3, 5, 4, 7), (1, 1, 1, 1), (2, 3, 5, 16), (0, 2, 3, 3), (2, 0, 3, 3), (9, 5, 41, 33)]
)
def test_batch_normalisation(backend: Any, shape: Any, dtype: Any) -> None:
    rng = np.random.default_rng(11)
    x = (3 + 2 * rng.standard_normal(shape)).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    gamma, beta, mean, a, b = (rng.uniform(0.5, 2, shape[1]) for _ in range(5))
    inverse_std = rng.uniform(0.5, 2, shape[1])

    def wide(v: Any) -> Any:
        return v.astype(float)[None, :, None, None]

    axes, x_hat = (0, 2, 3), (x.astype(float) - wide(mean)) * wide(inverse_std)
    sums = backend.channel_sums(x)
    squares = backend.channel_squares(x, mean)
    first, second = backend.normalize_gradient_sums(dy, x, mean, inverse_std)
    scale = max(1.0, x.size)
    for found, truth in (
        (sums, x.astype(float).sum(axes)),
        (squares, ((x.astype(float) - wide(mean)) ** 2).sum(axes)),
        (first, dy.astype(float).sum(axes)),
        (second, (dy.astype(float) * x_hat).sum(axes)),
    ):
        assert found.dtype == np.float64
        assert found.shape == (shape[1],)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-14 * scale)
    tolerance = 1e-12 if dtype == np.float64 else 1e-5
    y = backend.normalize(x, mean, inverse_std, gamma, beta.astype(dtype))
    dx = backend.normalize_gradient(dy, x, mean, inverse_std, gamma, a, b)
    assert y.dtype == dx.dtype == dtype
    expected = x_hat * wide(gamma) + wide(beta.astype(dtype))
    np.testing.assert_allclose(y, expected, rtol=0, atol=10 * tolerance)
    expected = wide(gamma) * wide(inverse_std) * (dy - wide(a) - x_hat * wide(b))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=20 * tolerance)


def test_batch_normalisation_of_pytorch(backend: Any) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(12)
    x, dy = rng.standard_normal((5, 4, 6, 3)), rng.standard_normal((5, 4, 6, 3))
    gamma, beta = rng.uniform(0.5, 2, 4), rng.standard_normal(4)
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    truth = torch.nn.functional.batch_norm(
        tensors[0], None, None, tensors[1], tensors[2], training=True, eps=1e-5
    )
    truth.backward(torch.from_numpy(dy))
    n = x.size / 4
    mean = backend.channel_sums(x) / n
    inverse_std = 1 / np.sqrt(backend.channel_squares(x, mean) / n + 1e-5)
    dbeta, dgamma = backend.normalize_gradient_sums(dy, x, mean, inverse_std)
    found = (
        backend.normalize(x, mean, inverse_std, gamma, beta),
        backend.normalize_gradient(dy, x, mean, inverse_std, gamma, dbeta / n, dgamma / n),
        dgamma,
        dbeta,
    )
    for ours, theirs in zip(found, [truth.detach(), *(t.grad for t in tensors)], strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=1e-12)


def test_sums_do_not_depend_on_threads() -> None:
    rng = np.random.default_rng(13)
    x, dy = (rng.standard_normal((9, 7, 37, 33)).astype(np.float32) for _ in range(2))
    mean, one = rng.standard_normal(7), np.ones(7)
    found = []
    for threads in (1, 2, 3):
        b = CompiledBackend(threads)
        found.append(
            [
                *(b.channel_sums(x), b.channel_squares(x, mean), b.relu(x)),
                *b.normalize_gradient_sums(dy, x, mean, one),
                *b.max_pool(x, taps=(3, 3), stride=(2, 2), pads=(1, 1, 1, 1)),
            ]
        )
    for other in found[1:]:
        for a, b_ in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b_)


def test_gradients_of_other_shapes_are_refused(backend: Any) -> None:
    window = {"taps": (2, 2), "stride": (2, 2)}
    dy, where = np.ones((1, 2, 4, 4)), np.zeros((1, 2, 4, 4), np.uint8)
    with pytest.raises(ShapeError, match=r"found \(1, 2, 4, 4\), expected \(1, 2, 3, 3\)"):
        backend.max_pool_gradient(dy, where, (1, 2, 6, 6), **window)
    with pytest.raises(ShapeError, match="expected"):
        backend.average_pool_gradient(dy, (1, 3, 8, 8), **window, count=4.0)


@pytest.mark.parametrize("name", ["reference", "im2col", "torch"])
def test_arrays(name: str) -> None:
    if name == "torch":
        pytest.importorskip("torch")
    b = make_backend(name)
    a = np.arange(6.0).reshape(2, 3)
    assert b.name == name
    assert b.to_host(a) is a
    assert b.from_host(a) is a
    assert b.empty((2, 0, 3), np.float32).shape == (2, 0, 3)
    zeros = b.zeros((4, 5), np.float32)
    assert zeros.dtype == np.float32
    assert not zeros.any()
