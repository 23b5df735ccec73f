"""`DeviceShard`: a rank's rows of all layers in its GPU's memory.

Each layer is three parts, as on the CPU (`kernels.linked`), each packed like a layer of its own:

===========  ==================================================================================
``3 k``      rows that need nothing from others: finished at once
``3 k + 1``  the owned columns of all other rows: sums only, without bias and activation
``3 k + 2``  the received columns of these rows: the sums go on, and are finished
===========  ==================================================================================

An input tile of layer k has the owned lines, and behind them the received ones. Sums between part 1
and part 2 are stored as activations are: with half precision they are rounded once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sparsednn.distributed.layer import DistributedLayer
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import NetworkShard
from sparsednn.gpu.device import Array, Device, Stream
from sparsednn.gpu.launcher import NEAR_BYTES, PRODUCT_BLOCKS, THREADS
from sparsednn.gpu.network import joined_on
from sparsednn.gpu.packing import PackedLayer, index_dtype, pack_layer, tables
from sparsednn.gpu.storage import TILE, narrow, stored_dtype

__all__ = ["DeviceShard"]

_ARRAYS = ("bundle", "index", "weight", "row", "bias")


class DeviceShard:
    """A rank's rows on its device, ready to be multiplied; the shard itself is not kept.

    Parameters
    ----------
    device
        This rank's.
    shard, plans
        Its rows, and the messages of all layers.
    store
        How weights and activations are stored, see `gpu.storage`.

    Attributes
    ----------
    own
        Neurons of each neuron layer that the rank owns, the inputs included.
    lines
        Of a tile of each neuron layer: owned, and received in front of the next layer; at least 1.
    index_bits, store
        Macros of the kernels.
    droppable_from
        Of the whole network.
    nbytes
        On the device.

    Raises
    ------
    DeviceMemoryError
        If the rows do not fit.
    """

    def __init__(
        self,
        device: Device,
        shard: NetworkShard,
        plans: Sequence[ExchangePlan],
        store: int = 0,
    ) -> None:
        self._device, self.store = device, store
        self.own = [int(np.count_nonzero(owners == shard.part)) for owners in shard.owners]
        received = [*(plan.words_received for plan in plans), 0]
        # One at least: the numbers of images move with a tile's first line (`keep_living`).
        self.lines = [max(1, own + more) for own, more in zip(self.own, received, strict=True)]
        self.droppable_from = shard.droppable_from
        kind = index_dtype(max(self.lines))
        self.index_bits = 8 * np.dtype(kind).itemsize
        parts = [
            part
            for k, (layer, plan) in enumerate(zip(shard.layers, plans, strict=True))
            for part in self._pack(
                k, DistributedLayer.make(layer, plan, shard.owners[k], shard.part), kind
            )
        ]
        self._rows = [part.row.size for part in parts]
        table, limits = tables(parts)
        self._arrays = [
            device.upload(table),
            device.upload(limits),
            *(joined_on(device, [getattr(part, name) for part in parts]) for name in _ARRAYS),
        ]
        self.nbytes = sum(array.nbytes for array in self._arrays)
        macros = {"THREADS": THREADS, "INDEX_BITS": self.index_bits, "STORE": store}
        self._product = device.function("layer", "layer", **macros)

    def _pack(self, k: int, layer: DistributedLayer, kind: type[Any]) -> list[PackedLayer]:
        """Three parts of layer k; received columns become lines behind the owned ones."""
        inner, owned, received = layer.packed_parts()
        shifted = (received.indices + np.int32(self.own[k])).astype(np.int32)
        packed = [
            pack_layer(rows, self.lines[k], self.own[k + 1], indices=kind, add=add)
            for rows, add in (
                (inner, False),
                (owned, False),
                (received._replace(indices=shifted), True),
            )
        ]
        if self.store == 0:
            return packed
        return [replace(one, weight=narrow(one.weight, self.store)) for one in packed]

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.own) - 1

    def multiply_owned(
        self, k: int, x: Array, y: Array, columns: Array, alive: Array | None, stream: Stream
    ) -> None:
        """Start what needs no message: parts 0 and 1 of layer k, from tiles of x to those of y.

        `alive`, a word for each tile, gets the bits of columns with an output other than zero.
        """
        self._multiply(3 * k, x, y, columns, alive, stream)
        self._multiply(3 * k + 1, x, y, columns, None, stream)

    def add_received(
        self, k: int, x: Array, y: Array, columns: Array, alive: Array | None, stream: Stream
    ) -> None:
        """Start part 2 of layer k, when the received lines are in x."""
        self._multiply(3 * k + 2, x, y, columns, alive, stream)

    def _multiply(
        self, part: int, x: Array, y: Array, columns: Array, alive: Array | None, stream: Stream
    ) -> None:
        if not self._rows[part]:
            return
        x_lines, y_lines = self.lines[part // 3], self.lines[part // 3 + 1]
        near = x_lines * TILE * np.dtype(stored_dtype(self.store)).itemsize <= NEAR_BYTES
        self._device.launch(
            self._product,
            PRODUCT_BLOCKS * self._device.multiprocessors,
            THREADS,
            (
                x, y, *self._arrays, np.int32(part), columns, alive, np.int32(x_lines),
                np.int32(y_lines), np.int32(near),
            ),
            stream=stream,
        )  # fmt: skip
