"""`Schedule`: which part of which task runs where, when, how, and in what memory.

Must not know: how it was found, how it is run.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsednn.dense.concurrency.kernels import Algorithm

__all__ = ["Placed", "Schedule"]


@dataclass(frozen=True, slots=True)
class Placed:
    """One part of a task.

    Attributes
    ----------
    task, part
        Which part of which task.
    algorithm
        How; all parts of a task have the same.
    lane
        Where.
    start, end
        Predicted seconds since the beginning of the pass.
    workspace
        Where its workspace begins in the arena, bytes; -1 without.
    waits
        Indices of other items, of other lanes, whose end this one must await; what it must wait for
        on its own lane is in front of it there.
    """

    task: str
    part: int
    algorithm: Algorithm
    lane: int
    start: float
    end: float
    workspace: int = -1
    waits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Schedule:
    """A pass, planned.

    Attributes
    ----------
    items
        All parts of all tasks, by their start: an order that respects all dependencies. On each
        lane they run in this order.
    lanes
        How many lanes there are.
    offsets
        Where each tensor with memory of its own begins in the arena, bytes.
    arena_bytes
        Size of the arena: tensors and workspaces.
    workspace_bytes
        Most workspace in use at one time, however fast tasks turn out to be.
    device, network, images, training, itemsize
        What it is for; `network` is `OperationGraph.identity`.
    name
        What made it: "serial", "list", "search".
    """

    items: tuple[Placed, ...]
    lanes: int
    offsets: dict[str, int]
    arena_bytes: int
    workspace_bytes: int
    device: str
    network: str
    images: int
    training: bool
    itemsize: int
    name: str

    @property
    def seconds(self) -> float:
        """Predicted time of the pass."""
        return max((item.end for item in self.items), default=0.0)
