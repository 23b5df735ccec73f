"""`shard_network`: the parts' rows are the network's, each once; and the official rows."""

from __future__ import annotations

import numpy as np
import pytest
from distributed.samples import network, partition
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import networks
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.datasets.graph_challenge import (
    graph_challenge_layers,
    graph_challenge_network,
    graph_challenge_rows,
)
from sparsednn.distributed.shard import LayerShard, owned, shard_network, share_equal
from sparsednn.errors import InputError
from sparsednn.network import NetworkDigest


@settings(max_examples=100, deadline=None)
@given(
    networks(),
    st.integers(1, 6),
    st.sampled_from(["random", "cyclic", "block", "gaps"]),
    st.integers(0, 99),
)
def test_the_parts_are_the_network(net: SparseNetwork, parts: int, kind: str, seed: int) -> None:
    divided = partition(net, parts, kind, seed)
    shards = [shard_network(net, divided, part) for part in range(parts)]
    for k, layer in enumerate(net):
        dense = np.full(layer.shape, np.nan, np.float32)
        bias = np.full(layer.n_out, np.nan, np.float32)
        for shard in shards:
            mine = shard.layers[k]
            assert (mine.n_out, mine.n_in, mine.activation) == (*layer.shape, layer.activation)
            assert mine.rows.dtype == np.int32
            assert np.all(np.diff(mine.rows) > 0)
            assert np.all(divided.owners[k + 1][mine.rows] == shard.part)
            assert np.isnan(dense[mine.rows]).all()  # nobody has had them
            if mine.rows.size:
                part = SparseLayer(
                    mine.indptr, mine.indices, mine.values, mine.n_in, bias=mine.bias
                )
                dense[mine.rows] = part.weight.toarray()
            bias[mine.rows] = mine.bias
        np.testing.assert_array_equal(dense, layer.weight.toarray())
        np.testing.assert_array_equal(bias, layer.bias)
        assert all(s.layers[k].keeps_zero for s in shards) == layer.keeps_zero
    assert {s.droppable_from for s in shards} == {net.droppable_from}
    assert sum(layer.nnz for s in shards for layer in s.layers) == net.edges
    assert (shards[0].n_in, shards[0].n_out) == (net.n_in, net.n_out)


@given(networks())
@settings(max_examples=20, deadline=None)
def test_the_digest_is_the_hash(net: SparseNetwork) -> None:
    digest = NetworkDigest()
    for layer in net:
        digest.add(layer)
    assert digest.hexdigest() == net.hash


def test_a_partition_of_another_network_is_refused() -> None:
    with pytest.raises(InputError, match="made for network 'sample-1'"):
        shard_network(network(0), partition(network(1), 2), 0)


def test_equal_arrays_are_shared() -> None:
    net = graph_challenge_network(1024, 3)
    rows = np.arange(3, 1024, 7, dtype=np.int32)
    first = LayerShard.of(net[0], rows)
    second = LayerShard.of(net[1], rows.copy())
    shared = share_equal(first, second)
    for name in ("rows", "indptr", "values", "bias"):
        assert getattr(shared, name) is getattr(first, name)
    assert shared.indices is second.indices
    fewer = LayerShard.of(net[2], rows[:-1])
    assert share_equal(first, fewer).values is fewer.values


def test_a_whole_layer_is_not_copied() -> None:
    layer = network()[0]
    whole = LayerShard.of(layer, np.arange(layer.n_out, dtype=np.int32))
    assert whole.values is layer.values
    assert whole.indices is layer.indices


@pytest.mark.parametrize(("neurons", "layers"), [(1024, 20), (4096, 3)])
def test_official_rows(neurons: int, layers: int) -> None:
    rng = np.random.default_rng(2)
    owners = [rng.integers(0, k + 1, neurons).astype(np.int32) for k in range(layers)]
    owners[1][:] = 7  # part 0 has no row there
    rows = [owned(vector, 0) for vector in owners]
    made = graph_challenge_rows(neurons, rows)
    for mine, found, layer in zip(rows, made, graph_challenge_layers(neurons, layers), strict=True):
        expected = LayerShard.of(layer, mine)
        for name in ("indptr", "indices", "values", "bias"):
            one, other = getattr(found, name), getattr(expected, name)
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other)
        assert (found.n_out, found.n_in) == (mine.size, neurons)


def test_official_rows_share_their_arrays() -> None:
    rows = np.arange(10, dtype=np.int32)
    first, second, third = graph_challenge_rows(1024, [rows, rows, rows[:4]])
    for name in ("indptr", "values", "bias"):
        assert getattr(first, name) is getattr(second, name)
        assert np.shares_memory(getattr(first, name), getattr(third, name))


def test_official_rows_of_no_official_network() -> None:
    with pytest.raises(InputError, match="1024, 4096"):
        graph_challenge_rows(1000, [np.arange(3, dtype=np.int32)])
    with pytest.raises(InputError, match="1 to 1920 layers"):
        graph_challenge_rows(1024, [])
