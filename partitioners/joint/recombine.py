"""The best chain that can be put together of several: dynamic programming over the layers.

Every candidate chain gives each layer an assignment of rows to parts. The words between two
neighbouring layers depend on their two assignments only, so the best choice of one candidate per
layer is a shortest path (Viterbi): never longer than the best single candidate, which is one of
the paths. The names of the parts are arbitrary in each candidate, so a transition may rename
them: the best renaming is an assignment problem on the matrix of matched columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.partitioners.joint.units import Arrays

__all__ = ["recombine"]

_EXACT_PARTS = 128
"""Up to so many parts the renaming is optimal (cubic time); above it is greedy."""


@jit
def _reach(
    arrays: Arrays, labels: NDArray[np.int32], k: int, touched: NDArray[np.bool_]
) -> np.int64:
    """Mark ``touched[net, part]`` for the nets of layer `k`; returns Σ size · parts."""
    total = np.int64(0)
    low = arrays.first_net[k]
    for net in range(low, arrays.first_net[k + 1]):
        for e in range(arrays.net_ptr[net], arrays.net_ptr[net + 1]):
            part = labels[arrays.net_unit[e]]
            if not touched[net - low, part]:
                touched[net - low, part] = True
                total += arrays.net_size[net]
    return total


@jit
def _matched(
    arrays: Arrays,
    owners: NDArray[np.int32],
    k: int,
    touched: NDArray[np.bool_],
    matched: NDArray[np.int64],
) -> None:
    """``matched[a, b]``: columns of layer `k` that part `a` owns and part `b` needs."""
    low = arrays.first_net[k]
    for u in range(arrays.first_unit[k - 1], arrays.first_unit[k]):
        for e in range(arrays.link_ptr[u], arrays.link_ptr[u + 1]):
            net = arrays.link_net[e] - low
            for part in range(touched.shape[1]):
                if touched[net, part]:
                    matched[owners[u], part] += arrays.link_columns[e]


def _renaming(matched: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Match owner parts with part names of the next layer so that most columns stay at home.

    Returns ``old[b]``: the owner part that the next layer's part ``b`` becomes, and the columns
    that match.
    """
    parts = len(matched)
    same = int(np.trace(matched))
    if parts <= _EXACT_PARTS:
        from scipy.optimize import linear_sum_assignment

        rows, columns = linear_sum_assignment(matched, maximize=True)
    else:
        # Most pairs match nothing: those are left for the end.
        flat = np.flatnonzero(matched)
        flat = flat[np.argsort(-matched.ravel()[flat], kind="stable")]
        columns = np.full(parts, -1, dtype=np.int64)
        _greedy(flat, columns)
        rows = np.arange(parts)
        columns[columns < 0] = np.setdiff1d(rows, columns)
    found = int(matched[rows, columns].sum())
    if found <= same:  # nothing gained: keep the names
        return np.arange(parts), same
    old = np.empty(parts, dtype=np.int64)
    old[columns] = rows
    return old, found


@jit
def _greedy(order: NDArray[np.int64], target: NDArray[np.int64]) -> None:
    """Match pairs in this order: places in the flattened ``(parts, parts)`` matrix."""
    parts = target.size
    taken = np.zeros(parts, dtype=np.bool_)
    for flat in order:
        a, b = flat // parts, flat % parts
        if target[a] < 0 and not taken[b]:
            target[a] = b
            taken[b] = True


def recombine(
    arrays: Arrays, candidates: Sequence[NDArray[np.int32]], parts: int
) -> tuple[NDArray[np.int32], int]:
    """Choose a candidate per layer, and names of its parts, so that the words are fewest.

    Parameters
    ----------
    arrays
        The problem.
    candidates
        ``(n_units,)`` int32 labels each. Balance is a layer's own affair, and the same for every
        part: if all candidates are balanced, so is the result.
    parts
        Number of parts, K.

    Returns
    -------
    labels, words
        The best chain and its words (as `anneal.words` counts them): at most the least of the
        candidates'.
    """
    n_layers = arrays.first_unit.size - 1
    count = len(candidates)
    best = np.zeros((n_layers, count), dtype=np.int64)
    came: NDArray[np.int64] = np.zeros((n_layers, count), dtype=np.int64)
    names: dict[tuple[int, int], NDArray[np.int64]] = {}
    equal_before: list[int] = []
    for k in range(n_layers):
        low, high = arrays.first_unit[k], arrays.first_unit[k + 1]
        first_of = _first_equal([labels[low:high] for labels in candidates])
        # Candidates that are equal in the layer before cost the same there: one of each is enough.
        before = sorted(set(equal_before))
        equal_before = first_of
        for t in range(count):
            if first_of[t] != t:
                best[k, t], came[k, t] = best[k, first_of[t]], came[k, first_of[t]]
                names[k, t] = names[k, first_of[t]]
                continue
            n_nets = int(arrays.first_net[k + 1] - arrays.first_net[k])
            touched = np.zeros((n_nets, parts), dtype=np.bool_)
            reach = int(_reach(arrays, candidates[t], k, touched))
            if not k:
                best[k, t], names[k, t] = reach, np.arange(parts)
                continue
            least = -1
            for s in before:
                matched = np.zeros((parts, parts), dtype=np.int64)
                _matched(arrays, candidates[s], k, touched, matched)
                old, found = _renaming(matched)
                cost = int(best[k - 1, s]) + reach - found
                if least < 0 or cost < least:
                    least, came[k, t], names[k, t] = cost, s, old
            best[k, t] = least
    labels = np.empty_like(candidates[0])
    path = [int(np.argmin(best[-1]))]
    for k in range(n_layers - 1, 0, -1):
        path.append(int(came[k, path[-1]]))
    path.reverse()
    name = np.arange(parts)
    for k, t in enumerate(path):
        # names[k, t] turns the candidate's parts into those of the candidate before it.
        name = name[names[k, t]]
        low, high = arrays.first_unit[k], arrays.first_unit[k + 1]
        labels[low:high] = name[candidates[t][low:high]]
    return labels, int(best[-1].min())


def _first_equal(vectors: Sequence[NDArray[np.int32]]) -> list[int]:
    """For each vector the first that is equal to it."""
    seen: dict[bytes, int] = {}
    return [seen.setdefault(vector.tobytes(), at) for at, vector in enumerate(vectors)]
