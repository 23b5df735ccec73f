"""Seconds of an all-to-all: each of p ranks has a piece for every rank.

n is the whole array of one rank, its pieces for all p ranks (the one for itself, which stays, too);
pieces are taken to be n/p bytes each. With p = 1 or n = 0 nothing is sent: 0 seconds.

Source: Thakur, Rabenseifner and Gropp 2005, section 3.2. Must not know: platforms.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.wire import Wire, check_call

__all__ = ["pairwise"]


def pairwise(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of p - 1 exchanges, in step i with the ranks i up and i down.

    ::

        (p-1)α + (p-1)/p nβ

    On several nodes, steps to others (nearly all) share the card: β·members there.
    """
    if not check_call(ranks, nbytes):
        return 0.0
    near = min(ranks, wire.members) - 1
    part = nbytes / ranks
    return near * wire.step(1, part) + (ranks - 1 - near) * wire.step(wire.members, part)
