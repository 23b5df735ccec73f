"""``prune``, and the options for reading checkpoints in all commands that take a MODEL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from cli.cli_program import Program

from sparsednn.formats import ReadOptions, read_network
from sparsednn.pruning import prune


@pytest.fixture
def files(program: Program) -> Program:
    """The program in a folder with a dense checkpoint ``dense.safetensors`` of two branches."""
    rng = np.random.default_rng(1)
    tensors = {
        "body.0.weight": rng.standard_normal((20, 16)),
        "body.0.bias": rng.standard_normal(20),
        "body.2.weight": rng.standard_normal((10, 20)),
        "other.weight": rng.standard_normal((7, 16)),
        "conv.weight": rng.standard_normal((3, 1, 3, 3)),
    }
    safetensors.numpy.save_file(
        {name: array.astype(np.float32) for name, array in tensors.items()}, "dense.safetensors"
    )
    np.save("x.npy", rng.random((16, 30), np.float32))
    Path("empty.onnx").touch()
    Path("folder").mkdir()
    return program


BODY = ("dense.safetensors", "--select", "body.*")
PRUNE = ("prune", *BODY, "--sparsity", "0.75")


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_prune(files: Program, scope: str) -> None:
    done = files.ok(*PRUNE, "--scope", scope, "--out", "out.safetensors", "--json")
    assert done.err == ""
    source = read_network("dense.safetensors", options=ReadOptions(select=("body.*",)))
    expected = prune(source, 0.75, scope=scope)
    assert read_network("out.safetensors").hash == expected.hash == done.json["hash"]
    found = done.json
    assert {key: found[key] for key in ("network", "out", "layers", "edges_before", "edges")} == {
        "network": "dense", "out": "out.safetensors", "layers": 2, "edges_before": 520,
        "edges": 130,
    }  # fmt: skip
    assert (found["sparsity_before"], found["sparsity"]) == (0.0, 0.75)
    if scope == "layer":
        assert found["layer"] == [
            {"n_out": 20, "n_in": 16, "nnz_before": 320, "nnz": 80, "density_before": 1.0,
             "density": 0.25},
            {"n_out": 10, "n_in": 20, "nnz_before": 200, "nnz": 50, "density_before": 1.0,
             "density": 0.25},
        ]  # fmt: skip


def test_prune_for_people(files: Program) -> None:
    out = files.ok(*PRUNE, "--scope", "layer", "--keep", 2, "--out", "new", "--format", "npz").out
    lines = [line.split() for line in out.splitlines()]
    assert ["edges", "520", "→", "280"] in lines
    assert ["1", "20", "16", "320", "80", "100.000%", "25.000%"] in lines
    assert ["2", "10", "20", "200", "200", "100.000%", "100.000%"] in lines
    assert [layer.nnz for layer in read_network("new")] == [80, 200]


def test_a_layer_that_ends_empty_is_told(files: Program) -> None:
    done = files.ok("prune", *BODY, "--sparsity", 0.999, "--out", "out.safetensors")
    assert done.err == (
        "layer 2 has no weights left: its outputs no longer depend on the input\n"
    ) or done.err.startswith("layer 1 has no weights left")


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (2, "--sparsity must be at least 0 and below 1, found 1.0", ("--sparsity", "1")),
        (2, "--sparsity must be at least 0 and below 1, found -0.5", ("--sparsity", "-0.5")),
        (2, "--sparsity must be at least 0 and below 1, found nan", ("--sparsity", "nan")),
        (2, "--scope row: known are global, layer", ("--scope", "row")),
        (2, "no layer 3 to keep", ("--keep", "3")),
        (2, r"dense\.safetensors: is the model itself", ("--out", "./dense.safetensors")),
        (2, r"a\.pt: a file of format 'torch' is only read", ("--out", "a.pt")),
        (2, "writing a folder needs a format", ("--out", "a")),
        (2, "unknown format 'h5'", ("--out", "a", "--format", "h5")),
        (3, "no folder", ("--out", "no/a.safetensors")),
        (3, "no/a: cannot write", ("--out", "no/a", "--format", "npz")),
        (3, "fits none of its 'body.0', 'body.2', 'conv', 'other'", ("--select", "head")),
    ],
)  # fmt: skip
def test_bad_calls(files: Program, code: int, says: str, arguments: tuple[str, ...]) -> None:
    out = () if "--out" in arguments else ("--out", "out.safetensors")
    files.fails(code, says, *PRUNE, *out, *arguments)


@pytest.mark.parametrize("missing", ["--sparsity", "--out"])
def test_what_prune_needs(files: Program, missing: str) -> None:
    given = {"--sparsity": "0.5", "--out": "a.safetensors"}
    del given[missing]
    done = files("prune", "dense.safetensors", *(part for pair in given.items() for part in pair))
    assert (done.code, done.out) == (2, "")
    assert missing in done.err


# ---- the options for reading


def test_every_command_reads_checkpoints_alike(files: Program) -> None:
    choice = (*BODY, "--activation", "tanh", "--output-activation", "softmax")
    shown = files.ok("inspect", *choice, "--json").json
    assert [layer["activation"] for layer in shown["layer"]] == ["tanh", "softmax"]
    files.ok("convert", *choice, "out.safetensors")
    files.ok("prune", *choice, "--sparsity", 0, "--out", "pruned.safetensors")
    for made in ("out.safetensors", "pruned.safetensors"):
        assert files.ok("inspect", made, "--json").json["hash"] == shown["hash"]
    run = ("--inputs", "x.npy", "--kernel", "reference", "--outputs-out")
    files.ok("infer", *choice, *run, "a.npy")
    files.ok("infer", "out.safetensors", *run, "b.npy")
    np.testing.assert_array_equal(np.load("a.npy"), np.load("b.npy"))
    stored = safetensors.numpy.load_file("dense.safetensors")
    z = stored["body.2.weight"] @ np.tanh(
        stored["body.0.weight"] @ np.load("x.npy") + stored["body.0.bias"][:, None]
    )
    expected = np.exp(z) / np.exp(z).sum(axis=0)
    found = np.load("a.npy")
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_select_keeps_its_order(files: Program) -> None:
    shown = files.ok("inspect", "dense.safetensors", "--select", "body.0", "--select", "body.2",
                     "--json").json  # fmt: skip
    assert (shown["inputs"], shown["outputs"]) == (16, 10)
    files.fails(
        3, r"layer 1 has shape .*'body.2.weight'.*10 outputs do not fit 16 inputs",
        "inspect", "dense.safetensors", "--select", "body.2", "--select", "body.0",
    )  # fmt: skip


def test_convolutions(files: Program) -> None:
    conv = ("dense.safetensors", "--select", "conv")
    files.fails(3, "convolution needs --input-size HxW or --conv matrix", "inspect", *conv)
    layer = files.ok("inspect", *conv, "--conv", "matrix", "--json").json["layer"][0]
    assert (layer["n_out"], layer["n_in"]) == (3, 9)
    whole = (*conv, "--input-size", "4x4", "--conv-padding", "same", "--conv-stride", "1")
    shown = files.ok("inspect", *whole, "--json").json
    assert (shown["outputs"], shown["inputs"]) == (48, 16)
    files.ok("convert", *conv, "--input-size", "4x4", "--conv-padding", "1", "out.safetensors")
    assert files.ok("inspect", "out.safetensors", "--json").json["hash"] == shown["hash"]


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        (3, "belongs to no fully|convolution needs", ("dense.safetensors",)),
        (2, "--activation: unknown activation 'gelu'", (*BODY, "--activation", "gelu")),
        (2, "--input-size: expected HxW", (*BODY, "--input-size", "big")),
        (2, "--conv-stride needs --input-size", (*BODY, "--conv-stride", "2")),
        (2, "--input-size does not apply: no layer is", (*BODY, "--input-size", "4x4")),
        (2, "1024-1: --select does not apply", ("graph-challenge:1024-1", "--select", "a")),
        (2, r"empty\.onnx: --transposed does not apply", ("empty.onnx", "--transposed")),
        (2, "has its biases inside", ("empty.onnx", "--bias", "1")),
        (3, "10 outputs do not fit 16 inputs|7 outputs", (*BODY, "--select", "other")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["inspect", "convert", "prune", "infer"])
def test_bad_reading(
    files: Program, command: str, code: int, says: str, arguments: tuple[str, ...]
) -> None:
    more = {
        "inspect": ("--json",),
        "convert": ("out.safetensors",),
        "prune": ("--sparsity", "0.5", "--out", "out.safetensors"),
        "infer": ("--inputs", "x.npy", "--kernel", "reference"),
    }
    files.fails(code, says, command, *arguments, *more[command])


@pytest.mark.parametrize("command", ["inspect", "convert", "prune", "infer"])
def test_help_tells_of_them(program: Program, command: str) -> None:
    text = program.ok(command, "--help").out
    for option in ("--select", "--activation", "--input-size", "--conv", "--transposed"):
        assert option in text


def test_a_model_of_torch(files: Program) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    layer = torch.nn.Linear(16, 4)
    torch.save({"state_dict": layer.state_dict()}, "net.pt")
    shown = files.ok("inspect", "net.pt", "--json").json
    assert (shown["inputs"], shown["outputs"], shown["edges"]) == (16, 4, 64)
    files.ok("prune", "net.pt", "--sparsity", 0.5, "--out", "net.safetensors")
    torch.save(layer, "whole.pt")
    files.fails(3, r"whole\.pt: not a state dict: it holds Python objects", "inspect", "whole.pt")
    Path("net.pt").write_bytes(Path("net.pt").read_bytes()[:-9])
    files.fails(3, r"net\.pt: not a PyTorch file, or truncated", "inspect", "net.pt")
    files.fails(2, "out.pth: a file of format 'torch' is only read", "convert", *BODY, "out.pth")


def test_a_model_of_onnx(files: Program) -> None:
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
    files.fails(3, r"empty\.onnx: not an ONNX model, or truncated", "inspect", "empty.onnx")
    helper = onnx.helper
    weight = onnx.numpy_helper.from_array(np.eye(16, 5, dtype=np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", 1, ["N", 16])],
        [helper.make_tensor_value_info("y", 1, ["N", 5])],
        [weight],
    )
    onnx.save(helper.make_model(graph), "net.onnx")
    files.ok("infer", "net.onnx", "--inputs", "x.npy", "--kernel", "reference",
             "--outputs-out", "y.npy")  # fmt: skip
    np.testing.assert_array_equal(np.load("y.npy"), np.load("x.npy")[:5])


@pytest.mark.parametrize(("library", "model"), [("torch", "net.pt"), ("onnx", "empty.onnx")])
def test_what_is_not_installed(
    files: Program, monkeypatch: pytest.MonkeyPatch, library: str, model: str
) -> None:
    import sys

    Path(model).touch()
    monkeypatch.setitem(sys.modules, library, None)
    files.fails(5, rf"{model}: reading it needs .*: pip install .*{library}", "inspect", model)
