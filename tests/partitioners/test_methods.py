"""From a network to a partition: every method, its record, the comparison, what is missing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import networks, random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.datasets import graph_challenge_network
from sparsednn.errors import InputError, MissingDependencyError, SparseDNNError, UsageError
from sparsednn.partitioners import (
    EFFORTS,
    METHODS,
    Compared,
    Options,
    Partition,
    compare,
    evaluate,
    make_partition,
    read_partition,
)
from sparsednn.partitioners.balance import layer_balance
from sparsednn.partitioners.methods import NATIVE, RULES

PARTS = (1, 2, 7, 64)
ALL = [("multiphase", name) for name in (*RULES, *NATIVE)]
ALL += [("joint", None), ("joint", "random"), ("joint", "kahypar"), ("joint", "mtkahypar")]
BALANCED = {"joint", "random", *NATIVE}


def installed(name: str | None) -> None:
    if name in NATIVE:
        pytest.importorskip(name)


def quick(parts: int, **changed: Any) -> Options:
    return Options(parts, effort="quick", **changed)


def heaviest(network: SparseNetwork, partition: Partition) -> list[int]:
    found = []
    for layer, owners in zip(network, partition.owners[1:], strict=True):
        found.append(int(np.bincount(owners, weights=np.diff(layer.indptr)).max()))
    return found


def keeps_caps(network: SparseNetwork, partition: Partition, imbalance: float) -> bool:
    caps = layer_balance(network, partition.parts, imbalance).caps
    return all(load <= cap for load, cap in zip(heaviest(network, partition), caps, strict=True))


def equal(one: Partition, other: Partition) -> bool:
    return all((a == b).all() for a, b in zip(one.owners, other.owners, strict=True))


def stable(size: int = 40, layers: int = 3) -> SparseNetwork:
    rng = np.random.default_rng(3)
    return SparseNetwork(
        [random_layer(rng, size, size, density=0.15, shared=0.2) for _ in range(layers)]
    )


@pytest.mark.parametrize(("method", "partitioner"), ALL)
@settings(max_examples=8, deadline=None)
@given(
    network=networks(),
    parts=st.sampled_from(PARTS),
    imbalance=st.sampled_from([0.0, 0.03, 1.0]),
    seed=st.sampled_from([0, 1, 2**31 - 1]),
)
def test_every_method_is_legal_on_any_network(
    method: str,
    partitioner: str | None,
    network: SparseNetwork,
    parts: int,
    imbalance: float,
    seed: int,
) -> None:
    installed(partitioner)
    options = quick(parts, imbalance=imbalance, seed=seed)
    made = make_partition(network, options, method=method, partitioner=partitioner)
    made.check(network)
    assert made.parts == parts
    meta = made.meta
    shown = "rule" if method == "multiphase" and partitioner in RULES else method
    assert (meta.method, meta.seed, meta.imbalance) == (shown, seed, imbalance)
    assert (meta.network, meta.hash) == (network.name, network.hash)
    if {method, partitioner} & BALANCED:
        assert keeps_caps(network, made, imbalance)
    stats = evaluate(network, made)
    assert parts > 1 or stats.words_total == 0
    assert stats.words_total <= sum(
        np.unique(layer.indices).size * min(parts - 1, layer.n_out) for layer in network
    )


@pytest.mark.parametrize(("method", "partitioner"), ALL)
def test_same_seed_same_partition(method: str, partitioner: str | None) -> None:
    installed(partitioner)
    network = stable()
    one, again = (
        make_partition(network, quick(5, seed=4), method=method, partitioner=partitioner)
        for _ in range(2)
    )
    assert equal(one, again)
    assert one.meta == again.meta
    if (method, partitioner) == ("joint", None):
        other = make_partition(network, quick(5, seed=4, threads=3), method=method)
        assert equal(one, other)
        assert other.meta.threads == 3


@pytest.mark.parametrize("partitioner", ["random", *NATIVE])
def test_another_seed_another_partition(partitioner: str) -> None:
    installed(partitioner)
    made = [
        make_partition(stable(), quick(5, seed=seed), method="multiphase", partitioner=partitioner)
        for seed in range(4)
    ]
    assert not all(equal(made[0], other) for other in made[1:])


def test_random_layers_differ_from_each_other() -> None:
    made = make_partition(stable(), quick(5), method="multiphase", partitioner="random")
    assert (made.owners[1] != made.owners[2]).any()
    assert np.bincount(made.owners[0], minlength=5).tolist() == [8] * 5


def test_what_is_recorded_survives_the_file(tmp_path: Any) -> None:
    installed("kahypar")
    network = stable()
    options = quick(3, seed=9, preset="quality", imbalance=0.1)
    made = make_partition(network, options, method="multiphase", partitioner="kahypar")
    assert made.meta.partitioner == "kahypar"
    assert made.meta.preset == "quality"
    assert made.meta.version
    made.save(tmp_path / "p.npz")
    found = read_partition(tmp_path / "p.npz")
    assert found.meta == made.meta
    assert equal(found, made)
    found.check(network)


def test_joint_records_its_candidates() -> None:
    installed("kahypar")
    made = make_partition(stable(), quick(3), partitioner="kahypar")
    assert made.meta.method == "joint"
    assert "annealing" in made.meta.partitioner
    assert "kahypar" in made.meta.partitioner
    assert "kahypar 1." in (made.meta.version or "")


def test_joint_is_not_worse_than_the_chain_it_is_given() -> None:
    installed("kahypar")
    network = stable(60, 4)
    one = make_partition(network, quick(6), method="multiphase", partitioner="kahypar")
    best = make_partition(network, quick(6), partitioner="kahypar")
    assert evaluate(network, best).words_total <= evaluate(network, one).words_total


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"parts": 0}, InputError, "parts must be at least 1, found 0"),
        ({"parts": -3}, InputError, "found -3"),
        ({"imbalance": -0.1}, InputError, "imbalance must be a number of at least 0"),
        ({"imbalance": float("nan")}, InputError, "found nan"),
        ({"imbalance": float("inf")}, InputError, "found inf"),
        ({"seed": -1}, UsageError, "seed must be in 0 to 2147483647"),
        ({"seed": 2**31}, UsageError, "seed must be in"),
        ({"threads": 0}, UsageError, "threads must be at least 1"),
        ({"effort": "much"}, UsageError, "no effort 'much'; there are quick, default"),
    ],
)
def test_options_out_of_range(
    changed: dict[str, Any], error: type[SparseDNNError], message: str
) -> None:
    with pytest.raises(error, match=message):
        replace(Options(2), **changed)


@pytest.mark.parametrize(
    ("method", "partitioner", "changed", "message"),
    [
        ("best", None, {}, "no method 'best'; there are joint, multiphase"),
        ("multiphase", "metis", {}, "no partitioner 'metis'; there are kahypar"),
        ("joint", "metis", {}, "no partitioner 'metis'"),
        ("multiphase", "cyclic", {"preset": "default"}, "cyclic: has no presets"),
        ("multiphase", "kahypar", {"preset": "fast"}, "no preset 'fast'"),
        ("multiphase", "file", {}, "file: needs a path"),
        ("multiphase", "command", {}, "command: needs a command"),
    ],
)
def test_names_that_are_none(
    method: str, partitioner: str | None, changed: dict[str, Any], message: str
) -> None:
    installed(partitioner)
    with pytest.raises(UsageError, match=message):
        make_partition(stable(), quick(2, **changed), method=method, partitioner=partitioner)
    assert set(METHODS) == {"joint", "multiphase"}


def test_huge_imbalance_asks_for_no_balance() -> None:
    made = make_partition(stable(), quick(4, imbalance=1e300))
    assert evaluate(stable(), made).words_total == 0


def test_default_joint_uses_what_is_installed_and_says_what_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    stages: list[tuple[str, float]] = []
    network = stable(12, 2)
    monkeypatch.setitem(sys.modules, "kahypar", None)
    monkeypatch.setitem(sys.modules, "mtkahypar", None)
    monkeypatch.setitem(EFFORTS, "default", (0.1, EFFORTS["default"][1]))
    options = Options(3, warn=told.append, report=lambda *stage: stages.append(stage))
    made = make_partition(network, options)
    assert keeps_caps(network, made, 0.03)
    for name in NATIVE:
        assert sum(f"pip install {name}" in line for line in told) == 1
        assert name not in made.meta.partitioner
    assert all(0 <= share <= 1 for _, share in stages)
    assert stages
    make_partition(network, replace(options, warn=None, report=None))  # nobody listens


def test_default_joint_takes_native_chains() -> None:
    for name in NATIVE:
        installed(name)
    told: list[str] = []
    stages: list[str] = []
    options = Options(3, warn=told.append, report=lambda name, _: stages.append(name))
    made = make_partition(stable(12, 2), options)
    assert all(name in made.meta.partitioner for name in NATIVE)
    assert set(NATIVE) <= set(stages)
    assert not any("not installed" in line for line in told)


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("method", ["multiphase", "joint"])
def test_a_missing_partitioner_that_was_asked_for(
    name: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError) as caught:
        make_partition(stable(), quick(2), method=method, partitioner=name)
    assert f"pip install {name}" in str(caught.value)
    assert "\n" not in str(caught.value)


def ways(rows: list[Compared]) -> list[tuple[str, str]]:
    return [(row.method, row.partitioner) for row in rows]


def check_comparison(network: SparseNetwork, rows: list[Compared], imbalance: float) -> None:
    for row in rows:
        row.partition.check(network)
        assert row.stats.words_total == evaluate(network, row.partition).words_total
        assert row.seconds >= 0
    best = rows[-1]
    assert best.method == "joint"
    assert keeps_caps(network, best.partition, imbalance)
    for row in rows[:-1]:
        if keeps_caps(network, row.partition, imbalance):
            assert best.stats.words_total <= row.stats.words_total


@settings(max_examples=6, deadline=None)
@given(networks(), st.sampled_from([1, 3, 64]), st.sampled_from([0.0, 0.03]))
def test_comparison(network: SparseNetwork, parts: int, imbalance: float) -> None:
    for name in NATIVE:
        installed(name)
    rows = list(compare(network, quick(parts, imbalance=imbalance)))
    assert ways(rows[:-1]) == [
        *(("rule", name) for name in RULES),
        *(("multiphase", name) for name in NATIVE),
    ]
    check_comparison(network, rows, imbalance)


def test_comparison_without_kahypar(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NATIVE:
        monkeypatch.setitem(sys.modules, name, None)
    told: list[str] = []
    rows = list(compare(stable(12, 2), quick(3, warn=told.append)))
    assert ways(rows[:-1]) == [("rule", name) for name in RULES]
    missing = [line for line in told if line.startswith("not in the comparison")]
    assert len(missing) == 2
    assert all("pip install" in line for line in missing)


def test_comparison_yields_as_it_goes_and_takes_no_preset() -> None:
    rows = compare(stable(), quick(3))
    assert isinstance(rows, Iterator)
    assert next(rows).partitioner == "block"
    with pytest.raises(UsageError, match="preset"):
        compare(stable(), quick(3, preset="default"))


def test_official_network() -> None:
    for name in NATIVE:
        installed(name)
    network = graph_challenge_network(1024, 6)
    rows = list(compare(network, quick(8)))
    check_comparison(network, rows, 0.03)
    words = {row.partitioner: row.stats.words_per_layer for row in rows}
    assert words["block"] == [7168] * 6
    assert words["cyclic"] == [1024, 1024, 1024, 0, 0, 0]
    assert sum(words["kahypar"]) <= 3200
    assert sum(words["random"]) == pytest.approx(6 * 7074, rel=0.01)
    totals = [row.stats.words_total for row in rows]
    assert totals[-1] < min(totals[:-1])


def test_more_parts_than_neurons_and_heavy_rows() -> None:
    # One row of 30, many of 1; 64 parts for 13 rows.
    rows = [list(range(30))] + [[i] for i in range(12)]
    pointers = np.cumsum([0, *map(len, rows)])
    layer = SparseLayer(pointers, np.concatenate(rows), np.ones(pointers[-1], np.float32), 30)
    network = SparseNetwork([layer])
    for method, partitioner in ALL:
        installed(partitioner)
        made = make_partition(network, quick(64), method=method, partitioner=partitioner)
        stats = evaluate(network, made)
        assert stats.empty_parts_max >= 51
        if {method, partitioner} & BALANCED:
            assert heaviest(network, made) == [30]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"preset": "quality"}, "a preset belongs to a partitioner: name it"),
        ({"path": "parts"}, "a path belongs to a partitioner: name file"),
        ({"command": "tool"}, "a command belongs to a partitioner: name command"),
    ],
)
def test_options_of_a_partitioner_that_was_not_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_partition(stable(), quick(2, **changed))
    with pytest.raises(UsageError, match="belong to one"):
        compare(stable(), quick(2, **changed))


def test_joint_goes_on_where_a_library_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    installed("kahypar")
    from sparsednn.partitioners.solvers.kahypar import KahyparSolver

    def fails(*arguments: object, **named: object) -> None:
        raise InputError("kahypar: too heavy for it")

    monkeypatch.setattr(KahyparSolver, "solve", fails)
    monkeypatch.setitem(EFFORTS, "default", (0.1, EFFORTS["default"][1]))
    told: list[str] = []
    made = make_partition(stable(12, 2), Options(3, warn=told.append))
    assert "kahypar: too heavy for it" in " ".join(told)
    assert "+kahypar" not in made.meta.partitioner


def test_another_number_of_threads_is_told_not_refused() -> None:
    installed("mtkahypar")
    network = stable()
    told: list[str] = []
    made = [
        make_partition(
            network,
            quick(3, threads=threads, warn=told.append),
            method="multiphase",
            partitioner="mtkahypar",
        )
        for threads in (1, 2)
    ]
    assert equal(*made)
    assert len([line for line in told if "threads that it has in this process" in line]) >= 1


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    options = Options(np.int64(3), imbalance=np.float32(0.5), seed=np.int64(2), effort="quick")  # type: ignore[arg-type]
    made = make_partition(stable(), options, method="multiphase", partitioner="cyclic")
    made.save(tmp_path / "p.npz")
    assert read_partition(tmp_path / "p.npz").meta == made.meta


def test_too_many_parts_for_a_table_of_pairs() -> None:
    with pytest.raises(InputError, match="at most 8192"):
        Options(8193)


@pytest.mark.parametrize("rows", [False, True])
def test_rows_stay_together_unless_asked_otherwise(
    rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("kahypar")
    from sparsednn.partitioners import multiphase as module

    asked: list[bool] = []
    real = module.multiphase

    def noted(*arguments: Any, together: bool, **named: Any) -> Any:
        asked.append(together)
        return real(*arguments, together=together, **named)

    monkeypatch.setattr(module, "multiphase", noted)
    network = graph_challenge_network(1024, 1)
    made = make_partition(network, quick(8, rows=rows), method="multiphase")
    assert asked == [not rows]
    assert evaluate(network, made).words_total == 128


def test_native_chains_only_as_far_as_the_effort_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    installed("kahypar")
    network = graph_challenge_network(1024, 1)
    # Its 64 units have 2048 pins: with log2(8) = 3 that is 6144 for each library.
    for allowed, expected in ((6000.0, "cyclic"), (7000.0, "cyclic+kahypar")):
        monkeypatch.setitem(EFFORTS, "quick", (0.1, allowed))
        made = make_partition(network, quick(8))
        assert made.meta.partitioner == f"annealing+{expected}"
