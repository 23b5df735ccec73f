"""`LineExchange`: the messages of all layers between the tiles of a group's devices.

One class for both directions. *Expand* (forward): owned lines that others need go out, received
ones come to stand behind the owned ones, in the order of the plan. *Fold* (backward, the same
messages the other way): lines behind the owned ones return to their owners, which add them.

Step by step, on each rank:

1. `start`: pack the lines that leave (a kernel), and let them travel (`transports`);
2. the caller launches what needs no message;
3. `finish`: wait for the messages of the other ranks, and place or add them (a kernel).

Nothing here waits for the kernels that the caller has launched in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.distributed.plan import ExchangePlan, offsets
from sparsednn.distributed.transports import Route, make_transport
from sparsednn.errors import UsageError
from sparsednn.gpu.device import Array, Device, Stream
from sparsednn.gpu.launcher import MOVE_BLOCKS, THREADS
from sparsednn.gpu.storage import TILE, stored_dtype

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["LineExchange", "line_bytes"]

_LINES_OF_BLOCK = THREADS // 32


@dataclass(frozen=True, slots=True)
class _Sums:
    """What a fold adds where, on the device: see `add_lines`."""

    lines: Array
    first: Array
    places: Array
    count: int

    @classmethod
    def of(cls, device: Device, targets: NDArray[np.int32], first: NDArray[np.int64]) -> _Sums:
        """Packed line i is added to line ``targets[i]``; lines of messages as in `Route`."""
        order = np.argsort(targets, kind="stable")  # a target's messages by rank, always
        lines, counts = np.unique(targets, return_counts=True)
        message = np.searchsorted(first, order, side="right") - 1
        places = np.stack([message, order - first[message]], axis=1)
        return cls(
            device.upload(lines.astype(np.int32)),
            device.upload(offsets(counts).astype(np.int32)),
            device.upload(np.ascontiguousarray(places, np.int32)),
            lines.size,
        )


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's tables on the device; None where there is nothing to pack, place or add."""

    send_starts: Array | None
    receive_starts: Array | None
    send_lines: Array | None  # None in a fold, too: they lie one behind another
    sums: _Sums | None

    @classmethod
    def of(cls, device: Device, plan: ExchangePlan, route: Route, *, fold: bool) -> _Layer:
        """Upload the tables of a plan's messages, which go along `route`."""

        def starts(first: NDArray[np.int64]) -> Array | None:
            return device.upload(first.astype(np.int32)) if first[-1] else None

        lines = sums = None
        if fold and route.lines_received:
            sums = _Sums.of(device, plan.send_rows, route.receive_first)
        if not fold and route.lines_sent:
            lines = device.upload(np.ascontiguousarray(plan.send_rows, np.int32))
        return cls(starts(route.send_first), starts(route.receive_first), lines, sums)


def _route(way: ExchangePlan) -> Route:
    return Route(way.send_ranks, way.send_first, way.receive_ranks, way.receive_first)


def line_bytes(plans: Sequence[ExchangePlan], store: int) -> int:
    """Bytes that a `LineExchange` takes on the device for one tile, in either direction."""
    lines = max(p.words_sent for p in plans) + max(p.words_received for p in plans)
    return lines * TILE * np.dtype(stored_dtype(store)).itemsize


class LineExchange:
    """Messages of all layers between the tiles of a group's devices.

    Parameters
    ----------
    device
        This rank's.
    plans
        The forward plans of all layers, also for a fold.
    comm
        The ranks of the group, or `Alone`. Several exchanges may share it, if all ranks finish
        them in the same order.
    tiles
        Capacity.
    own_lines
        For each layer how many inputs the rank owns: received lines stand behind them.
    store
        How activations are stored, see `gpu.storage`; they travel as they are stored.
    verb
        Under which traffic is counted.
    fold
        The way back; sums are made in float32, rank by rank in ascending order.
    transport
        One of `transports.TRANSPORTS`.

    Attributes
    ----------
    transport
        What is used: "mpi staged", "mpi gpu-aware", "nccl"; "none" for one rank.

    Raises
    ------
    UsageError, MissingDependencyError, LaunchError
        As `transports.make_transport`.
    DeviceMemoryError
        If the buffers do not fit: on this rank alone, but behind everything that is collective.

    Notes
    -----
    Words are counted as on the CPU, lines × columns. What travels is whole tiles, so the bytes that
    are counted are up to 31 columns of padding more.
    """

    def __init__(
        self,
        device: Device,
        plans: Sequence[ExchangePlan],
        comm: Communicator,
        *,
        tiles: int,
        own_lines: Sequence[int],
        store: int = 0,
        verb: str = "exchange",
        fold: bool = False,
        transport: str = "auto",
    ) -> None:
        self._device, self._own, self._capacity = device, list(own_lines), tiles
        self._routes = [_route(plan.reversed if fold else plan) for plan in plans]
        self._transport = make_transport(
            transport, device, comm, self._routes, verb=verb, tag=int(fold)
        )
        self.transport = self._transport.name
        self._alone = comm.size == 1
        # Nothing below is collective: what fails may fail on this rank alone.
        try:
            self._transport.reserve(tiles, store)
            self._layers = [
                _Layer.of(device, plan, route, fold=fold)
                for plan, route in zip(plans, self._routes, strict=True)
            ]
        except BaseException:
            self._transport.free()
            raise
        macros = {"THREADS": THREADS, "STORE": store}
        self._gather = device.function("exchange", "gather_lines", **macros)
        placing = "add_lines" if fold else "scatter_lines"
        self._place = device.function("exchange", placing, **macros)
        self._under_way = -1

    def start(
        self, layer: int, x: Array, x_lines: int, columns: Array, count: int, stream: Stream
    ) -> None:
        """Pack the lines that leave and let them travel; returns before that has happened.

        Parameters
        ----------
        layer
            Which.
        x, x_lines
            Tiles, and lines of each; what is launched on `stream` before this has written them, and
            what is launched behind it may write them again.
        columns, count
            How many columns there are: on the device, and here; the same on all ranks.
        stream
            Of all calls the same one.

        Raises
        ------
        UsageError
            If another layer is under way, or there are more columns than room.
        """
        tiles = -(-count // TILE)
        if self._under_way >= 0:
            raise UsageError(f"exchange of layer {layer}: layer {self._under_way} is under way")
        if tiles > self._capacity:
            raise UsageError(f"exchange of layer {layer}: {tiles} tiles, room for {self._capacity}")
        self._under_way = layer
        if not self._travels(layer, tiles):
            return
        one, route = self._layers[layer], self._routes[layer]
        if one.send_starts is not None:
            messages = route.send_ranks.size
            first = 0 if one.send_lines is not None else self._own[layer]
            self._launch(
                self._gather,
                messages,
                tiles * route.lines_sent,
                (
                    x, self._transport.send, one.send_lines, np.int32(first), one.send_starts,
                    np.int32(messages), columns, np.int32(x_lines),
                ),
                stream,
            )  # fmt: skip
        self._transport.start(layer, tiles, route.lines_sent * count, stream)

    def finish(
        self, layer: int, x: Array, x_lines: int, columns: Array, count: int, stream: Stream
    ) -> None:
        """Wait for the messages and place or add them; arguments as for `start`.

        The host waits until they are here (not with NCCL), the device goes on meanwhile.
        """
        tiles = -(-count // TILE)
        if self._under_way != layer:
            raise UsageError(f"exchange of layer {layer}: finished but not started")
        self._under_way = -1
        if not self._travels(layer, tiles):
            return
        one, route = self._layers[layer], self._routes[layer]
        self._transport.finish(layer, tiles, route.lines_sent * count, stream)
        packed = self._transport.receive
        if one.sums is not None:
            sums = one.sums
            self._launch(
                self._place,
                1,
                tiles * sums.count,
                (
                    packed, x, sums.lines, sums.first, sums.places, np.int32(sums.count),
                    one.receive_starts, columns, np.int32(x_lines),
                ),
                stream,
            )  # fmt: skip
        elif one.receive_starts is not None:
            messages = route.receive_ranks.size
            self._launch(
                self._place,
                messages,
                tiles * route.lines_received,
                (
                    packed, x, np.int32(self._own[layer]), one.receive_starts,
                    np.int32(messages), columns, np.int32(x_lines),
                ),
                stream,
            )  # fmt: skip

    def _travels(self, layer: int, tiles: int) -> bool:
        """Whether this rank has anything to send or to receive."""
        route = self._routes[layer]
        return bool(tiles and not self._alone and (route.lines_sent or route.lines_received))

    def _launch(
        self, function: Any, messages: int, lines: int, arguments: tuple[Any, ...], stream: Stream
    ) -> None:
        """Start a kernel that moves so many lines."""
        most = max(1, MOVE_BLOCKS * self._device.multiprocessors // messages)
        blocks = min(-(-lines // (_LINES_OF_BLOCK * messages)), most)
        grid = (blocks, min(messages, 65535))
        self._device.launch(function, grid, THREADS, arguments, stream=stream)

    def free(self) -> None:
        """Give requests back to MPI; a second time does nothing."""
        self._transport.free()
