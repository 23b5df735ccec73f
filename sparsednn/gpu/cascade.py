"""`Cascade`: all layers for up to so many columns, as a sequence of launches that never asks the
host.

Step by step, on one stream:

1. images become columns of tiles (`load_images`);
2. a layer, or several at once while tiles stay in shared memory (`resident`);
3. behind the layers of a schedule: columns that died are dropped, equal ones are merged into their
   first, and what is left moves together;
4. which images have an output other than zero; outputs, if they are wanted.

How many columns are left stands in the device's memory. Grids are as large as the device, whatever
is left, so the launches of a network are always the same, and are captured as one graph. (Not those
of a streamed network: its copies run between them.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sparsednn.gpu.device import Array, Device, Graph, Stream
from sparsednn.gpu.launcher import NEAR_BYTES, PRODUCT_BLOCKS, Launcher
from sparsednn.gpu.network import DeviceNetwork
from sparsednn.gpu.schedule import drop_points, merge_points
from sparsednn.gpu.storage import TILE, stored_dtype

__all__ = ["RESIDENT_THREADS", "Cascade", "Part", "bytes_per_column"]

#: Threads of a block of `resident`, which has a multiprocessor for itself.
RESIDENT_THREADS = 512

#: Columns of a tile in shared memory, the best first.
_RESIDENT_WIDTHS = (16, 8)


def bytes_per_column(network: DeviceNetwork) -> int:
    """Bytes of all buffers for one column."""
    widest = max(network.widths)
    return 2 * widest * np.dtype(stored_dtype(network.store)).itemsize + _SMALL


#: Of ids (two), flags, merged, hashes, table (two slots of twelve bytes, up to doubled), slots,
#: differs, and the words for each tile.
_SMALL = 4 * 2 + 1 + 4 + 8 + 4 * 12 + 4 + 1 + 1


class Part(NamedTuple):
    """A part of a profiled run: layers first … last - 1, or what was dropped behind them.

    `kind` is "layer", "resident" or "drop" (which merges, too). `columns` are those that were left
    in front of it.
    """

    kind: str
    first: int
    last: int
    columns: int
    seconds: float


class Cascade:
    """Buffers for up to `columns` columns, and the launches of all layers.

    Parameters
    ----------
    device, network
        The network must be on this device.
    columns
        Capacity; rounded up to whole tiles.
    drop, merge
        Whether dead columns are dropped and equal ones merged. Both only where the following layers
        keep zero at zero.

    Attributes
    ----------
    columns
        Capacity.
    flags, merged
        On the device, by image, after a run: uint8, whether its column lived to the end; int32, the
        number + 1 of the image that it was merged into, or 0.
    counts
        ``(points + 1,)`` int32 on the device: the columns that were loaded, then how many were left
        behind each point of dropping.

    Raises
    ------
    DeviceMemoryError
        If the buffers do not fit.
    """

    def __init__(
        self,
        device: Device,
        network: DeviceNetwork,
        columns: int,
        *,
        drop: bool = True,
        merge: bool = True,
    ) -> None:
        self._device, self._network = device, network
        self._launch = Launcher(device, network.index_bits, network.store)
        tiles = max(1, -(-columns // TILE))
        self.columns = tiles * TILE
        self.points = drop_points(network.depth, network.droppable_from) if drop else []
        self.merges = merge_points(self.points) if merge else []
        dtype = stored_dtype(network.store)
        widest = max(network.widths)
        self._x = [device.empty(tiles * widest * TILE, dtype) for _ in range(2)]
        self._alive = device.zeros(tiles, np.uint32)
        self._offsets = device.zeros(tiles, np.int32)
        self._ids = [device.zeros(self.columns, np.int32) for _ in range(2)]
        self.counts = device.zeros(len(self.points) + 1, np.int32)
        self.flags = device.zeros(self.columns, np.uint8)
        self.merged = device.zeros(self.columns, np.int32)
        if self.merges:
            slots = 1 << (2 * self.columns - 1).bit_length()
            self._mask = np.uint32(slots - 1)
            self._hashes = device.zeros(self.columns, np.uint64)
            self._table = device.zeros(slots, np.uint64)
            self._first = device.zeros(slots, np.uint32)
            self._slots = device.zeros(self.columns, np.uint32)
            self._differs = device.zeros(self.columns, np.uint8)
        self._segments = self._plan_segments()
        self._graph: Graph | None = None
        # Where the columns stand at the end is the same in every run.
        self._side, self._ids_side, self._point = self._last_places()

    def _plan_segments(self) -> list[tuple[int, int, int]]:
        """Cut the layers into launches: first, last (exclusive), columns in shared memory."""
        network, size = self._network, np.dtype(stored_dtype(self._network.store)).itemsize
        ends = sorted({*self.points, network.depth - 1})
        segments, first = [], 0
        for end in ends:
            most = max(network.widths[first : end + 2])
            fitting = [
                width
                for width in _RESIDENT_WIDTHS
                if 2 * most * width * size <= self._device.shared_bytes
            ]
            # `resident` does not choose between the two forms of a layer.
            alone = network.streamed or not network.two_forms.isdisjoint(range(first, end + 1))
            if end > first and fitting and not alone:
                segments.append((first, end + 1, fitting[0]))
            else:
                segments += [(k, k + 1, 0) for k in range(first, end + 1)]
            first = end + 1
        return segments

    def _last_places(self) -> tuple[int, int, int]:
        moves = len(self.points)
        return (len(self._segments) + moves) % 2, moves % 2, moves

    def load_images(
        self,
        indptr: Array,
        features: Array,
        values: Array | None,
        images: int,
        stream: Stream,
    ) -> None:
        """Start turning sparse images, which are in the device's memory, into columns.

        Parameters
        ----------
        indptr, features, values
            ``(images + 1,)`` int64, counting from 0; ``(nnz,)`` of the network's index type;
            float32, or None when all are one.
        images
            At most `columns`.
        """
        n_in = self._network.widths[0]
        tiles = -(-images // TILE)
        self._device.fill_zero(self._x[0][: tiles * n_in * TILE], stream)
        self._launch(
            "columns",
            "load_images",
            (
                self._x[0], indptr, features, values, np.int64(0), np.int32(images),
                np.int32(n_in), self.counts, self._ids[0],
            ),
            stream,
        )  # fmt: skip

    def run(self, stream: Stream) -> None:
        """Start all layers on the columns that are loaded; as one graph from the second time on."""
        if self._graph is not None:
            self._device.replay(self._graph, stream)
            return
        # The first time kernels are compiled and loaded, which a capture may not do.
        self._layers(stream)
        if not self._network.streamed:
            self._graph = self._device.capture(self._layers)

    def store_outputs(self, outputs: Array, stride: int, stream: Stream) -> None:
        """Start writing outputs, each image's at its column of ``(n_out, stride)`` float32.

        Of merged and dropped columns nothing is written.
        """
        n = self._network.widths[-1]
        self._launch(
            "columns",
            "store_dense",
            (
                self._x[self._side], outputs, np.int32(n), self.counts[self._point :],
                np.int64(stride), np.int32(n), self._ids[self._ids_side],
            ),
            stream,
        )  # fmt: skip

    def profile(self, stream: Stream) -> list[Part]:
        """Run the columns that are loaded, launch by launch, and tell how long each part took.

        Slower than `run` by what it takes to start kernels one by one; a part's own time is that of
        the device.
        """
        device = self._device
        events = [device.event()]
        device.record(events[0], stream)
        found: list[tuple[str, int, int, int]] = []

        def mark(kind: str, first: int, last: int, point: int) -> None:
            events.append(device.event())
            device.record(events[-1], stream)
            found.append((kind, first, last, point))

        self._layers(stream, mark)
        device.synchronize(stream)
        counts = device.download(self.counts)
        return [
            Part(kind, first, last, int(counts[point]), device.seconds(before, after))
            for (kind, first, last, point), before, after in zip(
                found, events, events[1:], strict=False
            )
        ]

    def _layers(
        self, stream: Stream, mark: Callable[[str, int, int, int], None] | None = None
    ) -> None:
        """Start everything behind the loading; `mark` is called behind each part."""
        device, network = self._device, self._network
        side = ids = point = 0
        device.fill_zero(self.flags, stream)
        device.fill_zero(self.merged, stream)
        for first, last, width in self._segments:
            k = last - 1
            told = k in self.points or k == network.depth - 1
            if told:
                device.fill_zero(self._alive, stream)
            self._product(first, last, width, side, point, told, stream)
            side = 1 - side
            if mark is not None:
                mark("resident" if width else "layer", first, last, point)
            if k in self.points:
                if k in self.merges:
                    self._merge(k, side, ids, point, stream)
                self._drop(k, side, ids, point, stream)
                if mark is not None:
                    mark("drop", k, last, point)
                side, ids, point = 1 - side, 1 - ids, point + 1
        self._launch(
            "columns",
            "tell_living",
            (self._alive, self.counts[point:], self._ids[ids], self.flags),
            stream,
        )

    def _product(
        self, first: int, last: int, width: int, side: int, point: int, told: bool, stream: Stream
    ) -> None:
        """Layers first … last - 1; in shared memory if they have a width there."""
        device, network = self._device, self._network
        n_in, n_out = network.widths[first], network.widths[last]
        size = np.dtype(stored_dtype(network.store)).itemsize
        arrays = network.layer(first, stream)
        # Softmax tells by itself: it is what makes the outputs.
        softmax = network.softmax_at(last - 1)
        alive = self._alive if told and not softmax else None
        columns = self.counts[point:]
        lines = (np.int32(n_in), np.int32(n_out))
        if width:
            most = max(network.widths[first : last + 1])
            device.launch(
                self._launch.function(
                    "layer", "resident", THREADS=RESIDENT_THREADS, RESIDENT_WIDTH=width
                ),
                device.multiprocessors,
                RESIDENT_THREADS,
                (
                    self._x[side], self._x[1 - side], *arrays[:-1], np.int32(first),
                    np.int32(last), columns, alive, *lines, np.int32(most),
                ),
                shared=2 * most * width * size,
                stream=stream,
            )  # fmt: skip
        else:
            near = n_in * TILE * size <= NEAR_BYTES
            self._launch(
                "layer",
                "layer",
                (
                    self._x[side], self._x[1 - side], *arrays[:-1], np.int32(arrays.number),
                    columns, alive, *lines, np.int32(near),
                ),
                stream,
                blocks=PRODUCT_BLOCKS * device.multiprocessors,
            )  # fmt: skip
        network.used(last - 1, stream)
        if softmax:
            self._launch(
                "layer",
                "softmax",
                (self._x[1 - side], np.int32(n_out), columns, self._alive, np.int32(n_out)),
                stream,
            )

    def _drop(self, k: int, side: int, ids: int, point: int, stream: Stream) -> None:
        n = self._network.widths[k + 1]
        now, left = self.counts[point:], self.counts[point + 1 :]
        self._launch(
            "columns", "count_living", (self._alive, now, self._offsets, left), stream, blocks=1
        )
        self._launch(
            "columns",
            "keep_living",
            (
                self._x[side], self._x[1 - side], self._alive, self._offsets, now, left,
                self._ids[ids], self._ids[1 - ids], np.int32(n), np.int32(n), np.int32(n),
            ),
            stream,
        )  # fmt: skip

    def _merge(self, k: int, side: int, ids: int, point: int, stream: Stream) -> None:
        n, x, now = np.int32(self._network.widths[k + 1]), self._x[side], self.counts[point:]
        zeroed = (self._hashes, self._table, self._first, self._differs)
        for array in zeroed:
            self._device.fill_zero(array, stream)
        steps: tuple[tuple[str, tuple[Any, ...]], ...] = (
            ("hash_columns", (x, now, n, n, self._hashes)),
            (
                "enter_columns",
                (
                    self._hashes, self._alive, now, self._table, self._first, self._slots,
                    self._mask,
                ),
            ),
            (
                "compare_columns",
                (x, self._alive, now, self._first, self._slots, n, n, self._differs),
            ),
            (
                "drop_equal",
                (
                    self._alive, now, self._first, self._slots, self._differs, self._ids[ids],
                    self.merged,
                ),
            ),
        )  # fmt: skip
        for kernel, arguments in steps:
            self._launch("merge", kernel, arguments, stream)
