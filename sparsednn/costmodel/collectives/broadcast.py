"""Seconds of a broadcast: n bytes of one of p ranks, in the end on all.

n is the whole array. With p = 1 or n = 0 nothing is sent: 0 seconds.

Sources: Thakur, Rabenseifner and Gropp 2005, section 3.3; van de Geijn's scatter and allgather
(Barnett et al. 1994; Chan et al. 2007); Träff et al. 2008 for pipelines. Must not know: platforms,
and which algorithm is best.
"""

from __future__ import annotations

import math

from sparsednn.costmodel.collectives import allgather
from sparsednn.costmodel.collectives.folding import gathering
from sparsednn.costmodel.collectives.wire import Wire, check_call, steps_of
from sparsednn.errors import UsageError

__all__ = ["best_segments", "binomial", "pipelined", "scatter_allgather"]

#: The most segments that are thought of: with no latency at all, more would always be better.
_MOST_SEGMENTS = 1 << 20


def binomial(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a binomial tree: in each step, all that have the array send it on.

    ::

        ⌈log2 p⌉(α + nβ)

    The farthest partner first, so that one rank of a node sends to other nodes.
    """
    if not check_call(ranks, nbytes):
        return 0.0
    return sum(wire.step(1 << step, nbytes, all_send=False) for step in range(steps_of(ranks)))


def scatter_allgather(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a binomial scatter and a ring allgather (van de Geijn).

    ::

        (⌈log2 p⌉ + p - 1)α + 2(p-1)/p nβ
    """
    if not check_call(ranks, nbytes):
        return 0.0
    return gathering(ranks, nbytes, wire) + allgather.ring(ranks, nbytes, wire)


def pipelined(ranks: int, nbytes: float, wire: Wire, segments: int | None = None) -> float:
    """Return the seconds of a chain root, root + 1, …, through which S segments follow each other.

    ::

        (p - 2 + S)(α + n/S β)

    Parameters
    ----------
    ranks, nbytes, wire
        p, n, and α and β.
    segments
        S; None: the best one, near √((p-2) nβ/α).
    """
    if segments is not None and segments < 1:
        raise UsageError(f"a pipeline needs at least 1 segment, found {segments}")
    if not check_call(ranks, nbytes):
        return 0.0
    if segments is None:
        segments = best_segments(ranks, wire.latency, nbytes * wire.per_byte)
    return (ranks - 2 + segments) * wire.along(nbytes / segments)


def best_segments(ranks: int, latency: float, transfer: float) -> int:
    """Return the whole S that makes (p - 2 + S)(α + t/S) least; t seconds are the array's transfer.

    >>> best_segments(6, 1e-6, 1e-4)
    20
    """
    if ranks <= 2:
        return 1
    if latency <= 0:
        return _MOST_SEGMENTS
    exact = min(math.sqrt((ranks - 2) * transfer / latency), float(_MOST_SEGMENTS))
    low = max(1, math.floor(exact))
    return min(
        (low, low + 1),
        key=lambda segments: (ranks - 2 + segments) * (latency + transfer / segments),
    )
