"""CIFAR-10's binary files: in folders, in the archive, damaged, and where they are looked for."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest

from sparsednn.datasets.cifar10 import CLASSES, load_cifar10
from sparsednn.errors import FormatError, InputError, UsageError

NAMES = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
INSIDE = "cifar-10-batches-bin"
ARCHIVE = "cifar-10-binary.tar.gz"

Records = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def _nothing_else_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No folder of the machine, no cache and no network; tests that want one say so."""

    def offline(self: Any, url: str, output_file: Any, *_: Any, **__: Any) -> None:
        pooch.get_logger().error("the network is down")
        raise OSError("Network is unreachable")

    monkeypatch.delenv("SPARSEDNN_DATA", raising=False)
    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", offline)
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)


def records(seed: int = 0) -> Records:
    """Files of different lengths, one of a single image."""
    random = np.random.default_rng(seed)
    made = {}
    for name, count in zip(NAMES, (3, 1, 2, 5, 4, 3), strict=True):
        made[name] = random.integers(0, 256, (count, 3073)).astype(np.uint8)
        made[name][:, 0] %= 10
    return made


def write(folder: Path, made: Records) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in made.items():
        (folder / name).write_bytes(array.tobytes())


def pack(path: Path, members: list[tuple[str | tarfile.TarInfo, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for member, content in members:
            info = tarfile.TarInfo(member) if isinstance(member, str) else member
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def published(made: Records, prefix: str = f"{INSIDE}/") -> list[tuple[Any, bytes]]:
    """Members as in the published archive: a folder, other files, not in the order of the names."""
    folder = tarfile.TarInfo(INSIDE)
    folder.type = tarfile.DIRTYPE
    files = [(prefix + name, array.tobytes()) for name, array in made.items()]
    return [(folder, b""), *files[::-1], (f"{INSIDE}/readme.html", b"<html>")]


def check(found: tuple[Any, Any], made: Records, split: str) -> None:
    images, labels = found
    parts = [made[name] for name in (NAMES[:5] if split == "train" else NAMES[5:])]
    n = sum(map(len, parts))
    assert images.shape == (n, 3, 32, 32)
    assert images.dtype == labels.dtype == np.uint8
    assert images.flags.c_contiguous
    at = 0
    for part in parts:
        for record in part:
            assert labels[at] == record[0]
            # Byte 1 + 1024·colour + 32·row + column, as the data set's page says.
            for c, y, x in [(0, 0, 0), (0, 31, 30), (1, 2, 29), (2, 17, 5), (2, 31, 31)]:
                assert images[at, c, y, x] == record[1 + 1024 * c + 32 * y + x]
            assert images[at].tobytes() == record[1:].tobytes()
            at += 1


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("place", ["folder", "inside", "archive", "archive itself", "flat archive"])
def test_all_places_give_the_same_images(tmp_path: Path, place: str, split: Any) -> None:
    made = records()
    folder = tmp_path / "data"
    match place:
        case "folder":
            write(folder, made)
        case "inside":
            write(folder / INSIDE, made)
        case "archive" | "archive itself":
            pack(folder / ARCHIVE, published(made))
        case "flat archive":
            pack(folder / ARCHIVE, published(made, "./"))
    before = sorted(tmp_path.rglob("*"))
    check(load_cifar10(folder / ARCHIVE if "itself" in place else folder, split), made, split)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked


@pytest.mark.parametrize("inside", ["", "cifar10", INSIDE, f"cifar10/{INSIDE}"])
def test_environment_names_the_folder_or_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    made = records()
    write(tmp_path / "data" / inside, made)
    monkeypatch.setenv("SPARSEDNN_DATA", str(tmp_path / "data"))
    check(load_cifar10(), made, "train")
    write(tmp_path / "other", records(1))
    check(load_cifar10(tmp_path / "other", "test"), records(1), "test")  # an argument wins
    with pytest.raises(FormatError, match="nowhere: no such folder"):
        load_cifar10(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match=rf"empty: neither data_batch_1.bin .* {ARCHIVE} is in"):
        load_cifar10(tmp_path / "empty")


def test_half_of_a_data_set_is_an_error_not_a_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = records()
    del made["data_batch_4.bin"], made["test_batch.bin"]
    write(tmp_path / "data", made)
    monkeypatch.setenv("SPARSEDNN_DATA", str(tmp_path / "data"))
    with pytest.raises(FormatError, match=r"data_batch_4\.bin: no such file"):
        load_cifar10()
    with pytest.raises(FormatError, match=r"test_batch\.bin: no such file"):
        load_cifar10(split="test")
    pack(tmp_path / ARCHIVE, published(made))
    with pytest.raises(FormatError, match=rf"{ARCHIVE}: {INSIDE}/data_batch_4.bin is not in this"):
        load_cifar10(tmp_path)
    with pytest.raises(UsageError, match="train and test: 'valid'"):
        load_cifar10(tmp_path, "valid")  # type: ignore[arg-type]


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    write(tmp_path, records())
    (tmp_path / "test_batch.bin").unlink()
    (tmp_path / "test_batch.bin").mkdir()
    with pytest.raises(FormatError, match=r"test_batch\.bin: is a folder"):
        load_cifar10(tmp_path, "test")


def label(at: int, value: int) -> Callable[[bytes], bytes]:
    return lambda content: content[: 3073 * at] + bytes([value]) + content[3073 * at + 1 :]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content[:-1], "has 6145 bytes, expected a multiple of 3073"),
        (lambda content: content + b"\0", "has 6147 bytes, expected a multiple"),
        (lambda content: b"", "has 0 bytes, expected a multiple"),
        (label(0, 10), "image 0 has the label 10, expected 0 to 9"),
        (label(1, 255), "image 1 has the label 255"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_damaged_file_is_named(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str, packed: bool
) -> None:
    made = records()
    content = damage(made["data_batch_3.bin"].tobytes())
    made["data_batch_3.bin"] = np.frombuffer(content, np.uint8)
    if packed:
        pack(tmp_path / ARCHIVE, published(made))
        start = f"{tmp_path / ARCHIVE}: {INSIDE}/data_batch_3.bin: "
    else:
        write(tmp_path, made)
        start = f"{tmp_path / 'data_batch_3.bin'}: "
    with pytest.raises(FormatError, match=message) as caught:
        load_cifar10(tmp_path)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
    check(load_cifar10(tmp_path, "test"), made, "test")  # the others are fine


def flip(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-5],
        lambda content: flip(content, len(content) - 6),  # of the checksum
        lambda content: flip(content, len(content) // 2),
        lambda content: b"\x1f\x8b garbage",
        lambda content: gzip.decompress(content),  # a tar, not gzipped
        lambda content: gzip.compress(b"no tar archive" * 100),
        lambda content: gzip.compress(gzip.decompress(content)[:5000]),
    ],
)
def test_a_damaged_archive_is_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / ARCHIVE
    pack(path, published(records()))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(FormatError, match=r"not a tar\.gz archive, or damaged") as caught:
        load_cifar10(tmp_path, "test")
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "test_batch.bin: a link, a folder or a device"),
        (tarfile.LNKTYPE, "a link, a folder or a device"),
        (tarfile.DIRTYPE, "a link, a folder or a device"),
        (tarfile.FIFOTYPE, "a link, a folder or a device"),
    ],
)
def test_a_link_in_the_archive_is_not_followed(tmp_path: Path, kind: bytes, message: str) -> None:
    write(tmp_path / "secret", records(5))
    made = records()
    del made["test_batch.bin"]
    link = tarfile.TarInfo(f"{INSIDE}/test_batch.bin")
    link.type, link.linkname = kind, str(tmp_path / "secret" / "test_batch.bin")
    pack(tmp_path / ARCHIVE, [*published(made), (link, b"")])
    with pytest.raises(FormatError, match=message):
        load_cifar10(tmp_path, "test")


def test_names_with_ways_in_them_are_not_ours(tmp_path: Path) -> None:
    made, other = records(), records(7)["test_batch.bin"].tobytes()
    strange = [
        (f"../{INSIDE}/test_batch.bin", other),
        (f"/{INSIDE}/test_batch.bin", other),
        (f"{INSIDE}/../test_batch.bin", other),
        (f"{INSIDE}/deeper/test_batch.bin", other),
        ("xtest_batch.bin", other),
    ]
    pack(tmp_path / ARCHIVE, [*strange, *published(made), *strange])
    before = sorted(tmp_path.parent.rglob("*"))
    check(load_cifar10(tmp_path, "test"), made, "test")
    assert sorted(tmp_path.parent.rglob("*")) == before
    pack(tmp_path / ARCHIVE, [*published(made), ("test_batch.bin", other)])
    with pytest.raises(FormatError, match=r": test_batch\.bin: is in this archive more than once"):
        load_cifar10(tmp_path, "test")


def test_a_member_that_claims_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sparsednn.datasets.cifar10._MOST", 3 * 3073 - 1)
    pack(tmp_path / ARCHIVE, published(records()))
    with pytest.raises(FormatError, match="has 9219 bytes, at most 9218 were expected"):
        load_cifar10(tmp_path, "test")


def test_a_failed_download_says_what_to_do_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match=r"\(OSError\): give its folder or set SPARS") as caught:
        load_cifar10()
    assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.out == ""
    cache = tmp_path / "cache" / "sparsednn" / "cifar10"
    assert captured.err.splitlines() == [f"sparsednn: downloading {ARCHIVE} (170 MB) to {cache}"]


def test_a_download_is_checked_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    made = records()
    pack(tmp_path / "served", published(made))
    served = (tmp_path / "served").read_bytes()
    asked: list[str] = []

    def serve(self: Any, url: str, output_file: Any, *_: Any, **__: Any) -> None:
        asked.append(url)
        Path(output_file).write_bytes(served)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", serve)
    with pytest.raises(InputError, match="its checksum is wrong"):
        load_cifar10()
    md5 = pooch.file_hash(str(tmp_path / "served"), "md5")
    monkeypatch.setattr("sparsednn.datasets.cifar10._MD5", md5)
    check(load_cifar10(), made, "train")
    assert asked == ["https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"] * 2
    capfd.readouterr()
    check(load_cifar10(split="test"), made, "test")
    assert len(asked) == 2
    assert capfd.readouterr().err == ""


def test_there_are_ten_classes() -> None:
    assert len(set(CLASSES)) == 10
    assert CLASSES[6] == "frog"
