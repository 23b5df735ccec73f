"""Dynamic sparsity on ranks: every rank changes the pattern of its own rows.

What drops and what grows is decided by `sparsity.replace_connections` for each rank and layer, so
connections never leave their rank, and the balance of the partition stays. RigL wants gradients
where there are no weights: all inputs of a layer meet this rank's rows once, by an allgather of the
batch's activations; this is the only time that a rank sees inputs that it does not need.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.distributed.shard import LayerShard, owned
from sparsednn.training.data import LocalExamples
from sparsednn.training.engine import Layer
from sparsednn.training.losses import Targets, loss_gradient
from sparsednn.training.placed import PlacedNetwork
from sparsednn.training.reference import ReferenceEngine
from sparsednn.training.settings import Settings
from sparsednn.training.sparsity import DynamicSparsity, Replacement, carry, replace_connections

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.distributed.shard import NetworkShard

__all__ = ["changed_pattern"]


def changed_pattern(
    placed: PlacedNetwork,
    examples: LocalExamples,
    ids: NDArray[np.int64],
    batch: int,
    settings: Settings,
    *,
    step: int,
    steps_total: int,
    group: Communicator,
    across: Communicator,
) -> tuple[NetworkShard, dict[str, list[Layer]]]:
    """Change the pattern of all layers.

    Parameters
    ----------
    placed
        The rank's rows before; not changed.
    examples, ids, batch
        The images that gradients are taken of: this data group's, and how many in all groups.
    settings
        ``settings.sparsity`` must be there.
    step, steps_total
        Steps done, and to be done in all.
    group, across
        As for `PlacedNetwork`. Collective over both.

    Returns
    -------
    The rows with their new pattern, and the optimizer's arrays of them. New weights and their
    arrays are zero: they do not change what the network computes (Evci et al., section 3).
    """
    sparsity = settings.sparsity
    assert sparsity is not None
    shard, slots = placed.shard, placed.slots
    share = sparsity.share(step, steps_total)
    gradients = None
    if sparsity.method == "rigl":
        gradients = _DenseGradients(
            placed, shard, examples, ids, batch, settings.loss, group, across
        )
    layers: list[LayerShard] = []
    for k, layer in enumerate(shard.layers):
        new = _replaced(layer, k, shard.part, sparsity, share, settings.seed, step, gradients)
        new = _same_everywhere(new, across)
        layers.append(
            replace(
                layer,
                indptr=new.indptr,
                indices=new.indices,
                values=carry(layer.values, new.source),
            )
        )
        for arrays in slots.values():
            arrays[k] = (carry(arrays[k][0], new.source), arrays[k][1])
    return replace(shard, layers=tuple(layers)), slots


def _replaced(
    layer: LayerShard,
    k: int,
    part: int,
    sparsity: DynamicSparsity,
    share: float,
    seed: int,
    step: int,
    gradients: _DenseGradients | None,
) -> Replacement:
    given: dict[str, Any] = {}
    if gradients is None:
        given["rng"] = np.random.default_rng([seed, step, k, part])
    else:
        given["scores"] = gradients.of(k)
    return replace_connections(
        layer.indptr, layer.indices, layer.values, layer.n_in, share, **given
    )


def _same_everywhere(new: Replacement, across: Communicator) -> Replacement:
    """Take the first data group's decision: sums may differ in the last bit between machines."""
    if across.size == 1:
        return new
    decided = new._replace(
        indptr=np.array(new.indptr), indices=np.array(new.indices), source=np.array(new.source)
    )
    for array in (decided.indptr, decided.indices, decided.source):
        across.broadcast(array)
    return decided


class _DenseGradients:
    """Inputs and deltas of a batch, from which any entry of a layer's gradient can be made."""

    def __init__(
        self,
        placed: PlacedNetwork,
        shard: NetworkShard,
        examples: LocalExamples,
        ids: NDArray[np.int64],
        batch: int,
        loss: str,
        group: Communicator,
        across: Communicator,
    ) -> None:
        engine = ReferenceEngine(
            shard, placed.plans, group, across, columns=max(1, ids.size), input_gradient=False
        )
        y = engine.forward(examples.inputs, ids)
        last = shard.layers[-1]
        labels, values = examples.labels, examples.values
        targets = Targets(
            None if labels is None else labels[ids], None if values is None else values[:, ids]
        )
        _, delta = loss_gradient(
            loss, last.activation, y, targets, last.rows, last.n_out, batch, group
        )
        engine.backward(delta, deltas_only=True)
        self._engine, self._shard = engine, shard
        self._group, self._across = group, across
        self._columns = int(ids.size)

    def of(self, k: int) -> Any:
        """``scores(first, last)`` of layer k, see `sparsity.Scores`; collective."""
        layer, owners = self._shard.layers[k], self._shard.owners[k]
        own = np.ascontiguousarray(self._engine.activations_of(k))
        rows = np.concatenate([owned(owners, part) for part in range(self._shard.parts)])
        gathered = self._group.allgather(own, layer=k).reshape(layer.n_in, self._columns)
        x = np.empty((self._columns, layer.n_in), np.float32)
        x[:, rows] = gathered.T
        delta = np.ascontiguousarray(self._engine.deltas_of(k).T)
        if self._across.size > 1:
            x = self._across.allgather(x, layer=k).reshape(-1, layer.n_in)
            delta = self._across.allgather(delta, layer=k).reshape(x.shape[0], -1)

        def scores(first: int, last: int) -> NDArray[np.float32]:
            return np.asarray(delta[:, first:last].T @ x)

        return scores
