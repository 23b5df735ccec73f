"""What the checks of training share: networks that behave, engines on one rank, a PyTorch twin."""

from __future__ import annotations

import numpy as np

from networks import ACTIVATIONS
from row_wise import by_hand, local, make_inputs, make_network
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.comm.alone import Alone
from sparsednn.comm.grid import ProcessGrid
from sparsednn.distributed.plan import exchange_plans, plans_of_all
from sparsednn.distributed.shard import shard_network, whole_shard
from sparsednn.training.compiled import CompiledEngine
from sparsednn.training.data import LocalExamples
from sparsednn.training.losses import Targets, loss_gradient
from sparsednn.training.reference import ReferenceEngine
from sparsednn.training.stepper import Stepper


def scaled(network, factor=1.0):
    """The same pattern with weights so small that sums keep the size of their terms."""
    layers = []
    for layer in network:
        fan_in = max(1.0, layer.nnz / layer.n_out)
        layers.append(
            SparseLayer(
                layer.indptr,
                layer.indices,
                layer.values * np.float32(factor / np.sqrt(fan_in)),
                layer.n_in,
                bias=layer.bias,
                activation=layer.activation,
            )
        )
    return SparseNetwork(layers, name=network.name)


def with_last(network, activation):
    """The same network with another last activation."""
    last = network[-1]
    changed = SparseLayer(
        last.indptr, last.indices, last.values, last.n_in, bias=last.bias, activation=activation
    )
    return SparseNetwork([*network.layers[:-1], changed], name=network.name)


def make_task(seed, images, *, last=None, dense=False, **given):
    """A network, inputs, and labels or dense targets for it."""
    network = scaled(make_network(seed, **given))
    if last is not None:
        network = with_last(network, last)
    rng = np.random.default_rng([seed, 7])
    inputs = make_inputs(network, images, seed)
    labels = None if dense else rng.integers(0, network.n_out, images)
    values = rng.random((network.n_out, images)).astype(np.float32) if dense else None
    return network, inputs, labels, values


def own_examples(shard, inputs, labels, values):
    """A rank's share of a task."""
    rows = np.flatnonzero(shard.owners[-1] == shard.part)
    return LocalExamples(
        local(inputs, shard.owners[0], shard.part),
        labels,
        None if values is None else np.ascontiguousarray(values[rows]),
        "task",
    )


def serial_engine(network, images, **given):
    """The readable engine with everything on one rank."""
    shard = whole_shard(network)
    return ReferenceEngine(
        shard, plans_of_all([shard])[0], Alone(), Alone(), columns=images, input_gradient=True,
        **given,
    )  # fmt: skip


def gradients(engine, shard, examples, ids, batch, loss, group):
    """Score and gradients by layer of some images, in tiles as the engine wants them."""
    last = shard.layers[-1]
    total = None
    pieces = [ids[at : at + engine.tile] for at in range(0, ids.size, engine.tile)] or [ids]
    for number, piece in enumerate(pieces):
        y = engine.forward(examples.inputs, piece)
        targets = Targets(
            None if examples.labels is None else examples.labels[piece],
            None if examples.values is None else examples.values[:, piece].astype(y.dtype),
        )
        score, delta = loss_gradient(
            loss, last.activation, y, targets, last.rows, last.n_out, batch, group
        )
        total = score if total is None else total + score
        engine.backward(delta, add=number > 0, last=number == len(pieces) - 1)
    engine.finish_gradient()
    return total, engine.layers_of(engine.gradient)


def rows_of(layer, rows):
    """Entries of a layer's CSR arrays that belong to some rows."""
    return np.concatenate(
        [np.arange(layer.indptr[row], layer.indptr[row + 1]) for row in rows]
        or [np.empty(0, np.int64)]
    )


def close(found, expected, network, shard, *, relative):
    """A rank's gradients are those of its rows of the whole network's."""
    for k, ((values, bias), (all_values, all_bias)) in enumerate(zip(found, expected, strict=True)):
        rows = shard.layers[k].rows
        size = max(
            float(np.abs(all_values).max(initial=0.0)), float(np.abs(all_bias).max(initial=0.0))
        )
        given = {"rtol": relative, "atol": relative * size + 1e-30}
        np.testing.assert_allclose(
            values, all_values[rows_of(network[k], rows)], err_msg=f"layer {k}", **given
        )
        np.testing.assert_allclose(bias, all_bias[rows], err_msg=f"bias {k}", **given)


LOSSES = ("cross-entropy", "mse")
IMAGES = 23


def grids(world):
    return [(world.size // m, m) for m in range(1, world.size + 1) if world.size % m == 0]


class Ranks:
    """A network on a grid of the ranks."""

    def __init__(self, world, shape, network, seed):
        self.grid = ProcessGrid(world, shape)
        self.group, self.across = self.grid.along(1), self.grid.along(0)
        self.partition = by_hand(network, shape[1], seed)
        self.shard = shard_network(network, self.partition, self.group.rank)
        self.plans = exchange_plans(self.shard, self.group)

    def engine(self, kind, *, threads=1, columns=IMAGES, input_gradient=True, **given):
        given |= {"columns": columns, "input_gradient": input_gradient}
        if kind == "compiled":
            return CompiledEngine(
                self.shard, self.plans, self.group, self.across, threads=threads, **given
            )
        return ReferenceEngine(self.shard, self.plans, self.group, self.across, **given)

    def own(self, ids):
        """This data group's images of a batch."""
        groups, group = self.grid.shape[0], self.grid.coordinates[0]
        return ids[ids.size * group // groups : ids.size * (group + 1) // groups]

    def free(self):
        self.grid.free()


def tasks(world):
    """Networks of all activations, every loss, labels and dense targets."""
    lasts = (*ACTIVATIONS, "softmax")
    count = 6
    for seed in range(count):
        dense = seed % 3 == 0
        loss = LOSSES[seed % 2]
        if dense and loss == "cross-entropy":
            dense = False
        yield seed, loss, make_task(seed, IMAGES, last=lasts[seed % len(lasts)], dense=dense)


def trained(engine, group, across, shard, examples, own, batches, loss, **given):
    """Losses of each step, and the layers behind them."""
    last = shard.layers[-1]
    stepper = Stepper(engine, group, across, rows=last.rows, n_out=last.n_out, loss=loss, **given)
    losses = []
    for step, ids in enumerate(batches, 1):
        score = stepper.train(examples, own(ids), ids.size, rate=0.05, step=step)
        losses.append(score.loss / score.images)
    return losses, engine.layers_of(engine.theta)


class TorchTwin:
    """The masked dense network in PyTorch, float64: autograd and torch.optim know nothing of us."""

    def __init__(self, torch, network, inputs, labels, values, loss):
        self._torch, self._network, self._loss = torch, network, loss
        self.x = torch.tensor(inputs.to_dense().T.astype(np.float64))
        self._target = torch.tensor(labels if values is None else values.T.astype(np.float64))
        self._one_hot = values is None
        self.masks, self.weights, self.biases = [], [], []
        for layer in network:
            self.masks.append(torch.tensor(_ones(layer).toarray() != 0))
            self.weights.append(self._leaf(layer.weight.toarray()))
            self.biases.append(self._leaf(layer.bias))

    def _leaf(self, array):
        return self._torch.tensor(np.asarray(array, np.float64), requires_grad=True)

    def loss(self, ids):
        torch = self._torch
        y = self.x[ids]
        for layer, mask, weight, bias in zip(
            self._network, self.masks, self.weights, self.biases, strict=True
        ):
            z = y @ (weight * mask).T + bias
            kind = layer.activation.kind
            y = {
                "identity": lambda z: z,
                "relu": torch.relu,
                "clamped_relu": lambda z, top=layer.activation.limit: torch.nn.functional.hardtanh(
                    z, 0.0, top
                ),
                "sigmoid": torch.sigmoid,
                "tanh": torch.tanh,
                "softmax": lambda z: torch.softmax(z, dim=1),
            }[kind](z)
        target = self._target[ids]
        if self._loss == "mse":
            if self._one_hot:
                target = torch.nn.functional.one_hot(target, self._network.n_out).to(y.dtype)
            return torch.nn.functional.mse_loss(y, target)
        logits = z if self._network[-1].activation.kind == "softmax" else y
        return torch.nn.functional.cross_entropy(logits, target)

    def gradients(self, ids):
        """Loss, and gradients at the stored weights in CSR order, and of the biases."""
        for parameter in (*self.weights, *self.biases):
            parameter.grad = None
        loss = self.loss(ids)
        loss.backward()
        return float(loss.detach()), self.at_entries([weight.grad for weight in self.weights], [
            bias.grad for bias in self.biases
        ])  # fmt: skip

    def at_entries(self, matrices, vectors):
        found = []
        for layer, matrix, vector in zip(self._network, matrices, vectors, strict=True):
            rows = np.repeat(np.arange(layer.n_out), np.diff(layer.indptr))
            # A layer that a loss does not depend on (behind no weights) has no gradient at all.
            dense = np.zeros(layer.shape) if matrix is None else matrix.detach().numpy()
            bias = np.zeros(layer.n_out) if vector is None else vector.detach().numpy()
            found.append((dense[rows, layer.indices], bias.copy()))
        return found


def _ones(layer):
    matrix = layer.weight.copy()
    matrix.data = np.ones_like(matrix.data)
    return matrix
