"""The interface of a device's kernels: which ways there are to do a task, and a call for each part.

Must not know: schedules, when a call is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from sparsednn.dense.concurrency.tasks import Task, TaskGraph

__all__ = ["Algorithm", "Kernels", "Occupancy"]


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What one launch takes of a multiprocessor of a GPU: its static demand.

    Attributes
    ----------
    registers
        Of a thread.
    shared_bytes
        Of a block, static and dynamic.
    threads
        Of a block.
    blocks
        Of the launch.
    """

    registers: int
    shared_bytes: int
    threads: int
    blocks: int


@dataclass(frozen=True, slots=True)
class Algorithm:
    """A way to do a task.

    Attributes
    ----------
    name
        As the device's kernels know it.
    parts
        Into how many pieces the task is cut; they are independent, write different elements, and
        may run on different lanes or one after another.
    workspace
        Bytes that each part wants for itself while it runs.
    occupancy
        On a GPU.
    """

    name: str
    parts: int = 1
    workspace: int = 0
    occupancy: Occupancy | None = None


class Kernels(Protocol):
    """What a device can do with the tasks of one `TaskGraph`.

    Attributes
    ----------
    device
        Identity for caches: kind, name, library versions.
    lanes
        Threads or streams.

    Notes
    -----
    Results of the same algorithm and parts have the same bits whatever runs beside it.
    """

    device: str
    lanes: int

    def algorithms(self, tasks: TaskGraph, task: Task) -> tuple[Algorithm, ...]:
        """Return all ways to do a task, none of them twice; the first is the default.

        At least one has as many parts as there are lanes where the task can be cut.
        """

    def bind(
        self,
        tasks: TaskGraph,
        task: Task,
        algorithm: Algorithm,
        part: int,
        tensors: Mapping[str, Any],
        workspace: NDArray[Any] | Any,
    ) -> Callable[[], None]:
        """Return a call that does one part of a task, on arrays that stay where they are.

        Parameters
        ----------
        tensors
            All that the task reads and writes, by name, as `view` made them.
        workspace
            ``(algorithm.workspace,)`` uint8 of this part, aligned to 64 bytes; any contents.
        """

    def arena(self, size: int) -> Any:
        """Return ``(size,)`` bytes of the device's memory, aligned to 64 bytes."""

    def view(self, tasks: TaskGraph, tensor: str, arena: Any, offset: int) -> Any:
        """Return a tensor whose root begins at `offset` of an arena, in the device's layout."""

    def parameters_changed(self) -> None:
        """Renew what was made of parameters (packed kernels); called between passes."""
