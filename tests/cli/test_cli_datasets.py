"""``datasets``: what is written, and that nothing is where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.cli_program import Program

from sparsednn.datasets import digits_inputs, graph_challenge_network, radix_net
from sparsednn.formats import read_inputs, read_network

NETWORKS = [
    ("native", "radixnet.safetensors"),
    ("npz", "radixnet"),
    ("matrix-market", "radixnet"),
    ("tsv", "neuron24"),
]


@pytest.mark.parametrize(("format", "name"), NETWORKS)
def test_radixnet(program: Program, format: str, name: str) -> None:
    done = program.ok(
        "datasets", "radixnet", "--radices", "2,3;3,2", "--widths", "4,4,4,4,4", "--weight",
        "normal", "--permute", "layers", "--seed", 7, "--bias", "-0.5", "--activation",
        "clamped_relu:32", "--format", format, "--out", "new/folder",
    )  # fmt: skip
    assert done.out == ""
    assert done.err == f"new/folder/{name}: 4 layers, 960 edges, seed 7\n"
    made = radix_net(
        [[2, 3], [3, 2]],
        widths=[4] * 5,
        weight="normal",
        permute="layers",
        seed=7,
        bias=-0.5,
        activation="clamped_relu:32",
    )
    bias = -0.5 if format == "tsv" else None
    assert read_network(Path("new/folder", name), bias=bias).hash == made.hash


@pytest.mark.parametrize("format", ["native", "npz", "matrix-market", "tsv"])
def test_official_network(program: Program, format: str) -> None:
    program.ok(
        "datasets", "radixnet", "--graph-challenge", 1024, "--layers", 3, "--format", format,
        "--out", ".",
    )  # fmt: skip
    (made,) = program.folder.iterdir()
    suffix = {"native": "-l3.safetensors", "tsv": ""}.get(format, "-l3")
    assert made.name == f"neuron1024{suffix}"
    assert read_network(made).hash == graph_challenge_network(1024, 3).hash


@pytest.mark.parametrize(
    ("format", "suffix"),
    [("tsv", ".tsv"), ("npz", ".npz"), ("npy", ".npy"), ("native", ".safetensors")],
)
def test_digits(program: Program, format: str, suffix: str) -> None:
    done = program.ok(
        "datasets", "digits", "--neurons", 64, "--images", 20, "--format", format, "--out", "new"
    )
    made = Path("new", f"sparse-digits-64{suffix}")
    assert done.err.startswith(f"{made}: 20 images, 64 features, ")
    wanted = digits_inputs(64, limit=20).to_dense()
    np.testing.assert_array_equal(read_inputs(made, n_features=64).to_dense(), wanted)


RADIX = ("radixnet", "--radices", "2,2")


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, "either --graph-challenge NEURONS or --radices LISTS", ("radixnet",)),
        (2, "either --graph", (*RADIX, "--graph-challenge", "1024")),
        (2, "'2,,2' is not a comma-separated list", ("radixnet", "--radices", "2,,2")),
        (2, "--radices: ''", ("radixnet", "--radices", "")),
        (2, "--widths: '1,x'", (*RADIX, "--widths", "1,x")),
        (3, "need 3 widths, found 2", (*RADIX, "--widths", "1,2")),
        (3, "from 2 upwards, found 1", ("radixnet", "--radices", "1,2")),
        (3, "list 2 has the product 3", ("radixnet", "--radices", "2,2;3")),
        (2, "--weight: 'x'", (*RADIX, "--weight", "x")),
        (3, "finite float32, found nan", (*RADIX, "--weight", "nan")),
        (2, "permute is one of", (*RADIX, "--permute", "all")),
        (2, "seed must not be negative", (*RADIX, "--seed", "-1")),
        (3, "bias must be a finite", (*RADIX, "--bias", "inf")),
        (3, "unknown activation 'gelu'", (*RADIX, "--activation", "gelu")),
        (2, "--format: 'csv' is none of tsv", (*RADIX, "--format", "csv")),
        (2, "--layers does not apply", (*RADIX, "--layers", "3")),
        (2, "--bias does not apply", ("radixnet", "--graph-challenge", "1024", "--bias", "-1")),
        (2, "--seed does not apply", ("radixnet", "--graph-challenge", "1024", "--seed", "0")),
        (3, "networks of 1024, .* found 1000", ("radixnet", "--graph-challenge", "1000")),
        (3, "found 0", ("radixnet", "--graph-challenge", "1024", "--layers", "0")),
        (
            3,
            "1920 layers",
            ("radixnet", "--graph-challenge", "1024", "--layers", "1921", "--format", "tsv"),
        ),
        # Found out while the folder is written: a Graph Challenge folder has no relu.
        (3, "layer 1: activation relu", (*RADIX, "--format", "tsv")),
        (3, "square number of neurons .* found 60", ("digits", "--neurons", "60")),
        (3, "side of 8 to", ("digits", "--neurons", "16")),
        (2, "--images must be at least 1", ("digits", "--images", "0")),
        (2, "--format: 'csv' is none of tsv", ("digits", "--format", "csv")),
        (2, "--split: 'val'", ("mnist", "--split", "val")),
        (3, "nothing: no such folder", ("mnist", "--mnist", "nothing")),
        (3, "neither train-images-idx3-ubyte nor", ("graph-challenge", "--mnist", ".")),
    ],
)
def test_bad_arguments_leave_no_folder(
    program: Program, code: int, says: str, arguments: tuple[str, ...]
) -> None:
    program.fails(code, says, "datasets", *arguments, "--out", "new/folder")


def test_out_is_a_file(program: Program) -> None:
    Path("file").touch()
    program.fails(3, "file: cannot make this folder", "datasets", *RADIX, "--out", "file")
    program.fails(3, "file/a: cannot make", "datasets", "digits", "--out", "file/a")


def test_old_layers_do_not_mix_in(program: Program) -> None:
    run = ("datasets", "radixnet", "--graph-challenge", 1024, "--format", "tsv", "--out", ".")
    program.ok(*run, "--layers", 3)
    program.ok(*run, "--layers", 3)
    program.fails(3, r"neuron1024: already has n1024-l3\.tsv", *run, "--layers", 2)


@pytest.fixture
def offline(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """No SPARSEDNN_DATA, an empty cache, and no network."""
    import pooch

    def refuse(*args: Any, **options: Any) -> None:
        raise ConnectionError("no network in this test")

    monkeypatch.delenv("SPARSEDNN_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: program.folder / "cache")
    monkeypatch.setattr(pooch, "retrieve", refuse)
    return program


@pytest.mark.parametrize(
    "arguments",
    [
        ("datasets", "mnist", "--out", "new"),
        ("datasets", "graph-challenge", "--out", "new"),
        ("infer", "graph-challenge:1024-2", "--inputs", "graph-challenge:1024"),
        ("infer", "graph-challenge:1024-2", "--inputs", "mnist:test"),
    ],
)
def test_no_mnist(offline: Program, arguments: tuple[str, ...]) -> None:
    says = r"MNIST is not on this machine .*-ubyte\.gz could not be downloaded .*--mnist FOLDER"
    offline.fails(3, says, *arguments, progress=1)


def test_mnist_data_that_is_none(offline: Program) -> None:
    Path("train-images-idx3-ubyte").write_bytes(b"\0\0\x08\3" + b"\0" * 5)
    Path("train-labels-idx1-ubyte").write_bytes(b"")
    says = "train-images-idx3-ubyte: truncated"
    offline.fails(3, says, "datasets", "mnist", "--mnist", ".", "--out", "new")
    offline.patch.setenv("SPARSEDNN_DATA", ".")
    offline.fails(3, says, "datasets", "graph-challenge", "--out", "new")


@pytest.mark.mnist
def test_mnist(program: Program, mnist_folder: Path) -> None:
    program.ok(
        "datasets", "mnist", "--split", "test", "--mnist", mnist_folder, "--images", 10, "--out",
        ".",
    )  # fmt: skip
    inputs = read_inputs("mnist-test.npz")
    assert (inputs.n_features, inputs.n_images) == (784, 10)
    assert inputs.to_dense().max() == 1


@pytest.mark.mnist
def test_official_answer_through_files(
    program: Program, mnist_folder: Path, official_categories: Path
) -> None:
    """The whole challenge, all of it through files in the official layout."""
    program.ok(
        "datasets", "graph-challenge", "--neurons", 1024, "--mnist", mnist_folder, "--out", "."
    )
    images = Path("sparse-images-1024.tsv")
    assert images.read_bytes().count(b"\n") == 6_374_505
    program.ok(
        "datasets", "radixnet", "--graph-challenge", 1024, "--layers", 120, "--format", "tsv",
        "--out", ".",
    )  # fmt: skip
    assert len(list(Path("neuron1024").iterdir())) == 120
    run = ("infer", "neuron1024", "--inputs", images, "--json", "--truth")
    done = program.ok(*run, official_categories, "--categories-out", "found.tsv").json
    assert (done["truth"], done["categories"], done["images"]) == ("pass", 1812, 60000)
    assert Path("found.tsv").read_text().split() == official_categories.read_text().split()
    ids = [int(line) for line in official_categories.read_text().split()]
    missing = next(k for k in range(1, 60001) if k not in set(ids))
    wrong = sorted([*ids[:-1], missing])
    Path("wrong.tsv").write_text("".join(f"{k}\n" for k in wrong))
    failed = program(*run, "wrong.tsv")
    assert (failed.code, failed.json["truth"]) == (4, "fail")
    assert f"1 missing (first: {missing}), 1 too many (first: {ids[-1]})" in failed.err
