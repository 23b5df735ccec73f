"""Steps that the algorithms of halves share: halving, doubling, and the fold to a power of two.

With p ranks and q the largest power of two not above p, the p - q ranks too many give what they
have to a neighbour first (the fold), q ranks work, and in the end the neighbour gives the result
back (the unfold); Thakur, Rabenseifner and Gropp 2005, section 4.

Must not know: verbs.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.wire import Wire, power_below

__all__ = ["doubling", "fold", "gathering", "halving", "unfold"]


def fold(ranks: int, nbytes: float, wire: Wire, *, reduced: bool = True) -> float:
    """Return α + nβ (+ nγ) if p is not a power of two, else 0: ranks too many hand over n bytes."""
    return 0.0 if power_below(ranks) == ranks else wire.step(1, nbytes, reduced=reduced)


def unfold(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return α + nβ if p is not a power of two, else 0: ranks too many get n bytes back."""
    return 0.0 if power_below(ranks) == ranks else wire.step(1, nbytes)


def halving(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a recursive halving: a reduce-scatter among q = 2^k ranks.

    ::

        kα + (q-1)/q nβ + (q-1)/q nγ

    Partners of step i = 0, 1, … are 2^i apart and exchange n/2^(i+1) bytes: the most between
    neighbours, which are likely on one node.
    """
    seconds = 0.0
    distance = 1
    while distance < power_below(ranks):
        seconds += wire.step(distance, nbytes / (2 * distance), reduced=True)
        distance *= 2
    return seconds


def doubling(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a recursive doubling: an allgather among q = 2^k ranks.

    ::

        kα + (q-1)/q nβ

    The steps of `halving` backwards: n/q bytes to the farthest partner first, n/2 to the next
    neighbour at the end.
    """
    seconds = 0.0
    distance = 1
    while distance < power_below(ranks):
        seconds += wire.step(distance, nbytes / (2 * distance))
        distance *= 2
    return seconds


def gathering(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a binomial gather to one rank, or a scatter from it; any p.

    ::

        ⌈log2 p⌉α + (p-1)/p nβ

    The root exchanges with the partner 2^i away what that one has of its subtree: min(2^i, p - 2^i)
    parts of n/p. One rank of a node sends to other nodes.
    """
    seconds = 0.0
    distance = 1
    while distance < ranks:
        parts = min(distance, ranks - distance)
        seconds += wire.step(distance, nbytes * parts / ranks, all_send=False)
        distance *= 2
    return seconds
