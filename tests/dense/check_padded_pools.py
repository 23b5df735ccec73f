"""On ranks: average pools with padding, counted or not, are what they are on one rank."""

from __future__ import annotations

import numpy as np

from tiny_network import random_batch, random_placements

IMAGES = 4
ROUNDS = 3


def pooled_network(include: bool):
    """An Inception module's pool, another with strides, and products around them."""
    from sparsednn.dense.graph import OperationGraph
    from sparsednn.dense.operations import (
        AveragePool,
        Concatenate,
        Convolution,
        FullyConnected,
        Input,
        Relu,
    )

    graph = OperationGraph("pooled")
    x = graph.add(Input("image", (2, 9, 7)))
    trunk = graph.add(Relu("relu"), graph.add(Convolution("conv", 4, (3, 3)), x))
    near = AveragePool("near", (3, 3), padding=(1, 1), count_include_pad=include)
    pooled = graph.add(Convolution("branch", 3, (1, 1)), graph.add(near, trunk))
    both = graph.add(Concatenate("both"), trunk, pooled)
    far = AveragePool("far", (3, 2), (2, 2), (1, 1), count_include_pad=include)
    graph.add(FullyConnected("fc", 5), graph.add(far, both))
    return graph.finish()


def _step(world, graph, placements, x, labels):
    """Logits' loss and all gradients, on rank 0."""
    from sparsednn.dense.local.choose import make_backend
    from sparsednn.dense.model import DenseModel

    model = DenseModel(world, graph, placements, make_backend("im2col"), dtype=np.float64, seed=3)
    batch = model.batch(len(x))
    world.traffic.clear()
    mine = np.ascontiguousarray(x[np.ix_(*batch.input.indices())])
    logits = batch.forward(mine, training=True)
    score, gradient = batch.score(logits, labels[slice(*batch.labels)])
    batch.backward(gradient / len(x))
    counted = world.traffic.words()
    assert counted == int(batch.flow.total_words()[world.rank]), "words sent, by formula"
    loss = np.array([score.loss])
    world.allreduce(loss, verb="score")
    gathered = model.parameters.gathered(model.parameters.gradient)
    model.free()
    return loss[0], gathered


def check_padded_average_pools(world):
    from sparsednn.comm import Alone
    from sparsednn.dense.flow import products
    from sparsednn.dense.grids import Grid, make_placement

    for include in (True, False):
        graph = pooled_network(include)
        x, labels = random_batch(graph, IMAGES, 1)
        alone = {name: make_placement(Grid(), "data") for name in products(graph)}
        loss, wanted = _step(Alone(), graph, alone, x, labels)
        source = np.random.default_rng(7 + world.size)
        for _ in range(ROUNDS):
            placements = random_placements(graph, IMAGES, world.size, source)
            found, gradients = _step(world, graph, placements, x, labels)
            np.testing.assert_allclose(found, loss, rtol=1e-11)
            for name, array in (gradients or {}).items():
                np.testing.assert_allclose(array, wanted[name], rtol=1e-9, atol=1e-12, err_msg=name)
