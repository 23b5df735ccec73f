"""`EmulatedDevice`: a GPU for tests, which interprets the PTX that NVRTC makes of our kernels.

Its arrays are NumPy's, in an arena where every byte has a mark; kernels run at once, when they are
launched, and a fault of a kernel is raised there, as `KernelError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ptx.kernel import Kernel, block_spaces
from ptx.machine import Batch, KernelError
from ptx.memory import BASE, MAPPED, WRITTEN, Arena, Space
from ptx.nvrtc import CompileError, compile_program
from ptx.parser import Module, parse
from ptx.traffic import Traffic
from sparsednn.errors import DeviceMemoryError, SparseDNNError
from sparsednn.gpu import programs

__all__ = ["EmulatedDevice", "Statistics"]


@dataclass
class Statistics:
    """What a kernel did so far; `traffic` only if the device counts it."""

    launches: int = 0
    instructions: int = 0
    lane_instructions: int = 0
    seconds: float = 0.0
    traffic: Traffic | None = None


@dataclass
class _Event:
    at: float = 0.0


class _Graph:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []


class _Stream:
    """A stream; `graph` while it is captured."""

    def __init__(self, graph: _Graph | None = None) -> None:
        self.graph = graph


@lru_cache(maxsize=256)
def _kernel(ptx: str, name: str, addresses: tuple[tuple[str, int], ...]) -> Kernel:
    """Make a kernel ready; devices share those whose variables have the same addresses."""
    module = parse(ptx)
    return Kernel(module, module.entries[name], dict(addresses))


class EmulatedDevice:
    """A device that runs kernels instruction by instruction, and finds what they do wrong.

    Parameters
    ----------
    memory
        Bytes that can be allocated.
    shared_bytes, multiprocessors, cache_bytes
        As the real ones' attributes.
    races, initcheck
        Whether kernels are refused for unordered accesses of one word by two threads, and for
        reading what was never written. `initcheck` can be changed between launches.
    early_exit
        Whether threads may end before a ``__syncthreads`` of their block (CUDA forbids it, hardware
        goes on without them).
    count
        Whether `statistics` have the memory traffic.
    lanes
        Threads that run together.
    steps
        Instructions after which a kernel counts as endless.
    """

    def __init__(
        self,
        *,
        memory: int = 1 << 28,
        shared_bytes: int = 99 << 10,
        multiprocessors: int = 4,
        cache_bytes: int = 1 << 22,
        races: bool = True,
        initcheck: bool = True,
        early_exit: bool = False,
        count: bool = False,
        lanes: int = 1 << 15,
        steps: int = 5_000_000,
    ) -> None:
        self.name = "PTX interpreter"
        self.capability = (8, 0)
        self.multiprocessors, self.shared_bytes = multiprocessors, shared_bytes
        self.cache_bytes = cache_bytes
        self.races, self.initcheck, self.early_exit = races, initcheck, early_exit
        self.count, self.lanes, self.steps = count, lanes, steps
        self.statistics: dict[str, Statistics] = {}
        self.arena = Arena(memory, races)
        self._serial = 1
        self._modules: dict[Any, tuple[str, dict[str, int], list[NDArray[Any]]]] = {}
        self._kernels: dict[Any, Kernel] = {}
        self._spaces: tuple[Any, dict[str, Space]] | None = None

    # -- memory

    def free_bytes(self) -> int:
        """Bytes that can still be allocated."""
        return self.arena.limit - self.arena.used

    def total_bytes(self) -> int:
        """Bytes of the device's memory."""
        return self.arena.limit

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate; filled with NaN (0x7fc0…), and reading it in a kernel is an error."""
        extents = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
        try:
            array = self.arena.allocate(extents, dtype)
        except MemoryError as error:
            wanted = int(error.args[0])
            raise DeviceMemoryError(
                f"{wanted} bytes wanted, {self.free_bytes()} free", wanted, self.free_bytes()
            ) from None
        if array.size:
            start = self.arena.offset(array)  # allocations begin at whole words, and gaps follow
            self.arena.views[4][start // 4 : -(-(start + array.nbytes) // 4)] = 0x7FC00000
        return array

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Allocate zeros."""
        array = self.empty(shape, dtype)
        self.fill_zero(array)
        return array

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Host memory."""
        return np.empty(shape, dtype)

    def upload(
        self, host: NDArray[Any], out: NDArray[Any] | None = None, stream: Any = None
    ) -> NDArray[Any]:
        """Copy to the device."""
        if out is None:
            out = self.empty(host.shape, host.dtype)
        _same(host, out)
        self.arena.offset(out)
        out.reshape(-1)[...] = host.reshape(-1)
        self.arena.written(out)
        return out

    def download(
        self, array: NDArray[Any], out: NDArray[Any] | None = None, stream: Any = None
    ) -> NDArray[Any]:
        """Copy to the host."""
        self.arena.offset(array)
        if out is None:
            return np.array(array)
        _same(array, out)
        out.reshape(-1)[...] = array.reshape(-1)
        return out

    def copy(self, source: NDArray[Any], target: NDArray[Any], stream: Any = None) -> None:
        """Copy within the device; what was unwritten stays so."""
        _same(source, target)
        start, to = self.arena.offset(source), self.arena.offset(target)

        def work() -> None:
            data, shadow, size = self.arena.data, self.arena.shadow, source.nbytes
            data[to : to + size] = data[start : start + size]
            shadow[to : to + size] = shadow[start : start + size]

        self._do(work, stream)

    def fill_zero(self, array: NDArray[Any], stream: Any = None) -> None:
        """Set all bytes to zero."""
        self.arena.offset(array)

        def work() -> None:
            array.fill(0)
            self.arena.written(array)

        self._do(work, stream)

    # -- kernels

    def function(self, program: str, name: str, **defines: int | str) -> Kernel:
        """Compile a kernel of ours."""
        options = programs.options(defines)
        return self.compile(programs.source(program), name, options, f"{program}.cu")

    def compile(
        self,
        text: str,
        name: str,
        options: tuple[str, ...] = ("--std=c++17",),
        file: str = "test.cu",
    ) -> Kernel:
        """Compile a kernel of any text; kernels of the same text share their variables."""
        key = (text, options)
        if (*key, name) in self._kernels:
            return self._kernels[(*key, name)]
        if key not in self._modules:
            try:
                ptx = compile_program(text, file, options).ptx
            except CompileError as error:
                raise SparseDNNError(str(error)) from error
            self._modules[key] = (ptx, *self._variables(parse(ptx)))
        ptx, addresses, _ = self._modules[key]
        entries = parse(ptx).entries
        if name not in entries:
            raise SparseDNNError(f"{file} has no kernel {name!r}: {', '.join(entries)}")
        kernel = self._kernels[(*key, name)] = _kernel(ptx, name, tuple(addresses.items()))
        return kernel

    def _variables(self, module: Module) -> tuple[dict[str, int], list[NDArray[Any]]]:
        """Give the module's variables memory; those without contents are zero, as in CUDA."""
        addresses, arrays = {}, []
        variables = [v for v in module.variables if v.space in ("global", "const")]
        for variable in variables:
            array = self.zeros(variable.size, np.uint8)
            if variable.data is not None:
                array[:] = np.frombuffer(variable.data, np.uint8)
            addresses[variable.name] = BASE + self.arena.offset(array)
            arrays.append(array)
        for variable, array in zip(variables, arrays, strict=True):
            for at, symbol in variable.pointers:
                array[at : at + 8].view(np.uint64)[0] = addresses[symbol]
        return addresses, arrays

    def launch(
        self,
        function: Kernel,
        blocks: int | tuple[int, int],
        threads: int,
        arguments: Sequence[Any],
        *,
        shared: int = 0,
        stream: Any = None,
    ) -> None:
        """Run a kernel.

        Raises
        ------
        TypeError
            If the arguments are not those that the kernel has.
        ValueError
            If the grid or the shared memory is not possible.
        KernelError
            If the kernel does something wrong.
        """
        grid = (int(blocks), 1) if not isinstance(blocks, tuple) else (blocks[0], blocks[1])
        if not 1 <= threads <= min(1024, function.entry.max_threads):
            raise ValueError(f"{function.name}: {threads} threads per block")
        if not (1 <= grid[0] < 2**31 and 1 <= grid[1] < 2**16):
            raise ValueError(f"{function.name}: a grid of {grid} blocks")
        if shared < 0 or shared + function.static_bytes > self.shared_bytes:
            raise ValueError(
                f"{function.name}: {shared} + {function.static_bytes} bytes of shared memory, "
                f"of {self.shared_bytes}"
            )
        parameters = self._pack(function, arguments)

        def work(_keep: Sequence[Any] = tuple(arguments)) -> None:  # a graph holds its arrays
            self._run(function, grid, threads, parameters, shared)

        self._do(work, stream)

    def _pack(self, kernel: Kernel, arguments: Sequence[Any]) -> bytes:
        wanted = kernel.entry.parameters
        if len(arguments) != len(wanted):
            raise TypeError(f"{kernel.name} takes {len(wanted)} arguments, got {len(arguments)}")
        packed = bytearray(kernel.parameter_bytes)
        for number, (parameter, argument) in enumerate(zip(wanted, arguments, strict=True)):
            where = f"{kernel.name}, argument {number} ({parameter.type})"
            if argument is None:
                data = bytes(8)
            elif isinstance(argument, np.generic):
                data = argument.tobytes()
            elif isinstance(argument, np.ndarray):
                try:
                    address = BASE + self.arena.offset(argument) if argument.size else 0
                except ValueError as error:
                    raise TypeError(f"{where}: {error}") from None
                data = np.uint64(address).tobytes()
            else:
                raise TypeError(
                    f"{where}: {type(argument).__name__}; arrays, NumPy scalars or None"
                )
            if len(data) != parameter.size:
                raise TypeError(f"{where}: {len(data)} bytes for {parameter.size}")
            of_float = isinstance(argument, np.floating)
            if isinstance(argument, np.generic) and of_float != (parameter.type[0] == "f"):
                raise TypeError(f"{where}: a {argument.dtype}")
            packed[parameter.offset : parameter.offset + parameter.size] = data
        return bytes(packed)

    def _run(
        self, kernel: Kernel, grid: tuple[int, int], threads: int, parameters: bytes, shared: int
    ) -> None:
        total = grid[0] * grid[1]
        serial, self._serial = self._serial, self._serial + total + 1
        if self._serial >= 1 << 23:
            raise KernelError("too many blocks for one device: make a new one")
        own = self.statistics.setdefault(kernel.name, Statistics())
        if self.count and own.traffic is None:
            own.traffic = Traffic()
        own.launches += 1
        started = time.perf_counter()
        most = max(1, self.lanes // threads)
        for first in range(0, total, most):
            count = min(most, total - first)
            batch = Batch(
                kernel,
                self.arena,
                parameters,
                first,
                count,
                grid,
                threads,
                shared,
                serial,
                spaces=self._block_spaces(kernel, count, threads, shared),
                initcheck=self.initcheck,
                early_exit=self.early_exit,
                steps=self.steps,
                counters=own.traffic if self.count else None,
            )
            batch.run()
            own.instructions += batch.executed
            own.lane_instructions += batch.lane_instructions
        own.seconds += time.perf_counter() - started

    def _block_spaces(
        self, kernel: Kernel, blocks: int, threads: int, shared: int
    ) -> dict[str, Space]:
        """Return the blocks' shared memory, unwritten; the last one is used again."""
        key = (id(kernel), blocks, threads, shared, self.races)
        if self._spaces is not None and self._spaces[0] == key:
            for space in self._spaces[1].values():
                np.minimum(space.shadow, MAPPED, out=space.shadow)
        else:
            self._spaces = (key, block_spaces(kernel, blocks, threads, shared, self.races))
        return self._spaces[1]

    # -- order

    def _do(self, work: Callable[[], None], stream: Any) -> None:
        if isinstance(stream, _Stream) and stream.graph is not None:
            stream.graph.work.append(work)
        else:
            work()

    def stream(self) -> _Stream:
        """Make a stream."""
        return _Stream()

    def event(self) -> _Event:
        """Make an event."""
        return _Event()

    def record(self, event: _Event, stream: Any = None) -> None:
        """Note the time."""
        event.at = time.perf_counter()

    def wait(self, event: _Event, stream: Any = None) -> None:
        """Do nothing: all is done already."""

    def seconds(self, start: _Event, end: _Event) -> float:
        """Wall time between two events."""
        return end.at - start.at

    def synchronize(self, stream: Any = None) -> None:
        """Do nothing: all is done already."""

    def capture(self, work: Callable[[Any], None]) -> _Graph:
        """Record what `work` does on the stream it is given."""
        graph = _Graph()
        work(_Stream(graph))
        return graph

    def replay(self, graph: _Graph, stream: Any = None) -> None:
        """Run what was captured."""
        for work in graph.work:
            self._do(work, stream)

    def mark_written(self, array: NDArray[Any], written: bool = True) -> None:
        """Say by hand that an array has contents, or none."""
        self.arena.written(array, WRITTEN if written else MAPPED)


def _same(source: NDArray[Any], target: NDArray[Any]) -> None:
    if source.dtype != target.dtype or source.size != target.size:
        raise ValueError(
            f"copy of {source.shape} {source.dtype} into {target.shape} {target.dtype}"
        )
