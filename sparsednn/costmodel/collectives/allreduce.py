"""Seconds of an allreduce: n bytes on each of p ranks, and their sum on all in the end.

n is the whole array. With p = 1 or n = 0 nothing is sent: 0 seconds. q is the largest power of two
not above p, k = log2 q; where p is no power of two, the algorithms of halves fold (`folding`).

Sources: Thakur, Rabenseifner and Gropp, 'Optimization of collective communication operations in
MPICH', 2005, section 4; Patarasuk and Yuan 2009 for the ring; Chan et al. 2007. Must not know:
platforms, and which algorithm is best.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.folding import doubling, fold, halving, unfold
from sparsednn.costmodel.collectives.wire import Wire, check_call, power_below

__all__ = ["rabenseifner", "recursive_doubling", "ring"]


def ring(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a ring reduce-scatter and a ring allgather.

    ::

        2(p-1)α + 2(p-1)/p nβ + (p-1)/p nγ

    >>> round(ring(4, 4e6, Wire(1e-6, 1e-9)), 9)
    0.006006
    """
    if not check_call(ranks, nbytes):
        return 0.0
    part = nbytes / ranks
    return (ranks - 1) * (wire.along(part, reduced=True) + wire.along(part))


def recursive_doubling(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of k exchanges of whole arrays.

    ::

        k(α + nβ + nγ)                              p = 2^k
        k(α + nβ + nγ) + (α + nβ + nγ) + (α + nβ)   else: fold, unfold
    """
    if not check_call(ranks, nbytes):
        return 0.0
    seconds = fold(ranks, nbytes, wire) + unfold(ranks, nbytes, wire)
    distance = 1
    while distance < power_below(ranks):
        seconds += wire.step(distance, nbytes, reduced=True)
        distance *= 2
    return seconds


def rabenseifner(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a reduce-scatter by recursive halving and an allgather by doubling.

    ::

        2kα + 2(q-1)/q nβ + (q-1)/q nγ                              p = 2^k = q
        2kα + 2(q-1)/q nβ + (q-1)/q nγ + (α + nβ + nγ) + (α + nβ)   else: fold, unfold
    """
    if not check_call(ranks, nbytes):
        return 0.0
    folding = fold(ranks, nbytes, wire) + unfold(ranks, nbytes, wire)
    return folding + halving(ranks, nbytes, wire) + doubling(ranks, nbytes, wire)
