"""Folders of SciPy and Matrix Market files, with and without network.json."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse as sp
from formats.formats_samples import layer, names, networks, small_network
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.formats import read_network, summarize_network, write_network

BOTH = pytest.mark.parametrize(("format", "suffix"), [("npz", ".npz"), ("matrix-market", ".mtx")])
HEAD = "%%MatrixMarket matrix coordinate "


@settings(deadline=None, max_examples=40)
@given(networks(), st.sampled_from(["npz", "matrix-market"]))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, network: SparseNetwork, format: str
) -> None:
    folder = tmp_path_factory.mktemp("matrices") / "net"
    write_network(network, folder, format=format)
    back = read_network(folder)
    assert (back.hash, back.name) == (network.hash, network.name)
    assert summarize_network(folder) == network.summary
    first = SparseNetwork(network.layers[:1])
    assert read_network(folder, layers=1).hash == first.hash


@BOTH
def test_files_of_a_folder(tmp_path: Path, format: str, suffix: str) -> None:
    folder = tmp_path / "net"
    write_network(small_network(), folder, format=format)
    assert names(folder) == ["bias-1.npy", f"layer-1{suffix}", f"layer-2{suffix}", "network.json"]
    assert json.loads((folder / "network.json").read_text()) == {
        "format": "sparsednn-network",
        "version": 1,
        "name": "small",
        "layers": [
            {"file": f"layer-1{suffix}", "activation": "relu", "bias": "bias-1.npy"},
            {"file": f"layer-2{suffix}", "activation": "identity", "bias": -1.0},
        ],
    }


@BOTH
def test_single_file(tmp_path: Path, format: str, suffix: str) -> None:
    one = SparseNetwork([SparseLayer([0, 2, 2], [0, 2], [1.5, 0.0], 3)])
    path = tmp_path / f"one{suffix}"
    write_network(one, path)
    back = read_network(path)
    assert (back.hash, back.name) == (one.hash, "one")
    assert read_network(path, bias=0.5)[0].bias.tolist() == [0.5, 0.5]
    with pytest.raises(FormatError, match="has 1 layers, 2 were asked"):
        read_network(path, layers=2)
    before = path.read_bytes()
    for network, what in (
        (small_network(), "2 layers"),
        (SparseNetwork([SparseLayer([0, 0], [], [], 1, bias=1)]), "identity or a bias"),
        (SparseNetwork([SparseLayer([0, 0], [], [], 1, bias=-0.0)]), "identity or a bias"),
        (SparseNetwork([SparseLayer([0, 0], [], [], 1, activation="relu")]), "relu or a bias"),
    ):
        with pytest.raises(UsageError, match=rf"one {suffix} file holds one layer.*{what}"):
            write_network(network, path)
    assert path.read_bytes() == before
    assert names(tmp_path) == [path.name]


@BOTH
def test_foreign_folder_in_natural_order(tmp_path: Path, format: str, suffix: str) -> None:
    rng = np.random.default_rng(0)
    folder = tmp_path / "lenet"
    folder.mkdir()
    shapes = {"w2": (4, 5), "w10": (3, 4), "w1": (5, 6)}
    matrices = {name: layer(rng, *shape, 0.5).weight for name, shape in shapes.items()}
    for name, matrix in matrices.items():
        if suffix == ".npz":
            sp.save_npz(folder / f"{name}.npz", matrix.tocsc() if name == "w2" else matrix)
        else:
            scipy.io.mmwrite(folder / f"{name}.mtx", matrix)
    (folder / "README.txt").touch()
    network = read_network(folder)
    assert network.name == "lenet"
    assert [one.shape for one in network] == [(5, 6), (4, 5), (3, 4)]
    assert [str(one.activation) for one in network] == ["relu", "relu", "identity"]
    np.testing.assert_array_equal(network[1].weight.toarray(), matrices["w2"].toarray())
    assert not network[0].bias.any()
    assert read_network(folder, bias=-0.5)[2].bias.tolist() == [-0.5] * 3
    with pytest.raises(UsageError, match="bias inf: it must be finite"):
        read_network(folder, bias=float("inf"))
    with pytest.raises(FormatError, match="lenet: has 3 layers, 4 were asked for"):
        read_network(folder, layers=4)


@BOTH
def test_biases_of_the_folder_are_not_overridden(tmp_path: Path, format: str, suffix: str) -> None:
    write_network(small_network(), tmp_path / "net", format=format)
    with pytest.raises(UsageError, match=r"network\.json says what the biases are"):
        read_network(tmp_path / "net", bias=1.0)


def test_rewriting_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    deep = SparseNetwork([SparseLayer([0, 1], [0], [1.0], 1)] * 5)
    write_network(deep, folder, format="npz")
    (folder / "notes.txt").touch()
    write_network(small_network(), folder, format="npz")  # network.json leaves the old ones out
    assert read_network(folder).hash == small_network().hash
    assert {"layer-5.npz", "notes.txt"} <= set(names(folder))
    with pytest.raises(FormatError, match=r"net: already has layer-1\.npz and 4 more"):
        write_network(small_network(), folder, format="matrix-market")
    assert read_network(folder).hash == small_network().hash
    assert names(tmp_path) == ["net"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda c: c["layers"][0].update(file="no.npz"), FormatError, r"no\.npz: no such file"),
        (
            lambda c: c["layers"][0].update(file="../x.npz"),
            FormatError,
            "layer 1: '../x.npz' is not",
        ),
        (lambda c: c["layers"][0].update(file=None), FormatError, "layer 1: None is not the name"),
        (lambda c: c["layers"][0].update(bias="no.npy"), FormatError, r"no\.npy: no such file"),
        (lambda c: c["layers"][0].update(bias="layer-1.npz"), FormatError, "not a list of real"),
        (lambda c: c["layers"][0].update(bias="network.json"), FormatError, "not a NumPy array"),
        (lambda c: c["layers"][1].update(bias="bias-1.npy"), ShapeError, r"layer-2\.npz: bias has"),
        (lambda c: c["layers"][0].update(bias=None), FormatError, "layer 1: bias None is neither"),
        (lambda c: c["layers"][0].update(bias=10**400), FormatError, "layer 1: bias 1000"),
        (lambda c: c["layers"][0].update(bias=1e300), FormatError, "layer 1: bias 1e\\+300 is"),
        (
            lambda c: c["layers"][0].update(activation="x"),
            InputError,
            r"network\.json: layer 1: unk",
        ),
        (lambda c: c["layers"][0].pop("activation"), FormatError, "layer 1: expected an object"),
        (lambda c: c["layers"].reverse(), ShapeError, "net: network 'small': layer 1 has shape"),
        (lambda c: c.update(layers=[]), FormatError, "no list 'layers' of at least one layer"),
        (lambda c: c.update(version=2), FormatError, "'sparsednn-network' version 2, expected"),
        (lambda c: c["layers"][0].update(activation="softmax"), InputError, "softmax in layer 1"),
        (
            lambda c: c["layers"].append({"activation": "relu"}),
            FormatError,
            "layer 3: names no file, and the folder has only 2",
        ),
    ],
)
def test_sidecar_errors(tmp_path: Path, change: Any, error: type[Exception], message: str) -> None:
    folder = tmp_path / "net"
    write_network(small_network(), folder, format="npz")
    content = json.loads((folder / "network.json").read_text())
    change(content)
    (folder / "network.json").write_text(json.dumps(content))
    with pytest.raises(error, match=message):
        read_network(folder)


def test_sidecar_that_is_not_json_or_says_little(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    write_network(small_network(), folder, format="npz")
    (folder / "network.json").write_text("{")
    with pytest.raises(FormatError, match=r"network\.json: not JSON"):
        read_network(folder)
    (folder / "network.json").write_text("[1]")
    with pytest.raises(FormatError, match="no list 'layers'"):
        read_network(folder)
    layers = [{"activation": "relu"}, {"activation": "identity"}]
    content = {"format": "sparsednn-network", "version": 1, "layers": layers}
    (folder / "network.json").write_text(json.dumps(content))
    assert read_network(folder).name == "net"
    assert not read_network(folder)[1].bias.any()


def test_pickles_and_other_archives_are_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("unpickled",))

    path = tmp_path / "evil.npz"
    np.savez(path, format=np.array(b"csr"), shape=[1, 1], data=np.array([Trap()], object))
    with pytest.raises(FormatError, match=r"evil\.npz: not a matrix as scipy"):
        read_network(path)
    for content in (pickle.dumps([1]), b"", b"PK\x03\x04junk"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"evil\.npz: not a matrix as scipy"):
            read_network(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(FormatError, match=r"evil\.npz: not a matrix as scipy"):
        read_network(path)


def save_raw(path: Path, format: str, shape: object, **arrays: object) -> None:
    np.savez(path, format=np.array(format.encode()), shape=np.array(shape), **arrays)  # type: ignore[arg-type]


def test_npz_content_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"
    for column in (7, -1):
        save_raw(path, "csr", [1, 2], data=np.ones(1), indices=[column], indptr=[0, 1])
        with pytest.raises(FormatError, match=r"bad\.npz: not a matrix as scipy"):
            read_network(path)
    save_raw(path, "csr", [1, 2], data=np.ones(2), indices=[1, 1], indptr=[0, 2])
    with pytest.raises(InputError, match=r"bad\.npz: row 0: column 1 is there twice"):
        read_network(path)
    save_raw(path, "coo", [2, 3], data=np.ones(3), row=[1, 0, 1], col=[2, 0, 2])
    with pytest.raises(FormatError, match=r"bad\.npz: entry \(2, 3\) is there twice"):
        read_network(path)
    sp.save_npz(path, sp.csr_array(np.array([[1j]])))
    with pytest.raises(FormatError, match=r"bad\.npz: weights are complex128, expected real"):
        read_network(path)
    sp.save_npz(path, sp.csr_array(np.array([[1.0, np.nan]])))
    with pytest.raises(InputError, match=r"bad\.npz: weight \(0, 1\) is nan"):
        read_network(path)
    sp.save_npz(path, sp.csr_array(np.array([[1.0, 1e300]])))
    with pytest.raises(InputError, match=r"bad\.npz: weight \(0, 1\) is inf"):
        read_network(path)
    sp.save_npz(path, sp.csr_array((0, 3)))
    with pytest.raises(FormatError, match=r"bad\.npz: a matrix of shape \(0, 3\)"):
        read_network(path)


@pytest.mark.parametrize("format", ["csr", "csc", "coo", "bsr", "dia"])
def test_npz_of_every_scipy_format(tmp_path: Path, format: str) -> None:
    dense = np.float64([[0, 1, 0], [2, 0, 3]])
    sp.save_npz(tmp_path / "m.npz", sp.csr_array(dense).asformat(format))
    np.testing.assert_array_equal(read_network(tmp_path / "m.npz")[0].weight.toarray(), dense)


@pytest.mark.parametrize(
    ("text", "dense"),
    [
        (HEAD + "pattern general\n2 3 2\n1 1\n2 3\n", [[1, 0, 0], [0, 0, 1]]),
        (HEAD + "real symmetric\n2 2 2\n1 1 3\n2 1 4\n", [[3, 4], [4, 0]]),
        (HEAD + "integer general\n1 2 1\n1 2 -7\n", [[0, -7]]),
        ("%%MatrixMarket matrix array real general\n2 2\n1\n0\n3\n0\n", [[1, 3], [0, 0]]),
    ],
)
def test_matrix_market_kinds(tmp_path: Path, text: str, dense: list[list[float]]) -> None:
    path = tmp_path / "m.mtx"
    path.write_text(text)
    assert read_network(path)[0].weight.toarray().tolist() == dense
    packed = tmp_path / "m.mtx.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    network = read_network(packed)
    assert network.name == "m"
    assert network[0].weight.toarray().tolist() == dense


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (HEAD + "complex general\n1 1 1\n1 1 1 1\n", FormatError, "weights are complex128"),
        (HEAD + "real general\n2 2 1\n1 5 3\n", FormatError, "not a Matrix Market file: Line 3"),
        (HEAD + "real general\n2 2 2\n1 1 3\n", FormatError, "not a Matrix Market file"),
        (
            HEAD + "real general\n2 2 2\n1 2 3\n1 2 3\n",
            FormatError,
            r"entry \(1, 2\) is there twice",
        ),
        (HEAD + "real general\n2 2 1\n1 2 nan\n", InputError, r"weight \(0, 1\) is nan"),
        (HEAD + "real general\n2 2 1\n1 2 x\n", FormatError, "not a Matrix Market file"),
        ("junk", FormatError, "not a Matrix Market file"),
        ("", FormatError, "not a Matrix Market file"),
    ],
)
def test_matrix_market_errors(
    tmp_path: Path, text: str, error: type[Exception], message: str
) -> None:
    path = tmp_path / "bad.mtx"
    path.write_text(text)
    with pytest.raises(error, match=r"bad\.mtx: .*" + message) as caught:
        read_network(path)
    assert "\n" not in str(caught.value)


@BOTH
def test_failed_write_leaves_nothing(
    tmp_path: Path, format: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("numpy.save", full)  # the bias of layer 1: after the first matrix
    with pytest.raises(FormatError, match=r"net.bias-1\.npy: cannot write: No space left"):
        write_network(small_network(), tmp_path / "net", format=format)
    assert names(tmp_path) == []
