"""Compiled loops that deal the entries of input columns to the parts that own their features.

Array-only: `sparsednn.distributed.features` checks and allocates. ``owners[f]`` is the part of
feature f, ``number[f]`` its place among those of that part. Who owns an entry is as good as random,
so no loop branches on it: that would cost ten times the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = ["count", "deal", "keep"]


@jit
def count(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    images: NDArray[np.int64],
    owners: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    """``counts[i, part]``, zero before: how many entries of image ``images[i]`` a part owns."""
    for i in range(images.size):
        image = images[i]
        for entry in range(indptr[image], indptr[image + 1]):
            counts[i, owners[indices[entry]]] += 1


@jit
def deal(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    values: NDArray[np.float32],
    images: NDArray[np.int64],
    owners: NDArray[np.int32],
    number: NDArray[np.int32],
    at: NDArray[np.int64],
    dealt: NDArray[Any],
    dealt_values: NDArray[np.float32],
) -> None:
    """Write each part's entries, image after image, from ``dealt[at[part]]`` on.

    `values` and `dealt_values` are empty if all values are one. `at` is used up.
    """
    for i in range(images.size):
        image = images[i]
        for entry in range(indptr[image], indptr[image + 1]):
            feature = indices[entry]
            part = owners[feature]
            to = at[part]
            at[part] = to + 1
            dealt[to] = number[feature]
            if values.size:
                dealt_values[to] = values[entry]


@jit
def keep(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    values: NDArray[np.float32],
    images: NDArray[np.int64],
    owners: NDArray[np.int32],
    part: int,
    number: NDArray[np.int32],
    counts: NDArray[np.int64],
    kept: NDArray[Any],
    kept_values: NDArray[np.float32],
) -> None:
    """Write one part's entries to the front of `kept`, and how many of each image to `counts`.

    An entry of another part is written, too, and the next one over it: `kept` (and `kept_values`,
    if there are values) has room for all entries of these images, and one more.
    """
    to = 0
    for i in range(images.size):
        image = images[i]
        first = to
        for entry in range(indptr[image], indptr[image + 1]):
            feature = indices[entry]
            kept[to] = number[feature]
            if values.size:
                kept_values[to] = values[entry]
            to += int(owners[feature] == part)
        counts[i] = to - first
