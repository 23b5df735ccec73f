"""``inspect`` and ``convert``: every format in and out, and names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli.cli_program import Program
from cli.conftest import BIAS

KEYS = {"network", "layers", "inputs", "outputs", "edges", "bytes", "hash", "layer"}
CHECK = ("inspect", "net.safetensors", "--check")
MODELS = [["net.safetensors"], ["npz"], ["mtx"], ["neuron64", "--bias", BIAS]]


def test_inspect_says_the_same_of_every_format(small: Program) -> None:
    found = []
    for model in MODELS:
        done = small.ok("inspect", *model, "--check", "--json")
        assert done.err == ""
        # Without --check as little is read as the format allows; no hash can be known of text.
        quick = small.ok("inspect", *model, "--json").json
        assert quick == done.json | {"hash": None if "neuron64" in model else done.json["hash"]}
        assert set(done.json) == KEYS
        found.append({key: done.json[key] for key in KEYS - {"network"}})
    assert all(one == found[0] for one in found)
    assert (found[0]["layers"], found[0]["inputs"], found[0]["edges"]) == (2, 64, 1024)
    assert found[0]["layer"][1] == {
        "n_out": 64,
        "n_in": 64,
        "nnz": 512,
        "density": 0.125,
        "activation": "clamped_relu:32.0",
        "bias_min": BIAS,
        "bias_max": BIAS,
    }


def test_inspect_for_people(small: Program) -> None:
    done = small.ok("inspect", "net.safetensors")
    lines = [line.split() for line in done.out.splitlines()]
    assert ["edges", "1,024"] in lines
    assert ["2", "64", "64", "512", "12.500%", "clamped_relu:32.0"] in lines
    assert done.err == ""


def test_a_deep_network_is_shown_in_part(program: Program) -> None:
    out = program.ok("inspect", "graph-challenge:1024-20").out
    assert "(8 more; --json lists all)" in out
    assert len(out.splitlines()) == 22
    assert len(program.ok("inspect", "graph-challenge:1024-20", "--json").json["layer"]) == 20


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model[0]))
def test_first_layers(small: Program, model: list[object]) -> None:
    inspect = ["inspect", *model, "--check", "--json"]
    found = small.ok(*inspect, "--layers", 1).json
    assert (found["layers"], found["edges"], len(found["layer"])) == (1, 512, 1)
    whole = small.ok(*inspect, "--layers", 2).json
    assert whole["hash"] == small.ok(*inspect).json["hash"] != found["hash"]
    small.ok("convert", *model, "one.safetensors", "--layers", 1)
    assert small.ok("inspect", "one.safetensors", "--json").json["hash"] == found["hash"]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model[0]))
@pytest.mark.parametrize(
    ("out", "format"),
    [
        ("b.safetensors", None),
        ("b.safetensors", "native"),
        ("b", "npz"),
        ("b", "matrix-market"),
        ("b", "graph-challenge"),
    ],
)
def test_convert_keeps_the_network(
    small: Program, model: list[object], out: str, format: str | None
) -> None:
    options = [] if format is None else ["--format", format]
    done = small.ok("convert", *model, out, *options)
    found_hash = small.ok("inspect", "net.safetensors", "--json").json["hash"]
    assert done.out == ""
    assert done.err == f"{out}: 2 layers, 1,024 edges, hash {found_hash[:16]}…\n"
    bias = ["--bias", BIAS] if format == "graph-challenge" else []
    assert small.ok("inspect", out, *bias, "--check", "--json").json["hash"] == found_hash


def test_check_holds_a_native_file_against_its_own_hash(small: Program) -> None:
    small.ok("inspect", "net.safetensors", "--check")
    content = bytearray(Path("net.safetensors").read_bytes())
    content[-1] ^= 0x01  # a bit of the last layer's last bias or weight
    Path("net.safetensors").write_bytes(content)
    small.ok("inspect", "net.safetensors")
    small.fails(3, r"net\.safetensors: its content has the hash \w+, its header says", *CHECK)


def test_convert_onto_itself(small: Program) -> None:
    wanted = small.ok("inspect", "net.safetensors", "--json").json
    small.ok("convert", "net.safetensors", "net.safetensors")  # mapped while it is replaced
    assert small.ok("inspect", "net.safetensors", "--json").json == wanted


def test_one_plain_layer_fits_a_single_file(program: Program) -> None:
    for suffix in (".npz", ".mtx"):
        program.ok(
            "datasets", "radixnet", "--radices", "4", "--activation", "identity", "--out", "."
        )
        program.ok("convert", "radixnet.safetensors", f"one{suffix}")
        found = program.ok("inspect", f"one{suffix}", "--json").json
        assert found["hash"] == program.ok("inspect", "radixnet.safetensors", "--json").json["hash"]


def test_bias_of_a_graph_challenge_folder(program: Program) -> None:
    program.ok(
        "datasets", "radixnet", "--graph-challenge", 1024, "--layers", 2, "--format", "tsv",
        "--out", "made/here",
    )  # fmt: skip
    folder = "made/here/neuron1024"
    assert sorted(p.name for p in Path(folder).iterdir()) == ["n1024-l1.tsv", "n1024-l2.tsv"]
    official = program.ok("inspect", folder, "--check", "--json").json
    named = program.ok("inspect", "graph-challenge:1024-2", "--json").json
    assert official["hash"] == named["hash"]
    assert official["layer"][0]["bias_max"] == pytest.approx(-0.3)
    other = program.ok("inspect", folder, "--bias", "-0.5", "--json").json
    assert other["layer"][0]["bias_max"] == -0.5
    assert program.ok("inspect", "made/here", "--check", "--json").json["hash"] == named["hash"]


def test_names(program: Program) -> None:
    assert program.ok("inspect", "graph-challenge:1024", "--json").json["layers"] == 120
    two = program.ok("inspect", "graph-challenge:4096-3", "--layers", 2, "--json").json
    assert (two["layers"], two["inputs"]) == (2, 4096)
    assert two["hash"] == program.ok("inspect", "graph-challenge:4096-2", "--json").json["hash"]


def test_a_path_wins_over_a_name(small: Program) -> None:
    Path("npz").rename("graph-challenge:1024-2")
    found = small.ok("inspect", "graph-challenge:1024-2", "--json").json
    assert found["inputs"] == 64


def test_names_of_files_that_no_terminal_can_show(small: Program) -> None:
    strange = "b\udcff ×"  # a byte that is not UTF-8, as Python sees it
    Path("npz").rename(strange)
    Path(strange, "network.json").unlink()
    wanted = small.ok("inspect", strange, "--json").json["hash"]
    assert "inputs" in small.ok("inspect", strange).out
    for out, format in (
        ("c.safetensors", "native"),
        ("c", "npz"),
        (f"{strange}.safetensors", "native"),
    ):
        small.ok("convert", strange, out, "--format", format)
        assert small.ok("inspect", out, "--json").json["hash"] == wanted
    small.fails(3, "no such file", "inspect", "\udcfe")


def test_native_metadata_of_another_hand(small: Program) -> None:
    raw = Path("net.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    layers = json.loads(header["__metadata__"]["layers"])
    layers[0]["n_in"] = 0
    header["__metadata__"]["layers"] = json.dumps(layers)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    Path("odd.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    small.fails(3, r"odd\.safetensors: layer 1: shape \(64, 0\)", "inspect", "odd.safetensors")
