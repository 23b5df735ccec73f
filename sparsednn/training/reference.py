"""The readable engine: SciPy products and the communicator's verbs, layer by layer, in any float.

The truth for the compiled one; in float64 it is held against finite differences and PyTorch. Its
parameters are those of the shard's rows, in order: all weights of all layers, then all biases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import NetworkShard
from sparsednn.errors import UsageError
from sparsednn.inputs import InputSet
from sparsednn.training.engine import Layer
from sparsednn.training.losses import derivative

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["ReferenceEngine"]


class ReferenceEngine:
    """See `training.engine.Engine`; parameters as for `compiled.CompiledEngine`."""

    def __init__(
        self,
        shard: NetworkShard,
        plans: Sequence[ExchangePlan],
        group: Communicator,
        across: Communicator,
        *,
        columns: int,
        input_gradient: bool,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self.group, self.across = group, across
        self.input_gradient = input_gradient
        self.last_activation = shard.layers[-1].activation
        self.n_rows = shard.layers[-1].bias.size
        self.tile = max(1, columns)
        self._shard, self._plans, self._dtype = shard, plans, dtype
        # Where column j of a layer lies among the owned inputs with the received ones behind them.
        self._place = [
            _places(owners, shard.part, plan)
            for owners, plan in zip(shard.owners, plans, strict=False)
        ]
        self._owned = [int(np.count_nonzero(owners == shard.part)) for owners in shard.owners]
        self._edges = sum(layer.nnz for layer in shard.layers)
        self.theta = self.flat([(layer.values, layer.bias) for layer in shard.layers])
        self.gradient = np.zeros_like(self.theta)
        self._inputs: list[NDArray[Any]] = []
        self._outputs: list[NDArray[Any]] = []
        self._deltas: dict[int, NDArray[Any]] = {}
        self._last_input_gradient: NDArray[Any] | None = None

    def layers_of(self, flat: NDArray[Any]) -> list[Layer]:
        """See `Engine.layers_of`."""
        layers = self._shard.layers
        weights = np.split(flat[: self._edges], np.cumsum([one.nnz for one in layers])[:-1])
        biases = np.split(flat[self._edges :], np.cumsum([one.bias.size for one in layers])[:-1])
        return [(w.copy(), b.copy()) for w, b in zip(weights, biases, strict=True)]

    def flat(self, layers: Sequence[Layer]) -> NDArray[Any]:
        """See `Engine.flat`."""
        parts = [values for values, _ in layers] + [bias for _, bias in layers]
        return np.concatenate(parts).astype(self._dtype)

    def _matrix(self, k: int, values: NDArray[Any]) -> Any:
        """Weights of layer k: own rows, columns as `_place` numbers them."""
        from scipy.sparse import csr_array

        layer, place = self._shard.layers[k], self._place[k]
        shape = (layer.bias.size, self._owned[k] + self._plans[k].words_received)
        return csr_array((values, place[layer.indices], layer.indptr), shape=shape)

    def forward(self, inputs: InputSet, ids: NDArray[Any]) -> NDArray[Any]:
        """See `Engine.forward`."""
        # A rank without inputs has no features, which NumPy's shapes know and SciPy's do not.
        x = np.zeros((self._owned[0], ids.size), self._dtype)
        for column, image in enumerate(ids):
            here = slice(int(inputs.indptr[image]), int(inputs.indptr[image + 1]))
            x[inputs.indices[here], column] = 1 if inputs.values is None else inputs.values[here]
        self._inputs, self._outputs = [], []
        for k, (values, bias) in enumerate(self.layers_of(self.theta)):
            received = self._exchange("exchange", k, self._plans[k], x[self._plans[k].send_rows])
            both = np.concatenate([x, received])
            z = np.asarray(self._matrix(k, values) @ both) + bias[:, None]
            activation = self._shard.layers[k].activation
            if activation.kind == "softmax":
                activation = Activation("identity")
            x = activation.apply(z)
            self._inputs.append(both)
            self._outputs.append(x)
        return x

    def backward(
        self,
        delta: NDArray[Any],
        *,
        add: bool = False,
        last: bool = True,
        rate: float | None = None,
        deltas_only: bool = False,
    ) -> None:
        """See `Engine.backward`; `deltas_only` leaves out the gradients of parameters."""
        layers = self.layers_of(self.theta)
        found: list[Layer] = []
        delta = np.asarray(delta, self._dtype)
        for k in reversed(range(len(layers))):
            layer, plan, both = self._shard.layers[k], self._plans[k], self._inputs[k]
            self._deltas[k] = delta
            rows = np.repeat(np.arange(layer.bias.size), np.diff(layer.indptr))
            columns = self._place[k][layer.indices]
            if not deltas_only:
                # The sampled product: a dot product over the batch for each stored weight.
                dots = np.einsum("eb,eb->e", delta[rows], both[columns])
                found.append((dots, delta.sum(axis=1)))
            if k == 0 and not self.input_gradient:
                break
            s = np.asarray(self._matrix(k, layers[k][0]).T @ delta)
            own, back = s[: self._owned[k]].copy(), plan.reversed
            incoming = self._exchange("fold", k, back, s[self._owned[k] :])
            np.add.at(own, back.receive_columns, incoming)
            if k == 0:
                self._last_input_gradient = own
                break
            delta = own * derivative(self._shard.layers[k - 1].activation, self._outputs[k - 1])
        if deltas_only:
            return
        step = self.flat(found[::-1])
        if rate is not None:
            self.theta -= self._dtype(rate) * step
            return
        self.gradient = self.gradient + step if add else step

    def finish_gradient(self) -> None:
        """See `Engine.finish_gradient`; here the sums are made at once."""
        self.across.allreduce(self.gradient, verb="gradient")

    def input_gradients(self) -> NDArray[Any]:
        """See `Engine.input_gradients`."""
        if self._last_input_gradient is None:
            raise UsageError("the backward pass did not go through the first layer")
        return self._last_input_gradient

    def activations_of(self, neuron_layer: int) -> NDArray[Any]:
        """See `Engine.activations_of`."""
        if neuron_layer == 0:
            return self._inputs[0][: self._owned[0]]
        return self._outputs[neuron_layer - 1]

    def deltas_of(self, layer: int) -> NDArray[Any]:
        """``(own rows, n)``: gradient with respect to z of layer `layer` (from 0), last images."""
        return self._deltas[layer]

    def _exchange(self, verb: str, k: int, plan: ExchangePlan, rows: NDArray[Any]) -> NDArray[Any]:
        """Send rows to where the plan wants them, and return what comes."""
        sent = np.ascontiguousarray(rows)
        received = np.empty((plan.words_received, sent.shape[1]), self._dtype)
        if self.group.size == 1 or not sent.shape[1]:
            return received
        with self.group.neighbour_exchange(
            _messages(sent, plan.send_ranks, plan.send_first),
            _messages(received, plan.receive_ranks, plan.receive_first),
            layer=k,
            verb=verb,
        ) as exchange:
            exchange.start()
            exchange.finish()
        return received

    def free(self) -> None:
        """Nothing is kept."""


def _places(owners: NDArray[np.int32], part: int, plan: ExchangePlan) -> NDArray[np.int64]:
    place = np.zeros(owners.size, np.int64)
    mine = owners == part
    count = int(np.count_nonzero(mine))
    place[mine] = np.arange(count)
    place[plan.receive_columns] = count + np.arange(plan.receive_columns.size)
    return place


def _messages(
    rows: NDArray[Any], ranks: NDArray[np.int64], first: NDArray[np.int64]
) -> dict[int, NDArray[Any]]:
    return {int(rank): rows[first[i] : first[i + 1]] for i, rank in enumerate(ranks)}
