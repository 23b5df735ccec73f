"""Handwritten digits that need no download: the 1797 images of 8 × 8 that scikit-learn brings.

They are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (E. Alpaydin,
C. Kaynak, 1998), with 17 shades of grey. Interpolated like the Graph Challenge's MNIST, they are
the inputs that every example and test can have.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.datasets.images import interpolate_images, square_side
from sparsednn.inputs import InputSet

__all__ = ["digits_images", "digits_inputs"]


def digits_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return all digits: images ``(1797, 8, 8)`` and labels ``(1797,)``, both uint8.

    The 17 shades 0 … 16 are spread over 0 … 255.
    """
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return images, digits.target.astype(np.uint8)


def digits_inputs(neurons: int, *, limit: int | None = None) -> InputSet:
    """Digits as network inputs: interpolated to ``neurons`` pixels and made binary.

    Parameters
    ----------
    neurons
        A square number of at least 64; feature ``column · side + row`` is the pixel (row, column).
    limit
        Return the first `limit` images only, as they are in the whole set.

    Returns
    -------
    InputSet
        Named like ``digits:1024``, one column per image, all stored entries 1. See
        `interpolate_images`.

    Raises
    ------
    InputError
        If `neurons` is not a square, or its side below 8, or `limit` is negative.
    """
    side = square_side(neurons)
    return interpolate_images(digits_images()[0], side, limit=limit, name=f"digits:{neurons}")
