"""What ``cnn train`` does, in one process or on ranks, and what the ``cnn`` commands share."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsednn.amounts import bytes_text
from sparsednn.cli._common import note, print_table
from sparsednn.cli._learning import (
    LOG_PERIOD,
    RATES,
    check_checkpoints,
    epoch_text,
    finite,
    moment_text,
    optimizer_of,
    path_text,
    plot_records,
    table_value,
    threads_of,
)
from sparsednn.cli._progress import Progress
from sparsednn.cli._ranks import on_ranks, under_launcher
from sparsednn.cli._targets import check_targets
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.comm import Communicator
    from sparsednn.dense.concurrency.request import Concurrently
    from sparsednn.dense.concurrency.schedule import Schedule
    from sparsednn.dense.graph import OperationGraph
    from sparsednn.dense.planning.plan import NetworkPlan
    from sparsednn.dense.planning.request import Planning
    from sparsednn.dense.runs.result import CnnResult
    from sparsednn.dense.runs.trainer import CnnRun
    from sparsednn.training.settings import Settings

__all__ = [
    "PlacedRequest",
    "TrainRequest",
    "check_own_sizes",
    "image_shape",
    "network_keys",
    "network_named",
    "placed_keys",
    "plan_keys",
    "print_summary",
    "ranks_or_alone",
    "schedule_keys",
    "train",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRequest:
    """Options of all commands that run a network on ranks, as typed."""

    network: str
    batch_size: int
    backend: str
    dtype: str
    threads: int | None
    algorithm: str
    grid: str | None
    memory_per_rank: str | None
    concurrent: bool = False
    concurrent_plan: Path | None = None
    workspace_limit: str | None = None

    def concurrently(self) -> Concurrently | None:
        """Return how independent operations are to run side by side; None: they are not to."""
        from sparsednn.cli.cnn_concurrency import plan_progress, workspace_bytes
        from sparsednn.dense.concurrency.request import Concurrently

        limit = workspace_bytes(self.workspace_limit)
        if not self.concurrent and self.concurrent_plan is None:
            if limit is not None:
                raise UsageError("--workspace-limit goes with --concurrent")
            return None
        return Concurrently(self.concurrent_plan, limit, progress=plan_progress)

    def check_alone(self) -> None:
        """Refuse ranks for what is for one process."""
        if self.concurrently() is not None:
            raise UsageError("--concurrent is for one process: leave it out, or --ranks")

    def planning(self) -> Planning:
        """Return how grids are to be chosen."""
        from sparsednn.dense.planning.request import Planning

        return Planning.parse(self.algorithm, self.grid, self.memory_per_rank)

    def check_placing(self) -> None:
        """Tell what is wrong with these options, as far as can be told without reading."""
        from sparsednn.dense.local import BACKENDS
        from sparsednn.dense.runs.placing import check_dtype

        for name, value in (("--threads", self.threads), ("--batch-size", self.batch_size)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        self.planning()
        self.concurrently()
        check_dtype(self.dtype)
        if self.backend not in ("auto", *BACKENDS):
            raise UsageError(f"--backend is one of auto, {', '.join(BACKENDS)}: '{self.backend}'")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest(PlacedRequest):
    """The options of ``cnn train``, as typed."""

    inputs: str
    folder: Path | None
    validate: str | None
    images: int | None
    classes: int | None
    epochs: int
    seed: int
    shuffle: bool
    optimizer: str
    rate: float | None
    momentum: float | None
    nesterov: bool
    weight_decay: float | None
    betas: str | None
    epsilon: float | None
    schedule: str
    warm_up: float | None
    clip: float | None
    weights: Path | None
    checkpoint: Path | None
    resume: bool
    every: int | None
    plot: Path | None

    def settings(self) -> Settings:
        """Return what determines the numbers; tells what is wrong with those options."""
        from sparsednn.training.schedules import Schedule
        from sparsednn.training.settings import Settings

        return Settings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=optimizer_of(
                self.optimizer,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                betas=self.betas,
                epsilon=self.epsilon,
            ),
            # An optimizer that is not known has been refused a moment ago.
            rate=RATES[self.optimizer] if self.rate is None else self.rate,
            schedule=Schedule.parse(self.schedule, warm_up=self.warm_up),
            clip=self.clip,
            seed=self.seed,
            shuffle=self.shuffle,
        )

    def check_call(self) -> None:
        """Tell what is wrong with the other options, as far as can be told without reading."""
        self.check_placing()
        if self.every is not None and self.every < 1:
            raise UsageError(f"--every must be at least 1, found {self.every}")
        check_own_sizes(self.network, {"--classes": self.classes})
        check_checkpoints(self.checkpoint, resume=self.resume, every=self.every)
        if self.plot is not None:
            from sparsednn.pictures import check_picture

            check_picture(self.plot)

    def check_files(self) -> None:
        """Tell what cannot be written before anything is done."""
        plot = self.plot
        if plot is None:
            return
        read = [Path(self.inputs), None if self.validate is None else Path(self.validate)]
        if self.checkpoint is not None:
            from sparsednn.training.checkpoints import CHECKPOINT
            from sparsednn.training.metrics import METRICS

            own = (self.checkpoint / CHECKPOINT, self.checkpoint / METRICS)
            if os.path.realpath(plot) in map(os.path.realpath, own):
                raise UsageError(f"{plot}: is a file of --checkpoint: choose another name")
            inside = plot.resolve().is_relative_to(self.checkpoint.resolve())
            if inside and not self.checkpoint.exists():  # it will, and then it can be written to
                return
        check_targets(self.network, {"--plot": plot}, [*read, self.weights])


def ranks_or_alone() -> AbstractContextManager[Communicator]:
    """All ranks that a launcher has started; or this process alone, which loads no MPI."""
    if under_launcher():
        return on_ranks()
    from sparsednn.comm.alone import Alone

    return nullcontext(Alone())


def train(request: TrainRequest, settings: Settings) -> dict[str, Any] | None:
    """Train, in this process or on all ranks; rank 0 has the summary, the others None."""
    with ranks_or_alone() as world:
        from sparsednn.comm.failure import together
        from sparsednn.dense.runs.trainer import CnnRun

        with together(world, "checking the call"):
            if world.rank == 0:
                request.check_files()
        run = CnnRun(
            world,
            request.network,
            request.inputs,
            settings,
            planning=request.planning(),
            backend=request.backend,
            threads=threads_of(request.threads, world),
            dtype=request.dtype,
            weights=request.weights,
            validate=request.validate,
            images=request.images,
            classes=request.classes,
            data=request.folder,
            folder=request.checkpoint,
            resume=request.resume,
            every=request.every,
            concurrent=request.concurrently(),
        )
        if world.rank == 0 and request.resume:
            _note_resume(request, run)
        with Progress(period=LOG_PERIOD) as progress:
            result = run.run(
                lambda moment: progress.show(lambda: moment_text(moment)),
                lambda record: progress.log(epoch_text(record, request.epochs)),
            )
        with together(world, "writing the results"):
            if world.rank == 0 and request.plot is not None:
                plot_records(request.plot, request.checkpoint, result.records, run.graph.name)
        run.free()
        return None if world.rank else _summary(request, run, result)


def _note_resume(request: TrainRequest, run: CnnRun) -> None:
    if run.resumed_step:
        note(f"{request.checkpoint}: going on after step {run.resumed_step:,}")
    else:
        note(f"{request.checkpoint}: no checkpoint there yet: training starts anew")


def network_keys(graph: OperationGraph) -> dict[str, Any]:
    """What a summary says of a network."""
    return {
        "network": graph.name,
        "image": "x".join(map(str, graph.image)),
        "classes": graph.classes,
        "parameters": graph.trained_words,
    }


def placed_keys(request: PlacedRequest, ranks: int, threads: int, backend: str) -> dict[str, Any]:
    """What a summary says of how a network is placed."""
    return {
        "ranks": ranks,
        "algorithm": request.algorithm,
        "grid": request.grid,
        "threads": threads,
        "backend": backend,
        "dtype": request.dtype,
    }


def schedule_keys(schedule: Schedule | None) -> dict[str, Any] | None:
    """What a summary says of what runs side by side."""
    if schedule is None:
        return None
    return {
        "plan": schedule.name,
        "lanes": schedule.lanes,
        "predicted_seconds": schedule.seconds,
        "arena_bytes": schedule.arena_bytes,
        "workspace_bytes": schedule.workspace_bytes,
    }


def plan_keys(plan: NetworkPlan) -> dict[str, Any]:
    """What a summary says of the grids: the plan's rows, and its totals."""
    content = plan.as_json()
    return {"layers": content["layers"], "totals": content["totals"]}


def _summary(request: TrainRequest, run: CnnRun, result: CnnResult) -> dict[str, Any]:
    """What rank 0 tells; numbers that JSON does not have are null."""
    summary: dict[str, Any] = {
        **network_keys(run.graph),
        "images": run.n_images,
        "test_images": run.n_tests,
        "batch_size": request.batch_size,
        **placed_keys(request, run.world.size, run.threads, run.backend),
        "seed": request.seed,
        "epochs": result.epochs,
        "steps": result.steps,
        "resumed_step": run.resumed_step,
        "loss": result.loss,
        "train_accuracy": result.train_accuracy,
        "test_loss": result.test_loss,
        "test_accuracy": result.test_accuracy,
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "seconds_read": run.read_seconds,
        "seconds_prepare": run.prepare_seconds,
        "pass_seconds": dict(result.phase_seconds),
        "words_sent": result.words_sent,
        "words_predicted": result.words_predicted,
        "messages_sent": result.messages_sent,
        "evaluation_words": result.evaluation_words,
        "memory_predicted": run.plan.totals.memory,
        "plan": plan_keys(run.plan),
        "concurrent": schedule_keys(run.schedule),
        "checkpoint": path_text(request.checkpoint),
        "plot": path_text(request.plot),
    }
    return {name: finite(value) for name, value in summary.items()}


#: Of no interest without other ranks, or if nothing has happened.
_ON_RANKS = (
    "algorithm", "grid", "words_sent", "words_predicted", "messages_sent", "evaluation_words",
)  # fmt: skip
_IF_ANY = ("resumed_step", "test_images")


def print_summary(summary: dict[str, Any]) -> None:
    """Print a summary for people, without what was not asked for, or has not happened."""
    rows: list[tuple[str, str]] = []
    for name, value in summary.items():
        if name == "plan":
            rows += _placement_rows(value["layers"]) if summary["ranks"] > 1 else []
        elif name == "layers":  # of a benchmark
            rows += [(f"  {row['name']}", _milliseconds(row)) for row in value]
        elif name == "concurrent":
            rows += _concurrent_rows(value)
        elif name == "memory_predicted":
            rows.append(("memory of a rank, by formula", bytes_text(value)))
        elif isinstance(value, dict):
            rows += [(f"seconds {key}", table_value(key, one)) for key, one in value.items() if one]
        elif not (
            value is None
            or (name in _ON_RANKS and summary["ranks"] == 1)
            or (name in _IF_ANY and not value)
        ):
            rows.append((name.replace("_", " "), table_value(name, value)))
    print_table(rows)


def _concurrent_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if found is None:
        return []
    return [
        ("side by side", f"{found['plan']} plan on {found['lanes']} lanes"),
        ("  predicted time of a batch", f"{found['predicted_seconds'] * 1e3:.2f} ms"),
        ("  arena, of which workspace",
         f"{bytes_text(found['arena_bytes'])}, {bytes_text(found['workspace_bytes'])}"),
    ]  # fmt: skip


def _placement_rows(layers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [
        (f"  {row['layer']}", f"{row['algorithm']} on {row['grid']}, {row['words']:,} words")
        for row in layers
        if row["algorithm"]
    ]


def _milliseconds(row: dict[str, Any]) -> str:
    phases = [name for name in ("forward", "backward", "gradients") if name in row]
    return ", ".join(f"{name} {row[name] * 1e3:.3g} ms" for name in phases)


def check_own_sizes(network: str, options: Mapping[str, object]) -> None:
    """Refuse options, by name, that belong to a network's name where a file is given."""
    from sparsednn.dense.runs.source import network_file

    for option, value in options.items():
        if value is not None and network_file(network) is not None:
            raise UsageError(f"{option} belongs to a network's name; {network} is a file")


def network_named(network: str, image: str | None, classes: int | None) -> OperationGraph:
    """Return the network that a person names, of the sizes that are typed."""
    from sparsednn.dense.runs.source import network_for

    check_own_sizes(network, {"--image": image, "--classes": classes})
    return network_for(network, image_shape(image), classes)


def image_shape(text: str | None) -> tuple[int, int, int] | None:
    """Read channels, height and width.

    >>> image_shape("3x32x32"), image_shape("3×32×32")
    ((3, 32, 32), (3, 32, 32))
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,6})[x×]([0-9]{1,6})[x×]([0-9]{1,6})", text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"--image '{text}': channels, height and width are needed, as in 3x32x32")
    return int(match[1]), int(match[2]), int(match[3])
