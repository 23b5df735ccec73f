"""The launches of a forward and of a backward pass over a piece of a batch, on a GPU.

One step of a rank alone, layer by layer, with one launch for each line::

    forward     y = f(W x + b)                       `layer`
    backward    s = (W^T delta) * f'(x)              `backward_layer`: delta of the layer before
                G = delta x^T where W has an entry   `sampled`: also sums of delta for the biases

On several ranks received lines of x lie behind the own ones. Forward, rows that need none of them
and the own columns of the others are multiplied while lines travel (`LineExchange`), then the
received columns. Backward, s of the received lines is made first and travels to its owners while
the own s and the gradients are made; then the own s is complete, and gets its f'(x).

Must not know: losses, optimizers, arrays of the host.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsednn.distributed.device_links import LineExchange
from sparsednn.gpu.device import Array, Device, Function, Stream
from sparsednn.gpu.launcher import MOVE_BLOCKS, NEAR_BYTES, PRODUCT_BLOCKS, THREADS
from sparsednn.gpu.storage import TILE
from sparsednn.training.device_data import ResidentInputs
from sparsednn.training.device_memory import DeviceParameters, DeviceTiles
from sparsednn.training.device_packed import BACKS, PARTS, SAMPLED, DevicePacking

__all__ = ["DevicePasses", "blocks_of"]

#: Share of the second-level cache that the lines may take which are sampled at a time.
_SAMPLED_SHARE = 0.5
_TEAMS = THREADS // (TILE // 4)


class DevicePasses:
    """Starts the kernels of passes.

    Parameters
    ----------
    device
        Where everything is.
    packing, parameters, tiles
        The layers; they and the buffers on the device.
    limits
        Code and bounds of each layer's activation.
    tile
        Images of a piece, at most.
    expand, fold
        The messages between ranks, of both directions; None for a rank alone.
    input_gradient
        Whether the backward pass goes through the first layer.
    """

    def __init__(
        self,
        device: Device,
        packing: DevicePacking,
        parameters: DeviceParameters,
        tiles: DeviceTiles,
        *,
        limits: Sequence[tuple[int, float, float]],
        tile: int,
        expand: LineExchange | None,
        fold: LineExchange | None,
        input_gradient: bool,
    ) -> None:
        self.device, self.tiles, self.parameters = device, tiles, parameters
        self._bounds, self._tile = limits, tile
        self._expand, self._fold, self._input_gradient = expand, fold, input_gradient
        self._widths, self._lines = packing.widths, packing.lines
        self._chunks = [_chunks(part.ends) for part in packing.parts]
        self._back_chunks = [_chunks(back.ends) for back in packing.backs]
        self._rows = [part.row.size for part in packing.parts]
        self._find_functions(packing.index_bits)

    def _find_functions(self, index_bits: int) -> None:
        """Compile all kernels now: a graph that is being captured must not wait for it."""
        macros: dict[str, Any] = {"THREADS": THREADS, "STORE": 0, "INDEX_BITS": index_bits}
        self._layer = self.device.function("layer", "layer", **macros)
        self._macros = {**macros, **{f"SAMPLED_{rows}": most for rows, most in SAMPLED.items()}}
        self._backward, self._sampled, self._refresh, self._derive = (
            self.device.function("training", name, **self._macros)
            for name in ("backward_layer", "sampled", "refresh_transposed", "multiply_derivative")
        )
        self._loaders: dict[int, Function] = {}

    def loader(self, images: ResidentInputs) -> Function:
        """What puts such images into tiles; to be asked for before a forward pass is captured."""
        bits = images.index_bits
        if bits not in self._loaders:
            macros = {**self._macros, "INDEX_BITS": bits}
            self._loaders[bits] = self.device.function("training", "load_picked", **macros)
        return self._loaders[bits]

    def refresh(self, stream: Stream) -> None:
        """Bring the transposed product's weights up to date, behind every change of `theta`."""
        p = self.parameters
        if not p.places:
            return
        self.start(
            self._refresh, p.places, (p.theta, p.place, p.turned, np.int64(p.places)),
            stream,
        )  # fmt: skip

    def forward(self, images: ResidentInputs, count: int, stream: Stream) -> None:
        """Take the images of the orders through all layers.

        With several ranks this waits for messages, and cannot be captured.

        Parameters
        ----------
        images
            On this device.
        count
            How many, as the orders say; only ranks of a group need it, and all have the same.
        stream
            Where to; with several ranks the engine's own.
        """
        tiles, lines = self.tiles, self._lines
        first = tiles.activations[0]
        self.device.fill_zero(first, stream)
        self.start(
            self.loader(images), self._tile * 32,
            (
                first, images.indptr, images.features, images.values, tiles.orders,
                np.int32(lines[0]),
            ), stream,
        )  # fmt: skip
        for k in range(len(lines) - 1):
            exchange = (k, tiles.activations[k], lines[k], tiles.orders, count, stream)
            if self._expand is not None:
                self._expand.start(*exchange)
            self._part(PARTS * k, stream)
            self._part(PARTS * k + 1, stream)
            if self._expand is not None:
                self._expand.finish(*exchange)
                self._part(PARTS * k + 2, stream)

    def _part(self, number: int, stream: Stream) -> None:
        """Multiply rows of a layer, as they are packed together."""
        chunks = self._chunks[number]
        if not chunks:
            return
        tiles, lines, k = self.tiles, self._lines, number // PARTS
        tables = self.parameters.parts
        arguments = (
            tiles.activations[k], tiles.activations[k + 1], tables.table, tables.limits,
            tables.bundle, tables.index, self.parameters.weights, tables.row,
            self.parameters.biases, np.int32(number),
            tiles.orders, None, np.int32(lines[k]), np.int32(lines[k + 1]), _near(lines[k]),
        )  # fmt: skip
        self._product(self._layer, chunks, arguments, stream)

    def backward(self, count: int, stream: Stream) -> None:
        """Gradients of all parameters, from ``tiles.deltas[0]`` (own outputs of each tile).

        Columns beyond the last must be zero there. Parameters as for `forward`.
        """
        widths, side = self._widths, 0
        lines_now = widths[-1]
        for k in reversed(range(len(widths) - 1)):
            delta, s = self.tiles.deltas[side], self.tiles.deltas[1 - side]
            lines = self._lines[k]
            down = k > 0 or self._input_gradient
            exchange = (k, s, lines, self.tiles.orders, count, stream)
            alone = self._fold is None
            if down and not alone:
                self._back(BACKS * k, delta, s, lines_now, False, stream)
                self._fold.start(*exchange)  # type: ignore[union-attr]  # `alone` says it
            if down:
                self._back(BACKS * k + 1, delta, s, lines_now, alone and k > 0, stream)
            for part in range(PARTS * k, PARTS * (k + 1)):
                self._sample(part, delta, lines_now, stream)
            if down and not alone:
                self._fold.finish(*exchange)  # type: ignore[union-attr]  # likewise
                if k > 0:
                    self._derivative(k, s, stream)
            side, lines_now = 1 - side, lines

    def _back(
        self, number: int, delta: Array, s: Array, d_lines: int, derive: bool, stream: Stream
    ) -> None:
        """Transposed product of some columns of a layer; perhaps times f' of the layer before."""
        chunks = self._back_chunks[number]
        if not chunks:
            return
        k, tables = number // BACKS, self.parameters.backs
        saved = self.tiles.activations[k] if derive else None
        lines = np.int32(self._lines[k])
        arguments = (
            delta, s, tables.table, tables.limits, tables.bundle, tables.index,
            self.parameters.turned, tables.row, self.parameters.turned, np.int32(number),
            self.tiles.orders, saved, np.int32(d_lines), lines, lines, _near(d_lines),
        )  # fmt: skip
        self._product(self._backward, chunks, arguments, stream)

    def _derivative(self, k: int, s: Array, stream: Stream) -> None:
        rows = self._widths[k]
        code, low, high = self._bounds[k - 1]
        if not rows or ((low, high) == (-np.inf, np.inf) and not code):
            return
        lines = np.int32(self._lines[k])
        self.start(
            self._derive, self._tile * rows // 4,
            (
                s, self.tiles.activations[k], np.int32(rows), self.tiles.orders, lines, lines,
                np.int32(code), np.float32(low), np.float32(high),
            ), stream,
        )  # fmt: skip

    def _sample(self, number: int, delta: Array, d_lines: int, stream: Stream) -> None:
        """Gradients of a part of a layer, some tiles at a time."""
        if not self._rows[number]:
            return
        k, p = number // PARTS, self.parameters
        lines = self._lines[k]
        tiles = -(-self._tile // TILE)
        room = int(self.device.cache_bytes * _SAMPLED_SHARE)
        together = max(1, min(tiles, room // (4 * TILE * (lines + d_lines))))
        counts = p.counts[number]
        chunks = _chunks(counts[1:5]) + -(-int(counts[5]) // _TEAMS)
        blocks = max(1, min(chunks, PRODUCT_BLOCKS * self.device.multiprocessors))
        for first in range(0, tiles, together):
            arguments = (
                self.tiles.activations[k], delta, p.weight_gradient, p.bias_gradient,
                p.parts.table, p.samples, p.parts.index, p.parts.row, p.pieces, np.int32(number),
                self.tiles.orders, np.int32(first), np.int32(together), np.int32(lines),
                np.int32(d_lines),
            )  # fmt: skip
            self.device.launch(self._sampled, blocks, THREADS, arguments, stream=stream)

    def _product(
        self, function: Any, chunks: int, arguments: tuple[Any, ...], stream: Stream
    ) -> None:
        most = PRODUCT_BLOCKS * self.device.multiprocessors
        blocks = min(most, chunks * -(-self._tile // TILE))
        self.device.launch(function, blocks, THREADS, arguments, stream=stream)

    def start(self, function: Any, threads: int, arguments: Any, stream: Stream) -> None:
        """Start a kernel that has something to do for so many threads."""
        blocks = blocks_of(self.device, threads)
        self.device.launch(function, blocks, THREADS, arguments, stream=stream)


def blocks_of(device: Device, threads: int) -> int:
    """Blocks of a kernel that has something to do for so many threads."""
    return max(1, min(-(-threads // THREADS), MOVE_BLOCKS * device.multiprocessors))


def _chunks(ends: Any) -> int:
    """Chunks of bundles or pieces, as ``count_chunks`` in ``product.cuh`` has it."""
    counts = np.diff(np.asarray(ends), prepend=0)
    return int((-(-counts // _TEAMS)).sum())


def _near(lines: int) -> np.int32:
    return np.int32(4 * TILE * lines <= NEAR_BYTES)
