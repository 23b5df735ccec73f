"""Seconds of a reduce-scatter: n bytes on each of p ranks; in the end each has a part of the sum.

n is the whole array; parts are taken to be n/p bytes each. With p = 1 or n = 0 nothing is sent: 0
seconds.

Sources: Thakur, Rabenseifner and Gropp 2005, section 4.2; Chan et al. 2007. Must not know:
platforms, and which algorithm is best.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.folding import fold, halving, unfold
from sparsednn.costmodel.collectives.wire import Wire, check_call

__all__ = ["pairwise", "recursive_halving", "ring"]


def ring(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a ring: partial sums go once round.

    ::

        (p-1)α + (p-1)/p nβ + (p-1)/p nγ
    """
    if not check_call(ranks, nbytes):
        return 0.0
    return (ranks - 1) * wire.along(nbytes / ranks, reduced=True)


def recursive_halving(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of k exchanges of half of what is left.

    ::

        kα + (p-1)/p nβ + (p-1)/p nγ                                   p = 2^k
        kα + (q-1)/q nβ + (q-1)/q nγ + (α + nβ + nγ) + (α + n/p β)     else: q = 2^k < p
    """
    if not check_call(ranks, nbytes):
        return 0.0
    folding = fold(ranks, nbytes, wire) + unfold(ranks, nbytes / ranks, wire)
    return folding + halving(ranks, nbytes, wire)


def pairwise(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of p - 1 exchanges, in step i with the ranks i up and i down.

    ::

        (p-1)α + (p-1)/p nβ + (p-1)/p nγ

    On several nodes, steps to others (nearly all) share the card: β·members there.
    """
    if not check_call(ranks, nbytes):
        return 0.0
    near = min(ranks, wire.members) - 1
    part = nbytes / ranks
    beside = near * wire.step(1, part, reduced=True)
    return beside + (ranks - 1 - near) * wire.step(wire.members, part, reduced=True)
