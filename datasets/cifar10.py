"""CIFAR-10 from its binary files: read from a folder or from the archive, or downloaded once.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Six files,
``data_batch_1.bin`` … ``data_batch_5.bin`` and ``test_batch.bin``, are offered together as
``cifar-10-binary.tar.gz``. A file is a sequence of records of 3073 bytes: the label, then the red,
the green and the blue values of 32 × 32 pixels, row after row. Any number of records will do, so a
part of the data set, or somebody else's in the same form, works as well.

The archive is read where it lies: nothing of it is written anywhere, whatever its members are
called.

Knows nothing of what the images are for.
"""

from __future__ import annotations

import gzip
import os
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, InputError, UsageError
from sparsednn.formats._common import reading

__all__ = ["CLASSES", "Split", "load_cifar10"]

Split = Literal["train", "test"]

#: What the labels 0 … 9 stand for.
CLASSES: Final = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip

_FILES: Final = {
    "train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    "test": ("test_batch.bin",),
}
_SHAPE: Final = (3, 32, 32)
_RECORD: Final = 1 + 3 * 32 * 32  # bytes
_INSIDE: Final = "cifar-10-batches-bin"  # the folder that the archive unpacks to
_ARCHIVE: Final = "cifar-10-binary.tar.gz"
_URL: Final = "https://www.cs.toronto.edu/~kriz/" + _ARCHIVE
_MD5: Final = "c32a1d4ab5d03f1284b67883e8d87530"  # as published beside it
_TIMEOUT: Final = 10  # seconds for a connection, and between two packets
# A published file has 31 MB. A member of an archive may claim any size, so we stop somewhere.
_MOST: Final = 1 << 30  # bytes
_CHUNK: Final = 1 << 20  # bytes
#: What reading a damaged archive raises.
_BROKEN: Final = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError)

Bytes = NDArray[np.uint8]


def load_cifar10(
    folder: str | os.PathLike[str] | None = None, split: Split = "train"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Load images and labels of CIFAR-10, or of a data set that comes in files of the same form.

    Looked for in this order: `folder`; the folder that the environment variable SPARSEDNN_DATA
    names, or ``cifar10`` inside it; this user's cache. In each of these, the six files may lie
    themselves, in a folder ``cifar-10-batches-bin``, or in ``cifar-10-binary.tar.gz``, which is not
    unpacked. What is not in the cache is downloaded to it (170 MB), with one line about it on
    stderr, and checked by its MD5 sum.

    Parameters
    ----------
    folder
        Such a folder, or the archive itself.
    split
        "train" (50,000 images, the five files one after the other) or "test" (10,000).

    Returns
    -------
    images, labels
        ``(n, 3, 32, 32)``: red, green and blue, 255 is bright; and ``(n,)``, 0 … 9, see `CLASSES`.
        Both uint8.

    Raises
    ------
    FormatError
        If a file is missing or damaged, or has a label above 9.
    InputError
        If nothing was found and nothing could be downloaded.
    UsageError
        If there is no such split.
    """
    if split not in _FILES:
        raise UsageError(f"CIFAR-10 is split into train and test: '{split}'")
    place = _locate(None if folder is None else Path(folder))
    read = _from_folder if place.is_dir() else _from_archive
    batches = read(place, _FILES[split])
    images = np.concatenate([batch[:, 1:] for batch in batches]).reshape(-1, *_SHAPE)
    return images, np.concatenate([batch[:, 0] for batch in batches])


def _locate(folder: Path | None) -> Path:
    """Find the folder with the files, or the archive; download the archive if there is neither."""
    if folder is not None:
        found = _place_in(folder)
        if found is None:
            raise FormatError(
                f"{folder}: " + (
                    f"neither {_FILES['train'][0]} … {_FILES['test'][0]}, nor {_INSIDE}, nor "
                    f"{_ARCHIVE} is in this folder" if folder.is_dir()
                    else f"no such folder; expected one with CIFAR-10's files or {_ARCHIVE}"
                )
            )  # fmt: skip
        return found
    data = os.environ.get("SPARSEDNN_DATA")
    for place in (Path(data), Path(data) / "cifar10") if data else ():
        found = _place_in(place) if place.is_dir() else None
        if found is not None:
            return found
    return _download()


def _place_in(folder: Path) -> Path | None:
    """What to read in this folder, or the archive if that is what we were given."""
    if folder.is_file():
        return folder
    for place in (folder, folder / _INSIDE):
        # One of them is enough: half a data set is an error that we tell, not a download.
        if any((place / name).exists() for names in _FILES.values() for name in names):
            return place
    return folder / _ARCHIVE if (folder / _ARCHIVE).is_file() else None


def _from_folder(folder: Path, names: tuple[str, ...]) -> list[Bytes]:
    batches = []
    for name in names:
        path = folder / name
        with reading(path), path.open("rb") as file:
            batches.append(_records(file.read, path.stat().st_size, str(path)))
    return batches


def _from_archive(path: Path, names: tuple[str, ...]) -> list[Bytes]:
    """Read some members; which they are is decided by their whole name, the rest is passed over."""
    wanted = {f"{folder}{name}": name for name in names for folder in (f"{_INSIDE}/", "")}
    found: dict[str, Bytes] = {}
    with reading(path), path.open("rb") as packed:
        try:
            # Member after member, as they lie: a gzip stream has no way back but from its start.
            with (
                gzip.GzipFile(fileobj=packed) as stream,
                tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive,
            ):
                for member in archive:
                    name = wanted.get(member.name.removeprefix("./"))
                    if name is not None:
                        where = f"{path}: {member.name}"
                        if name in found:
                            raise FormatError(f"{where}: is in this archive more than once")
                        found[name] = _member(archive, member, where)
                while stream.read(_CHUNK):  # its checksum is behind everything
                    pass
        except _BROKEN as error:
            reason = " ".join(str(error).split())
            raise FormatError(f"{path}: not a tar.gz archive, or damaged ({reason})") from error
    for name in names:
        if name not in found:
            raise FormatError(f"{path}: {_INSIDE}/{name} is not in this archive")
    return [found[name] for name in names]


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, where: str) -> Bytes:
    stream = archive.extractfile(member) if member.isreg() else None
    if stream is None:
        raise FormatError(f"{where}: a link, a folder or a device, a file was expected")
    return _records(stream.read, member.size, where)


def _records(read: Callable[[int], bytes], size: int, where: str) -> Bytes:
    """Read and check the records of one file: ``(n, 3073)``, the label first."""
    if size > _MOST:
        raise FormatError(f"{where}: has {size} bytes, at most {_MOST} were expected")
    # The size is that of the file's entry; one that is growing or cut off has another.
    content = read(size) if size else b""
    if len(content) != size:
        raise FormatError(f"{where}: truncated: {len(content)} of {size} bytes could be read")
    if not size or size % _RECORD:
        raise FormatError(
            f"{where}: has {size} bytes, expected a multiple of {_RECORD} "
            "(a label and 32 × 32 pixels of three colours)"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    wrong = records[:, 0] >= len(CLASSES)
    if wrong.any():
        image = int(np.argmax(wrong))
        raise FormatError(
            f"{where}: image {image} has the label {records[image, 0]}, expected 0 to 9"
        )
    return records


def _download() -> Path:
    """Path of the archive in the cache, downloaded if it is not there, with the right MD5 sum."""
    import pooch

    # pooch logs to stderr whatever it does; we say one line, or raise one.
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        cache = Path(pooch.os_cache("sparsednn")) / "cifar10"
        if not (cache / _ARCHIVE).exists():
            print(f"sparsednn: downloading {_ARCHIVE} (170 MB) to {cache}", file=sys.stderr)
        path = pooch.retrieve(
            _URL,
            known_hash=f"md5:{_MD5}",
            fname=_ARCHIVE,
            path=cache,
            downloader=pooch.HTTPDownloader(timeout=_TIMEOUT),
        )
    except Exception as error:
        # requests, urllib3, the file system or a wrong checksum: what to do is the same.
        wrong = isinstance(error, ValueError) and "hash" in str(error)
        why = "its checksum is wrong" if wrong else type(error).__name__
        raise InputError(
            f"CIFAR-10 is not on this machine and {_ARCHIVE} could not be downloaded ({why}): "
            "give its folder or set SPARSEDNN_DATA"
        ) from error
    finally:
        logger.setLevel(level)
    return Path(path)
