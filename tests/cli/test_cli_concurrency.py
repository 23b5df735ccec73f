"""``cnn concurrency``, and ``--concurrent`` of ``cnn train`` and ``cnn infer``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli.cli_program import Program
from safetensors.numpy import load_file

from onnx_graphs import write_onnx
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.networks import make_network

SMALL = ("pathnet", "--image", "3x8x8", "--classes", "4", "--threads", "2", "--effort", "quick")
DIGITS = ("--inputs", "digits", "--images", "256", "--validate", "none", "--threads", "2")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles of these tests are not those of this machine's user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "concurrency"))


def refused(program: Program, *arguments: Any, code: int = 2) -> str:
    """The one line with which a call is refused."""
    done = program(*arguments)
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if not line.startswith("measured ")]
    assert len(lines) == 1, done.err
    assert done.out == ""
    return str(lines[0])


def test_bounds(program: Program) -> None:
    """Of a chain there is nothing to gain forward, of ten modules nearly ten times."""
    chain = json.loads(program.ok("cnn", "concurrency", "vgg16", "--bounds", "--json").out)
    assert chain["bounds"]["forward"]["bound"] == 1
    assert chain["bounds"]["forward"]["width"] == 1
    assert 1.9 < chain["bounds"]["backward"]["bound"] <= 2
    wide = program.ok("cnn", "concurrency", "pathnet", "--bounds").out.splitlines()
    assert wide[0].startswith("pathnet, 1 images")
    assert wide[2].split() == ["forward", "86", "14", "10", "9.48"]


def test_an_onnx_file(program: Program) -> None:
    """Of one's own network, from a file."""
    pytest.importorskip("onnx", reason="needs onnx: pip install 'sparsednn[onnx]'")
    graph = make_network("pathnet", image=(3, 8, 8), classes=4)
    write_onnx(Path("own.onnx"), graph, initial_parameters(graph))
    found = json.loads(program.ok("cnn", "concurrency", "own.onnx", "--bounds", "--json").out)
    assert found["bounds"]["forward"]["width"] == 10
    done = program.ok("cnn", "concurrency", "own.onnx", "--threads", "2", "--effort", "quick")
    assert "what limits it" in done.out


def test_a_study(program: Program, tmp_path: Path) -> None:
    """All figures, a plan, a trace and a picture; the serial plan is among the candidates."""
    files = {name: tmp_path / f"it.{name}" for name in ("plan", "trace", "svg")}
    call = ("--plan", files["plan"], "--trace", files["trace"], "--plot", files["svg"])
    done = program.ok("cnn", "concurrency", *SMALL, "--training", "--json", *call)
    found = json.loads(done.out)
    assert found["lanes"] == 2
    assert found["training"] is True
    for key in ("work_seconds", "critical_path_seconds", "serial_seconds", "concurrent_seconds"):
        assert found[key] > 0
    assert found["bound"] == pytest.approx(found["work_seconds"] / found["critical_path_seconds"])
    assert found["concurrent_seconds"] <= found["serial_seconds"]
    names = {one["name"] for one in found["schedules"]}
    assert names == {"serial", "serial-one", "serial-all", "list", "search"}
    assert found["chosen"] in names
    assert found["workspace_bytes"] <= found["arena_bytes"]
    assert sum(level["tasks"] for level in found["levels"]) == found["tasks"]
    for one in found["schedules"]:
        assert sum(one["predicted"]["parts"].values()) == pytest.approx(one["predicted_seconds"])
    events = json.loads(files["trace"].read_text())["traceEvents"]
    titles = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert titles == {"measured", "predicted"}
    ran = [event for event in events if event["ph"] == "X" and event["pid"] == 0]
    assert {event["tid"] for event in ran} <= {0, 1}
    assert len(ran) >= found["tasks"]
    assert files["svg"].read_text().startswith("<?xml")

    again = program.ok("cnn", "concurrency", *SMALL, "--training")
    assert "speed-up" in again.out
    assert "measured" not in again.err  # what was measured has been kept


def test_training_and_seeing(program: Program) -> None:
    """With a plan from a file the same bits each time; the serial run's losses to rounding."""
    program.ok(
        "cnn", "concurrency", "lenet5", "--image", "1x8x8", "--batch-size", "64", "--training",
        "--threads", "2", "--effort", "quick", "--plan", "plan.json",
    )  # fmt: skip
    train = ("cnn", "train", "lenet5", *DIGITS, "--epochs", "2", "--lr", "0.05", "--json")
    serial = json.loads(program.ok(*train).out)
    runs = [
        json.loads(program.ok(*train, "--concurrent-plan", "plan.json", "--checkpoint", name).out)
        for name in ("one", "two")
    ]
    assert serial["concurrent"] is None
    assert runs[0]["concurrent"]["lanes"] == 2
    assert runs[0]["loss"] == pytest.approx(serial["loss"], rel=1e-3)
    first, second = (load_file(f"{name}/checkpoint.safetensors") for name in ("one", "two"))
    assert all(first[name].tobytes() == array.tobytes() for name, array in second.items())
    infer = ("cnn", "infer", "one/checkpoint.safetensors", "--inputs", "digits", "--threads", "2")
    program.ok(*infer, "-o", "serial.txt")
    told = program.ok(*infer, "--concurrent", "--batch-size", "100", "-o", "concurrent.txt")
    assert "side by side" in told.out
    assert Path("serial.txt").read_text() == Path("concurrent.txt").read_text()

    other = refused(
        program, *train[:-1], "--batch-size", 32, "--concurrent-plan", "plan.json", code=3
    )
    assert "plan.json: schedule" in other
    assert "64, not 32" in other


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("concurrency", *SMALL, "--workspace-limit", "1"), 2, "workspace limit 1 B: "),
        (("concurrency", *SMALL, "--workspace-limit", "some"), 2, "--workspace-limit"),
        (("concurrency", *SMALL, "--batch-size", 0), 2, "--batch-size must be at least 1"),
        (("concurrency", "lenet5", "--threads", 0), 2, "--threads must be at least 1, found 0"),
        (("concurrency", *SMALL, "--device", "tpu"), 2, "--device is cpu or cuda, found 'tpu'"),
        (("concurrency", "nonet"), 3, "network 'nonet' is unknown"),
        (("concurrency", "lenet5", "--platform", "gpu-node-8"), 2, "is measured, not predicted"),
        (("concurrency", "lenet5", "--platform", "node-64", "--plot", "a.png"), 2, "not --p"),
        (("concurrency", "lenet5", "--plot", "a.gif"), 2, "unknown suffix '.gif'"),
        (("infer", "none.safetensors", "--inputs", "digits", "--workspace-limit", "1M"), 2,
         "--workspace-limit goes with --concurrent"),
        (("infer", "none.safetensors", "--inputs", "digits", "--concurrent", "--ranks", 2), 2,
         "--concurrent is for one process"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    program: Program, arguments: tuple[Any, ...], code: int, line: str
) -> None:
    """One line, and the exit code of its kind."""
    assert line in refused(program, "cnn", *arguments, code=code)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([("a", "b"), ("b", "a")], "operations read each other in a cycle: a → b → a"),
        ([("a", "image"), ("b", "image")], "one output must have no reader, found 'a', 'b'"),
    ],
)
def test_networks_that_are_none(
    program: Program, tmp_path: Path, rows: list[tuple[str, str]], line: str
) -> None:
    """A cycle, and a network in two pieces."""
    operations = [{"kind": "input", "name": "image", "image": [1, 4, 4], "inputs": []}]
    operations += [{"kind": "relu", "name": name, "inputs": [source]} for name, source in rows]
    file = tmp_path / "odd.json"
    content = {"format": "sparsednn operation graph", "version": 1, "name": "odd"}
    file.write_text(json.dumps(content | {"operations": operations}))
    assert line in refused(program, "cnn", "concurrency", file, "--bounds", code=3)
