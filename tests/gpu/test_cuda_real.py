"""`CudaDevice` on a real GPU: copies, launches, graphs, streams, memory, errors, and cuSPARSE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp

from sparsednn.errors import DeviceMemoryError, MissingDependencyError, SparseDNNError, UsageError
from sparsednn.gpu import programs, usable
from sparsednn.gpu.cuda import CudaDevice
from sparsednn.gpu.cusparse import cusparse_matrix, cusparse_product

pytestmark = pytest.mark.gpu

SOURCE = """
extern "C" __global__ void add(float* x, const float* y, int n, float factor) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        x[i] += factor * (y == nullptr ? 1.0f : y[i]);
}

extern "C" __global__ void turn(int* x, int n) {  // in shared memory
    extern __shared__ int held[];
    for (int i = threadIdx.x; i < n; i += blockDim.x) held[i] = x[i];
    __syncthreads();
    for (int i = threadIdx.x; i < n; i += blockDim.x) x[i] = held[n - 1 - i];
}

extern "C" __global__ void wait(long long cycles) {
    long long start = clock64();
    while (clock64() - start < cycles) {}
}
"""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CudaDevice:
    try:
        device = usable.usable_device()
    except SparseDNNError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(programs, "source", lambda program: SOURCE)
    return device


def test_gpu_attributes(gpu: CudaDevice) -> None:
    assert gpu.capability >= (7, 0)
    assert gpu.multiprocessors > 0
    assert gpu.shared_bytes >= 48 << 10
    assert 0 < gpu.free_bytes() <= gpu.total_bytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8, np.int32, np.uint64, np.int64])
def test_gpu_copies(gpu: CudaDevice, dtype: type[np.generic]) -> None:
    host = (np.arange(10_007) % 251).astype(dtype)
    np.testing.assert_array_equal(gpu.download(gpu.upload(host)), host)
    stream = gpu.stream()
    pinned, back = gpu.pinned(host.shape, dtype), gpu.pinned(host.shape, dtype)
    pinned[:] = host
    array, other = gpu.empty(host.shape, dtype), gpu.zeros(host.shape, dtype)
    gpu.upload(pinned, array, stream)
    gpu.copy(array, other, stream)
    gpu.fill_zero(array[:5003], stream)
    gpu.download(other, back, stream)
    gpu.synchronize(stream)
    np.testing.assert_array_equal(back, host)
    host[:5003] = 0
    np.testing.assert_array_equal(gpu.download(array), host)
    assert not gpu.download(gpu.zeros((3, 5), dtype)).any()


def test_gpu_launch(gpu: CudaDevice) -> None:
    x = gpu.upload(np.arange(1000, dtype=np.float32))
    y = gpu.upload(np.ones(1000, np.float32))
    add = gpu.function("test", "add")
    gpu.launch(add, 3, 128, (x, y, np.int32(1000), np.float32(0.5)))
    gpu.launch(add, (2, 1), 64, (x, None, np.int32(500), np.float32(2)))
    wanted = np.arange(1000) + 0.5 + 2 * (np.arange(1000) < 500)
    np.testing.assert_array_equal(gpu.download(x), wanted)


def test_gpu_shared_memory(gpu: CudaDevice) -> None:
    for size in (1 << 10, 48 << 10, gpu.shared_bytes, 4 << 10):
        host = np.arange(size // 4, dtype=np.int32)
        x = gpu.upload(host)
        turn = gpu.function("test", "turn")
        gpu.launch(turn, 1, 256, (x, np.int32(host.size)), shared=size)
        np.testing.assert_array_equal(gpu.download(x), host[::-1])
    # The driver's kernel is one for both: what one of them asks for must not take from the other.
    other = CudaDevice(gpu.ordinal)
    for device, size in ((other, 100 << 10), (gpu, gpu.shared_bytes)):
        x = device.upload(np.arange(size // 4, dtype=np.int32))
        turn = device.function("test", "turn")
        device.launch(turn, 1, 256, (x, np.int32(size // 4)), shared=size)
        assert device.download(x)[0] == size // 4 - 1


def test_gpu_keeps_small_numbers(gpu: CudaDevice) -> None:
    small = np.array([1e-40, 3e-39, -1e-45, 1.5e-38], np.float32)
    x, y = gpu.upload(small), gpu.upload(small)
    gpu.launch(gpu.function("test", "add"), 1, 32, (x, y, np.int32(4), np.float32(2)))
    np.testing.assert_array_equal(gpu.download(x), 3 * small)


def test_gpu_graph(gpu: CudaDevice) -> None:
    host = np.arange(1000, dtype=np.float32)
    x, kept, gone = gpu.upload(host), gpu.zeros(1000, np.float32), gpu.upload(host)
    add = gpu.function("test", "add")

    def work(stream: Any) -> None:
        gpu.copy(x, kept, stream)
        for _ in range(3):
            gpu.launch(add, 2, 128, (x, None, np.int32(1000), np.float32(1)), stream=stream)
        gpu.fill_zero(gone, stream)

    graph = gpu.capture(work)
    np.testing.assert_array_equal(gpu.download(x), host)
    np.testing.assert_array_equal(gpu.download(gone), host)
    stream = gpu.stream()
    gpu.replay(graph, stream)
    gpu.replay(graph, stream)
    gpu.synchronize(stream)
    np.testing.assert_array_equal(gpu.download(x), host + 6)
    np.testing.assert_array_equal(gpu.download(kept), host + 3)
    assert not gpu.download(gone).any()

    def fails(stream: Any) -> None:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        gpu.capture(fails)
    gpu.replay(gpu.capture(work))


def test_gpu_streams_and_events(gpu: CudaDevice) -> None:
    first, second = gpu.stream(), gpu.stream()
    start, end = gpu.event(), gpu.event()
    x = gpu.zeros(1000, np.float32)
    gpu.record(start, first)
    gpu.launch(gpu.function("test", "wait"), 1, 1, (np.int64(20_000_000),), stream=first)
    add = gpu.function("test", "add")
    gpu.launch(add, 1, 128, (x, None, np.int32(1000), np.float32(1)), stream=first)
    gpu.record(end, first)
    gpu.wait(end, second)
    back = gpu.download(x, gpu.pinned(1000, np.float32), second)
    gpu.synchronize(second)
    assert (back == 1).all()
    assert 1e-3 < gpu.seconds(start, end) < 10


def test_gpu_memory(gpu: CudaDevice) -> None:
    free = gpu.free_bytes()
    array = gpu.empty(256 << 20, np.uint8)
    assert gpu.free_bytes() <= free - (200 << 20)
    del array
    assert gpu.free_bytes() >= free - (56 << 20), "the pool holds it, and nobody uses it"
    with pytest.raises(DeviceMemoryError, match=r"bytes are wanted, [\d,]+ are free$"):
        gpu.empty(2 * gpu.total_bytes(), np.uint8)
    assert gpu.upload(np.ones(3)).shape == (3,), "it goes on"


def test_gpu_errors(gpu: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SparseDNNError, match=r"kernel nothing of test.cu: CUDA_ERROR_NOT_FOUND"):
        gpu.function("test", "nothing")
    monkeypatch.setattr(programs, "source", lambda program: 'extern "C" __global__ int x() {')
    with pytest.raises(SparseDNNError, match=r"bad.cu does not compile: .*error"):
        gpu.function("bad", "x")


def test_gpu_cusparse(gpu: CudaDevice) -> None:
    matrix = sp.random(100, 80, 0.1, "csr", np.float32, 1)
    dense = np.random.default_rng(2).random((80, 33), np.float32)
    try:
        there = cusparse_matrix(matrix)
    except MissingDependencyError as error:
        pytest.skip(str(error))
    product = cusparse_product(there, dense)
    np.testing.assert_allclose(product.get(), matrix @ dense, rtol=1e-5)
