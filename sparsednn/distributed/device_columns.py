"""`DeviceColumns`: a chunk of columns on a rank's device, from sparse images to outputs.

Two buffers of tiles take turns: a layer reads one and writes the other. The number of columns and
their images are kept on the device for the kernels, the number here, too, for the messages. Knows
no ranks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.distributed.device_shard import DeviceShard
from sparsednn.gpu.device import Array, Device, Stream
from sparsednn.gpu.launcher import Launcher
from sparsednn.gpu.storage import TILE, stored_dtype
from sparsednn.inputs import InputSet

__all__ = ["DeviceColumns"]

#: Nonzeros of inputs that are uploaded at a time, unless a tile may have more.
_PIECE = 1 << 22


class DeviceColumns:
    """Buffers for so many tiles, and what happens to columns between the layers.

    Parameters
    ----------
    device, rows
        This rank's.
    tiles
        Capacity.
    stream
        Where everything runs.
    outputs
        Whether `store` will be asked for them.

    Attributes
    ----------
    capacity
        In columns.
    count, number
        How many columns there are now; the same on the device, ``(1,)`` int32.
    alive
        ``(tiles,)`` uint32 on the device: a bit for each column, for the kernels to set.

    Raises
    ------
    DeviceMemoryError
        If there is no room.
    """

    def __init__(
        self, device: Device, rows: DeviceShard, tiles: int, stream: Stream, *, outputs: bool
    ) -> None:
        self._device, self._rows, self._stream = device, rows, stream
        self._launcher = Launcher(device, rows.index_bits, rows.store)
        columns, lines = tiles * TILE, max(rows.lines)
        self.capacity = columns
        self._x = [device.empty(columns * lines, stored_dtype(rows.store)) for _ in range(2)]
        # The numbers of all images are never written; what is left of them takes turns.
        self._all_ids = device.upload(np.arange(columns, dtype=np.int32))
        self._some_ids = [device.zeros(columns, np.int32) for _ in range(2)]
        self._numbers = [device.zeros(1, np.int32) for _ in range(2)]
        self._ignored = device.zeros(1, np.int32)
        self.alive = device.zeros(tiles, np.uint32)
        self._offsets = device.zeros(tiles, np.int32)
        self._flags = device.zeros(columns, np.uint8)
        wanted = rows.own[-1] * columns if outputs else 0
        self._dense = device.empty(max(1, wanted), np.float32)
        # Inputs come in pieces of whole tiles; a tile has at most all features of its images.
        most = TILE * rows.own[0]
        self._room = max(1, most, min(_PIECE, tiles * most))
        index = np.uint16 if rows.index_bits == 16 else np.uint32
        sizes: dict[str, tuple[int, Any]] = {
            "indptr": (columns + 1, np.int64),
            "features": (self._room, index),
            "values": (self._room, np.float32),
        }
        self._inputs = {
            name: (device.pinned(size, kind), device.empty(size, kind))
            for name, (size, kind) in sizes.items()
        }
        self._words = device.pinned(tiles, np.uint32)
        self._first_number = device.pinned(1, np.int32)
        self._side, self._turn = 0, 0
        self.count, self.number, self._ids = 0, self._numbers[0], self._all_ids

    @staticmethod
    def bytes_per_tile(rows: DeviceShard, *, outputs: bool) -> int:
        """Bytes on the device for one tile, but for inputs."""
        values = 2 * max(rows.lines) * np.dtype(stored_dtype(rows.store)).itemsize
        dense = 4 * rows.own[-1] if outputs else 0
        small = 8 + 3 * 4 + 1 + 1  # pointers of inputs, ids, flags; words and offsets
        return TILE * (values + dense + small)

    @property
    def here(self) -> Array:
        """The buffer with the columns."""
        return self._x[self._side]

    @property
    def there(self) -> Array:
        """The other buffer."""
        return self._x[1 - self._side]

    def turn(self) -> None:
        """A layer has written the other buffer: the columns are there now."""
        self._side = 1 - self._side

    def load(self, inputs: InputSet, first: int, last: int) -> None:
        """Start turning images first … last - 1 into columns; returns when the inputs are read."""
        device, lines = self._device, self._rows.lines[0]
        self._side = self._turn = 0
        self.count, self.number, self._ids = last - first, self._numbers[0], self._all_ids
        tiles = -(-self.count // TILE)
        device.fill_zero(self.here[: tiles * TILE * lines], self._stream)
        ends = inputs.indptr[np.append(np.arange(first, last, TILE), last)]  # of tiles
        at = 0
        while at < tiles and self._rows.own[0]:
            end = int(np.searchsorted(ends, ends[at] + self._room, side="right")) - 1
            begin, low, high = first + at * TILE, int(ends[at]), int(ends[end])
            images = min(first + end * TILE, last) - begin
            device.synchronize(self._stream)  # then the pinned memory is free again
            indptr = self._send("indptr", inputs.indptr[begin : begin + images + 1])
            features = self._send("features", inputs.indices[low:high])
            values = None
            if inputs.values is not None:
                values = self._send("values", inputs.values[low:high])
            self._launch(
                "load_images",
                (
                    self.here[at * TILE * lines :], indptr, features, values, np.int64(low),
                    np.int32(images), np.int32(lines), self._ignored, self._some_ids[0],
                ),
            )  # fmt: skip
            at = end
        self._first_number[0] = self.count
        device.upload(self._first_number, out=self.number, stream=self._stream)

    def _send(self, name: str, values: NDArray[Any]) -> Array:
        pinned, there = self._inputs[name]
        pinned[: values.size] = values
        if values.size:
            out = there[: values.size]
            self._device.upload(pinned[: values.size], out=out, stream=self._stream)
        return there

    def alive_words(self) -> NDArray[np.uint32]:
        """Copy `alive`, ``(tiles,)``, without bits behind the last column; waits for the device.

        The array is the same in every call.
        """
        tiles = -(-self.count // TILE)
        words = self._words[:tiles]
        self._device.download(self.alive[:tiles], out=words, stream=self._stream)
        self._device.synchronize(self._stream)
        if self.count % TILE:
            words[-1] &= np.uint32((1 << self.count % TILE) - 1)
        return words

    def keep(self, words: NDArray[np.uint32], layer: int) -> None:
        """Drop the columns that have no bit in `words`, of the neurons behind so many layers.

        `words` is what `alive_words` gave, perhaps changed. Columns stay where they are while there
        would not be fewer tiles without them.
        """
        left = int(np.unpackbits(words.view(np.uint8)).sum())
        if not left:
            self.count = 0
        if not left or -(-left // TILE) == words.size:
            return
        n, lines = np.int32(self._rows.own[layer]), np.int32(self._rows.lines[layer])
        if not n:
            # The images' numbers move with the first line: here that is one which nobody reads.
            n = np.int32(1)
            self._device.fill_zero(self.here[: words.size * TILE * int(lines)], self._stream)
        self._device.upload(words, out=self.alive[: words.size], stream=self._stream)
        self._turn = 1 - self._turn
        ids, number = self._some_ids[self._turn], self._numbers[self._turn]
        self._launch("count_living", (self.alive, self.number, self._offsets, number), blocks=1)
        self._launch(
            "keep_living",
            (
                self.here, self.there, self.alive, self._offsets, self.number, number, self._ids,
                ids, n, lines, lines,
            ),
        )  # fmt: skip
        self.turn()
        self.count, self.number, self._ids = left, number, ids

    def store(self, images: int, outputs: NDArray[np.float32] | None) -> NDArray[np.bool_]:
        """Tell which of the images have a bit in `alive`, and fill in their outputs.

        Parameters
        ----------
        images
            As many as were loaded.
        outputs
            ``(n_out, images)``, zero; or None.

        Returns
        -------
        ``(images,)`` bool.
        """
        device, n_out = self._device, self._rows.own[-1]
        if not self.count:  # and the last `alive_words` has waited for everything
            return np.zeros(images, np.bool_)
        device.fill_zero(self._flags, self._stream)
        self._launch("tell_living", (self.alive, self.number, self._ids, self._flags))
        dense = self._dense[: n_out * images]
        wanted = outputs is not None and n_out > 0
        if wanted:
            device.fill_zero(dense, self._stream)
            self._launch(
                "store_dense",
                (
                    self.here, dense, np.int32(n_out), self.number, np.int64(images),
                    np.int32(self._rows.lines[-1]), self._ids,
                ),
            )  # fmt: skip
        device.synchronize(self._stream)
        if outputs is not None and wanted:
            outputs[:] = device.download(dense).reshape(n_out, images)
        return np.asarray(device.download(self._flags)[:images] != 0)

    def _launch(self, kernel: str, arguments: tuple[Any, ...], *, blocks: int = 0) -> None:
        """Start a kernel of ``columns.cu``."""
        self._launcher("columns", kernel, arguments, self._stream, blocks=blocks)
