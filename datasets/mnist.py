"""MNIST and whatever else comes as idx files: read from a folder, or downloaded once.

MNIST: Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits". The idx format
is theirs: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian
uint32, then the numbers, big-endian, the last dimension fastest. Fashion-MNIST and KMNIST use the
same format and file names, so a folder of theirs works as well.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import sys
import zlib
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, InputError, UsageError

__all__ = ["Split", "is_original_mnist", "load_mnist", "read_idx"]

Split = Literal["train", "test"]

_URL: Final = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_TIMEOUT: Final = 10  # seconds for a connection, and between two packets
_CHUNK: Final = 1 << 20  # bytes
_GZIP: Final = b"\x1f\x8b"

_IDX_TYPES: Final = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

_PREFIX: Final = {"train": "train", "test": "t10k"}
# Of the files as they are offered for download.
_DOWNLOAD_MD5: Final = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
# Of the unpacked image files, however they were packed.
_ORIGINAL_MD5: Final = {
    "train": "6bbc9ace898e44ae57da46a324031adb",
    "test": "2646ac647ad5339dbf082846283269ea",
}


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an idx file, plain or gzipped (told apart by content, not by name).

    Returns
    -------
    array
        With the dimensions of the file, in native byte order: uint8, int8, int16, int32, float32
        or float64.

    Raises
    ------
    FormatError
        If the file cannot be read, is no idx file, has less or more numbers than its dimensions
        say, or is damaged gzip.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP
            raw.seek(0)
            if not packed:
                return _read_idx(raw, path)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _read_idx(cast(IO[bytes], unpacked), path)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise FormatError(f"{path}: damaged gzip file ({error})") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None


def _read_idx(stream: IO[bytes], path: Path) -> NDArray[Any]:
    magic = stream.read(4)
    if len(magic) < 4:
        raise FormatError(f"{path}: not an idx file: it has {len(magic)} bytes")
    if magic[:2] != b"\0\0" or magic[2] not in _IDX_TYPES:
        raise FormatError(
            f"{path}: not an idx file: it starts with {magic.hex(' ')}, expected 00 00, "
            "a type from 08 to 0e, and the number of dimensions"
        )
    if not 1 <= magic[3] <= 32:
        raise FormatError(f"{path}: an idx file of {magic[3]} dimensions, expected 1 to 32")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise FormatError(f"{path}: truncated: it ends within its {magic[3]} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(sizes, ">u4"))
    dtype = np.dtype(_IDX_TYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    # In pieces: sizes that are garbage must not make us ask for that much memory. One byte more
    # than expected, to see whether the file goes on, and to have the checksum of gzip verified.
    data = bytearray()
    while len(data) <= expected:
        piece = stream.read(min(_CHUNK, expected + 1 - len(data)))
        if not piece:
            break
        data += piece
    if len(data) != expected:
        what = "truncated: it has" if len(data) < expected else "too long: it has at least"
        raise FormatError(
            f"{path}: {what} {len(data)} bytes behind its header, expected {expected} "
            f"for {' × '.join(map(str, shape))} numbers of {dtype.itemsize} bytes"
        )
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def load_mnist(
    folder: str | os.PathLike[str] | None = None, split: Split = "train"
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Load images and labels of MNIST, or of a data set that comes in files of the same names.

    Looked for in this order: `folder`; the folder that the environment variable SPARSEDNN_DATA
    names, or ``mnist`` inside it; this user's cache. What is not in the cache is downloaded to it
    (11 MB), with one line about it on stderr, and checked by its MD5 sum. Files in a folder may be
    plain or gzipped, and may be somebody else's data: see `is_original_mnist`.

    Parameters
    ----------
    folder
        Folder with ``train-images-idx3-ubyte`` and so on, with or without ``.gz``.
    split
        "train" (60,000 images) or "test" (10,000).

    Returns
    -------
    images, labels
        ``(n, 28, 28)``: 0 is background, 255 is ink; and ``(n,)``. Both uint8.

    Raises
    ------
    FormatError
        If a file is missing or damaged, or the numbers of images and labels differ.
    InputError
        If nothing was found and nothing could be downloaded.
    UsageError
        If there is no such split.
    """
    if split not in _PREFIX:
        raise UsageError(f"MNIST is split into train and test: '{split}'")
    image_path, label_path = _locate(None if folder is None else Path(folder), _PREFIX[split])
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.dtype != np.uint8 or images.ndim != 3 or not images.size:
        raise FormatError(
            f"{image_path}: expected uint8 images (n, height, width), "
            f"found {images.dtype} of shape {images.shape}"
        )
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise FormatError(
            f"{label_path}: expected uint8 labels (n,), found {labels.dtype} "
            f"of shape {labels.shape}"
        )
    if len(images) != len(labels):
        raise FormatError(
            f"{label_path}: {len(labels)} labels, but there are {len(images)} images in "
            f"{image_path.name}"
        )
    return images, labels


def is_original_mnist(images: NDArray[np.uint8], split: Split = "train") -> bool:
    """Whether these are the original MNIST images of this split, bit for bit and in order.

    Compares the MD5 sum that the array has as an unpacked idx file with the published one. The
    official Graph Challenge inputs come from the training images only.
    """
    digest = hashlib.md5(bytes([0, 0, 0x08, images.ndim]), usedforsecurity=False)
    digest.update(np.array(images.shape, ">u4").tobytes())
    digest.update(np.ascontiguousarray(images).data)
    return images.dtype == np.uint8 and digest.hexdigest() == _ORIGINAL_MD5.get(split)


def _locate(folder: Path | None, prefix: str) -> tuple[Path, Path]:
    """Find or download the file of images and the file of labels."""
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    if folder is not None:
        if not folder.is_dir():
            raise FormatError(f"{folder}: no such folder; expected one with {names[0]}[.gz]")
        found = [_file_in(folder, name) for name in names]
    else:
        found = [None, None]
        data = os.environ.get("SPARSEDNN_DATA")
        for place in (Path(data), Path(data) / "mnist") if data else ():
            if not any(found):  # both from one folder, or we might pair strangers
                folder, found = place, [_file_in(place, name) for name in names]
        if not any(found):
            return _download(names[0] + ".gz"), _download(names[1] + ".gz")
    for name, path in zip(names, found, strict=True):
        if path is None:
            raise FormatError(f"{folder}: neither {name} nor {name}.gz is in this folder")
    return cast(tuple[Path, Path], tuple(found))


def _file_in(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # what some unpackers make of it
    for candidate in (name, f"{name}.gz", dotted, f"{dotted}.gz"):
        if (folder / candidate).is_file():
            return folder / candidate
    return None


def _download(name: str) -> Path:
    """Path of the file in the cache, downloaded if it is not there, with the right MD5 sum."""
    import pooch

    # pooch logs to stderr whatever it does; we say one line, or raise one.
    logger = pooch.get_logger()
    level = logger.level
    logger.setLevel("CRITICAL")
    try:
        cache = Path(pooch.os_cache("sparsednn")) / "mnist"
        if not (cache / name).exists():
            print(f"sparsednn: downloading {name} to {cache}", file=sys.stderr)
        path = pooch.retrieve(
            _URL + name,
            known_hash=f"md5:{_DOWNLOAD_MD5[name]}",
            fname=name,
            path=cache,
            downloader=pooch.HTTPDownloader(timeout=_TIMEOUT),
        )
    except Exception as error:
        # requests, urllib3, the file system or a wrong checksum: what to do is the same.
        wrong = isinstance(error, ValueError) and "hash" in str(error)
        why = "its checksum is wrong" if wrong else type(error).__name__
        raise InputError(
            f"MNIST is not on this machine and {name} could not be downloaded ({why}): "
            "give --mnist FOLDER or set SPARSEDNN_DATA"
        ) from error
    finally:
        logger.setLevel(level)
    return Path(path)
