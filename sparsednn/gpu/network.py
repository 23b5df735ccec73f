"""`DeviceNetwork`: a network's bundles in a device's memory, or on the host to be streamed into it.

Knows devices and the layout of `packing`; nothing of columns, and of how layers are run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import DeviceMemoryError
from sparsednn.gpu.device import Array, Device, Event, Stream
from sparsednn.gpu.packing import PackedLayer, densified, index_dtype, pack_layer, tables
from sparsednn.gpu.storage import TILE, narrow
from sparsednn.kernels.packing import Rows, bounds
from sparsednn.network import SparseNetwork

__all__ = ["DENSE_FROM", "DeviceNetwork", "LayerArrays", "joined_on", "pack_network"]

#: Share of stored weights from which on a layer is multiplied with its zeros, if there are enough
#: columns. A sparse row loads a line for each of its connections, which takes four times as long as
#: a line's multiply-adds; of dense rows eight share each load. So they break even at about 0.3 (an
#: estimate from the throughput of loads and of arithmetic; docs/gpu.md).
DENSE_FROM = 0.3

#: From this share on zeros cost less memory than columns' numbers (where no rows share a pattern):
#: there is only the dense form then, however many columns are left.
_DENSE_ALWAYS = 0.75

#: Columns above which the dense form is used where both are there.
_WIDE = 16 * TILE


class LayerArrays(NamedTuple):
    """What kernels want of a layer: arrays, and its number in the table among them."""

    table: Array
    limits: Array
    bundle: Array
    index: Array
    weight: Array
    row: Array
    bias: Array
    number: int


@dataclass(frozen=True, slots=True)
class _Packed:
    """All layers in host memory, second forms of some behind them."""

    layers: list[PackedLayer]
    wide: dict[int, tuple[int, int]]


def pack_network(network: SparseNetwork, store: int) -> _Packed:
    """Pack all layers, and dense forms of those that are nearly dense."""
    kind = index_dtype(max(network.n_in, *(layer.n_out for layer in network)))
    packed: list[PackedLayer] = []
    second: list[tuple[int, PackedLayer]] = []

    def one(rows: Rows, n_in: int, n_out: int) -> PackedLayer:
        made = pack_layer(rows, n_in, n_out, indices=kind)
        return _narrowed(made, store)

    for number, layer in enumerate(network):
        rows = Rows(
            layer.indptr, layer.indices, layer.values, layer.bias,
            np.arange(layer.n_out, dtype=np.int32), *bounds(layer.activation),
        )  # fmt: skip
        density = layer.values.size / (layer.n_in * layer.n_out)
        if density >= _DENSE_ALWAYS:
            rows = densified(rows, layer.n_in)
        elif density >= DENSE_FROM:
            second.append((number, one(densified(rows, layer.n_in), layer.n_in, layer.n_out)))
        packed.append(one(rows, layer.n_in, layer.n_out))
    wide = {number: (len(packed) + i, _WIDE) for i, (number, _) in enumerate(second)}
    return _Packed(packed + [layer for _, layer in second], wide)


def _narrowed(layer: PackedLayer, store: int) -> PackedLayer:
    if store == 0:
        return layer
    arrays = {name: getattr(layer, name) for name in layer.__slots__}
    return PackedLayer(**{**arrays, "weight": narrow(layer.weight, store)})


class DeviceNetwork:
    """A packed network on a device.

    Parameters
    ----------
    device, network
        Where, and what.
    store
        How weights are stored, see `storage`.
    room
        Bytes that have to stay free for columns: a network that does not leave so many is streamed.

    Attributes
    ----------
    widths
        Neurons of the input and behind each layer.
    edges
        Stored weights of the network.
    index_bits
        16 or 32.
    two_forms
        Layers that are there with their zeros, too, for many columns.
    streamed
        Whether layers are uploaded each time that they are used.
    """

    def __init__(self, device: Device, network: SparseNetwork, store: int, room: int) -> None:
        self.device, self.store = device, store
        self.widths = [network.n_in, *(layer.n_out for layer in network)]
        self.edges = network.edges
        self.droppable_from = network.droppable_from
        self.softmax = network[-1].activation.kind == "softmax"
        packed = pack_network(network, store)
        self.depth = len(network)
        self.index_bits = 8 * packed.layers[0].index.dtype.itemsize
        self.two_forms = frozenset(packed.wide)
        self.nbytes = sum(layer.nbytes for layer in packed.layers)
        self.streamed = self.nbytes + room > device.free_bytes()
        if not self.streamed:
            try:
                self._source: _Resident | _Streamed = _Resident(device, packed)
            except DeviceMemoryError:  # fragmented, or someone else took it meanwhile
                self.streamed = True
        if self.streamed:
            self._source = _Streamed(device, packed.layers[: self.depth])

    def softmax_at(self, number: int) -> bool:
        """Whether a softmax follows this layer's product."""
        return self.softmax and number == self.depth - 1

    def layer(self, number: int, stream: Stream) -> LayerArrays:
        """Arrays of a layer, for a kernel that is started on `stream` next."""
        return self._source.layer(number, stream)

    def used(self, number: int, stream: Stream) -> None:
        """Tell that the kernel that uses the layer has been started on `stream`."""
        self._source.used(number, stream)

    def take_copy_seconds(self) -> float:
        """Seconds of copies of weights since the last call; 0 if they are resident."""
        return self._source.take_copy_seconds()


_NAMES = ("bundle", "index", "weight", "row", "bias")


class _Resident:
    """All layers one behind another in the device's memory."""

    def __init__(self, device: Device, packed: _Packed) -> None:
        table, limits = tables(packed.layers, packed.wide)
        self._table, self._limits = device.upload(table), device.upload(limits)
        self._arrays = [
            joined_on(device, [getattr(p, name) for p in packed.layers]) for name in _NAMES
        ]

    def layer(self, number: int, stream: Stream) -> LayerArrays:
        return LayerArrays._make((self._table, self._limits, *self._arrays, number))

    def used(self, number: int, stream: Stream) -> None:
        pass

    def take_copy_seconds(self) -> float:
        return 0.0


def joined_on(device: Device, pieces: Sequence[NDArray[Any]]) -> Array:
    """Upload arrays of one type one behind another, without joining them on the host."""
    rows = sum(piece.shape[0] for piece in pieces)
    # Nobody reads beyond the end; an empty array would have no address.
    whole = device.empty((max(1, rows), *pieces[0].shape[1:]), pieces[0].dtype)
    at = 0
    for piece in pieces:
        if piece.size:
            device.upload(piece, out=whole[at : at + piece.shape[0]])
        at += piece.shape[0]
    return whole


class _Streamed:
    """Layers wait in pinned host memory; two slots on the device take turns.

    While layer k is multiplied, layer k + 1 is copied on a stream of its own.
    """

    def __init__(self, device: Device, layers: Sequence[PackedLayer]) -> None:
        self._device = device
        self._copies = device.stream()
        self._host = [_pinned(device, layer) for layer in layers]
        most = [max(one[i].size for one in self._host) for i in range(len(_NAMES) + 2)]
        self._slots = [
            [device.empty(size, one.dtype) for size, one in zip(most, self._host[0], strict=True)]
            for _ in range(2)
        ]
        self._ready: list[Event] = [device.event() for _ in range(2)]
        self._free: list[Event] = [device.event() for _ in range(2)]
        self._started: list[Event] = [device.event() for _ in range(2)]
        self._holds = [-1, -1]
        self._in_use = [False, False]
        self._timed: list[int] = []
        self._seconds = 0.0

    def _fetch(self, number: int) -> None:
        """Start copying a layer into its slot, when that is free."""
        slot = number % 2
        if self._holds[slot] == number:
            return
        device = self._device
        if slot in self._timed:
            self._seconds += device.seconds(self._started[slot], self._ready[slot])
            self._timed.remove(slot)
        if self._in_use[slot]:
            device.wait(self._free[slot], self._copies)
        device.record(self._started[slot], self._copies)
        for array, target in zip(self._host[number], self._slots[slot], strict=True):
            if array.size:
                device.upload(array, out=target[: array.size], stream=self._copies)
        device.record(self._ready[slot], self._copies)
        self._timed.append(slot)
        self._holds[slot] = number

    def layer(self, number: int, stream: Stream) -> LayerArrays:
        self._fetch(number)
        self._device.wait(self._ready[number % 2], stream)
        return LayerArrays._make((*self._slots[number % 2], 0))

    def used(self, number: int, stream: Stream) -> None:
        self._device.record(self._free[number % 2], stream)
        self._in_use[number % 2] = True
        if len(self._host) > 1:
            self._fetch((number + 1) % len(self._host))

    def take_copy_seconds(self) -> float:
        for slot in self._timed:
            self._seconds += self._device.seconds(self._started[slot], self._ready[slot])
        self._timed.clear()
        spent, self._seconds = self._seconds, 0.0
        return spent


def _pinned(device: Device, layer: PackedLayer) -> list[NDArray[Any]]:
    """A layer's table, bounds and arrays, flat, in memory that copies run from beside kernels."""
    table, limits = tables([layer])
    found = []
    for array in (table, limits, *(getattr(layer, name) for name in _NAMES)):
        pinned = device.pinned(array.size, array.dtype)
        pinned[:] = array.reshape(-1)
        found.append(pinned)
    return found
