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
from sparsednn.cli._ranks import RANKS_PANEL, GridOption, RanksOption, start_ranks, told_once
from sparsednn.cli._reading import reads_models

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

_DATA = "Data"
_OPTIMIZER = "Optimizer"
_SPARSITY = "Dynamic sparsity"
_CHECKPOINTS = "Checkpoints and results"


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
            rich_help_panel=_DATA,
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
            rich_help_panel=_DATA,
        ),
    ] = None,
    validate: Annotated[
        str | None,
        typer.Option(
            "--validate",
            metavar="INPUTS",
            help="What to test with after each epoch, or none (default: the test part of a name).",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    validate_labels: Annotated[
        Path | None,
        typer.Option(
            "--validate-labels",
            metavar="FILE",
            help="As --labels, for --validate.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            help="Learn only the first N images.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    mnist: Annotated[
        Path | None,
        typer.Option(
            "--mnist",
            metavar="FOLDER",
            help="Folder with the MNIST idx files, plain or gzipped (default: SPARSEDNN_DATA).",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", help="How often all images are seen.")] = 10,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Images of a step, of all ranks together.")
    ] = 64,
    loss: Annotated[str, typer.Option("--loss", help="cross-entropy or mse.")] = "cross-entropy",
    initial: Annotated[
        str,
        typer.Option(
            "--init",
            help="Weights to begin with: keep those of MODEL, draw new ones, or auto: keep those "
            "of a file, new ones for a name.",
        ),
    ] = "auto",
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same numbers.")] = 0,
    no_shuffle: Annotated[
        bool, typer.Option("--no-shuffle", help="Take the images in their order in each epoch.")
    ] = False,
    kernel: KernelOption = None,
    device: DeviceOption = "cpu",
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="Threads of each rank (default: cores / ranks).", show_default=False
        ),
    ] = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    json: JsonOption = False,
    optimizer: Annotated[
        str, typer.Option("--optimizer", help="sgd or adam.", rich_help_panel=_OPTIMIZER)
    ] = "sgd",
    lr: Annotated[
        float | None,
        typer.Option(
            "--lr",
            metavar="RATE",
            help="Learning rate (default: 0.1 for sgd, 0.001 for adam).",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    momentum: Annotated[
        float | None,
        typer.Option(
            "--momentum",
            help="Of sgd (default: 0).",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    nesterov: Annotated[
        bool,
        typer.Option("--nesterov", help="Nesterov's momentum.", rich_help_panel=_OPTIMIZER),
    ] = False,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            help="Added to the gradient, times the weights (default: 0).",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    betas: Annotated[
        str | None,
        typer.Option(
            "--betas",
            metavar="A,B",
            help="Of adam (default: 0.9,0.999).",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    epsilon: Annotated[
        float | None,
        typer.Option(
            "--epsilon",
            help="Of adam (default: 1e-8).",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            help="Of the learning rate: constant, step:EPOCHS,FACTOR or cosine.",
            rich_help_panel=_OPTIMIZER,
        ),
    ] = "constant",
    warm_up: Annotated[
        float | None,
        typer.Option(
            "--warm-up",
            metavar="EPOCHS",
            help="The learning rate grows from nothing in these first epochs.",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            "--clip",
            metavar="NORM",
            help="Shorten longer gradients to this norm.",
            show_default=False,
            rich_help_panel=_OPTIMIZER,
        ),
    ] = None,
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
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="FOLDER",
            help="Keep checkpoint.safetensors (a network file, too) and metrics.jsonl there, "
            "renewed after each epoch.",
            show_default=False,
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on from the checkpoint in FOLDER, if there is one; on any number of ranks.",
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = False,
    every: Annotated[
        int | None,
        typer.Option(
            "--every",
            metavar="STEPS",
            help="A checkpoint after so many steps, too.",
            show_default=False,
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the trained network (.safetensors).",
            show_default=False,
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw loss and accuracy over the epochs (.png, .svg or .pdf).",
            show_default=False,
            rich_help_panel=_CHECKPOINTS,
        ),
    ] = None,
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
            rows += [(f"seconds {key}", _shown(key, one)) for key, one in value.items() if one]
        elif not (
            value is None
            or (name in _ON_RANKS and summary["ranks"] == 1)
            or (name in _IF_ANY and not value)
        ):
            rows.append((name.replace("_", " "), _shown(name, value)))
    return rows


def _shown(name: str, value: Any) -> str:
    """One value.

    >>> _shown("test_accuracy", 0.97515), _shown("seconds", 0.25), _shown("edges", 9999)
    ('97.52%', '0.25', '9,999')
    """
    if isinstance(value, float):
        if name.endswith("accuracy"):
            return f"{value:.2%}"
        return f"{value:,.0f}" if value >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and name != "seed" else str(value)
