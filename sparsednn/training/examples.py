"""Examples: inputs with the labels (or dense targets) that a network is to learn.

By name: ``digits`` (64 grey pixels), ``digits:1024`` (binary), ``mnist`` (784 grey pixels) and
``graph-challenge:1024`` (MNIST, binary), each divided into a part to train with and a part to test
with, which the caller asks for or the name says (``digits:test``, ``mnist:train``). Files: inputs
as everywhere, labels beside them in a file of their own. A path wins over a name.

Knows nothing of ranks, batches and losses.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.datasets.labelled import NAMED, Split
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.formats._common import NOT_NUMPY, reading
from sparsednn.inputs import InputSet
from sparsednn.sources import load_inputs

__all__ = ["Examples", "Split", "load_examples", "read_labels", "validation_of"]

_IDX_NAME: Final = re.compile(r".*([.-]idx[0-9].*|\.(idx|ubyte)(\.gz)?)")
_TEXT: Final = (".txt", ".tsv", ".csv")


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, and what the network's outputs are to be for each of them.

    Parameters
    ----------
    inputs
        One column per image.
    labels
        ``(images,)`` int64: the output neuron (from 0) that stands for the class of each image.
    values
        ``(n_out, images)`` float32: dense targets. Exactly one of both is given.
    name
        Where they come from, for messages.

    Raises
    ------
    InputError
        If there are no images, or a label is negative, or a target is NaN or infinite.
    ShapeError
        If there are more or less labels (or targets) than images.
    """

    inputs: InputSet
    labels: NDArray[np.int64] | None
    values: NDArray[np.float32] | None
    name: str

    def __post_init__(self) -> None:
        """Refuse what cannot be learned."""
        if (self.labels is None) == (self.values is None):
            raise UsageError(f"{self.name}: examples have either labels or dense targets")
        if not self.n_images:
            raise InputError(f"{self.name}: there are no images in it")
        if self.labels is not None:
            shape: tuple[int, ...] = self.labels.shape
            if shape != (self.n_images,):
                count = f"{shape[0]} labels" if len(shape) == 1 else f"labels of shape {shape}"
                raise ShapeError(f"{self.name}: {count} for {self.n_images} images")
            if self.labels.min() < 0:
                image = int(np.argmax(self.labels < 0))
                raise InputError(
                    f"{self.name}: image {image} has the label {self.labels[image]}: "
                    "labels count from 0"
                )
        elif self.values is not None:
            shape = self.values.shape
            if len(shape) != 2 or shape[1] != self.n_images:
                raise ShapeError(
                    f"{self.name}: targets of shape {shape} for {self.n_images} images, "
                    f"expected (outputs, {self.n_images})"
                )
            if not np.isfinite(self.values).all():
                # Of the first image that has one: the order in which people look for it.
                image, row = (int(i) for i in np.argwhere(~np.isfinite(self.values.T))[0])
                raise InputError(
                    f"{self.name}: image {image} has the target {self.values[row, image]} for "
                    f"output {row}: targets must be finite"
                )

    @property
    def n_images(self) -> int:
        """Number of examples."""
        return self.inputs.n_images

    def subset(self, ids: ArrayLike) -> Examples:
        """Return copies of some examples, in the order of `ids`; an id may come more than once.

        Parameters
        ----------
        ids
            ``(m,)``, from 0; at least one.

        Raises
        ------
        InputError
            If there is none, or one is not whole or out of range.
        """
        chosen = np.asarray(ids)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or not chosen.size:
            raise InputError(
                f"{self.name}: a subset needs a list of whole numbers, found {chosen.dtype} "
                f"of shape {chosen.shape}"
            )
        chosen = chosen.astype(np.int64)
        if not 0 <= int(chosen.min()) <= int(chosen.max()) < self.n_images:
            raise InputError(f"{self.name}: an image is out of range for {self.n_images} images")
        return Examples(
            self.inputs.pick(chosen),
            None if self.labels is None else self.labels[chosen],
            None if self.values is None else self.values[:, chosen],
            self.name,
        )

    def check_outputs(self, n_out: int) -> None:
        """Refuse examples that a network of `n_out` output neurons cannot learn.

        Raises
        ------
        InputError
            If a label is no output neuron, naming the first such image.
        ShapeError
            If there are dense targets for another number of outputs.
        """
        if self.labels is not None and int(self.labels.max()) >= n_out:
            image = int(np.argmax(self.labels >= n_out))
            raise InputError(
                f"{self.name}: image {image} has the label {self.labels[image]}, but the network "
                f"has {n_out} outputs: labels go from 0 to {n_out - 1}"
            )
        if self.values is not None and len(self.values) != n_out:
            raise ShapeError(
                f"{self.name}: {len(self.values)} targets for each image, but the network has "
                f"{n_out} outputs"
            )


def load_examples(
    source: str,
    split: Split | None = None,
    *,
    n_features: int | None = None,
    n_out: int | None = None,
    mnist: Path | None = None,
    images: int | None = None,
    labels: Path | None = None,
) -> Examples:
    """Load the examples that `source` names.

    Parameters
    ----------
    source
        A path that `sparsednn.sources.load_inputs` reads, or a name (see the module). Grey pixels
        are divided by 255 and stand row after row; binary ones as `interpolate_images` says.
    split
        Which part of a data set by name: of the 1797 digits, 1437 to train and 360 to test, chosen
        once and for all, equally from all classes; of MNIST, the 60,000 and the 10,000 images. A
        name that says it itself (``mnist:test``) is taken at its word. None: all digits, and
        MNIST's training images. A file is not divided.
    n_features, n_out
        What the network takes and gives, where it is known; checked.
    mnist
        The folder with the MNIST idx files, for names that need them.
    images
        Only the first so many images of the part.
    labels
        For files: the file with the labels or targets, see `read_labels`.

    Raises
    ------
    InputError
        (any of its kinds) if there is no such file or name, its content cannot be used, or inputs
        and labels do not fit together or to the network.
    UsageError
        If labels are missing for a file or given for a name, or an option is out of range.
    """
    if split not in (None, "train", "test"):
        raise UsageError(f"examples are split into train and test: '{split}'")
    if images is not None and images < 1:
        raise UsageError(f"--images must be at least 1, found {images}")
    if _is_file(source):
        if labels is None:
            raise UsageError(f"{source}: a file has no labels in it: give them with --labels FILE")
        found = _from_files(source, labels, n_features)
    else:
        if labels is not None:
            raise UsageError(f"--labels does not apply to '{source}': its labels are part of it")
        found = _by_name(source, split, mnist)
    if n_features is not None and found.inputs.n_features != n_features:
        raise ShapeError(
            f"'{source}' has {found.inputs.n_features} features, the network takes {n_features}"
        )
    if images is not None and images > found.n_images:
        raise InputError(f"{source}: has {found.n_images} images, --images asks for {images}")
    if images is not None and images < found.n_images:
        found = found.subset(np.arange(images))
    if n_out is not None:
        found.check_outputs(n_out)
    return found


def validation_of(source: str) -> str | None:
    """Name what `load_examples` with the split "test" loads to validate a training source.

    None if nothing belongs to it: a file, or the part of a data set that is itself the test.

    Examples
    --------
    >>> validation_of("digits"), validation_of("mnist:train"), validation_of("mnist:test")
    ('digits', 'mnist:test', None)
    """
    named = NAMED.fullmatch(source)
    if _is_file(source) or named is None or named[2] == "test":
        return None
    return f"{named[1]}:test" if named[2] else source


def read_labels(path: str | os.PathLike[str]) -> NDArray[np.int64] | NDArray[np.float32]:
    """Read labels or dense targets; the format follows from the name.

    Parameters
    ----------
    path
        Text, a label per line (``.txt``, ``.tsv``, ``.csv``); an ``.npy`` array; or an idx file,
        plain or gzipped (``…-idx1-ubyte``, ``….idx``). Labels count from 0. An ``.npy`` array of
        two dimensions has dense targets, (outputs, images).

    Returns
    -------
    array
        Labels ``(images,)`` int64, or targets ``(outputs, images)`` float32.

    Raises
    ------
    FormatError
        If the file is missing, unknown or malformed, or has other dimensions.
    InputError
        If a label is not a whole number, naming the line or the image.
    """
    path = Path(path)
    with reading(path):
        path.stat()
        if path.is_dir():
            raise IsADirectoryError(path)
    if path.suffix in _TEXT:
        return _text_labels(path)
    if path.suffix == ".npy":
        with reading(path):
            try:
                array = np.load(path, allow_pickle=False)
            except NOT_NUMPY as error:
                raise FormatError(f"{path}: not a NumPy array file") from error
        if not isinstance(array, np.ndarray):
            array.close()
            raise FormatError(f"{path}: an .npz archive; labels are in an .npy file")
        if array.ndim == 2 and array.dtype.kind in "biuf":
            with np.errstate(over="ignore"):  # becomes infinite, which Examples names and refuses
                return array.astype(np.float32)
        return _whole(path, array)
    if _IDX_NAME.fullmatch(path.name):
        from sparsednn.datasets import read_idx

        return _whole(path, read_idx(path))
    raise FormatError(
        f"{path}: unknown suffix '{path.suffix}' for labels: known are {', '.join(_TEXT)}, .npy "
        "and idx files (-idx1-ubyte, .idx, with or without .gz)"
    )


def _is_file(source: str) -> bool:
    """Whether a source is meant as a path: as in `sparsednn.sources`, but for names without ':'."""
    if os.path.exists(source):
        return True
    return source not in ("digits", "mnist") and (
        ":" not in source or "/" in source.partition(":")[0]
    )


# Labels


def _text_labels(path: Path) -> NDArray[np.int64]:
    with reading(path):
        lines = path.read_bytes().rstrip().split(b"\n")
    if lines == [b""]:
        raise FormatError(f"{path}: there are no labels in it")
    found = np.empty(len(lines), np.int64)
    for i, line in enumerate(lines):
        word = line.strip()
        if not (word.removeprefix(b"-").isdigit() and len(word) <= 18):
            shown = ascii(word.decode("latin-1")[:40])
            raise FormatError(f"{path}: line {i + 1}: {shown} is not a label (a whole number)")
        found[i] = int(word)
    return found


def _whole(path: Path, array: NDArray[Any]) -> NDArray[np.int64]:
    """Labels of any type of numbers; one that is not whole is an error, not rounded."""
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise FormatError(
            f"{path}: {array.dtype} array of shape {array.shape}, expected labels (images,) or "
            "targets (outputs, images)"
        )
    if not array.size:
        raise FormatError(f"{path}: there are no labels in it")
    numbers = array.astype(np.float64)
    # What is larger than any neuron's number would not survive the conversion; NaN is not smaller.
    wrong = ~((np.abs(numbers) < 2**31) & (np.floor(numbers) == numbers))
    if wrong.any():
        image = int(np.argmax(wrong))
        raise InputError(
            f"{path}: image {image} has the label {array[image]}: labels are whole numbers from 0"
        )
    return array.astype(np.int64)


# Sources


def _from_files(source: str, labels: Path, n_features: int | None) -> Examples:
    inputs = load_inputs(source, n_features=n_features)
    found = read_labels(labels)
    what, count = ("labels", found.size) if found.ndim == 1 else ("targets", found.shape[1])
    if count != inputs.n_images:
        raise ShapeError(
            f"{labels}: {what} of {count} images, but {source} has {inputs.n_images} images"
        )
    name = f"{source} + {labels}"
    if found.ndim == 2:
        return Examples(inputs, None, found.astype(np.float32, copy=False), name)
    return Examples(inputs, found.astype(np.int64, copy=False), None, name)


def _by_name(source: str, split: Split | None, mnist: Path | None) -> Examples:
    from sparsednn.datasets.labelled import load_labelled

    inputs, labels = load_labelled(source, split, mnist=mnist)
    return Examples(inputs, labels, None, source)
