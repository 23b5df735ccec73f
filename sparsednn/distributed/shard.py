"""A part's share of a network: `LayerShard` and `NetworkShard`, the rows that one rank owns.

`shard_network` cuts them out of a network in memory; it is the truth that loading is held
against. Columns keep their global numbers: who sends which activation is the plan's business.
Knows NumPy, networks and partitions; no MPI, no file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.network import SparseLayer, SparseNetwork, bytes_once
from sparsednn.partitioners.partition import Partition

__all__ = [
    "LayerShard",
    "NetworkShard",
    "owned",
    "shard_network",
    "share_equal",
    "whole_shard",
]


@dataclass(frozen=True, slots=True, eq=False)
class LayerShard:
    """Some rows of one layer, in CSR form; perhaps none. Arrays are not to be changed.

    Attributes
    ----------
    rows
        ``(m,)`` int32: the global numbers of the rows, ascending.
    indptr, indices, values, bias
        ``(m + 1,)`` int64, ``(nnz,)`` int32, ``(nnz,)`` float32, ``(m,)`` float32. Columns are
        global, and ascend within a row. Layers may share arrays that are equal.
    n_out, n_in
        Rows and columns of the whole layer.
    activation
        Of the layer.
    """

    rows: NDArray[np.int32]
    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    bias: NDArray[np.float32]
    n_out: int
    n_in: int
    activation: Activation

    @classmethod
    def of(cls, layer: SparseLayer, rows: NDArray[np.int32]) -> LayerShard:
        """Take `rows` (ascending) out of a whole layer.

        Weights are copied, unless there are none in the other rows: then they are shared.
        """
        lengths = np.diff(layer.indptr)[rows]
        indptr = np.zeros(rows.size + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        indices, values = layer.indices, layer.values
        if indptr[-1] != layer.nnz:
            entries = np.repeat(layer.indptr[rows] - indptr[:-1], lengths)
            entries += np.arange(entries.size)
            indices, values = indices[entries], values[entries]
        return cls(
            rows,
            indptr,
            indices,
            values,
            layer.bias[rows],
            layer.n_out,
            layer.n_in,
            layer.activation,
        )

    @property
    def nnz(self) -> int:
        """Number of stored weights in these rows."""
        return self.values.size

    @property
    def keeps_zero(self) -> bool:
        """Whether these rows keep a column of zeros; the layer does if all parts' rows do."""
        return self.activation.keeps_zero(self.bias)


@dataclass(frozen=True, slots=True, eq=False)
class NetworkShard:
    """What one part owns of a network, and what every part knows of all of it.

    Attributes
    ----------
    name, hash, edges
        Of the whole network: name, content hash, stored weights.
    layers
        The part's rows of each layer.
    part, parts
        Which part of how many.
    owners
        The partition's vectors, one per neuron layer, the inputs included.
    droppable_from
        Of the whole network, see `SparseNetwork.droppable_from`.
    """

    name: str
    hash: str
    edges: int
    layers: tuple[LayerShard, ...]
    part: int
    parts: int
    owners: tuple[NDArray[np.int32], ...]
    droppable_from: int

    @property
    def n_in(self) -> int:
        """Number of input neurons of the whole network."""
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        """Number of output neurons of the whole network."""
        return self.layers[-1].n_out

    @property
    def nbytes(self) -> int:
        """Bytes of the part's rows; what layers share counts once. Owners are not counted."""
        return bytes_once(
            array
            for layer in self.layers
            for array in (layer.rows, layer.indptr, layer.indices, layer.values, layer.bias)
        )

    def __repr__(self) -> str:
        """Return name, part and how many of the weights it has."""
        nnz = sum(layer.nnz for layer in self.layers)
        return (
            f"NetworkShard('{self.name}', part {self.part} of {self.parts}, "
            f"{len(self.layers)} layers, {nnz} of {self.edges} edges)"
        )


def owned(owners: NDArray[np.int32], part: int) -> NDArray[np.int32]:
    """Numbers of the neurons that a part owns, ascending, ``(m,)`` int32.

    >>> owned(np.array([1, 0, 1], np.int32), 1).tolist()
    [0, 2]
    """
    return np.flatnonzero(owners == part).astype(np.int32)


def share_equal(before: LayerShard | None, layer: LayerShard) -> LayerShard:
    """Return `layer` with the arrays of the layer before it where they are equal.

    The weights of an official network are all the same, and make half of its memory.
    """
    if before is None:
        return layer
    kept = {
        name: getattr(before, name)
        for name in ("rows", "indptr", "values", "bias")
        if np.array_equal(getattr(before, name), getattr(layer, name))
    }
    return replace(layer, **kept)


def shard_network(network: SparseNetwork, partition: Partition, part: int) -> NetworkShard:
    """Cut a part's rows out of a network that is in memory.

    Parameters
    ----------
    network, partition
        The partition must have been made for the network.
    part
        Which, below ``partition.parts``.

    Raises
    ------
    InputError
        (any of its kinds) if the partition was made for another network.
    """
    partition.check(network)
    return NetworkShard(
        network.name,
        network.hash,
        network.edges,
        tuple(
            LayerShard.of(layer, owned(owners, part))
            for layer, owners in zip(network, partition.owners[1:], strict=True)
        ),
        part,
        partition.parts,
        partition.owners,
        network.droppable_from,
    )


def whole_shard(network: SparseNetwork) -> NetworkShard:
    """Return a network as the only part of a partition: everything belongs to one rank."""
    sizes = (network.n_in, *(layer.n_out for layer in network))
    owners = tuple(np.zeros(size, np.int32) for size in sizes)
    layers = tuple(
        LayerShard.of(layer, owned(mine, 0))
        for layer, mine in zip(network, owners[1:], strict=True)
    )
    return NetworkShard(
        network.name, network.hash, network.edges, layers, 0, 1, owners, network.droppable_from
    )
