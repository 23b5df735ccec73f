"""`Prediction`: what a model says of one run, and which resource limits it.

Must not know: how anything was predicted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

__all__ = ["BOUNDS", "Prediction"]

#: What can limit a run: each part of its time is charged to one of these.
BOUNDS: Final = (
    "flops",
    "memory bandwidth",
    "link bandwidth",
    "latency",
    "imbalance",
    "overhead",
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """Time, traffic and memory of one run (inference) or one step (training).

    Attributes
    ----------
    seconds
        Of the whole: the slowest rank's.
    parts
        Where they go: name of a phase → seconds; they add up to `seconds`.
    charged
        The same seconds by what limits them: one of `BOUNDS` → seconds. *Imbalance* is what ranks
        wait for slower ones, *overhead* what is neither arithmetic nor traffic.
    words
        That all ranks send together.
    memory_bytes
        That the rank which needs most needs at most.
    edges
        Multiply-adds (sparse: images × stored weights), for rates; 0 where nobody counts them.
    """

    seconds: float
    parts: Mapping[str, float]
    charged: Mapping[str, float]
    words: int
    memory_bytes: float
    edges: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bound(self) -> str:
        """What limits the run: where most of the time is charged to."""
        if not self.charged:
            return "overhead"
        return max(BOUNDS, key=lambda name: self.charged.get(name, 0.0))

    def as_json(self) -> dict[str, Any]:
        """Return numbers, texts and dictionaries."""
        return {
            "seconds": self.seconds,
            "parts": dict(self.parts),
            "charged": dict(self.charged),
            "bound": self.bound,
            "words": self.words,
            "memory_bytes": self.memory_bytes,
            "edges": self.edges,
            **self.details,
        }
