"""``validate``: what it refuses before it measures, what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.cli_program import Program

from sparsednn.costmodel.validation import run
from sparsednn.costmodel.validation.cases import Case
from sparsednn.costmodel.validation.measure import Measured

FIXED = Case(kind="inference", network="mlp:16x3@0.5", batch=4)
PAIR = Case(kind="inference", network="mlp:16x3@0.5", batch=4, ranks=2)


@pytest.fixture
def quiet(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program with two cases and no task, whose measuring is made up."""

    def measured(cases: list[Case], **how: Any) -> Measured:
        return Measured({case.name: [0.01] * how["rounds"] for case in cases})

    monkeypatch.setattr(run, "measure", measured)
    monkeypatch.setattr(run, "validation_cases", lambda quick: [FIXED, PAIR])
    monkeypatch.setattr(run, "validation_choices", lambda quick: [])
    return program


@pytest.fixture
def busy(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program, which must not come as far as measuring."""

    def never(*args: Any, **how: Any) -> Measured:
        raise AssertionError("it was measured")

    monkeypatch.setattr(run, "measure", never)
    return program


def test_a_table(quiet: Program) -> None:
    done = quiet.ok("validate")
    assert FIXED.name in done.out
    assert PAIR.name in done.out
    assert "median error" in done.out
    assert "documented two-core-server" in done.err


@pytest.mark.parametrize("how", [(), ("--quick",), ("--rounds", "7")])
def test_json_and_a_file(quiet: Program, how: tuple[str, ...]) -> None:
    done = quiet.ok("validate", "--json", "--out", "found.json", *how)
    kept = json.loads((quiet.folder / "found.json").read_text())
    assert kept == done.json
    assert kept["rounds"] == {"--quick": 3, "--rounds": 7}.get("".join(how[:1]), 5)
    assert [row["name"] for row in kept["cases"]] == [FIXED.name, PAIR.name]
    for key in ("name", "held_out", "measured_seconds", "predicted_seconds", "error"):
        assert all(key in row for row in kept["cases"])
    assert {"platform", "machine", "versions", "date", "median_error", "max_error"} <= set(kept)


def test_against_an_older_one(quiet: Program) -> None:
    quiet.ok("validate", "--out", "old.json")
    done = quiet.ok("validate", "--against", "old.json")
    assert "2 cases are in both" in done.out
    assert quiet.ok("validate", "--against", "old.json", "--json").json["against"]["common"] == 2


def test_a_case_that_failed_is_an_error(quiet: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(cases: list[Case], **how: Any) -> Measured:
        return Measured({FIXED.name: [0.01]}, {PAIR.name: "only 0 of 64 activations"})

    monkeypatch.setattr(run, "measure", measured)
    done = quiet("validate")
    assert done.code == 4
    assert "failed: " in done.out
    assert "1 cases failed" in done.err.splitlines()[-1]


def test_what_is_refused_before_measuring(busy: Program) -> None:
    (busy.folder / "bad.toml").write_text('format = "sparsednn platform"\nversion = 1\n')
    (busy.folder / "old.json").write_text("{}")
    busy.fails(3, "nothing: neither a file nor a documented", "validate", "--platform", "nothing")
    busy.fails(3, "bad.toml: name", "validate", "--platform", "bad.toml")
    busy.fails(3, "no/out.json: cannot write: no folder", "validate", "--out", "no/out.json")
    busy.fails(3, "old.json: not what", "validate", "--against", "old.json")
    busy.fails(2, "--rounds must be at least 1, found 0", "validate", "--rounds", 0, progress=1)


def test_not_under_a_launcher(busy: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    busy.fails(2, "not under mpirun", "validate", progress=1)


def test_help_names_the_options(program: Program) -> None:
    text = program.ok("validate", "--help").out
    for option in ("--platform", "--out", "--quick", "--rounds", "--against", "--json"):
        assert option in text


def test_nothing_else_is_written(quiet: Program) -> None:
    quiet.ok("validate")
    assert list(Path(quiet.folder).iterdir()) == []
