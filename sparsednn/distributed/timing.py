"""Where the time of a distributed run goes: seconds by layer and phase, and events for a trace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.kernels.linked import PHASES

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["Timing", "gather_trace", "slowest"]


@dataclass(frozen=True)
class Timing:
    """One rank's times.

    Attributes
    ----------
    seconds
        ``(layers, phases)`` float64, see `kernels.linked.PHASES`.
    events
        For each stream ``(n, 4)`` float64: phase, layer, begin, end, on MPI's clock.
    lost
        Events for which there was no room.
    device, copies
        On a GPU: seconds of its kernels, and of copies to and from it where they can be told from
        messages (M = 1).
    """

    seconds: NDArray[np.float64]
    events: Sequence[NDArray[np.float64]] = field(default=(), repr=False)
    lost: int = 0
    device: float = 0.0
    copies: float = 0.0


def slowest(timing: Timing, world: Communicator) -> NDArray[np.float64]:
    """``(layers, phases)``: the largest of all ranks, each entry by itself. Collective."""
    seconds = timing.seconds.copy()
    world.allreduce(seconds, "max")
    return seconds


def gather_trace(timing: Timing, world: Communicator, start: float) -> dict[str, Any] | None:
    """Collect the ranks' events as a Chrome trace (JSON object), on rank 0. Collective.

    Parameters
    ----------
    start
        This rank's clock at a moment that all ranks passed together (behind a barrier): clocks of
        different machines do not show the same time.

    Returns
    -------
    ``{"traceEvents": …}`` for chrome://tracing or ui.perfetto.dev, times in microseconds; a process
    is a rank, a thread a stream. ``otherData.events_lost`` counts what there was no room for.
    None on other ranks.
    """
    lost = np.array([timing.lost], np.int64)
    world.allreduce(lost)
    sizes = np.array([len(one) for one in timing.events], np.int64)
    flat = np.concatenate([*(one.reshape(-1) for one in timing.events), np.empty(0)])
    flat = flat.reshape(-1, 4)
    flat[:, 2:] -= start
    all_sizes, everything = world.gather(sizes), world.gather(flat.reshape(-1))
    if all_sizes is None or everything is None:
        return None
    events: list[dict[str, Any]] = []
    for rank, (counts, values) in enumerate(zip(all_sizes, everything, strict=True)):
        events.append(
            {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
        )
        rows = np.asarray(values).reshape(-1, 4)
        streams = np.repeat(np.arange(len(counts)), counts)
        for stream, (phase, layer, begin, end) in zip(streams, rows, strict=True):
            events.append(
                {
                    "ph": "X",
                    "pid": rank,
                    "tid": int(stream),
                    "name": PHASES[int(phase)],
                    "cat": PHASES[int(phase)],
                    "ts": round(begin * 1e6, 3),
                    "dur": round((end - begin) * 1e6, 3),
                    "args": {"layer": int(layer) + 1},
                }
            )
    other = {"events_lost": int(lost[0])}
    return {"traceEvents": events, "displayTimeUnit": "ns", "otherData": other}
