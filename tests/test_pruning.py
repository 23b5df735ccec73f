"""Magnitude pruning: exact counts, the largest weights, ties, and what stays as it was."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import networks, random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import UsageError
from sparsednn.pruning import is_dense, prune


def dense(rng: np.random.Generator, *widths: int, levels: int = 0) -> SparseNetwork:
    """Dense layers; with `levels` only so many different magnitudes, so that there are ties."""
    layers = []
    for n_in, n_out in itertools.pairwise(widths):
        layer = random_layer(rng, n_out, n_in, density=1.0)
        if levels:
            values = rng.integers(1, levels + 1, layer.nnz) * rng.choice([-1, 1], layer.nnz)
            layer = SparseLayer(layer.indptr, layer.indices, values, n_in, bias=layer.bias)
        layers.append(layer)
    return SparseNetwork(layers, name="dense")


def one_by_one(network: SparseNetwork, sparsity: float, scope: str) -> list[np.ndarray]:
    """The definition: sort all weights by magnitude, earlier ones first; keep the first so many."""
    full = [layer.weight.toarray() for layer in network]
    groups = [range(len(full))] if scope == "global" else [[k] for k in range(len(full))]
    for group in groups:
        entries = [
            (-abs(float(value)), k, int(row), int(column))
            for k in group
            for row, column, value in zip(
                np.repeat(np.arange(network[k].n_out), np.diff(network[k].indptr)),
                network[k].indices,
                network[k].values,
                strict=True,
            )
        ]
        positions = sum(full[k].size for k in group)
        for _, k, row, column in sorted(entries)[positions - round(sparsity * positions) :]:
            full[k][row, column] = 0
    return full


@settings(deadline=None, max_examples=80)
@given(
    networks(),
    st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9])),
    st.sampled_from(["global", "layer"]),
    st.integers(0, 3),
)
def test_against_the_definition(
    network: SparseNetwork, sparsity: float, scope: str, levels: int
) -> None:
    if levels:  # few magnitudes: many ties, and stored zeros
        network = SparseNetwork(
            [
                SparseLayer(
                    layer.indptr, layer.indices, np.round(layer.values * levels) / levels,
                    layer.n_in, bias=layer.bias, activation=layer.activation,
                )
                for layer in network
            ]
        )  # fmt: skip
    before = network.hash
    pruned = prune(network, sparsity, scope=scope)
    for layer, old, expected in zip(
        pruned, network, one_by_one(network, sparsity, scope), strict=True
    ):
        np.testing.assert_array_equal(layer.weight.toarray(), expected)
        np.testing.assert_array_equal(layer.bias, old.bias)
        assert layer.activation == old.activation
        SparseLayer(layer.indptr, layer.indices, layer.values, layer.n_in)  # checks the arrays
    assert network.hash == before, "the argument is not changed"
    assert prune(pruned, sparsity, scope=scope).hash == pruned.hash, "it is sparse enough now"


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("levels", [0, 1, 3])
def test_exact_counts(scope: str, sparsity: float, levels: int) -> None:
    network = dense(np.random.default_rng(2), 30, 20, 10, levels=levels)
    pruned = prune(network, sparsity, scope=scope)
    sizes = [600, 200]
    if scope == "layer":
        assert [layer.nnz for layer in pruned] == [n - round(sparsity * n) for n in sizes]
    assert pruned.edges == 800 - round(sparsity * 800)
    assert pruned.name == network.name


def test_global_and_layer_differ() -> None:
    small = SparseLayer([0, 2, 4], [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], 2)
    large = SparseLayer([0, 2, 4], [0, 1, 0, 1], [1.0, 2.0, 3.0, 4.0], 2)
    network = SparseNetwork([small, large])
    assert [layer.nnz for layer in prune(network, 0.5)] == [0, 4]
    assert [layer.nnz for layer in prune(network, 0.5, scope="layer")] == [2, 2]
    assert prune(network, 0.5, scope="layer")[0].values.tolist() == pytest.approx([0.3, 0.4])


def test_of_equal_weights_the_earlier_stays() -> None:
    layer = SparseLayer([0, 3, 6], [0, 1, 2, 0, 1, 2], [1, -1, 1, -1, 1, 1], 3)
    network = SparseNetwork([layer, SparseLayer([0, 2], [0, 1], [1, 1], 2)])
    found = prune(network, 0.5)
    assert found[0].weight.toarray().tolist() == [[1, -1, 1], [-1, 0, 0]]
    assert found[1].nnz == 0


def test_positions_that_are_not_stored_count_as_zeros() -> None:
    rng = np.random.default_rng(3)
    half = SparseNetwork([random_layer(rng, 40, 50, density=0.5)])
    enough = 1 - half.edges / 2000
    assert prune(half, enough * 0.9)[0] is half[0], "nothing to do: nothing is copied"
    assert prune(half, 0.9).edges == 200


def test_kept_layers_stay_and_do_not_count() -> None:
    network = dense(np.random.default_rng(4), 10, 10, 10, 5)
    pruned = prune(network, 0.8, keep=[3, 1])
    assert pruned[0] is network[0]
    assert pruned[2] is network[2]
    assert pruned[1].nnz == 20
    with pytest.raises(UsageError, match="no layer 4 to keep: the network has 3 layers"):
        prune(network, 0.8, keep=[4])
    assert prune(network, 0.8, keep=[1, 2, 3]).hash == network.hash


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan"), float("inf")])
def test_wrong_sparsity(sparsity: float) -> None:
    network = dense(np.random.default_rng(5), 3, 2)
    with pytest.raises(UsageError, match="sparsity must be at least 0 and below 1, found"):
        prune(network, sparsity)


def test_wrong_scope() -> None:
    with pytest.raises(UsageError, match="unknown scope 'row': known are global, layer"):
        prune(dense(np.random.default_rng(5), 3, 2), 0.5, scope="row")


def test_is_dense() -> None:
    rng = np.random.default_rng(6)
    network = dense(rng, 5, 4, 3)
    assert is_dense(network)
    assert is_dense(prune(network, 0.0))
    assert not is_dense(prune(network, 0.1))
    mixed = SparseNetwork([network[0], random_layer(rng, 3, 4, density=0.5)])
    assert not is_dense(mixed)
