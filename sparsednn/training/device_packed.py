"""The order of a rank's parameters on a device: bundles, forward and transposed, in host memory.

As in `packed`, all parameters are one flat array, and the transposed product's packing holds the
places of weights in it. What differs is the packing (`gpu.packing`): weights of a bundle are padded
to whole vectors, so there are entries among them that stand for nothing, and bundles lie one behind
another in the same arrays for all layers. A third table cuts the bundles into the pieces that the
sampled product works on. Knows no device: `device_engine` puts it there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.distributed.layer import Columns, DistributedLayer
from sparsednn.distributed.plan import ExchangePlan, offsets
from sparsednn.distributed.shard import NetworkShard
from sparsednn.errors import InputError, ShapeError
from sparsednn.gpu.packing import BUNDLE_ROWS, PackedLayer, index_dtype, pack_layer
from sparsednn.kernels.packing import Rows, bounds
from sparsednn.training.engine import Layer

__all__ = ["BACKS", "PARTS", "SAMPLED", "DevicePacking", "finished_here", "sample_pieces"]

#: Connections that a team samples at a time, by the rows of the bundle: 4 or 8. A piece takes
#: (R + C) vectors of loads for 4 R C multiply-adds and R C registers for sums (the tests
#: see to it that nothing is spilled). The kernel is compiled for these numbers.
SAMPLED: Final = {8: 4, 4: 8, 2: 8, 1: 8}

#: Forward parts of a layer: rows that need no other rank's inputs; the own columns of the others;
#: their received columns, with the bias and the activation.
PARTS = 3
#: Transposed parts of a layer: received columns, own columns.
BACKS = 2

_MOST = np.iinfo(np.int32).max
_VECTOR = 8  # the flat array has a multiple of so many elements


class DevicePacking:
    """Where each weight and bias of a rank's rows is kept.

    Parameters
    ----------
    shard, plans
        The rank's rows, and the messages of all layers.

    Attributes
    ----------
    widths
        Own neurons of the input and behind each layer.
    lines
        Inputs of each layer with the received ones behind them; and the own outputs of the last.
    parts
        `PARTS` for each layer. Instead of weights they have their numbers, from 1 on.
    backs
        `BACKS` for each layer: columns as rows, whose activation is that of the layer before, and
        instead of weights their places. Padding has place 0, which is read but not used.
    weights, size
        Elements of a flat array that are weights (with padding), and all elements.
    first
        ``(layers + 1,)``: where each layer's weights begin among those of the shard.
    index_bits
        16 or 32.
    """

    def __init__(self, shard: NetworkShard, plans: Sequence[ExchangePlan]) -> None:
        lengths = [layer.nnz for layer in shard.layers]
        self._rows = [layer.bias.size for layer in shard.layers]
        self.first = offsets(np.array(lengths, np.int64))
        self._edges = int(self.first[-1])
        if self._edges >= _MOST:
            raise InputError(
                f"a rank can train 2^31 - 2 weights, this one has {self._edges}: use more ranks"
            )
        self.widths = [int(np.count_nonzero(owners == shard.part)) for owners in shard.owners]
        received = [plan.words_received for plan in plans]
        self.lines = [a + b for a, b in zip(self.widths, [*received, 0], strict=True)]
        kind = index_dtype(max(1, *self.lines))
        self.index_bits = 8 * np.dtype(kind).itemsize
        split = self._split(shard, plans)
        self.parts = self._pack_parts(split, kind)
        numbers = np.concatenate([part.weight for part in self.parts])
        self.weights = numbers.size
        if self.weights > _MOST:
            raise InputError(
                f"a rank's {self._edges} weights are {self.weights} with padding, more than "
                "2^31 - 1: use more ranks"
            )
        self.backs = self._pack_backs(shard, split, numbers, kind)
        self._real = np.flatnonzero(numbers)
        self._entry = numbers[self._real] - 1
        self._row = self._bias_rows()
        self._biased = np.flatnonzero(self._row >= 0)
        elements = max(1, self.weights + self._row.size)
        self.size = -(-elements // _VECTOR) * _VECTOR

    @property
    def words(self) -> NDArray[np.int64]:
        """``(layers + 1,)``: weights of each layer, and all biases; without padding."""
        return np.append(np.diff(self.first), sum(self._rows))

    def _split(self, shard: NetworkShard, plans: Sequence[ExchangePlan]) -> list[DistributedLayer]:
        """All layers with the numbers of their weights instead of weights."""
        layers = []
        for k, (layer, plan) in enumerate(zip(shard.layers, plans, strict=True)):
            entries = np.arange(self.first[k] + 1, self.first[k + 1] + 1, dtype=np.int32)
            # The split moves values about, whatever they are.
            numbered: Any = replace(layer, values=entries)
            layers.append(DistributedLayer.make(numbered, plan, shard.owners[k], shard.part))
        return layers

    def _pack_parts(self, split: Sequence[DistributedLayer], kind: Any) -> list[PackedLayer]:
        parts = []
        for k, layer in enumerate(split):
            for number, rows in enumerate(layer.packed_parts()):
                if number == PARTS - 1:
                    rows = rows._replace(indices=rows.indices + np.int32(self.widths[k]))
                parts.append(
                    pack_layer(
                        rows, self.lines[k], self.lines[k + 1], indices=kind,
                        add=number == PARTS - 1,
                    )
                )  # fmt: skip
        return parts

    def _pack_backs(
        self,
        shard: NetworkShard,
        split: Sequence[DistributedLayer],
        numbers: NDArray[np.int32],
        kind: Any,
    ) -> list[PackedLayer]:
        place = np.zeros(self._edges + 1, np.int32)
        place[numbers] = np.arange(numbers.size, dtype=np.int32)
        place[0] = 0  # of padding
        backs = []
        for k, layer in enumerate(split):
            before = shard.layers[k - 1].activation if k else Activation("identity")
            received = _transposed(layer.received, place, self.widths[k])
            own = _transposed(layer.owned, place, 0)
            code, low, high = bounds(finished_here(before))
            own = own._replace(code=code, low=low, high=high)
            backs += [
                pack_layer(rows, self.widths[k + 1], self.lines[k], indices=kind)
                for rows in (received, own)
            ]
        return backs

    def _bias_rows(self) -> NDArray[np.int64]:
        """For each packed bias its number among all layers' rows; -1 for those that are none."""
        first = offsets(np.array(self._rows, np.int64))
        rows = []
        for number, part in enumerate(self.parts):
            layer, place = divmod(number, PARTS)
            # Rows whose columns come in two parts have their bias in the second.
            rows.append(np.where(place == 1, -1, first[layer] + part.row.astype(np.int64)))
        return np.concatenate(rows)

    def layers_of(self, flat: NDArray[np.float32]) -> list[Layer]:
        """Weights (as the shard has them) and biases of each layer, copied out of a flat array."""
        values = np.empty(self._edges, np.float32)
        values[self._entry] = flat[self._real]
        bias = np.empty(sum(self._rows), np.float32)
        bias[self._row[self._biased]] = flat[self.weights + self._biased]
        ends = self.first[1:-1], np.cumsum(self._rows)[:-1]
        return list(zip(np.split(values, ends[0]), np.split(bias, ends[1]), strict=True))

    def flat(self, layers: Sequence[Layer]) -> NDArray[np.float32]:
        """Return the reverse of `layers_of`: an array of `size` numbers."""
        values = np.concatenate([values for values, _ in layers])
        bias = np.concatenate([bias for _, bias in layers])
        if values.size != self._edges or bias.size != sum(self._rows):
            raise ShapeError(
                f"{values.size} weights and {bias.size} biases, this rank has {self._edges} and "
                f"{sum(self._rows)}"
            )
        result = np.zeros(self.size, np.float32)
        result[self._real] = values[self._entry]
        result[self.weights + self._biased] = bias[self._row[self._biased]]
        return result


def finished_here(activation: Activation) -> Activation:
    """What the layers apply: softmax belongs to the loss."""
    return Activation("identity") if activation.kind == "softmax" else activation


def _transposed(columns: Columns, place: NDArray[np.int32], first: int) -> Rows:
    """Columns as rows, for lines from `first` on, with the places of their weights."""
    from scipy.sparse import csr_array

    n_rows = columns.indptr.size - 1
    target = first + np.arange(columns.width, dtype=np.int32)
    if not columns.width:
        none = np.empty(0, np.int32)
        return Rows(np.zeros(1, np.int64), none, none, np.empty(0, np.float32), none)
    turned = csr_array(
        (place[columns.values], columns.indices, columns.indptr), shape=(n_rows, columns.width)
    ).tocsc()
    return Rows(
        turned.indptr.astype(np.int64),
        turned.indices.astype(np.int32),
        turned.data,
        np.zeros(columns.width, np.float32),
        target.astype(np.int32),
    )


def sample_pieces(parts: Sequence[PackedLayer]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Cut bundles into pieces of at most `SAMPLED` connections.

    Parameters
    ----------
    parts
        Of all layers, `PARTS` each.

    Returns
    -------
    samples, pieces
        ``(parts, 8)`` int64, as ``enum SampleField`` in ``training.cu``: where a part's pieces
        begin, how many are of bundles of 8, at least 4, 2, 1 rows, and how many rows have a bias.
        ``(pieces, 4)`` int32: pattern, weights and rows as in ``PackedLayer.bundle``, and
        connections.
    """
    samples = np.zeros((len(parts), 8), np.int64)
    found = [np.zeros((0, 4), np.int32)]
    at = 0
    for number, part in enumerate(parts):
        counts, begin = [], 0
        for size, end in zip(BUNDLE_ROWS, part.ends, strict=True):
            bundle = part.bundle[begin:end]
            most = SAMPLED[size]
            times = -(-bundle[:, 1] // most)
            which = np.repeat(np.arange(bundle.shape[0]), times)
            turn = np.arange(which.size) - np.repeat(np.cumsum(times) - times, times)
            pattern, connections, weight, row = bundle[which].T
            rest = np.minimum(most, connections - turn * most)
            pieces = [pattern + turn * most, weight + turn * most * size, row, rest]
            found.append(np.stack(pieces, axis=1).astype(np.int32))
            counts.append(which.size)
            begin = end
        biases = 0 if number % PARTS == 1 else part.row.size
        samples[number, :6] = (at, *np.cumsum(counts), biases)
        at += sum(counts)
    return samples, np.concatenate(found)
