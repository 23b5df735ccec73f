"""Serial and concurrent time of a network on one rank, predicted: from a measured profile, or from
a platform's rooflines alone.

`predict_pass` says of a schedule where its time goes. A *profile* (`dense.concurrency.profile`) has
the seconds of every way to do every task; `platform_profile` makes one of rooflines, for machines
that are not here::

    t = launch_seconds + max(flops / (efficiency · peak · parts), bytes / (bandwidth · parts))

of one part of a task; the efficiency is `gemm_efficiency` for products, 1 for all else, and the
bandwidth that of the cache for tasks that fit it. How tasks side by side slow each other down is
the profile's (`Profile.slowdown`); the replay of a schedule is `scheduling.simulate`, the same that
plans are made with.

Must not know: kernels, threads, how schedules run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sparsednn.costmodel.prediction import Prediction
from sparsednn.costmodel.roofline import FLOPS, MEMORY, roof_of
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.tasks import IMAGE, LOSS, Task, TaskGraph
from sparsednn.dense.operations import Convolution, FullyConnected
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform
    from sparsednn.dense.concurrency.schedule import Schedule

__all__ = ["platform_profile", "predict_pass"]

#: Seconds until another core sees that a task is done, where nobody has measured it.
_WAIT_SECONDS: Final = 2e-6


def platform_profile(tasks: TaskGraph, platform: Platform, lanes: int) -> Profile:
    """Return times of all tasks by rooflines, each in one part and in as many as there are lanes.

    Raises
    ------
    UsageError
        If the platform is of GPUs, whose kernels share multiprocessors in ways that a roofline does
        not know; or if there are more lanes than cores of a rank's node.
    """
    if platform.processor.kind == "gpu":
        raise UsageError(
            f"platform {platform.name}: what runs side by side on a GPU is measured, not predicted "
            "from data sheets"
        )
    cores = platform.threads_per_rank * platform.node.ranks
    if not 1 <= lanes <= cores:
        raise UsageError(f"{lanes} lanes on a node of {cores} cores")
    choices = {
        task.name: [
            Choice(
                Algorithm("roofline", parts), *_part_seconds(tasks, task, platform, parts, lanes)
            )
            for parts in ((1,) if task.action in (IMAGE, LOSS) else sorted({1, lanes}))
        ]
        for task in tasks
    }
    launch = platform.processor.launch_seconds
    return Profile(f"platform {platform.name}", lanes, choices, launch, _WAIT_SECONDS)


def _part_seconds(
    tasks: TaskGraph, task: Task, platform: Platform, parts: int, lanes: int
) -> tuple[float, float]:
    """Seconds of a part, and the share that memory has in them."""
    if task.action in (IMAGE, LOSS):
        return 0.0, 0.0
    product = isinstance(tasks.operation(task), (Convolution, FullyConnected))
    efficiency = platform.processor.gemm_efficiency if product else 1.0
    roof = roof_of(platform, efficiency, working_set=float(task.bytes))
    arithmetic = task.flops / parts / roof.peak
    traffic = task.bytes / parts / roof.bandwidth
    seconds = max(arithmetic, traffic)
    if task.bytes <= platform.processor.cache_bytes or not seconds:
        return seconds, 0.0
    # All cores together have so many times the bandwidth of one; beyond that they share it.
    together = platform.node.memory_bandwidth / platform.processor.memory_bandwidth
    shared = max(0.0, (lanes - together) / max(1, lanes - 1))
    return seconds, min(1.0, traffic / seconds * shared)


def predict_pass(tasks: TaskGraph, schedule: Schedule, profile: Profile) -> Prediction:
    """Return where the predicted time of a schedule goes, as the mean over its lanes.

    Parts: ``tasks`` (what they take alone), ``slow-down`` (what those beside them add), ``waiting``
    (lanes without a task: dependencies, launches). Charged: arithmetic and memory by each task's
    share, the slow-down to memory, waiting to imbalance but for the launches.
    """
    alone = memory = busy = 0.0
    choices = {
        (name, choice.algorithm): choice
        for name, some in profile.choices.items()
        for choice in some
    }
    for item in schedule.items:
        choice = choices.get((item.task, item.algorithm))
        if choice is None:
            raise UsageError(f"the profile has no {item.algorithm.name} of {item.task}")
        alone += choice.seconds
        memory += choice.seconds * choice.memory_share
        busy += item.end - item.start
    lanes, seconds = schedule.lanes, schedule.seconds
    slower = max(0.0, busy - alone)
    waiting = lanes * seconds - alone - slower
    launches = min(waiting, profile.launch_seconds * len(schedule.items))
    return Prediction(
        seconds,
        {"tasks": alone / lanes, "slow-down": slower / lanes, "waiting": waiting / lanes},
        {
            FLOPS: (alone - memory) / lanes,
            MEMORY: (memory + slower) / lanes,
            "imbalance": (waiting - launches) / lanes,
            "overhead": launches / lanes,
        },
        0,
        float(schedule.arena_bytes),
        sum(task.flops for task in tasks) / 2,
        {"schedule": schedule.name, "workspace_bytes": schedule.workspace_bytes},
    )
