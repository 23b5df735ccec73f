"""How much of a GPU one launch takes, and whether another fits beside it.

A block runs on one multiprocessor, and takes of it registers, shared memory, places for threads and
for blocks, until it ends: its *static demand*. What is left decides how many more fit, of the same
launch or of another one. A launch with as many blocks as fit on the whole device leaves nothing to
others: then streams cannot help, whatever the dependencies allow. That is limit (a) of Pourghassemi
et al. (SPAA 2020, arXiv 2005.13823). Rounding of resources is that of NVIDIA's occupancy
calculator: registers by warp in units of 256, shared memory in units of 128 bytes (capability 8 and
later), with what the system keeps of each block.

Must not know: tasks, arrays. Kernels of cuDNN and cuBLAS do not tell their demand: `Occupancy` is
None for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sparsednn.dense.concurrency.kernels import Occupancy
from sparsednn.errors import UsageError

__all__ = [
    "A100",
    "B200",
    "H200",
    "Multiprocessors",
    "beside",
    "blocks_of_one",
    "demand",
    "device_share",
    "limited_by",
    "multiprocessors_of",
]


@dataclass(frozen=True, slots=True)
class Multiprocessors:
    """What a GPU's multiprocessors have.

    Attributes
    ----------
    count
        How many there are.
    registers, shared_bytes, threads, blocks
        Of each.
    reserved_shared
        Bytes that the system takes of each block's shared memory.
    register_unit, shared_unit, warp
        In what steps registers (of a warp) and shared memory are given; threads of a warp.
    most_registers
        Of a thread.
    """

    count: int
    registers: int
    shared_bytes: int
    threads: int
    blocks: int
    reserved_shared: int = 1024
    register_unit: int = 256
    shared_unit: int = 128
    warp: int = 32
    most_registers: int = 255


#: CUDA C++ Programming Guide, technical specifications by compute capability 8.0, 9.0 and 10.0.
A100: Final = Multiprocessors(108, 65536, 164 << 10, 2048, 32)
H200: Final = Multiprocessors(132, 65536, 228 << 10, 2048, 32)
B200: Final = Multiprocessors(148, 65536, 228 << 10, 2048, 32)


@dataclass(frozen=True, slots=True)
class _Block:
    """What one block takes, rounded up."""

    registers: int
    shared_bytes: int
    threads: int


def multiprocessors_of(xp: Any, ordinal: int = 0) -> Multiprocessors:
    """Return what a device says of itself (``cudaDeviceProp``, through CuPy)."""
    found = xp.cuda.runtime.getDeviceProperties(ordinal)
    return Multiprocessors(
        count=int(found["multiProcessorCount"]),
        registers=int(found["regsPerMultiprocessor"]),
        shared_bytes=int(found["sharedMemPerMultiprocessor"]),
        threads=int(found["maxThreadsPerMultiProcessor"]),
        blocks=int(found["maxBlocksPerMultiProcessor"]),
        reserved_shared=int(found["reservedSharedMemPerBlock"]),
        warp=int(found["warpSize"]),
    )


def demand(kernel: Any, threads: int, blocks: int, dynamic_shared: int = 0) -> Occupancy:
    """Return the static demand of a launch of a `cupy.RawKernel`, from its attributes."""
    attributes = kernel.attributes
    shared = int(attributes["shared_size_bytes"]) + dynamic_shared
    return Occupancy(int(attributes["num_regs"]), shared, threads, blocks)


def blocks_of_one(device: Multiprocessors, launch: Occupancy) -> int:
    """How many blocks of a launch fit on a multiprocessor at a time; 0: none, it cannot start.

    >>> blocks_of_one(H200, Occupancy(registers=128, shared_bytes=0, threads=256, blocks=1))
    2
    """
    return min(_limits(device, launch).values())


def limited_by(device: Multiprocessors, launch: Occupancy) -> str:
    """Return what lets no more blocks onto a multiprocessor.

    One of "registers", "shared memory", "threads", "blocks"; or "grid" if the launch has no more
    blocks than fit on the whole device.

    >>> limited_by(H200, Occupancy(registers=128, shared_bytes=0, threads=256, blocks=9999))
    'registers'
    """
    limits = _limits(device, launch)
    least = min(limits.values())
    if least and launch.blocks < least * device.count:
        return "grid"
    return min(limits, key=lambda name: limits[name])


def device_share(device: Multiprocessors, launch: Occupancy) -> float:
    """Return the part of the device that one launch takes at a time, 0 to 1: 1 leaves nothing.

    >>> device_share(H200, Occupancy(128, 0, 256, blocks=66))
    0.25
    """
    fits = blocks_of_one(device, launch)
    if not fits:
        raise UsageError(f"a block of {launch} does not fit on a multiprocessor of {device}")
    return min(1.0, launch.blocks / (fits * device.count))


def beside(device: Multiprocessors, first: Occupancy, second: Occupancy) -> int:
    """Return how many blocks of the second launch run at once while the first has all it takes.

    The first's blocks are taken to be spread evenly, as the hardware does with an empty device. 0
    means that the second begins only as blocks of the first end.

    >>> beside(H200, Occupancy(32, 0, 256, 132), Occupancy(32, 0, 256, 132))
    132
    >>> beside(H200, Occupancy(128, 0, 256, 9999), Occupancy(32, 0, 256, 132))
    0
    """
    fits = blocks_of_one(device, first)
    running = min(first.blocks, fits * device.count)
    even, more = divmod(running, device.count)
    room = 0
    for blocks, many in ((even + 1, more), (even, device.count - more)):
        room += many * _room(device, _block(device, first), blocks, _block(device, second))
    return min(room, second.blocks)


def _room(device: Multiprocessors, one: _Block, blocks: int, other: _Block) -> int:
    """How many of another block fit beside so many of one."""
    return max(
        0,
        min(
            _times(device.registers - blocks * one.registers, other.registers, device),
            _times(device.shared_bytes - blocks * one.shared_bytes, other.shared_bytes, device),
            _times(device.threads - blocks * one.threads, other.threads, device),
            device.blocks - blocks,
        ),
    )


def _limits(device: Multiprocessors, launch: Occupancy) -> dict[str, int]:
    """How many blocks each resource allows."""
    block = _block(device, launch)
    if launch.registers > device.most_registers:
        return {"registers": 0}
    return {
        "registers": _times(device.registers, block.registers, device),
        "shared memory": _times(device.shared_bytes, block.shared_bytes, device),
        "threads": _times(device.threads, block.threads, device),
        "blocks": device.blocks,
    }


def _block(device: Multiprocessors, launch: Occupancy) -> _Block:
    if min(launch.threads, launch.blocks) < 1 or min(launch.registers, launch.shared_bytes) < 0:
        raise UsageError(f"no launch: {launch}")
    warps = -(-launch.threads // device.warp)
    registers = _up(launch.registers * device.warp, device.register_unit) * warps
    shared = _up(launch.shared_bytes + device.reserved_shared, device.shared_unit)
    return _Block(registers, shared, warps * device.warp)


def _times(there: int, each: int, device: Multiprocessors) -> int:
    """How many blocks a resource allows; one that takes none of it, all places."""
    return there // each if each else device.blocks


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
