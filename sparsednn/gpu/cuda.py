"""`CudaDevice`: an NVIDIA GPU through CuPy. Others that need CuPy get it from `load_cupy`.

CuPy gives memory (its pool), streams, events, graphs, the compiler (NVRTC, see `machine_code`)
and launches; every call names its device and its stream, nothing is left to CuPy's current one. No
array expression of CuPy is used: those would bring kernels that we did not write.

Streams do not block each other, so memory may be let go only after the work that uses it has been
waited for: the pool gives it to the next who asks. `zeros`, `upload` and `download` without a
stream wait for the whole device first, so they are safe at any time; a graph holds the arrays that
it names.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsednn.errors import DeviceMemoryError, MissingDependencyError, SparseDNNError
from sparsednn.gpu import programs
from sparsednn.gpu.device import (
    Argument,
    Array,
    Event,
    Function,
    Graph,
    Stream,
    check_copy,
)
from sparsednn.gpu.machine_code import machine_code

__all__ = ["INSTALL", "CudaDevice", "dotted", "line_of", "load_cupy", "versions"]

#: What brings CuPy and CUDA's compiler.
INSTALL = "pip install 'sparsednn[gpu]'"
_NULL = np.uint64(0)  # an argument that is a null pointer
_PLAIN_SHARED = 48 << 10  # bytes of shared memory that a kernel may have without being told so
_MOST_THREADS = 1024

#: Compiled and run once before a device counts as usable.
_TRIAL = (
    'extern "C" __global__ void trial(int* out, int add) { out[threadIdx.x] = threadIdx.x + add; }'
)


def load_cupy() -> Any:
    """Import CuPy.

    Raises
    ------
    MissingDependencyError
        If it is not installed, or broken.
    """
    try:
        with warnings.catch_warnings():
            # A warning of CuPy's (two versions are installed, say) is to be seen, but ends nothing,
            # not even where warnings are errors, as in our tests.
            warnings.simplefilter("default")
            return importlib.import_module("cupy")
    except ModuleNotFoundError as error:
        if error.name in ("cupy", None):
            raise MissingDependencyError(f"CuPy is not installed: {INSTALL}") from None
        raise MissingDependencyError(f"CuPy cannot be imported ({error}): {INSTALL}") from None
    except Exception as error:
        raise MissingDependencyError(f"CuPy cannot be imported ({line_of(error)})") from error


def line_of(error: BaseException) -> str:
    """One line of an error that is not ours, without a full stop at its end."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__


def versions(cupy: Any) -> tuple[int, int]:
    """CUDA versions of driver (0: there is none) and runtime, as 1000 major + 10 minor."""
    try:
        runtime = cupy.cuda.runtime
        return int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    except Exception:
        return 0, 0


def dotted(version: int) -> str:
    """Write a CUDA version.

    >>> dotted(13020)
    '13.2'
    """
    return f"{version // 1000}.{version % 1000 // 10}"


@dataclass(slots=True)
class _Kernel:
    """A compiled kernel.

    `shared` are bytes of dynamic shared memory that it may have so far, `most` at all.
    """

    name: str
    raw: Any  # cupy.RawKernel: knows the attributes
    run: Any  # cupy.cuda.function.Function of this device
    shared: int
    most: int


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph, and the arrays whose addresses are in it."""

    graph: Any
    held: list[Any]


class CudaDevice:
    """See `device.Device`. Every call leaves this device the thread's current one.

    Parameters
    ----------
    ordinal
        Which one of those that the driver shows.

    Attributes
    ----------
    ordinal
        As given.
    driver, runtime
        CUDA versions of the driver and of CuPy's runtime, such as ``"13.0"``.

    Raises
    ------
    MissingDependencyError
        If there is no CuPy.
    SparseDNNError
        If the device does not answer.
    """

    def __init__(self, ordinal: int = 0) -> None:
        self._cupy = cupy = load_cupy()
        self._runtime = runtime = cupy.cuda.runtime
        self._known = (
            cupy.cuda.memory.OutOfMemoryError,
            runtime.CUDARuntimeError,
            cupy.cuda.driver.CUDADriverError,
            cupy.cuda.nvrtc.NVRTCError,
        )
        self.ordinal, self.name = ordinal, f"GPU {ordinal}"
        self._functions: dict[tuple[Any, ...], _Kernel] = {}
        self._modules: dict[tuple[Any, ...], Any] = {}
        self._recording: list[Any] | None = None
        with self._told("starting"):
            self._use()
            found = runtime.getDeviceProperties(ordinal)
            self._null = cupy.cuda.Stream.null
            self._pool = cupy.get_default_memory_pool()
        self.name = found["name"].decode(errors="replace")
        self.capability = int(found["major"]), int(found["minor"])
        self.multiprocessors = int(found["multiProcessorCount"])
        self.shared_bytes = int(found["sharedMemPerBlockOptin"])
        self.cache_bytes = int(found["l2CacheSize"])
        self.driver, self.runtime = map(dotted, versions(cupy))
        self._takes = (cupy.ndarray, np.generic)

    def _use(self) -> None:
        """Make this device the thread's current one (cheap, if it is already)."""
        self._runtime.setDevice(self.ordinal)

    @contextmanager
    def _told(self, doing: str) -> Iterator[None]:
        """Turn CuPy's errors into ours."""
        try:
            yield
        except self._known as error:
            self._fail(doing, error)

    def _fail(self, doing: str, error: Exception) -> NoReturn:
        line = f"{self.name}: {doing}: {line_of(error)}"
        if "cudaErrorMemoryAllocation" in line or "CUDA_ERROR_OUT_OF_MEMORY" in line:
            raise DeviceMemoryError(line) from error
        raise SparseDNNError(line) from error

    # Memory ---------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """See `Device.free_bytes`; with what CuPy's pool holds and nobody uses."""
        with self._told("asking for its memory"):
            self._use()
            return int(self._runtime.memGetInfo()[0]) + int(self._pool.free_bytes())

    def total_bytes(self) -> int:
        """See `Device.total_bytes`."""
        with self._told("asking for its memory"):
            self._use()
            return int(self._runtime.memGetInfo()[1])

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Device.empty`; the contents are what was there."""
        with self._told("allocating"):
            self._use()
            try:
                return self._cupy.empty(shape, dtype)
            except self._cupy.cuda.memory.OutOfMemoryError:
                self._pool.free_all_blocks()
            try:
                return self._cupy.empty(shape, dtype)
            except self._cupy.cuda.memory.OutOfMemoryError:
                pass
        wanted = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        free = self.free_bytes()
        raise DeviceMemoryError(
            f"{self.name}: {wanted:,} bytes are wanted, {free:,} are free", wanted, free
        )

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """See `Device.zeros`; waits for all work before it."""
        array = self.empty(shape, dtype)
        self.synchronize()
        self.fill_zero(array)
        self.synchronize()  # streams do not wait for the default one
        return array

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """See `Device.pinned`; not of CuPy's pool, which rounds up to powers of two."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        if not size:
            return np.empty(shape, dtype)
        with self._told(f"{size:,} bytes of page-locked memory of the host"):
            self._use()
            memory = self._cupy.cuda.PinnedMemory(size)
        return np.ndarray(shape, dtype, buffer=self._cupy.cuda.PinnedMemoryPointer(memory, 0))

    # Copies ---------------------------------------------------------------------------------

    def upload(self, host: NDArray[Any], out: Array | None = None, stream: Stream = None) -> Array:
        """See `Device.upload`; without a stream, waits for all work before it."""
        if out is None:
            out = self.empty(host.shape, host.dtype)
        host = np.ascontiguousarray(host)  # a copy is not pinned, so it is read before we return
        check_copy(host, out)
        if host.nbytes:
            self._copy(
                out.data.ptr,
                host.ctypes.data,
                host.nbytes,
                self._runtime.memcpyHostToDevice,
                stream,
            )
        return out

    def download(
        self, array: Array, out: NDArray[Any] | None = None, stream: Stream = None
    ) -> NDArray[Any]:
        """See `Device.download`; without a stream, waits for all work before it."""
        if out is None:
            make = np.empty if stream is None else self.pinned
            out = make(array.shape, array.dtype)
        check_copy(array, out)
        if out.nbytes:
            self._copy(
                out.ctypes.data,
                array.data.ptr,
                out.nbytes,
                self._runtime.memcpyDeviceToHost,
                stream,
            )
        return out

    def _copy(self, to: int, source: int, size: int, kind: int, stream: Stream) -> None:
        """Copy between host and device; without a stream, all is done before and after it."""
        if stream is None:
            self.synchronize()
        with self._told("copying"):
            self._use()
            ptr = 0 if stream is None else stream.ptr
            self._runtime.memcpyAsync(to, source, size, kind, ptr)
            if stream is None:
                self._runtime.streamSynchronize(0)

    def copy(self, source: Array, target: Array, stream: Stream = None) -> None:
        """See `Device.copy`."""
        check_copy(source, target)
        if self._recording is not None:
            self._recording.append((source, target))
        if source.nbytes:
            with self._told("copying"):
                self._use()
                self._runtime.memcpyAsync(
                    target.data.ptr, source.data.ptr, source.nbytes,
                    self._runtime.memcpyDeviceToDevice, 0 if stream is None else stream.ptr,
                )  # fmt: skip

    def fill_zero(self, array: Array, stream: Stream = None) -> None:
        """See `Device.fill_zero`."""
        check_copy(array, array)
        if self._recording is not None:
            self._recording.append(array)
        if array.nbytes:
            with self._told("filling"):
                self._use()
                self._runtime.memsetAsync(
                    array.data.ptr, 0, array.nbytes, 0 if stream is None else stream.ptr
                )

    # Kernels --------------------------------------------------------------------------------

    def function(self, program: str, name: str, **defines: int | str) -> Function:
        """See `Device.function`; machine code is kept on disk, see `machine_code`."""
        module_key = (program, *sorted(defines.items()))
        key = (name, *module_key)
        found = self._functions.get(key)
        if found is not None:
            return found
        if module_key not in self._modules:
            self._modules[module_key] = self._module(
                program, programs.source(program), programs.options(defines)
            )
        found = self._functions[key] = self._kernel(self._modules[module_key], program, name)
        return found

    def _module(self, program: str, text: str, options: tuple[str, ...]) -> Any:
        try:
            with self._told(f"compiling {program}.cu"):
                self._use()
                file = machine_code(self._cupy, text, options, self.capability)
                return self._cupy.RawModule(path=str(file))
        except self._cupy.cuda.compiler.CompileException as error:
            raise SparseDNNError(f"{program}.cu does not compile: {_first_error(error)}") from error

    def _kernel(self, module: Any, program: str, name: str) -> _Kernel:
        with self._told(f"kernel {name} of {program}.cu"):
            self._use()
            raw = module.get_function(name)
            # Asking makes the driver load the kernel: now, and not within a capture.
            own = int(raw.shared_size_bytes)
            return _Kernel(name, raw, raw.kernel, _PLAIN_SHARED - own, self.shared_bytes - own)

    def try_kernel(self) -> None:
        """Compile a kernel, run it, and look at what it gave.

        Raises
        ------
        SparseDNNError
            If it gave something else, and whatever CuPy raises.
        """
        module = self._module("trial", _TRIAL, programs.options({}))
        kernel = self._kernel(module, "trial", "trial")
        out = self.zeros(32, np.int32)
        self.launch(kernel, 1, 32, (out, np.int32(7)))
        if not np.array_equal(self.download(out), np.arange(7, 39)):
            raise SparseDNNError(f"{self.name}: a first kernel gave wrong numbers")

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
        """See `Device.launch`."""
        grid = blocks if isinstance(blocks, tuple) else (blocks,)
        if min(grid) < 1 or not 1 <= threads <= _MOST_THREADS or shared > function.most:
            raise ValueError(
                f"{function.name}: no grid {blocks} × {threads} with {shared} shared bytes"
            )
        given = []
        for value in arguments:
            if value is None:
                value = _NULL
            elif not isinstance(value, self._takes):  # CuPy would pass it as it thinks best
                raise TypeError(
                    f"{function.name}: argument {value!r} has no type that a kernel knows"
                )
            given.append(value)
        if self._recording is not None:
            self._recording.append(given)
        try:
            self._use()
            if shared > function.shared:
                # All that there is: the kernel is the driver's, and whoever else has it (another
                # `CudaDevice`, a graph) may want more.
                function.raw.max_dynamic_shared_size_bytes = function.shared = function.most
            function.run(grid, (threads,), given, shared, self._null if stream is None else stream)
        except self._known as error:
            self._fail(f"starting {function.name} on {blocks} × {threads} threads", error)

    # Order ----------------------------------------------------------------------------------

    def stream(self) -> Stream:
        """See `Device.stream`; it does not wait for the default one, nor the other way round."""
        with self._told("making a stream"):
            self._use()
            return self._cupy.cuda.Stream(non_blocking=True)

    def event(self) -> Event:
        """See `Device.event`."""
        with self._told("making an event"):
            self._use()
            return self._cupy.cuda.Event()

    def record(self, event: Event, stream: Stream = None) -> None:
        """See `Device.record`."""
        with self._told("recording an event"):
            self._use()
            event.record(self._null if stream is None else stream)

    def wait(self, event: Event, stream: Stream = None) -> None:
        """See `Device.wait`."""
        with self._told("waiting for an event"):
            self._use()
            (self._null if stream is None else stream).wait_event(event)

    def seconds(self, start: Event, end: Event) -> float:
        """See `Device.seconds`."""
        with self._told("running"):
            start.synchronize()
            end.synchronize()
            return float(self._cupy.cuda.get_elapsed_time(start, end)) / 1e3

    def synchronize(self, stream: Stream = None) -> None:
        """See `Device.synchronize`."""
        with self._told("running"):
            self._use()
            if stream is None:
                self._runtime.deviceSynchronize()
            else:
                stream.synchronize()

    def capture(self, work: Callable[[Stream], None]) -> Graph:
        """See `Device.capture`; the graph holds the arrays that it names.

        `work` must not allocate, nor copy from or to the host.
        """
        if self._recording is not None:
            raise SparseDNNError(f"{self.name}: a capture within a capture")
        stream = self.stream()
        held: list[Any] = []
        self._recording = held
        try:
            with self._told("recording a graph"):
                stream.begin_capture()
                try:
                    work(stream)
                except BaseException:
                    with suppress(Exception):  # what went wrong in `work` is what matters
                        stream.end_capture()
                    raise
                return _Captured(stream.end_capture(), held)
        finally:
            self._recording = None

    def replay(self, graph: Graph, stream: Stream = None) -> None:
        """See `Device.replay`."""
        with self._told("starting a graph"):
            self._use()
            graph.graph.launch(self._null if stream is None else stream)


def _first_error(error: BaseException) -> str:
    """The first line of the compiler's that tells an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "?")
