"""`Simulation`: what a replay gave, and its timeline as a Chrome trace.

Must not know: how events were replayed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["PHASES", "Simulation"]

_Floats = NDArray[np.float64]
#: Phases of a step in a trace.
PHASES: Final = ("pack", "compute", "wait", "finish")


@dataclass(frozen=True, eq=False)
class Simulation:
    """A replay of a run, or of some steps of training.

    Attributes
    ----------
    seconds
        Of the whole: the slowest rank's, with what is before and behind the replay, and the tiles
        that were not replayed (`tiles`, `replayed`).
    replay_seconds
        From the first rank's first step to the last rank's end.
    besides
        Seconds before and behind.
    tiles, replayed
        Tiles of the run (or steps of training), and how many of them were replayed. If fewer, the
        others are taken to take as long as the last full one that was replayed took behind the one
        before it.
    messages
        That were replayed.
    words
        That all ranks send in the whole run, forward and backward.
    finish, waited, handling, computed
        ``(ranks,)`` seconds: when each rank was done; of these it waited, it was busy with messages
        (packing, o), and it computed. The latter three add up to the first.
    step_mean, step_last
        ``(steps,)`` seconds: when ranks ended a step (layer of a tile), on average and at last.
    layers
        ``(steps,)``: the layer of each, from 1 on; `names` ``forward`` or ``backward``.
    critical_seconds
        The longest path, with no contention and full overlap; no replay is shorter.
    moments
        ``(steps, ranks, 5)``, or ``(0, 0, 5)`` if nobody asked: see `replay.run`.
    """

    seconds: float
    replay_seconds: float
    besides: float
    tiles: int
    replayed: int
    messages: int
    words: int
    finish: _Floats = field(repr=False)
    waited: _Floats = field(repr=False)
    handling: _Floats = field(repr=False)
    computed: _Floats = field(repr=False)
    step_mean: _Floats = field(repr=False)
    step_last: _Floats = field(repr=False)
    layers: NDArray[np.int64] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    critical_seconds: float = 0.0
    moments: _Floats = field(default_factory=lambda: np.zeros((0, 0, 5)), repr=False)

    @property
    def ranks(self) -> int:
        """How many."""
        return self.finish.size

    def as_json(self) -> dict[str, Any]:
        """Return numbers: totals, the ranks' mean and largest, and when each step ended."""
        shares = {
            name: {"mean": float(values.mean()), "max": float(values.max())}
            for name, values in (
                ("computed", self.computed),
                ("handling", self.handling),
                ("waited", self.waited),
            )
        }
        return {
            "seconds": self.seconds,
            "replay_seconds": self.replay_seconds,
            "besides": self.besides,
            "critical_seconds": self.critical_seconds,
            "ranks": self.ranks,
            "tiles": self.tiles,
            "replayed": self.replayed,
            "messages": self.messages,
            "words": self.words,
            **shares,
            "step_mean": self.step_mean.tolist(),
            "step_last": self.step_last.tolist(),
        }

    def trace(self, *, most_ranks: int = 64) -> dict[str, Any]:
        """Return a Chrome trace, as `distributed.timing.gather_trace` makes of a real run.

        Parameters
        ----------
        most_ranks
            The first so many ranks; a trace of all would be long. What is left out is counted in
            ``otherData.events_lost``.

        Returns
        -------
        ``{"traceEvents": …}``, times in microseconds; without a timeline there are no events.
        """
        events: list[dict[str, Any]] = []
        shown = min(most_ranks, self.moments.shape[1])
        for rank in range(shown):
            events.append(
                {"ph": "M", "pid": rank, "name": "process_name", "args": {"name": f"rank {rank}"}}
            )
        for step, moments in enumerate(self.moments[:, :shown]):
            for rank, times in enumerate(moments):
                for phase, name in enumerate(PHASES):
                    begin, end = times[phase], times[phase + 1]
                    if end > begin:
                        events.append(
                            {
                                "ph": "X",
                                "pid": rank,
                                "tid": 0,
                                "name": name,
                                "cat": name,
                                "ts": round(float(begin) * 1e6, 3),
                                "dur": round(float(end - begin) * 1e6, 3),
                                "args": {
                                    "layer": int(self.layers[step]),
                                    "pass": self.names[step],
                                },
                            }
                        )
        lost = (self.moments.shape[1] - shown) * self.moments.shape[0] * len(PHASES)
        return {
            "traceEvents": events,
            "displayTimeUnit": "ns",
            "otherData": {"events_lost": int(lost)},
        }
