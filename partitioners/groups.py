"""Rows of a layer that have the same column pattern, and cutting their groups into units.

Such rows are on the same side of every net, so they can be moved together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sparsednn.network import SparseNetwork
from sparsednn.partitioners.balance import Balance, balanced_labels
from sparsednn.patterns import equal_rows

__all__ = ["NO_UNIT", "balanced_limits", "numbered", "pieces", "row_groups"]

NO_UNIT = -1
"""The unit of an empty row, which belongs to none."""


def row_groups(network: SparseNetwork) -> list[NDArray[np.int64]]:
    """Per layer ``(n_out,)``: the first row with the same pattern (`equal_rows`)."""
    return [equal_rows(layer.indptr, layer.indices) for layer in network]


def numbered(
    leader: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the classes of lines that are not empty.

    Returns ``(n,)`` class numbers (-1 for empty lines), and the first line of each class.
    """
    first = np.flatnonzero((leader == np.arange(leader.size)) & (sizes > 0))
    number = np.full(leader.size, -1, dtype=np.int64)
    number[first] = np.arange(first.size)
    return number[leader], first


def pieces(
    leader: NDArray[np.int64], weights: NDArray[np.int64], limit: int | None
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Cut groups of equal rows into units of at most `limit` weight.

    Returns ``(n,)`` unit numbers (`NO_UNIT` for empty rows), a row of each unit, and how many
    rows each unit has.
    """
    group, first = numbered(leader, weights)
    size = np.bincount(group[group >= 0], minlength=first.size)
    cuts = np.ones(first.size, dtype=np.int64)
    if limit is not None and first.size:
        rows = np.maximum(limit // weights[first], 1)
        cuts = -(-size // rows)
    base = np.concatenate(([0], np.cumsum(cuts)))
    order = np.argsort(group, kind="stable")
    order = order[group[order] >= 0]
    rank = np.arange(order.size) - np.repeat(np.cumsum(size) - size, size)
    own = group[order]
    unit_of = np.full(leader.size, NO_UNIT, dtype=np.int32)
    unit_of[order] = base[own] + rank * cuts[own] // np.maximum(size[own], 1)
    return (
        unit_of,
        np.repeat(first, cuts),
        np.bincount(unit_of[order], minlength=int(base[-1])).astype(np.int64),
    )


def balanced_limits(
    network: SparseNetwork, groups: Sequence[NDArray[np.int64]], balance: Balance
) -> list[int]:
    """How heavy units may be so that each layer can still be balanced.

    Whole groups of equal rows where they can be dealt out within the caps; else halves of the
    heaviest, and so on, down to rows, which can.
    """
    limits: list[int] = []
    seen: dict[bytes, int] = {}
    for k, layer in enumerate(network):
        weights = np.diff(layer.indptr)
        key = weights.tobytes() + groups[k].tobytes() + int(balance.caps[k]).to_bytes(8, "little")
        if key not in seen:
            limit = max(int(layer.nnz), 1)
            while True:
                _, rows, count = pieces(groups[k], weights, limit)
                unit_weights = weights[rows] * count
                labels = balanced_labels(unit_weights, balance.parts)
                loads = np.bincount(labels, weights=unit_weights, minlength=balance.parts)
                if loads.max() <= balance.caps[k] or count.max() == 1:
                    break
                # Of those that can be cut: a heavy row alone must not keep the rest whole.
                limit = int(unit_weights[count > 1].max()) // 2
            seen[key] = limit
        limits.append(seen[key])
    return limits
