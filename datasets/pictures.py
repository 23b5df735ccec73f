"""Pictures with labels, as the dense path learns them: bytes that become numbers block by block.

=============================  ==============================================================
``digits``                     1 × 8 × 8; 1437 images to train, 360 to test
``mnist``                      1 × 28 × 28; 60,000 images to train, 10,000 to test
``cifar10``                    3 × 32 × 32; 50,000 images to train, 10,000 to test
``synthetic:CxHxW[:CLASSES]``  made here, of any size, for benchmarks; 10 classes unless said
``….npz``                      a file with `images`, (n, c, h, w) or (n, h, w), and `labels`
=============================  ==============================================================

``digits:test``, ``mnist:train`` and so on say themselves which part is meant. A file wins over a
name that looks the same.

All pixels stay bytes, on every rank; a step converts only the block that the rank computes with.
Knows nothing of ranks, networks, and which sizes they take.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from sparsednn.datasets.cifar10 import load_cifar10
from sparsednn.datasets.digits import digits_images
from sparsednn.datasets.labelled import Split, digits_part
from sparsednn.datasets.mnist import load_mnist
from sparsednn.errors import FormatError, InputError, ShapeError, UnknownNameError, UsageError
from sparsednn.formats._common import NOT_NUMPY, reading

__all__ = ["Pictures", "load_pictures"]

_KNOWN: Final = "digits, mnist, cifar10 (:train, :test), synthetic:CxHxW[:CLASSES]"
_NAMED: Final = re.compile(r"(digits|mnist|cifar10)(?::(train|test))?")
_SYNTHETIC: Final = re.compile(
    r"synthetic:([0-9]{1,9})x([0-9]{1,9})x([0-9]{1,9})(?::([0-9]{1,9}))?"
)
_SYNTHETIC_IMAGES: Final = 1024  # where nobody says how many
_SYNTHETIC_MOST: Final = 1 << 34  # bytes
#: What NumPy raises for an archive that is none, or is damaged.
_NOT_NPZ: Final = (*NOT_NUMPY, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one size as bytes, and the class of each.

    A pixel ``p`` of channel ``c`` means the number ``(p/scale - mean[c]) / std[c]``.

    Parameters
    ----------
    pixels
        ``(n, channels, height, width)`` uint8, C-contiguous.
    labels
        ``(n,)`` int64: classes, from 0.
    classes
        How many there are; all labels are below.
    name
        Where they come from, for messages.
    scale
        What a pixel is divided by.
    mean, std
        ``(channels,)`` float64, of pixels / scale, or None: 0 and 1. Those of `moments` for
        training; what is tested gets the same ones, through `dataclasses.replace`.

    Raises
    ------
    InputError
        (or its kind ShapeError) if there are no images, arrays are not as told or do not fit
        together, a label is no class, or the scale or a deviation is not a positive number.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    classes: int
    name: str
    scale: float = 255.0
    mean: NDArray[np.float64] | None = None
    std: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be learned."""
        shape: tuple[int, ...] = self.pixels.shape
        if len(shape) != 4:
            raise ShapeError(f"{self.name}: pixels must be (n, channels, height, width): {shape}")
        if not self.pixels.size:
            raise InputError(f"{self.name}: there are no pixels in images of shape {shape}")
        if self.pixels.dtype != np.uint8 or not self.pixels.flags.c_contiguous:
            found = f"{self.pixels.dtype} with strides {self.pixels.strides}"
            raise InputError(f"{self.name}: pixels must be uint8, C-contiguous, found {found}")
        if self.labels.shape != shape[:1] or self.labels.dtype != np.int64:
            raise ShapeError(
                f"{self.name}: {self.labels.dtype} labels of shape {self.labels.shape} for "
                f"{shape[0]} images, expected int64 ({shape[0]},)"
            )
        for i in np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))[:1]:
            found = f"image {i} has the label {self.labels[i]}"
            raise InputError(f"{self.name}: {found}, expected 0 to {self.classes - 1}")
        mean, std = self._per_channel()
        if not mean.shape == std.shape == shape[1:2]:
            found = f"means of shape {mean.shape} and deviations of shape {std.shape}"
            raise ShapeError(f"{self.name}: {found} for {shape[1]} channels")
        if not (np.isfinite(mean).all() and all(0 < s < np.inf for s in (self.scale, *std))):
            raise InputError(
                f"{self.name}: means must be finite, deviations and the scale positive: "
                f"{mean.tolist()}, {std.tolist()}, {self.scale}"
            )

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @cached_property
    def identity(self) -> str:
        """Hash (BLAKE2b) of the numbers and the labels; the same wherever they come from."""
        mean, std = self._per_channel()
        digest = hashlib.blake2b(f"{self.pixels.shape}|{self.classes}|".encode(), digest_size=32)
        digest.update(np.concatenate([[self.scale], mean, std]).astype("<f8").data)
        digest.update(self.labels.astype("<i8").data)
        digest.update(self.pixels.data)
        return digest.hexdigest()

    def block(
        self,
        ids: ArrayLike,
        channels: slice = slice(None),
        rows: slice = slice(None),
        columns: slice = slice(None),
        dtype: DTypeLike = np.float32,
        *,
        out: NDArray[Any] | None = None,
    ) -> NDArray[Any]:
        """Convert one block of some images to numbers.

        The numbers of a pixel do not depend on the block that it is in, bit for bit.

        Parameters
        ----------
        ids
            ``(m,)`` whole numbers from 0, in any order; none will do.
        channels, rows, columns
            Which part of each image: of step 1, within the image, maybe empty.
        dtype
            float32 or float64; not looked at where there is an `out`.
        out
            Array to write to and return, of the right shape; any strides.

        Returns
        -------
        array
            ``(m, channels, rows, columns)``; C-contiguous unless it is `out`.

        Raises
        ------
        InputError, ShapeError, UsageError
            If an id is no image; the part is not within the image, or `out` has another shape; the
            numbers are to be of another type.
        """
        chosen = self._ids(ids)
        _, n_channels, height, width = self.pixels.shape
        c = self._part(channels, n_channels, "channels")
        h = self._part(rows, height, "rows")
        w = self._part(columns, width, "columns")
        shape = (chosen.size, c.stop - c.start, h.stop - h.start, w.stop - w.start)
        if out is None:
            out = np.empty(shape, dtype)
        elif out.shape != shape:
            raise ShapeError(f"{self.name}: a block of shape {shape} into one of {out.shape}")
        if out.dtype not in (np.float32, np.float64):
            raise UsageError(f"{self.name}: pixels become float32 or float64, not {out.dtype}")
        # Bytes are gathered first, then converted where the numbers are to stand: faster than
        # image by image, and than a table of the 256 numbers.
        found = self.pixels[chosen, c, h, w]
        if self.mean is None and self.std is None:
            np.copyto(out, found)
            np.divide(out, out.dtype.type(self.scale), out=out)
            return out
        mean, std = (
            (self.scale * numbers[c, None, None]).astype(out.dtype)
            for numbers in self._per_channel()
        )
        np.subtract(found, mean, out=out)
        np.divide(out, std, out=out)
        return out

    def pick(self, ids: ArrayLike) -> Pictures:
        """Return copies of some images, in the order of `ids`; an id may come more than once.

        Raises
        ------
        InputError
            If there is none, or one is no image.
        """
        chosen = self._ids(ids)
        if not chosen.size:
            raise InputError(f"{self.name}: no images are left of {self.n_images}")
        return Pictures(
            self.pixels[chosen], self.labels[chosen], self.classes, self.name,
            self.scale, self.mean, self.std,
        )  # fmt: skip

    def moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of pixels / scale, ``(channels,)`` each, over all images.

        Sums of whole numbers, so exact. The deviation of a channel of one value only is 1.
        """
        sums, squares = np.zeros((2, self.image_shape[0]), np.int64)
        for image in self.pixels:  # one at a time: eight bytes for each pixel
            wide = image.astype(np.int64)
            sums += wide.sum(axis=(1, 2))
            squares += (wide * wide).sum(axis=(1, 2))
        n = self.pixels[:, 0].size
        spread = [n * q - s * s for s, q in zip(sums.tolist(), squares.tolist(), strict=True)]
        std = [math.sqrt(v) / n / self.scale if v else 1.0 for v in spread]
        return sums / n / self.scale, np.array(std)

    def _per_channel(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        channels = self.image_shape[0]
        mean = np.zeros(channels) if self.mean is None else self.mean
        return mean, np.ones(channels) if self.std is None else self.std

    def _ids(self, ids: ArrayLike) -> NDArray[np.int64]:
        chosen = np.asarray(ids)
        if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
            found = f"{chosen.dtype} of shape {chosen.shape}"
            raise InputError(f"{self.name}: ids of images are whole numbers (m,), found {found}")
        if chosen.size and not 0 <= int(chosen.min()) <= int(chosen.max()) < self.n_images:
            wrong = next(i for i in chosen.tolist() if not 0 <= i < self.n_images)
            raise InputError(f"{self.name}: there is no image {wrong} among {self.n_images}")
        return chosen.astype(np.int64, copy=False)

    def _part(self, wanted: slice, size: int, what: str) -> slice:
        """The slice with both ends; NumPy would cut off in silence what is outside."""
        start = 0 if wanted.start is None else wanted.start
        stop = size if wanted.stop is None else wanted.stop
        if wanted.step not in (None, 1) or not 0 <= start <= stop <= size:
            raise ShapeError(f"{self.name}: {what} {start} to {stop} of images that have {size}")
        return slice(start, stop)


def load_pictures(
    name: str,
    split: Split | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    limit: int | None = None,
) -> Pictures:
    """Load the pictures that `name` names.

    Parameters
    ----------
    name
        See the module.
    split
        Which part, unless the name says it; None: all digits, the images to train with of the
        others. A file is not divided. The two parts of a synthetic set share the prototypes.
    folder
        The folder with the files of MNIST or CIFAR-10, for names that need them.
    limit
        Only the first so many images of the part. A synthetic set has as many as are asked for,
        and 1024 if nobody asks.

    Returns
    -------
    Pictures
        Without mean and std. A file has as many classes as its largest label tells, MNIST's files
        at least 10.

    Raises
    ------
    InputError
        (any of its kinds) if there is no such name, a file is missing or damaged, or there are
        fewer images than `limit`.
    UsageError
        If an option is out of range.
    """
    if split not in (None, "train", "test"):
        raise UsageError(f"pictures are split into train and test: '{split}'")
    if limit is not None and limit < 1:
        raise UsageError(f"--images must be at least 1, found {limit}")
    named, synthetic = _NAMED.fullmatch(name), _SYNTHETIC.fullmatch(name)
    # A folder is no pictures: mnist/ beside us does not hide the name.
    if os.path.isfile(name) or (not (named or synthetic) and _is_path(name)):
        found = _from_npz(Path(name))
    elif synthetic is not None:
        return _synthetic(name, [int(s or 10) for s in synthetic.groups()], split, limit)
    elif named is not None:
        if named[2] is not None:
            split = "test" if named[2] == "test" else "train"
        found = _by_name(named[1], split, folder)
    else:
        raise UnknownNameError(f"'{name}': no such file, no such pictures (known: {_KNOWN})")
    if limit is not None and limit > found.n_images:
        raise InputError(f"{name}: has {found.n_images} images, --images asks for {limit}")
    return found if limit in (None, found.n_images) else found.pick(np.arange(limit))


def _is_path(name: str) -> bool:
    return os.path.exists(name) or name.endswith(".npz") or "/" in name.partition(":")[0]


def _by_name(base: str, part: Split | None, folder: str | os.PathLike[str] | None) -> Pictures:
    if base == "digits":
        images, labels = digits_images()
        if part is not None:
            ids = digits_part(labels, part)
            images, labels = images[ids], labels[ids]
    else:
        part = part or "train"
        images, labels = (load_mnist if base == "mnist" else load_cifar10)(folder, part)
    # Somebody else's data in MNIST's files may have more classes (letters).
    return _pictures(images, labels, 10, f"{base}:{part}" if part else base)


def _pictures(images: NDArray[np.uint8], labels: NDArray[Any], classes: int, name: str) -> Pictures:
    """Images ``(n, h, w)`` have one channel; there are at least so many classes."""
    pixels = np.ascontiguousarray(images[:, None] if images.ndim == 3 else images)
    classes = max(classes, int(labels.max(initial=0)) + 1)
    return Pictures(pixels, labels.astype(np.int64), classes, name)


def _from_npz(path: Path) -> Pictures:
    if path.is_dir():
        raise FormatError(f"{path}: is a folder; expected an .npz file, or a name ({_KNOWN})")
    if path.suffix != ".npz":
        raise FormatError(f"{path}: unknown suffix '{path.suffix}'; files with pictures are .npz")
    with reading(path), open(path, "rb") as file:  # NumPy would not close a broken one
        try:
            with np.load(file, allow_pickle=False) as archive:
                for key in ("images", "labels"):
                    if key not in archive:
                        raise FormatError(
                            f"{path}: has no array '{key}' (it has: {', '.join(archive) or 'none'})"
                        )
                images, labels = (np.asarray(archive[key]) for key in ("images", "labels"))
        except _NOT_NPZ as error:
            reason = " ".join(str(error).split())
            raise FormatError(f"{path}: not an .npz archive, or damaged ({reason})") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise FormatError(
            f"{path}: images: {images.dtype} array of shape {images.shape}, expected uint8 "
            "(n, channels, height, width) or (n, height, width)"
        )
    if labels.dtype.kind not in "iu" or labels.ndim != 1 or len(labels) != len(images):
        raise FormatError(
            f"{path}: labels: {labels.dtype} array of shape {labels.shape}, expected whole "
            f"numbers ({len(images)},)"
        )
    return _pictures(images, labels, 1, str(path))


def _synthetic(name: str, sizes: list[int], split: Split | None, images: int | None) -> Pictures:
    """Images around one prototype per class: pixels from 1 to 255, half of it noise.

    All from raw numbers of PCG64, which NumPy keeps the same for ever: ranks need not talk to have
    the same images. Class after class in turn, and one image after the other, so the first ones are
    the same however many there are.
    """
    *shape, classes = sizes
    count = images or _SYNTHETIC_IMAGES
    if min(sizes) < 1:
        raise InputError(f"'{name}': sizes and classes must be at least 1, found {min(sizes)}")
    each = math.prod(shape)
    if each * (count + classes) > _SYNTHETIC_MOST:
        raise InputError(
            f"'{name}': {count} images and {classes} prototypes of {each} bytes are more than "
            f"{_SYNTHETIC_MOST >> 30} GiB"
        )
    prototypes = _raw_bytes(0, min(classes, count) * each).reshape(-1, *shape)
    pixels = _raw_bytes(2 if split == "test" else 1, count * each).reshape(-1, *shape)
    # Halves: 1 to 128 of the prototype, 0 to 127 of the noise.
    prototypes >>= 1
    prototypes += 1
    pixels >>= 1
    for label, prototype in enumerate(prototypes):
        pixels[label::classes] += prototype
    return Pictures(pixels, np.arange(count, dtype=np.int64) % classes, classes, name)


def _raw_bytes(seed: int, count: int) -> NDArray[np.uint8]:
    raw = np.random.PCG64(seed).random_raw(-(-count // 8))
    return raw.astype("<u8", copy=False).view(np.uint8)[:count]
