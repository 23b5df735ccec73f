"""Checks of the engines on the ranks: gradients, words, and steps, against one rank's."""

from __future__ import annotations

import numpy as np

from learning import (
    IMAGES,
    Ranks,
    close,
    gradients,
    grids,
    make_task,
    own_examples,
    serial_engine,
    tasks,
    trained,
)
from sparsednn.comm.alone import Alone
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import whole_shard
from sparsednn.partitioners import evaluate
from sparsednn.training.compiled import CompiledEngine
from sparsednn.training.optimizers import SGD, Adam


def check_gradients_are_those_of_one_rank(world):
    """Both engines, in float64 to rounding and in float32; words of expand and fold."""
    ids = np.random.default_rng(1).permutation(IMAGES)
    for seed, loss, (network, inputs, labels, values) in tasks(world):
        truth = serial_engine(network, IMAGES, dtype=np.float64)
        whole = own_examples(whole_shard(network), inputs, labels, values)
        score, expected = gradients(truth, whole_shard(network), whole, ids, IMAGES, loss, Alone())
        for shape in grids(world):
            ranks = Ranks(world, shape, network, seed)
            examples = own_examples(ranks.shard, inputs, labels, values)
            own = ranks.own(ids)
            threads = 1 + seed % 2
            engines = [
                (ranks.engine("reference", dtype=np.float64), 1e-9, True),
                (ranks.engine("compiled", threads=threads), 2e-4, True),
                (ranks.engine("compiled", columns=5, input_gradient=False), 2e-4, False),
            ]
            for engine, relative, down in engines:
                before = words(world)
                total, found = gradients(
                    engine, ranks.shard, examples, own, IMAGES, loss, ranks.group
                )
                close(found, expected, network, ranks.shard, relative=relative)
                losses = np.array([total.loss])
                ranks.across.allreduce(losses)
                assert np.isclose(losses[0], score.loss, rtol=1e-4)
                if down and own.size and engine.tile >= own.size:
                    close_inputs(engine, truth, ids, own, ranks, relative)
                sent = words(world) - before
                world.allreduce(sent)
                stats = evaluate(network, ranks.partition)
                forward = stats.words_total * IMAGES
                skipped = 0 if down else stats.layers[0].words * IMAGES
                assert tuple(sent) == (forward, forward - skipped), (shape, network)
                engine.free()
            ranks.free()


def words(world):
    return np.array([world.traffic.words("exchange"), world.traffic.words("fold")], np.int64)


def close_inputs(engine, truth, ids, own, ranks, relative):
    """The gradient with respect to this rank's inputs, for its images."""
    rows = np.flatnonzero(ranks.shard.owners[0] == ranks.group.rank)
    columns = [int(np.flatnonzero(ids == image)[0]) for image in own]
    expected = truth.input_gradients()[rows][:, columns]
    size = float(np.abs(truth.input_gradients()).max(initial=0.0))
    np.testing.assert_allclose(
        engine.input_gradients(), expected, rtol=relative, atol=relative * size + 1e-30
    )


def check_parameters_go_in_and_out(world):
    for seed in range(4):
        network, *_ = make_task(seed, 1)
        ranks = Ranks(world, (1, world.size), network, seed)
        for kind in ("compiled", "reference"):
            engine = ranks.engine(kind, threads=1 + seed % 2)
            for layer, (values, bias) in zip(
                ranks.shard.layers, engine.layers_of(engine.theta), strict=True
            ):
                assert np.array_equal(layer.values, values)
                assert np.array_equal(layer.bias, bias)
            noise = np.random.default_rng(seed).random(engine.theta.size).astype(np.float32)
            there = engine.flat(engine.layers_of(noise))
            again = engine.flat(engine.layers_of(there))
            assert np.array_equal(there, again)
            assert (there != 0).sum() >= sum(layer.nnz for layer in ranks.shard.layers)
            engine.free()
        ranks.free()


OPTIMIZERS = [
    {"optimizer": SGD()},
    {"optimizer": SGD(momentum=0.9, nesterov=True, weight_decay=1e-3), "clip": 0.5},
    {"optimizer": Adam(weight_decay=1e-3)},
]


def check_fifty_steps_follow_one_rank(world):
    """The tolerance over 50 steps: 1 part in 1000 of the largest parameter of the layer, float32.

    Rounding of sums in another order is 1e-7 of them; what an unlucky kink of a relu or Adam's
    division by a small number makes of it in 50 steps stays below this.
    """
    steps = 50
    for seed, given in enumerate(OPTIMIZERS):
        network, inputs, labels, values = make_task(
            seed + 40, 60, last="softmax" if seed else "identity", most=40
        )
        rng = np.random.default_rng(seed)
        batches = [rng.permutation(60)[: rng.integers(1, 33)] for _ in range(steps)]
        shard = whole_shard(network)
        alone = Alone()
        single = CompiledEngine(
            shard, plans_of_all([shard])[0], alone, alone, threads=1, columns=32,
            input_gradient=False,
        )  # fmt: skip
        truth, expected = trained(
            single, alone, alone, shard, own_examples(shard, inputs, labels, values),
            lambda ids: ids, batches, "cross-entropy", **given,
        )  # fmt: skip
        single.free()
        for shape in grids(world):
            ranks = Ranks(world, shape, network, seed)
            engine = ranks.engine("compiled", columns=32)
            examples = own_examples(ranks.shard, inputs, labels, values)
            before = words(world)
            losses, found = trained(
                engine, ranks.group, ranks.across, ranks.shard, examples, ranks.own, batches,
                "cross-entropy", **given,
            )  # fmt: skip
            np.testing.assert_allclose(losses, truth, rtol=1e-3, err_msg=str(shape))
            close(found, expected, network, ranks.shard, relative=1e-3)
            sent = words(world) - before
            world.allreduce(sent)
            forward = evaluate(network, ranks.partition).words_total
            images = sum(batch.size for batch in batches)
            assert sent.sum() == 2 * forward * images
            engine.free()
            ranks.free()


def check_a_group_without_images(world):
    """A batch of one image leaves all data groups but one with nothing to do."""
    network, inputs, labels, values = make_task(3, 5)
    ranks = Ranks(world, (world.size, 1), network, 3)
    truth = serial_engine(network, 1, dtype=np.float64)
    whole = own_examples(whole_shard(network), inputs, labels, values)
    _, expected = gradients(
        truth, whole_shard(network), whole, np.array([2]), 1, "cross-entropy", Alone()
    )
    for kind in ("compiled", "reference"):
        engine = ranks.engine(kind)
        own = ranks.own(np.array([2]))
        _, found = gradients(engine, ranks.shard, whole, own, 1, "cross-entropy", ranks.group)
        close(found, expected, network, ranks.shard, relative=2e-4)
        engine.free()
    ranks.free()
