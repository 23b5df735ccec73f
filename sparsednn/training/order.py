"""The order in which the images of an epoch come; every rank makes it for itself."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["epoch_order"]


def epoch_order(images: int, epoch: int, seed: int, *, shuffle: bool = True) -> NDArray[np.int64]:
    """Return the numbers of the images in the order of an epoch, ``(images,)``.

    It depends on these numbers only, so a run that is resumed within an epoch goes on with the
    images that come next.

    Parameters
    ----------
    images
        How many there are.
    epoch, seed
        Neither below 0.
    shuffle
        Without, they come as they are.
    """
    if not shuffle:
        return np.arange(images)
    # Raw numbers of the generator: NumPy keeps these the same for ever, `permutation` it may not,
    # and a resumed run must find its place.
    source = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    return np.argsort(source.random_raw(images), kind="stable")
