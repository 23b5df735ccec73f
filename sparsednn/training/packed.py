"""The order of a rank's parameters for compiled loops: packed blocks, forward and transposed.

All parameters are one flat array: weights in the order of the packed blocks, then biases. Gradients
and an optimizer's arrays have the same order, so an optimizer needs to know nothing of layers. The
packing of the transposed product holds the *places* of weights in that array, not weights: there is
one copy of each, and nothing that could get out of step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sparsednn.distributed.layer import Columns, DistributedLayer
from sparsednn.distributed.plan import ExchangePlan, offsets
from sparsednn.distributed.shard import NetworkShard
from sparsednn.errors import InputError, ShapeError
from sparsednn.kernels.packing import PackedNetwork, Rows, divide, pack_rows
from sparsednn.training.engine import Layer

__all__ = ["PackedParameters"]

#: Rows of equal pattern that threads divide among themselves, at most.
_GROUP_ROWS = 32


class PackedParameters:
    """Where each weight and bias of a rank's rows is kept.

    Parameters
    ----------
    shard, plans
        The rank's rows, and the messages of all layers.
    threads
        Parts of layers are cut for so many.

    Attributes
    ----------
    net, back
        The packings of the forward product (three parts for each layer, see `kernels.linked`) and
        of the transposed one (two: received, then owned columns as rows). Instead of weights,
        `net` has the numbers of the shard's weights, of all layers in order.
    size
        Of an array of all parameters; there are biases among them that stand for nothing.
    first
        ``(layers + 1,)``: where each layer's weights begin.
    """

    def __init__(self, shard: NetworkShard, plans: Sequence[ExchangePlan], threads: int) -> None:
        self._lengths = [layer.nnz for layer in shard.layers]
        self._rows = [layer.bias.size for layer in shard.layers]
        self._edges = sum(self._lengths)
        if self._edges >= 2**31:
            raise InputError(
                f"a rank can train 2^31 - 1 weights, this one has {self._edges}: use more ranks"
            )
        self._width = [int(np.count_nonzero(owners == shard.part)) for owners in shard.owners]
        self.first = offsets(np.array(self._lengths, np.int64))
        self.net, self.back = self._pack(shard, plans, threads)
        self._entry = self.net.weight
        self._row = self._bias_rows(self.net)
        self.size = self._edges + self._row.size

    def _pack(
        self, shard: NetworkShard, plans: Sequence[ExchangePlan], threads: int
    ) -> tuple[PackedNetwork, PackedNetwork]:
        """Make both packings."""
        group_rows = _GROUP_ROWS if threads > 1 else None
        edges, numbers = self._edges, self.first
        layers = []
        for k, (layer, plan) in enumerate(zip(shard.layers, plans, strict=True)):
            entries = np.arange(numbers[k], numbers[k + 1], dtype=np.int32)
            layers.append(
                # The split moves values about, whatever they are.
                DistributedLayer.make(
                    replace(layer, values=entries), plan, shard.owners[k], shard.part
                )
            )
        parts = [part for layer in layers for part in layer.packed_parts()]
        net = pack_rows(parts, self._width, edges, dtype=np.int32, group_rows=group_rows)
        place = np.empty(edges, np.int32)
        place[net.weight] = np.arange(edges, dtype=np.int32)
        turned = [
            _transposed(columns, place) for one in layers for columns in (one.received, one.owned)
        ]
        back = pack_rows(turned, self._width, edges, dtype=np.int32, group_rows=group_rows)
        return divide(net, threads), divide(back, threads)

    def _bias_rows(self, net: PackedNetwork) -> NDArray[np.int64]:
        """For each packed bias its number among all layers' rows; -1 for those that are none."""
        rows = np.empty(net.bias.size, np.int64)
        first = offsets(np.array(self._rows, np.int64))
        blocks = net.group_block[net.layer_group]
        ends = net.block_row[blocks]
        per_layer = (net.layer_group.size - 1) // len(self._rows)
        for part in range(net.layer_group.size - 1):
            layer, place = divmod(part, per_layer)
            here = slice(int(ends[part]), int(ends[part + 1]))
            # Rows whose columns come in two parts have their bias in the second.
            unfinished = place // (per_layer // 3) == 1
            rows[here] = -1 if unfinished else first[layer] + net.target[here]
        return rows

    def layers_of(self, flat: NDArray[np.float32]) -> list[Layer]:
        """Weights (as the shard has them) and biases of each layer, copied out of a flat array."""
        values = np.empty(self._edges, np.float32)
        values[self._entry] = flat[: self._edges]
        bias = np.empty(sum(self._rows), np.float32)
        real = self._row >= 0
        bias[self._row[real]] = flat[self._edges :][real]
        ends = np.cumsum(self._lengths)[:-1], np.cumsum(self._rows)[:-1]
        return list(zip(np.split(values, ends[0]), np.split(bias, ends[1]), strict=True))

    def flat(self, layers: Sequence[Layer]) -> NDArray[np.float32]:
        """Return the reverse of `layers_of`: an array of `size` numbers."""
        result = np.zeros(self._edges + self._row.size, np.float32)
        values = np.concatenate([values for values, _ in layers])
        bias = np.concatenate([bias for _, bias in layers])
        if values.size != self._edges or bias.size != sum(self._rows):
            raise ShapeError(
                f"{values.size} weights and {bias.size} biases, this rank has {self._edges} and "
                f"{sum(self._rows)}"
            )
        result[: self._edges] = values[self._entry]
        real = self._row >= 0
        result[self._edges :][real] = bias[self._row[real]]
        return result


def _transposed(columns: Columns, place: NDArray[np.int32]) -> Rows:
    """Columns as rows, with the places of their weights; `columns` has the weights' numbers."""
    from scipy.sparse import csr_array

    n_rows = columns.indptr.size - 1
    shape = (n_rows, columns.width)
    if not columns.width:
        none = np.empty(0, np.int32)
        return Rows(np.zeros(1, np.int64), none, none, np.empty(0, np.float32), none)
    turned = csr_array(
        (place[columns.values], columns.indices, columns.indptr), shape=shape
    ).tocsc()
    return Rows(
        turned.indptr.astype(np.int64),
        turned.indices.astype(np.int32),
        turned.data,
        np.zeros(columns.width, np.float32),
        np.arange(columns.width, dtype=np.int32),
    )
