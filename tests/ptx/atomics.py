"""Atomic operations of many threads at once, as if one after the other in the threads' order."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["apply"]

_UFUNCS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def apply(
    view: NDArray[Any], place: NDArray[np.int64], operation: str, wanted: bool, *values: Any
) -> NDArray[Any] | None:
    """Let every thread change ``view[place]``; return what each found there, if that is wanted.

    Parameters
    ----------
    values
        One per thread, or one for all; for ``cas`` first what is compared, then what is written.
    """
    of = [np.broadcast_to(value, place.shape) for value in values]
    if operation in _UFUNCS and not wanted:
        _UFUNCS[operation].at(view, place, of[0])
        return None
    order = np.argsort(place, kind="stable")
    sorted_place = place[order]
    heads = np.empty(len(order), bool)
    heads[:1] = True
    np.not_equal(sorted_place[1:], sorted_place[:-1], out=heads[1:])
    starts = np.flatnonzero(heads)
    of = [value[order] for value in of]
    if operation == "cas":
        found = _compare_and_swap(view, sorted_place, starts, *of)
    elif operation == "exch":
        found = np.empty(len(order), view.dtype)
        found[1:] = of[0][:-1]
        found[starts] = view[sorted_place[starts]]
        ends = np.append(starts[1:], len(order)) - 1
        view[sorted_place[ends]] = of[0][ends]
    else:
        found = _in_turn(view, sorted_place, starts, operation, of[0])
    result = np.empty_like(found)
    result[order] = found
    return result


def _in_turn(
    view: NDArray[Any],
    place: NDArray[np.int64],
    starts: NDArray[np.int64],
    operation: str,
    value: NDArray[Any],
) -> NDArray[Any]:
    ends = np.append(starts[1:], len(place))
    counts = ends - starts
    found = np.empty(len(place), view.dtype)
    function = _UFUNCS.get(operation)
    if function is not None and counts.max() > len(starts):
        for start, end in zip(starts, ends, strict=True):
            chain = np.empty(end - start + 1, view.dtype)
            chain[0], chain[1:] = view[place[start]], value[start:end]
            chain = function.accumulate(chain)
            found[start:end], view[place[start]] = chain[:-1], chain[-1]
        return found
    for turn in range(int(counts.max())):
        now = starts[counts > turn] + turn
        where = place[now]
        old = view[where]
        found[now] = old
        if function is not None:
            view[where] = function(old, value[now])
        elif operation == "inc":
            view[where] = np.where(old >= value[now], 0, old + 1).astype(view.dtype)
        else:
            low = (old == 0) | (old > value[now])
            view[where] = np.where(low, value[now], old - 1).astype(view.dtype)
    return found


def _compare_and_swap(
    view: NDArray[Any],
    place: NDArray[np.int64],
    starts: NDArray[np.int64],
    compare: NDArray[Any],
    value: NDArray[Any],
) -> NDArray[Any]:
    """In each round, the threads of a word up to the first that succeeds are done."""
    found = np.empty(len(place), view.dtype)
    group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(place))))
    left = np.arange(len(place))
    while len(left):
        now = view[place[left]]
        hits = left[now == compare[left]]
        first = np.full(len(starts), len(place))
        np.minimum.at(first, group[hits], hits)
        limit = first[group[left]]
        done = left <= limit
        found[left[done]] = now[done]
        winners = first[first < len(place)]
        view[place[winners]] = value[winners]
        left = left[~done]
    return found
