"""Compaction: every partition costs what it did before."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergraphs import hypergraph, hypergraphs, pin_lists
from sparsednn.datasets import graph_challenge_network
from sparsednn.partitioners import compaction
from sparsednn.partitioners.compaction import drop_small_nets, merge_identical_nets
from sparsednn.partitioners.hypergraph import Hypergraph, layer_hypergraph


@settings(max_examples=150, deadline=None)
@given(hypergraphs(parts=3), st.integers(0, 2**32 - 1))
def test_costs_are_unchanged(graph: Hypergraph, seed: int) -> None:
    merged = merge_identical_nets(graph)
    small = drop_small_nets(merged)
    merged.check(3)
    small.check(3)
    labels = np.random.default_rng(seed).integers(0, 3, graph.n_vertices)
    cost = graph.connectivity_cost(labels, 3)
    assert merged.connectivity_cost(labels, 3) == cost == small.connectivity_cost(labels, 3)
    assert merged.net_weights.sum() == graph.net_weights.sum()
    different = [frozenset(net) for net in pin_lists(graph)]
    # First come, first kept.
    assert [frozenset(net) for net in pin_lists(merged)] == list(dict.fromkeys(different))
    assert all(len(net) > 1 for net in pin_lists(small))


def test_weights_add_up_and_the_first_net_stays_as_it_was() -> None:
    graph = hypergraph(
        [[2, 0], [1], [0, 2], [], [0, 1], []], [1] * 3, net_weights=[1, 2, 4, 1, 1, 3]
    )
    merged = merge_identical_nets(graph)
    assert pin_lists(merged) == [[2, 0], [1], [], [0, 1]]
    assert merged.net_weights.tolist() == [5, 2, 4, 1]
    assert pin_lists(drop_small_nets(graph, 1)) == [[2, 0], [1], [0, 2], [0, 1]]


def test_equal_hashes_of_different_nets_do_not_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = hypergraph([[0, 1], [0, 2], [1, 0], [2, 0]], [1] * 3)
    monkeypatch.setattr(compaction, "_hashes", lambda given: np.zeros(given.n_nets, np.uint64))
    merged = merge_identical_nets(graph)
    for labels in np.ndindex(2, 2, 2):
        cost = graph.connectivity_cost(np.array(labels), 2)
        assert merged.connectivity_cost(np.array(labels), 2) == cost
    assert merged.n_nets == 3  # the third is the first again; the fourth was refused


def test_nothing_to_do_gives_the_same_object() -> None:
    graph = hypergraph([[0, 1], [1, 2]], [1] * 3)
    assert merge_identical_nets(graph) is graph
    assert drop_small_nets(graph) is graph


def test_official_network_has_groups_of_columns() -> None:
    graph = layer_hypergraph(graph_challenge_network(1024, 1)[0], 8)
    assert graph.n_nets == 1024
    assert merge_identical_nets(graph).n_nets == 64
