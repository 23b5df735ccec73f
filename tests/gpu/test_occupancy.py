"""Occupancy: figures of NVIDIA's calculator, blocks placed one by one, the device's own answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.dense.concurrency.gpu.occupancy import (
    A100,
    H200,
    Multiprocessors,
    beside,
    blocks_of_one,
    demand,
    device_share,
    limited_by,
    multiprocessors_of,
)
from sparsednn.dense.concurrency.kernels import Occupancy
from sparsednn.errors import UsageError

SMALL = Multiprocessors(3, 4096, 16 << 10, 512, 6)


@pytest.mark.parametrize(
    ("device", "registers", "shared", "threads", "blocks", "limit"),
    [
        # Threads and registers: 65536 / (64 · 256) = 4; shared: 228 KiB / (48 + 1) KiB = 4.
        (H200, 24, 0, 256, 8, "threads"),
        (H200, 64, 0, 256, 4, "registers"),
        (H200, 255, 0, 256, 1, "registers"),
        (H200, 32, 48 << 10, 128, 4, "shared memory"),
        (H200, 32, 227 << 10, 1024, 1, "shared memory"),
        (H200, 16, 0, 32, 32, "blocks"),
        (A100, 32, 48 << 10, 128, 3, "shared memory"),
        # 33 registers · 32 threads are given in units of 256: as 40.
        (H200, 33, 0, 1024, 1, "registers"),
        (H200, 40, 0, 512, 3, "registers"),
        # A block of 33 threads has two warps.
        (H200, 128, 0, 33, 8, "registers"),
    ],
)
def test_blocks_of_one_kernel(
    device: Multiprocessors, registers: int, shared: int, threads: int, blocks: int, limit: str
) -> None:
    launch = Occupancy(registers, shared, threads, 10**6)
    assert blocks_of_one(device, launch) == blocks
    assert limited_by(device, launch) == limit
    assert device_share(device, launch) == 1.0


def test_what_a_grid_leaves() -> None:
    few = Occupancy(64, 0, 256, 66)
    assert limited_by(H200, few) == "grid"
    assert device_share(H200, few) == 66 / (4 * 132)
    assert beside(H200, few, Occupancy(64, 0, 256, 10**6)) == 4 * 132 - 66
    assert beside(H200, Occupancy(64, 0, 256, 10**6), few) == 0


def test_complementary_kernels_fit_beside_each_other() -> None:
    """One takes all shared memory but few registers, the other the reverse."""
    shared, registers = Occupancy(32, 200 << 10, 256, 132), Occupancy(128, 0, 256, 132)
    assert device_share(H200, shared) == 1.0
    assert beside(H200, shared, registers) == 132
    assert beside(H200, shared, shared) == 0


def test_what_cannot_start() -> None:
    large = Occupancy(32, 300 << 10, 256, 1)
    assert blocks_of_one(H200, large) == 0
    assert limited_by(H200, large) == "shared memory"
    with pytest.raises(UsageError, match="does not fit"):
        device_share(H200, large)
    assert blocks_of_one(H200, Occupancy(256, 0, 32, 1)) == 0
    for launch in (Occupancy(32, 0, 0, 1), Occupancy(32, 0, 32, 0), Occupancy(-1, 0, 32, 1)):
        with pytest.raises(UsageError, match="no launch"):
            blocks_of_one(H200, launch)


LAUNCHES = st.builds(
    Occupancy, st.integers(0, 64), st.integers(0, 6000), st.integers(1, 256), st.integers(1, 30)
)


def fill(device: Multiprocessors, launches: list[Occupancy]) -> list[int]:
    """Blocks that run, put one by one on the emptiest multiprocessor, until none fits: how many."""
    used = [[0, 0, 0, 0] for _ in range(device.count)]
    found = []
    for launch in launches:
        warps = -(-launch.threads // 32)
        takes = [
            -(-launch.registers * 32 // 256) * 256 * warps,
            -(-(launch.shared_bytes + 1024) // 128) * 128,
            32 * warps,
            1,
        ]
        has = [device.registers, device.shared_bytes, device.threads, device.blocks]
        placed = 0
        while placed < launch.blocks:
            emptiest = min(used, key=lambda one: one[3])
            fitting = [
                one
                for one in (emptiest, *used)
                if all(a + b <= c for a, b, c in zip(one, takes, has, strict=True))
            ]
            if not fitting:
                break
            for at, amount in enumerate(takes):
                fitting[0][at] += amount
            placed += 1
        found.append(placed)
    return found


@given(LAUNCHES, LAUNCHES)
def test_against_placing_blocks_one_by_one(first: Occupancy, second: Occupancy) -> None:
    one, other = fill(SMALL, [first, second])
    assert one == min(first.blocks, blocks_of_one(SMALL, first) * SMALL.count)
    if one:
        assert device_share(SMALL, first) == one / (blocks_of_one(SMALL, first) * SMALL.count)
        assert beside(SMALL, first, second) == other


def test_what_cupy_tells() -> None:
    """The names are those of CuPy's attributes and properties."""
    kernel = SimpleNamespace(attributes={"num_regs": 40, "shared_size_bytes": 512})
    assert demand(kernel, 256, 10, dynamic_shared=1024) == Occupancy(40, 1536, 256, 10)
    properties = {
        "multiProcessorCount": 132, "regsPerMultiprocessor": 65536,
        "sharedMemPerMultiprocessor": 233472, "maxThreadsPerMultiProcessor": 2048,
        "maxBlocksPerMultiProcessor": 32, "reservedSharedMemPerBlock": 1024, "warpSize": 32,
    }  # fmt: skip
    runtime = SimpleNamespace(getDeviceProperties=lambda ordinal: properties)
    xp = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    assert multiprocessors_of(xp) == H200


@pytest.mark.gpu
def test_the_device_agrees() -> None:
    """Against ``cuOccupancyMaxActiveBlocksPerMultiprocessor``."""
    cupy = pytest.importorskip("cupy")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        pytest.skip(str(error))
    device = multiprocessors_of(cupy)
    source = (
        'extern "C" __global__ void copy(float* out, const float* in) '
        "{ out[blockIdx.x * blockDim.x + threadIdx.x] = in[threadIdx.x]; }"
    )
    kernel = cupy.RawKernel(source, "copy")
    for threads in (32, 96, 256, 1024):
        for shared in (0, 4096, 40960):
            ours = blocks_of_one(device, demand(kernel, threads, 1, shared))
            theirs = cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(
                kernel.kernel.ptr, threads, shared
            )
            assert ours == theirs, (threads, shared)
