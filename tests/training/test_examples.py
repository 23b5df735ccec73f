"""Examples by name and from files: the right label for each image, and the error lines."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsednn.datasets import digits_images, load_mnist
from sparsednn.errors import (
    FormatError,
    InputError,
    ShapeError,
    SparseDNNError,
    UnknownNameError,
    UsageError,
)
from sparsednn.formats import write_inputs
from sparsednn.inputs import InputSet
from sparsednn.sources import load_inputs
from sparsednn.training.examples import Examples, load_examples, read_labels, validation_of

Array = np.ndarray[Any, Any]


def idx(array: Array) -> bytes:
    """An array of bytes as an idx file."""
    head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def small_mnist(tmp_path: Path) -> Path:
    """A folder with files like MNIST's: 50 and 20 images of 28 × 28."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    random = np.random.default_rng(3)
    for prefix, n in (("train", 50), ("t10k", 20)):
        pixels = random.integers(0, 256, (n, 28, 28)) * (random.random((n, 28, 28)) < 0.2)
        (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(pixels))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(random.integers(0, 10, n)))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with inputs of 4 images (x.npy), and the current one."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    return tmp_path


# Names


def test_digits_are_divided_once_and_for_all() -> None:
    train, test = load_examples("digits", "train"), load_examples("digits", "test")
    assert (train.n_images, test.n_images) == (1437, 360)
    pixels, labels = digits_images()
    flat = pixels.reshape(1797, 64)
    whole = {image.tobytes() for image in flat}
    assert len(whole) == 1797
    seen = set()
    for examples in (train, test):
        assert examples.name == "digits"
        assert examples.labels is not None
        assert examples.labels.dtype == np.int64
        columns = np.rint(examples.inputs.to_dense() * 255).astype(np.uint8).T
        for column, label in zip(columns, examples.labels, strict=True):
            (place,) = np.flatnonzero((flat == column).all(axis=1))
            assert labels[place] == label
            seen.add(column.tobytes())
    assert seen == whole
    # The same part of every class, and the same images for ever.
    assert test.labels is not None
    share = np.bincount(test.labels) - np.bincount(labels) * 360 / 1797
    assert abs(share).max() < 1
    assert test.labels[:24].tolist() == [
        8,
        2,
        5,
        5,
        8,
        5,
        2,
        7,
        9,
        0,
        2,
        4,
        6,
        3,
        1,
        7,
        6,
        4,
        0,
        3,
        1,
        5,
        4,
        4,
    ]
    # Not the first, nor every fifth image of a class.
    assert np.std(np.diff(np.flatnonzero(test.labels == 0))) > 1


def test_binary_digits_are_divided_alike() -> None:
    grey, binary = load_examples("digits", "test"), load_examples("digits:256", "test")
    assert np.array_equal(grey.labels, binary.labels)
    assert binary.inputs.values is None
    assert binary.inputs.n_features == 256
    whole = load_examples("digits:256")
    assert whole.n_images == 1797
    assert np.array_equal(whole.inputs.indices, load_inputs("digits:256").indices)
    assert np.array_equal(whole.labels, digits_images()[1])
    assert load_examples("digits").n_images == 1797


def test_grey_pixels_stand_row_after_row() -> None:
    inputs = load_examples("digits").inputs
    inputs._check()
    assert inputs.indices.dtype == np.uint16
    expected = digits_images()[0].reshape(1797, 64).T / np.float32(255)
    assert np.array_equal(inputs.to_dense(), expected)
    assert inputs.to_dense().max() == 1


def test_a_name_that_tells_its_part_is_taken_at_its_word(small_mnist: Path) -> None:
    for part in ("train", "test"):
        for split in ("train", "test", None):
            digits = load_examples(f"digits:{part}", split)  # type: ignore[arg-type]
            assert digits.n_images == {"train": 1437, "test": 360}[part]
            mnist = load_examples(f"mnist:{part}", split, mnist=small_mnist)  # type: ignore[arg-type]
            assert mnist.n_images == {"train": 50, "test": 20}[part]


def test_mnist_grey_and_binary(small_mnist: Path) -> None:
    for split in ("train", "test"):
        pixels, labels = load_mnist(small_mnist, split)  # type: ignore[arg-type]
        grey = load_examples("mnist", split, mnist=small_mnist)  # type: ignore[arg-type]
        assert np.array_equal(grey.labels, labels)
        same = load_inputs(f"mnist:{split}", mnist=small_mnist)
        assert np.array_equal(grey.inputs.to_dense(), same.to_dense())
        assert np.array_equal(grey.inputs.to_dense() * 255, pixels.reshape(-1, 784).T)
        binary = load_examples("graph-challenge:1024", split, mnist=small_mnist)  # type: ignore[arg-type]
        assert np.array_equal(binary.labels, labels)
        assert (binary.inputs.n_features, binary.inputs.values) == (1024, None)
    train = load_inputs("graph-challenge:1024", mnist=small_mnist)
    assert load_examples("mnist", mnist=small_mnist).n_images == 50
    binary = load_examples("graph-challenge:1024", mnist=small_mnist, images=30)
    assert binary.labels is not None
    assert binary.labels.size == 30
    assert np.array_equal(binary.inputs.indices, train.columns(0, 30).indices)


@pytest.mark.mnist
def test_the_real_mnist(mnist_folder: Path) -> None:
    test = load_examples("mnist", "test", mnist=mnist_folder, n_features=784, n_out=10)
    assert test.labels is not None
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("digits", "digits"),
        ("digits:1024", "digits:1024"),
        ("digits:train", "digits:test"),
        ("digits:test", None),
        ("mnist", "mnist"),
        ("mnist:train", "mnist:test"),
        ("mnist:test", None),
        ("graph-challenge:1024", "graph-challenge:1024"),
        ("graph-challenge:train", None),
        ("x.npy", None),
    ],
)
def test_what_validates_a_source(source: str, expected: str | None, here: Path) -> None:
    assert validation_of(source) == expected
    Path(source).touch()
    assert validation_of(source) is None


# Files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("y.txt", b"2\n0\n1\n2\n"),
        ("y.tsv", b"2\r\n0\r\n1\r\n2"),
        ("y.csv", b" 2\n0\n1 \n02\n\n"),
        ("y-idx1-ubyte", idx(np.array([2, 0, 1, 2]))),
        ("y.idx1-ubyte.gz", gzip.compress(idx(np.array([2, 0, 1, 2])), mtime=0)),
        ("y.idx", idx(np.array([2, 0, 1, 2]))),
    ],
)
def test_labels_from_files(name: str, content: bytes, here: Path) -> None:
    Path(name).write_bytes(content)
    examples = load_examples("x.npy", "test", labels=Path(name), n_features=3, n_out=3)
    assert examples.labels is not None
    assert (examples.labels.tolist(), examples.labels.dtype) == ([2, 0, 1, 2], np.int64)
    assert examples.name == f"x.npy + {name}"
    assert np.array_equal(examples.inputs.to_dense(), np.load("x.npy"))


@pytest.mark.parametrize("dtype", ["u1", ">i4", "i8", "u8", "f2", "f8"])
def test_labels_from_arrays(dtype: str, here: Path) -> None:
    np.save("y.npy", np.array([2, 0, 1, 2], dtype))
    labels = load_examples("x.npy", labels=Path("y.npy")).labels
    assert labels is not None
    assert (labels.tolist(), labels.dtype) == ([2, 0, 1, 2], np.int64)


def test_dense_targets(here: Path) -> None:
    targets = np.random.default_rng(0).normal(size=(5, 4))
    np.save("y.npy", targets)
    examples = load_examples("x.npy", labels=Path("y.npy"), n_out=5)
    assert examples.labels is None
    assert examples.values is not None
    assert examples.values.dtype == np.float32
    assert np.array_equal(examples.values, targets.astype(np.float32))
    first = load_examples("x.npy", labels=Path("y.npy"), images=2)
    assert first.values is not None
    assert np.array_equal(first.values, examples.values[:, :2])


def test_a_path_wins_over_a_name(here: Path) -> None:
    write_inputs(load_inputs("x.npy"), "digits.npy")
    Path("digits.npy").rename("digits")
    with pytest.raises(UsageError, match="digits: a file has no labels"):
        load_examples("digits")


@pytest.mark.parametrize("values", [True, False])
def test_subsets(values: bool) -> None:
    random = np.random.default_rng(1)
    dense = (random.random((6, 5)) < 0.5) * (random.normal(size=(6, 5)) if values else 1)
    dense[:, 2] = 0  # an image without a feature
    inputs = InputSet.from_dense(dense, name="x")
    if not values:
        inputs = InputSet(inputs.indptr, inputs.indices.astype(np.uint16), None, 6)
    labels, targets = np.arange(5) % 3, random.normal(size=(2, 5)).astype(np.float32)
    for ids in ([4, 2, 0], [1, 1, 2, 2], [2], np.arange(5, dtype=np.uint8)):
        some = Examples(inputs, labels, None, "x").subset(ids)
        some.inputs._check()
        assert np.array_equal(some.inputs.to_dense(), inputs.to_dense()[:, ids])
        assert some.inputs.indices.dtype == inputs.indices.dtype
        assert some.labels is not None
        assert some.labels.tolist() == labels[ids].tolist()
        dense_some = Examples(inputs, None, targets, "x").subset(ids)
        assert dense_some.values is not None
        assert np.array_equal(dense_some.values, targets[:, ids])
        assert some.n_images == len(ids)
    examples = Examples(inputs, labels, None, "x")
    for wrong in ([], [5], [-1], [0.5], [[1]]):
        with pytest.raises(InputError, match=r"^x: "):
            examples.subset(wrong)


# What is wrong


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        ([0, 1, 2], ShapeError, r"y\.npy: labels of 3 images, but x\.npy has 4 images"),
        ([0, 1, 2, 0, 1], ShapeError, "labels of 5 images, .* has 4"),
        ([0, 1, 3, 7], InputError, "y.npy: image 2 has the label 3, .* 3 outputs: .* 0 to 2"),
        ([0, -1, 9, 0], InputError, "y.npy: image 1 has the label -1: labels count from 0"),
        ([0, 1, -(2**63), 0], InputError, "image 2 has the label -9223372036854775808"),
        ([0, 1, 1.5, 0], InputError, "image 2 has the label 1.5: labels are whole"),
        ([0, np.nan, 1, 0], InputError, "image 1 has the label nan"),
        ([np.inf, 1, 1, 0], InputError, "image 0 has the label inf"),
        ([0, 1e18, 1, 0], InputError, r"image 1 has the label 1e\+18"),
        ([], FormatError, "y.npy: there are no labels in it"),
        ([[[1]]], FormatError, r"shape \(1, 1, 1\), expected labels \(images,\) or targets"),
        (["1", "2"], FormatError, "y.npy: <U1 array"),
        ([[0.5] * 3] * 3, ShapeError, "targets of 3 images, but x.npy has 4 images"),
        ([[0.5] * 4] * 2, ShapeError, "2 targets for each image, .* 3 outputs"),
        ([[0.5] * 4, [1, 1, np.nan, np.inf], [np.inf] + [0] * 3], InputError, "image 0 has the ta"),
        ([[0.5] * 4, [1, 1, np.nan, np.inf], [0] * 4], InputError, "image 2 .* nan for output 1"),
        ([[0.5] * 4, [1, 1e300, 1, 1], [0] * 4], InputError, "image 1 .* inf for output 1"),
    ],
)
def test_labels_that_do_not_fit(
    labels: Any, error: type[SparseDNNError], message: str, here: Path
) -> None:
    np.save("y.npy", np.array(labels))
    with pytest.raises(error, match=message) as caught:
        load_examples("x.npy", labels=Path("y.npy"), n_out=3)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("y.txt", b"", "y.txt: there are no labels in it"),
        ("y.csv", b"label\n1\n", r"y\.csv: line 1: 'label' is not a label"),
        ("y.txt", b"1\n\n2\n", "line 2: '' is not a label"),
        ("y.txt", b"1\n2.0\n", "line 2: '2.0' is not a label"),
        ("y.tsv", b"1\t2\n", r"line 1: '1\\t2' is not a label"),
        ("y.txt", b"1\n-\n", "line 2: '-' is not"),
        ("y.txt", b"9" * 30, "line 1: '9{30}' is not"),
        ("y.txt", "٣".encode(), "line 1: .* is not"),
        ("y.npy", b"1\n2\n", "y.npy: not a NumPy array file"),
        ("y.idx", b"1\n2\n", "y.idx: not an idx file"),
        ("y.idx", idx(np.zeros((4, 2))), r"array of shape \(4, 2\), expected labels"),
        ("y.json", b"[1]", "y.json: unknown suffix '.json' for labels: known are .txt"),
        ("y", b"1\n", "y: unknown suffix ''"),
    ],
)
def test_broken_label_files(name: str, content: bytes, message: str, here: Path) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        load_examples("x.npy", labels=Path(name))
    assert "\n" not in str(caught.value)


def test_label_files_that_are_none(here: Path) -> None:
    with pytest.raises(FormatError, match=r"nothing\.txt: no such file"):
        read_labels("nothing.txt")
    with pytest.raises(FormatError, match="is a folder"):
        read_labels(here)
    np.savez("z.npz", y=np.arange(3))
    Path("z.npz").rename("z.npy")
    with pytest.raises(FormatError, match=r"z\.npy: an \.npz archive"):
        read_labels("z.npy")


@pytest.mark.parametrize(
    ("source", "given", "error", "message"),
    [
        ("x.npy", {}, UsageError, r"x\.npy: a file has no labels in it: .* --labels FILE"),
        ("digits", {"labels": Path("y")}, UsageError, "--labels does not apply to 'digits'"),
        ("digits", {"split": "all"}, UsageError, "train and test: 'all'"),
        ("digits", {"images": 0}, UsageError, "--images must be at least 1, found 0"),
        ("digits", {"images": 361, "split": "test"}, InputError, "has 360 images, .* asks for 361"),
        ("digits", {"n_features": 784}, ShapeError, "'digits' has 64 features, .* takes 784"),
        ("digits", {"n_out": 9}, InputError, "digits: image 9 has the label 9, .* 9 outputs"),
        ("digits:", {}, UnknownNameError, "no examples of this name .known: digits, digits:NEURON"),
        ("digits:x", {}, UnknownNameError, "'digits:x': no such file, and no examples"),
        ("digits:60", {}, InputError, "square number of neurons"),
        ("mnist:validation", {}, UnknownNameError, "'mnist:validation'"),
        ("mnist:784", {}, UnknownNameError, "'mnist:784'"),
        ("digit", {"labels": Path("y.txt")}, FormatError, "digit: no such file"),
        ("mnist", {"mnist": Path("nowhere")}, FormatError, "nowhere: no such folder"),
    ],
)
def test_what_is_wrong_with_a_source(
    source: str, given: dict[str, Any], error: type[SparseDNNError], message: str, here: Path
) -> None:
    with pytest.raises(error, match=message) as caught:
        load_examples(source, **given)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_an_empty_data_set(here: Path) -> None:
    np.save("x.npy", np.zeros((3, 0), np.float32))
    Path("y.txt").write_text("1\n")
    with pytest.raises(FormatError, match=r"x\.npy: there are no images in it"):
        load_examples("x.npy", labels=Path("y.txt"))
    nothing = InputSet([0], [], None, 3)
    with pytest.raises(InputError, match="here: there are no images"):
        Examples(nothing, np.zeros(0, np.int64), None, "here")


def test_inputs_that_are_not_finite(here: Path) -> None:
    np.save("x.npy", np.array([[1, np.nan]], np.float32))
    Path("y.txt").write_text("1\n0\n")
    with pytest.raises(InputError, match=r"x\.npy: .*nan"):
        load_examples("x.npy", labels=Path("y.txt"))


def test_examples_made_by_hand() -> None:
    inputs = InputSet([0, 1, 1], [0], None, 3)
    labels, values = np.zeros(2, np.int64), np.zeros((4, 2), np.float32)
    for both in ((labels, values), (None, None)):
        with pytest.raises(UsageError, match="here: examples have either"):
            Examples(inputs, *both, "here")
    with pytest.raises(ShapeError, match="here: 3 labels for 2 images"):
        Examples(inputs, np.zeros(3, np.int64), None, "here")
    with pytest.raises(ShapeError, match=r"targets of shape \(2, 4\) for 2 images, expected"):
        Examples(inputs, None, values.T, "here")
