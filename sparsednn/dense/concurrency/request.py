"""`Concurrently`: that a run is to do independent operations side by side, and by which plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sparsednn.dense.concurrency.schedule_file import load_schedule

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
    from sparsednn.dense.concurrency.schedule import Schedule
    from sparsednn.dense.concurrency.tasks import TaskGraph
    from sparsednn.dense.model import DenseModel

__all__ = ["Concurrently"]


@dataclass(frozen=True, slots=True)
class Concurrently:
    """How a run on one rank is to use its threads.

    Attributes
    ----------
    plan
        A file that ``cnn concurrency --plan`` wrote, for the same network, number of images,
        threads, direction and machine; None: a plan is made, by measuring. Which one is quickest
        is a matter of measurement, so only a file gives the same bits each time.
    workspace_limit
        Bytes of working space of all operations that run at one time.
    seed
        Of the search for a plan.
    progress
        As of `profiling.measure_profile`.
    """

    plan: Path | None = None
    workspace_limit: int | None = None
    seed: int = 0
    progress: Callable[[int, int], None] | None = None

    def use(self, model: DenseModel, *, images: int, lanes: int, training: bool) -> Schedule:
        """Let a model do batches of so many images by a plan, which is returned.

        Raises
        ------
        UsageError
            If the model is on several ranks or on a device, or the limit cannot be kept.
        FormatError
            If the file is none, or of another network, machine, number of images or threads.
        """
        from sparsednn.dense.concurrency.batch import run_concurrently

        return run_concurrently(
            model, self._schedule, images=images, lanes=lanes, training=training
        )

    def _schedule(self, tasks: TaskGraph, kernels: CpuKernels) -> Schedule:
        if self.plan is not None:
            return load_schedule(self.plan, tasks, kernels.device, self.workspace_limit)
        from sparsednn.dense.runs.concurrency import plan_for

        return plan_for(
            tasks, kernels, workspace_limit=self.workspace_limit, seed=self.seed,
            progress=self.progress,
        )  # fmt: skip
