"""A training's state, from ranks to one place and back: what checkpoints and new partitions need.

A state knows nothing of ranks: weights, biases and the optimizer's arrays in the order of the
network. So it can be gathered from one number of ranks and scattered to another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.distributed.plan import offsets
from sparsednn.distributed.shard import LayerShard, NetworkShard, owned
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.training.checkpoints import Slot
from sparsednn.training.engine import Layer

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.partitioners.partition import Partition

__all__ = ["gather_network", "scatter_network"]


def gather_network(
    shard: NetworkShard,
    parameters: Sequence[Layer],
    slots: dict[str, list[Layer]],
    group: Communicator,
) -> tuple[SparseNetwork, dict[str, Slot]] | None:
    """Put the rows of all ranks of a group together, on its rank 0.

    Parameters
    ----------
    shard
        The rank's pattern; its weights are not used.
    parameters, slots
        Weights and biases of each layer, in the order of the shard's rows; the same for each array
        of the optimizer.
    group
        Rank r has part r. Collective: some gathers per layer.

    Returns
    -------
    On rank 0 the network and the optimizer's arrays in its order, which are the caller's own; None
    elsewhere. Rank 0 holds all of it, and one layer's pieces.
    """
    layers: list[SparseLayer] = []
    whole: dict[str, Slot] = {name: [] for name in slots}
    for k, layer in enumerate(shard.layers):
        lengths = group.gather(np.diff(layer.indptr))
        rows = group.gather(layer.rows)
        indices = group.gather(layer.indices)
        found = [
            (group.gather(weights), group.gather(bias))
            for weights, bias in (parameters[k], *(arrays[k] for arrays in slots.values()))
        ]
        if lengths is None or rows is None or indices is None:
            continue
        counts = np.zeros(layer.n_out, np.int64)
        counts[np.concatenate(rows)] = np.concatenate(lengths)
        indptr = offsets(counts)
        places = [
            np.repeat(indptr[mine] - offsets(many)[:-1], many) + np.arange(int(many.sum()))
            for mine, many in zip(rows, lengths, strict=True)
        ]
        put = _joined(indices, places)
        values, bias = _Put(found[0], places, rows).made()
        layers.append(
            SparseLayer(
                indptr,
                put,
                values,
                layer.n_in,
                bias=bias,
                activation=layer.activation,
                check=False,
            )
        )
        for name, pieces in zip(slots, found[1:], strict=True):
            whole[name].append(_Put(pieces, places, rows).made())
    return (SparseNetwork(layers, name=shard.name), whole) if layers else None


class _Put:
    """Pieces of weights and biases, and where they belong."""

    def __init__(self, pieces: Any, places: list[Any], rows: list[Any]) -> None:
        self._pieces, self._places, self._rows = pieces, places, rows

    def made(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        weights, biases = self._pieces
        return _joined(weights, self._places), _joined(biases, self._rows)


def _joined(pieces: list[Any], places: list[Any]) -> NDArray[Any]:
    result = np.empty(sum(piece.size for piece in pieces), pieces[0].dtype)
    for piece, place in zip(pieces, places, strict=True):
        result[place] = piece
    return result


def scatter_network(
    network: SparseNetwork | None,
    slots: dict[str, Slot] | None,
    partition: Partition,
    part: int,
    world: Communicator,
) -> tuple[NetworkShard, dict[str, list[Layer]]]:
    """Give each rank its rows of a network that rank 0 of the world has.

    Parameters
    ----------
    network, slots
        On rank 0; None elsewhere.
    partition, part
        Who owns what, and which part this rank is; several ranks may have the same one.
    world
        All ranks. Collective: one allgather, one broadcast, some messages per layer and rank.

    Returns
    -------
    The rank's rows; and of each of the optimizer's arrays the same rows, per layer.
    """
    parts = world.allgather(np.array([part], np.int64))
    head = None
    if network is not None and slots is not None:
        head = [
            network.name,
            network.hash,
            network.edges,
            list(slots),
            [[layer.n_out, layer.n_in, str(layer.activation)] for layer in network],
        ]
    name, digest, edges, names, shapes = world.broadcast_json(head)
    mine: list[LayerShard] = []
    own: dict[str, list[Layer]] = {slot: [] for slot in names}
    for k, (n_out, n_in, activation) in enumerate(shapes):
        owners = partition.owners[k + 1]
        if network is not None and slots is not None:
            cut = [network[k], *(_with(network[k], slots[slot][k]) for slot in names)]
            for rank in range(1, world.size):
                for array in _arrays(cut, owned(owners, int(parts[rank]))):
                    world.send(array, rank)
            arrays = [np.array(array) for array in _arrays(cut, owned(owners, part))]
        else:
            arrays = _received(world, owned(owners, part).size, len(names))
        indptr, indices, values, bias = arrays[:4]
        mine.append(
            LayerShard(
                owned(owners, part),
                indptr,
                indices,
                values,
                bias,
                n_out,
                n_in,
                Activation.parse(activation),
            )
        )
        for i, slot in enumerate(names):
            own[slot].append((arrays[4 + 2 * i], arrays[5 + 2 * i]))
    shard = NetworkShard(
        name, digest, edges, tuple(mine), part, partition.parts, partition.owners, len(mine)
    )
    return shard, own


def _with(layer: SparseLayer, arrays: Layer) -> SparseLayer:
    """Return the layer's pattern with other numbers."""
    return SparseLayer(
        layer.indptr, layer.indices, arrays[0], layer.n_in, bias=arrays[1], check=False
    )


def _arrays(cut: Sequence[SparseLayer], rows: NDArray[np.int32]) -> list[NDArray[Any]]:
    """Rows of a layer's pattern, weights and biases, and of the arrays that belong to them."""
    shards = [LayerShard.of(layer, rows) for layer in cut]
    arrays: list[NDArray[Any]] = [shards[0].indptr, shards[0].indices]
    for shard in shards:
        arrays += [shard.values, shard.bias]
    return arrays


def _received(world: Communicator, rows: int, slots: int) -> list[NDArray[Any]]:
    indptr = np.empty(rows + 1, np.int64)
    world.receive(indptr, 0)
    nnz = int(indptr[-1])
    arrays: list[NDArray[Any]] = [indptr, np.empty(nnz, np.int32)]
    for _ in range(1 + slots):
        arrays += [np.empty(nnz, np.float32), np.empty(rows, np.float32)]
    for array in arrays[1:]:
        world.receive(array, 0)
    return arrays
