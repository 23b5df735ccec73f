"""`SparseWork` against what packing and the plans really make of the same network."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import networks, random_layer
from row_wise import by_hand, make_network
from sparsednn import SparseNetwork
from sparsednn.costmodel.sparse.memory import packed_bytes
from sparsednn.costmodel.sparse.work import HEIGHTS, Messages, SparseWork
from sparsednn.distributed.compiled import PackedShard
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import shard_network
from sparsednn.errors import UsageError
from sparsednn.kernels.packing import PackedNetwork, pack
from sparsednn.partitioners.metrics import evaluate
from sparsednn.training.packed import PackedParameters


def counted(packed: PackedNetwork, parts: int):
    """Blocks by height, their pattern lengths, groups, their lengths: each ``(layers, parts)``."""
    layers = (packed.layer_group.size - 1) // parts
    shape = (layers, parts)
    blocks, lengths = (np.zeros((*shape, len(HEIGHTS)), np.int64) for _ in range(2))
    groups, patterns = (np.zeros(shape, np.int64) for _ in range(2))
    for part in range(layers * parts):
        place = divmod(part, parts)
        for group in range(packed.layer_group[part], packed.layer_group[part + 1]):
            length = packed.group_pattern[group + 1] - packed.group_pattern[group]
            groups[place] += 1
            patterns[place] += length
            for block in range(packed.group_block[group], packed.group_block[group + 1]):
                rows = packed.block_row[block + 1] - packed.block_row[block]
                blocks[(*place, HEIGHTS.index(rows))] += 1
                lengths[(*place, HEIGHTS.index(rows))] += length
    return blocks, lengths, groups, patterns


def shards_and_plans(network, partition):
    shards = [shard_network(network, partition, part) for part in range(partition.parts)]
    return shards, plans_of_all(shards)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 5))
def test_equals_the_real_packing_and_plans(seed: int, parts: int) -> None:
    network = make_network(seed)
    partition = by_hand(network, parts, seed)
    work = SparseWork.of(network, partition, training=True)
    shards, plans = shards_and_plans(network, partition)
    for rank, (shard, own) in enumerate(zip(shards, plans, strict=True)):
        rows = PackedShard.of(shard, own)
        found = (work.blocks, work.lengths, work.groups, work.patterns)
        for ours, real in zip(found, counted(rows.packed, 3), strict=True):
            np.testing.assert_array_equal(ours[:, rank], real)
        if parts > 1:  # a rank alone runs the ordinary kernel, which packs a layer as one part
            assert packed_bytes(work)[rank] == rows.packed.nbytes
        np.testing.assert_array_equal(work.neurons[:, rank], rows.width)
        for threads in (1, 2):
            back = PackedParameters(shard, own, threads).back
            real = counted(back, 2 * threads)
            ours = (work.back_blocks, work.back_lengths)
            for one, other in zip(ours, real[:2], strict=True):
                cut = other.reshape(one.shape[0], 2, threads, -1).sum(axis=2)
                np.testing.assert_array_equal(one[:, rank], cut)
        for k, plan in enumerate(own):
            messages = work.sends[k]
            mine = messages.source == rank
            np.testing.assert_array_equal(messages.target[mine], plan.send_ranks)
            np.testing.assert_array_equal(messages.words[mine], np.diff(plan.send_first))
            assert work.words_sent[k, rank] == plan.words_sent
            assert work.words_received[k, rank] == plan.words_received
            assert work.messages_sent[k, rank] == plan.messages_sent
            assert work.messages_received[k, rank] == plan.receive_ranks.size
    assert work.edges.sum() == network.edges


@settings(max_examples=30, deadline=None)
@given(network=networks())
def test_a_network_alone_is_packed_as_by_the_ordinary_kernel(network: SparseNetwork) -> None:
    work = SparseWork.whole(network, training=True)
    packed = pack(network)
    real = counted(packed, 1)
    assert packed_bytes(work).tolist() == [packed.nbytes]
    found = (work.blocks, work.lengths, work.groups, work.patterns)
    for ours, theirs in zip(found, real, strict=True):
        np.testing.assert_array_equal(ours[:, 0, :1], theirs)
        assert not ours[:, 0, 1:].any()
    assert not work.words_sent.any()
    assert not work.back_blocks[:, 0, 0].any()
    assert work.trained


def test_words_and_messages_are_those_of_the_definition() -> None:
    network = make_network(3, most=60)
    partition = by_hand(network, 7, 5)
    work = SparseWork.of(network, partition)
    stats = evaluate(network, partition)
    assert work.words_sent.sum(axis=1).tolist() == stats.words_per_layer
    assert work.messages_sent.sum() == stats.messages_total
    assert not work.trained


def test_reversed_messages_are_the_transpose() -> None:
    network = make_network(4, most=60)
    work = SparseWork.of(network, by_hand(network, 6, 4))
    for one in work.sends:
        sums, back = one.sums(6), one.reversed.sums(6)
        np.testing.assert_array_equal(sums[[1, 0, 3, 2]], back)
        assert np.all(np.diff(one.reversed.source) >= 0)


def test_messages_keep_their_order_within_a_source() -> None:
    messages = Messages.of([1, 0, 1, 0], [3, 2, 0, 1], [10, 20, 30, 40])
    assert messages.source.tolist() == [0, 0, 1, 1]
    assert messages.target.tolist() == [2, 1, 3, 0]
    assert messages.words.tolist() == [20, 40, 10, 30]


def test_repeated_layers_are_the_same_work_over_and_over() -> None:
    rng = np.random.default_rng(1)
    network = SparseNetwork([random_layer(rng, 24, 24) for _ in range(3)])
    owners = [np.arange(24) % 4] * 4
    work = SparseWork.of(network, owners, 4, training=True)
    long = SparseWork.of(
        SparseNetwork([network[k % 3] for k in range(8)]), [owners[0]] * 9, 4, training=True
    )
    made = work.repeated(8)
    for name in ("blocks", "lengths", "back_blocks", "back_lengths", "groups", "neurons", "widths"):
        np.testing.assert_array_equal(getattr(made, name), getattr(long, name))
    np.testing.assert_array_equal(made.words_sent, long.words_sent)
    assert made.sends[0] is made.sends[3]
    assert work.repeated(2).layers == 2
    with pytest.raises(UsageError, match="at least 1"):
        work.repeated(0)


def test_layers_that_do_not_follow_themselves_are_not_repeated() -> None:
    rng = np.random.default_rng(1)
    network = SparseNetwork([random_layer(rng, 5, 9)])
    with pytest.raises(UsageError, match="cannot be repeated"):
        SparseWork.whole(network).repeated(2)


@pytest.mark.parametrize(
    ("owners", "ranks", "message"),
    [
        ([np.zeros(9, int)], 1, "owners are given for layers of"),
        ([np.zeros(9, int), np.full(5, 3)], 3, "rank 3 is not in 0 to 2"),
        ([np.zeros(9, int), np.full(5, -1)], 3, "rank -1 is not in 0 to 2"),
        ([np.zeros(9, int), np.zeros(5)], 3, "whole numbers"),
        ([np.zeros(9, int), np.zeros(5, int)], 0, "ranks must be at least 1"),
        ([np.zeros(9, int), np.zeros(5, int)], None, "ranks must be at least 1"),
    ],
)
def test_owners_that_do_not_fit_are_refused(owners, ranks, message) -> None:
    network = SparseNetwork([random_layer(np.random.default_rng(1), 5, 9)])
    with pytest.raises(UsageError, match=message):
        SparseWork.of(network, owners, ranks)
