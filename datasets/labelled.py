"""Data sets by name with their labels, divided into a part to train with and a part to test with.

=========================  ==================================================================
``digits``                 64 grey pixels; 1437 images to train, 360 to test
``digits:1024``            the same images, interpolated and made binary
``mnist``                  784 grey pixels; 60,000 images to train, 10,000 to test
``graph-challenge:1024``   the same images, interpolated and made binary as in the challenge
=========================  ==================================================================

``digits:test`` or ``mnist:train`` say themselves which part is meant.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from sparsednn.datasets.digits import digits_images, digits_inputs
from sparsednn.datasets.graph_challenge import graph_challenge_inputs
from sparsednn.datasets.mnist import load_mnist
from sparsednn.errors import UnknownNameError
from sparsednn.inputs import InputSet

__all__ = ["NAMED", "Split", "digits_part", "load_labelled"]

Split = Literal["train", "test"]

#: The names: data set and part, or data set and number of neurons.
NAMED: Final = re.compile(
    r"(?:(digits|mnist)(?::(train|test))?)|(digits|graph-challenge):([0-9]{1,9})"
)
_KNOWN: Final = (
    "digits, digits:NEURONS, mnist, graph-challenge:NEURONS; digits:train, digits:test, "
    "mnist:train, mnist:test"
)
_DIGITS_TEST: Final = 360  # of 1797


def load_labelled(
    name: str, split: Split | None = None, *, mnist: Path | None = None
) -> tuple[InputSet, NDArray[np.int64]]:
    """Make inputs and labels of a data set.

    Parameters
    ----------
    name
        See the module.
    split
        Which part, unless the name says it; None: all digits, or MNIST's training images.
    mnist
        The folder with the MNIST idx files, for names that need them.

    Returns
    -------
    inputs, labels
        One column per image; ``(images,)``. Grey pixels are divided by 255 and stand row after row;
        binary ones as `interpolate_images` says.

    Raises
    ------
    UnknownNameError
        If there is no such name.
    InputError
        As `load_mnist` and `interpolate_images` do.
    """
    named = NAMED.fullmatch(name)
    if named is None:
        raise UnknownNameError(
            f"'{name}': no such file, and no examples of this name (known: {_KNOWN})"
        )
    base, part = named[1] or named[3], named[2] or split
    if base == "digits":
        pixels, labels = digits_images()
        # Binary digits are made of all images together: no part of them can be made alone.
        inputs = digits_inputs(int(named[4])) if named[4] else _grey(pixels, name)
        if part is not None:
            ids = digits_part(labels, "test" if part == "test" else "train")
            inputs, labels = inputs.pick(ids), labels[ids]
        return inputs, labels.astype(np.int64)
    pixels, labels = load_mnist(mnist, "test" if part == "test" else "train")
    if named[4]:
        return graph_challenge_inputs(int(named[4]), pixels), labels.astype(np.int64)
    return _grey(pixels, name), labels.astype(np.int64)


def digits_part(labels: NDArray[np.uint8], part: Split) -> NDArray[np.int64]:
    """Ids of the digits to train or to test with, ascending; each class gives its share (± 1).

    Parameters
    ----------
    labels
        ``(1797,)``: those of `digits_images`, all of them.
    part
        "train" (1437 images) or "test" (360); chosen once and for all.
    """
    # Raw numbers of the generator: NumPy keeps these the same for ever, `permutation` it may not.
    shuffled = np.argsort(np.random.PCG64(0).random_raw(labels.size), kind="stable")
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    # Class after class, one in five goes to the test.
    taken = np.diff(np.arange(labels.size + 1) * _DIGITS_TEST // labels.size) == 1
    return np.sort(by_class[taken if part == "test" else ~taken]).astype(np.int64)


def _grey(images: NDArray[np.uint8], name: str) -> InputSet:
    """Images ``(n, h, w)`` as columns of pixels / 255, row after row; black ones are not stored."""
    flat = images.reshape(len(images), -1)
    lit = flat != 0
    indptr = np.concatenate([[0], np.cumsum(np.count_nonzero(lit, axis=1))])
    features = np.nonzero(lit)[1].astype(np.uint16 if flat.shape[1] <= 2**16 else np.int32)
    values = flat[lit] / np.float32(255)
    return InputSet(indptr, features, values, flat.shape[1], name=name, check=False)
