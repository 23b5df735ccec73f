"""A rank's layers and tiles in a device's memory: what `device_engine` computes on.

Knows devices and packings; nothing of the order of computation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import DeviceMemoryError
from sparsednn.gpu.device import Array, Device
from sparsednn.gpu.network import joined_on
from sparsednn.gpu.orders import Order, Result
from sparsednn.gpu.packing import PackedLayer, tables
from sparsednn.gpu.storage import TILE
from sparsednn.training.device_packed import DevicePacking, sample_pieces

__all__ = ["DeviceBundles", "DeviceParameters", "DeviceTiles", "fit_tiles"]

#: What has to stay free beside all arrays, as a share of the device's memory: graphs, kernels.
_SPARED = 64


class DeviceBundles(NamedTuple):
    """Packed layers without their weights, one behind another, as kernels take them."""

    table: Array
    limits: Array
    bundle: Array
    index: Array
    row: Array


def _bundles(device: Device, layers: Sequence[PackedLayer]) -> DeviceBundles:
    table, limits = tables(layers)
    joined = [
        joined_on(device, [getattr(layer, name) for layer in layers])
        for name in ("bundle", "index", "row")
    ]
    return DeviceBundles(device.upload(table), device.upload(limits), *joined)


class DeviceParameters:
    """Parameters, their gradient, the optimizer's arrays, and all tables of the layers.

    Parameters
    ----------
    device, packing
        Where, and what.
    slots
        Names of the optimizer's arrays.

    Attributes
    ----------
    theta, gradient
        ``(packing.size,)`` float32: weights with their padding, then biases.
    slots
        More like these, zero at first.
    turned, place, places
        Weights in the order of the transposed product, where they are in `theta`, and how many.
    parts, backs
        Tables of `DevicePacking.parts` and `backs`.
    samples, pieces
        See `sample_pieces`; `counts` are the samples in host memory.
    weights, biases, weight_gradient, bias_gradient
        Views of `theta` and `gradient`.

    Raises
    ------
    DeviceMemoryError
        If there is no room.
    """

    def __init__(self, device: Device, packing: DevicePacking, slots: Sequence[str]) -> None:
        places = [back.weight.astype(np.uint32) for back in packing.backs]
        samples, pieces = sample_pieces(packing.parts)
        try:
            self.theta, self.gradient = (device.zeros(packing.size, np.float32) for _ in "xx")
            self.slots = {name: device.zeros(packing.size, np.float32) for name in slots}
            self.parts = _bundles(device, packing.parts)
            self.backs = _bundles(device, packing.backs)
            self.place = joined_on(device, places)
            self.turned = device.empty(self.place.size, np.float32)
            self.places = sum(place.size for place in places)
            self.samples = device.upload(samples)
            self.pieces = joined_on(device, [pieces])
        except DeviceMemoryError as error:
            weights = int(packing.first[-1])
            each = 4 * (3 + len(slots)) + packing.index_bits // 4 + 4
            raise DeviceMemoryError(
                f"{weights:,} weights to train take about {each * weights:,} bytes of the GPU "
                f"({error}): train on the CPU, or on more GPUs (--partition)",
                error.wanted,
                error.free,
            ) from error
        self.counts = samples
        self.weights, self.biases = self.theta[: packing.weights], self.theta[packing.weights :]
        self.weight_gradient = self.gradient[: packing.weights]
        self.bias_gradient = self.gradient[packing.weights :]


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTiles:
    """Buffers of one piece of a batch.

    Attributes
    ----------
    columns
        Capacity.
    activations
        ``(tiles, lines, TILE)`` in front of each layer and behind the last one, flat.
    deltas
        Two that take turns.
    scores
        Loss and correct images of each tile, float64.
    orders, results
        See `gpu.orders`; and the same in page-locked memory of the host.
    """

    columns: int
    activations: list[Array]
    deltas: tuple[Array, Array]
    scores: Array
    orders: Array
    results: Array
    host_orders: NDArray[np.int32]
    host_results: NDArray[np.float64]

    @property
    def tiles(self) -> int:
        """Capacity in tiles."""
        return -(-self.columns // TILE)

    @classmethod
    def of(cls, device: Device, lines: Sequence[int], columns: int) -> DeviceTiles:
        """Allocate for networks with so many lines in front of the layers, and behind the last."""
        tiles = -(-columns // TILE)

        def room(count: int) -> Array:
            # Zero: what lies beyond the last column is multiplied, too, if only with zero.
            return device.zeros(max(1, count) * tiles * TILE, np.float32)

        words = Order.FIRST_PICK + tiles * TILE
        return cls(
            columns,
            [room(count) for count in lines],
            (room(max(lines)), room(max(lines))),
            device.zeros(2 * tiles, np.float64),
            device.zeros(words, np.int32),
            device.zeros(int(Result.SIZE), np.float64),
            device.pinned(words, np.int32),
            device.pinned(int(Result.SIZE), np.float64),
        )


def tile_bytes(lines: Sequence[int]) -> int:
    """Bytes of one tile of `DeviceTiles`, nearly."""
    return TILE * (4 * (sum(lines) + 2 * max(lines)) + 4) + 16


def fit_tiles(device: Device, lines: Sequence[int], columns: int, *, extra: int = 0) -> DeviceTiles:
    """Allocate for up to `columns` columns, fewer if there is no room.

    Parameters
    ----------
    device, lines
        As for `DeviceTiles.of`.
    columns
        Wanted; halved, down to a tile, as often as necessary.
    extra
        Bytes that each tile needs besides, which stay free.

    Raises
    ------
    DeviceMemoryError
        If not even one tile fits; the message says what would.
    """
    wanted, each = columns, tile_bytes(lines) + extra
    spared = device.total_bytes() // _SPARED
    while True:
        tiles = -(-columns // TILE)
        if each * tiles + spared <= device.free_bytes():
            try:
                return DeviceTiles.of(device, lines, columns)
            except DeviceMemoryError:
                pass  # fragmented, or someone else took it meanwhile
        if columns <= TILE:
            free = device.free_bytes()
            raise DeviceMemoryError(
                f"{device.name}: a tile of {TILE} images takes {each:,} bytes for the activations "
                f"of all layers, {max(0, free - spared):,} of {device.total_bytes():,} are free "
                f"beside the weights (wanted: {wanted} images at a time): use more GPUs "
                "(--partition), or train on the CPU",
                each,
                free,
            )
        columns = -(-columns // 2)
        if columns > TILE:
            columns = -(-columns // TILE) * TILE
