"""Compiled: the longest path through a program, where messages never meet.

    ready_r = end_r + before
    end_r   = max(ready_r + owned, ready_s + α + n/B of every message that comes) + after

step by step; n are a message's bytes, α and 1/B those of its kind of link.

Must not know: ports, events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.costmodel.simulation.plan import Plan

__all__ = ["contention_free"]


@jit
def contention_free(plan: Plan, finish: NDArray[np.float64]) -> None:
    """The longest path: ``finish`` ``(ranks,)`` is filled with when each rank ends at the earliest.

    Every message has its link for itself and goes on while ranks compute.
    """
    ranks = plan.node.size
    now, ready = np.zeros(ranks), np.zeros(ranks)
    end = np.zeros(ranks)
    for s in range(plan.kind.size):
        k = plan.kind[s]
        chosen = plan.chosen[k]
        for r in range(ranks):
            ready[r] = now[r] + plan.before[k, r]
            end[r] = ready[r] + plan.owned[k, r]
        if chosen >= 0:
            for r in range(ranks):
                for m in range(plan.first[chosen, r], plan.first[chosen, r + 1]):
                    to = plan.target[m]
                    link = 0 if plan.node[r] == plan.node[to] else 1
                    seconds = plan.words[m] * plan.word_bytes[k] * plan.per_byte[link]
                    end[to] = max(end[to], ready[r] + plan.latency[link] + seconds)
        for r in range(ranks):
            now[r] = end[r] + plan.after[k, r]
    finish[:] = now
