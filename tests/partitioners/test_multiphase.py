"""Layer after layer: legal balanced chains, the words of the model, no problem solved twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from networks import networks
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.datasets import graph_challenge_network
from sparsednn.partitioners import Partition, PartitionMeta, evaluate
from sparsednn.partitioners.balance import Balance, layer_balance
from sparsednn.partitioners.groups import balanced_limits, row_groups
from sparsednn.partitioners.hypergraph import FREE, Hypergraph, layer_hypergraph
from sparsednn.partitioners.metrics import needs
from sparsednn.partitioners.multiphase import multiphase, settle_free
from sparsednn.partitioners.solvers import get_solver

NAMES = ["cyclic", "kahypar", "mtkahypar"]


class Recorder:
    """A solver that remembers what it was asked and what it said."""

    def __init__(self, solver: Any) -> None:
        self.solver = solver
        self.calls: list[tuple[Hypergraph, float, NDArray[np.int32]]] = []

    @property
    def info(self) -> Any:
        return self.solver.info

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        labels = self.solver.solve(hypergraph, parts, imbalance=imbalance, seed=seed)
        self.calls.append((hypergraph, imbalance, labels.copy()))
        return labels


def solver(name: str) -> Any:
    if name != "cyclic":
        pytest.importorskip(name)
    return get_solver(name)


def chain(layers: Sequence[SparseLayer]) -> SparseNetwork:
    return SparseNetwork(list(layers))


def diagonal(blocks: int, size: int) -> SparseLayer:
    """Row i has all columns of its block."""
    n = blocks * size
    columns = np.arange(n).reshape(blocks, size)
    indices = np.repeat(columns, size, axis=0).ravel()
    return SparseLayer(np.arange(n + 1) * size, indices, np.ones(n * size, np.float32), n)


def stats(network: SparseNetwork, owners: Sequence[NDArray[Any]], parts: int) -> Any:
    meta = PartitionMeta("multiphase", "x", None, None, 1, 1, 0.03, network.name, network.hash)
    return evaluate(network, Partition(owners, parts, meta))


def check(network: SparseNetwork, owners: Sequence[NDArray[Any]], balance: Balance) -> None:
    """Every neuron has one owner; every layer keeps its cap."""
    sizes = [network.n_in, *(layer.n_out for layer in network)]
    assert [vector.shape for vector in owners] == [(size,) for size in sizes]
    for k, vector in enumerate(owners):
        assert vector.dtype == np.int32
        assert 0 <= vector.min() <= vector.max() < balance.parts
        if k:
            weights = np.diff(network[k - 1].indptr)
            loads = np.bincount(vector, weights=weights, minlength=balance.parts)
            assert loads.max() <= balance.caps[k - 1]


def check_free(network: SparseNetwork, owners: Sequence[NDArray[Any]], parts: int) -> None:
    """Inputs and empty rows are with somebody who needs them, where anybody does."""
    for k, layer in enumerate(network):
        needed = needs(layer, owners[k + 1], parts)
        free = np.ones(layer.n_in, np.bool_) if k == 0 else np.diff(network[k - 1].indptr) == 0
        free &= needed.any(axis=1)
        assert needed[np.flatnonzero(free), owners[k][free]].all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    network=networks(),
    parts=st.sampled_from([1, 2, 3, 7, 64]),
    imbalance=st.sampled_from([0.0, 0.03, 0.5, 1e300]),
)
def test_chains_are_legal_and_balanced(
    name: str, backward: bool, network: SparseNetwork, parts: int, imbalance: float
) -> None:
    balance = layer_balance(network, parts, imbalance)
    told: list[tuple[int, int]] = []
    owners = multiphase(
        network, solver(name), balance, seed=1, backward=backward,
        progress=lambda done, of: told.append((done, of)),
    )  # fmt: skip
    # A rule of ownership keeps no cap; its chain is checked against one that it cannot break.
    loose = Balance(balance.total, balance.wanted, balance.total, parts)
    check(network, owners, loose if name == "cyclic" else balance)
    check_free(network, owners, parts)
    assert told == [(k + 1, len(network)) for k in range(len(network))]


def cost(graph: Hypergraph, labels: NDArray[Any], parts: int, nets: slice) -> int:
    weights = np.zeros_like(graph.net_weights)
    weights[nets] = graph.net_weights[nets]
    chosen = Hypergraph(graph.net_ptr, graph.pins, graph.vertex_weights, weights, graph.fixed)
    return chosen.connectivity_cost(labels, parts)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(network=networks(), parts=st.sampled_from([1, 2, 3, 7]))
def test_costs_of_the_layers_are_the_words(
    name: str, backward: bool, network: SparseNetwork, parts: int
) -> None:
    recorder = Recorder(solver(name))
    balance = layer_balance(network, parts, 0.03)
    owners = multiphase(network, recorder, balance, seed=1, backward=backward)
    words = stats(network, owners, parts).words_per_layer
    if len(recorder.calls) < len(network):  # equal layers; the costs of one stand for several
        return
    for step, (graph, imbalance, labels) in enumerate(recorder.calls):
        k = len(network) - 1 - step if backward else step
        layer = network[k]
        assert imbalance == balance.imbalance(k)
        # What was said of rows with weight is kept; empty rows were settled later.
        busy = np.flatnonzero(np.diff(layer.indptr))
        np.testing.assert_array_equal(labels[busy], owners[k + 1][busy])
        labels[: layer.n_out] = owners[k + 1]
        if not backward:
            assert graph.connectivity_cost(labels, parts) == words[k]
            continue
        # Columns: the least that layer k can cost, exact where inputs are free. Following: the
        # words of the layer behind, as its rows are known.
        columns = cost(graph, labels, parts, slice(layer.n_in))
        assert columns <= words[k]
        if not k:
            assert columns == words[0]
        following = cost(graph, labels, parts, slice(layer.n_in, None))
        assert following == (words[k + 1] if step else 0)


@settings(max_examples=20, deadline=None)
@given(network=networks(), parts=st.sampled_from([2, 3, 7]))
def test_costs_with_all_owners_known_are_the_words(network: SparseNetwork, parts: int) -> None:
    balance = layer_balance(network, parts, 0.03)
    owners = multiphase(network, solver("kahypar"), balance, seed=1)
    total = 0
    for k, layer in enumerate(network):
        graph = layer_hypergraph(layer, parts, owners=owners[k])
        total += graph.connectivity_cost(np.concatenate((owners[k + 1], np.arange(parts))), parts)
    assert total == stats(network, owners, parts).words_total


@pytest.mark.parametrize("backward", [False, True])
def test_equal_problems_are_solved_once(backward: bool) -> None:
    recorder = Recorder(solver("cyclic"))
    network = chain([diagonal(4, 4)] * 12)
    balance = layer_balance(network, 4, 0.0)
    multiphase(network, recorder, balance, seed=1, backward=backward)
    # The first has no neighbour; from the second on all have the same one.
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", ["kahypar", "mtkahypar"])
def test_blocks_are_found_and_nothing_is_sent(name: str, backward: bool) -> None:
    recorder = Recorder(solver(name))
    network = chain([diagonal(4, 6)] * 12)
    owners = multiphase(
        network, recorder, layer_balance(network, 4, 0.03), seed=1, backward=backward
    )
    assert stats(network, owners, 4).words_total == 0
    assert len(recorder.calls) <= 3


def test_another_pattern_or_cap_is_another_problem() -> None:
    recorder = Recorder(solver("cyclic"))
    network = chain([diagonal(4, 4), diagonal(4, 4), diagonal(2, 8), diagonal(4, 4)])
    balance = layer_balance(network, 4, 0.0)
    multiphase(network, recorder, balance, seed=1)
    assert len(recorder.calls) == 3  # the last is like the second
    caps = balance.caps + np.array([0, 0, 0, 1])
    recorder.calls.clear()
    multiphase(network, recorder, Balance(caps, caps, balance.total, 4), seed=1)
    assert len(recorder.calls) == 4


def test_backward_knows_the_rows_of_the_next_layer() -> None:
    # Sizes differ, so that looking at the wrong neuron layer cannot go unnoticed.
    wide = SparseLayer(np.arange(7), np.arange(6) // 2, np.ones(6, np.float32), 3)
    narrow = SparseLayer(np.arange(4) * 2, np.arange(6), np.ones(6, np.float32), 6)
    network = chain([wide, narrow])
    owners = multiphase(
        network, solver("kahypar"), layer_balance(network, 3, 0.0), seed=1, backward=True
    )
    assert stats(network, owners, 3).words_total == 0


def test_settle_free_takes_turns_and_leaves_the_others() -> None:
    # Ten inputs that parts 1 and 2 of 4 need, one that part 3 needs, one that nobody needs.
    rows = [list(range(10)), list(range(11)), []]
    indices = np.concatenate([np.array(row, int) for row in rows])
    layer = SparseLayer(
        np.cumsum([0, *map(len, rows)]), indices, np.ones(indices.size, np.float32), 12
    )
    given = [np.full(12, FREE, np.int32), np.array([1, 2, FREE], np.int32)]
    settled = settle_free(chain([layer]), given, 4)
    assert np.bincount(settled[0][:10], minlength=4).tolist() == [0, 5, 5, 0]
    assert settled[0][10] == 2
    assert 0 <= settled[0][11] < 4
    assert settled[1][:2].tolist() == [1, 2]
    assert (given[0] == FREE).all()  # a copy
    kept = np.arange(12, dtype=np.int32) % 4
    np.testing.assert_array_equal(settle_free(chain([layer]), [kept, settled[1]], 4)[0], kept)


def test_official_network() -> None:
    network = graph_challenge_network(1024, 6)
    owners = multiphase(network, solver("kahypar"), layer_balance(network, 8, 0.03), seed=1)
    found = stats(network, owners, 8)
    assert found.words_total <= 3200
    assert found.imbalance_max <= 1.03
    # Inputs weigh nothing, but are spread as well.
    assert np.bincount(owners[0], minlength=8).max() <= 160


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None)
@given(network=networks(), parts=st.sampled_from([1, 2, 3, 7]))
def test_rows_that_stay_together_cost_what_they_would_alone(
    name: str, backward: bool, network: SparseNetwork, parts: int
) -> None:
    recorder = Recorder(solver(name))
    balance = layer_balance(network, parts, 0.03)
    owners = multiphase(network, recorder, balance, seed=1, backward=backward, together=True)
    loose = Balance(balance.total, balance.wanted, balance.total, parts)
    check(network, owners, loose if name == "cyclic" else balance)
    check_free(network, owners, parts)
    words = stats(network, owners, parts).words_per_layer
    if not backward and len(recorder.calls) == len(network):
        costs = [graph.connectivity_cost(labels, parts) for graph, _, labels in recorder.calls]
        assert costs == words
    groups = row_groups(network)
    limits = balanced_limits(network, groups, balance)
    for k, layer in enumerate(network):
        weights = np.diff(layer.indptr)
        if limits[k] >= layer.nnz:  # nothing had to be cut
            leader = groups[k]
            busy = weights > 0
            same = owners[k + 1] == owners[k + 1][leader]
            assert same[busy].all()


def test_equal_rows_make_the_problem_small() -> None:
    recorder = Recorder(solver("cyclic"))
    network = graph_challenge_network(1024, 2)
    balance = layer_balance(network, 8, 0.03)
    multiphase(network, recorder, balance, seed=1, together=True)
    assert [graph.n_vertices for graph, _, _ in recorder.calls] == [64, 64 + 8]
    assert [int(graph.vertex_weights.sum()) for graph, _, _ in recorder.calls] == [32768] * 2
