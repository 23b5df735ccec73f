"""Checkpoints in safetensors: choosing layers, sparse tensors, shards, transposed matrices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import scipy.sparse as sp
from formats.formats_samples import outputs, small_network
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.errors import FormatError, ShapeError, UsageError
from sparsednn.formats import (
    ReadOptions,
    read_network,
    summarize_network,
    write_network,
)
from sparsednn.formats.selection import choose
from sparsednn.sources import load_network, summarize

RNG = np.random.default_rng(7)


def matrix(n_out: int, n_in: int) -> np.ndarray:
    return np.where(RNG.random((n_out, n_in)) < 0.6, RNG.standard_normal((n_out, n_in)), 0).astype(
        np.float32
    )


def chosen(path: Path, *patterns: str, **options: Any) -> list[tuple[int, int]]:
    network = read_network(path, options=ReadOptions(select=patterns, **options))
    return [layer.shape for layer in network]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The names of a transformer's tensors, few of which form a chain."""
    tensors = {"embeddings.word.weight": matrix(30, 6), "embeddings.position_ids": np.arange(9)}
    for k in range(12):
        tensors |= {
            f"encoder.layer.{k}.attention.query.weight": matrix(6, 6),
            f"encoder.layer.{k}.intermediate.dense.weight": matrix(11 + k, 6),
            f"encoder.layer.{k}.intermediate.dense.bias": matrix(1, 11 + k)[0],
            f"encoder.layer.{k}.output.dense.weight": matrix(6, 11 + k),
            f"encoder.layer.{k}.output.LayerNorm.weight": matrix(1, 6)[0],
            f"encoder.layer.{k}.output.LayerNorm.bias": matrix(1, 6)[0],
        }
    tensors |= {"classifier.weight": matrix(3, 6), "classifier.bias": matrix(1, 3)[0]}
    path = tmp_path_factory.mktemp("bert") / "model.safetensors"
    safetensors.numpy.save_file(tensors, path)
    return path


# ---- choosing


def test_the_order_is_that_of_the_patterns(bert: Path) -> None:
    inside = "encoder.layer.10.intermediate.*"
    assert chosen(bert, inside) == [(21, 6)]
    assert chosen(bert, inside, "encoder.layer.10.output.dense") == [(21, 6), (6, 21)]
    # The name of a tensor does as well, and one pattern may fit layer and tensors.
    assert chosen(bert, "classifier") == [(3, 6)]
    assert chosen(bert, "classifier.*") == [(3, 6)]
    assert chosen(bert, "classifier.weight", "classifier") == [(3, 6)]
    last = "encoder.layer.10.output.dense.weight"
    assert chosen(bert, inside, last, "classifier") == [(21, 6), (6, 21), (3, 6)]


def test_natural_order_within_a_pattern(bert: Path) -> None:
    network = read_network(bert, options=ReadOptions(select=("encoder.*.query",)))
    stored = safetensors.numpy.load_file(bert)
    for k, layer in enumerate(network):
        wanted = stored[f"encoder.layer.{k}.attention.query.weight"]
        np.testing.assert_array_equal(layer.weight.toarray(), wanted)
    assert len(network) == 12


def test_leaving_out(bert: Path) -> None:
    pattern = "encoder.layer.2.output*"
    with pytest.raises(FormatError, match=r"'encoder.layer.2.output.LayerNorm.weight' is F32 \[6"):
        chosen(bert, pattern)
    assert chosen(bert, pattern, "!*LayerNorm") == [(6, 13)]
    assert chosen(bert, "!*LayerNorm", "!encoder*", "!emb*") == [(3, 6)]
    with pytest.raises(FormatError, match=r"--select classifier !class\* leaves no layer"):
        chosen(bert, "classifier", "!class*")


def test_regular_expressions(bert: Path) -> None:
    assert chosen(bert, r"re:encoder\.layer\.(3|11)\.attention\.query") == [(6, 6), (6, 6)]
    with pytest.raises(FormatError, match="fits none of its 'classifier', 'embeddings', 'embed"):
        chosen(bert, "re:query")  # the whole name has to fit
    with pytest.raises(UsageError, match=r"--select 're:\(': not a regular expression: missing \)"):
        chosen(bert, "re:(")
    with pytest.raises(UsageError, match="an empty pattern"):
        chosen(bert, "!")


def test_what_is_chosen_must_chain(bert: Path) -> None:
    with pytest.raises(
        ShapeError,
        match=r"model\.safetensors: network 'model': layer 1 has shape \(3, 6\) "
        r"\('classifier.weight'\), layer 2 has shape \(11, 6\) "
        r"\('encoder.layer.0.intermediate.dense.weight'\): 3 outputs do not fit 6 inputs; --select",
    ):
        chosen(bert, "classifier", "encoder.layer.0.intermediate.dense")
    two = ("encoder.layer.0.output.dense", "encoder.layer.0.intermediate.dense")
    assert len(read_network(bert, layers=1, options=ReadOptions(select=two))) == 1


def test_without_a_selection_nothing_is_left_out(bert: Path) -> None:
    with pytest.raises(FormatError, match=r"belongs to no fully .*; --select chooses the layers"):
        read_network(bert)


def test_activations(bert: Path) -> None:
    select = ("encoder.layer.0.intermediate.dense", "encoder.layer.0.output.dense", "classifier")

    def kinds(layers: int | None = None, **options: Any) -> list[str]:
        found = read_network(bert, layers=layers, options=ReadOptions(select=select, **options))
        return [str(layer.activation) for layer in found]

    assert kinds() == ["relu", "relu", "identity"]
    assert kinds(layers=2) == ["relu", "relu"]
    assert kinds(activation="tanh") == ["tanh", "tanh", "identity"]
    assert kinds(activation="clamped_relu:6", output_activation="softmax") == [
        "clamped_relu:6.0", "clamped_relu:6.0", "softmax",
    ]  # fmt: skip


@given(
    st.lists(st.sampled_from(["a", "b.1", "b.2", "b.10", "c.x"]), unique=True, min_size=1),
    st.lists(st.sampled_from(["a", "b.*", "*", "c.?", "*1*", "!b.1", "!c*"]), max_size=4),
)
def test_choose_keeps_its_promises(names: list[str], patterns: list[str]) -> None:
    try:
        found = choose("f", {name: [f"{name}.weight"] for name in names}, patterns)
    except FormatError:  # a pattern fits nothing, or nothing is left
        return
    assert len(set(found)) == len(found) > 0
    assert set(found) <= set(names)
    if not [p for p in patterns if not p.startswith("!")]:
        removed = {n for n in names if ("!b.1" in patterns and n == "b.1") or
                   ("!c*" in patterns and n == "c.x")}  # fmt: skip
        assert set(found) == set(names) - removed
    if patterns[:1] == ["a"]:
        assert found[0] == "a"


# ---- options


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"activation": "gelu"}, "--activation: unknown activation 'gelu': known are identity"),
        ({"activation": "softmax"}, "--activation: only the last layer may have softmax"),
        ({"output_activation": "clamped_relu"}, "--output-activation: .* needs a positive"),
        ({"conv": "toeplitz"}, "--conv toeplitz: known is matrix"),
        ({"conv": "matrix", "input_size": "3x3"}, "exclude each other"),
        ({"input_size": "28"}, r"--input-size: expected HxW or CxHxW, found \(28,\)"),
        ({"input_size": "28*28"}, r"--input-size: expected HxW or CxHxW, found '28\*28'"),
        ({"input_size": "0x28"}, "--input-size: expected HxW"),
        ({"input_size": "1x1x1x1"}, "--input-size: expected HxW"),
        ({"input_size": ""}, "--input-size: expected HxW"),
        ({"conv_stride": "2"}, "--conv-stride needs --input-size"),
        ({"conv_padding": "1"}, "--conv-padding needs --input-size"),
        ({"input_size": "4x4", "conv_stride": "0"}, "--conv-stride must be at least 1, found 0"),
        ({"input_size": "4x4", "conv_stride": "1,-1"}, "--conv-stride: expected numbers"),
        ({"input_size": "4x4", "conv_padding": "1,valid"}, "a number or 'same', found 'valid'"),
        ({"input_size": "4x4", "conv_padding": "-1"}, "a number or 'same', found '-1'"),
    ],
)
def test_wrong_options(texts: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ReadOptions.parse(**texts)  # type: ignore[arg-type]


def test_options_that_were_given() -> None:
    assert ReadOptions().given == ()
    assert ReadOptions.parse().given == ()
    made = ReadOptions.parse(
        select=("a",), transposed=True, input_size="1x2x3", conv_stride="1,2", conv_padding="same"
    )
    assert made.input_size == (1, 2, 3)
    assert made.conv_stride == (1, 2)
    assert made.conv_padding == ("same",)
    assert made.given == (
        "--select", "--transposed", "--input-size", "--conv-stride", "--conv-padding",
    )  # fmt: skip


def test_formats_that_leave_nothing_to_choose(tmp_path: Path) -> None:
    options = ReadOptions(select=("a",))
    native, folder = tmp_path / "a.safetensors", tmp_path / "npz"
    write_network(small_network(), native)
    write_network(small_network(), folder, format="npz")
    (tmp_path / "a.onnx").touch()
    (tmp_path / "gc" / "neuron1024").mkdir(parents=True)
    for model in (native, folder, tmp_path / "a.onnx", tmp_path / "gc", "graph-challenge:1024-2"):
        for function in (load_network, summarize):
            with pytest.raises(UsageError, match="--select does not apply: "):
                function(str(model), options=options)
    assert summarize_network(native, options=ReadOptions()) == small_network().summary


# ---- sparse tensors, shards, transposed matrices


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("form", ["csr", "coo", "coo in another order"])
@pytest.mark.parametrize("transposed", [False, True])
def test_sparse_weights(
    tmp_path: Path, dtype: Any, index: Any, form: str, transposed: bool
) -> None:
    dense = matrix(8, 5).astype(dtype)
    csr = sp.csr_array(dense.astype(np.float32))
    parts: dict[str, Any] = {"values": csr.data.astype(dtype), "shape": np.array([8, 5])}
    if form == "csr":
        parts |= {
            "crow_indices": csr.indptr.astype(index),
            "col_indices": csr.indices.astype(index),
        }
    else:
        coo = csr.tocoo()
        order = np.arange(csr.nnz) if form == "coo" else RNG.permutation(csr.nnz)
        parts["indices"] = np.stack([coo.row[order], coo.col[order]]).astype(index)
        parts["values"] = parts["values"][order]
    path = tmp_path / "sparse.safetensors"
    tensors = {f"fc.weight.{name}": np.ascontiguousarray(part) for name, part in parts.items()}
    safetensors.numpy.save_file(tensors | {"fc.bias": np.ones(5 if transposed else 8, "f4")}, path)
    found = read_network(path, options=ReadOptions(transposed=transposed))[0]
    expected = (dense.T if transposed else dense).astype(np.float32)
    np.testing.assert_array_equal(found.weight.toarray(), expected)
    assert found.bias.tolist() == [1.0] * len(expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"shape": None}, FormatError, r"no tensor 'fc.weight.shape' beside 'fc.weight.values'"),
        ({"col_indices": None}, FormatError, "no tensor 'fc.weight.col_indices' beside"),
        ({"crow_indices": None}, FormatError, "no tensor 'fc.weight.indices' beside"),
        ({"shape": np.array([2, 3, 1])}, FormatError, r"indices must be I32 or I64 .* I64 \[3\]"),
        ({"col_indices": np.ones(3, "f4")}, FormatError, r"found .* col_indices F32 \[3\]"),
        ({"shape": np.array([0, 3])}, FormatError, r"its shape is \[0, 3\]"),
        ({"shape": np.array([4, 3])}, ShapeError, r"layer 1 \('fc'\): row pointers \(3,\) for 4"),
        ({"shape": np.array([2, 2])}, ShapeError, r"layer 1 \('fc'\): row 1: column 2 is out of"),
        ({"crow_indices": np.array([0, 5, 3])}, ShapeError, "indptr must not descend"),
        ({"col_indices": np.array([0, 0, 2])}, Exception, "row 0: column 0 is there twice"),
        ({"values": np.ones(2, "f4")}, ShapeError, r"indices \(3,\) and values \(2,\)"),
        ({"values": np.ones(3, "i4")}, FormatError, r"sparse I32 \[2, 3\]; only fully connected"),
    ],
)  # fmt: skip
def test_damaged_sparse_weights(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    parts = {
        "crow_indices": np.array([0, 2, 3]),
        "col_indices": np.array([0, 1, 2]),
        "values": np.ones(3, np.float32),
        "shape": np.array([2, 3]),
    } | change
    path = tmp_path / "sparse.safetensors"
    tensors = {f"fc.weight.{name}": part for name, part in parts.items() if part is not None}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(error, match=rf"sparse\.safetensors: .*{message}"):
        read_network(path)
    if "crow_indices" not in change and error is ShapeError:
        with pytest.raises(ShapeError, match=r"sparse\.safetensors: layer 1"):
            read_network(path, options=ReadOptions(transposed=True))


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (np.array([[0, 2], [0, 1]]), "row 2 is out of range for 2"),
        (np.array([[0, -1], [0, 1]]), "row -1 is out of range for 2"),
        (np.array([[0, 1], [0, 3]]), "row 1: column 3 is out of range for 3"),
        (np.array([[1, 1], [2, 2]]), "row 1: column 2 is there twice"),
        (np.array([0, 1]), r"'fc.weight.indices' has shape \(2,\), expected \(2, nnz\)"),
        (np.zeros((2, 3), int), r"values \(2,\) must be flat and equally long"),
    ],
)
def test_damaged_coordinates(tmp_path: Path, indices: np.ndarray, message: str) -> None:
    path = tmp_path / "coo.safetensors"
    tensors = {"indices": indices, "values": np.ones(2, "f4"), "shape": np.array([2, 3])}
    safetensors.numpy.save_file({f"fc.weight.{k}": v for k, v in tensors.items()}, path)
    with pytest.raises(Exception, match=rf"coo\.safetensors: .*{message}"):
        read_network(path)


def test_transposed_matrices(tmp_path: Path) -> None:
    path = tmp_path / "keras.safetensors"
    first, second = matrix(7, 4), matrix(4, 3)
    bias = np.float32([1, 2, 3, 4])
    safetensors.numpy.save_file({"a.weight": first, "a.bias": bias, "b.weight": second}, path)
    with pytest.raises(ShapeError, match=r"7 outputs do not fit 3 inputs; .* with --transposed"):
        read_network(path)
    network = read_network(path, options=ReadOptions(transposed=True))
    x = RNG.standard_normal((5, 7)).astype(np.float32)
    expected = np.maximum(x @ first + bias, 0) @ second
    np.testing.assert_allclose(outputs(network, x), expected, rtol=1e-4, atol=1e-5)
    square = matrix(5, 5)
    safetensors.numpy.save_file({"a.weight": square}, path)
    turned = read_network(path, options=ReadOptions(transposed=True))
    np.testing.assert_array_equal(turned[0].weight.toarray(), square.T)


def test_large_layers_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsednn.formats import _csr

    path = tmp_path / "dense.safetensors"
    weight, mask = matrix(23, 7), (RNG.random((23, 7)) < 0.5).astype(np.float32)
    safetensors.numpy.save_file({"a.weight_orig": weight, "a.weight_mask": mask}, path)
    for items in (1, 20, 10_000):
        monkeypatch.setattr(_csr, "_BLOCK_ITEMS", items)
        np.testing.assert_array_equal(read_network(path)[0].weight.toarray(), weight * mask)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    tensors = {"a.weight": matrix(4, 3), "a.bias": matrix(1, 4)[0], "b.weight": matrix(2, 4)}
    safetensors.numpy.save_file(tensors, tmp_path / "whole.safetensors")
    files = {"a.weight": "model-1.safetensors", "b.weight": "model-1.safetensors",
             "a.bias": "model-2.safetensors"}  # fmt: skip
    for file in set(files.values()):
        part = {name: tensors[name] for name in tensors if files[name] == file}
        safetensors.numpy.save_file(part, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": files}))
    return index


def test_shards(shards: Path) -> None:
    whole = read_network(shards.with_name("whole.safetensors"))
    network = read_network(shards)
    assert (network.hash, network.name) == (whole.hash, "model")
    assert chosen(shards, "b") == [(2, 4)]


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("", "not an index of shards"),
        ("[]", "not an index of shards"),
        ('{"weight_map": 3}', "not an index of shards"),
        ('{"weight_map": {"x": "../up.safetensors"}}', "'../up.safetensors' is not the name of a"),
        ('{"weight_map": {"x": "model-9.safetensors"}}', "model-9.safetensors: no such file"),
        ('{"weight_map": {"x": "model-1.safetensors"}}', "tensor 'x' is not in model-1.safetens"),
        ('{"weight_map": {}}', "no 2-D tensor"),
    ],
)
def test_damaged_shards(shards: Path, index: str, message: str) -> None:
    shards.write_text(index)
    with pytest.raises(FormatError, match=message):
        read_network(shards)
