"""`CudaDevice` and the choice of a device: what CuPy is asked to do, seen by a fake CuPy.

What a real GPU does then is in test_cuda_real.py.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu.fake_cupy import (
    FakeArray,
    FakeCompileError,
    FakeCupy,
    FakeDriverError,
    FakeOutOfMemoryError,
    FakeRuntimeError,
)

from ptx.nvrtc import why_not
from sparsednn.comm.alone import Alone
from sparsednn.errors import DeviceMemoryError, MissingDependencyError, SparseDNNError, UsageError
from sparsednn.gpu import find_device, programs, usable
from sparsednn.gpu.cuda import CudaDevice
from sparsednn.gpu.machine_code import machine_code
from sparsednn.gpu.ranks import find_devices
from sparsednn.gpu.twin import TwinDevice

OUT_OF_MEMORY = FakeRuntimeError("cudaErrorMemoryAllocation: out of memory")
TOO_OLD = FakeRuntimeError("cudaErrorInsufficientDriver: driver version is insufficient")


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeCupy:
    fake = FakeCupy()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.delenv("SPARSEDNN_DEVICE", raising=False)
    usable.usable_device.cache_clear()
    monkeypatch.setattr(programs, "source", lambda program: f"// {program}")
    yield fake
    usable.usable_device.cache_clear()


@pytest.fixture
def fake(cupy: FakeCupy) -> CudaDevice:
    device = CudaDevice(1)
    cupy.calls.clear()
    return device


def of(cupy: FakeCupy, *names: str) -> list[tuple[Any, ...]]:
    """The calls of these names; forgets all calls so far."""
    found = [call for call in cupy.calls if call[0] in names]
    cupy.calls.clear()
    return found


# --- what CuPy is asked to do ---------------------------------------------------------------------


def test_attributes(fake: CudaDevice, cupy: FakeCupy) -> None:
    assert (fake.name, fake.capability, fake.multiprocessors) == ("Fake GPU", (9, 0), 132)
    assert (fake.shared_bytes, fake.cache_bytes) == (232448, 50 << 20)
    assert (fake.ordinal, fake.driver, fake.runtime) == (1, "13.0", "13.2")
    assert fake.free_bytes() == 500 + 1000, "what the pool holds is free"
    assert fake.total_bytes() == 4000


def test_every_call_makes_its_device_current(fake: CudaDevice, cupy: FakeCupy) -> None:
    stream, event, kernel = fake.stream(), fake.event(), fake.function("layer", "one")
    array = fake.zeros(4, np.float32)
    graph = fake.capture(lambda stream: None)
    for call in (
        fake.free_bytes,
        fake.total_bytes,
        fake.stream,
        fake.event,
        fake.synchronize,
        lambda: fake.synchronize(stream),
        lambda: fake.empty(1, np.int32),
        lambda: fake.zeros(1, np.int32),
        lambda: fake.pinned(1, np.int32),
        lambda: fake.upload(np.zeros(4)),
        lambda: fake.download(array),
        lambda: fake.copy(array, array),
        lambda: fake.fill_zero(array),
        lambda: fake.function("layer", "two"),
        lambda: fake.launch(kernel, 1, 32, ()),
        lambda: fake.record(event, stream),
        lambda: fake.wait(event, stream),
        lambda: fake.capture(lambda stream: None),
        lambda: fake.replay(graph, stream),
    ):
        cupy.calls.clear()
        call()
        assert ("setDevice", 1) in cupy.calls
        assert ("setDevice", 0) not in cupy.calls


def test_modules_and_kernels_are_made_once(fake: CudaDevice, cupy: FakeCupy) -> None:
    one = fake.function("layer", "one", STORE=1, THREADS=256)
    assert fake.function("layer", "one", THREADS=256, STORE=1) is one
    fake.function("layer", "two", STORE=1, THREADS=256)
    assert cupy.modules == ["// layer"]
    assert cupy.compiled == [("// layer", (*programs.options({}), "-DSTORE=1", "-DTHREADS=256"))]
    fake.function("layer", "one", STORE=2, THREADS=256)
    fake.function("merge", "one", STORE=1, THREADS=256)
    assert cupy.modules == ["// layer", "// layer", "// merge"]
    assert len(cupy.compiled) == 3


def test_machine_code_is_kept(fake: CudaDevice, cupy: FakeCupy, tmp_path: Path) -> None:
    for _ in range(2):
        CudaDevice(0).function("layer", "one", STORE=1)
    assert len(cupy.compiled) == 1
    assert cupy.modules == 2 * ["// layer"]
    assert len(list((tmp_path / "kernels").iterdir())) == 1, "and nothing else"


def test_machine_code_wants_no_folder(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "file" / "below"))
    CudaDevice(0).function("layer", "one")
    assert cupy.modules == ["// layer"]


def test_launch(fake: CudaDevice, cupy: FakeCupy) -> None:
    kernel, stream = fake.function("layer", "one"), fake.stream()
    array = fake.empty(4, np.float32)
    cupy.calls.clear()
    fake.launch(kernel, 7, 256, (array, None, np.int32(3), np.float32(0.5)), stream=stream)
    fake.launch(kernel, (7, 2), 64, (), shared=1024)
    assert of(cupy, "launch", "shared") == [
        ("launch", "one", (7,), (256,), 0, stream.ptr),
        ("launch", "one", (7, 2), (64,), 1024, 0),
    ]
    fake.launch(kernel, 7, 256, (array, None, np.int32(3), np.float32(0.5)))
    array_too, null, number, real = cupy.launched
    assert array_too is array
    assert null == 0
    assert null.itemsize == 8, "a null pointer"
    assert (type(number), type(real)) == (np.int32, np.float32)


@pytest.mark.parametrize("wrong", [3, 0.5, np.zeros(1, np.float32), True, "x"])
def test_launch_takes_nothing_without_a_type(fake: CudaDevice, cupy: FakeCupy, wrong: Any) -> None:
    """CuPy takes Python's numbers as 64 bits wide, and a NumPy array of one value by value."""
    with pytest.raises(TypeError, match=r"one: argument .* no type"):
        fake.launch(fake.function("layer", "one"), 1, 32, (wrong,))
    assert not of(cupy, "launch")


@pytest.mark.parametrize(
    ("blocks", "threads", "shared"),
    [(0, 32, 0), ((4, 0), 32, 0), (1, 0, 0), (1, 1025, 0), (1, 32, 300 << 10)],
)
def test_launch_refuses_sizes(fake: CudaDevice, blocks: Any, threads: int, shared: int) -> None:
    with pytest.raises(ValueError, match="one: no grid"):
        fake.launch(fake.function("layer", "one"), blocks, threads, (), shared=shared)


def test_much_shared_memory_is_asked_for_once(fake: CudaDevice, cupy: FakeCupy) -> None:
    cupy.static_shared = 1024
    kernel = fake.function("layer", "one")
    for size in (0, 47 << 10):
        fake.launch(kernel, 1, 32, (), shared=size)
    assert not of(cupy, "shared")
    for size in (48 << 10, 100 << 10, 64 << 10, 226 << 10):
        fake.launch(kernel, 1, 32, (), shared=size)
    # All at once: another device object has the same kernel of the driver, and may want more.
    assert [call[2] for call in of(cupy, "shared")] == [226 << 10]
    with pytest.raises(ValueError, match="one: no grid"):
        fake.launch(kernel, 1, 32, (), shared=227 << 10)  # what it has itself counts, too


def test_compiler_errors_are_one_line(fake: CudaDevice, cupy: FakeCupy) -> None:
    log = "a.cu(1): warning: that\n\na.cu(3): error: this\na.cu(4): error: more"
    cupy.fails["compile"] = FakeCompileError(log)
    with pytest.raises(SparseDNNError) as caught:
        fake.function("layer", "one")
    assert str(caught.value) == "layer.cu does not compile: a.cu(3): error: this"
    del cupy.fails["compile"]
    cupy.fails["get_function"] = FakeDriverError("CUDA_ERROR_NOT_FOUND: named symbol not found")
    with pytest.raises(SparseDNNError, match=r"kernel nothing of layer.cu: CUDA_ERROR_NOT_FOUND"):
        fake.function("layer", "nothing")


def test_out_of_memory(fake: CudaDevice, cupy: FakeCupy) -> None:
    error = FakeOutOfMemoryError("Out of memory allocating 5 bytes\n(allocated so far: 3).")
    cupy.fails["empty"] = [error]
    assert fake.empty((2, 3), np.float32).shape == (2, 3)
    assert of(cupy, "empty", "free_all_blocks") == [
        ("empty", (2, 3)),
        ("free_all_blocks",),
        ("empty", (2, 3)),
    ]
    for make in (fake.empty, fake.zeros):
        cupy.fails["empty"] = [error, error]
        with pytest.raises(DeviceMemoryError) as caught:
            make((1000, 1000), np.float32)
        assert str(caught.value) == "Fake GPU: 4,000,000 bytes are wanted, 1,500 are free"
        assert (caught.value.wanted, caught.value.free) == (4_000_000, 1500)
        assert caught.value.exit_code == 3
    cupy.fails["pinned"] = OUT_OF_MEMORY
    with pytest.raises(DeviceMemoryError, match="80 bytes of page-locked memory"):
        fake.pinned(10, np.int64)


def test_kernel_errors(fake: CudaDevice, cupy: FakeCupy) -> None:
    cupy.fails["deviceSynchronize"] = FakeRuntimeError(
        "cudaErrorIllegalAddress: an illegal\naccess"
    )
    with pytest.raises(SparseDNNError) as caught:
        fake.synchronize()
    assert str(caught.value) == "Fake GPU: running: cudaErrorIllegalAddress: an illegal access"
    cupy.fails["launch"] = FakeDriverError("CUDA_ERROR_INVALID_VALUE: invalid argument")
    with pytest.raises(SparseDNNError, match="Fake GPU: starting one on 3 × 32 threads: CUDA_ERR"):
        fake.launch(fake.function("layer", "one"), 3, 32, ())


# --- copies ---------------------------------------------------------------------------------------


def test_copies_without_a_stream_wait(fake: CudaDevice, cupy: FakeCupy) -> None:
    host = np.arange(6, dtype=np.float32).reshape(2, 3)
    order = ("deviceSynchronize", "memcpyAsync", "memsetAsync", "streamSynchronize")
    array = fake.upload(host)
    assert (array.shape, array.dtype) == ((2, 3), np.float32)
    steps = [("deviceSynchronize",), ("memcpyAsync", 1, 24, 0), ("streamSynchronize", 0)]
    assert of(cupy, *order) == steps
    np.testing.assert_array_equal(fake.download(array), host)
    steps[1] = ("memcpyAsync", 2, 24, 0)
    assert of(cupy, *order) == steps
    zeros = fake.zeros(3, np.int64)
    assert not zeros.host.any()
    assert of(cupy, *order) == [
        ("deviceSynchronize",),
        ("memsetAsync", 24, 0),
        ("deviceSynchronize",),
    ]


def test_copies_on_a_stream(fake: CudaDevice, cupy: FakeCupy) -> None:
    stream = fake.stream()
    assert stream.non_blocking
    pinned = fake.pinned((2, 3), np.float32)
    pinned[:] = 5
    array = fake.upload(pinned, stream=stream)
    back = fake.download(array, fake.pinned((2, 3), np.float32), stream)
    np.testing.assert_array_equal(back, pinned)
    assert fake.download(array, stream=stream).shape == (2, 3), "into pinned memory of its own"
    other = fake.empty(6, np.float32)  # as many values; the shape is another
    fake.copy(array, other, stream)
    assert (other.host == 5).all()
    fake.fill_zero(other[2:4], stream)
    np.testing.assert_array_equal(other.host, [5, 5, 0, 0, 5, 5])
    ptr = stream.ptr
    assert of(cupy, "memcpyAsync", "memsetAsync", "deviceSynchronize", "streamSynchronize") == [
        ("memcpyAsync", 1, 24, ptr),
        ("memcpyAsync", 2, 24, ptr),
        ("memcpyAsync", 2, 24, ptr),
        ("memcpyAsync", 3, 24, ptr),
        ("memsetAsync", 8, ptr),
    ]


def test_host_arrays_of_any_order_are_uploaded(fake: CudaDevice) -> None:
    host = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(fake.download(fake.upload(host)), host)


def test_nothing_is_copied_without_a_call(fake: CudaDevice, cupy: FakeCupy) -> None:
    empty = fake.upload(np.zeros((0, 4), np.float32))
    assert fake.download(empty).shape == (0, 4)
    fake.copy(empty, empty)
    fake.fill_zero(empty)
    assert fake.pinned((0, 4), np.int8).shape == (0, 4)
    assert not of(cupy, "memcpyAsync", "memsetAsync", "pinned")


def test_copies_of_other_sizes_are_refused(fake: CudaDevice) -> None:
    array = fake.zeros((4, 4), np.float32)
    for call in (
        lambda: fake.upload(np.zeros(16), array),
        lambda: fake.upload(np.zeros(15, np.float32), array),
        lambda: fake.download(array, np.zeros(17, np.float32)),
        lambda: fake.copy(array, fake.zeros(16, np.int32)),
    ):
        with pytest.raises(ValueError, match="cannot be copied"):
            call()
    for call in (
        lambda: fake.copy(array[:, 1], array[:, 2]),
        lambda: fake.fill_zero(array[:, 1]),
        lambda: fake.download(array[:, 1]),
    ):
        with pytest.raises(ValueError, match="side by side"):
            call()


# --- graphs and events ----------------------------------------------------------------------------


def test_a_graph_runs_when_it_is_replayed(fake: CudaDevice, cupy: FakeCupy) -> None:
    def add(x: FakeArray, value: Any) -> None:
        x.host += value

    cupy.kernels["add"] = add
    kernel = fake.function("layer", "add")
    x, y = fake.zeros(4, np.int32), fake.zeros(4, np.int32)

    def work(stream: Any) -> None:
        assert stream.non_blocking
        fake.launch(kernel, 1, 32, (x, np.int32(3)), stream=stream)
        fake.copy(x, y, stream)
        fake.fill_zero(x, stream)

    graph = fake.capture(work)
    assert not x.host.any()
    assert not y.host.any()
    stream = fake.stream()
    for times in (1, 2):
        x.host[:] = 10 * times
        fake.replay(graph, stream)
        assert (y.host == 10 * times + 3).all()
        assert not x.host.any()
    fake.replay(graph)
    assert of(cupy, "graph") == [("graph", stream.ptr), ("graph", stream.ptr), ("graph", 0)]
    held = str(graph.held)
    assert all(str(one) in held for one in (x, y)), "or their memory would be given to others"


def test_a_capture_that_fails_is_ended(fake: CudaDevice, cupy: FakeCupy) -> None:
    def work(stream: Any) -> None:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        fake.capture(work)
    assert of(cupy, "end_capture")
    with pytest.raises(SparseDNNError, match="capture within a capture"):
        fake.capture(lambda stream: fake.capture(lambda stream: None) and None)
    fake.capture(lambda stream: None)


def test_events(fake: CudaDevice, cupy: FakeCupy) -> None:
    stream, start, end = fake.stream(), fake.event(), fake.event()
    fake.record(start)
    fake.record(end, stream)
    fake.wait(end)
    fake.wait(end, stream)
    ptr = stream.ptr
    assert of(cupy, "record", "wait") == [
        ("record", 0),
        ("record", ptr),
        ("wait", 0),
        ("wait", ptr),
    ]
    start.at, end.at = 1000.0, 3500.0  # CuPy tells milliseconds
    assert fake.seconds(start, end) == 2.5
    assert len(of(cupy, "eventSynchronize")) == 2


# --- which device ---------------------------------------------------------------------------------


def test_ranks_share_the_gpus(cupy: FakeCupy) -> None:
    found = [find_device("gpu", rank) for rank in range(4)]
    assert [device.ordinal for device in found if isinstance(device, CudaDevice)] == [0, 1, 0, 1]
    assert found[2] is found[0], "tried once per process"
    assert len(cupy.modules) == 2
    assert find_device("auto", 1) is found[1]
    assert find_devices("gpu", Alone()) is found[0]
    assert find_device("cpu") is None


def lines() -> str:
    with pytest.raises(MissingDependencyError) as caught:
        find_device("gpu")
    text = str(caught.value)
    assert text.startswith("--device gpu: ")
    assert text.endswith("; or use --device cpu")
    assert "\n" not in text
    told: list[str] = []
    assert find_device("auto", tell=told.append) is None
    assert told == [text.removeprefix("--device gpu: ").removesuffix("; or use --device cpu")]
    assert find_devices("auto", Alone(), told.append) is None
    assert len(told) == 2
    return told[0]


def test_no_cupy(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert lines() == "CuPy is not installed: pip install 'sparsednn[gpu]'"

    def broken(name: str) -> Any:
        raise ImportError("libcudart.so: cannot open\nshared object file")

    monkeypatch.setattr(importlib, "import_module", broken)
    assert lines() == "CuPy cannot be imported (libcudart.so: cannot open shared object file)"


@pytest.mark.parametrize(
    ("driver", "error", "says"),
    [
        (
            0,
            TOO_OLD,
            r"\(cudaErrorInsufficientDriver\): NVIDIA's driver is not installed, or not v",
        ),
        (12040, TOO_OLD, r"for CUDA 12.4, CuPy for CUDA 13.2: renew the driver, or .*\[gpu12\]"),
        (11080, TOO_OLD, r"for CUDA 11.8, CuPy for CUDA 13.2: renew the driver$"),
        (
            13000,
            FakeRuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"),
            r"\(cudaErrorNoDevice\): no CUDA-capable device is detected$",
        ),
    ],
)
def test_no_usable_driver(
    cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch, driver: int, error: Exception, says: str
) -> None:
    fake = FakeCupy(driver=driver)
    fake.fails["getDeviceCount"] = error
    monkeypatch.setitem(sys.modules, "cupy", fake)
    text = lines()
    assert text.startswith("no usable NVIDIA GPU was found (cudaError")
    assert re.search(says, text), text


def test_no_device(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", FakeCupy(count=0))
    assert lines() == "no usable NVIDIA GPU was found: the driver shows none"


def test_a_device_that_runs_nothing_is_not_usable(cupy: FakeCupy) -> None:
    cupy.kernels["trial"] = lambda out, add: None
    assert re.search("wrong numbers", lines())
    cupy.fails["get_function"] = RuntimeError("Failed to find\nNVRTC.")
    text = lines()
    assert text == (
        "no kernel could be compiled and run on GPU 0 (Failed to find NVRTC): "
        "pip install 'sparsednn[gpu]' brings CUDA's compiler"
    )


def test_the_twin_is_for_those_who_ask(cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDNN_DEVICE", "twin")
    assert isinstance(find_device("gpu"), TwinDevice)
    assert isinstance(find_device("auto"), CudaDevice), "never by itself"
    assert find_device("cpu") is None
    monkeypatch.setenv("SPARSEDNN_DEVICE", "phone")
    with pytest.raises(UsageError, match="SPARSEDNN_DEVICE is 'twin' or nothing: 'phone'"):
        find_device("gpu")
    with pytest.raises(UsageError, match="--device is one of cpu, gpu, auto: 'tpu'"):
        find_device("tpu")


# --- CuPy itself ----------------------------------------------------------------------------------

NAMES = (
    "ndarray.data", "ndarray.flags", "ndarray.nbytes", "ndarray.size", "empty",
    "get_default_memory_pool", "RawModule.get_function", "RawKernel.kernel",
    "RawKernel.max_dynamic_shared_size_bytes", "RawKernel.shared_size_bytes",
    "cuda.Stream.null.ptr", "cuda.Stream.begin_capture", "cuda.Stream.end_capture",
    "cuda.Stream.synchronize", "cuda.Stream.wait_event", "cuda.Graph.launch", "cuda.Event.record",
    "cuda.Event.synchronize", "cuda.get_elapsed_time", "cuda.MemoryPool.free_bytes",
    "cuda.MemoryPool.free_all_blocks", "cuda.PinnedMemory", "cuda.PinnedMemoryPointer",
    "cuda.memory.OutOfMemoryError", "cuda.memory.MemoryPointer.ptr",
    "cuda.compiler.CompileException", "cuda.compiler.compile_using_nvrtc",
    "cuda.driver.CUDADriverError", "cuda.nvrtc.NVRTCError",
    "cuda.nvrtc.getVersion", "cuda.runtime.CUDARuntimeError", "cuda.runtime.getDeviceCount",
    "cuda.runtime.getDeviceProperties", "cuda.runtime.setDevice", "cuda.runtime.memGetInfo",
    "cuda.runtime.deviceSynchronize", "cuda.runtime.streamSynchronize",
    "cuda.runtime.driverGetVersion", "cuda.runtime.runtimeGetVersion",
)  # fmt: skip

#: Calls whose arguments are plain numbers: their order is all that says what they mean.
ORDERS = {
    "cuda.runtime.memcpyAsync": ("dst", "src", "size", "kind", "stream"),
    "cuda.runtime.memsetAsync": ("ptr", "value", "size", "stream"),
    "cuda.runtime.setDevice": ("device",),
    "cuda.runtime.streamSynchronize": ("stream",),
}
CALLED_BY_NAME = {
    "cuda.Stream": ("non_blocking",),
    "RawModule": ("path",),
}


def test_cupy_has_what_is_used_of_it() -> None:
    real = pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'sparsednn[dev]'")

    def found(path: str) -> Any:
        value = real
        for name in path.split("."):
            value = getattr(value, name)
        return value

    for path in NAMES:
        found(path)
    for path, order in ORDERS.items():
        arguments = found(path).__doc__.partition("(")[2].partition(")")[0].split(", ")
        assert tuple(one.split()[-1] for one in arguments) == order
    for path, names in CALLED_BY_NAME.items():
        text = found(path).__doc__ + str(getattr(found(path), "__text_signature__", ""))
        assert all(re.search(rf"\b{name}\b", text) for name in names)
    kinds = [found(f"cuda.runtime.memcpy{kind}") for kind in ("HostToDevice", "DeviceToHost")]
    assert [*kinds, found("cuda.runtime.memcpyDeviceToDevice")] == [1, 2, 3]
    assert issubclass(real.cuda.memory.OutOfMemoryError, MemoryError)


def test_cupy_compiles_with_our_options_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What it adds itself changes no number: `RawModule` would flush small ones to zero."""
    real = pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'sparsednn[dev]'")
    if missing := why_not():
        pytest.skip(missing)
    compiler, seen = real.cuda.compiler, []

    class Watched(compiler._NVRTCProgram):  # type: ignore[misc,name-defined]
        def compile(self, options: Any = (), log_stream: Any = None) -> Any:
            seen.append(options)
            return super().compile(options, log_stream)

    def for_hopper(arch: Any = None) -> tuple[str, str]:  # CuPy would ask the device
        return "-arch=sm_90", "cubin"

    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(compiler, "_NVRTCProgram", Watched)
    monkeypatch.setattr(compiler, "_get_arch_for_options_for_nvrtc", for_hopper)
    ours = programs.options({"THREADS": 256})
    file = machine_code(real, programs.source("merge"), ours, (9, 0))
    assert file.read_bytes()[:4] == b"\x7fELF"
    assert seen == [(*ours, "-arch=sm_90", "--device-as-default-execution-space")]
