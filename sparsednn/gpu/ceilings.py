"""What a device can do at most, measured: the roofs that a kernel's work is held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sparsednn.gpu.device import Device

__all__ = ["Ceilings", "measure"]

_THREADS = 256
_TIMES = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates of one device.

    Attributes
    ----------
    multiply_adds
        float32 fused multiply-adds a second.
    memory_bytes
        Bytes read and written a second by a copy that is larger than the caches.
    shared_words
        Words (of four bytes) a second out of shared memory, read as our products read lines.
    upload_bytes, download_bytes
        Bytes a second between pinned host memory and the device.
    """

    multiply_adds: float
    memory_bytes: float
    shared_words: float
    upload_bytes: float
    download_bytes: float


def measure(device: Device, *, megabytes: int = 1024, rounds: int = 4096) -> Ceilings:
    """Measure a device: the best of some repetitions each.

    Parameters
    ----------
    megabytes
        Of each array that is copied within the device; a quarter of it to and from the host.
    rounds
        Of the kernels that compute.
    """
    blocks = 8 * device.multiprocessors
    out = device.empty(blocks * _THREADS, np.float32)
    count = np.int64(megabytes << 16)
    source, target = (device.zeros(4 * int(count), np.float32) for _ in range(2))
    host = device.pinned(int(count), np.float32)
    host[:] = 1

    def launch(kernel: str, *arguments: object) -> Callable[[], None]:
        function = device.function("ceilings", kernel, THREADS=_THREADS)
        return lambda: device.launch(function, blocks, _THREADS, arguments)

    def best(work: Callable[[], object]) -> float:
        work()
        device.synchronize()
        seconds = []
        for _ in range(_TIMES):
            start, end = device.event(), device.event()
            device.record(start)
            work()
            device.record(end)
            seconds.append(device.seconds(start, end))
        return min(seconds)

    threads = blocks * _THREADS
    few = np.int32(rounds)
    adds = best(launch("multiply_adds", out, few, np.float32(0.999)))
    copy = best(launch("copy_vectors", source, target, count))
    loads = best(launch("shared_loads", out, few))
    part = source[: host.size]
    return Ceilings(
        multiply_adds=threads * 64.0 * rounds / adds,
        memory_bytes=32.0 * int(count) / copy,
        shared_words=threads * 32.0 * rounds / loads,
        upload_bytes=host.nbytes / best(lambda: device.upload(host, out=part, stream=None)),
        download_bytes=host.nbytes / best(lambda: device.download(part, host)),
    )
