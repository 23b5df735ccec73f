"""On ranks: a whole network is what it is on one rank, with every layer on a grid of its own."""

from __future__ import annotations

import numpy as np

from convolutions import block_of
from tiny_network import random_batch, random_placements, tiny_network

IMAGES = 5
ROUNDS = 5


def _step(model, x, labels, training=True):
    """Loss and gradient of a batch, as a trainer does it."""
    batch = model.batch(len(x))
    mine = np.ascontiguousarray(x[np.ix_(*batch.input.indices())]).astype(model.setting.dtype)
    logits = batch.forward(mine, training=training)
    score, gradient = batch.score(logits, labels[slice(*batch.labels)])
    if training:
        batch.backward(gradient / len(x))
    sums = np.array([score.loss, score.correct, score.images])
    model.world.allreduce(sums, verb="score")
    return sums


def _truth(world, graph, x, labels):
    """Numbers of the network on one rank, on all ranks."""
    from sparsednn.comm import Alone
    from sparsednn.dense.flow import products
    from sparsednn.dense.grids import Grid, make_placement
    from sparsednn.dense.local.reference import ReferenceBackend
    from sparsednn.dense.model import DenseModel

    placements = {name: make_placement(Grid(), "data") for name in products(graph)}
    model = DenseModel(Alone(), graph, placements, ReferenceBackend(), dtype=np.float64, seed=3)
    sums = _step(model, x, labels)
    store = model.parameters
    gradient = store.gathered(store.gradient)
    buffers = store.gathered(store.buffers, trained=False)
    evaluated = _step(model, x, labels, training=False)
    model.free()
    return sums, gradient, buffers, evaluated


def check_network_on_ranks(world):
    from sparsednn.dense.local.reference import ReferenceBackend
    from sparsednn.dense.model import DenseModel

    graph = tiny_network()
    x, labels = random_batch(graph, IMAGES, 1)
    sums, gradient, buffers, evaluated = _truth(world, graph, x, labels)
    source = np.random.default_rng(100 + world.size)
    for _ in range(ROUNDS):
        placements = random_placements(graph, IMAGES, world.size, source)
        context = f"{ {name: str(one) for name, one in placements.items()} }"
        model = DenseModel(world, graph, placements, ReferenceBackend(), dtype=np.float64, seed=3)
        model.batch(IMAGES)
        world.traffic.clear()
        found = _step(model, x, labels)
        counted = world.traffic.words() - world.traffic.words("score")
        promised = int(model.batch(IMAGES).flow.total_words()[world.rank])
        assert counted == promised, f"sent {counted}, by formula {promised}: {context}"
        np.testing.assert_allclose(found, sums, rtol=1e-11, err_msg=context)
        store = model.parameters
        for flat, trained, wanted in (
            (store.gradient, True, gradient), (store.buffers, False, buffers),
        ):  # fmt: skip
            whole = store.gathered(flat, trained=trained)
            if world.rank == 0:
                assert set(whole) == set(wanted)
                for name, array in whole.items():
                    np.testing.assert_allclose(
                        array, wanted[name], rtol=1e-9, atol=1e-12, err_msg=f"{name} {context}"
                    )
        _same_everywhere(world, store)
        world.traffic.clear()
        found = _step(model, x, labels, training=False)
        counted = world.traffic.words() - world.traffic.words("score")
        promised = int(model.batch(IMAGES).flow.total_words(training=False)[world.rank])
        assert counted == promised, f"evaluation sent {counted}, by formula {promised}: {context}"
        np.testing.assert_allclose(found, evaluated, rtol=1e-11, err_msg=context)
        model.free()


def check_arrays_on_a_device(world):
    """What is not in the host's memory: nothing is mixed, and results are the same bit by bit."""
    from foreign import ForeignBackend
    from sparsednn.dense.local.reference import ReferenceBackend
    from sparsednn.dense.model import DenseModel

    graph = tiny_network()
    x, labels = random_batch(graph, IMAGES, 1)
    placements = random_placements(graph, IMAGES, world.size, np.random.default_rng(world.size))
    found = []
    for local in (ReferenceBackend(), ForeignBackend()):
        model = DenseModel(world, graph, placements, local, dtype=np.float64, seed=3)
        sums = _step(model, x, labels)
        store = model.parameters
        found.append((sums, store.gathered(store.gradient), store.norm(store.gradient)))
        model.free()
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert found[0][2] == found[1][2]
    if world.rank == 0:
        for name, array in found[0][1].items():
            np.testing.assert_array_equal(array, found[1][1][name], err_msg=name)


def _same_everywhere(world, store):
    """Replicated tiles of the gradient are equal bit by bit: compare with what rank 0 gathered."""
    whole = store.gathered(store.gradient)
    for place in store._places[True]:
        name, shape = place.tile.parameter.name, place.tile.parameter.shape
        array = whole[name] if world.rank == 0 else np.empty(shape)
        world.broadcast(array)
        mine = store.gradient[place.first : place.last]
        assert np.array_equal(mine, block_of(array, place.tile.layout, world.rank).ravel()), name


def check_other_batches(world):
    """Another number of images is another plan; fewer images than ranks, too."""
    from sparsednn.dense.local.reference import ReferenceBackend
    from sparsednn.dense.model import DenseModel

    graph = tiny_network()
    source = np.random.default_rng(world.size)
    placements = random_placements(graph, 8, world.size, source)
    model = DenseModel(world, graph, placements, ReferenceBackend(), dtype=np.float64, seed=3)
    for images in (8, 1, 3, 8, 2, 7, 4):
        x, labels = random_batch(graph, images, images)
        sums, gradient, _, _ = _truth(world, graph, x, labels)
        np.testing.assert_allclose(_step(model, x, labels), sums, rtol=1e-11)
        whole = model.parameters.gathered(model.parameters.gradient)
        if world.rank == 0:
            for name, array in whole.items():
                np.testing.assert_allclose(
                    array, gradient[name], rtol=1e-9, atol=1e-12, err_msg=name
                )
    model.free()
