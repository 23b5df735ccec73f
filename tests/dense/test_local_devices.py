"""What a GPU would run, with NumPy in place of CuPy and a recorder in place of cuDNN."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fake_cudnn import ConvolutionCalls
from sparsednn.dense.local import BACKENDS, make_backend
from sparsednn.dense.local import choose as choose_module
from sparsednn.dense.local.columns import ColumnBackend
from sparsednn.dense.local.cupy_backend import CupyBackend
from sparsednn.dense.local.parts import Parts
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.errors import MissingDependencyError, UnknownNameError, UsageError

REFERENCE = ReferenceBackend()
SHAPES = [
    ((3, 4, 9, 8), (6, 4, 3, 3), {"stride": (1, 1), "pads": (1, 1, 1, 1)}),
    ((3, 4, 9, 8), (6, 2, 3, 2), {"stride": (2, 1), "pads": (0, 2, 1, 0), "groups": 2}),
    ((2, 6, 9, 8), (6, 1, 2, 3), {"stride": (2, 3), "dilation": (2, 2), "groups": 6}),
    ((2, 5, 4, 6), (7, 5, 4, 6), {}),
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((0, 3, 5, 5), (4, 3, 3, 3), {}),
    ((2, 0, 5, 5), (4, 0, 3, 3), {}),
    ((2, 3, 0, 5), (4, 3, 3, 3), {"pads": (2, 1, 1, 1)}),
    ((2, 3, 2, 2), (4, 3, 3, 3), {}),
]


class NotSupportedError(Exception):
    pass


class FakeTensor:
    def __init__(self, dim: list[int] | None = None, stride: list[int] | None = None) -> None:
        self.dim, self.stride, self.is_output, self.dtype = dim, stride, False, ""

    def set_output(self, value: bool) -> FakeTensor:
        self.is_output = value
        return self

    def set_data_type(self, value: str) -> FakeTensor:
        self.dtype = value
        return self

    def set_dim(self, value: list[int]) -> FakeTensor:
        self.dim = value
        return self

    def set_stride(self, value: list[int]) -> FakeTensor:
        self.stride = value
        return self


class FakeGraph(ConvolutionCalls):
    """Takes the calls that ``cudnn.pygraph`` does, in the order that it wants."""

    def __init__(self, module: FakeCudnn, handle: Any) -> None:
        self.module, self.handle, self.calls = module, handle, ["pygraph"]

    def tensor(self, *, name: str, dim: list[int], stride: list[int], data_type: str) -> FakeTensor:
        return FakeTensor(dim, stride)

    def _operation(self, kind: str, first: Any, second: Any, window: dict[str, Any]) -> FakeTensor:
        self.kind, self.inputs, self.window, self.output = (
            kind,
            (first, second),
            window,
            FakeTensor(),
        )
        return self.output

    def deselect_numeric_notes(self, notes: list[str]) -> None:
        assert self.calls[-1] == "create_execution_plans"
        assert "NONDETERMINISTIC" in notes
        self.notes = notes

    def check_support(self) -> None:
        if self.module.refuses:
            raise NotSupportedError

    def build_plans(self) -> None:
        assert self.calls == [
            "pygraph", "validate", "build_operation_graph", "create_execution_plans"
        ]  # fmt: skip
        self.module.built.append(self)

    def get_workspace_size(self) -> int:
        return 48

    def execute(self, bindings: dict[Any, Any], workspace: Any, *, handle: Any) -> None:
        assert handle == self.handle == "handle"
        assert workspace.nbytes >= 48
        assert self.module.streams
        first, second = (bindings[tensor] for tensor in self.inputs)
        result = bindings[self.output]
        assert self.output.is_output
        for tensor in (*self.inputs, self.output):
            array = bindings[tensor]
            assert tensor.dim == list(array.shape)
            assert tensor.stride == [s // array.itemsize for s in _plain_strides(array)]
            assert array.flags.c_contiguous
        (top, left), (bottom, right) = self.window["pre_padding"], self.window["post_padding"]
        channels = {"forward": (first, second.shape), "input": (result, second.shape),
                    "kernel": (first, result.shape)}[self.kind]  # fmt: skip
        window = {
            "stride": tuple(self.window["stride"]),
            "dilation": tuple(self.window["dilation"]),
            "pads": (top, left, bottom, right),
            "groups": channels[0].shape[1] // channels[1][1],
        }
        if self.kind == "forward":
            result[:] = REFERENCE.convolution(first, second, **window)
        elif self.kind == "input":
            result[:] = REFERENCE.convolution_input_gradient(first, second, result.shape, **window)
        else:
            result[:] = REFERENCE.convolution_kernel_gradient(first, second, result.shape, **window)
        self.module.executed += 1


def _plain_strides(array: Any) -> Any:
    return np.empty(array.shape, array.dtype).strides


class FakeCudnn:
    """The names of nvidia-cudnn-frontend that we use."""

    class data_type:  # noqa: N801 - the module's own name
        FLOAT, DOUBLE = "FLOAT", "DOUBLE"

    class heur_mode:  # noqa: N801 - the module's own name
        A, FALLBACK = "A", "FALLBACK"

    class numerical_note:  # noqa: N801 - the module's own name
        NONDETERMINISTIC, TENSOR_CORE = "NONDETERMINISTIC", "TENSOR_CORE"
        DOWN_CONVERT_INPUTS = "DOWN_CONVERT_INPUTS"
        REDUCED_PRECISION_REDUCTION = "REDUCED_PRECISION_REDUCTION"

    cudnnGraphNotSupportedError = NotSupportedError  # noqa: N815 - the module's own name

    def __init__(self, refuses: bool = False) -> None:
        self.refuses, self.executed = refuses, 0
        self.built: list[FakeGraph] = []
        self.streams: list[int] = []

    def create_handle(self) -> str:
        return "handle"

    def set_stream(self, *, handle: str, stream: int) -> None:
        self.streams.append(stream)

    def pygraph(self, *, name: str, handle: str, **types: str) -> FakeGraph:
        assert set(types.values()) <= {"FLOAT", "DOUBLE"}
        return FakeGraph(self, handle)


def check(backend: Any, shape: Any, dtype: Any = np.float64) -> None:
    x_shape, kernel_shape, window = shape
    rng = np.random.default_rng(20)
    x = rng.standard_normal(x_shape).astype(dtype)
    kernel = rng.standard_normal(kernel_shape).astype(dtype)
    y = REFERENCE.convolution(x, kernel, **window)
    dy = rng.standard_normal(y.shape).astype(dtype)
    tolerance = 1e-12 if dtype == np.float64 else 1e-4
    expected = [y, *REFERENCE.convolution_gradients(x, dy, kernel, **window)]
    found = [
        backend.convolution(x, kernel, **window),
        *backend.convolution_gradients(x, dy, kernel, **window),
    ]
    for ours, truth in zip(found, expected, strict=True):
        assert ours.shape == truth.shape
        assert ours.dtype == dtype
        np.testing.assert_allclose(backend.to_host(ours), truth, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("memory", [1, 3000, 1 << 28])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_columns(shape: Any, memory: int, dtype: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ColumnBackend, "bytes_of_columns", memory)
    check(CupyBackend(xp=np), shape, dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cudnn(shape: Any, dtype: Any) -> None:
    cudnn = FakeCudnn()
    backend = CupyBackend(xp=np, cudnn=cudnn)
    check(backend, shape, dtype)
    empty = (
        0 in shape[0]
        or backend.convolution(np.ones(shape[0], dtype), np.ones(shape[1], dtype), **shape[2]).size
        == 0
    )
    assert len(cudnn.built) == (0 if empty else 3)
    check(backend, shape, dtype)
    assert len(cudnn.built) == (0 if empty else 3)  # each graph is built once
    assert cudnn.executed == (0 if empty else 7)


def test_what_cudnn_has_no_engine_for_goes_by_columns() -> None:
    cudnn = FakeCudnn(refuses=True)
    check(CupyBackend(xp=np, cudnn=cudnn), SHAPES[0])
    assert cudnn.executed == 0


def test_backends_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert make_backend("reference").name == "reference"
    assert make_backend("im2col", threads=2).threads == 2
    with pytest.raises(UnknownNameError, match="'mkl'; there are auto, torch, im2col"):
        make_backend("mkl")
    with pytest.raises(UsageError, match="found 0"):
        make_backend(threads=0)
    monkeypatch.setattr(choose_module, "find_spec", lambda name: None)
    assert make_backend().name == "im2col"
    for name in ("torch", "cupy"):
        with pytest.raises(MissingDependencyError, match="pip install 'sparsednn"):
            make_backend(name)


def test_automatic_choice_is_pytorch() -> None:
    pytest.importorskip("torch")
    assert make_backend().name == "torch"
    assert set(BACKENDS) == {"torch", "im2col", "reference", "cupy"}


def test_cupy_needs_a_device() -> None:
    cupy = pytest.importorskip("cupy")
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        devices = 0
    if devices:
        for shape in SHAPES:  # where there is one, the real thing
            check_on_device(shape)
    else:
        with pytest.raises(MissingDependencyError, match="needs a GPU"):
            make_backend("cupy")


def check_on_device(shape: Any) -> None:
    backend, (x_shape, kernel_shape, window) = make_backend("cupy"), shape
    rng = np.random.default_rng(20)
    x, kernel = rng.standard_normal(x_shape), rng.standard_normal(kernel_shape)
    y = backend.convolution(backend.from_host(x), backend.from_host(kernel), **window)
    truth = REFERENCE.convolution(x, kernel, **window)
    np.testing.assert_allclose(backend.to_host(y), truth, rtol=0, atol=1e-12)


def test_parts_cover_the_range_and_tell_of_errors() -> None:
    parts = Parts(3)
    for size, work, least in [(10, 100, 1), (2, 100, 1), (10, 5, 3), (0, 0, 1), (7, 0, 1)]:
        bounds = parts.bounds(size, work, least)
        assert [n for a, b in bounds for n in range(a, b)] == list(range(size))
        assert 1 <= len(bounds) <= 3
        assert all(b > a for a, b in bounds) or size == 0
    assert len(parts.bounds(10, 5, 3)) == 1
    seen: list[tuple[int, int, int]] = []
    parts.run([(0, 1), (1, 4), (4, 5)], lambda *part: seen.append(part))
    assert sorted(seen) == [(0, 0, 1), (1, 1, 4), (2, 4, 5)]

    def fails(number: int, first: int, last: int) -> None:
        if number == 2:
            raise ValueError("part 2")

    with pytest.raises(ValueError, match="part 2"):
        parts.run([(0, 1), (1, 4), (4, 5)], fails)
