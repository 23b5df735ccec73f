"""How packed lines travel between the devices of a group: through MPI, staged or direct, or NCCL.

A transport has one send buffer and one receive buffer on the device, and knows for each layer where
the messages lie in them (`Route`). `start` is called when what packs the send buffer has been
launched, `finish` when something else has been launched for the device to do meanwhile:

==============  =================================  ==========================================
transport       start                              finish
==============  =================================  ==========================================
mpi staged      copy to pinned host memory         wait for it; MPI; copy to the device
mpi gpu-aware   nothing                            wait for the packing; MPI on device memory
nccl            send and receive                   nothing
==============  =================================  ==========================================

Copies and NCCL run on a stream of their own, ordered by events; the host thread drives MPI in
`finish`, while the device works. All ranks of the group call the same in the same order.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.errors import DeviceMemoryError, UsageError
from sparsednn.gpu.device import Array, Device, Stream
from sparsednn.gpu.storage import TILE, stored_dtype

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.comm.neighbours import NeighbourExchange

__all__ = ["TRANSPORTS", "Route", "Transport", "check_transport", "make_transport"]

#: What can be asked for.
TRANSPORTS = ("auto", "staged", "gpu-aware", "nccl")

#: Persistent requests that are kept; each takes some hundred bytes in the MPI library.
_MOST_REQUESTS = 1 << 14


@dataclass(frozen=True, slots=True)
class Route:
    """One layer's messages: ranks, and packed lines of message i, ``first[i]`` to ``first[i+1]``.

    Ranks ascend; each message has at least one line.
    """

    send_ranks: NDArray[np.int64]
    send_first: NDArray[np.int64]
    receive_ranks: NDArray[np.int64]
    receive_first: NDArray[np.int64]

    @property
    def lines_sent(self) -> int:
        """Lines of all messages that leave this rank."""
        return int(self.send_first[-1])

    @property
    def lines_received(self) -> int:
        """Lines of all messages that come in."""
        return int(self.receive_first[-1])


class Transport:
    """See the module; this one has nobody to send to.

    Parameters
    ----------
    device
        This rank's.
    routes
        Of all layers.

    Attributes
    ----------
    name
        Which it is.
    send, receive
        The buffers on the device, flat, once they are reserved.
    """

    name = "none"

    def __init__(self, device: Device, routes: list[Route]) -> None:
        self._device, self._routes = device, routes
        self.send: Array = None
        self.receive: Array = None

    def reserve(self, tiles: int, store: int) -> None:
        """Allocate buffers for so many tiles; not collective.

        Raises
        ------
        DeviceMemoryError
            If there is no room.
        """
        dtype, unit = stored_dtype(store), tiles * TILE
        sent = max((route.lines_sent for route in self._routes), default=0)
        received = max((route.lines_received for route in self._routes), default=0)
        self.send = self._device.empty(max(1, sent) * unit, dtype)
        self.receive = self._device.empty(max(1, received) * unit, dtype)

    def start(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        """The send buffer has been packed on `stream`, in so many tiles; count so many words."""

    def finish(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        """Let what is launched on `stream` from now on find the messages in the receive buffer."""

    def free(self) -> None:
        """Give everything back; a second time does nothing."""


def check_transport(wanted: str, device: Device) -> None:
    """Tell whether lines can travel like this from this rank's device; not collective.

    Raises
    ------
    UsageError
        If there is none of this name, the device is no GPU, or the MPI library says of itself that
        it cannot do it.
    MissingDependencyError
        If NCCL is asked for, and is not there.
    """
    if wanted not in TRANSPORTS:
        raise UsageError(f"transport '{wanted}' is none of {', '.join(TRANSPORTS)}")
    if wanted == "nccl":
        from sparsednn.gpu.nccl import load_nccl

        if _in_host_memory(device):
            raise UsageError(f"transport 'nccl' needs GPUs, not the {device.name}")
        load_nccl()
    # A library that cannot be asked (None) is believed; host memory can be given to any.
    if wanted == "gpu-aware" and _gpu_aware(device) is False:
        raise UsageError(
            "transport 'gpu-aware': the MPI library cannot send from GPU memory; use 'staged'"
        )


def make_transport(
    wanted: str, device: Device, comm: Communicator, routes: list[Route], *, verb: str, tag: int
) -> Transport:
    """Choose and make a transport, the same kind on all ranks; collective.

    Parameters
    ----------
    wanted
        One of `TRANSPORTS`. "auto" takes device memory to MPI only where the library says on all
        ranks that it can.
    device, comm, routes
        This rank's, the group's, this rank's of all layers.
    verb, tag
        To count under, and to tell messages apart.

    Raises
    ------
    UsageError, MissingDependencyError
        As `check_transport`, on all ranks.
    LaunchError
        If NCCL does not start.
    """
    if wanted not in TRANSPORTS:
        raise UsageError(f"transport '{wanted}' is none of {', '.join(TRANSPORTS)}")
    if comm.size == 1:
        return Transport(device, routes)
    with together(comm, "choosing a transport"):
        check_transport(wanted, device)
    if wanted == "nccl":
        return _Nccl(device, comm, routes, verb)
    requests = _Requests(comm, routes, verb, tag)
    direct = wanted == "gpu-aware"
    if wanted == "auto":
        direct = not comm.any_rank(not _gpu_aware(device))
    return (_Direct if direct else _Staged)(device, routes, requests)


def _gpu_aware(device: Device) -> bool | None:
    """What the MPI library says of itself; None if it cannot be asked, or there is no GPU."""
    from sparsednn.comm.mpi import library

    return None if _in_host_memory(device) else library().gpu_aware


def _in_host_memory(device: Device) -> bool:
    """Whether this is the twin, whose arrays are NumPy's."""
    try:
        return isinstance(device.empty(1, np.uint8), np.ndarray)
    except DeviceMemoryError:  # told on all ranks where there is more to allocate
        return True


class _Requests:
    """Exchanges between two fixed buffers, made when first wanted and kept for the next time."""

    def __init__(self, comm: Communicator, routes: list[Route], verb: str, tag: int) -> None:
        self._comm, self._routes, self._verb, self._tag = comm, routes, verb, tag
        self._made: OrderedDict[tuple[int, int], NeighbourExchange] = OrderedDict()
        self._count = 0

    def run(self, layer: int, tiles: int, words: int, send: Array, receive: Array) -> None:
        """Send and receive; returns when all is there. Buffers are always the same ones."""
        exchange = self._made.get((layer, tiles))
        if exchange is None:
            exchange = self._make(layer, tiles, send, receive)
        exchange.start(words)
        exchange.finish()

    def _make(self, layer: int, tiles: int, send: Array, receive: Array) -> NeighbourExchange:
        route = self._routes[layer]
        exchange = self._comm.neighbour_exchange(
            _views(_for_mpi(send), route.send_ranks, route.send_first, tiles),
            _views(_for_mpi(receive), route.receive_ranks, route.receive_first, tiles),
            layer=layer,
            tag=self._tag,
            verb=self._verb,
        )
        self._count += len(exchange.requests)
        while self._made and self._count > _MOST_REQUESTS:
            _, oldest = self._made.popitem(last=False)
            self._count -= len(oldest.requests)
            oldest.free()
        self._made[layer, tiles] = exchange
        return exchange

    def free(self) -> None:
        """Give all requests back."""
        while self._made:
            self._made.popitem()[1].free()
        self._count = 0


def _views(
    buffer: Array, ranks: NDArray[np.int64], first: NDArray[np.int64], tiles: int
) -> dict[int, Array]:
    line = tiles * TILE
    return {
        int(rank): buffer[line * int(first[i]) : line * int(first[i + 1])]
        for i, rank in enumerate(ranks)
    }


def _for_mpi(buffer: Array) -> Array:
    """The same memory as a type that MPI knows: it has no half precision."""
    return buffer if buffer.dtype.itemsize == 4 else buffer.view(np.uint16)


class _Direct(Transport):
    """MPI reads and writes the device's memory (or host memory, on the twin)."""

    name = "mpi gpu-aware"

    def __init__(self, device: Device, routes: list[Route], requests: _Requests) -> None:
        super().__init__(device, routes)
        self._requests = requests
        self._side, self._packed = device.stream(), device.event()

    def start(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        self._device.record(self._packed, stream)
        self._device.wait(self._packed, self._side)

    def finish(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        # MPI knows no streams. Nothing runs on the side stream: this waits for what came before
        # `start` (the packing, and the last use of the receive buffer), not for what came after it.
        self._device.synchronize(self._side)
        self._requests.run(layer, tiles, words, self.send, self.receive)

    def free(self) -> None:
        self._requests.free()


class _Staged(Transport):
    """Through pinned memory of the host: what every MPI can do."""

    name = "mpi staged"

    def __init__(self, device: Device, routes: list[Route], requests: _Requests) -> None:
        super().__init__(device, routes)
        self._requests = requests
        self._side = device.stream()
        self._packed, self._arrived = device.event(), device.event()

    def reserve(self, tiles: int, store: int) -> None:
        """See `Transport.reserve`; the same in pinned memory of the host."""
        super().reserve(tiles, store)
        self._host_send, self._host_receive = (
            self._device.pinned(one.size, one.dtype) for one in (self.send, self.receive)
        )

    def start(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        device, values = self._device, tiles * TILE * self._routes[layer].lines_sent
        # The event also tells that what was received last has been used: see the upload below.
        device.record(self._packed, stream)
        device.wait(self._packed, self._side)
        if values:
            device.download(self.send[:values], out=self._host_send[:values], stream=self._side)

    def finish(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        device, values = self._device, tiles * TILE * self._routes[layer].lines_received
        # Also waits for the last upload, whose pinned memory MPI writes now.
        device.synchronize(self._side)
        self._requests.run(layer, tiles, words, self._host_send, self._host_receive)
        if values:
            source = self._host_receive[:values]
            device.upload(source, out=self.receive[:values], stream=self._side)
            device.record(self._arrived, self._side)
            device.wait(self._arrived, stream)

    def free(self) -> None:
        self._requests.free()


class _Nccl(Transport):
    """NCCL's point-to-point messages, one group for each layer; the host waits for nothing."""

    name = "nccl"

    def __init__(self, device: Device, comm: Communicator, routes: list[Route], verb: str) -> None:
        super().__init__(device, routes)
        from sparsednn.gpu.nccl import NcclGroup

        self._comm, self._verb = comm, verb
        self._side = device.stream()  # makes the device the thread's current one, too
        self._packed, self._arrived = device.event(), device.event()
        self._group = NcclGroup(comm)

    def start(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        route, device = self._routes[layer], self._device
        sends = _views(self.send, route.send_ranks, route.send_first, tiles)
        receives = _views(self.receive, route.receive_ranks, route.receive_first, tiles)
        device.record(self._packed, stream)
        device.wait(self._packed, self._side)
        self._group.exchange(sends, receives, self._side)
        device.record(self._arrived, self._side)
        nbytes = sum(one.nbytes for one in sends.values())
        self._comm.traffic.count(self._verb, layer, words, nbytes, len(sends))

    def finish(self, layer: int, tiles: int, words: int, stream: Stream) -> None:
        self._device.wait(self._arrived, stream)

    def free(self) -> None:
        self._group.free()
