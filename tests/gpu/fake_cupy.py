"""A CuPy of NumPy: the names that `CudaDevice` uses, in host memory; tells what it was asked for.

Copies and fills move the bytes at the addresses that they are given, launches run the Python
function of the kernel's name, and what a stream captures runs when the graph does. Not a test of
CuPy: of what we ask of it, where there is no GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeOutOfMemoryError(MemoryError):
    pass


class FakeRuntimeError(RuntimeError):
    pass


class FakeDriverError(RuntimeError):
    pass


class FakeNvrtcError(RuntimeError):
    pass


class FakeCompileError(Exception):
    pass


class FakeArray:
    """A device array: its values are in `host`."""

    def __init__(self, host: np.ndarray[Any, Any]) -> None:
        self.host = host
        self.shape, self.dtype, self.size = host.shape, host.dtype, host.size
        self.nbytes, self.flags = host.nbytes, host.flags
        self.data = SimpleNamespace(ptr=host.ctypes.data)

    def __getitem__(self, key: Any) -> FakeArray:
        return FakeArray(self.host[key])


class FakeStream:
    def __init__(self, cupy: FakeCupy, ptr: int, non_blocking: bool) -> None:
        self.cupy, self.ptr, self.non_blocking = cupy, ptr, non_blocking
        self.captured: list[Callable[[], None]] | None = None

    def begin_capture(self) -> None:
        self.captured = []

    def end_capture(self) -> Any:
        self.cupy.calls.append(("end_capture", self.ptr))
        work, self.captured = self.captured, None
        assert work is not None

        def launch(stream: FakeStream) -> None:
            self.cupy.calls.append(("graph", stream.ptr))
            for one in work:
                one()

        return SimpleNamespace(launch=launch)

    def synchronize(self) -> None:
        self.cupy.runs("streamSynchronize", self.ptr)

    def wait_event(self, event: Any) -> None:
        self.cupy.calls.append(("wait", self.ptr))


class FakeStreams:
    """What CuPy calls Stream: makes one, and has the default one."""

    def __init__(self, cupy: FakeCupy) -> None:
        self.cupy = cupy
        self.null = self(non_blocking=False)

    def __call__(self, non_blocking: bool) -> FakeStream:
        stream = FakeStream(self.cupy, len(self.cupy.streams), non_blocking)
        self.cupy.streams[stream.ptr] = stream
        return stream


class FakeCupy:
    """The module; put it into ``sys.modules["cupy"]``.

    Attributes
    ----------
    calls
        Every call, in order: its name, and its plain arguments.
    fails
        What raises, and what: ``{"deviceSynchronize": FakeRuntimeError("…")}``. An allocation
        (``"empty"``) takes them from a list, one after another.
    compiled, modules
        Texts and options that were compiled; texts of the modules that were loaded.
    kernels
        Python functions by the names of kernels; they get a launch's arguments.
    """

    __version__ = "14.0"
    ndarray = FakeArray

    def __init__(self, count: int = 2, driver: int = 13000) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.fails: dict[str, Any] = {}
        self.kernels: dict[str, Callable[..., None]] = {"trial": trial}
        self.static_shared = 0
        self.compiled: list[tuple[str, tuple[str, ...]]] = []
        self.modules: list[str] = []
        self.streams: dict[int, FakeStream] = {}
        pool = SimpleNamespace(
            free_bytes=lambda: 1000,
            free_all_blocks=lambda: self.calls.append(("free_all_blocks",)),
        )
        self.get_default_memory_pool = lambda: pool
        runtime = SimpleNamespace(
            CUDARuntimeError=FakeRuntimeError,
            memcpyHostToDevice=1, memcpyDeviceToHost=2, memcpyDeviceToDevice=3,
            getDeviceCount=lambda: self.runs("getDeviceCount") or count,
            driverGetVersion=lambda: driver, runtimeGetVersion=lambda: 13020,
            setDevice=lambda ordinal: self.runs("setDevice", ordinal),
            getDeviceProperties=self.properties,
            memGetInfo=lambda: (500, 4000),
            deviceSynchronize=lambda: self.runs("deviceSynchronize"),
            streamSynchronize=lambda ptr: self.runs("streamSynchronize", ptr),
            memcpyAsync=self.memcpy, memsetAsync=self.memset,
        )  # fmt: skip
        self.cuda = SimpleNamespace(
            runtime=runtime,
            driver=SimpleNamespace(CUDADriverError=FakeDriverError),
            nvrtc=SimpleNamespace(NVRTCError=FakeNvrtcError, getVersion=lambda: (13, 0)),
            memory=SimpleNamespace(OutOfMemoryError=FakeOutOfMemoryError),
            compiler=SimpleNamespace(
                CompileException=FakeCompileError, compile_using_nvrtc=self.compile
            ),
            Stream=FakeStreams(self),
            Event=self.make_event,
            PinnedMemory=self.pinned,
            PinnedMemoryPointer=lambda memory, offset: memory,
            get_elapsed_time=lambda start, end: end.at - start.at,
        )

    def runs(self, name: str, *arguments: Any) -> None:
        """Write down a call, and fail if that is wanted."""
        self.calls.append((name, *arguments))
        error = self.fails.get(name)
        if isinstance(error, list):
            error = error.pop(0) if error else None
        if error is not None:
            raise error

    def properties(self, ordinal: int) -> dict[str, Any]:
        self.runs("getDeviceProperties", ordinal)
        return {
            "name": b"Fake GPU", "major": 9, "minor": 0, "multiProcessorCount": 132,
            "sharedMemPerBlockOptin": 232448, "l2CacheSize": 50 << 20,
        }  # fmt: skip

    def empty(self, shape: Any, dtype: Any) -> FakeArray:
        self.runs("empty", shape)
        return FakeArray(np.full(shape, 77, dtype))

    def pinned(self, size: int) -> bytearray:
        self.runs("pinned", size)
        return bytearray(size)

    def make_event(self) -> Any:
        event = SimpleNamespace(at=0.0, synchronize=lambda: self.runs("eventSynchronize"))

        def record(stream: FakeStream) -> None:
            self.runs("record", stream.ptr)
            event.at = float(len(self.calls))

        event.record = record
        return event

    def does(self, ptr: int, work: Callable[[], None]) -> None:
        """Do it, or keep it if the stream is capturing."""
        captured = self.streams[ptr].captured
        if captured is None:
            work()
        else:
            captured.append(work)

    def memcpy(self, target: int, source: int, size: int, kind: int, stream: int) -> None:
        self.runs("memcpyAsync", kind, size, stream)
        self.does(stream, lambda: ctypes.memmove(target, source, size) and None)

    def memset(self, target: int, value: int, size: int, stream: int) -> None:
        self.runs("memsetAsync", size, stream)
        self.does(stream, lambda: ctypes.memset(target, value, size) and None)

    def compile(self, text: str, options: tuple[str, ...]) -> tuple[bytes, None]:
        self.runs("compile")
        self.compiled.append((text, options))
        return text.encode(), None

    def RawModule(self, *, path: str) -> Any:  # noqa: N802 - CuPy's name
        self.modules.append(Path(path).read_text())
        return SimpleNamespace(get_function=self.get_function)

    def get_function(self, name: str) -> Any:
        self.runs("get_function", name)
        return FakeKernel(self, name)


class FakeKernel:
    """What CuPy calls RawKernel, and (`kernel`) its function."""

    def __init__(self, cupy: FakeCupy, name: str) -> None:
        self.cupy, self.name = cupy, name
        self.shared_size_bytes = cupy.static_shared
        self.kernel = self.run

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "max_dynamic_shared_size_bytes":
            self.cupy.runs("shared", self.name, value)
        object.__setattr__(self, name, value)

    def run(
        self, grid: Any, block: Any, arguments: Any, shared_mem: int, stream: FakeStream
    ) -> None:
        self.cupy.runs("launch", self.name, grid, block, shared_mem, stream.ptr)
        self.cupy.launched = arguments
        work = self.cupy.kernels.get(self.name, lambda *arguments: None)
        self.cupy.does(stream.ptr, lambda: work(*arguments))


def trial(out: FakeArray, add: Any) -> None:
    out.host[:] = np.arange(out.size) + add
