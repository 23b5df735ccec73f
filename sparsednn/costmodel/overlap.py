"""Overlap: transfers that go on while a rank computes, and what of them is left to wait for.

While a rank computes, a transfer goes on at o ∈ [0, 1] of its full speed (`Link.overlap`): 1 for a
card that needs nobody, 0 where the processor itself copies. Seconds throughout. Must not know: what
is computed, and what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

from sparsednn.errors import UsageError

__all__ = ["chained", "exposed", "overlapped"]


def exposed(transfer: float, compute: float, overlap: float) -> float:
    """Return the seconds of a transfer that are left after computing: max(0, t - o·c).

    The transfer is started before the computation, and waited for after it.

    >>> exposed(3.0, 4.0, 0.5)
    1.0

    Raises
    ------
    UsageError
        If a time is negative, or `overlap` is not in [0, 1].
    """
    _check(overlap, transfer, compute)
    return max(0.0, transfer - overlap * compute)


def overlapped(transfer: float, compute: float, overlap: float) -> float:
    """Return the seconds of both together: c + max(0, t - o·c).

    o = 0 gives c + t; o = 1 gives max(c, t).

    >>> overlapped(3.0, 4.0, 0.5)
    5.0
    """
    return compute + exposed(transfer, compute, overlap)


def chained(computes: Sequence[float], transfers: Sequence[float], overlap: float) -> float:
    """Return the seconds of computing step after step, each of which starts a transfer at its end.

    As in the backward pass of data parallel training, where each layer's gradient is summed over
    the ranks while the layers before it compute. Transfers go one after the other; all are waited
    for at the end. With b_i the transfer left when step i ends::

        b_i = max(0, b_(i-1) - o·c_i) + t_i,      seconds = Σ c_i + b_last

    Parameters
    ----------
    computes, transfers
        c_i and t_i, in the order of time; 0 for a step that starts none.
    overlap
        o.

    Raises
    ------
    UsageError
        If the lengths differ, a time is negative, or `overlap` is not in [0, 1].
    """
    if len(computes) != len(transfers):
        raise UsageError(f"chained: {len(computes)} steps, but {len(transfers)} transfers")
    _check(overlap, *computes, *transfers)
    backlog = 0.0
    for compute, transfer in zip(computes, transfers, strict=True):
        backlog = max(0.0, backlog - overlap * compute) + transfer
    return sum(computes) + backlog


def _check(overlap: float, *seconds: float) -> None:
    if not 0 <= overlap <= 1:
        raise UsageError(f"an overlap is from 0 to 1, found {overlap}")
    if not all(time >= 0 for time in seconds):
        raise UsageError("times are not negative")
