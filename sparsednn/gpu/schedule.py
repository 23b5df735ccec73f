"""Behind which layers columns are dropped and merged: often at first, when most of them die."""

from __future__ import annotations

__all__ = ["agreement_points", "drop_points", "merge_points"]

#: First layer (counted from 1) behind which columns are compared. In the official 1024-120 network
#: columns become equal from the ninth or tenth layer on: before that a comparison finds little.
_MERGE_FROM = 8


def drop_points(depth: int, droppable_from: int) -> list[int]:
    """Numbers of layers (from 0) behind which dead columns are dropped.

    Dropping moves all columns, and most of them die early: so from one point to the next it is a
    quarter of the layers that are done by then, and at least one.

    >>> drop_points(40, 1)
    [1, 2, 3, 4, 5, 6, 7, 9, 11, 14, 17, 21, 26, 32]
    """
    points, at = [], 2
    while at < depth:
        if at >= droppable_from:
            points.append(at - 1)
        at += max(1, at // 4)
    return points


def merge_points(points: list[int]) -> list[int]:
    """Those of the points behind which equal columns are merged."""
    return [point for point in points if point + 1 >= _MERGE_FROM]


def agreement_points(depth: int, droppable_from: int) -> list[int]:
    """As `drop_points`, but fewer: ranks have to agree each time.

    >>> agreement_points(20, 3)
    [2, 3, 5, 7, 11, 15]
    """
    counts = sorted({2, 3, *(a << b for a in (2, 3) for b in range(1, depth.bit_length()))})
    return [count - 1 for count in counts if droppable_from <= count < depth]
