"""`TwinCupy`: NumPy with CuPy's streams, events and graphs, where there is no GPU.

What is queued on a stream runs at once here; a graph holds what was queued while its stream
captured, with what each piece waits for, and runs it when it is launched. The rules are CUDA's:
other streams join a capture by waiting for one of its events, must be waited for before it ends,
and nothing may be allocated meanwhile. Tests have a twin that runs later, and in odd orders.

Only functions that write into memory that is there (``out``, `copyto`) are known: it holds the GPU
kernels to that. Must not know: what is computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsednn.errors import SparseDNNError

__all__ = ["TwinArray", "TwinCupy", "TwinEvent", "TwinGraph", "TwinProducts", "TwinStream"]

_Work = Callable[[], None]


class TwinArray:
    """An array of the device: views of it are made at once, its values when the queue is there."""

    def __init__(self, twin: TwinCupy, inside: Any) -> None:
        self._twin, self.inside = twin, inside

    def __getattr__(self, name: str) -> Any:
        if name in ("shape", "strides", "dtype", "size", "nbytes", "itemsize", "ndim"):
            return getattr(self.inside, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        """Length of the first axis."""
        return len(self.inside)

    @property
    def data(self) -> Any:
        """Its address, as ``data.ptr``."""
        return SimpleNamespace(ptr=self.inside.ctypes.data)

    @property
    def T(self) -> TwinArray:  # noqa: N802 - NumPy's name
        """A view with all axes turned round."""
        return self._view(self.inside.T)

    def _view(self, found: Any) -> TwinArray:
        if found.size and not np.shares_memory(found, self.inside):
            raise SparseDNNError("the twin of CuPy: a view was wanted, it would be a copy")
        return TwinArray(self._twin, found)

    def __getitem__(self, key: Any) -> TwinArray:
        """Return a view."""
        return self._view(self.inside[key])

    def reshape(self, *shape: Any) -> TwinArray:
        """Return a view."""
        return self._view(self.inside.reshape(*shape))

    def swapaxes(self, first: int, second: int) -> TwinArray:
        """Return a view."""
        return self._view(self.inside.swapaxes(first, second))

    def view(self, dtype: Any) -> TwinArray:
        """Return a view."""
        return self._view(self.inside.view(dtype))

    def set(self, values: Any, stream: TwinStream | None = None) -> None:
        """Copy from the host; without a stream, behind all that was queued.

        As CuPy, from what is of the same shape and dtype, to what has no gaps.
        """
        if (values.shape, values.dtype) != (self.shape, self.dtype):
            raise TypeError(f"{values.dtype} {values.shape} to {self.dtype} {self.shape}")
        if not self.inside.flags.c_contiguous:
            raise RuntimeError("an array with gaps cannot be set")
        if stream is None:
            self._twin.synchronize()
            np.copyto(self.inside, values)
        else:
            self._twin.queue(lambda: np.copyto(self.inside, values), stream)


class TwinStream:
    """Work runs at once, unless it is captured."""

    def __init__(self, twin: TwinCupy, ptr: int) -> None:
        self.twin, self.ptr = twin, ptr
        self.capture: TwinGraph | None = None
        self.frontier: frozenset[int] = frozenset()

    def __enter__(self) -> TwinStream:
        """Make it the current one."""
        self.twin.current.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Make the one before current again."""
        self.twin.current.pop()

    def do(self, work: _Work) -> None:
        """Do work, or let it be part of the graph."""
        if self.capture is None:
            self.twin.run(work, self)
        else:
            self.frontier = frozenset({self.capture.add(work, self.frontier, self.ptr)})

    def record(self, event: TwinEvent) -> None:
        """See `cupy.cuda.Stream.record`."""
        event.record(self)

    def wait_event(self, event: TwinEvent) -> None:
        """See `cupy.cuda.Stream.wait_event`; a stream joins the capture that the event is of."""
        if event.capture is None:
            if self.capture is not None and event.recorded:
                raise SparseDNNError("a captured stream waits for an event outside of the capture")
            if self.capture is None:
                self.twin.wait(event, self)
            return
        if event.capture.ended or self.capture not in (None, event.capture):
            raise SparseDNNError("a stream waits for an event of a capture that is not its own")
        if self.capture is None:
            self.capture, self.frontier = event.capture, frozenset()
            event.capture.streams.append(self)
        self.frontier |= event.frontier

    def begin_capture(self) -> None:
        """See `cupy.cuda.Stream.begin_capture`."""
        if self.capture is not None:
            raise SparseDNNError("a capture within a capture")
        self.capture, self.frontier = TwinGraph(self.twin), frozenset()
        self.capture.streams.append(self)

    def end_capture(self) -> TwinGraph:
        """See `cupy.cuda.Stream.end_capture`; all streams must have been waited for."""
        graph, joined = self.capture, self.frontier
        if graph is None:
            raise SparseDNNError("no capture has begun")
        for stream in graph.streams:
            left, stream.capture = stream.frontier, None
            if not left <= graph.before(joined):
                raise SparseDNNError("a capture ends before all its streams are joined")
        graph.ended = True
        return graph

    def synchronize(self) -> None:
        """Wait for its work."""
        self.twin.synchronize(self)


class TwinEvent:
    """That a stream has come so far."""

    def __init__(self, twin: TwinCupy) -> None:
        self.twin = twin
        self.recorded, self.at = False, 0.0
        self.capture: TwinGraph | None = None
        self.frontier: frozenset[int] = frozenset()
        self.moment: Any = None

    def record(self, stream: TwinStream | None = None) -> None:
        """See `cupy.cuda.Event.record`."""
        stream = self.twin.current[-1] if stream is None else stream
        self.recorded, self.capture, self.frontier = True, stream.capture, stream.frontier
        if stream.capture is None:
            self.twin.mark(self, stream)

    def synchronize(self) -> None:
        """Wait for it."""
        self.twin.synchronize()


class TwinGraph:
    """Pieces of work, and what each of them waits for."""

    def __init__(self, twin: TwinCupy) -> None:
        self.twin, self.ended = twin, False
        self.works: list[_Work] = []
        self.waits: list[frozenset[int]] = []
        self.lanes: list[int] = []
        self.streams: list[TwinStream] = []

    def add(self, work: _Work, waits: frozenset[int], lane: int) -> int:
        """Add a piece, queued on a stream; its number."""
        self.works.append(work)
        self.lanes.append(lane)
        self.waits.append(waits)
        return len(self.works) - 1

    def before(self, pieces: frozenset[int]) -> set[int]:
        """These pieces, and all that they wait for."""
        found, left = set(pieces), list(pieces)
        while left:
            for one in self.waits[left.pop()] - found:
                found.add(one)
                left.append(one)
        return found

    def order(self) -> list[int]:
        """An order that the waits allow."""
        return list(range(len(self.works)))

    def launch(self, stream: TwinStream | None = None) -> None:
        """See `cupy.cuda.Graph.launch`."""
        stream = self.twin.current[-1] if stream is None else stream

        def work() -> None:
            for index in self.twin.order_of(self):
                self.works[index]()

        stream.do(work)


class TwinCupy:
    """The module: what the GPU kernels and `StreamExecution` use of CuPy.

    Attributes
    ----------
    current
        Streams, the last one is current.
    """

    __name__, __version__ = "twin", ""

    def __init__(self) -> None:
        self.streams: list[TwinStream] = []
        self.current = [self._stream()]
        self.cuda = SimpleNamespace(
            Stream=lambda non_blocking=False: self._stream(),
            Event=lambda disable_timing=False: TwinEvent(self),
            get_current_stream=lambda: self.current[-1],
            get_elapsed_time=self._elapsed,
            MemoryPool=lambda: SimpleNamespace(malloc=None),
            using_allocator=self._allocator,
        )
        self.lib = SimpleNamespace(stride_tricks=SimpleNamespace(as_strided=self._strided))

    # -- arrays ----------------------------------------------------------------------------------

    def empty(self, shape: Any, dtype: Any) -> TwinArray:
        """Allocate; filled with what would be noticed."""
        if any(stream.capture is not None for stream in self.streams):
            raise SparseDNNError("memory is allocated within a capture")
        inside = np.empty(shape, dtype)
        inside.reshape(-1).view(np.uint8)[:] = 0xFF
        return TwinArray(self, inside)

    def zeros(self, shape: Any, dtype: Any) -> TwinArray:
        """Allocate zeros."""
        found = self.empty(shape, dtype)
        found.inside[...] = 0
        return found

    def asarray(self, values: Any) -> TwinArray:
        """Bring an array of the host."""
        found = self.empty(values.shape, values.dtype)
        found.inside[...] = values
        return found

    def asnumpy(self, array: TwinArray) -> Any:
        """Bring an array to the host, behind all that was queued."""
        self.synchronize()
        return array.inside.copy()

    def _strided(self, array: TwinArray, shape: Any, strides: Any) -> TwinArray:
        found = np.lib.stride_tricks.as_strided(array.inside, shape, strides)
        return TwinArray(self, found)

    def __getattr__(self, name: str) -> Any:
        """Return a function of NumPy; it writes into ``out``."""
        function = getattr(np, name)

        def queued(*arguments: Any, out: TwinArray | None = None, **others: Any) -> None:
            given = [_inside(one) for one in arguments]
            more = {key: _inside(value) for key, value in others.items()}
            if out is None and name != "copyto":
                raise SparseDNNError(f"{name} without 'out' allocates")
            if out is not None:
                more["out"] = out.inside

            def work() -> None:
                with np.errstate(all="ignore"):
                    function(*given, **more)

            self.queue(work)

        return queued

    # -- queues ----------------------------------------------------------------------------------

    def _stream(self) -> TwinStream:
        stream = TwinStream(self, len(self.streams))
        self.streams.append(stream)
        return stream

    def queue(self, work: _Work, stream: TwinStream | None = None) -> None:
        """Queue work on a stream, or on the current one."""
        (self.current[-1] if stream is None else stream).do(work)

    def run(self, work: _Work, stream: TwinStream) -> None:
        """Do what is in no capture: at once."""
        work()

    def wait(self, event: TwinEvent, stream: TwinStream) -> None:
        """Let a stream wait for an event: it has happened."""

    def mark(self, event: TwinEvent, stream: TwinStream) -> None:
        """Let an event happen."""
        event.at = time.perf_counter()

    def order_of(self, graph: TwinGraph) -> list[int]:
        """In which order the pieces of a graph run."""
        return graph.order()

    def synchronize(self, stream: TwinStream | None = None) -> None:
        """Wait for all work: it is done."""

    def _elapsed(self, start: TwinEvent, end: TwinEvent) -> float:
        self.synchronize()
        return (end.at - start.at) * 1e3

    @contextmanager
    def _allocator(self, allocator: Any = None) -> Iterator[None]:
        yield


class TwinProducts:
    """`products.Products` by NumPy."""

    def __init__(self, twin: TwinCupy) -> None:
        self._twin = twin

    def run(self, a: TwinArray, b: TwinArray, out: TwinArray, *, accumulate: bool = False) -> None:
        """See `Products.run`."""

        def work() -> None:
            if accumulate:
                out.inside += a.inside @ b.inside
            else:
                np.matmul(a.inside, b.inside, out=out.inside)

        self._twin.queue(work)

    def check(self) -> None:
        """See `Products.check`: NumPy is there."""

    def close(self) -> None:
        """See `Products.close`."""


def _inside(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("an array of NumPy among those of the device")
    return value.inside if isinstance(value, TwinArray) else value
