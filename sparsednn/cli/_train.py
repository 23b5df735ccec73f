"""What ``train`` does, in one process or on ranks: one call of the library, and a summary."""

from __future__ import annotations

import math
import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsednn.cli._common import note
from sparsednn.cli._device import check_device, cpu_kernel, device_of
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
    threads_of,
)
from sparsednn.cli._progress import Progress
from sparsednn.cli._ranks import on_ranks, under_launcher
from sparsednn.cli._targets import check_targets
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.comm import Communicator
    from sparsednn.formats import ReadOptions
    from sparsednn.gpu.device import Device
    from sparsednn.training.progress import TrainingResult
    from sparsednn.training.settings import Settings
    from sparsednn.training.trainer import TrainingRun

#: More words than this, as a multiple of the first pattern's, are worth telling at the end.
_MUCH_DRIFT = 1.1

__all__ = ["Request", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The options of ``train``, as typed."""

    model: str
    inputs: str
    options: ReadOptions
    layers: int | None
    bias: float | None
    labels: Path | None
    validate: str | None
    validate_labels: Path | None
    images: int | None
    mnist: Path | None
    epochs: int
    batch_size: int
    rate: float | None
    loss: str
    optimizer: str
    momentum: float | None
    nesterov: bool
    weight_decay: float | None
    betas: str | None
    epsilon: float | None
    schedule: str
    warm_up: float | None
    clip: float | None
    initial: str
    seed: int
    shuffle: bool
    sparsity: str | None
    repartition: float | None
    partition: Path | None
    grid: str | None
    threads: int | None
    kernel: str | None
    device: str
    transport: str
    input_gradient: bool
    checkpoint: Path | None
    resume: bool
    every: int | None
    output: Path | None
    plot: Path | None

    def settings(self) -> Settings:
        """Return what determines the numbers; tells what is wrong with those options."""
        from sparsednn.training.schedules import Schedule
        from sparsednn.training.settings import Settings
        from sparsednn.training.sparsity import DynamicSparsity

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
            loss=self.loss,
            schedule=Schedule.parse(self.schedule, warm_up=self.warm_up),
            clip=self.clip,
            sparsity=None if self.sparsity is None else DynamicSparsity.parse(self.sparsity),
            initial=self.initial,
            seed=self.seed,
            shuffle=self.shuffle,
            input_gradient=self.input_gradient,
        )

    def check_call(self) -> None:
        """Tell what is wrong with the other options, as far as can be told without reading."""
        from sparsednn.comm.grid import ProcessGrid

        for name, value in (("--threads", self.threads), ("--every", self.every)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        check_device(self.device, self.kernel, self.transport)
        if self.grid is not None:
            ProcessGrid.parse(self.grid)
        check_checkpoints(self.checkpoint, resume=self.resume, every=self.every)
        if not self.input_gradient and self.partition is None:
            raise UsageError(
                "--no-input-gradient is for ranks that share the neurons: give --partition FILE, "
                "made by 'sparsednn partition'"
            )
        self._check_repartition()
        self._check_examples()
        if self.output is not None and self.output.suffix != ".safetensors":
            raise UsageError(
                f"{self.output}: the trained network is written as .safetensors; "
                "'sparsednn convert' makes other formats of it"
            )
        if self.plot is not None:
            from sparsednn.pictures import check_picture

            check_picture(self.plot)

    def _check_repartition(self) -> None:
        if self.repartition is None:
            return
        for other, given in (("--sparsity", self.sparsity), ("--partition", self.partition)):
            if given is None:
                raise UsageError(
                    f"--repartition is for a pattern that changes on ranks: give {other}, too"
                )
        if not 1.0 <= self.repartition < math.inf:
            raise UsageError(
                "--repartition is how many times the words of the start are too many: at least "
                f"1, found {self.repartition}"
            )

    def _check_examples(self) -> None:
        """Labels belong to files: what can be told early; the library knows the rest."""
        from sparsednn.training.examples import validation_of

        if self.validate_labels is not None and self.validate in (None, "none"):
            raise UsageError("--validate-labels is for a file of images: give --validate FILE")
        for option, source, labels in (
            ("--labels", self.inputs, self.labels),
            ("--validate-labels", self.validate, self.validate_labels),
        ):
            if source is None:
                continue
            if labels is None and os.path.isfile(source):
                raise UsageError(f"{source}: a file has no labels in it: give {option} FILE")
            if labels is not None and validation_of(source) is not None:
                raise UsageError(f"{option} does not apply to '{source}': it has its own labels")

    def check_files(self) -> None:
        """Tell what cannot be written before anything is done."""
        read: list[Path | None] = [
            Path(self.inputs), self.labels, self.validate_labels, self.partition,
            None if self.validate is None else Path(self.validate),
        ]  # fmt: skip
        targets = {"--output": self.output, "--plot": self.plot}
        if self.checkpoint is not None:
            from sparsednn.training.trainer import CHECKPOINT, METRICS

            own = (self.checkpoint / CHECKPOINT, self.checkpoint / METRICS)
            for path in (self.output, self.plot):
                if path is not None and os.path.realpath(path) in map(os.path.realpath, own):
                    raise UsageError(f"{path}: is a file of --checkpoint: choose another name")
            if not self.checkpoint.exists():  # it will, and then they can be written into it
                targets = {
                    name: path
                    for name, path in targets.items()
                    if path is None or not path.resolve().is_relative_to(self.checkpoint.resolve())
                }
        check_targets(self.model, targets, read)

    @property
    def validation(self) -> str | None:
        """The examples to validate with, if any."""
        from sparsednn.training.examples import validation_of

        if self.validate is None:
            return validation_of(self.inputs)
        return None if self.validate == "none" else self.validate


def train(request: Request, settings: Settings) -> dict[str, Any] | None:
    """Train, in this process or on all ranks; rank 0 has the summary, the others None."""
    with _world(request) as world:
        from sparsednn.comm.failure import together
        from sparsednn.training.trainer import TrainingRun

        with together(world, "checking the call"):
            if world.rank == 0:
                request.check_files()
        device = device_of(request.device, world)
        run = TrainingRun(
            world,
            request.model,
            request.inputs,
            settings,
            partition=request.partition,
            grid=_grid(request.grid),
            kernel=cpu_kernel(request.kernel),
            threads=threads_of(request.threads, world),
            labels=request.labels,
            validate=request.validation,
            validate_labels=request.validate_labels,
            mnist=request.mnist,
            images=request.images,
            layers=request.layers,
            bias=request.bias,
            options=request.options,
            folder=request.checkpoint,
            resume=request.resume,
            every=request.every,
            repartition=request.repartition,
            device=device,
            transport=request.transport,
        )
        if world.rank == 0 and request.resume:
            _note_resume(request, run)
        with Progress(period=LOG_PERIOD) as progress:
            result = run.run(
                lambda moment: progress.show(lambda: moment_text(moment)),
                lambda record: progress.log(epoch_text(record, request.epochs)),
            )
        if world.rank == 0 and result.drift > _MUCH_DRIFT:
            note(
                f"the partition has drifted: {result.drift:.2f} times the words of the start "
                "('sparsednn partition' on the checkpoint makes a new one, --repartition does "
                "it while training)"
            )
        network = None if request.output is None else run.network()
        with together(world, "writing the results"):
            if network is not None and request.output is not None:
                from sparsednn.formats import write_network

                write_network(network, request.output)
            if world.rank == 0 and request.plot is not None:
                plot_records(request.plot, request.checkpoint, result.records, run.name)
        run.free()
        return None if world.rank else _summary(request, run, result, device)


def _world(request: Request) -> AbstractContextManager[Communicator]:
    """All ranks; or this process alone, which loads no MPI."""
    if request.partition is not None or request.grid is not None or under_launcher():
        return on_ranks()
    from sparsednn.comm.alone import Alone

    return nullcontext(Alone())


def _grid(text: str | None) -> tuple[int, ...] | None:
    from sparsednn.comm.grid import ProcessGrid

    return None if text is None else ProcessGrid.parse(text)


def _note_resume(request: Request, run: TrainingRun) -> None:
    if run.resumed_step:
        note(f"{request.checkpoint}: going on after step {run.resumed_step:,}")
    else:
        note(f"{request.checkpoint}: no checkpoint there yet: training starts anew")


def _summary(
    request: Request, run: TrainingRun, result: TrainingResult, device: Device | None
) -> dict[str, Any]:
    """What rank 0 tells; numbers that JSON does not have are null."""
    summary: dict[str, Any] = {
        "network": run.name,
        "parameters": run.parameters,
        "edges": run.edges,
        "images": run.n_images,
        "test_images": run.n_validate,
        "ranks": math.prod(run.shape),
        "grid": "x".join(map(str, run.shape)),
        "threads": run.threads,
        "kernel": cpu_kernel(request.kernel) if device is None else "cupy",
        "device": "cpu" if device is None else device.name,
        **({"transport": run.transport} if run.transport else {}),
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
        "pass_seconds": dict(result.pass_seconds),
        "words_sent": result.words_sent,
        "words_predicted": result.words_predicted,
        "messages_sent": result.messages_sent,
        "allreduce_words": result.allreduce_words,
        "evaluation_words": result.evaluation_words,
        "pattern_words": result.pattern_words,
        "drift": result.drift,
        "checkpoint": path_text(request.checkpoint),
        "output": path_text(request.output),
        "plot": path_text(request.plot),
    }
    return {name: finite(value) for name, value in summary.items()}
