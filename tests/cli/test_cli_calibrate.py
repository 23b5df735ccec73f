"""``calibrate``: what it writes and prints, with made-up measurements; what it refuses."""

from __future__ import annotations

import json

import pytest
from cli.cli_program import Program
from costmodel.made_up import made_up

from sparsednn.costmodel.platform import load_platform
from sparsednn.errors import MissingDependencyError

__all__ = ["made_up"]

OUT = ("calibrate", "--out", "mine.toml")


@pytest.mark.usefixtures("made_up")
def test_table_and_progress(program: Program) -> None:
    done = program.ok(*OUT)
    platform = load_platform(program.folder / "mine.toml")
    assert platform.name == "mine"
    lines = done.out.splitlines()
    assert any(line.split() == ["processor", "flops", "240", "Gflop/s"] for line in lines)
    assert any(line.startswith("links.within latency_seconds") and "µs" in line for line in lines)
    for one in platform.measured["residuals"]:
        assert any(line.startswith(one["model"]) and "%" in line for line in lines)
    assert lines[-1] == f"wrote mine.toml: {platform.source}"
    progress = done.err.splitlines()
    assert all(" s  " in line for line in progress)
    assert any("messages and collectives on 2 ranks" in line for line in progress)


@pytest.mark.usefixtures("made_up")
def test_json(program: Program) -> None:
    done = program.ok(*OUT, "--json", "--name", "a name", "--quick", "--no-ranks")
    told = json.loads(done.out)
    platform = load_platform(program.folder / "mine.toml")
    assert set(told) == {"platform", "name", "source", "figures", "residuals"}
    assert (told["name"], told["source"]) == ("a name", platform.source)
    assert told["figures"]["processor flops"] == platform.processor.flops
    assert told["figures"]["links.within bandwidth"] == platform.within.bandwidth
    assert told["residuals"] == platform.measured["residuals"]


@pytest.mark.usefixtures("made_up")
def test_a_file_is_replaced(program: Program) -> None:
    (program.folder / "mine.toml").write_text("old")
    program.ok(*OUT)
    assert load_platform(program.folder / "mine.toml").name == "mine"


@pytest.fixture
def nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured before all was known to be right")

    monkeypatch.setattr("sparsednn.costmodel.calibration.machine.measure_peak", never)


@pytest.mark.usefixtures("nothing_is_measured")
@pytest.mark.parametrize(
    ("says", "out"),
    [
        (r"none/x\.toml: cannot write: no folder", "none/x.toml"),
        (r"\.: cannot write: it is a folder", "."),
    ],
)
def test_targets(program: Program, says: str, out: str) -> None:
    program.fails(3, says, "calibrate", "--out", out)


@pytest.mark.usefixtures("nothing_is_measured")
def test_no_mpi(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise MissingDependencyError("mpi4py is not installed: pip install 'sparsednn[openmpi]'")

    monkeypatch.setattr("sparsednn.costmodel.calibration.ranks.find_launcher", fails)
    program.fails(5, r"links cannot be measured: mpi4py is not installed: pip.*--no-ranks", *OUT)


@pytest.mark.usefixtures("nothing_is_measured")
def test_under_a_launcher(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    program.fails(2, "not under mpirun", *OUT)
