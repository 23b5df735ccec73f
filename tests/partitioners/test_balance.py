"""What balance can be reached: against brute force, plain Python, and the solvers' own bound."""

from __future__ import annotations

import heapq
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hypergraphs import hypergraph
from networks import networks
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.partitioners.balance import Balance, balanced_labels, layer_balance
from sparsednn.partitioners.solvers._balance import balance_bound


def layer_of(sizes: list[int]) -> SparseLayer:
    """Row i has the first `sizes[i]` columns."""
    pointers = np.cumsum([0, *sizes])
    indices = np.concatenate([np.arange(size) for size in [*sizes, 0]])
    values = np.ones(indices.size, np.float32)
    return SparseLayer(pointers, indices, values, max(*sizes, 1))


def loads(weights: list[int], labels: list[int], parts: int) -> list[int]:
    sums = [0] * parts
    for weight, part in zip(weights, labels, strict=True):
        sums[part] += weight
    return sums


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 70))
def test_labels_equal_a_plain_longest_first_rule(weights: list[int], parts: int) -> None:
    heap = [(0, part) for part in range(parts)]
    expected = [0] * len(weights)
    for at in sorted(range(len(weights)), key=lambda at: (-weights[at], at)):
        load, part = heap[0]
        expected[at] = part
        heapq.heapreplace(heap, (load + weights[at], part))
    labels = balanced_labels(np.array(weights, np.int64), parts)
    assert labels.tolist() == expected
    assert labels.dtype == np.int32


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=7), st.integers(1, 3))
def test_within_four_thirds_of_the_best(weights: list[int], parts: int) -> None:
    best = min(
        max(loads(weights, list(labels), parts))
        for labels in product(range(parts), repeat=len(weights))
    )
    found = balanced_labels(np.array(weights, np.int64), parts).tolist()
    # Graham: 4/3 - 1/(3K).
    assert 3 * parts * max(loads(weights, found, parts)) <= (4 * parts - 1) * best


def test_weights_beyond_32_bits() -> None:
    weights = np.array([2**40, 2**40, 1, 1], np.int64)
    labels = balanced_labels(weights, 2).tolist()
    assert loads(weights.tolist(), labels, 2) == [2**40 + 1, 2**40 + 1]


@settings(max_examples=60, deadline=None)
@given(
    networks(),
    st.sampled_from([1, 2, 3, 7, 64, 1000]),
    st.sampled_from([0.0, 0.03, 0.5, 10.0, 1e9, 1e300]),
)
def test_caps_can_be_reached_and_solvers_understand_them(
    network: SparseNetwork, parts: int, imbalance: float
) -> None:
    balance = layer_balance(network, parts, imbalance)
    for k, layer in enumerate(network):
        weights = np.diff(layer.indptr)
        most = max(loads(weights.tolist(), balanced_labels(weights, parts).tolist(), parts))
        assert balance.caps[k] == max(balance.wanted[k], most)
        assert balance.wanted[k] <= layer.nnz == balance.total[k]
        if imbalance <= 10:
            assert balance.wanted[k] == min(int((1 + imbalance) * layer.nnz / parts), layer.nnz)
        elif parts < imbalance:
            assert balance.wanted[k] == layer.nnz
        bound = balance_bound(hypergraph([], weights.tolist()), parts, balance.imbalance(k))
        assert bound == balance.caps[k] or not layer.nnz


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2**40), st.integers(1, 2**14), st.floats(1.0, 50.0))
def test_a_cap_survives_as_an_imbalance(total: int, parts: int, factor: float) -> None:
    cap = min(int(total / parts * factor) + 1, total)
    balance = Balance(np.array([cap]), np.array([0]), np.array([total]), parts)
    # `balance_bound` says the same for as many vertices of weight 1; those would be too many here.
    allowed = int((1.0 + balance.imbalance(0)) * total / parts * (1.0 + 1e-14))
    assert min(allowed, total) == cap


def test_warnings_name_layers_and_the_least_imbalance() -> None:
    even, few, heavy = layer_of([4] * 640), layer_of([4] * 10), layer_of([40, *[4] * 630])
    one = layer_balance(SparseNetwork([few]), 64, 0.03).warnings
    assert one == [
        "layer 1: 64 parts cannot be balanced as asked; the least imbalance found is 5.4, "
        "which is allowed there"
    ]
    lines = layer_balance(SparseNetwork([heavy]), 640, 0.03).warnings
    assert len(lines) == 1
    assert "layer 1:" in lines[0]
    assert f"{40 * 640 / heavy.nnz - 1:.3g}" in lines[0]
    assert layer_balance(SparseNetwork([even]), 64, 0.0).warnings == []


def test_warnings_of_neighbouring_layers_are_one_line() -> None:
    even, odd = [2] * 8, [3, 2, 2, 2]
    layers = [even, odd, odd, even, odd, even]
    chain, n_in = [], 8
    for sizes in layers:
        base = layer_of(sizes)
        chain.append(SparseLayer(base.indptr, base.indices, base.values, n_in))
        n_in = len(sizes)
    balance = layer_balance(SparseNetwork(chain), 4, 0.03)
    assert [line.split(":")[0] for line in balance.warnings] == ["layers 2 to 3", "layer 5"]
    assert all("0.333" in line for line in balance.warnings)
    assert balance.imbalance(1) == pytest.approx(3 * 4 / 9 - 1)


def test_a_layer_without_weights() -> None:
    empty = SparseLayer(np.zeros(4, np.int64), np.zeros(0, int), np.zeros(0, np.float32), 2)
    balance = layer_balance(SparseNetwork([empty]), 5, 0.03)
    assert (balance.caps.tolist(), balance.imbalance(0)) == ([0], 0.0)
    assert balance.warnings == []
