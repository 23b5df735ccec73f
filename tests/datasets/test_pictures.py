"""Pictures: blocks against the plain formula, names, files, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.datasets import digits_images, load_labelled, load_mnist
from sparsednn.datasets.pictures import Pictures, load_pictures
from sparsednn.errors import (
    FormatError,
    InputError,
    ShapeError,
    SparseDNNError,
    UnknownNameError,
    UsageError,
)

REPOSITORY = Path(__file__).resolve().parents[2]


def some(
    shape: tuple[int, int, int, int] = (7, 3, 5, 4), seed: int = 0, moments: bool = False
) -> Pictures:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, shape).astype(np.uint8)
    labels = random.integers(0, 4, shape[0])
    mean, std = random.random(shape[1]), random.random(shape[1]) + 0.1
    made = Pictures(pixels, labels, 4, "some")
    return dataclasses.replace(made, mean=mean, std=std) if moments else made


def plain(pictures: Pictures) -> np.ndarray[Any, Any]:
    """All numbers by the formula of the class, in double precision."""
    numbers = pictures.pixels.astype(np.float64) / pictures.scale
    if pictures.mean is not None:
        numbers -= pictures.mean[:, None, None]
    if pictures.std is not None:
        numbers /= pictures.std[:, None, None]
    return numbers


# Blocks


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_block_is_that_of_the_plain_formula(data: Any) -> None:
    size = st.integers(1, 6)
    shape = data.draw(st.tuples(size, size, size, size))
    pictures = some(shape, data.draw(st.integers(0, 1000)), data.draw(st.booleans()))
    ids = data.draw(st.lists(st.integers(0, shape[0] - 1), max_size=9))
    part = [slice(*sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2)))) for n in shape[1:]]
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    expected = plain(pictures)[(np.array(ids, np.int64), *part)]
    found = pictures.block(ids, *part, dtype)
    assert found.dtype == dtype
    assert found.shape == expected.shape
    assert found.flags.c_contiguous
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 if dtype == np.float32 else 1e-12)
    # A pixel is the same bits in each block, and wherever it is written.
    whole = pictures.block(np.arange(shape[0]), dtype=dtype)
    assert np.array_equal(found, whole[(np.array(ids, np.int64), *part)])
    wide = np.full((*found.shape[:3], found.shape[3] + 2), np.nan, dtype)
    out = wide[..., 1:-1]
    assert pictures.block(ids, *part, out=out) is out
    assert np.array_equal(out, found)
    assert np.isnan(wide[..., 0]).all()
    assert np.isnan(wide[..., -1]).all()


def test_grey_pixels_are_divided_by_255_exactly() -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    pictures = Pictures(pixels, np.zeros(1, np.int64), 1, "grey")
    for dtype in (np.float32, np.float64):
        assert np.array_equal(
            pictures.block([0], dtype=dtype).ravel(), np.arange(256, dtype=dtype) / dtype(255)
        )
    halved = dataclasses.replace(pictures, scale=510.0)
    assert np.array_equal(halved.block([0]) * 2, pictures.block([0]))


def test_numbers_that_are_tested_with_the_moments_of_training() -> None:
    train, test = some((9, 2, 3, 3)), some((4, 2, 3, 3), 1)
    mean, std = train.moments()
    numbers = plain(train)
    np.testing.assert_allclose(mean, numbers.mean(axis=(0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(std, numbers.std(axis=(0, 2, 3)), rtol=1e-14)
    learned = dataclasses.replace(train, mean=mean, std=std).block(range(9), dtype=np.float64)
    np.testing.assert_allclose(learned.mean(axis=(0, 2, 3)), 0, atol=1e-14)
    np.testing.assert_allclose(learned.std(axis=(0, 2, 3)), 1, rtol=1e-14)
    tested = dataclasses.replace(test, mean=mean, std=std).block([2], dtype=np.float64)
    np.testing.assert_allclose(
        tested[0], (plain(test)[2] - mean[:, None, None]) / std[:, None, None]
    )
    one_sided = dataclasses.replace(test, mean=mean)
    np.testing.assert_allclose(one_sided.block([0, 1], dtype=np.float64), plain(one_sided)[:2])


def test_a_channel_of_one_value_has_the_deviation_one() -> None:
    pixels = some((5, 2, 3, 3)).pixels.copy()
    pixels[:, 1] = 77
    mean, std = Pictures(pixels, np.zeros(5, np.int64), 1, "flat").moments()
    assert mean[1] == 77 / 255
    assert std[1] == 1
    assert 0 < std[0] < 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p.block([0, 7]), InputError, "some: there is no image 7 among 7"),
        (lambda p: p.block([-1]), InputError, "there is no image -1"),
        (lambda p: p.block([0.5]), InputError, r"whole numbers \(m,\), found float64"),
        (lambda p: p.block([[0]]), InputError, r"found int64 of shape \(1, 1\)"),
        (lambda p: p.block([True]), InputError, "found bool"),
        (lambda p: p.block([0], slice(0, 4)), ShapeError, "channels 0 to 4 of images that have 3"),
        (lambda p: p.block([0], rows=slice(-1, 2)), ShapeError, "rows -1 to 2 .* have 5"),
        (lambda p: p.block([0], columns=slice(3, 2)), ShapeError, "columns 3 to 2"),
        (lambda p: p.block([0], columns=slice(0, 4, 2)), ShapeError, "columns 0 to 4"),
        (lambda p: p.block([0], out=np.empty((1, 3, 5, 5))), ShapeError, r"of \(1, 3, 5, 5\)"),
        (lambda p: p.block([0], dtype=np.int32), UsageError, "float32 or float64, not int32"),
        (lambda p: p.block([0], out=np.empty((1, 3, 5, 4), np.float16)), UsageError, "not float16"),
        (lambda p: p.pick([]), InputError, "no images are left of 7"),
        (lambda p: p.pick([9, 1]), InputError, "there is no image 9"),
    ],
)
def test_what_is_no_block(call: Any, error: type[SparseDNNError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        call(some())
    assert type(caught.value) is error


# Pictures


def test_picked_images() -> None:
    pictures = some(moments=True)
    picked = pictures.pick([5, 0, 5])
    assert (picked.n_images, picked.image_shape, picked.classes) == (3, (3, 5, 4), 4)
    assert np.array_equal(picked.labels, pictures.labels[[5, 0, 5]])
    assert np.array_equal(picked.block([0, 1, 2]), pictures.block([5, 0, 5]))
    picked.pixels[:] = 0
    assert pictures.pixels.any()


def test_identity_is_that_of_the_content() -> None:
    pictures = some()
    assert pictures.identity == some().identity
    assert len(pictures.identity) == 64
    ones = dataclasses.replace(pictures, name="x", mean=np.zeros(3), std=np.ones(3))
    assert ones.identity == pictures.identity  # the same numbers
    pixels, labels = pictures.pixels.copy(), pictures.labels.copy()
    pixels[-1, -1, -1, -1] ^= 1
    labels[3] = (labels[3] + 1) % 4
    others = [
        dataclasses.replace(pictures, pixels=pixels),
        dataclasses.replace(pictures, labels=labels),
        dataclasses.replace(pictures, classes=5),
        dataclasses.replace(pictures, scale=256.0),
        dataclasses.replace(pictures, mean=np.full(3, 0.5)),
        dataclasses.replace(pictures, std=np.full(3, 0.5)),
        dataclasses.replace(pictures, pixels=pictures.pixels.reshape(7, 3, 4, 5)),
        pictures.pick(np.arange(6)),
        pictures.pick(np.arange(7)[::-1]),
    ]
    assert len({pictures.identity, *(other.identity for other in others)}) == 1 + len(others)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pixels": np.zeros((7, 5, 4), np.uint8)}, ShapeError, r"height, width\): \(7, 5, 4\)"),
        ({"pixels": np.zeros((0, 3, 5, 4), np.uint8)}, InputError, "no pixels"),
        ({"pixels": np.zeros((7, 3, 0, 4), np.uint8)}, InputError, "no pixels"),
        ({"pixels": np.zeros((7, 3, 5, 4))}, InputError, "found float64"),
        ({"pixels": np.zeros((7, 5, 4, 3), np.uint8).transpose(0, 3, 1, 2)}, InputError, "strides"),
        ({"labels": np.zeros(6, np.int64)}, ShapeError, r"of shape \(6,\) for 7 images"),
        ({"labels": np.zeros(7, np.int32)}, ShapeError, r"int32 labels .* expected int64 \(7,\)"),
        ({"labels": np.array([0, 3, 4, 9, 0, 0, 0])}, InputError, "image 2 has the label 4, .* 3"),
        ({"labels": np.array([0, 3, 3, -1, 0, 0, 0])}, InputError, "image 3 has the label -1"),
        ({"mean": np.zeros(2)}, ShapeError, r"means of shape \(2,\) .* for 3 channels"),
        ({"std": np.ones((3, 1))}, ShapeError, r"deviations of shape \(3, 1\)"),
        ({"std": np.array([1.0, 0.0, 1.0])}, InputError, "deviations and the scale positive"),
        ({"std": np.array([1.0, np.nan, 1.0])}, InputError, "deviations and the scale positive"),
        ({"mean": np.array([1.0, np.inf, 1.0])}, InputError, "means must be finite"),
        ({"scale": 0.0}, InputError, "scale positive"),
    ],
)
def test_what_are_no_pictures(change: Any, error: type[SparseDNNError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        dataclasses.replace(some(), **change)
    assert type(caught.value) is error
    assert str(caught.value).startswith("some: ")


# Names


@pytest.mark.parametrize(("split", "count"), [("train", 1437), ("test", 360), (None, 1797)])
def test_digits_are_divided_as_for_the_sparse_path(split: Any, count: int) -> None:
    pictures = load_pictures("digits", split)
    inputs, labels = load_labelled("digits", split)
    assert (pictures.n_images, pictures.image_shape, pictures.classes) == (count, (1, 8, 8), 10)
    assert np.array_equal(pictures.labels, labels)
    dense = inputs.to_dense().T.reshape(count, 1, 8, 8)
    assert np.array_equal(pictures.block(np.arange(count)), dense)
    assert pictures.pixels.max() == 255
    if split is not None:
        named = load_pictures(f"digits:{split}", "test" if split == "train" else "train")
        assert named.identity == pictures.identity  # a name is taken at its word
        assert named.name == pictures.name == f"digits:{split}"


def test_the_parts_of_digits_are_the_same_for_ever() -> None:
    """Checkpoints go on with the images that they began with."""
    images, labels = digits_images()
    train, test = load_pictures("digits:train"), load_pictures("digits:test")
    together = sorted(image.tobytes() for image in (*train.pixels, *test.pixels))
    assert together == sorted(image.tobytes() for image in images)
    share = 0.2 * np.bincount(labels)  # a fifth of each class
    assert np.abs(np.bincount(test.labels) - share).max() < 1.1
    digest = hashlib.sha256(test.pixels.tobytes() + test.labels.astype("<i8").tobytes())
    assert digest.hexdigest().startswith("2e1a81697d30471d")


def test_limit() -> None:
    pictures, first = load_pictures("digits:test"), load_pictures("digits:test", limit=11)
    assert np.array_equal(first.pixels, pictures.pixels[:11])
    assert np.array_equal(first.labels, pictures.labels[:11])
    assert load_pictures("digits:test", limit=360).identity == pictures.identity
    with pytest.raises(InputError, match="digits:test: has 360 images, --images asks for 361"):
        load_pictures("digits:test", limit=361)
    with pytest.raises(UsageError, match="at least 1, found 0"):
        load_pictures("digits", limit=0)
    with pytest.raises(UsageError, match="train and test: 'valid'"):
        load_pictures("digits", "valid")  # type: ignore[arg-type]


def test_cifar10(tmp_path: Path) -> None:
    made = np.random.default_rng(0).integers(0, 256, (6, 4, 3073)).astype(np.uint8)
    made[:, :, 0] %= 10
    for i, content in enumerate(made):
        name = f"data_batch_{i + 1}.bin" if i < 5 else "test_batch.bin"
        (tmp_path / name).write_bytes(content.tobytes())
    train = load_pictures("cifar10", folder=tmp_path)
    test = load_pictures("cifar10", "test", folder=tmp_path, limit=3)
    assert (train.n_images, train.image_shape, train.classes) == (20, (3, 32, 32), 10)
    assert (train.name, test.name, test.n_images) == ("cifar10:train", "cifar10:test", 3)
    assert np.array_equal(train.pixels.reshape(20, -1), made[:5, :, 1:].reshape(20, -1))
    assert np.array_equal(test.labels, made[5, :3, 0])
    with pytest.raises(FormatError, match="nowhere: no such folder"):
        load_pictures("cifar10:test", folder=tmp_path / "nowhere")


def test_mnist_and_what_looks_like_it(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 4)).astype(np.uint8)
    labels = np.array([7, 25, 0], np.uint8)  # letters
    for prefix, count in (("train", 3), ("t10k", 1)):
        head = bytes([0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 5, 0, 0, 0, 4])
        (tmp_path / f"{prefix}-images-idx3-ubyte").write_bytes(head + images[:count].tobytes())
        head = bytes([0, 0, 8, 1, 0, 0, 0, count])
        (tmp_path / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels[:count].tobytes())
    train = load_pictures("mnist", folder=tmp_path)
    assert (train.image_shape, train.classes, train.labels.tolist()) == ((1, 5, 4), 26, [7, 25, 0])
    assert np.array_equal(train.pixels[:, 0], images)
    test = load_pictures("mnist:test", folder=tmp_path)
    assert (test.n_images, test.classes, test.name) == (1, 10, "mnist:test")


@pytest.mark.mnist
def test_the_real_mnist(mnist_folder: Path) -> None:
    test = load_pictures("mnist:test", folder=mnist_folder)
    assert (test.n_images, test.image_shape, test.classes) == (10_000, (1, 28, 28), 10)
    images, labels = load_mnist(mnist_folder, "test")
    assert np.array_equal(test.pixels[:, 0], images)
    assert np.array_equal(test.labels, labels)
    assert load_pictures("mnist", folder=mnist_folder, limit=5).labels.tolist() == [5, 0, 4, 1, 9]


# Synthetic ones


def test_synthetic_pictures_are_the_same_everywhere_and_for_ever() -> None:
    made = load_pictures("synthetic:3x5x4:7", limit=100)
    assert (made.n_images, made.image_shape, made.classes) == (100, (3, 5, 4), 7)
    assert made.pixels.min() >= 1
    assert np.bincount(made.labels).tolist() == [15, 15, 14, 14, 14, 14, 14]
    assert load_pictures("synthetic:3x5x4:7").n_images == 1024
    assert made.identity.startswith("97446c382a96240c")
    code = (
        "from sparsednn.datasets.pictures import load_pictures as load; "
        "print(load('synthetic:3x5x4:7', 'train', limit=100).identity)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert run.stdout.strip() == made.identity


@pytest.mark.parametrize("limit", [1, 3, 6, 50])
def test_first_synthetic_pictures_are_the_same_however_many(limit: int) -> None:
    many, few = (load_pictures("synthetic:1x3x3:6", limit=n) for n in (50, limit))
    assert np.array_equal(many.pixels[:limit], few.pixels)
    assert np.array_equal(many.labels[:limit], few.labels)
    assert few.classes == 6


def test_synthetic_pictures_can_be_learned() -> None:
    """The nearest mean of the training images is the class, and the parts are not the same."""
    train = load_pictures("synthetic:2x6x6", limit=500)
    test = load_pictures("synthetic:2x6x6", "test", limit=200)
    assert train.classes == 10
    x, y = (p.block(np.arange(p.n_images)).reshape(p.n_images, -1) for p in (train, test))
    means = np.stack([x[train.labels == c].mean(axis=0) for c in range(10)])
    nearest = ((y[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert np.mean(nearest == test.labels) > 0.99
    assert not {image.tobytes() for image in train.pixels} & {i.tobytes() for i in test.pixels}
    assert len({image.tobytes() for image in train.pixels}) == 500
    assert 0.1 < x.std() < 0.3


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("synthetic:0x3x3", InputError, "at least 1, found 0"),
        ("synthetic:3x3x3:0", InputError, "at least 1, found 0"),
        ("synthetic:999999x999999x9", InputError, "more than 16 GiB"),
        ("synthetic:3x32x32:999999999", InputError, "more than 16 GiB"),
        ("synthetic:3x32", UnknownNameError, "'synthetic:3x32': no such file"),
        ("synthetic:3x32x32:", UnknownNameError, "known: digits, mnist, cifar10 "),
        ("synthetic:3x32x-1", UnknownNameError, "no such pictures"),
        ("synthetic:٣x3x3", UnknownNameError, "no such pictures"),
        ("digits:64", UnknownNameError, "no such pictures"),
        ("digits:valid", UnknownNameError, "no such pictures"),
        ("cifar", UnknownNameError, r"known: digits, .* synthetic:CxHxW\[:CLASSES\]"),
        ("", UnknownNameError, "'': no such file"),
        ("nowhere.npz", FormatError, "nowhere.npz: no such file"),
        ("nowhere/cifar10.npz", FormatError, "no such file"),
    ],
)
def test_names_that_are_none(name: str, error: type[SparseDNNError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        load_pictures(name)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


# Files


IMAGES = np.random.default_rng(3).integers(0, 256, (5, 2, 3, 4)).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, dtype: Any, save: Any) -> None:
    path = tmp_path / "some.npz"
    labels = np.array([3, 0, 0, 5, 1], dtype)
    save(path, images=IMAGES, labels=labels, more=np.zeros(2))
    found = load_pictures(str(path), "test")
    assert np.array_equal(found.pixels, IMAGES)
    assert (found.labels.tolist(), found.classes, found.name) == (labels.tolist(), 6, str(path))
    save(path, images=np.asfortranarray(IMAGES[:, 1]), labels=labels)
    found = load_pictures(str(path), limit=2)
    assert np.array_equal(found.pixels, IMAGES[:2, 1:])


def test_a_file_wins_over_a_name_a_folder_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert load_pictures("digits").n_images == 1797
    np.savez(tmp_path / "named.npz", images=IMAGES, labels=np.zeros(5, np.int64))
    assert load_pictures("named.npz").n_images == 5
    (tmp_path / "mnist").write_bytes(b"")
    with pytest.raises(FormatError, match="mnist: unknown suffix ''"):
        load_pictures("mnist")
    (tmp_path / "other").mkdir()
    with pytest.raises(FormatError, match=r"other: is a folder; expected an \.npz file"):
        load_pictures("other")
    (tmp_path / "cat.png").write_bytes(b"\x89PNG")
    with pytest.raises(FormatError, match=r"unknown suffix '\.png'"):
        load_pictures("cat.png")


ZERO = np.zeros(5, np.int64)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES}, r"has no array 'labels' \(it has: images\)"),
        ({"labels": ZERO, "x": ZERO}, r"has no array 'images' \(it has: labels, x\)"),
        ({"images": IMAGES / 255, "labels": ZERO}, "images: float64 array .* expected uint8"),
        ({"images": IMAGES[0, 0], "labels": ZERO}, r"images: uint8 array of shape \(3, 4\)"),
        ({"images": IMAGES[:4], "labels": ZERO}, r"labels: int64 .* whole numbers \(4,\)"),
        ({"images": IMAGES, "labels": ZERO[:, None]}, r"of shape \(5, 1\)"),
        ({"images": IMAGES, "labels": ZERO * 0.5}, "labels: float64"),
        ({"images": IMAGES, "labels": ZERO - 1}, "image 0 has the label -1"),
        ({"images": IMAGES[:0], "labels": ZERO[:0]}, "no pixels"),
        (
            {"images": IMAGES, "labels": np.array([None] * 5)},
            "not an .npz archive, .* allow_pickle",
        ),
        ({"images": IMAGES, "labels": np.array(0)}, r"labels: int64 array of shape \(\)"),
    ],
)
def test_arrays_that_are_no_pictures(tmp_path: Path, arrays: Any, message: str) -> None:
    path = tmp_path / "some.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_pictures(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["empty", "text", "half", "npy", "flipped", "no array"])
def test_a_damaged_npz_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "some.npz"
    np.savez_compressed(path, images=IMAGES, labels=ZERO)
    good = path.read_bytes()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_bytes(b"some text\n" * 50)
        case "half":
            path.write_bytes(good[: len(good) // 2])
        case "npy":
            with path.open("wb") as file:
                np.save(file, IMAGES)
        case "flipped":
            path.write_bytes(good[:150] + bytes([good[150] ^ 255]) + good[151:])
        case "no array":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("images.npy", b"no array")
                archive.writestr("labels.npy", b"no array")
    with pytest.raises(FormatError, match=r"not an \.npz archive|expected uint8") as caught:
        load_pictures(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_import_loads_numpy_only() -> None:
    code = (
        "import sys, sparsednn.datasets.pictures; "
        "print(*{'numba', 'scipy', 'sklearn', 'pooch', 'torch', 'mpi4py'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert run.stdout.strip() == ""
