"""Networks by name: patterns that keep their promises, the same for ever, and the error lines."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.datasets import radix_net, topologies
from sparsednn.datasets.topologies import Topology, topology_layers, topology_network
from sparsednn.errors import InputError, SparseDNNError, UnknownNameError, UsageError
from sparsednn.formats import ReadOptions
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.sources import load_network, summarize


def dense(layer: SparseLayer) -> np.ndarray[Any, Any]:
    """0/1 matrix (n_out, n_in)."""
    matrix = np.zeros(layer.shape, np.int64)
    matrix[np.repeat(np.arange(layer.n_out), np.diff(layer.indptr)), layer.indices] = 1
    return matrix


def check(layer: SparseLayer) -> None:
    """Everything that a layer has to be: ascending columns, no duplicates, in range, finite."""
    SparseLayer(layer.indptr, layer.indices, layer.values, layer.n_in, bias=layer.bias)
    assert layer.indices.dtype == np.int32
    assert np.diff(layer.indptr).min() >= 1
    assert not layer.bias.any()


WIDTHS = st.lists(st.integers(1, 60), min_size=2, max_size=4)


@settings(max_examples=150, deadline=None)
@given(WIDTHS, st.floats(0.001, 1), st.integers(0, 2**32 - 1), st.sampled_from([1, 64, 1 << 20]))
def test_random_patterns_are_balanced_and_have_the_asked_for_weights(
    widths: list[int], density: float, seed: int, block: int
) -> None:
    name = f"mlp:{'-'.join(map(str, widths))}@{density:.6f}#{seed}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topologies, "_BLOCK", block)
        network = topology_network(name)
    assert network.name == name
    assert [layer.shape for layer in network] == [(b, a) for a, b in itertools.pairwise(widths)]
    for layer in network:
        check(layer)
        n_out, n_in = layer.shape
        assert layer.nnz == max(round(float(f"{density:.6f}") * n_in * n_out), n_out)
        rows = np.diff(layer.indptr)
        columns = np.bincount(layer.indices, minlength=n_in)
        assert rows.max() - rows.min() <= 1
        assert columns.max() - columns.min() <= 1


def test_all_patterns_are_about_equally_likely() -> None:
    """3 of 6 inputs for 2 outputs: 20 patterns, balanced ones only."""
    seen: dict[bytes, int] = {}
    for seed in range(2000):
        _, indices = topologies._random_pattern(2, 6, 6, seed, 0)
        assert np.unique(indices).size == 6
        seen[indices.tobytes()] = seen.get(indices.tobytes(), 0) + 1
    assert len(seen) == 20
    assert 50 < min(seen.values()) <= max(seen.values()) < 150  # 100 expected, sigma 10


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_all_places_are_about_equally_likely(shape: tuple[int, int]) -> None:
    """With hands that go over from one deck to the next, too."""
    total = np.zeros(shape, np.int64)
    for seed in range(300):
        indptr, indices = topologies._random_pattern(*shape, 520, seed, 0)
        total[np.repeat(np.arange(shape[0]), np.diff(indptr)), indices] += 1
    share = 520 / 1200
    deviation = (total / 300 - share) / np.sqrt(share * (1 - share) / 300)
    assert abs(deviation).max() < 5.5
    assert 0.8 < deviation.std() < 1.2


def test_layers_and_seeds_have_patterns_and_weights_of_their_own() -> None:
    def content(name: str) -> list[tuple[bytes, bytes]]:
        return [(layer.indices.tobytes(), layer.values.tobytes()) for layer in load_network(name)]

    first, second = content("mlp:40x3@0.2"), content("mlp:40x3@0.2#1")
    parts = [part for layer in first + second for part in layer]
    assert len(set(parts)) == len(parts)
    assert content("mlp:40-40-40@.2#0") == first
    # The widths of other layers do not matter.
    assert content("mlp:40-40-10@0.2")[0][0] == first[0][0]


@pytest.mark.parametrize(
    ("name", "hash_start"),
    [
        ("mlp:784-300-100-10@0.05", "96fed1d4bfb26ed5"),
        ("mlp:20-50-10@0.3-erk#7", "467955d5060018f1"),
        ("radixnet:784-256x2-10/16", "84651bf80f952944"),
    ],
)
def test_a_name_means_the_same_network_for_ever(name: str, hash_start: str) -> None:
    """Checkpoints know the network that training began with by its hash."""
    assert load_network(name).hash.startswith(hash_start)


def test_without_a_density_all_weights_are_there() -> None:
    for name in ("mlp:7-5-3", "mlp:7-5-3@1", "mlp:7-5-3@1.0-erk"):
        assert all(dense(layer).all() for layer in topology_network(name))
    assert topology_network("mlp:7-5-3").hash == topology_network("mlp:7-5-3@1").hash


def test_hidden_layers_have_relu_and_its_deviation_the_last_one_none() -> None:
    network = topology_network("mlp:400x4@0.5")
    assert [str(layer.activation) for layer in network] == ["relu", "relu", "identity"]
    for layer, expected in zip(network, (2 / 200, 2 / 200, 1 / 200), strict=True):
        assert np.var(layer.values) == pytest.approx(expected, rel=0.03)
        assert np.mean(layer.values) == pytest.approx(0, abs=0.002)


def test_rows_with_fewer_weights_have_larger_ones() -> None:
    """14 or 15 weights per row: the deviation is that of the row, not of the layer."""
    (layer,) = topology_network("mlp:16-6000@0.09375")  # 1.5 per row
    counts = np.repeat(np.diff(layer.indptr), np.diff(layer.indptr))
    for count in (1, 2):
        assert np.var(layer.values[counts == count]) == pytest.approx(1 / count, rel=0.1)


# Erdős-Rényi


def test_erk_densities_follow_the_formula() -> None:
    network = topology_network("mlp:784-300-100-10@0.05-erk")
    sizes = [layer.n_out * layer.n_in for layer in network]
    assert network.edges == pytest.approx(0.05 * sum(sizes), abs=2)
    ratios = [layer.nnz / sum(layer.shape) for layer in network]  # ε
    assert max(ratios) / min(ratios) < 1.001


def test_erk_fills_layers_up_and_gives_the_rest_to_the_others() -> None:
    """Capping the last layer pushes the one before over the edge, too."""
    network = topology_network("mlp:784-300-100-10@0.2-erk")
    sizes = [layer.n_out * layer.n_in for layer in network]
    assert network[2].nnz == 1000
    assert network.edges == pytest.approx(0.2 * sum(sizes), abs=2)
    assert network[0].nnz / 1084 == pytest.approx(network[1].nnz / 400, rel=0.001)


@settings(max_examples=200, deadline=None)
@given(WIDTHS, st.floats(0.001, 1))
def test_erk_always_reaches_the_density(widths: list[int], density: float) -> None:
    densities = topologies._erdos_renyi(tuple(widths), density)
    pairs = list(itertools.pairwise(widths))
    reached = sum(part * a * b for part, (a, b) in zip(densities, pairs, strict=True))
    assert reached == pytest.approx(density * sum(a * b for a, b in pairs))
    assert all(0 < part <= 1 for part in densities)
    epsilons = [part * a * b / (a + b) for part, (a, b) in zip(densities, pairs, strict=True)]
    for part, epsilon in zip(densities, epsilons, strict=True):
        assert part == 1 or epsilon == pytest.approx(max(epsilons))


# Mixed radix


@pytest.mark.parametrize(("radix", "digits", "lists"), [(2, 3, 2), (3, 2, 2), (4, 2, 1), (5, 1, 3)])
def test_equal_widths_are_the_mixed_radix_topology(radix: int, digits: int, lists: int) -> None:
    expected = radix_net([[radix] * digits] * lists)
    found = topology_network(f"radixnet:{radix**digits}x{lists * digits + 1}/{radix}")
    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        check(here)
        assert np.array_equal(here.indptr, there.indptr)
        assert np.array_equal(here.indices, there.indices)


def test_two_layers_connect_everything_exactly_once() -> None:
    first, second, third = topology_network("radixnet:1024x4").layers
    for before, after in ((first, second), (second, third)):
        assert (after.weight.astype(bool) * 1.0 @ (before.weight.astype(bool) * 1.0)).nnz == 1 << 20
        assert np.all(dense(after).astype(np.float32) @ dense(before).astype(np.float32) == 1)


@settings(max_examples=150, deadline=None)
@given(WIDTHS, st.integers(2, 40))
def test_the_larger_side_has_equally_many_connections(widths: list[int], radix: int) -> None:
    name = f"radixnet:{'-'.join(map(str, widths))}/{radix}"
    network = topology_network(name)
    assert [layer.nnz for layer in network] == list(Topology.parse(name).weights)
    for layer in network:
        check(layer)
        n_out, n_in = layer.shape
        of_rows, of_columns = dense(layer).sum(axis=1), dense(layer).sum(axis=0)
        few, many = (of_columns, of_rows) if n_out >= n_in else (of_rows, of_columns)
        count = min(radix, n_in, n_out)
        assert np.all(many == count)
        assert few.min() >= count * (many.size // few.size)
        assert few.max() <= count * -(-many.size // few.size)


def test_a_narrowing_layer_is_the_transpose_of_a_widening_one() -> None:
    """Forwards node j reaches j + t; seen from behind that is j - t: the ring turned around."""
    (widening,) = topology_network("radixnet:12-30/4")
    (narrowing,) = topology_network("radixnet:30-12/4")
    nodes = np.arange(30) * 12 // 30
    for i in range(30):
        assert set(np.flatnonzero(dense(widening)[i])) == {(nodes[i] - t) % 12 for t in range(4)}
        assert set(np.flatnonzero(dense(narrowing)[:, i])) == {
            (nodes[i] + t) % 12 for t in range(4)
        }


def test_another_stride_where_the_place_value_comes_back_to_itself() -> None:
    """Width 96, radix 32: 32 divides 96, so only 3 different nodes; 33 reaches 32."""
    _, second = topology_network("radixnet:96x3")
    assert sorted(second.indices[:32]) == sorted(-33 * t % 96 for t in range(32))


@pytest.mark.parametrize("name", ["radixnet:784-1024x4-10", "radixnet:500-100x3-7/8"])
def test_every_input_reaches_every_output(name: str) -> None:
    reached = np.eye(topology_network(name).n_in, dtype=np.float32)
    for layer in topology_network(name):
        reached = (dense(layer).astype(np.float32) @ reached > 0).astype(np.float32)
    assert reached.all()


# As a MODEL


def test_as_a_model() -> None:
    network = load_network("radixnet:784-64x2-10/8", layers=2)
    whole = load_network("radixnet:784-64x2-10/8")
    assert [str(layer.activation) for layer in network] == ["relu", "relu"]
    assert network.hash == SparseNetwork(whole.layers[:2]).hash
    summary = summarize("mlp:20-10-5@0.5")
    assert [(layer.n_out, layer.nnz) for layer in summary.layers] == [(10, 100), (5, 25)]
    assert [layer.nnz for layer in topology_layers(Topology.parse("mlp:20-10-5@0.5"))] == [100, 25]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mlp:", UnknownNameError, "'' is not a width; expected mlp:WIDTH"),
        ("mlp:784-", UnknownNameError, "'' is not a width"),
        ("mlp:784--10", UnknownNameError, "'' is not a width"),
        ("mlp:784-ten", UnknownNameError, "'ten' is not a width"),
        ("mlp:784-1_0", UnknownNameError, "'1_0' is not a width"),
        ("mlp:784-٣", UnknownNameError, "is not a width"),
        ("mlp:784-10x", UnknownNameError, "'10x' is not a width"),
        ("mlp:784-10/16", UnknownNameError, "'10/16' is not a width"),
        ("radixnet:784-10@0.5", UnknownNameError, "'10@0.5' is not a width; expected radixnet:W"),
        ("mlp:784", InputError, "at least two widths"),
        ("mlp:784x1", InputError, "at least two widths"),
        ("mlp:784-0-10", InputError, "from 1 to 2.31 - 1, found 0"),
        ("mlp:784-3000000000", InputError, "found 3000000000"),
        ("mlp:784-10x0", InputError, "'10x0': there must be 1 to 65536"),
        ("mlp:784-10x999999999999", InputError, "1 to 65536 widths"),
        ("mlp:200000-200000", InputError, "4e.10 weights are more than 2.34"),
        ("mlp:2000000000x3@0.01", InputError, "more than 2.34"),
        ("mlp:784-10@", UnknownNameError, "'' is not a density"),
        ("mlp:784-10@5%", UnknownNameError, "'5%' is not a density"),
        ("mlp:784-10@nan", UnknownNameError, "'nan' is not a density"),
        ("mlp:784-10@-0.5", UnknownNameError, "'-0.5' is not a density"),
        ("mlp:784-10@0.05-er", UnknownNameError, "'0.05-er' is not a density"),
        ("mlp:784-10@0", InputError, "above 0 and at most 1, found 0"),
        ("mlp:784-10@1e-9999", InputError, "above 0 and at most 1"),
        ("mlp:784-10@1.01", InputError, "at most 1, found 1.01"),
        ("mlp:784-10#", UnknownNameError, "'' is not a seed"),
        ("mlp:784-10#-1", UnknownNameError, "'-1' is not a seed"),
        ("mlp:784-10#4294967296", InputError, "seed must be below 2.32, found 4294967296"),
        ("radixnet:784-10/", UnknownNameError, "'' is not a radix"),
        ("radixnet:784-10/two", UnknownNameError, "'two' is not a radix"),
        ("radixnet:784-10/1", InputError, "radix must be at least 2, found 1"),
        ("mlp:" + "7-" * 1000, UnknownNameError, r"'mlp:7-7-.*\.\.\.': '' is not a width"),
        ("mpl:784-10", UnknownNameError, "known: graph-challenge:.*, mlp:WIDTH.*, radixnet:WIDTH"),
    ],
)
def test_what_is_wrong_with_a_name(name: str, error: type[SparseDNNError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_network(name)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_options_that_do_not_apply() -> None:
    with pytest.raises(InputError, match="has 2 layers, --layers asks for 3"):
        load_network("mlp:8-8-8", layers=3)
    with pytest.raises(UsageError, match="at least 1, found 0"):
        topology_network("mlp:8-8-8", layers=0)
    with pytest.raises(UsageError, match="--bias does not apply to 'mlp:8-8'"):
        load_network("mlp:8-8", bias=-1.0)
    with pytest.raises(UsageError, match="mlp:8-8"):
        load_network("mlp:8-8", options=ReadOptions(activation="tanh"))
    with pytest.raises(UnknownNameError, match=r"expected mlp:.* or radixnet:"):
        Topology.parse("digits:64")
