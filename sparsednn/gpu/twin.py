"""`TwinDevice`: the device interface in host memory, with kernels written in NumPy.

The same engines make the same calls in the same order; what each kernel is to compute is written
down readably in `sparsednn.gpu.twins`, one module per ``.cu`` file, one function per kernel. That
is the truth that kernels are held against on a real device, and what keeps the engines honest
without one.

It is no way to run anything fast, and nothing ever falls back to it.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsednn.errors import DeviceMemoryError
from sparsednn.gpu.device import (
    Argument,
    Array,
    Event,
    Function,
    Graph,
    Stream,
    check_copy,
)

__all__ = ["TwinDevice"]

_TOTAL = 4 << 30


class _Recorder:
    """The stream that a capture is made on."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []


class TwinDevice:
    """See `device.Device`.

    Parameters
    ----------
    memory
        Bytes that may be allocated in all, so that shortage can be tried.
    multiprocessors, shared_bytes
        As a device would have them: engines choose sizes by these.
    """

    name = "NumPy twin"
    capability = (0, 0)
    cache_bytes = 1 << 20

    def __init__(
        self, memory: int = _TOTAL, multiprocessors: int = 4, shared_bytes: int = 96 << 10
    ) -> None:
        self.multiprocessors, self.shared_bytes = multiprocessors, shared_bytes
        self._total, self._held = memory, 0
        self.launches: dict[str, int] = {}

    def free_bytes(self) -> int:
        """See `Device.free_bytes`; what engines have let go is free again."""
        return self._total - self._held

    def total_bytes(self) -> int:
        """See `Device.total_bytes`."""
        return self._total

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Device.empty`; filled with what would be noticed."""
        array = self._allocate(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF  # NaN, or -1
        return array

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Device.zeros`."""
        array = self._allocate(shape, dtype)
        array[...] = 0
        return array

    def _allocate(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if size > self.free_bytes():
            raise DeviceMemoryError(
                f"{self.name}: {size:,} bytes are wanted, {self.free_bytes():,} are free",
                size,
                self.free_bytes(),
            )
        array = np.empty(shape, dtype)
        self._held += size
        # Views keep the array that owns the memory: with the last of them the bytes are free again.
        weakref.finalize(array, self._release, size)
        return array

    def _release(self, size: int) -> None:
        self._held -= size

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See `Device.pinned`; filled with what would be noticed."""
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 0xFF
        return array

    def upload(self, host: NDArray[Any], out: Array | None = None, stream: Stream = None) -> Array:
        """See `Device.upload`."""
        if out is None:
            out = self._allocate(host.shape, host.dtype)
        check_copy(np.ascontiguousarray(host), out)
        out.reshape(-1)[:] = host.reshape(-1)
        return out

    def download(
        self, array: Array, out: NDArray[Any] | None = None, stream: Stream = None
    ) -> NDArray[Any]:
        """See `Device.download`."""
        if out is None:
            out = np.empty(array.shape, array.dtype)
        check_copy(array, out)
        out.reshape(-1)[:] = array.reshape(-1)
        return out

    def copy(self, source: Array, target: Array, stream: Stream = None) -> None:
        """See `Device.copy`."""
        check_copy(source, target)

        def work() -> None:
            target.reshape(-1)[:] = source.reshape(-1)

        self._do(work, stream)

    def fill_zero(self, array: Array, stream: Stream = None) -> None:
        """See `Device.fill_zero`."""
        check_copy(array, array)
        self._do(partial(np.copyto, array, 0), stream)

    def function(self, program: str, name: str, **defines: int | str) -> Function:
        """See `Device.function`: the function of that name in ``twins/<program>.py``."""
        found = getattr(import_module(f"sparsednn.gpu.twins.{program}"), name)
        return partial(found, dict(defines)), name

    def launch(
        self,
        function: Function,
        blocks: int | tuple[int, int],
        threads: int,
        arguments: Sequence[Argument],
        *,
        shared: int = 0,
        stream: Stream = None,
    ) -> None:
        """See `Device.launch`; refuses what a device would refuse, too."""
        work, name = function
        sizes = (blocks,) if isinstance(blocks, int) else blocks
        if min(sizes) < 1 or not 1 <= threads <= 1024 or shared > self.shared_bytes:
            raise ValueError(f"{name}: no grid {blocks} × {threads} with {shared} shared bytes")
        for value in arguments:
            if value is not None and not isinstance(value, np.ndarray | np.generic):
                raise TypeError(f"{name}: argument {value!r} has no type that a kernel knows")
        self.launches[name] = self.launches.get(name, 0) + 1
        self._do(partial(work, *arguments), stream)

    def _do(self, work: Callable[[], Any], stream: Stream) -> None:
        if isinstance(stream, _Recorder):
            stream.calls.append(work)
        else:
            with np.errstate(all="ignore"):  # as a device: infinities and NaN tell by themselves
                work()

    def stream(self) -> Stream:
        """See `Device.stream`."""
        return object()

    def event(self) -> Event:
        """See `Device.event`."""
        return [0.0]

    def record(self, event: Event, stream: Stream = None) -> None:
        """See `Device.record`."""
        event[0] = time.perf_counter()

    def wait(self, event: Event, stream: Stream = None) -> None:
        """See `Device.wait`: everything is done at once here."""

    def seconds(self, start: Event, end: Event) -> float:
        """See `Device.seconds`."""
        return float(end[0] - start[0])

    def synchronize(self, stream: Stream = None) -> None:
        """See `Device.synchronize`."""

    def capture(self, work: Callable[[Stream], None]) -> Graph:
        """See `Device.capture`."""
        recorder = _Recorder()
        work(recorder)
        return recorder.calls

    def replay(self, graph: Graph, stream: Stream = None) -> None:
        """See `Device.replay`."""
        for work in graph:
            self._do(work, stream)
