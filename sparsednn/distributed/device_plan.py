"""`DevicePlan`: what a rank runs its part of a network with on its GPU.

As many columns as all GPUs of the group have room for go through all layers at once, a *chunk*.
Step by step, for each layer:

1. pack the lines that others need, let them travel (`LineExchange.start`);
2. multiply: rows that need nothing from others are finished, of the others the owned columns are
   summed; the messages travel meanwhile;
3. wait for the messages, place them behind the owned lines (`LineExchange.finish`);
4. add the received columns; bias, activation.

Behind the layers of a schedule the ranks tell each other which columns are alive (an allreduce of
a bit per column). Those that are dead everywhere are dropped, by all alike, where that makes fewer
tiles. So the host knows how many columns there are, and messages have no others, but for the rest
of the last tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.distributed.device_columns import DeviceColumns
from sparsednn.distributed.device_links import LineExchange, line_bytes
from sparsednn.distributed.device_shard import DeviceShard
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.timing import Timing
from sparsednn.errors import DeviceMemoryError, ShapeError, UsageError
from sparsednn.gpu.device import Device, Event
from sparsednn.gpu.schedule import agreement_points
from sparsednn.gpu.storage import TILE
from sparsednn.inputs import InputSet
from sparsednn.kernels.linked import AGREE, COMPUTE, PACK, PHASES, WAIT

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["DevicePlan"]

_MOST_COLUMNS = 1 << 20  # of a chunk
_SHARE = 0.8  # of the free memory that buffers may take
_MOST_MARKS = 1 << 14  # events that are kept before their times are added up


@dataclass(slots=True)
class _Mark:
    """An event on the stream of the kernels, and what the time before it went into."""

    event: Event
    layer: int = 0
    phase: int = -1  # none: a start


class DevicePlan:
    """A rank's share of a network on its device; the interface of `compiled.CompiledPlan`.

    Parameters
    ----------
    device
        This rank's.
    rows
        The rank's rows of all layers, on this device.
    plans
        The messages of all layers.
    group
        The ranks that share the network; rank r has part r.
    columns
        How many columns a call will have, at most: chunks are not made wider than that.
    drop
        Whether dead columns may be dropped.
    overlap
        Whether owned columns are multiplied while messages travel (False only to measure it).
    outputs
        Whether outputs will be wanted.
    transport
        See `LineExchange`.

    Attributes
    ----------
    chunk
        Columns of a chunk.
    transport
        How messages travel.

    Raises
    ------
    DeviceMemoryError
        If a rank of the group has no room for 32 columns: on all its ranks.

    Collective over `group`, as are `run` and `free`.
    """

    def __init__(
        self,
        device: Device,
        rows: DeviceShard,
        plans: Sequence[ExchangePlan],
        group: Communicator,
        *,
        columns: int,
        drop: bool = True,
        overlap: bool = True,
        outputs: bool = True,
        transport: str = "auto",
    ) -> None:
        self._device, self._rows, self.group = device, rows, group
        self._plans, self._transport = plans, transport
        self.n_in, self.n_out = rows.own[0], rows.own[-1]
        self._points = agreement_points(rows.depth, rows.droppable_from) if drop else []
        self._overlap, self._outputs = overlap, outputs
        self._stream = device.stream()
        self._seconds = np.zeros((rows.depth, len(PHASES)))
        self._marks: list[_Mark] = []
        self._spare: list[Event] = []
        tiles = self._first_choice(min(columns, _MOST_COLUMNS))
        self._exchange, self._columns = self._reserve(tiles)
        self.chunk = self._columns.capacity
        self.transport = self._exchange.transport

    def _first_choice(self, columns: int) -> int:
        """Tiles that should fit on every rank of the group."""
        each = DeviceColumns.bytes_per_tile(self._rows, outputs=self._outputs)
        each += line_bytes(self._plans, self._rows.store)
        fitting = int(_SHARE * self._device.free_bytes()) // each
        agreed = np.array([max(1, min(-(-columns // TILE), fitting))], np.int64)
        self.group.allreduce(agreed, "min")
        return int(agreed[0])

    def _reserve(self, tiles: int) -> tuple[LineExchange, DeviceColumns]:
        """Allocate all buffers, for fewer tiles if a rank of the group has not enough memory."""
        while True:
            exchange = columns = error = None
            try:
                exchange = LineExchange(
                    self._device,
                    self._plans,
                    self.group,
                    tiles=tiles,
                    own_lines=self._rows.own,
                    store=self._rows.store,
                    transport=self._transport,
                )
                columns = DeviceColumns(
                    self._device, self._rows, tiles, self._stream, outputs=self._outputs
                )
            except DeviceMemoryError as found:
                error = found
            someone = self.group.any_rank(error is not None)
            if exchange is not None and columns is not None and not someone:
                return exchange, columns
            if exchange is not None:
                exchange.free()
            if tiles == 1:
                raise DeviceMemoryError(
                    f"{self._device.name}: a part of the network and {TILE} columns do not fit "
                    f"({error or 'on another rank'}); divide the network among more GPUs"
                ) from error
            tiles //= 2

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on all columns; see `compiled.CompiledPlan.run`.

        Raises
        ------
        ShapeError
            If inputs or outputs have other sizes than this rank's.
        UsageError
            If outputs are wanted, and the plan was made without.
        """
        # Kernels write wherever they are told: what does not fit must not reach them.
        if self.n_in and inputs.n_features != self.n_in:
            raise ShapeError(
                f"inputs have {inputs.n_features} features, this rank owns {self.n_in}"
            )
        if outputs is not None and outputs.shape != (self.n_out, inputs.n_images):
            raise ShapeError(
                f"outputs have shape {outputs.shape}, expected {(self.n_out, inputs.n_images)}"
            )
        if outputs is not None and not self._outputs:
            raise UsageError("outputs are wanted of a plan that was made without")
        nonzero = np.zeros(inputs.n_images, np.bool_)
        for first in range(0, inputs.n_images, self.chunk):
            last = min(first + self.chunk, inputs.n_images)
            self._columns.load(inputs, first, last)
            self._layers()
            part = None if outputs is None else outputs[:, first:last]
            nonzero[first:last] = self._columns.store(last - first, part)
        return nonzero

    def _layers(self) -> None:
        """All layers, until no column is left."""
        rows, at, exchange, stream = self._rows, self._columns, self._exchange, self._stream
        self._mark(0, -1)
        for k in range(rows.depth):
            x, y, number, count = at.here, at.there, at.number, at.count
            told = k in self._points or k + 1 == rows.depth
            alive = at.alive if told else None
            if told:
                self._device.fill_zero(at.alive, stream)
            exchange.start(k, x, rows.lines[k], number, count, stream)
            self._mark(k, PACK)
            for step in (COMPUTE, WAIT) if self._overlap else (WAIT, COMPUTE):
                if step == COMPUTE:
                    rows.multiply_owned(k, x, y, number, alive, stream)
                else:
                    exchange.finish(k, x, rows.lines[k], number, count, stream)
                self._mark(k, step)
            rows.add_received(k, x, y, number, alive, stream)
            at.turn()
            self._mark(k, COMPUTE)
            if k in self._points:
                words = at.alive_words()
                self.group.allreduce(words, "or", layer=k)
                at.keep(words, k + 1)
                self._mark(k, AGREE)
                if not at.count:
                    return

    def _mark(self, layer: int, phase: int) -> None:
        """Let the time since the last mark belong to a phase of a layer."""
        if len(self._marks) >= _MOST_MARKS and phase < 0:
            self._add_up()
        event = self._spare.pop() if self._spare else self._device.event()
        self._device.record(event, self._stream)
        self._marks.append(_Mark(event, layer, phase))

    def _add_up(self) -> None:
        for before, mark in zip(self._marks, self._marks[1:], strict=False):
            if mark.phase >= 0:
                spent = self._device.seconds(before.event, mark.event)
                self._seconds[mark.layer, mark.phase] += spent
        self._spare += [mark.event for mark in self._marks]
        self._marks = []

    @property
    def timing(self) -> Timing:
        """Seconds by layer and phase since the last `reset`, as the device's stream saw them.

        "wait" is the time in which the stream had nothing to multiply, the kernel that places lines
        included; "pack" what comes between two layers. No events.
        """
        self._add_up()
        spent = self._seconds[:, [PACK, COMPUTE]].sum()
        return Timing(self._seconds.copy(), device=float(spent))

    def reset(self) -> None:
        """Forget the seconds (a warm-up's)."""
        self._spare += [mark.event for mark in self._marks]
        self._marks = []
        self._seconds[:] = 0

    def tiles(self, images: int) -> int:
        """How many exchanges a layer has for so many images when nothing is dropped."""
        return -(-images // self.chunk)

    def free(self) -> None:
        """Give requests back to MPI; a second time does nothing."""
        self._exchange.free()
