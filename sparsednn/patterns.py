"""Which rows of a sparse pattern are equal: kernels share their loads, partitioners move them
together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit, read_only

__all__ = ["equal_rows"]


@jit
def _pattern_hashes(
    indptr: NDArray[np.int64], indices: NDArray[np.int32], hashes: NDArray[np.uint64]
) -> None:
    for row in range(hashes.size):
        h = np.uint64(0xCBF29CE484222325)
        for k in range(indptr[row], indptr[row + 1]):
            h = (h ^ np.uint64(indices[k])) * np.uint64(0x100000001B3)
            h ^= h >> np.uint64(29)
        hashes[row] = h


@jit
def _chain_equal_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    order: NDArray[np.int64],
    hashes: NDArray[np.uint64],
    leader: NDArray[np.int64],
) -> None:
    """``leader[row]``: the first row that has the same pattern; `order` sorts by hash, then row."""
    n = order.size
    for at in range(n):
        row = order[at]
        leader[row] = row
        length = indptr[row + 1] - indptr[row]
        back = at - 1
        # Rows of another pattern can share the hash: go back over all with an equal hash.
        while back >= 0 and hashes[order[back]] == hashes[row]:
            # The leader of the row before: else a thousand equal rows would be walked over by each.
            other = leader[order[back]]
            if indptr[other + 1] - indptr[other] == length:
                same = True
                for k in range(length):
                    if indices[indptr[row] + k] != indices[indptr[other] + k]:
                        same = False
                        break
                if same:
                    leader[row] = other
                    break
            back -= 1


def equal_rows(indptr: NDArray[np.int64], indices: NDArray[np.int32]) -> NDArray[np.int64]:
    """For each row of a compressed pattern the first row that has the same indices.

    Parameters
    ----------
    indptr, indices
        ``(n + 1,)`` int64 and ``(nnz,)`` int32, ascending within a row.

    Returns
    -------
    ``(n,)`` int64: a row's leader; leaders are their own. Equality is exact, hashes only find
    candidates.
    """
    hashes = np.empty(indptr.size - 1, np.uint64)
    indptr, indices = read_only(indptr), read_only(indices)
    _pattern_hashes(indptr, indices, hashes)
    order = np.argsort(hashes, kind="stable")
    leader = np.empty(hashes.size, np.int64)
    _chain_equal_rows(indptr, indices, order, hashes, leader)
    return leader
