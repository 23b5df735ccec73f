"""The problem of all layers: exact words, exact changes, exact recombination, never worse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from networks import networks, random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.datasets import graph_challenge_network
from sparsednn.errors import InputError, ShapeError
from sparsednn.partitioners import Partition, PartitionMeta, evaluate, get_solver
from sparsednn.partitioners.balance import Balance, balanced_labels, layer_balance
from sparsednn.partitioners.groups import NO_UNIT, balanced_limits, row_groups
from sparsednn.partitioners.hypergraph import FREE
from sparsednn.partitioners.joint import joint
from sparsednn.partitioners.joint.anneal import State, anneal, make_state, words
from sparsednn.partitioners.joint.recombine import _EXACT_PARTS, recombine
from sparsednn.partitioners.joint.search import Effort
from sparsednn.partitioners.joint.units import Arrays, UnitModel
from sparsednn.partitioners.multiphase import multiphase, settle_free

PARTS = st.sampled_from([1, 2, 3, 7, 64])
SEEDS = st.integers(0, 2**32 - 1)
QUICK = Effort(proposals=200_000, sweeps=60)


def counted(network: SparseNetwork, owners: Sequence[NDArray[Any]], parts: int) -> int:
    meta = PartitionMeta("joint", "x", None, None, 1, 1, 0.03, network.name, network.hash)
    return evaluate(network, Partition(owners, parts, meta)).words_total


def whole(network: SparseNetwork, rows: Sequence[NDArray[np.int32]]) -> list[NDArray[np.int32]]:
    return [np.full(network.n_in, FREE, np.int32), *rows]


def models(network: SparseNetwork, seed: int) -> list[UnitModel]:
    """Whole groups, random pieces, and single rows."""
    rng = np.random.default_rng(seed)
    heaviest = [int(rng.integers(1, max(layer.nnz, 1) + 1)) for layer in network]
    ones = [1] * len(network)
    return [
        UnitModel(network),
        UnitModel(network, heaviest=heaviest, groups=row_groups(network)),
        UnitModel(network, heaviest=ones),
    ]


def even(model: UnitModel, parts: int) -> NDArray[np.int32]:
    first, weight = model.arrays.first_unit, model.arrays.unit_weight
    pieces = [
        balanced_labels(weight[first[k] : first[k + 1]], parts) for k in range(model.n_layers)
    ]
    return np.concatenate(pieces)


def cost(model: UnitModel, labels: NDArray[np.int32], parts: int) -> int:
    return words(model.arrays, make_state(model.arrays, labels.copy(), parts))


# Units


@settings(max_examples=60, deadline=None)
@given(networks(), PARTS, SEEDS)
def test_words_of_units_are_the_words_of_the_network(
    network: SparseNetwork, parts: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    for model in models(network, seed):
        labels = rng.integers(0, parts, model.n_units).astype(np.int32)
        rows = model.owners_of(labels)
        owners = settle_free(network, whole(network, rows), parts)
        found = cost(model, labels, parts) - model.free_columns
        assert found == counted(network, owners, parts)
        np.testing.assert_array_equal(model.labels_of(rows), labels)
        # Where the empty rows are makes no difference to the units.
        np.testing.assert_array_equal(model.labels_of(owners[1:]), labels)


@settings(max_examples=60, deadline=None)
@given(networks(), SEEDS)
def test_units_are_rows_of_one_pattern(network: SparseNetwork, seed: int) -> None:
    for model in models(network, seed):
        first = model.arrays.first_unit
        assert first[-1] == model.n_units
        for k, layer in enumerate(network):
            members: dict[int, list[int]] = {}
            for row, unit in enumerate(model.unit_of[k].tolist()):
                members.setdefault(unit, []).append(row)
            empty = np.flatnonzero(np.diff(layer.indptr) == 0).tolist()
            assert members.pop(NO_UNIT, []) == empty
            assert sorted(members) == list(range(first[k], first[k + 1]))
            for unit, rows in members.items():
                patterns = {
                    tuple(layer.indices[layer.indptr[r] : layer.indptr[r + 1]]) for r in rows
                }
                assert len(patterns) == 1
                assert model.arrays.unit_weight[unit] == len(patterns.pop()) * len(rows)


@settings(max_examples=60, deadline=None)
@given(networks(), SEEDS)
def test_pieces_are_no_heavier_than_asked(network: SparseNetwork, seed: int) -> None:
    rng = np.random.default_rng(seed)
    heaviest = [int(rng.integers(1, max(layer.nnz, 1) + 1)) for layer in network]
    model = UnitModel(network, heaviest=heaviest)
    for k, layer in enumerate(network):
        sizes = np.diff(layer.indptr)
        count = np.bincount(model.unit_of[k][sizes > 0], minlength=model.n_units)
        low, high = model.arrays.first_unit[k], model.arrays.first_unit[k + 1]
        weight = model.arrays.unit_weight[low:high]
        assert ((weight <= heaviest[k]) | (count[low:high] == 1)).all()
    rows = UnitModel(network, heaviest=[1] * len(network))
    assert rows.n_units == sum(np.count_nonzero(np.diff(layer.indptr)) for layer in network)


def test_rows_of_a_unit_in_two_parts_have_no_label() -> None:
    network = graph_challenge_network(1024, 1)
    model = UnitModel(network)
    rows = model.owners_of(np.arange(model.n_units, dtype=np.int32) % 8)
    assert model.labels_of(rows) is not None
    rows[0][5] = (rows[0][5] + 1) % 8
    assert model.labels_of(rows) is None


def test_official_networks_shrink() -> None:
    model = UnitModel(graph_challenge_network(1024, 12))
    # 16 rows of each pattern; in every sixth layer, whose stride is half of 64, 32.
    block = [64] * 5 + [32]
    assert np.diff(model.arrays.first_unit).tolist() == block * 2 == model_nets(model)
    assert model.arrays.net_size.tolist() == ([16] * (5 * 64) + [32] * 32) * 2
    assert model.free_columns == 1024


def model_nets(model: UnitModel) -> list[int]:
    return np.diff(model.arrays.first_net).tolist()


@settings(max_examples=80, deadline=None)
@given(networks(), PARTS, st.sampled_from([0.0, 0.03, 0.5, 1e300]))
def test_limits_let_every_layer_be_balanced(
    network: SparseNetwork, parts: int, imbalance: float
) -> None:
    balance = layer_balance(network, parts, imbalance)
    groups = row_groups(network)
    limits = balanced_limits(network, groups, balance)
    model = UnitModel(network, groups=groups, heaviest=limits)
    loads = make_state(model.arrays, even(model, parts), parts).loads
    assert (loads.max(axis=1) <= balance.caps).all()


def test_limits_next_to_a_row_that_cannot_be_cut() -> None:
    # One row of 100; five groups of 40 equal rows of 1. A third of all is that row alone; the
    # groups have to be cut below the half of what the row weighs.
    rows = [list(range(100))] + [[100 + group] for group in range(5) for _ in range(40)]
    pointers = np.cumsum([0, *map(len, rows)])
    layer = SparseLayer(pointers, np.concatenate(rows), np.ones(pointers[-1], np.float32), 105)
    network = SparseNetwork([layer])
    balance = layer_balance(network, 3, 0.03)
    assert balance.caps.tolist() == [103]
    limits = balanced_limits(network, row_groups(network), balance)
    model = UnitModel(network, heaviest=limits)
    assert make_state(model.arrays, even(model, 3), 3).loads.max() <= 103
    assert limits[0] < 40


# Annealing


def run(model: UnitModel, labels: Any, caps: Any, parts: int, **changed: Any) -> Any:
    options: dict[str, Any] = {"hot": 4.0, "cold": 0.3, "sweeps": 40, "seed": 1, "threads": 1}
    return anneal(model.arrays, labels, caps, parts, **options | changed)


@settings(max_examples=40, deadline=None)
@given(networks(), PARTS, st.sampled_from([0.0, 0.03, 0.5]), SEEDS, st.sampled_from([0.3, 50.0]))
def test_annealing_counts_right_keeps_caps_and_is_never_worse(
    network: SparseNetwork, parts: int, imbalance: float, seed: int, hot: float
) -> None:
    balance = layer_balance(network, parts, imbalance)
    limits = balanced_limits(network, row_groups(network), balance)
    for model in (UnitModel(network, heaviest=limits), UnitModel(network, heaviest=[1] * 9)):
        start = even(model, parts)
        before = start.copy()
        shares: list[float] = []
        labels, found = run(
            model, start, balance.caps, parts, hot=hot, seed=seed, progress=shares.append
        )
        np.testing.assert_array_equal(start, before)
        assert labels.dtype == np.int32
        assert labels.size == 0 or 0 <= labels.min() <= labels.max() < parts
        assert found == cost(model, labels, parts) <= cost(model, start, parts)
        loads = make_state(model.arrays, labels, parts).loads
        assert (loads.max(axis=1) <= balance.caps).all()
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(networks(), st.sampled_from([2, 3, 7]), SEEDS)
def test_a_start_above_the_cap_gets_no_heavier(
    network: SparseNetwork, parts: int, seed: int
) -> None:
    model = UnitModel(network)
    labels = np.random.default_rng(seed).integers(0, parts, model.n_units).astype(np.int32)
    caps = layer_balance(network, parts, 0.0).caps
    found, total = run(model, labels, caps, parts, seed=seed)
    assert total == cost(model, found, parts) <= cost(model, labels, parts)
    before = make_state(model.arrays, labels.copy(), parts).loads
    after = make_state(model.arrays, found, parts).loads
    assert (after <= np.maximum(before, caps[:, None])).all()


@settings(max_examples=25, deadline=None)
@given(networks(), st.sampled_from([2, 3, 7]), SEEDS)
def test_counts_kept_up_to_date_equal_a_recount(
    network: SparseNetwork, parts: int, seed: int
) -> None:
    states: list[State] = []

    def remembered(arrays: Arrays, labels: NDArray[np.int32], parts: int) -> State:
        states.append(make_state(arrays, labels, parts))
        return states[-1]

    model = UnitModel(network, heaviest=[1] * len(network))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sparsednn.partitioners.joint.anneal.make_state", remembered)
        caps = layer_balance(network, parts, 0.1).caps
        run(model, even(model, parts), caps, parts, seed=seed, threads=2)
    assert states
    for state in states:
        fresh = make_state(model.arrays, state.labels.copy(), parts)
        for name in ("rows", "owned", "loads", "starts"):
            np.testing.assert_array_equal(getattr(state, name), getattr(fresh, name))
        # Members of a part may stand in any order, but each where its part is.
        np.testing.assert_array_equal(state.labels[state.members], state.labels[fresh.members])
        np.testing.assert_array_equal(state.members[state.places], np.arange(model.n_units))


@settings(max_examples=20, deadline=None)
@given(networks(), st.sampled_from([2, 5]), SEEDS)
def test_same_seed_same_labels_on_any_threads(
    network: SparseNetwork, parts: int, seed: int
) -> None:
    balance = layer_balance(network, parts, 0.03)
    model = UnitModel(network, heaviest=[1] * len(network))
    results = [
        run(model, even(model, parts), balance.caps, parts, seed=seed, threads=threads)
        for threads in (1, 2, 3, 9)
    ]
    for labels, total in results[1:]:
        np.testing.assert_array_equal(labels, results[0][0])
        assert total == results[0][1]


def test_threads_and_seeds_on_the_official_network() -> None:
    network = graph_challenge_network(1024, 9)
    model = UnitModel(network)
    caps = layer_balance(network, 8, 0.03).caps
    results = [
        run(model, even(model, 8), caps, 8, sweeps=60, threads=threads, seed=seed)
        for threads, seed in ((1, 1), (2, 1), (3, 1), (1, 2))
    ]
    for labels, total in results[1:3]:
        np.testing.assert_array_equal(labels, results[0][0])
        assert total == results[0][1]
    assert (results[3][0] != results[0][0]).any()


def test_layers_without_weights_and_layers_of_one_unit() -> None:
    rng = np.random.default_rng(1)
    full = random_layer(rng, 6, 4, density=1.0)
    empty = random_layer(rng, 5, 6, density=0.0)
    last = random_layer(rng, 1, 5, density=1.0)
    for layers in ([empty], [full, empty, last], [full, empty], [full], [empty, last]):
        network = SparseNetwork(layers)
        for parts in (1, 2, 64):
            balance = layer_balance(network, parts, 0.03)
            result = joint(network, balance, effort=QUICK)
            assert result.words == counted(network, result.owners, parts)
            assert result.words >= 0
            assert parts > 1 or result.words == 0


# Recombination


@settings(max_examples=40, deadline=None)
@given(networks(), st.sampled_from([1, 2, 3, 7, 40]), SEEDS, st.integers(1, 5), st.booleans())
def test_recombined_chains_are_never_worse(
    network: SparseNetwork, parts: int, seed: int, count: int, exact: bool
) -> None:
    rng = np.random.default_rng(seed)
    model = UnitModel(network)
    candidates = [rng.integers(0, parts, model.n_units).astype(np.int32) for _ in range(count)]
    candidates.append(candidates[0].copy())
    candidates.append(rng.permutation(parts).astype(np.int32)[candidates[0]])
    half = candidates[0].copy()  # equal to another in some layers only
    half[: model.n_units // 2] = candidates[-1][: model.n_units // 2]
    candidates.append(half)
    before = [labels.copy() for labels in candidates]
    with pytest.MonkeyPatch.context() as patch:
        if not exact:
            patch.setattr("sparsednn.partitioners.joint.recombine._EXACT_PARTS", 0)
        labels, total = recombine(model.arrays, candidates, parts)
    for one, other in zip(before, candidates, strict=True):
        np.testing.assert_array_equal(one, other)
    assert total == cost(model, labels, parts)
    assert total <= min(cost(model, one, parts) for one in candidates)
    # Each layer is one candidate's, renamed: the same loads.
    loads = make_state(model.arrays, labels, parts).loads
    pool = [make_state(model.arrays, one, parts).loads for one in before]
    for k in range(model.n_layers):
        assert any(sorted(loads[k]) == sorted(one[k]) for one in pool)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(2, 6), min_size=4, max_size=4), st.sampled_from([2, 3]), SEEDS)
def test_recombination_is_the_best_there_is(widths: list[int], parts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    network = SparseNetwork(
        [random_layer(rng, widths[k + 1], widths[k], density=0.5) for k in range(3)]
    )
    model = UnitModel(network, heaviest=[1] * 3)
    first = model.arrays.first_unit
    candidates = [rng.integers(0, parts, model.n_units).astype(np.int32) for _ in range(3)]
    names = [np.array(name, np.int32) for name in permutations(range(parts))]
    best = None
    # The names of the first layer may be kept: only names between layers matter.
    for chosen in product(candidates, repeat=3):
        for renamed in product(names[:1], names, names):
            labels = np.concatenate(
                [
                    name[one[first[k] : first[k + 1]]]
                    for k, (one, name) in enumerate(zip(chosen, renamed, strict=True))
                ]
            )
            total = cost(model, labels, parts)
            best = total if best is None else min(best, total)
    assert recombine(model.arrays, candidates, parts)[1] == best


def test_many_parts_are_renamed_greedily() -> None:
    parts = 200
    assert parts > _EXACT_PARTS
    layer = SparseLayer(np.arange(401), np.arange(400), np.ones(400, np.float32), 400)
    network = SparseNetwork([layer, layer, layer])
    model = UnitModel(network)
    rng = np.random.default_rng(1)
    one = np.tile(np.arange(400, dtype=np.int32) % parts, 3)
    # Each layer under names of its own: the words are all in the names.
    other = np.concatenate([rng.permutation(parts).astype(np.int32)[one[:400]] for _ in range(3)])
    assert cost(model, other, parts) - model.free_columns > 700
    labels, total = recombine(model.arrays, [other], parts)
    assert total - model.free_columns == 0 == cost(model, labels, parts) - model.free_columns


# All together


def legal(network: SparseNetwork, owners: Sequence[NDArray[Any]], balance: Balance) -> None:
    sizes = [network.n_in, *(layer.n_out for layer in network)]
    assert [vector.shape for vector in owners] == [(size,) for size in sizes]
    for k, vector in enumerate(owners):
        assert vector.dtype == np.int32
        assert 0 <= vector.min() <= vector.max() < balance.parts
        if k:
            weights = np.diff(network[k - 1].indptr)
            loads = np.bincount(vector, weights=weights, minlength=balance.parts)
            assert loads.max() <= balance.caps[k - 1]


@settings(max_examples=12, deadline=None)
@given(networks(), PARTS, st.sampled_from([0.0, 0.03, 0.5]), SEEDS)
def test_joint_is_never_worse_than_a_balanced_chain(
    network: SparseNetwork, parts: int, imbalance: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    balance = layer_balance(network, parts, imbalance)
    sizes = [network.n_in, *(layer.n_out for layer in network)]
    pytest.importorskip("kahypar")
    chains = {
        "kahypar": multiphase(network, get_solver("kahypar"), balance, seed=1),
        "backward": multiphase(network, get_solver("kahypar"), balance, seed=1, backward=True),
        "heavy": [np.zeros(size, np.int32) for size in sizes],
        "random": [rng.integers(0, parts, size).astype(np.int32) for size in sizes],
    }
    kept = []
    for owners in chains.values():
        loads = [
            np.bincount(owners[k + 1], weights=np.diff(layer.indptr), minlength=parts).max()
            for k, layer in enumerate(network)
        ]
        if (np.array(loads) <= balance.caps).all():
            kept.append(counted(network, owners, parts))
    assert len(kept) >= 2
    result = joint(network, balance, chains=chains, effort=QUICK, seed=1)
    legal(network, result.owners, balance)
    assert result.words == counted(network, result.owners, parts) <= min(kept)
    assert result.words <= min(result.candidates.values())
    again = joint(network, balance, chains=chains, effort=QUICK, seed=1, threads=3)
    for one, other in zip(result.owners, again.owners, strict=True):
        np.testing.assert_array_equal(one, other)


def test_joint_tells_how_far_it_is() -> None:
    network = graph_challenge_network(1024, 3)
    told: list[tuple[str, float]] = []
    result = joint(
        network,
        layer_balance(network, 8, 0.03),
        effort=QUICK,
        progress=lambda name, share: told.append((name, share)),
    )
    stages = list(dict.fromkeys(name for name, _ in told))
    assert len(stages) > 1
    assert set(stages) <= set(result.candidates)
    assert all(0 <= share <= 1 for _, share in told)


def test_rows_of_a_group_may_part_where_balance_needs_it() -> None:
    # All rows alike: one group, that has to be cut for 3 parts; and again, row by row.
    layer = SparseLayer(np.arange(11) * 4, np.tile(np.arange(4), 10), np.ones(40, np.float32), 4)
    network = SparseNetwork([layer, random_layer(np.random.default_rng(1), 7, 10, density=0.4)])
    balance = layer_balance(network, 3, 0.0)
    result = joint(network, balance, effort=QUICK)
    legal(network, result.owners, balance)
    assert result.words == counted(network, result.owners, 3)


def test_official_network_beats_its_candidates() -> None:
    pytest.importorskip("kahypar")
    network = graph_challenge_network(1024, 6)
    balance = layer_balance(network, 8, 0.03)
    chains = {"kahypar": multiphase(network, get_solver("kahypar"), balance, seed=1)}
    effort = Effort(proposals=4_000_000, sweeps=500)
    result = joint(network, balance, chains=chains, effort=effort, threads=2)
    legal(network, result.owners, balance)
    assert result.words == counted(network, result.owners, 8)
    assert result.words < result.candidates["kahypar"]
    assert result.words <= 1792  # what contiguous classes for three layers, then cyclic ones, send


def test_chains_that_do_not_fit_never_reach_the_compiled_loops() -> None:
    network = graph_challenge_network(1024, 2)
    balance = layer_balance(network, 4, 0.03)
    right = [np.zeros(1024, np.int32) for _ in range(3)]
    with pytest.raises(ShapeError, match=r"chain 'it' has vectors of \[1024, 1024\]"):
        joint(network, balance, chains={"it": right[:2]})
    for wrong in (-1, 4):
        chain = [*right[:2], np.full(1024, wrong, np.int32)]
        with pytest.raises(ShapeError, match="chain 'it': layer_2 has a part outside 0 to 3"):
            joint(network, balance, chains={"it": chain})


def test_a_search_that_does_not_fit_the_memory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparsednn.machine import machine
    from sparsednn.partitioners.joint import search

    small = replace(machine(), memory=1000)
    monkeypatch.setattr(search, "machine", lambda: small)
    network = graph_challenge_network(1024, 2)
    with pytest.raises(InputError, match=r"needs .* GiB for 128 nets and 4 parts"):
        joint(network, layer_balance(network, 4, 0.03))
