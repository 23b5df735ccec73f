"""What there is to gain from running a network's independent operations side by side, what limits
it, and what was gained: bounds, profile, plans and trial of one network on this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.comm.alone import Alone
from sparsednn.dense.concurrency.bounds import Bounds, bounds_of
from sparsednn.dense.concurrency.planning import in_place, make_profile, try_schedules
from sparsednn.dense.concurrency.profile_store import ProfileStore, cache_folder
from sparsednn.dense.concurrency.profiling import measure_profile
from sparsednn.dense.concurrency.scheduling.planner import Effort
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.concurrency.trial import Trial
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.runs.placing import check_dtype, place_network
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
    from sparsednn.dense.concurrency.profile import Profile
    from sparsednn.dense.concurrency.schedule import Schedule
    from sparsednn.dense.concurrency.timeline import Run

__all__ = ["ConcurrencyStudy", "measured_bounds", "plan_for", "study_concurrency", "study_on_gpu"]

#: Seconds that all plans of a trial run together, at least.
_TRIAL: Final[dict[Effort, float]] = {"quick": 0.5, "normal": 3.0, "thorough": 10.0}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class ConcurrencyStudy:
    """What was found.

    Attributes
    ----------
    tasks, profile
        What was measured, and on what.
    bounds
        In seconds of one lane for each task; by direction: ``forward``, ``backward``, ``all``.
    trial
        Schedules, and what they took.
    """

    tasks: TaskGraph
    profile: Profile
    bounds: dict[str, Bounds]
    trial: Trial

    @property
    def serial(self) -> tuple[Schedule, float]:
        """The quickest of the serial schedules, and its seconds."""
        found = self.trial.best(serial=True)
        assert found is not None  # there is always one
        return found

    @property
    def concurrent(self) -> tuple[Schedule, float]:
        """The schedule to use, and its seconds: the serial one where that is best."""
        trial = self.trial
        return trial.chosen, trial.seconds[trial.schedules.index(trial.chosen)]

    def measured(self, schedule: Schedule) -> list[Run]:
        """Return when each part ran, in a pass of one of the trial's schedules."""
        return self.trial.runs[self.trial.schedules.index(schedule)]

    def levels(self) -> list[dict[str, Any]]:
        """Return a row for each level: how many tasks, their time, and what limits the gain."""
        bounds, lanes = self.bounds["all"], self.profile.lanes
        return [
            {
                "level": number,
                "tasks": len(level.tasks),
                "work_seconds": level.work,
                "longest_seconds": level.longest,
                "gain": min(level.gain, float(lanes)),
                "longest": level.tasks[0],
                "limit": self._limit(level.tasks, level.work, level.longest),
            }
            for number, level in enumerate(bounds.levels, 1)
        ]

    def _limit(self, names: tuple[str, ...], work: float, longest: float) -> str:
        """What keeps the tasks of a level from being quicker side by side."""
        if not work:
            return "nothing to do"
        if len(names) == 1:
            return "one task"
        if longest * self.profile.lanes > work:
            return f"{names[0]} has {longest / work:.0%} of the time"
        shares = {name: min(self.profile.choices[name], key=_one_lane) for name in names}
        memory = sum(_one_lane(each) * each.memory_share for each in shares.values()) / work
        return "memory" if memory > 0.5 else "lanes"

    def as_json(self) -> dict[str, Any]:
        """Return all figures."""
        bounds = self.bounds["all"]
        serial, concurrent = self.serial, self.concurrent
        return {
            "device": self.profile.device,
            "lanes": self.profile.lanes,
            "images": self.tasks.images,
            "training": self.tasks.training,
            "tasks": len(self.tasks),
            "work_seconds": bounds.work,
            "critical_path_seconds": bounds.critical_path,
            "bound": bounds.bound,
            "width": bounds.width,
            "bounds": {name: one.as_json() for name, one in self.bounds.items()},
            "serial_seconds": serial[1],
            "concurrent_seconds": concurrent[1],
            "speed_up": serial[1] / concurrent[1],
            "images_per_second": self.tasks.images / concurrent[1],
            "chosen": concurrent[0].name,
            "workspace_bytes": concurrent[0].workspace_bytes,
            "serial_workspace_bytes": serial[0].workspace_bytes,
            "arena_bytes": concurrent[0].arena_bytes,
            "serial_arena_bytes": serial[0].arena_bytes,
            "launch_seconds": self.profile.launch_seconds,
            "wait_seconds": self.profile.wait_seconds,
            "rounds": self.trial.rounds,
            "schedules": [
                {
                    "name": schedule.name,
                    "predicted_seconds": schedule.seconds,
                    "seconds": seconds,
                    "arena_bytes": schedule.arena_bytes,
                    "workspace_bytes": schedule.workspace_bytes,
                }
                for schedule, seconds in zip(self.trial.schedules, self.trial.seconds, strict=True)
            ],
            "levels": self.levels(),
        }


def _one_lane(choice: Any) -> float:
    """Seconds of a way of one part; others cannot be what one lane does."""
    return float(choice.seconds * choice.algorithm.parts)


def study_concurrency(
    graph: OperationGraph,
    *,
    images: int = 1,
    training: bool = False,
    lanes: int = 1,
    workspace_limit: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    effort: Effort = "normal",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> ConcurrencyStudy:
    """Measure a network on this machine.

    Parameters
    ----------
    graph
        The network; its numbers are drawn.
    images, training
        Of a pass, and whether it comes back.
    lanes
        Threads.
    workspace_limit
        Bytes of workspace in use at one time.
    dtype
        One of `placing.DTYPES`.
    seed
        Of the parameters, and of the search.
    effort
        Of the search; see `scheduling.planner.plan`.
    folder
        Where profiles are kept (default: `cache_folder`).
    progress
        As of `profiling.measure_profile`.

    Raises
    ------
    UsageError
        If a size is below 1, or the workspace limit cannot be kept.
    """
    _check_sizes(images, lanes)
    with _tasks_and_kernels(graph, images, training, lanes, dtype, seed) as (tasks, kernels):
        profile, schedules = _planned(
            tasks, kernels, workspace_limit=workspace_limit, seed=seed, effort=effort,
            folder=folder, progress=progress,
        )  # fmt: skip
        trial = try_schedules(tasks, kernels, schedules, seconds=_TRIAL[effort])
    return ConcurrencyStudy(tasks, profile, _bounds(tasks, profile), trial)


def measured_bounds(
    graph: OperationGraph,
    *,
    images: int = 1,
    training: bool = True,
    dtype: str = "float32",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Bounds]:
    """Return the bounds of a network in seconds of one lane, by direction; nothing is planned.

    Parameters and errors as of `study_concurrency`.
    """
    _check_sizes(images, 1)
    with _tasks_and_kernels(graph, images, training, 1, dtype, 0) as (tasks, kernels):
        store = ProfileStore(kernels.device, folder or cache_folder())
        profile = in_place(
            tasks, kernels, measure_profile(tasks, kernels, store, progress=progress)
        )
        store.save()
        return _bounds(tasks, profile)


@contextmanager
def _tasks_and_kernels(
    graph: OperationGraph, images: int, training: bool, lanes: int, dtype: str, seed: int
) -> Iterator[tuple[TaskGraph, CpuKernels]]:
    """A pass, and kernels on parameters that are drawn."""
    from sparsednn.dense.concurrency.batch import make_kernels

    number = np.dtype(check_dtype(dtype))
    _, model = place_network(
        Alone(), graph, None, images, threads=1, dtype=dtype, training=training, seed=seed
    )
    try:
        kernels = make_kernels(model, lanes, training=training)
        kernels.parameters_changed()
        yield TaskGraph(graph, images, training=training, itemsize=number.itemsize), kernels
    finally:
        model.free()


def study_on_gpu(
    graph: OperationGraph,
    *,
    images: int = 1,
    training: bool = False,
    lanes: int = 4,
    workspace_limit: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    effort: Effort = "normal",
    progress: Progress | None = None,
) -> ConcurrencyStudy:
    """Measure a network on the current GPU; see `study_concurrency`. Lanes are streams.

    Raises
    ------
    MissingDependencyError
        Without CuPy, or a GPU.
    UsageError
        As `study_concurrency`.
    """
    from sparsednn.dense.concurrency.gpu.study import gpu_trial

    _check_sizes(images, lanes)
    tasks, profile, trial = gpu_trial(
        graph, images=images, training=training, lanes=lanes, workspace_limit=workspace_limit,
        dtype=check_dtype(dtype), seed=seed, effort=effort, folder=cache_folder(),
        progress=progress,
    )  # fmt: skip
    return ConcurrencyStudy(tasks, profile, _bounds(tasks, profile), trial)


def _check_sizes(images: int, lanes: int) -> None:
    for name, value in (("--batch-size", images), ("--threads", lanes)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, found {value}")


def _bounds(tasks: TaskGraph, profile: Profile) -> dict[str, Bounds]:
    costs = {name: min(map(_one_lane, found)) for name, found in profile.choices.items()}
    parts = ("forward", "backward", "all") if tasks.training else ("forward", "all")
    return {part: bounds_of(tasks, costs, part=part) for part in parts}


def plan_for(
    tasks: TaskGraph,
    kernels: CpuKernels,
    *,
    workspace_limit: int | None = None,
    seed: int = 0,
    effort: Effort = "normal",
    folder: Path | None = None,
    progress: Progress | None = None,
) -> Schedule:
    """Return the quickest schedule of a pass on this machine; what `batch.run_concurrently` wants.

    Raises
    ------
    UsageError
        If the workspace limit cannot be kept.
    """
    _, schedules = _planned(
        tasks, kernels, workspace_limit=workspace_limit, seed=seed, effort=effort, folder=folder,
        progress=progress,
    )  # fmt: skip
    return try_schedules(tasks, kernels, schedules, seconds=_TRIAL[effort]).chosen


def _planned(
    tasks: TaskGraph,
    kernels: CpuKernels,
    *,
    workspace_limit: int | None,
    seed: int,
    effort: Effort,
    folder: Path | None,
    progress: Progress | None,
) -> tuple[Profile, list[Schedule]]:
    store = ProfileStore(kernels.device, folder or cache_folder())
    found = make_profile(
        tasks,
        kernels,
        store,
        workspace_limit=workspace_limit,
        seed=seed,
        effort=effort,
        progress=progress,
    )
    store.save()
    return found
