"""``train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.cli._common import (
    BiasOption,
    JsonOption,
    LayersOption,
    ModelArgument,
    print_json,
    print_table,
)
from sparsednn.cli._device import DeviceOption, KernelOption, TransportOption
from sparsednn.cli._learning import (
    CHECKPOINTS_PANEL,
    DATA_PANEL,
    BatchOption,
    BetasOption,
    CheckpointOption,
    ClipOption,
    EpochsOption,
    EpsilonOption,
    EveryOption,
    ImagesOption,
    MomentumOption,
    NesterovOption,
    NoShuffleOption,
    OptimizerOption,
    PlotOption,
    RateOption,
    ResumeOption,
    ScheduleOption,
    SeedOption,
    ThreadsOption,
    WarmUpOption,
    WeightDecayOption,
    table_value,
)
from sparsednn.cli._ranks import RANKS_PANEL, GridOption, RanksOption, start_ranks, told_once
from sparsednn.cli._reading import reads_models

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

_SPARSITY = "Dynamic sparsity"


@told_once()
@reads_models
def train(
    model: ModelArgument,
    *,
    options: ReadOptions,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs",
            metavar="INPUTS",
            help="What to learn: digits, digits:1024 (binary), mnist, graph-challenge:1024 (both "
            "need MNIST), or a path (.tsv, .npz, .npy, .safetensors) with --labels.",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Of a file of images: labels from 0 (.txt, .npy, idx), or dense targets (.npy, "
            "outputs × images).",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            "--validate",
            metavar="INPUTS",
            help="What to test with after each epoch, or none (default: the test part of a name).",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    validate_labels: Annotated[
        Path | None,
        typer.Option(
            "--validate-labels",
            metavar="FILE",
            help="As --labels, for --validate.",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    images: ImagesOption = None,
    mnist: Annotated[
        Path | None,
        typer.Option(
            "--mnist",
            metavar="FOLDER",
            help="Folder with the MNIST idx files, plain or gzipped (default: SPARSEDNN_DATA).",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    epochs: EpochsOption = 10,
    batch_size: BatchOption = 64,
    loss: Annotated[str, typer.Option("--loss", help="cross-entropy or mse.")] = "cross-entropy",
    initial: Annotated[
        str,
        typer.Option(
            "--init",
            help="Weights to begin with: keep those of MODEL, draw new ones, or auto: keep those "
            "of a file, new ones for a name.",
        ),
    ] = "auto",
    seed: SeedOption = 0,
    no_shuffle: NoShuffleOption = False,
    kernel: KernelOption = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    json: JsonOption = False,
    optimizer: OptimizerOption = "sgd",
    lr: RateOption = None,
    momentum: MomentumOption = None,
    nesterov: NesterovOption = False,
    weight_decay: WeightDecayOption = None,
    betas: BetasOption = None,
    epsilon: EpsilonOption = None,
    schedule: ScheduleOption = "constant",
    warm_up: WarmUpOption = None,
    clip: ClipOption = None,
    sparsity: Annotated[
        str | None,
        typer.Option(
            "--sparsity",
            metavar="METHOD",
            help="Replace the smallest weights now and then: set (by random ones) or rigl (by "
            "those of the largest gradients); rigl:every=100,fraction=0.3,until=0.75 is the same "
            "as rigl.",
            show_default=False,
            rich_help_panel=_SPARSITY,
        ),
    ] = None,
    repartition: Annotated[
        float | None,
        typer.Option(
            "--repartition",
            metavar="RATIO",
            help="Make a new partition when the words have grown to RATIO times the words of the "
            "start.",
            show_default=False,
            rich_help_panel=_SPARSITY,
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    resume: ResumeOption = False,
    every: EveryOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the trained network (.safetensors).",
            show_default=False,
            rich_help_panel=CHECKPOINTS_PANEL,
        ),
    ] = None,
    plot: PlotOption = None,
    partition: Annotated[
        Path | None,
        typer.Option(
            "--partition",
            metavar="FILE",
            help="Who owns which neuron, by 'sparsednn partition'; as many ranks as parts, or a "
            "multiple.",
            show_default=False,
            rich_help_panel=RANKS_PANEL,
        ),
    ] = None,
    grid: GridOption = None,
    ranks: RanksOption = None,
    transport: TransportOption = "auto",
    input_gradient: Annotated[
        bool,
        typer.Option(
            "--input-gradient/--no-input-gradient",
            help="Send the first layer's words in the backward pass, too (twice the forward "
            "pass's words in all, as in the paper), or save them; the numbers are the same.",
            rich_help_panel=RANKS_PANEL,
        ),
    ] = True,
) -> None:
    """Train a network on its sparse pattern; print loss, accuracy and rate.

    Without --partition, ranks share the images, and each has the whole network.
    """
    from sparsednn.cli import _train

    request = _train.Request(
        model=model, inputs=inputs, options=options, layers=layers, bias=bias, labels=labels,
        validate=validate, validate_labels=validate_labels, images=images, mnist=mnist,
        epochs=epochs, batch_size=batch_size, rate=lr, loss=loss, optimizer=optimizer,
        momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, betas=betas,
        epsilon=epsilon, schedule=schedule, warm_up=warm_up, clip=clip, initial=initial,
        seed=seed, shuffle=not no_shuffle, sparsity=sparsity, repartition=repartition,
        partition=partition, grid=grid, threads=threads, kernel=kernel, device=device,
        transport=transport, input_gradient=input_gradient, checkpoint=checkpoint, resume=resume,
        every=every, output=output, plot=plot,
    )  # fmt: skip
    settings = request.settings()
    request.check_call()
    if ranks is not None:
        start_ranks(ranks)
    summary = _train.train(request, settings)
    if summary is None:  # a rank that has nothing to say
        return
    if json:
        print_json(summary)
    else:
        print_table(_rows(summary))


#: Of no interest without other ranks, or if nothing has happened.
_ON_RANKS = (
    "grid", "words_sent", "words_predicted", "messages_sent", "allreduce_words",
    "evaluation_words", "pattern_words", "drift",
)  # fmt: skip
_IF_ANY = ("resumed_step", "test_images")


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people: without what was not asked for, or has not happened."""
    rows: list[tuple[str, str]] = []
    for name, value in summary.items():
        if isinstance(value, dict):
            rows += [(f"seconds {key}", table_value(key, one)) for key, one in value.items() if one]
        elif not (
            value is None
            or (name in _ON_RANKS and summary["ranks"] == 1)
            or (name in _IF_ANY and not value)
        ):
            rows.append((name.replace("_", " "), table_value(name, value)))
    return rows
