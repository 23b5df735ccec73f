"""idx files, and where MNIST is looked for."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest

from sparsednn.datasets import is_original_mnist, load_mnist, read_idx
from sparsednn.errors import FormatError, InputError, UsageError

CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx(array: np.ndarray[Any, Any], dtype: str = "u1") -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, CODES[dtype], array.ndim]) + sizes + array.astype(dtype).tobytes()


IMAGES = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)


def write_split(folder: Path, prefix: str = "train", images: Any = IMAGES, labels: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
    packed = gzip.compress(idx(np.arange(labels)))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(packed)


@pytest.fixture(autouse=True)
def _no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPARSEDNN_DATA", raising=False)


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_read_in_native_byte_order(tmp_path: Path, dtype: str, packed: bool) -> None:
    array = (np.arange(24).reshape(2, 3, 4) * 5).astype(dtype)
    content = idx(array, dtype)
    path = tmp_path / "file"  # the name says nothing about gzip
    path.write_bytes(gzip.compress(content) if packed else content)
    read = read_idx(path)
    assert read.dtype == np.dtype(dtype).newbyteorder("=")
    assert np.array_equal(read, array)


GOOD = idx(IMAGES)
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file: it has 0 bytes"),
        (b"\0\0\x08", "it has 3 bytes"),
        (b"\x89PNG" + GOOD, "it starts with 89 50 4e 47"),
        (b"\0\0\x07\x01" + GOOD[4:], "it starts with 00 00 07 01"),
        (b"\0\0\x08\0", "0 dimensions"),
        (b"\0\0\x08\x21" + bytes(400), "33 dimensions"),
        (GOOD[:10], "ends within its 3 dimensions"),
        (GOOD[:-1], "truncated: it has 23 bytes behind its header, expected 24 for 2 × 3 × 4"),
        (GOOD + b"\0", "too long: it has at least 25 bytes behind its header, expected 24"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "truncated: it has 0 bytes"),
        (PACKED[:-9], "damaged gzip"),
        (PACKED[:10] + b"\xff" * 30, "damaged gzip"),
        (PACKED[:-8] + bytes(8), "damaged gzip"),
        (b"\x1f\x8b garbage", "damaged gzip"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "some-idx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere: cannot be read \(No such file"):
        read_idx(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="cannot be read"):
        read_idx(tmp_path)


def test_somebody_elses_data_is_welcome(tmp_path: Path) -> None:
    write_split(tmp_path)
    images, labels = load_mnist(tmp_path)
    assert np.array_equal(images, IMAGES)
    assert labels.tolist() == [0, 1]
    assert not is_original_mnist(images)


def test_splits_and_dotted_names(tmp_path: Path) -> None:
    write_split(tmp_path, "t10k", IMAGES + 1)
    (tmp_path / "t10k-images-idx3-ubyte").rename(tmp_path / "t10k-images.idx3-ubyte")
    assert np.array_equal(load_mnist(tmp_path, "test")[0], IMAGES + 1)
    with pytest.raises(FormatError, match="neither train-images-idx3-ubyte nor train-images-idx3-"):
        load_mnist(tmp_path, "train")
    with pytest.raises(UsageError, match="train and test: 'valid'"):
        load_mnist(tmp_path, "valid")  # type: ignore[arg-type]


@pytest.mark.parametrize("inside", ["", "mnist"])
def test_environment_names_the_folder_or_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    write_split(tmp_path / inside)
    monkeypatch.setenv("SPARSEDNN_DATA", str(tmp_path))
    assert load_mnist()[0].shape == (2, 3, 4)
    with pytest.raises(FormatError, match="no such folder"):
        load_mnist(tmp_path / "other")  # an argument is not overruled


def test_half_of_a_split_is_an_error_not_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("SPARSEDNN_DATA", str(tmp_path))
    with pytest.raises(FormatError, match="neither train-labels-idx1-ubyte nor"):
        load_mnist()


def test_images_and_labels_must_fit(tmp_path: Path) -> None:
    write_split(tmp_path, labels=3)
    with pytest.raises(FormatError, match=r"3 labels, but there are 2 images in train-images"):
        load_mnist(tmp_path)
    write_split(tmp_path, images=IMAGES[0])
    with pytest.raises(FormatError, match=r"expected uint8 images .* of shape \(3, 4\)"):
        load_mnist(tmp_path)
    write_split(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(np.arange(2), ">i4"))
    with pytest.raises(FormatError, match=r"expected uint8 labels .* found int32"):
        load_mnist(tmp_path)


def test_a_failed_download_says_what_to_do_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def offline(self: Any, url: str, output_file: Any, *_: Any, **__: Any) -> None:
        pooch.get_logger().error("the network is down")
        raise OSError("Network is unreachable")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    with pytest.raises(InputError, match="give --mnist FOLDER or set SPARSEDNN_DATA") as caught:
        load_mnist()
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        f"sparsednn: downloading train-images-idx3-ubyte.gz to {tmp_path / 'sparsednn' / 'mnist'}"
    ]


def test_a_download_with_a_wrong_checksum_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: Any, url: str, output_file: Any, *_: Any, **__: Any) -> None:
        assert url.startswith("https://")
        Path(output_file).write_bytes(gzip.compress(GOOD))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", other)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / project)
    with pytest.raises(InputError, match="its checksum is wrong"):
        load_mnist()


@pytest.mark.mnist
def test_the_real_files(mnist_folder: Path) -> None:
    images, labels = load_mnist(mnist_folder)
    if not is_original_mnist(images):
        pytest.skip(f"{mnist_folder} has other images than the original MNIST")
    assert images.shape == (60_000, 28, 28)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    images, labels = load_mnist(mnist_folder, "test")
    assert is_original_mnist(images, "test")
    assert not is_original_mnist(images, "train")
    assert np.bincount(labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
