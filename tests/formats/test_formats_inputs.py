"""Input sets and categories on disk."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from formats.formats_samples import input_sets, names
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn import InputSet
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.formats import (
    input_files,
    read_categories,
    read_inputs,
    write_categories,
    write_inputs,
)

SUFFIXES = [".tsv", ".npz", ".npy", ".safetensors"]


def same(a: InputSet, b: InputSet) -> None:
    assert (a.n_features, a.n_images) == (b.n_features, b.n_images)
    np.testing.assert_array_equal(a.indptr, b.indptr)
    np.testing.assert_array_equal(a.indices, b.indices)
    if a.values is None or b.values is None:
        for one in (a, b):
            assert one.values is None or np.all(one.values == 1)
    else:
        np.testing.assert_array_equal(a.values.view(np.uint32), b.values.view(np.uint32))


@settings(deadline=None, max_examples=60)
@given(input_sets(), st.sampled_from(SUFFIXES))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, inputs: InputSet, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"inputs{suffix}"
    write_inputs(inputs, path)
    back = read_inputs(path)
    if suffix == ".npy":  # a dense array has no stored zeros
        np.testing.assert_array_equal(back.to_dense(), inputs.to_dense())
    else:
        same(back, inputs)
        if suffix != ".safetensors":
            assert back.indices.dtype == np.uint16
    assert back.name == str(path)
    same(read_inputs(path, n_features=inputs.n_features, n_images=inputs.n_images), back)


def test_tsv_bytes(tmp_path: Path) -> None:
    inputs = InputSet([0, 2, 2, 3], [0, 9, 4], None, 10)
    write_inputs(inputs, tmp_path / "sparse-images-10.tsv")
    assert (tmp_path / "sparse-images-10.tsv").read_bytes() == b"1\t1\t1\n1\t10\t1\n3\t5\t1\n"
    weighted = InputSet([0, 1], [1], [0.5], 2)
    write_inputs(weighted, tmp_path / "w.tsv")
    assert (tmp_path / "w.tsv").read_bytes() == b"1\t2\t5.000000e-01\n"


def test_tsv_numbers_of_features_and_images(tmp_path: Path) -> None:
    text = "1\t2\t1\n3\t1\t1\n"
    plain, official = tmp_path / "images.tsv", tmp_path / "sparse-images-16.tsv"
    plain.write_text(text)
    official.write_text(text)
    assert repr(read_inputs(plain)) == f"InputSet('{plain}', 2×3, nnz=2)"
    got = read_inputs(plain, n_features=5, n_images=4)
    assert (got.n_features, got.n_images) == (5, 4)
    assert read_inputs(official).n_features == 16
    assert read_inputs(official, n_features=16).n_features == 16
    with pytest.raises(
        ShapeError, match=r"images-16\.tsv: has 16 features by its name, expected 8"
    ):
        read_inputs(official, n_features=8)
    with pytest.raises(FormatError, match="line 1: feature 2 is out of range, the largest is 1"):
        read_inputs(plain, n_features=1)
    with pytest.raises(FormatError, match="line 2: image 3 is out of range, the largest is 2"):
        read_inputs(plain, n_images=2)
    with pytest.raises(UsageError, match="n_features must be at least 1, found 0"):
        read_inputs(plain, n_features=0)


def test_tsv_of_any_order_and_gzip(tmp_path: Path) -> None:
    path = tmp_path / "sparse-images-4.tsv.gz"
    path.write_bytes(gzip.compress(b"3 1 1\n1 4 1\n1 2 1\n"))
    got = read_inputs(path)
    assert got.indptr.tolist() == [0, 2, 2, 3]
    assert got.indices.tolist() == [1, 3, 0]
    assert got.values is None
    path.write_bytes(gzip.compress(b"3 1 1\n1 4 1\n3 1 1\n"))
    with pytest.raises(
        FormatError, match=r"line 3: entry \(3, 1\) is there twice, first in line 1"
    ):
        read_inputs(path)


def test_empty_tsv(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.touch()
    with pytest.raises(FormatError, match=r"a\.tsv: empty, and nothing tells"):
        read_inputs(path)
    assert read_inputs(path, n_features=3, n_images=2).to_dense().tolist() == [[0, 0]] * 3


def test_wide_features_need_wide_indices(tmp_path: Path) -> None:
    for features, dtype in ((65536, np.uint16), (65537, np.int32)):
        inputs = InputSet([0, 2], [0, features - 1], None, features)
        for suffix in (".tsv", ".npz", ".npy"):
            write_inputs(inputs, tmp_path / f"wide{suffix}")
            back = read_inputs(tmp_path / f"wide{suffix}")
            same(back, inputs)
            assert back.indices.dtype == dtype


def test_npz_is_scipys(tmp_path: Path) -> None:
    dense = np.float32([[0, 1], [1, 1], [0, 0]])
    write_inputs(InputSet.from_dense(dense), tmp_path / "a.npz")
    np.testing.assert_array_equal(sp.load_npz(tmp_path / "a.npz").toarray(), dense)
    for matrix in (sp.csr_array(dense), sp.coo_array(dense), sp.csc_array(dense)):
        sp.save_npz(tmp_path / "b.npz", matrix)
        same(read_inputs(tmp_path / "b.npz"), InputSet.from_dense(dense))
    unsorted = sp.csc_array((np.float32([5, 6]), [2, 0], [0, 2]), shape=(3, 1))
    sp.save_npz(tmp_path / "c.npz", unsorted)
    assert read_inputs(tmp_path / "c.npz").to_dense().tolist() == [[6], [0], [5]]
    twice = sp.coo_array((np.ones(2), ([1, 1], [0, 0])), shape=(3, 1))
    sp.save_npz(tmp_path / "d.npz", twice)
    with pytest.raises(FormatError, match=r"d\.npz: 1 entries are there twice"):
        read_inputs(tmp_path / "d.npz")


def test_npz_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.npz"

    def save(indptr: object, indices: object, data: object, shape: object = (3, 1)) -> None:
        np.savez(
            path, format=np.array(b"csc"), shape=shape, indptr=indptr, indices=indices, data=data
        )  # type: ignore[arg-type]

    save([0, 1], [65537], [1.0])
    with pytest.raises(ShapeError, match=r"bad\.npz: a feature is out of range for 3"):
        read_inputs(path)
    save([0, 1], [-1], [1.0])
    with pytest.raises(ShapeError, match=r"bad\.npz: a feature is out of range for 3"):
        read_inputs(path)
    save([0, 2], [1, 1], [1.0, 1.0])
    with pytest.raises(InputError, match=r"bad\.npz: image 0: feature 1 is there twice"):
        read_inputs(path)
    save([0, 1], [1], [np.nan])
    with pytest.raises(InputError, match=r"bad\.npz: image 0, feature 1 is nan"):
        read_inputs(path)
    save([0, 1, 1], [1], [1.0])
    with pytest.raises(FormatError, match=r"bad\.npz: 1 images, but indptr has 3 entries"):
        read_inputs(path)
    save([0, 1], [1], [1j])
    with pytest.raises(FormatError, match=r"bad\.npz: data is complex128"):
        read_inputs(path)
    path.write_bytes(b"no")
    with pytest.raises(FormatError, match=r"bad\.npz: not a matrix"):
        read_inputs(path)


@pytest.mark.parametrize("dtype", [np.uint8, bool, np.float64, np.float16])
def test_npy_dense(tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(input_files, "_BLOCK_BYTES", 40)
    dense = np.random.default_rng(0).random((3, 17)) < 0.4
    for order in ("C", "F"):
        np.save(tmp_path / "a.npy", np.asarray(dense.astype(dtype), order=order))
        got = read_inputs(tmp_path / "a.npy", n_features=3)
        assert got.values is None
        np.testing.assert_array_equal(got.to_dense(), dense)
    write_inputs(got, tmp_path / "b.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), dense)


def test_npy_errors(tmp_path: Path) -> None:
    path = tmp_path / "bad.npy"
    for array in (np.zeros(3), np.zeros((2, 2, 2)), np.zeros((2, 2), complex)):
        np.save(path, array)
        with pytest.raises(FormatError, match=r"bad\.npy: .* expected real numbers"):
            read_inputs(path)
    np.save(path, np.array([[object()]]), allow_pickle=True)
    with pytest.raises(FormatError, match=r"bad\.npy: not a NumPy array file"):
        read_inputs(path)
    np.save(path, np.zeros((5, 2)))
    with pytest.raises(ShapeError, match=r"bad\.npy: has 5 features, expected 4"):
        read_inputs(path, n_features=4)
    with pytest.raises(ShapeError, match=r"bad\.npy: has 2 images, expected 3"):
        read_inputs(path, n_images=3)
    np.save(path, np.float64([[1, np.nan]]))
    with pytest.raises(InputError, match=r"bad\.npy: image 1, feature 0 is nan"):
        read_inputs(path)
    with open(path, "wb") as file:
        np.savez(file, a=np.zeros(3))
    with pytest.raises(FormatError, match=r"bad\.npy: an \.npz archive"):
        read_inputs(path)


def test_native_inputs_are_views_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    inputs = InputSet([0, 1, 3], np.array([1, 0, 2], np.uint16), [0.5, 1, 2], 3)
    write_inputs(inputs, path)
    back = read_inputs(path)
    assert back.values is not None
    for array in (back.indptr, back.indices, back.values):
        assert not array.flags.owndata
        assert array.flags.aligned
    assert back.indices.dtype == np.uint16
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"a\.safetensors: truncated"):
        read_inputs(path)
    from safetensors.numpy import save_file

    for tensors, metadata, error, message in (
        ({"a": np.zeros(3)}, {}, FormatError, "not a native input set"),
        ({"a": np.zeros(3)}, {"format": "sparsednn-inputs"}, FormatError, "lacks n_features"),
        (
            {"indptr": np.array([0, 1]), "indices": np.array([5], np.int32)},
            {"format": "sparsednn-inputs", "n_features": "3"},
            ShapeError,
            "image 0: feature 5 is out of range for 3",
        ),
        (
            {"indptr": np.array([0, 1]), "indices": np.array([1], np.int64)},
            {"format": "sparsednn-inputs", "n_features": "3"},
            FormatError,
            r"tensor 'indices' is I64 \[1\], expected U16 or I32",
        ),
    ):
        save_file(tensors, path, metadata)
        with pytest.raises(error, match=r"a\.safetensors: .*" + message):
            read_inputs(path)


def test_suffixes_and_paths(tmp_path: Path) -> None:
    inputs = InputSet([0, 1], [0], None, 1)
    with pytest.raises(FormatError, match=r"no\.tsv: no such file or folder"):
        read_inputs(tmp_path / "no.tsv")
    with pytest.raises(FormatError, match="is a folder, a file was expected"):
        read_inputs(tmp_path)
    for name in ("a.txt", "a.npz.gz", "a"):
        (tmp_path / name).touch()
        with pytest.raises(FormatError, match=r"unknown suffix '.*' for inputs: known are \.tsv"):
            read_inputs(tmp_path / name)
    with pytest.raises(UsageError, match=r"a\.xyz: the suffix '\.xyz' is unknown: known are \.tsv"):
        write_inputs(inputs, tmp_path / "a.xyz")
    with pytest.raises(UsageError, match=r"'\.tsv' does not fit format 'npz'"):
        write_inputs(inputs, tmp_path / "a.tsv", format="npz")
    with pytest.raises(UsageError, match="unknown input format 'idx'"):
        write_inputs(inputs, tmp_path / "a.tsv", format="idx")
    write_inputs(inputs, tmp_path / "ok.tsv", format="tsv")
    assert names(tmp_path) == ["a", "a.npz.gz", "a.txt", "ok.tsv"]


def test_categories_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "c.tsv"
    for ids in ([], [1], [3, 7, 60000]):
        write_categories(np.array(ids), path)
        assert path.read_bytes() == "".join(f"{i}\n" for i in ids).encode()
        got = read_categories(path)
        assert got.dtype == np.int64
        assert got.tolist() == ids
    path.write_bytes(b"3\r\n7\r\n8\n\n")
    assert read_categories(path).tolist() == [3, 7, 8]


def test_official_categories(tmp_path: Path, official_categories: Path) -> None:
    ids = read_categories(official_categories)
    assert ids.size == 1812
    write_categories(ids, tmp_path / "c.tsv")
    assert (tmp_path / "c.tsv").read_bytes() == official_categories.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\nx\n", r"c\.tsv: line 2: 'x' is not an image id"),
        (b"1\n\n2\n", "line 2: '' is not an image id"),
        (b"0\n", "line 1: '0' is not an image id"),
        (b"1\t1\n", r"line 1: '1\\t1' is not an image id"),
        (b"5\n5\n", "line 2: id 5 after 5: ids must ascend"),
        (b"5\n4\n", "line 2: id 4 after 5: ids must ascend"),
        (b"\xff\0\n", r"line 1: '\\xff\\x00' is not an image id"),
        (b"9" * 30, "line 1: '9999.*' is not an image id"),
    ],
)
def test_categories_errors(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "c.tsv"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_categories(path)


def test_categories_that_cannot_be_written(tmp_path: Path) -> None:
    for ids in ([0, 1], [2, 1], [1, 1], [1.5], [[1]]):
        with pytest.raises(InputError, match=r"c\.tsv: image ids must be"):
            write_categories(ids, tmp_path / "c.tsv")
    with pytest.raises(FormatError, match="no such file"):
        read_categories(tmp_path / "c.tsv")
