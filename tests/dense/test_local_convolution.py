"""Convolutions of all backends: against loops, against each other, and against PyTorch."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsednn.dense.local import make_backend
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.local.windows import output_size
from sparsednn.errors import ShapeError

# (x shape, kernel shape, window)
Case = tuple[tuple[int, int, int, int], tuple[int, int, int, int], dict[str, Any]]


@pytest.fixture(scope="module", params=["im2col-1", "im2col-2", "torch-1", "torch-2"])
def backend(request: pytest.FixtureRequest) -> Any:
    name, threads = request.param.split("-")
    if name == "torch":
        pytest.importorskip("torch")
    return make_backend(name, int(threads))


def by_loops(x: Any, kernel: Any, window: dict[str, Any]) -> Any:
    """The definition, element by element."""
    (k, cg, r, s), groups = kernel.shape, window["groups"]
    stride, dilation, (top, left, _, _) = window["stride"], window["dilation"], window["pads"]
    ho, wo = output_size(x.shape, (r, s), stride, window["pads"], dilation)
    y = np.zeros((len(x), k, ho, wo))
    for f, i, j, c, ti, tj in product(*map(range, (k, ho, wo, cg, r, s))):
        row = i * stride[0] + ti * dilation[0] - top
        column = j * stride[1] + tj * dilation[1] - left
        if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
            y[:, f, i, j] += x[:, f // (k // groups) * cg + c, row, column] * kernel[f, c, ti, tj]
    return y


def case(
    x: tuple[int, int, int, int],
    kernel: tuple[int, int, int, int],
    stride: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Case:
    return x, kernel, {"stride": stride, "pads": pads, "dilation": dilation, "groups": groups}


@st.composite
def cases(draw: st.DrawFn, largest_channels: int = 9, pads: int = 4) -> Case:
    groups = draw(st.sampled_from([1, 1, 1, 2, 3]))
    cg, kg = draw(st.integers(1, largest_channels)), draw(st.integers(1, largest_channels))
    if draw(st.booleans()) and groups > 1:
        cg = kg = 1
    small = st.integers(1, 3)
    taps, stride, dilation = [(draw(st.integers(1, top)), draw(st.integers(1, top)))
                              for top in (4, 3, 3)]  # fmt: skip
    around = tuple(draw(st.integers(0, pads)) for _ in range(4))
    size = draw(st.integers(1, 11)), draw(st.integers(1, 11))
    return case(
        (draw(small), groups * cg, *size), (groups * kg, cg, *taps), stride, around,  # type: ignore[arg-type]
        dilation, groups,
    )  # fmt: skip


EDGES = [
    case((0, 3, 5, 5), (4, 3, 3, 3), pads=(1, 1, 1, 1)),
    case((2, 0, 5, 5), (4, 0, 3, 3), pads=(1, 1, 1, 1)),
    case((2, 3, 0, 5), (4, 3, 3, 3), pads=(2, 1, 1, 1)),
    case((2, 3, 5, 0), (4, 3, 3, 3)),
    case((2, 3, 5, 5), (0, 3, 3, 3)),
    case((2, 3, 2, 2), (4, 3, 3, 3)),
    case((0, 6, 4, 4), (5, 6, 4, 4)),
    case((1, 1, 1, 1), (1, 1, 1, 1)),
    case((1, 1, 1, 1), (1, 1, 3, 3), pads=(1, 1, 1, 1)),
    case((3, 5, 4, 6), (7, 5, 4, 6)),  # the kernel covers the image
    case((3, 5, 7, 6), (7, 5, 1, 1)),
    case((3, 5, 7, 6), (7, 5, 1, 1), stride=(2, 3)),
    case((3, 5, 7, 6), (7, 5, 1, 1), stride=(2, 1), pads=(1, 0, 2, 3)),
    case((2, 4, 9, 9), (8, 4, 3, 3), pads=(1, 1, 1, 1)),
    case((2, 16, 9, 9), (16, 16, 3, 3), pads=(1, 1, 1, 1)),
    case((2, 6, 9, 9), (6, 1, 3, 3), pads=(1, 1, 1, 1), groups=6),
    case((2, 6, 9, 9), (12, 1, 3, 3), (2, 2), (0, 1, 1, 0), groups=6),
    case((2, 2, 5, 5), (3, 2, 2, 2), pads=(5, 0, 4, 7)),  # pads larger than the window
    case((1, 20, 64, 66), (4, 20, 5, 5), pads=(2, 2, 2, 2)),  # one image has several blocks
    case((5, 64, 3, 3), (24, 64, 3, 3), (2, 1), (1, 1, 1, 1)),
    # Axes of one element: mirrored they are contiguous, with negative strides that torch refuses.
    case((2, 3, 5, 4), (1, 3, 1, 1)),
    case((2, 1, 5, 4), (3, 1, 1, 1), pads=(0, 0, 0, 1)),
]


def check(backend: Any, given_case: Case, dtype: type, tolerance: float, seed: int = 0) -> None:
    x_shape, kernel_shape, window = given_case
    rng = np.random.default_rng([seed, *x_shape, *kernel_shape])
    x, kernel = rng.standard_normal(x_shape), rng.standard_normal(kernel_shape)
    reference = ReferenceBackend()
    y = reference.convolution(x, kernel, **window)
    dy = rng.standard_normal(y.shape)
    x, kernel, dy = x.astype(dtype), kernel.astype(dtype), dy.astype(dtype)
    for a in (x, kernel, dy):
        a.flags.writeable = False
    wide = x.astype(float), dy.astype(float), kernel.astype(float)
    expected = [
        reference.convolution(wide[0], wide[2], **window),
        reference.convolution_input_gradient(wide[1], wide[2], x.shape, **window),
        reference.convolution_kernel_gradient(wide[0], wide[1], kernel.shape, **window),
    ]
    found = [
        backend.convolution(x, kernel, **window),
        backend.convolution_input_gradient(dy, kernel, x.shape, **window),
        backend.convolution_kernel_gradient(x, dy, kernel.shape, **window),
    ]
    found += backend.convolution_gradients(x, dy, kernel, **window)
    for ours, truth in zip(found, [*expected, *expected[1:]], strict=True):
        assert ours.shape == truth.shape
        assert ours.dtype == dtype
        assert ours.flags.c_contiguous
        assert ours.flags.writeable
        scale = max(1.0, float(np.abs(truth).max(initial=0)))
        np.testing.assert_allclose(ours, truth, rtol=0, atol=tolerance * scale)


@settings(max_examples=30, deadline=None)
@given(cases(largest_channels=3))
@example(EDGES[2])
@example(EDGES[17])
def test_reference_is_the_definition(given_case: Case) -> None:
    x_shape, kernel_shape, window = given_case
    rng = np.random.default_rng(3)
    x, kernel = rng.standard_normal(x_shape), rng.standard_normal(kernel_shape)
    y = ReferenceBackend().convolution(x, kernel, **window)
    np.testing.assert_allclose(y, by_loops(x, kernel, window), rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(cases())
def test_reference_gradients_are_the_transpose(given_case: Case) -> None:
    # <dy, C(x, k)> is linear in x and in k: both gradients give it back.
    x_shape, kernel_shape, window = given_case
    rng, reference = np.random.default_rng(4), ReferenceBackend()
    x, kernel = rng.standard_normal(x_shape), rng.standard_normal(kernel_shape)
    y = reference.convolution(x, kernel, **window)
    dy = rng.standard_normal(y.shape)
    dx, dkernel = reference.convolution_gradients(x, dy, kernel, **window)
    assert np.vdot(dy, y) == pytest.approx(np.vdot(dx, x), rel=1e-10, abs=1e-10)
    assert np.vdot(dy, y) == pytest.approx(np.vdot(dkernel, kernel), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("edge", EDGES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-13), (np.float32, 1e-5)])
def test_edges(backend: Any, edge: Case, dtype: type, tolerance: float) -> None:
    check(backend, edge, dtype, tolerance)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_random_shapes(backend: Any, given_case: Case) -> None:
    check(backend, given_case, np.float64, 1e-13)


@settings(max_examples=30, deadline=None)
@given(cases(largest_channels=20))
def test_random_shapes_float32(backend: Any, given_case: Case) -> None:
    check(backend, given_case, np.float32, 1e-5)


@pytest.mark.parametrize("name", ["reference", "im2col", "torch"])
@settings(max_examples=40, deadline=None)
@given(given_case=cases(pads=3))
@example(given_case=EDGES[13])
@example(given_case=EDGES[9])
def test_equal_to_autograd(name: str, given_case: Case) -> None:
    torch = pytest.importorskip("torch")
    x_shape, kernel_shape, window = given_case
    rng, backend = np.random.default_rng(5), make_backend(name)
    x, kernel = rng.standard_normal(x_shape), rng.standard_normal(kernel_shape)
    y = backend.convolution(x, kernel, **window)
    if y.size == 0:
        return  # PyTorch refuses an image smaller than the window
    dy = rng.standard_normal(y.shape)
    tensors = torch.from_numpy(x).requires_grad_(), torch.from_numpy(kernel).requires_grad_()
    top, left, bottom, right = window["pads"]
    padded = torch.nn.functional.pad(tensors[0], (left, right, top, bottom))
    truth = torch.conv2d(
        padded, tensors[1], None, window["stride"], 0, window["dilation"], window["groups"]
    )
    truth.backward(torch.from_numpy(dy))
    dx, dkernel = backend.convolution_gradients(x, dy, kernel, **window)
    np.testing.assert_allclose(y, truth.detach().numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dx, tensors[0].grad.numpy(), rtol=0, atol=1e-11)
    np.testing.assert_allclose(dkernel, tensors[1].grad.numpy(), rtol=0, atol=1e-11)


def test_enough_work_for_all_threads_gives_the_same(backend: Any) -> None:
    # Large enough to be dealt out; odd numbers, so that parts are not equal.
    for shape in [
        case((7, 16, 31, 29), (20, 16, 3, 3), pads=(1, 0, 1, 1)),
        case((7, 16, 31, 29), (40, 16, 3, 3), (2, 2), (1, 1, 1, 1)),
        case((7, 32, 31, 29), (48, 32, 1, 1)),
        case((9, 64, 6, 5), (301, 64, 6, 5)),
    ]:
        check(backend, shape, np.float32, 1e-5)
        x_shape, kernel_shape, window = shape
        rng = np.random.default_rng(6)
        x, kernel = (rng.standard_normal(s).astype(np.float32) for s in (x_shape, kernel_shape))
        first = backend.convolution(x, kernel, **window)
        dkernel = backend.convolution_kernel_gradient(x, first, kernel.shape, **window)
        np.testing.assert_array_equal(first, backend.convolution(x, kernel, **window))
        again = backend.convolution_kernel_gradient(x, first, kernel.shape, **window)
        np.testing.assert_array_equal(dkernel, again)


def test_what_does_not_fit_is_refused(backend: Any) -> None:
    x, kernel = np.ones((2, 3, 5, 5)), np.ones((4, 2, 3, 3))
    with pytest.raises(ShapeError, match="3 channels and 4 filters"):
        backend.convolution(x, kernel)
    with pytest.raises(ShapeError, match="groups"):
        backend.convolution(x, np.ones((4, 1, 3, 3)), groups=3)
    with pytest.raises(ShapeError, match=r"found \(2, 4, 5, 5\), expected \(2, 4, 3, 3\)"):
        backend.convolution_input_gradient(
            np.ones((2, 4, 5, 5)), np.ones((4, 3, 3, 3)), (2, 3, 5, 5)
        )
    with pytest.raises(ShapeError, match=r"expected \(images, channels"):
        backend.convolution(x[0], kernel)
