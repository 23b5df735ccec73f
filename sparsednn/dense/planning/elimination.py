"""The least of a sum of tables, each of a few variables: exact, by eliminating one after another.

Nonserial dynamic programming (Bertelè and Brioschi, 1972): tables that have a variable are added,
the least over that variable takes their place, and where it was is remembered. A chain is the
ordinary dynamic programme; a network with shortcuts needs tables of three variables on the way.
The next variable is one whose table is smallest.

Must not know: what the tables are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Table", "elimination_order", "minimise"]

#: Names of variables, and an array with an axis for each.
Table = tuple[tuple[str, ...], NDArray[Any]]


def elimination_order(
    scopes: Iterable[tuple[str, ...]], sizes: Mapping[str, int]
) -> tuple[list[str], int]:
    """Return in which order to eliminate, and the elements of the largest table on the way.

    Parameters
    ----------
    scopes
        Variables of each table.
    sizes
        Values of each variable.
    """
    left = {frozenset(scope) for scope in scopes}
    largest = max((prod(sizes[each] for each in scope) for scope in left), default=1)
    order = []
    while any(left):
        joint: dict[str, frozenset[str]] = {}
        for scope in left:
            for variable in scope:
                joint[variable] = joint.get(variable, frozenset()) | scope
        size = {each: prod(sizes[one] for one in joint[each]) for each in joint}
        best = min(joint, key=lambda each: (size[each], each))
        largest = max(largest, size[best])
        left = {scope for scope in left if best not in scope} | {joint[best] - {best}}
        order.append(best)
    return order, largest


def minimise(
    tables: Sequence[Table], order: Sequence[str] | None = None
) -> tuple[float, dict[str, int]]:
    """Return the least sum, and where it is: a value for each variable.

    Tables may have infinite elements; if the least sum is infinite, values mean nothing.

    Parameters
    ----------
    tables
        That are added up.
    order
        What `elimination_order` said, where it has been asked.
    """
    sizes = {name: table.shape[axis] for scope, table in tables for axis, name in enumerate(scope)}
    if order is None:
        order, _ = elimination_order((scope for scope, _ in tables), sizes)
    left = [(scope, np.asarray(table, np.float64)) for scope, table in tables]
    chosen: list[tuple[str, tuple[str, ...], NDArray[np.intp]]] = []
    for variable in order:
        having = [one for one in left if variable in one[0]]
        axes = (*sorted({each for scope, _ in having for each in scope} - {variable}), variable)
        total = np.zeros(tuple(sizes[each] for each in axes))
        for scope, table in having:
            total += _aligned(scope, table, axes)
        chosen.append((variable, axes[:-1], total.argmin(axis=-1)))
        left = [one for one in left if variable not in one[0]]
        left.append((axes[:-1], total.min(axis=-1)))
    values: dict[str, int] = {}
    for variable, scope, where in reversed(chosen):
        values[variable] = int(where[tuple(values[each] for each in scope)])
    return float(sum(table.item() for _, table in left)), values


def _aligned(scope: tuple[str, ...], table: NDArray[Any], order: tuple[str, ...]) -> NDArray[Any]:
    """The table with an axis for each variable of `order`, of length 1 where it has none."""
    present = sorted(scope, key=order.index)
    moved = table.transpose([scope.index(each) for each in present])
    return moved.reshape(
        [moved.shape[present.index(each)] if each in scope else 1 for each in order]
    )
