"""``plan``, ``sweep`` and ``simulate``: nothing is started, all of it is predicted."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cli.cli_program import Program

NET = "net.safetensors"
ON = ("--platform", "infiniband-128", "--quiet")
CHEAP = (*ON, "--partition", "cyclic,random", "--threads", 1)

ROW = {
    "ranks", "nodes", "images", "fits", "memory_limit", "least_memory_bytes", "candidates",
    "strategy", "grid", "threads", "configuration", "speedup", "efficiency", "seconds", "words",
    "memory_bytes", "bound", "parts", "charged", "by_strategy",
}  # fmt: skip
HEAD = {"model", "platform", "training", "images", "notes"}
SIMULATED = {
    "ranks", "nodes", "method", "seconds", "formula_seconds", "path_seconds", "waiting", "words",
    "messages", "imbalance", "speedup", "efficiency",
}  # fmt: skip


def numbers(count: str) -> tuple[Any, ...]:
    """The option that says how many, without what makes a test file start ranks."""
    return ("-" * 2 + "ranks", count)


# --- plan ---------------------------------------------------------------------------------------


def test_a_plan_as_json(small: Program) -> None:
    done = small.ok("plan", NET, *CHEAP, *numbers("1..8"), "--batch", 64, "--json")
    assert done.err == ""
    found = done.json
    assert set(found) == HEAD | {"memory_per_rank", "rows"}
    assert (found["model"], found["platform"]) == ("small", "infiniband-128")
    assert (found["training"], found["images"], found["memory_per_rank"]) == (False, 64, None)
    assert [row["ranks"] for row in found["rows"]] == [1, 2, 4, 8]
    for row in found["rows"]:
        assert set(row) == ROW
        assert row["fits"]
        assert row["seconds"] == min(one["seconds"] for one in row["by_strategy"].values())
        assert row["seconds"] == pytest.approx(sum(row["charged"].values()))
        assert row["seconds"] == pytest.approx(sum(row["parts"].values()))
        assert row["memory_bytes"] <= row["memory_limit"]
    assert found["rows"][0]["speedup"] == found["rows"][0]["efficiency"] == 1.0


def test_a_plan_for_people(small: Program) -> None:
    done = small.ok("plan", NET, *CHEAP, *numbers("1,4"), "--plot", "plan.svg")
    lines = done.out.splitlines()
    assert lines[0] == "small on infiniband-128: inference of 256 images"
    assert lines[2].split() == [
        "ranks", "nodes", "configuration", "seconds", "speed-up", "efficiency", "words", "memory",
        "a", "rank", "bound",
    ]  # fmt: skip
    assert [line.split()[0] for line in lines[3:]] == ["1", "4"]
    assert (small.folder / "plan.svg").stat().st_size > 1000


def test_a_plan_of_training(small: Program) -> None:
    found = small.ok(
        "plan", NET, *CHEAP, *numbers("1,4"), "--training", "--optimizer", "adam", "--json"
    ).json
    assert found["training"]
    plain = small.ok("plan", NET, *CHEAP, *numbers("1,4"), "--training", "--json").json
    for adam, sgd in zip(found["rows"], plain["rows"], strict=True):
        assert adam["seconds"] > sgd["seconds"]
        assert adam["memory_bytes"] > sgd["memory_bytes"]


def test_a_plan_of_a_dense_network(program: Program) -> None:
    call = ("plan", "lenet5", *ON, *numbers("1,2"), "--batch", 32, "--threads", 1)
    found = program.ok(*call, "--json").json
    assert found["training"]
    assert set(found["rows"][1]["by_strategy"]) > {"data", "2d", "3d", "auto"}
    some = program.ok(*call, "--algorithm", "data,auto", "--json").json
    assert set(some["rows"][1]["by_strategy"]) == {"data", "auto"}
    done = program.ok(*call, "--algorithm", "data", "--inference")
    assert "lenet5 on infiniband-128: inference of 32 images" in done.out


def test_a_platform_of_one_s_own(small: Program) -> None:
    from sparsednn.costmodel.platform import load_platform, save_platform

    save_platform(load_platform("node-64"), "own.toml")
    call = ("--quiet", "--partition", "cyclic", *numbers("64"), "--json")
    own = small.ok("plan", NET, "--platform", "own.toml", *call).json
    assert own == small.ok("plan", NET, "--platform", "node-64", *call).json


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, r"ranks '4\.\.2': the range 4\.\.2 is empty", numbers("4..2")),
        (2, r"ranks 'many': 'many' is neither a number nor a range", numbers("many")),
        (2, r"ranks '0': there is at least 1, found 0", numbers("0")),
        (2, "infiniband-128 has 8192 ranks .* 10000 are too many", numbers("1..10000")),
        (2, "--batch must be at least 1, found 0", ("--batch", 0)),
        (2, "--memory-per-rank: an amount such as 2G", ("--memory-per-rank", "much")),
        (2, "does not fit 1.0 KiB a rank on 1, 2 ranks: it needs at least .* a rank, on 2",
         ("--memory-per-rank", "1K", *numbers("1,2"))),
        (2, "--threads must be at least 1", ("--threads", 0)),
        (2, "--optimizer is one of sgd, momentum, adam: 'lion'", ("--optimizer", "lion")),
        (2, "--partition 'metis': known are", ("--partition", "metis")),
        (2, "--effort is one of", ("--effort", "much")),
        (2, "--cache nowhere: there is no such folder", ("--cache", "nowhere")),
        (2, "--algorithm belongs to dense networks", ("--algorithm", "data")),
        (2, "--image 'large': channels, height and width", ("--image", "large")),
        (2, "--layers-sampled must be at least 0", ("--layers-sampled", -1)),
        (2, "unknown suffix '.txt' for a picture", ("--plot", "plan.txt")),
        (3, "neither a file nor a documented platform", ("--platform", "moon")),
        (3, "nowhere.npz: no such file", ("--partition", "nowhere.npz")),
    ],
)  # fmt: skip
def test_calls_that_are_wrong(
    small: Program, code: int, says: str, arguments: tuple[Any, ...]
) -> None:
    small.fails(code, says, "plan", NET, *ON, *arguments)


def test_models_that_are_none(small: Program) -> None:
    small.fails(3, "no such file", "plan", "nothing.safetensors", *ON, *numbers("1"))
    small.fails(3, "'what:ever'", "plan", "what:ever", *ON, *numbers("1"))
    small.fails(2, "--layers belongs to sparse networks", "plan", "vgg16", *ON, "--layers", 3)
    (small.folder / "own.json").write_text("{}")
    small.fails(3, "own.json", "plan", "own.json", *ON, *numbers("1"))


def test_a_platform_file_that_is_nonsense(small: Program) -> None:
    (small.folder / "bad.toml").write_text('format = "sparsednn platform"\nversion = 1\n')
    line = small.fails(3, "bad.toml", "plan", NET, "--platform", "bad.toml", *numbers("1"))
    assert "is missing" in line


def test_a_network_that_is_sampled_says_so(program: Program) -> None:
    call = ("plan", "graph-challenge:1024-120", *ON, "--partition", "cyclic", *numbers("4"))
    assert "of 120 layers were partitioned" in program.ok(*call, "--layers-sampled", 12).out
    assert program.ok(*call, "--layers", 12, "--json").json["notes"] == []


# --- sweep --------------------------------------------------------------------------------------


def test_a_sweep(small: Program) -> None:
    call = ("sweep", NET, *CHEAP, *numbers("8"), "--axis", "flops", "--values", "0.5,1,2")
    found = small.ok(*call, "--json").json
    assert set(found) == HEAD | {"axis", "ranks", "memory_per_rank", "rows"}
    assert [row["value"] for row in found["rows"]] == [0.5, 1.0, 2.0]
    seconds = [row["seconds"] for row in found["rows"]]
    assert seconds == sorted(seconds, reverse=True)
    assert seconds[0] > seconds[-1]
    assert all(set(row) == ROW | {"value"} for row in found["rows"])
    done = small.ok(*call, "--plot", "sweep.svg")
    assert done.out.splitlines()[0] == ("small on infiniband-128: inference of 256 images, 8 ranks")
    assert (small.folder / "sweep.svg").exists()


def test_sweeps_of_numbers(small: Program) -> None:
    batch = small.ok("sweep", NET, *CHEAP, *numbers("4"), "--axis", "batch", "--values", "1..16",
                     "--json").json  # fmt: skip
    assert [row["images"] for row in batch["rows"]] == [1, 2, 4, 8, 16]
    nodes = small.ok("sweep", NET, *ON, "--partition", "cyclic", "--threads", 1, "--axis", "nodes",
                     "--values", "1,2", "--json").json  # fmt: skip
    assert [row["ranks"] for row in nodes["rows"]] == [64, 128]


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("--axis 'speed': known are batch, flops", ("--axis", "speed", "--values", "1")),
        ("--axis flops needs", ("--axis", "flops", "--values", "1")),
        ("--values '1,x': positive numbers", ("--axis", "flops", "--values", "1,x", *numbers("2"))),
        ("takes no", ("--axis", "nodes", "--values", "1", *numbers("2"))),
        ("8192 ranks", ("--axis", "flops", "--values", "1", *numbers("9999"))),
    ],
)
def test_sweeps_that_are_wrong(small: Program, says: str, arguments: tuple[Any, ...]) -> None:
    small.fails(2, says, "sweep", NET, *CHEAP, *arguments)


# --- simulate -----------------------------------------------------------------------------------


def test_a_simulation(small: Program) -> None:
    call = ("simulate", NET, *ON, *numbers("1..4"), "--partition", "random", "--compare", "cyclic")
    found = small.ok(*call, "--json").json
    assert set(found) == HEAD | {"threads", "rows"}
    assert [(row["ranks"], row["method"]) for row in found["rows"]] == [
        (1, "alone"), (2, "random"), (2, "cyclic"), (4, "random"), (4, "cyclic"),
    ]  # fmt: skip
    assert all(set(row) == SIMULATED for row in found["rows"])
    done = small.ok(*call, "--plot", "simulation.svg")
    assert done.out.splitlines()[0] == "small on infiniband-128: inference of 1 image"
    assert (small.folder / "simulation.svg").exists()


def test_a_simulation_of_a_file_s_partition(small: Program) -> None:
    small.ok("partition", NET, "--parts", 4, "--partitioner", "cyclic", "--quiet", "-o", "p.npz")
    done = small.ok("simulate", NET, *ON, "--partition", "p.npz", "--images", 8, "--training",
                    "--trace", "trace.json", "--json")  # fmt: skip
    (row,) = done.json["rows"]
    assert (row["ranks"], row["method"]) == (4, "p.npz")
    events = json.loads((small.folder / "trace.json").read_text())["traceEvents"]
    assert len({event["pid"] for event in events}) == 4
    small.fails(2, "the partition's file has 4 parts", "simulate", NET, *ON, "--partition", "p.npz",
                *numbers("8"))  # fmt: skip
    small.fails(3, "made for network 'small'", "simulate", "graph-challenge:1024-2", *ON,
                "--partition", "p.npz")  # fmt: skip


@pytest.mark.parametrize(
    ("says", "arguments"),
    [
        ("--trace is for one number", ("--trace", "t.json", *numbers("1..4"))),
        ("is empty", numbers("4..2")),
        ("--partition 'metis'", ("--compare", "metis")),
        ("--threads must be at least 1", ("--threads", 0)),
        ("--threads: a step of training", ("--training", "--threads", 2, *numbers("2"))),
    ],
)
def test_simulations_that_are_wrong(small: Program, says: str, arguments: tuple[Any, ...]) -> None:
    small.fails(2, says, "simulate", NET, *ON, *arguments)


def test_dense_networks_are_not_simulated(program: Program) -> None:
    program.fails(2, "vgg16 is a dense network", "simulate", "vgg16", *ON, *numbers("2"))
