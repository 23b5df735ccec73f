"""Words and messages against a count in plain Python, straight from the definition."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from networks import networks
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import InputError
from sparsednn.partitioners.metrics import evaluate, layer_stats, needs
from sparsednn.partitioners.partition import Partition, PartitionMeta

Words = list[tuple[int, int, int]]


def partition(network: SparseNetwork, owners: Any, parts: int) -> Partition:
    meta = PartitionMeta("test", "none", None, None, 1, 1, 0.0, network.name, network.hash)
    return Partition(owners, parts, meta)


def random_owners(network: SparseNetwork, parts: int, seed: int) -> list[NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    sizes = [network.n_in, *(layer.n_out for layer in network)]
    return [rng.integers(0, parts, size) for size in sizes]


def expand(layer: SparseLayer, before: Any, after: Any, parts: int) -> Words:
    """Forward: (sender, receiver, j) for each part that has a nonzero in a column of another."""
    sent = []
    columns = [
        set(layer.indices[layer.indptr[i] : layer.indptr[i + 1]].tolist())
        for i in range(layer.n_out)
    ]
    for j in range(layer.n_in):
        for m in range(parts):
            mine = [i for i in range(layer.n_out) if after[i] == m]
            if m != before[j] and any(j in columns[i] for i in mine):
                sent.append((int(before[j]), m, j))
    return sent


def fold(layer: SparseLayer, before: Any, after: Any) -> Words:
    """Backward: (sender, receiver, j) for each partial sum of Wᵀδ that is at home elsewhere."""
    partial = set()
    for i in range(layer.n_out):
        for j in layer.indices[layer.indptr[i] : layer.indptr[i + 1]].tolist():
            partial.add((int(after[i]), j))
    return [(m, int(before[j]), j) for m, j in partial if before[j] != m]


@settings(max_examples=80, deadline=None)
@given(networks(), st.sampled_from([1, 2, 3, 7, 50]), st.integers(0, 2**32 - 1))
def test_counts_equal_the_definition(network: SparseNetwork, parts: int, seed: int) -> None:
    owners = random_owners(network, parts, seed)
    stats = evaluate(network, partition(network, owners, parts))
    traffic: Counter[tuple[int, int]] = Counter()
    partners: Counter[int] = Counter()
    backward = 0
    for k, layer in enumerate(network):
        words = expand(layer, owners[k], owners[k + 1], parts)
        found = stats.layers[k]
        assert found.words == len(words) == stats.words_per_layer[k]
        messages = {(a, b) for a, b, _ in words}
        assert found.messages == len(messages)
        assert found.max_messages == max(Counter(a for a, _ in messages).values(), default=0)
        assert found.max_words_sent == max(Counter(a for a, _, _ in words).values(), default=0)
        assert found.max_words_received == max(Counter(b for _, b, _ in words).values(), default=0)
        work = [0] * parts
        for i, size in enumerate(np.diff(layer.indptr).tolist()):
            work[owners[k + 1][i]] += size
        assert found.imbalance == (max(work) * parts / sum(work) if sum(work) else 1.0)
        assert found.empty_parts == parts - len(set(owners[k + 1].tolist()))
        traffic.update((a, b) for a, b, _ in words)
        partners.update(a for a, _ in messages)
        # What goes back is what came, turned round: expand and fold are transposes.
        returned = fold(layer, owners[k], owners[k + 1])
        assert sorted(returned) == sorted((b, a, j) for a, b, j in words)
        backward += len(returned)
    expected = np.zeros((parts, parts), dtype=np.int64)
    for pair, count in traffic.items():
        expected[pair] = count
    np.testing.assert_array_equal(stats.traffic, expected)
    assert stats.partners.tolist() == [partners[m] for m in range(parts)]
    assert stats.words_total == sum(traffic.values())
    assert stats.words_training_step == stats.words_total + backward
    assert stats.messages_total == sum(partners.values())
    assert stats.max_words_per_rank == expected.sum(axis=1).max()
    assert stats.max_messages_per_rank == max(partners.values(), default=0)
    assert stats.imbalance_max == max(layer.imbalance for layer in stats.layers)
    assert stats.empty_parts_max == max(layer.empty_parts for layer in stats.layers)


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from([1, 3, 50]), st.integers(0, 2**32 - 1))
def test_needs(network: SparseNetwork, parts: int, seed: int) -> None:
    layer, after = network[0], random_owners(network, parts, seed)[1]
    needed = {(j, m) for m, j in expand_pairs(layer, after)}
    assert {(int(j), int(m)) for j, m in np.argwhere(needs(layer, after, parts))} == needed


def expand_pairs(layer: SparseLayer, after: Any) -> set[tuple[int, int]]:
    rows = np.repeat(np.arange(layer.n_out), np.diff(layer.indptr))
    return {(int(after[i]), int(j)) for i, j in zip(rows, layer.indices, strict=True)}


def test_one_layer_by_hand() -> None:
    # Rows {0, 1}, {}, {1, 2}, {1}; column 3 has no row. Part 2 of 3 owns nothing.
    layer = SparseLayer(
        np.array([0, 2, 2, 4, 5]), np.array([0, 1, 1, 2, 1]), np.ones(5, np.float32), 4
    )
    stats, traffic = layer_stats(layer, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), 3)
    assert traffic.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert traffic.dtype == np.int64
    assert (stats.words, stats.messages, stats.max_messages) == (1, 1, 1)
    assert stats.imbalance == pytest.approx(3 * 3 / 5)
    assert stats.empty_parts == 1


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.uint32])
def test_narrow_owners_do_not_overflow(dtype: Any) -> None:
    parts = 400  # part numbers times parts go beyond 16 bits
    layer = SparseLayer(np.array([0, 1]), np.array([0]), np.ones(1, np.float32), 1)
    _, traffic = layer_stats(layer, np.array([398], dtype), np.array([399], dtype), parts)
    assert traffic.sum() == traffic[398, 399] == 1


def test_a_partition_of_another_network_is_refused() -> None:
    layer = SparseLayer(np.array([0, 1]), np.array([0]), np.ones(1, np.float32), 1)
    other = SparseLayer(np.array([0, 1]), np.array([0]), np.full(1, 2, np.float32), 1)
    made = partition(SparseNetwork([layer]), [[0], [0]], 1)
    with pytest.raises(InputError, match="not for"):
        evaluate(SparseNetwork([other]), made)
