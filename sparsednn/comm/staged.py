"""`Staged`: a communicator's verbs for arrays that are not in the host's memory.

Each array is copied to the host, sent by the communicator, and what came is copied back. What the
words are counted as is the communicator's own affair: the same as for arrays of the host. An MPI
library that takes device memory could do without the copies; this works with every one.

Must not know: which device it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm._buffers import Array
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.pending import Pending

__all__ = ["HostCopies", "Staged", "StagedPending"]


class HostCopies(Protocol):
    """Who can copy arrays to the host and back; backends of the dense path can."""

    def to_host(self, a: Array) -> NDArray[Any]:
        """NumPy array with the values of `a`."""

    def from_host(self, a: NDArray[Any]) -> Array:
        """Array on the device with the values of `a`."""


class StagedPending:
    """A verb that was started; what comes is on the device when `wait` returns."""

    __slots__ = ("_host", "_into", "_pending")

    def __init__(self, pending: Pending, host: NDArray[Any], into: Any) -> None:
        self._pending, self._host, self._into = pending, host, into

    def wait(self) -> None:
        """Wait, and copy the result to the device; a second time does nothing."""
        self._pending.wait()
        if self._into is not None:
            self._into(self._host)
            self._into = None


class Staged:
    """The verbs that the dense path uses, with its arrays on a device.

    Parameters
    ----------
    comm
        Sends; its ranks, traffic and errors are this one's.
    copies
        To the host and back.
    """

    __slots__ = ("_comm", "_copies", "rank", "size", "traffic")

    def __init__(self, comm: Communicator, copies: HostCopies) -> None:
        self._comm, self._copies = comm, copies
        self.rank, self.size, self.traffic = comm.rank, comm.size, comm.traffic

    def _host(self, array: Array) -> NDArray[Any]:
        """A copy that is the host's own, also where there is only the host."""
        return np.array(self._copies.to_host(array))

    def _back(self, array: Array) -> Any:
        """What puts host memory into an array of the device."""

        def copy(host: NDArray[Any]) -> None:
            array[...] = self._copies.from_host(host)

        return copy

    def allreduce(
        self, array: Array, op: str = "sum", *, layer: int | None = None, verb: str = "allreduce"
    ) -> None:
        """As `Communicator.allreduce`."""
        host = self._host(array)
        self._comm.allreduce(host, op, layer=layer, verb=verb)
        self._back(array)(host)

    def allgather(self, array: Array, counts: Sequence[int], *, layer: int | None = None) -> Array:
        """As `Communicator.allgather`."""
        return self._copies.from_host(self._comm.allgather(self._host(array), counts, layer=layer))

    def reduce_scatter(
        self, array: Array, counts: Sequence[int], op: str = "sum", *, layer: int | None = None
    ) -> Array:
        """As `Communicator.reduce_scatter`."""
        mine = self._comm.reduce_scatter(self._host(array), counts, op, layer=layer)
        return self._copies.from_host(mine)

    def start_broadcast(
        self, array: Array, root: int = 0, *, layer: int | None = None
    ) -> StagedPending:
        """As `Communicator.start_broadcast`."""
        host = self._host(array)
        pending = self._comm.start_broadcast(host, root, layer=layer)
        return StagedPending(pending, host, None if root == self.rank else self._back(array))

    def start_reduce(
        self, array: Array, root: int = 0, op: str = "sum", *, layer: int | None = None
    ) -> StagedPending:
        """As `Communicator.start_reduce`."""
        host = self._host(array)
        pending = self._comm.start_reduce(host, root, op, layer=layer)
        return StagedPending(pending, host, self._back(array) if root == self.rank else None)

    def start_allreduce(
        self, array: Array, op: str = "sum", *, layer: int | None = None, verb: str = "allreduce"
    ) -> StagedPending:
        """As `Communicator.start_allreduce`."""
        host = self._host(array)
        pending = self._comm.start_allreduce(host, op, layer=layer, verb=verb)
        return StagedPending(pending, host, self._back(array))
