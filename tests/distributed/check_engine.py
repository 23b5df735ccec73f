"""Checks of the row-wise engine on the ranks: outputs, words, messages, against serial truths."""

from __future__ import annotations

import numpy as np

from networks import ACTIVATIONS
from row_wise import by_hand, dying_network, local, make_inputs, make_network, tolerance
from sparsednn.distributed.compiled import CompiledPlan, PackedShard
from sparsednn.distributed.gathering import finish_softmax
from sparsednn.distributed.plan import exchange_plans, plans_of_all
from sparsednn.distributed.reference import ReferencePlan
from sparsednn.distributed.shard import shard_network
from sparsednn.kernels.reference import ReferencePlan as SerialReference
from sparsednn.partitioners import Options, evaluate, make_partition

METHODS = [
    ("multiphase", "block"),
    ("multiphase", "cyclic"),
    ("multiphase", "random"),
    ("multiphase", "kahypar"),
    ("multiphase", "mtkahypar"),
    ("joint", None),
]


def compare(world, network, partition, inputs, *, kinds=("compiled", "reference"), **given):
    """Run on all ranks; outputs equal the serial reference's; words are those of the partition."""
    truth = np.zeros((network.n_out, inputs.n_images), np.float32)
    SerialReference(network).run(inputs, truth)
    stats = evaluate(network, partition)
    shard = shard_network(network, partition, world.rank)
    plans = exchange_plans(shard, world)
    mine = local(inputs, partition.owners[0], world.rank)
    rows = np.flatnonzero(partition.owners[-1] == world.rank)
    for kind in kinds:
        for drop in (False, True):
            if kind == "compiled":
                plan = CompiledPlan(PackedShard.of(shard, plans), plans, world, drop=drop, **given)
            else:
                plan = ReferencePlan(shard, plans, world, drop=drop)
                plan.chunk = given["columns"]
            for _ in range(2):  # buffers and pools are used again
                outputs = np.zeros((rows.size, inputs.n_images), np.float32)
                before = world.traffic.words("exchange"), world.traffic.messages("exchange")
                flags = plan.run(mine, outputs).astype(np.uint8)
                sent = np.array(
                    [
                        world.traffic.words("exchange") - before[0],
                        world.traffic.messages("exchange") - before[1],
                    ]
                )
                if shard.layers[-1].activation.kind == "softmax":
                    finish_softmax(outputs, world)
                    flags[:] = 1
                where = f"{kind}, drop={drop}, {partition}, {network}"
                np.testing.assert_allclose(
                    outputs, truth[rows], rtol=1e-4, atol=tolerance(network), err_msg=where
                )
                world.allreduce(flags, "or")
                assert np.array_equal(flags != 0, truth.any(axis=0)), where
                world.allreduce(sent)
                predicted = (
                    stats.words_total * inputs.n_images,
                    stats.messages_total * plan.tiles(inputs.n_images),
                )
                if drop:
                    assert sent[0] <= predicted[0], where
                else:
                    assert tuple(sent) == predicted, where
            plan.free()


def check_plans_are_those_of_the_serial_construction(world):
    for seed in range(6):
        network = make_network(seed)
        partition = by_hand(network, world.size, seed)
        shards = [shard_network(network, partition, part) for part in range(world.size)]
        expected = plans_of_all(shards)[world.rank]
        for found, plan in zip(exchange_plans(shards[world.rank], world), expected, strict=True):
            for name in plan.__slots__:
                assert np.array_equal(getattr(found, name), getattr(plan, name)), name


def check_outputs_of_every_partitioner(world):
    network = make_network(100, most=60, bias="mixed")
    inputs = make_inputs(network, 37, 1)
    for method, partitioner in METHODS:
        options = Options(world.size, effort="quick")
        partition = make_partition(network, options, method=method, partitioner=partitioner)
        compare(world, network, partition, inputs, threads=1, columns=37)


def check_random_networks_and_parts_without_rows(world):
    for seed in range(12 if world.size < 4 else 5):
        network = make_network(seed, last=(*ACTIVATIONS, "softmax"))
        partition = by_hand(network, world.size, seed)
        inputs = make_inputs(network, int(np.random.default_rng(seed).integers(1, 60)), seed)
        columns = int(np.random.default_rng(seed).integers(1, 50))
        compare(world, network, partition, inputs, threads=1, columns=columns)


def check_streams(world):
    """Two and three threads on each rank, each with tiles of its own."""
    network = dying_network(5)
    partition = by_hand(network, world.size, 5)
    inputs = make_inputs(network, 101, 5)
    for threads in (2, 3) if world.size < 4 else (2,):
        compare(world, network, partition, inputs, kinds=("compiled",), threads=threads, columns=40)


def check_columns_that_die(world):
    # Every exchange costs a turn of the scheduler where ranks share cores: few of them with many.
    for seed in range(4 if world.size < 3 else 2):
        network = dying_network(seed)
        partition = by_hand(network, world.size, seed)
        for images, columns in ((150, 150), (150, 16), (12, 1)):
            inputs = make_inputs(network, images, seed)
            compare(world, network, partition, inputs, threads=1, columns=columns)


def check_waiting_first_changes_nothing(world):
    network = make_network(9)
    partition = by_hand(network, world.size, 9)
    inputs = make_inputs(network, 30, 9)
    compare(
        world, network, partition, inputs, kinds=("compiled",), threads=1, columns=30,
        overlap=False,
    )  # fmt: skip


def check_no_images(world):
    network = make_network(11)
    partition = by_hand(network, world.size, 11)
    compare(world, network, partition, make_inputs(network, 0, 1), threads=1, columns=5)


def check_fold_is_the_transposed_expand(world):
    """⟨E x, y⟩ = ⟨x, Eᵀ y⟩: what the backward pass of training will rest on."""
    network = make_network(13)
    partition = by_hand(network, world.size, 13)
    shard = shard_network(network, partition, world.rank)
    for k, plan in enumerate(exchange_plans(shard, world)):
        rng = np.random.default_rng([k, world.rank])
        owned = int(np.count_nonzero(partition.owners[k] == world.rank))
        x, y = rng.standard_normal(owned), rng.standard_normal(plan.words_received)
        expanded = move(world, plan, x)
        folded = np.zeros(owned)
        back = plan.reversed
        np.add.at(folded, back.receive_columns, move(world, back, y))
        sides = np.array([expanded @ y, x @ folded])
        world.allreduce(sides)
        assert np.isclose(sides[0], sides[1])
        assert back.words_sent == plan.words_received
        assert back.messages_sent == plan.receive_ranks.size


def move(world, plan, x):
    sent, received = x[plan.send_rows], np.empty(plan.words_received)
    pieces = np.split(sent, plan.send_first[1:-1])
    targets = np.split(received, plan.receive_first[1:-1])
    with world.neighbour_exchange(
        dict(zip(plan.send_ranks.tolist(), pieces, strict=False)),
        dict(zip(plan.receive_ranks.tolist(), targets, strict=False)),
    ) as exchange:
        exchange.start()
        exchange.finish()
    return received
