"""What the commands that train share: options, what they become, lines of progress."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from sparsednn.cli._progress import duration
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.comm import Communicator
    from sparsednn.training.optimizers import Optimizer
    from sparsednn.training.standing import Moment

__all__ = [
    "CHECKPOINTS_PANEL",
    "DATA_PANEL",
    "LOG_PERIOD",
    "OPTIMIZER_PANEL",
    "RATES",
    "BatchOption",
    "BetasOption",
    "CheckpointOption",
    "ClipOption",
    "EpochsOption",
    "EpsilonOption",
    "EveryOption",
    "ImagesOption",
    "MomentumOption",
    "NesterovOption",
    "NoShuffleOption",
    "OptimizerOption",
    "PlotOption",
    "RateOption",
    "ResumeOption",
    "ScheduleOption",
    "SeedOption",
    "ThreadsOption",
    "WarmUpOption",
    "WeightDecayOption",
    "check_checkpoints",
    "epoch_text",
    "finite",
    "moment_text",
    "numbers",
    "optimizer_of",
    "path_text",
    "plot_records",
    "table_value",
    "threads_of",
]

DATA_PANEL = "Data"
OPTIMIZER_PANEL = "Optimizer"
CHECKPOINTS_PANEL = "Checkpoints and results"

#: Learning rates that usually work, where none is given.
RATES: Final = {"sgd": 0.1, "adam": 0.001}
LOG_PERIOD: Final = 30.0  # seconds between lines within a long epoch, where there is no terminal

ImagesOption = Annotated[
    int | None,
    typer.Option(
        "--images",
        metavar="N",
        help="Learn only the first N images.",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
EpochsOption = Annotated[int, typer.Option("--epochs", help="How often all images are seen.")]
BatchOption = Annotated[
    int, typer.Option("--batch-size", help="Images of a step, of all ranks together.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="The same seed, the same numbers.")]
NoShuffleOption = Annotated[
    bool, typer.Option("--no-shuffle", help="Take the images in their order in each epoch.")
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Threads of each rank (default: cores / ranks).", show_default=False
    ),
]
OptimizerOption = Annotated[
    str, typer.Option("--optimizer", help="sgd or adam.", rich_help_panel=OPTIMIZER_PANEL)
]
RateOption = Annotated[
    float | None,
    typer.Option(
        "--lr",
        metavar="RATE",
        help="Learning rate (default: 0.1 for sgd, 0.001 for adam).",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
MomentumOption = Annotated[
    float | None,
    typer.Option(
        "--momentum",
        help="Of sgd (default: 0).",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
NesterovOption = Annotated[
    bool,
    typer.Option("--nesterov", help="Nesterov's momentum.", rich_help_panel=OPTIMIZER_PANEL),
]
WeightDecayOption = Annotated[
    float | None,
    typer.Option(
        "--weight-decay",
        help="Added to the gradient, times the weights (default: 0).",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
BetasOption = Annotated[
    str | None,
    typer.Option(
        "--betas",
        metavar="A,B",
        help="Of adam (default: 0.9,0.999).",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
EpsilonOption = Annotated[
    float | None,
    typer.Option(
        "--epsilon",
        help="Of adam (default: 1e-8).",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
ScheduleOption = Annotated[
    str,
    typer.Option(
        "--schedule",
        help="Of the learning rate: constant, step:EPOCHS,FACTOR or cosine.",
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
WarmUpOption = Annotated[
    float | None,
    typer.Option(
        "--warm-up",
        metavar="EPOCHS",
        help="The learning rate grows from nothing in these first epochs.",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
ClipOption = Annotated[
    float | None,
    typer.Option(
        "--clip",
        metavar="NORM",
        help="Shorten longer gradients to this norm.",
        show_default=False,
        rich_help_panel=OPTIMIZER_PANEL,
    ),
]
CheckpointOption = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="FOLDER",
        help="Keep checkpoint.safetensors (a network file, too) and metrics.jsonl there, "
        "renewed after each epoch.",
        show_default=False,
        rich_help_panel=CHECKPOINTS_PANEL,
    ),
]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume",
        help="Go on from the checkpoint in FOLDER, if there is one; on any number of ranks.",
        rich_help_panel=CHECKPOINTS_PANEL,
    ),
]
EveryOption = Annotated[
    int | None,
    typer.Option(
        "--every",
        metavar="STEPS",
        help="A checkpoint after so many steps, too.",
        show_default=False,
        rich_help_panel=CHECKPOINTS_PANEL,
    ),
]
PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw loss and accuracy over the epochs (.png, .svg or .pdf).",
        show_default=False,
        rich_help_panel=CHECKPOINTS_PANEL,
    ),
]


def optimizer_of(
    name: str,
    *,
    momentum: float | None,
    nesterov: bool,
    weight_decay: float | None,
    betas: str | None,
    epsilon: float | None,
) -> Optimizer:
    """Make the optimizer that the options, as typed, ask for."""
    from sparsednn.training.optimizers import make_optimizer

    return make_optimizer(
        name,
        momentum=momentum,
        nesterov=nesterov or None,
        weight_decay=weight_decay,
        betas=numbers("--betas", betas),
        epsilon=epsilon,
    )


def numbers(option: str, text: str | None) -> tuple[float, ...] | None:
    """Read numbers with commas between them.

    >>> numbers("--betas", "0.9,0.99")
    (0.9, 0.99)
    """
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise UsageError(f"{option} takes numbers with a comma between them: '{text}'") from None


def check_checkpoints(checkpoint: Path | None, *, resume: bool, every: int | None) -> None:
    """Refuse options of checkpoints where there are none."""
    for name, given in (("--resume", resume), ("--every", every is not None)):
        if given and checkpoint is None:
            raise UsageError(f"{name} is for checkpoints: give --checkpoint FOLDER")


def threads_of(asked: int | None, world: Communicator) -> int:
    """Threads of each rank, and keep the libraries to them; collective."""
    from sparsednn.comm.alone import Alone
    from sparsednn.comm.threads import limit_threads, threads_per_rank
    from sparsednn.machine import available_cores

    if isinstance(world, Alone):
        return asked or available_cores()
    threads = asked or threads_per_rank(world)
    limit_threads(threads)
    return threads


def moment_text(moment: Moment) -> str:
    """A line of progress within an epoch."""
    parts = [
        f"epoch {min(moment.epoch + 1, moment.epochs)} of {moment.epochs}: loss {moment.loss:.4g}"
    ]
    if moment.accuracy is not None:
        parts.append(f"accuracy {moment.accuracy:.2%}")
    parts.append(f"{moment.images_per_second:,.0f} images/s")
    if moment.step < moment.steps:
        parts.append(f"about {duration(moment.seconds_left)} left")
    return ", ".join(parts)


def epoch_text(record: dict[str, Any], epochs: int) -> str:
    """A line of metrics for people."""
    parts = [f"epoch {record['epoch']} of {epochs}: loss {record['loss']:.4g}"]
    for name, key in (("accuracy", "train_accuracy"), ("test accuracy", "test_accuracy")):
        if record[key] is not None:
            parts.append(f"{name} {record[key]:.2%}")
    parts.append(f"{record['images_per_second']:,.0f} images/s")
    if record.get("drift", 1.0) != 1.0:
        parts.append(f"{record['drift']:.2f} times the words of the start")
    return ", ".join(parts)


def plot_records(
    path: Path, folder: Path | None, records: list[dict[str, Any]], title: str
) -> None:
    """Draw the curves: all that the metrics file has; else this session's."""
    from sparsednn.training.curves import plot_curves
    from sparsednn.training.metrics import METRICS, read_metrics

    plot_curves(records if folder is None else read_metrics(folder / METRICS), path, title=title)


def path_text(path: Path | None) -> str | None:
    """A path for JSON."""
    return None if path is None else str(path)


def finite(value: Any) -> Any:
    """The same, with null for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def table_value(name: str, value: Any) -> str:
    """One value of a table for people.

    >>> table_value("test_accuracy", 0.97515), table_value("seconds", 0.25)
    ('97.52%', '0.25')
    >>> table_value("edges", 9999)
    '9,999'
    """
    if isinstance(value, float):
        if name.endswith("accuracy"):
            return f"{value:.2%}"
        return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)
