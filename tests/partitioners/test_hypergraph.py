"""The layer's hypergraph: connectivity-1 is the number of words sent, by the definition."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hypergraphs import hypergraph
from networks import networks
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import InputError, ShapeError
from sparsednn.partitioners.hypergraph import (
    FREE,
    layer_hypergraph,
    parts_of_nets,
    transposed_pattern,
)


def words(layer: SparseLayer, owners: NDArray[Any], rows: NDArray[Any], parts: int) -> int:
    """For each column j, each part m != owner(j) that has a row with a nonzero in column j."""
    sent = 0
    for j in range(layer.n_in):
        for m in range(parts):
            if m == owners[j]:
                continue
            for i in range(layer.n_out):
                columns = layer.indices[layer.indptr[i] : layer.indptr[i + 1]]
                if rows[i] == m and j in columns:
                    sent += 1
                    break
    return sent


def labels_of(draw: Any, size: int, parts: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, parts, size)


def with_fixed(rows: NDArray[Any], parts: int) -> NDArray[Any]:
    return np.concatenate((rows, np.arange(parts)))


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from([1, 2, 3, 7, 50]), st.data())
def test_cost_is_the_words_of_the_layer(network: SparseNetwork, parts: int, data: Any) -> None:
    layer = network[0]
    owners = labels_of(data.draw, layer.n_in, parts)
    rows = labels_of(data.draw, layer.n_out, parts)
    graph = layer_hypergraph(layer, parts, owners=owners)
    graph.check(parts)
    cost = graph.connectivity_cost(with_fixed(rows, parts), parts)
    assert cost == words(layer, owners, rows, parts)


@settings(max_examples=60, deadline=None)
@given(networks(), st.sampled_from([1, 2, 3, 7, 50]), st.data())
def test_following_adds_the_words_that_ownership_causes(
    network: SparseNetwork, parts: int, data: Any
) -> None:
    if len(network) < 2:
        return
    layer, after = network[0], network[1]
    owners = labels_of(data.draw, layer.n_in, parts)
    rows = labels_of(data.draw, layer.n_out, parts)
    after_rows = labels_of(data.draw, after.n_out, parts)
    needed = parts_of_nets(*transposed_pattern(after), after_rows, parts)
    both = words(layer, owners, rows, parts) + words(after, rows, after_rows, parts)
    graph = layer_hypergraph(layer, parts, owners=owners, following=needed)
    graph.check(parts)
    assert graph.connectivity_cost(with_fixed(rows, parts), parts) == both


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from([1, 2, 3, 7]), st.data())
def test_without_owners_the_cost_is_that_of_the_best_owners(
    network: SparseNetwork, parts: int, data: Any
) -> None:
    layer = network[0]
    rows = labels_of(data.draw, layer.n_out, parts)
    graph = layer_hypergraph(layer, parts)
    graph.check(parts)
    assert graph.n_vertices == layer.n_out
    # The owner of each input can be chosen by itself.
    least = 0
    for j in range(layer.n_in):
        column = np.bincount(layer.indices, minlength=layer.n_in)[j] > 0
        if column:
            per_owner = []
            for owner in range(parts):
                holders = {
                    int(rows[i])
                    for i in range(layer.n_out)
                    if j in layer.indices[layer.indptr[i] : layer.indptr[i + 1]]
                }
                per_owner.append(len(holders - {owner}))
            least += min(per_owner)
    assert graph.connectivity_cost(rows, parts) == least


def test_every_owner_of_a_small_layer() -> None:
    layer = SparseLayer(np.array([0, 2, 2, 4]), np.array([0, 2, 0, 1]), np.ones(4, np.float32), 3)
    for owners in product(range(2), repeat=3):
        for rows in product(range(2), repeat=3):
            graph = layer_hypergraph(layer, 2, owners=np.array(owners))
            cost = graph.connectivity_cost(np.array((*rows, 0, 1)), 2)
            assert cost == words(layer, np.array(owners), np.array(rows), 2)


def test_weights_are_nonzeros_and_fixed_vertices_have_none() -> None:
    layer = SparseLayer(np.array([0, 2, 2, 4]), np.array([0, 2, 0, 1]), np.ones(4, np.float32), 3)
    graph = layer_hypergraph(layer, 2, owners=np.zeros(3, np.int64))
    assert graph.vertex_weights.tolist() == [2, 0, 2, 0, 0]
    assert graph.fixed.tolist() == [FREE, FREE, FREE, 0, 1]
    assert graph.part_weights(np.array([0, 0, 1, 0, 1]), 2).tolist() == [2, 2]


def test_sizes_that_do_not_fit() -> None:
    layer = SparseLayer(np.array([0, 1]), np.array([0]), np.ones(1, np.float32), 3)
    with pytest.raises(ShapeError, match="owners have shape"):
        layer_hypergraph(layer, 2, owners=np.zeros(2, np.int64))
    with pytest.raises(ShapeError, match="next layer's parts"):
        layer_hypergraph(layer, 2, following=np.zeros((3, 2), np.bool_))


@pytest.mark.parametrize(
    ("nets", "weights", "extra", "error", "message"),
    [
        ([[0, 3]], [1, 1], {}, ShapeError, "a pin is outside the 2 vertices"),
        ([[0, -1]], [1, 1], {}, ShapeError, "a pin is outside"),
        ([[0, 1]], [1, -1], {}, InputError, "negative weight"),
        ([[0, 1]], [1, 1], {"net_weights": [0]}, InputError, "weight below 1"),
        ([[0, 1], [1, 0, 1]], [1, 1], {}, InputError, "net 1 has a vertex twice"),
        ([[0, 1]], [1, 1], {"fixed": [-1, 2]}, ShapeError, "fixed to a part outside 0 to 1"),
        ([[0, 1]], [1, 1], {"fixed": [-2, 0]}, ShapeError, "fixed to a part outside"),
        ([[0, 1]], [1, 1], {"fixed": [0]}, ShapeError, "fixed has shape"),
    ],
)
def test_check_rejects(
    nets: list[list[int]],
    weights: list[int],
    extra: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        hypergraph(nets, weights, **extra).check(2)
