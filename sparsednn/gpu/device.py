"""`Device`: the few things that the engines ask of a GPU.

Engines allocate, copy and launch through this interface only. Two devices have it:
`cuda.CudaDevice` (CuPy) and `twin.TwinDevice` (NumPy, in host memory, the same calls in the same
order). The tests have a third, which interprets the PTX that NVRTC makes of our kernels.

Work on one stream runs in order; streams run beside each other but for `wait`. A launch returns
before the kernel has run. Arrays are the device's own (CuPy's or NumPy's); engines look at their
``shape``, ``dtype`` and ``nbytes``, slice and reshape them, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = [
    "Argument",
    "Array",
    "Device",
    "Event",
    "Function",
    "Graph",
    "Stream",
    "check_copy",
]

#: An array in the device's memory: ``cupy.ndarray``, or ``numpy.ndarray`` on the twin.
Array = Any

#: What a kernel takes: an array (its address), a typed scalar by value, or None (a null pointer).
Argument = Array | np.generic | None

#: A stream, an event, a compiled kernel or a captured graph: only their device looks inside.
Stream = Any
Event = Any
Function = Any
Graph = Any


class Device(Protocol):
    """A GPU.

    Attributes
    ----------
    name
        As the maker calls it; the twin says that it is one.
    capability
        Compute capability, such as ``(9, 0)``.
    multiprocessors
        How many.
    shared_bytes
        Shared memory that one block may ask for.
    cache_bytes
        Of the second-level cache.
    """

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_bytes: int
    cache_bytes: int

    def free_bytes(self) -> int:
        """Bytes that can still be allocated."""

    def total_bytes(self) -> int:
        """Bytes of the device's memory."""

    def empty(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """Allocate; contents are arbitrary (the twin fills in bytes of ones: NaN, or -1).

        Raises
        ------
        DeviceMemoryError
            If there is not enough.
        """

    def zeros(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> Array:
        """Allocate, and fill with zeros on the default stream before returning."""

    def pinned(self, shape: int | tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """Host memory from and to which copies run beside kernels."""

    def upload(self, host: NDArray[Any], out: Array | None = None, stream: Stream = None) -> Array:
        """Copy to the device, into `out` (same dtype and size) or into a new array.

        Without a stream the copy is done when this returns. On a stream, pinned memory must not be
        changed before the stream has come so far.
        """

    def download(
        self, array: Array, out: NDArray[Any] | None = None, stream: Stream = None
    ) -> NDArray[Any]:
        """Copy to the host; the reverse of `upload`."""

    def copy(self, source: Array, target: Array, stream: Stream = None) -> None:
        """Copy within the device; same dtype and size."""

    def fill_zero(self, array: Array, stream: Stream = None) -> None:
        """Set all bytes to zero."""

    def function(self, program: str, name: str, **defines: int | str) -> Function:
        """Return kernel `name` of ``sources/<program>.cu``, compiled with these macros; kept.

        Raises
        ------
        SparseDNNError
            If it does not compile; the message has the compiler's first error.
        """

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
        """Start a kernel on a grid of blocks, each of `threads` threads and `shared` bytes."""

    def stream(self) -> Stream:
        """Make a stream; None is the default one."""

    def event(self) -> Event:
        """Make an event that tells time."""

    def record(self, event: Event, stream: Stream = None) -> None:
        """Let `event` happen when the stream has come so far."""

    def wait(self, event: Event, stream: Stream = None) -> None:
        """Let the stream's further work wait for the event."""

    def seconds(self, start: Event, end: Event) -> float:
        """Device time between two events, after waiting for both."""

    def synchronize(self, stream: Stream = None) -> None:
        """Wait until all work of the stream is done; without one: of all streams.

        Raises
        ------
        SparseDNNError
            If a kernel failed.
        """

    def capture(self, work: Callable[[Stream], None]) -> Graph:
        """Record the launches, zero fills and copies within the device that `work` makes on the
        stream that it is given, without running them."""

    def replay(self, graph: Graph, stream: Stream = None) -> None:
        """Run what was captured, as often as wanted."""


def check_copy(source: Any, target: Any) -> None:
    """Refuse what is not the same number of the same values side by side.

    Raises
    ------
    ValueError
        If dtypes or sizes differ, or an array has gaps.
    """
    if source.dtype != target.dtype or source.nbytes != target.nbytes:
        raise ValueError(
            f"{source.size} × {source.dtype} cannot be copied to {target.size} × {target.dtype}"
        )
    if not (source.flags.c_contiguous and target.flags.c_contiguous):
        raise ValueError("only arrays whose values are side by side can be copied")
