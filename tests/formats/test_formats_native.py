"""The native file: safetensors made and read without the library, and dense checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from formats.formats_samples import layer, names, networks, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.formats import native, read_network, summarize_network, write_network


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    write_network(small_network(), path)
    return path


def tamper(path: Path, change: Any) -> None:
    """Rewrite the header with `change` applied to it; the data stays."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@settings(deadline=None, max_examples=60)
@given(networks(), st.data())
def test_round_trip_rows_and_summary(
    tmp_path_factory: pytest.TempPathFactory, network: SparseNetwork, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "native.safetensors"
    write_network(network, path)
    back = read_network(path)
    assert (back.hash, back.name) == (network.hash, network.name)
    assert summarize_network(path) == network.summary
    count = data.draw(st.integers(1, len(network)))
    part = SparseNetwork(network.layers[:count], name=network.name)
    assert read_network(path, layers=count).hash == part.hash
    assert summarize_network(path, layers=count) == part.summary
    i = data.draw(st.integers(0, len(network) - 1))
    start = data.draw(st.integers(0, network[i].n_out - 1))
    stop = data.draw(st.integers(start + 1, network[i].n_out))
    rows = native.read_rows(path, i, start, stop)
    full = network[i]
    first, last = full.indptr[start], full.indptr[stop]
    assert rows.shape == (stop - start, full.n_in)
    assert rows.activation == full.activation
    np.testing.assert_array_equal(rows.indptr, full.indptr[start : stop + 1] - first)
    np.testing.assert_array_equal(rows.indices, full.indices[first:last])
    np.testing.assert_array_equal(rows.values, full.values[first:last])
    np.testing.assert_array_equal(rows.bias, full.bias[start:stop])


def test_arrays_are_aligned_read_only_views_on_one_map(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    network = SparseNetwork([layer(rng, 7, 5, 0.5), layer(rng, 3, 7, 0.5), layer(rng, 9, 3, 0.4)])
    write_network(network, tmp_path / "n.safetensors")
    back = native.read(tmp_path / "n.safetensors")
    bases = set()
    for one in back:
        for array in (one.indptr, one.indices, one.values, one.bias):
            assert array.flags.aligned
            assert not array.flags.writeable
            assert not array.flags.owndata
            base = array
            while isinstance(base.base, np.ndarray):
                base = base.base
            bases.add(id(base))
    assert len(bases) == 1


def test_the_library_reads_it(small: Path) -> None:
    tensors = safetensors.numpy.load_file(small)
    network = small_network()
    assert len(tensors) == 8
    for i, one in enumerate(network):
        for part in ("indptr", "indices", "values", "bias"):
            np.testing.assert_array_equal(tensors[f"layers.{i}.{part}"], getattr(one, part))
    with safetensors.safe_open(small, "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "sparsednn-network"
    assert metadata["hash"] == network.hash
    assert json.loads(metadata["layers"])[0] == {
        "n_out": 2,
        "n_in": 3,
        "nnz": 3,
        "activation": "relu",
        "bias_min": float(np.float32(0.1)),
        "bias_max": float(np.float32(0.2)),
    }
    # What the library saves again is read as well.
    safetensors.numpy.save_file(tensors, small, metadata)
    assert read_network(small).hash == network.hash
    assert summarize_network(small) == network.summary


def test_unaligned_data_is_copied(small: Path) -> None:
    tamper(small, lambda header: header["__metadata__"].update(pad="x"))
    lengths = set()
    for pad in range(8):
        tamper(small, lambda header, n=pad: header["__metadata__"].update(pad="x" * n))
        lengths.add(int.from_bytes(small.read_bytes()[:8], "little") % 8)
        assert read_network(small).hash == small_network().hash
    assert len(lengths) == 8


def test_every_truncation_is_found(small: Path) -> None:
    whole = small.read_bytes()
    for size in range(len(whole)):
        small.write_bytes(whole[:size])
        for function in (read_network, summarize_network):
            with pytest.raises(FormatError, match=r"small\.safetensors: truncated"):
                function(small)
    small.write_bytes(whole + b"\0")
    with pytest.raises(FormatError, match="too long"):
        read_network(small)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff" * 100, "its header would be"),
        (b"\x02" + b"\0" * 7 + b"{]", "its header is not JSON"),
        (b"\x02" + b"\0" * 7 + b"[]", "its header is not a JSON object"),
        (b"\x02" + b"\0" * 7 + b"{}", "neither a native network nor a dense model"),
        (b"\x14" + b"\0" * 7 + b'{"__metadata__":{1}}', "its header is not JSON"),
        (b"\x15" + b"\0" * 7 + b'{"__metadata__":"no"}', "must map texts to texts"),
    ],
)
def test_not_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"bad\.safetensors: .*" + message):
        read_network(path)


def set_in(name: str, key: str, value: object) -> Any:
    return lambda header: header[name].__setitem__(key, value)


def set_layers(change: Any) -> Any:
    def run(header: Any) -> None:
        layers = json.loads(header["__metadata__"]["layers"])
        change(layers)
        header["__metadata__"]["layers"] = json.dumps(layers)

    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("layers.0.indptr", "data_offsets", [8, 32]), "'layers.0.indptr' leaves a hole"),
        (set_in("layers.1.indptr", "data_offsets", [16, 32]), "'layers.1.indptr' overlaps"),
        (set_in("layers.0.indptr", "shape", [4]), "takes 32 bytes, its data_offsets say 24"),
        (set_in("layers.0.indptr", "shape", [-3]), "must be whole numbers"),
        (set_in("layers.0.indptr", "shape", "3"), "must be whole numbers"),
        (set_in("layers.0.indptr", "data_offsets", [0]), "lacks a dtype, a shape or two"),
        (set_in("layers.0.indptr", "dtype", "I65"), "unknown dtype 'I65'"),
        (set_in("layers.0.indptr", "dtype", "F64"), r"layer 1: tensor 'layers.0.indptr' F64 \[3\]"),
        (lambda h: h.update({"layers.9.x": h.pop("layers.1.bias")}), "layers.1.bias' is missing"),
        (set_in("__metadata__", "format_version", "2"), "format version 2, this program reads 1"),
        (set_in("__metadata__", "layers", "{"), "no usable list of layers"),
        (set_in("__metadata__", "layers", "[]"), "a network of no layers"),
        (set_in("__metadata__", "layers", "[3]"), "no usable list of layers"),
        (
            set_layers(lambda x: x[0].update(nnz=4)),
            r"layers.0.indices' I32 \[3\], expected I32 \[4\]",
        ),
        (set_layers(lambda x: x[0].update(activation="rely")), "unknown activation 'rely'"),
        (set_layers(lambda x: x[0].update(n_in=float("inf"))), "no usable list of layers"),
    ],
)
def test_inconsistent_headers(small: Path, change: Any, message: str) -> None:
    tamper(small, change)
    for function in (read_network, summarize_network):
        with pytest.raises(FormatError, match=r"small\.safetensors: .*" + message):
            function(small)


def test_wrong_content_names_file_and_layer(small: Path) -> None:
    tamper(small, set_layers(lambda x: x[1].update(n_in=5)))
    with pytest.raises(ShapeError, match=r"small\.safetensors: network 'small': layer 1 has"):
        read_network(small)
    tamper(small, set_layers(lambda x: x[1].update(n_in=1)))
    with pytest.raises(ShapeError, match=r"small\.safetensors: layer 2: row 0: column 1 is out of"):
        read_network(small)
    with pytest.raises(ShapeError, match="layer 2, rows from 0: row 0: column 1"):
        native.read_rows(small, 1, 0, 1)


def test_corrupt_data_is_found(small: Path) -> None:
    raw = bytearray(small.read_bytes())
    at = 8 + int.from_bytes(raw[:8], "little")
    raw[at + 8 : at + 16] = (99).to_bytes(8, "little")  # indptr of layer 0: 0, 99, 3
    small.write_bytes(raw)
    with pytest.raises(ShapeError, match="layer 1: indptr must not descend"):
        read_network(small)
    with pytest.raises(FormatError, match="layer 1: rows 0 to 1 would be entries 0 to 99 of 3"):
        native.read_rows(small, 0, 0, 1)


def test_wrong_calls(small: Path) -> None:
    with pytest.raises(FormatError, match="has 2 layers, 3 were asked for"):
        read_network(small, layers=3)
    with pytest.raises(FormatError, match="has 2 layers, 3 were asked for"):
        summarize_network(small, layers=3)
    with pytest.raises(UsageError, match="layers must be at least 1"):
        summarize_network(small, layers=0)
    for function in (read_network, summarize_network):
        with pytest.raises(UsageError, match="the file has its biases inside"):
            function(small, bias=-1.0)
    with pytest.raises(UsageError, match="no layer 2: it has layers 0 to 1"):
        native.read_rows(small, 2, 0, 1)
    for start, stop in ((0, 0), (-1, 1), (1, 3)):
        with pytest.raises(UsageError, match=f"layer 1: no rows {start} to {stop}"):
            native.read_rows(small, 0, start, stop)


def test_failed_write_keeps_the_old_file(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = small.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FormatError, match=r"small\.safetensors: cannot write: No space left"):
        write_network(small_network(), small)
    assert small.read_bytes() == before
    assert names(small.parent) == ["small.safetensors"]


# ---- dense checkpoints


def save_dense(path: Path, **tensors: Any) -> Path:
    file = {key.replace("__", "."): np.asarray(value) for key, value in tensors.items()}
    safetensors.numpy.save_file(file, path)
    return path


def test_dense_checkpoint(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {}
    for k in (1, 2, 10):  # file order and alphabet would put fc10 before fc2
        w = rng.standard_normal((4, 4)).astype(np.float32)
        weights[f"fc{k}"] = np.where(rng.random((4, 4)) < 0.5, w, 0)
    bias = np.float32([1, -2, 3, 0])
    path = save_dense(
        tmp_path / "dense.safetensors",
        fc2__bias=bias,
        **{f"{name}__weight": w for name, w in weights.items()},
    )
    network = read_network(path)
    assert [str(one.activation) for one in network] == ["relu", "relu", "identity"]
    for one, name in zip(network, ("fc1", "fc2", "fc10"), strict=True):
        np.testing.assert_array_equal(one.weight.toarray(), weights[name])
        assert one.nnz == np.count_nonzero(weights[name])
    assert network[1].bias.tolist() == bias.tolist()
    assert not network[0].bias.any()
    assert network.name == "dense"
    assert summarize_network(path) == network.summary
    assert [str(one.activation) for one in read_network(path, layers=2)] == ["relu", "relu"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_dense_checkpoint_dtypes(tmp_path: Path, dtype: Any) -> None:
    weight = np.float32([[0, 1.5, -2], [0.25, 0, 0]])
    path = tmp_path / "dense.safetensors"
    if dtype == "bfloat16":
        raw = (weight.view(np.uint32) >> 16).astype("<u2").tobytes()
        header = json.dumps(
            {"fc.weight": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, len(raw)]}}
        ).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw)
    else:
        save_dense(path, fc__weight=weight.astype(dtype))
    np.testing.assert_array_equal(read_network(path)[0].weight.toarray(), weight)


def test_dense_checkpoint_of_torch_pruning(tmp_path: Path) -> None:
    path = save_dense(
        tmp_path / "pruned.safetensors",
        fc__weight_orig=np.float32([[1, 2], [3, 4]]),
        fc__weight_mask=np.float32([[1, 0], [0, 1]]),
    )
    assert read_network(path)[0].weight.toarray().tolist() == [[1, 0], [0, 4]]
    save_dense(path, fc__weight_orig=np.float32([[1, 2]]))
    with pytest.raises(FormatError, match=r"no tensor 'fc\.weight_mask'"):
        read_network(path)


@pytest.mark.parametrize(
    ("tensors", "error", "message"),
    [
        ({"conv__weight": np.zeros((2, 2, 3, 3), np.float32)}, FormatError, "only fully connected"),
        ({"fc__weight": np.zeros((2, 2), np.int64)}, FormatError, "only fully connected"),
        ({"x": np.zeros(3, np.float32)}, FormatError, r"no 2-D tensor '\*\.weight'"),
        (
            {"fc__weight": np.ones((2, 2), np.float32), "bn__mean": np.zeros(2, np.float32)},
            FormatError,
            "tensor 'bn.mean' belongs to no fully connected layer",
        ),
        (
            {"fc__weight": np.ones((2, 2), np.float32), "fc__bias": np.zeros(3, np.float32)},
            FormatError,
            r"tensor 'fc.bias' is F32 \[3\], expected F16 or BF16 or F32 or F64 \[2\]",
        ),
        (
            {"a__weight": np.ones((2, 2), np.float32), "b__weight": np.ones((2, 3), np.float32)},
            ShapeError,
            "network 'bad': layer 1 has shape",
        ),
        (
            {"a__weight": np.float32([[1, np.nan]])},
            InputError,
            r"layer 1 \('a'\): weight \(0, 1\) is nan",
        ),
        (
            {"a__weight": np.float64([[1, 1e300]])},
            InputError,
            r"layer 1 \('a'\): weight \(0, 1\) is inf",
        ),
    ],
)
def test_dense_checkpoint_errors(
    tmp_path: Path, tensors: Any, error: type[Exception], message: str
) -> None:
    path = save_dense(tmp_path / "bad.safetensors", **tensors)
    with pytest.raises(error, match=r"bad\.safetensors: .*" + message):
        read_network(path)


def test_many_layers_and_stored_zeros(tmp_path: Path) -> None:
    one = SparseLayer([0, 2], [0, 1], [0.0, -0.0], 2)
    back = SparseLayer([0, 1, 1], [0], [0.0], 1)
    network = SparseNetwork([one, back] * 30)
    write_network(network, tmp_path / "z.safetensors")
    assert read_network(tmp_path / "z.safetensors").hash == network.hash
