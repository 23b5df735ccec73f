"""Seconds of a reduce: n bytes on each of p ranks, and their sum on one in the end.

n is the whole array. With p = 1 or n = 0 nothing is sent: 0 seconds.

Sources: Thakur, Rabenseifner and Gropp 2005, section 4.4; Rabenseifner 2004; Träff et al. 2008 for
pipelines. Must not know: platforms, and which algorithm is best.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.broadcast import best_segments
from sparsednn.costmodel.collectives.folding import fold, gathering, halving
from sparsednn.costmodel.collectives.wire import Wire, check_call, power_below, steps_of
from sparsednn.errors import UsageError

__all__ = ["binomial", "pipelined", "reduce_scatter_gather"]


def binomial(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a binomial tree towards the root.

    ::

        ⌈log2 p⌉(α + nβ + nγ)
    """
    if not check_call(ranks, nbytes):
        return 0.0
    return sum(
        wire.step(1 << step, nbytes, reduced=True, all_send=False)
        for step in range(steps_of(ranks))
    )


def reduce_scatter_gather(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of a recursive halving and a binomial gather (Rabenseifner).

    ::

        2kα + 2(q-1)/q nβ + (q-1)/q nγ                   p = 2^k = q
        2kα + 2(q-1)/q nβ + (q-1)/q nγ + (α + nβ + nγ)   else: q = 2^k < p; fold
    """
    if not check_call(ranks, nbytes):
        return 0.0
    gathered = gathering(power_below(ranks), nbytes, wire)
    return fold(ranks, nbytes, wire) + halving(ranks, nbytes, wire) + gathered


def pipelined(ranks: int, nbytes: float, wire: Wire, segments: int | None = None) -> float:
    """Return the seconds of a chain that ends at the root, through which S segments follow.

    ::

        (p - 2 + S)(α + n/S β + n/S γ)

    Parameters
    ----------
    ranks, nbytes, wire
        p, n, and α, β and γ.
    segments
        S; None: the best one, near √((p-2) n(β+γ)/α).
    """
    if segments is not None and segments < 1:
        raise UsageError(f"a pipeline needs at least 1 segment, found {segments}")
    if not check_call(ranks, nbytes):
        return 0.0
    if segments is None:
        transfer = nbytes * (wire.per_byte + wire.reduction)
        segments = best_segments(ranks, wire.latency, transfer)
    step = wire.along(nbytes / segments, reduced=True)
    return (ranks - 2 + segments) * step
