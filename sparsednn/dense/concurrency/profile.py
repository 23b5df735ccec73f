"""`Profile`: what each way to do each task takes on a device, measured; and how tasks that run side
by side slow each other down.

Must not know: how it was measured, schedules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sparsednn.dense.concurrency.kernels import Algorithm

__all__ = ["Choice", "Profile", "way_key"]


def way_key(task: str, algorithm: Algorithm) -> str:
    """Return the key of a way to do a task, from that of the task."""
    return f"{task}|{algorithm.name}|{algorithm.parts}"


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to do a task, and what it takes.

    Attributes
    ----------
    algorithm
        The way.
    seconds
        Of one part, alone on the device; all parts are taken to be alike.
    memory_share
        From 0 (bound by arithmetic) to 1 (bound by memory): how much of its time it would be
        slowed down by another that is bound by memory.
    """

    algorithm: Algorithm
    seconds: float
    memory_share: float = 0.0


@dataclass
class Profile:
    """All choices of all tasks on a device.

    Attributes
    ----------
    device, lanes
        As `Kernels`.
    choices
        By task, none of them empty; the first is the default.
    launch_seconds
        From the end of a task on a lane to the start of the next one there.
    wait_seconds
        From the end of a task to the start of one on another lane that waits for it.
    pairs
        Measured slow-downs: ``(a, b)`` → how many times longer a takes while b runs beside it, keys
        as `key` gives them. Both orders are there.
    """

    device: str
    lanes: int
    choices: dict[str, list[Choice]]
    launch_seconds: float = 0.0
    wait_seconds: float = 0.0
    pairs: dict[tuple[str, str], float] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)

    def key(self, task: str, algorithm: Algorithm) -> str:
        """Return what tells measured work apart: tasks of the same shapes have the same key.

        `keys` gives the part that is of the task (default: its name).
        """
        return way_key(self.keys.get(task, task), algorithm)

    def slowdown(self, task: str, choice: Choice, beside: str, other: Choice) -> float:
        """Return how many times longer a task takes beside another one.

        Measured where the pair is in `pairs`, otherwise by their shares: two that are bound by
        memory alone take twice the time each.
        """
        found = self.pairs.get(
            (self.key(task, choice.algorithm), self.key(beside, other.algorithm))
        )
        if found is not None:
            return found
        return 1.0 + choice.memory_share * other.memory_share
