"""Seconds of an allgather: each of p ranks has a part, and in the end all have all parts.

n is the whole array, all parts together; parts are taken to be n/p bytes each. With p = 1 or n = 0
nothing is sent: 0 seconds.

Sources: Thakur, Rabenseifner and Gropp 2005, section 3.1; Bruck et al. 1997; Chan et al. 2007. Must
not know: platforms, and which algorithm is best.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.folding import doubling, fold, unfold
from sparsednn.costmodel.collectives.wire import Wire, check_call

__all__ = ["bruck", "recursive_doubling", "ring"]


def ring(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a ring: each part goes once round.

    ::

        (p-1)α + (p-1)/p nβ
    """
    if not check_call(ranks, nbytes):
        return 0.0
    return (ranks - 1) * wire.along(nbytes / ranks)


def recursive_doubling(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of k exchanges of ever more parts.

    ::

        kα + (p-1)/p nβ                               p = 2^k
        kα + (q-1)/q nβ + (α + n/p β) + (α + nβ)      else: q = 2^k < p; a part in, all back
    """
    if not check_call(ranks, nbytes):
        return 0.0
    folding = fold(ranks, nbytes / ranks, wire, reduced=False) + unfold(ranks, nbytes, wire)
    return folding + doubling(ranks, nbytes, wire)


def bruck(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of Bruck's algorithm: any p in the fewest steps.

    ::

        ⌈log2 p⌉α + (p-1)/p nβ

    In step i all ranks send their first min(2^i, p - 2^i) parts 2^i ranks down: the most over the
    greatest distance, where the ranks of a node share its card.
    """
    if not check_call(ranks, nbytes):
        return 0.0
    seconds = 0.0
    distance = 1
    while distance < ranks:
        parts = min(distance, ranks - distance)
        seconds += wire.step(distance, nbytes * parts / ranks)
        distance *= 2
    return seconds
