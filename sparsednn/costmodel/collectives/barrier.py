"""Seconds of a barrier: nobody goes on before everybody has come.

Source: Hensgen, Finkel and Manber 1988 (dissemination). Must not know: platforms.
"""

from __future__ import annotations

from sparsednn.costmodel.collectives.wire import Wire, check_call, steps_of

__all__ = ["dissemination"]


def dissemination(ranks: int, nbytes: float, wire: Wire) -> float:
    """Return the seconds of steps in which rank r tells rank r + 2^i; `nbytes` does not matter.

    ::

        ⌈log2 p⌉α
    """
    check_call(ranks, nbytes)
    return sum(wire.step(1 << step, 0.0) for step in range(steps_of(ranks)))
