"""``cnn plan``, ``cnn train``, ``cnn infer`` and ``cnn bench``: dense networks on ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsednn.cli._common import JsonOption, print_json
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
)
from sparsednn.cli._ranks import RANKS_PANEL, RanksOption, start_ranks, told_once
from sparsednn.cli.cnn_concurrency import CONCURRENCY_PANEL, WorkspaceOption, concurrency
from sparsednn.cli.cnn_lower import lower

app = typer.Typer(
    help="Dense convolutional networks: choose grids of ranks, train, infer, measure.",
    no_args_is_help=True,
)

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="NETWORK",
        help="smallcnn, lenet5, alexnet, vgg16, resnet18, resnet20, resnet50, googlenet, "
        "inception_v3, pathnet; a checkpoint (.safetensors); an ONNX file; or a graph of "
        "operations (.json).",
        show_default=False,
    ),
]
InputsOption = Annotated[
    str,
    typer.Option(
        "--inputs",
        metavar="INPUTS",
        help="Pictures: digits, mnist, cifar10 (the last two with --folder), a file (.npz with "
        "images and labels), or synthetic:CxHxW[:CLASSES].",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        "--mnist",
        metavar="FOLDER",
        help="Folder with the files of MNIST or CIFAR-10 (default: SPARSEDNN_DATA).",
        show_default=False,
        rich_help_panel=DATA_PANEL,
    ),
]
AlgorithmOption = Annotated[
    str,
    typer.Option(
        "--algorithm",
        help="Of all layers: data, spatial, filter, channel, 2d, 2.5d or 3d; auto: for each layer "
        "the one that sends least.",
        rich_help_panel=RANKS_PANEL,
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="BxHxWxKxC",
        help="Ranks along images, rows, columns, filters and channels, for all layers (default: "
        "the cheapest of each layer).",
        show_default=False,
        rich_help_panel=RANKS_PANEL,
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory-per-rank",
        metavar="BYTES",
        help="What a rank may use, such as 2G or 512M (default: no limit).",
        show_default=False,
        rich_help_panel=RANKS_PANEL,
    ),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="What computes on a rank: torch, im2col, reference or cupy; auto: torch if it is "
        "installed, otherwise im2col.",
    ),
]
DtypeOption = Annotated[str, typer.Option("--dtype", help="float32 or float64.")]
WeightsOption = Annotated[
    Path | None,
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Numbers to begin with: a state dict of PyTorch (.pt, .pth, .safetensors), an ONNX "
        "file, or a checkpoint.",
        show_default=False,
        rich_help_panel=CHECKPOINTS_PANEL,
    ),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="CxHxW",
        help="Channels, height and width of an image (default: what is usual for NETWORK).",
        show_default=False,
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(
        "--classes",
        help="How many classes there are (default: what is usual for NETWORK).",
        show_default=False,
    ),
]
ConcurrentOption = Annotated[
    bool,
    typer.Option(
        "--concurrent",
        help="Let independent operations run side by side on the threads, in one process, by a "
        "plan that is made by measuring (see 'cnn concurrency').",
        rich_help_panel=CONCURRENCY_PANEL,
    ),
]
ConcurrentPlanOption = Annotated[
    Path | None,
    typer.Option(
        "--concurrent-plan",
        metavar="FILE",
        help="The same, by a plan that 'cnn concurrency --plan' wrote: the same bits each time.",
        show_default=False,
        rich_help_panel=CONCURRENCY_PANEL,
    ),
]
InferenceOption = Annotated[
    bool, typer.Option("--inference", help="Forward passes only, not whole steps of training.")
]


@app.command("plan")
def plan(
    network: NetworkArgument,
    *,
    ranks: Annotated[
        int, typer.Option("--ranks", metavar="P", help="Ranks to plan for; none is started.")
    ],
    memory_per_rank: MemoryOption = None,
    batch: Annotated[
        int, typer.Option("--batch", "--batch-size", help="Images of a step, of all ranks.")
    ] = 256,
    image: ImageOption = None,
    classes: ClassesOption = None,
    algorithm: AlgorithmOption = "auto",
    grid: GridOption = None,
    dtype: DtypeOption = "float32",
    optimizer: Annotated[
        str,
        typer.Option("--optimizer", help="sgd, momentum or adam: how much memory it takes."),
    ] = "momentum",
    inference: InferenceOption = False,
    json: JsonOption = False,
) -> None:
    """Choose a grid for every layer; print words and memory of each, and of data parallelism."""
    from sparsednn.cli._cnn_plan import plan_json, print_plan

    found = plan_json(
        network, ranks=ranks, memory_per_rank=memory_per_rank, batch=batch, image=image,
        classes=classes, algorithm=algorithm, grid=grid, dtype=dtype, optimizer=optimizer,
        training=not inference,
    )  # fmt: skip
    if json:
        print_json(found)
    else:
        print_plan(found)


@app.command("train")
@told_once()
def train(
    network: NetworkArgument,
    *,
    inputs: InputsOption,
    folder: FolderOption = None,
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
    images: ImagesOption = None,
    classes: Annotated[
        int | None,
        typer.Option(
            "--classes",
            help="How many classes NETWORK tells apart (default: as many as the pictures have).",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    epochs: EpochsOption = 10,
    batch_size: BatchOption = 64,
    seed: SeedOption = 0,
    no_shuffle: NoShuffleOption = False,
    backend: BackendOption = "auto",
    dtype: DtypeOption = "float32",
    threads: ThreadsOption = None,
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
    weights: WeightsOption = None,
    checkpoint: CheckpointOption = None,
    resume: ResumeOption = False,
    every: EveryOption = None,
    plot: PlotOption = None,
    algorithm: AlgorithmOption = "auto",
    grid: GridOption = None,
    memory_per_rank: MemoryOption = None,
    concurrent: ConcurrentOption = False,
    concurrent_plan: ConcurrentPlanOption = None,
    workspace_limit: WorkspaceOption = None,
    ranks: RanksOption = None,
) -> None:
    """Train a dense network; print loss, accuracy, rate, and what the ranks have sent."""
    from sparsednn.cli import _cnn

    request = _cnn.TrainRequest(
        network=network, inputs=inputs, folder=folder, validate=validate, images=images,
        classes=classes, epochs=epochs, batch_size=batch_size, seed=seed, shuffle=not no_shuffle,
        backend=backend, dtype=dtype, threads=threads, optimizer=optimizer, rate=lr,
        momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, betas=betas,
        epsilon=epsilon, schedule=schedule, warm_up=warm_up, clip=clip, weights=weights,
        checkpoint=checkpoint, resume=resume, every=every, plot=plot, algorithm=algorithm,
        grid=grid, memory_per_rank=memory_per_rank, concurrent=concurrent,
        concurrent_plan=concurrent_plan, workspace_limit=workspace_limit,
    )  # fmt: skip
    settings = request.settings()
    request.check_call()
    if ranks is not None:
        request.check_alone()
        start_ranks(ranks)
    _tell(_cnn.train(request, settings), json)


@app.command("infer")
@told_once()
def infer(
    network: NetworkArgument,
    *,
    inputs: InputsOption,
    folder: FolderOption = None,
    images: Annotated[
        int | None,
        typer.Option(
            "--images",
            metavar="N",
            help="Only the first N images.",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            "--mean",
            metavar="M,…",
            help="Of the pictures' channels, of numbers from 0 to 1 (default: what the checkpoint "
            "says, otherwise 0).",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            "--std",
            metavar="S,…",
            help="Deviations, as --mean (default: what the checkpoint says, otherwise 1).",
            show_default=False,
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Images at a time, of all ranks together.")
    ] = 256,
    backend: BackendOption = "auto",
    dtype: DtypeOption = "float32",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    weights: WeightsOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write the class of each image, from 0, a line for each (.txt), or as an array "
            "(.npy).",
            show_default=False,
            rich_help_panel=CHECKPOINTS_PANEL,
        ),
    ] = None,
    algorithm: AlgorithmOption = "auto",
    grid: GridOption = None,
    memory_per_rank: MemoryOption = None,
    concurrent: ConcurrentOption = False,
    concurrent_plan: ConcurrentPlanOption = None,
    workspace_limit: WorkspaceOption = None,
    ranks: RanksOption = None,
) -> None:
    """Look at pictures with a trained network; print accuracy, loss and rate."""
    from sparsednn.cli import _cnn_runs

    request = _cnn_runs.InferRequest(
        network=network, inputs=inputs, folder=folder, images=images, mean=mean, std=std,
        batch_size=batch_size, backend=backend, dtype=dtype, threads=threads, weights=weights,
        output=output, algorithm=algorithm, grid=grid, memory_per_rank=memory_per_rank,
        concurrent=concurrent, concurrent_plan=concurrent_plan, workspace_limit=workspace_limit,
    )  # fmt: skip
    request.check_call()
    if ranks is not None:
        request.check_alone()
        start_ranks(ranks)
    _tell(_cnn_runs.infer(request), json)


@app.command("bench")
@told_once()
def bench(
    network: NetworkArgument,
    *,
    batch_size: BatchOption = 64,
    steps: Annotated[int, typer.Option("--steps", help="Steps that are measured.")] = 10,
    image: ImageOption = None,
    classes: ClassesOption = None,
    inference: InferenceOption = False,
    backend: BackendOption = "auto",
    dtype: DtypeOption = "float32",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    algorithm: AlgorithmOption = "auto",
    grid: GridOption = None,
    memory_per_rank: MemoryOption = None,
    ranks: RanksOption = None,
) -> None:
    """Measure steps on pictures made here; print images/s and where the time goes."""
    from sparsednn.cli import _cnn_runs

    request = _cnn_runs.BenchRequest(
        network=network, batch_size=batch_size, steps=steps, image=image, classes=classes,
        training=not inference, backend=backend, dtype=dtype, threads=threads,
        algorithm=algorithm, grid=grid, memory_per_rank=memory_per_rank,
    )  # fmt: skip
    request.check_call()
    if ranks is not None:
        start_ranks(ranks)
    _tell(_cnn_runs.bench(request), json)


app.command("lower")(lower)
app.command("concurrency")(told_once()(concurrency))


def _tell(summary: dict[str, Any] | None, json: bool) -> None:
    """Print what rank 0 has to say; the others have nothing."""
    from sparsednn.cli._cnn import print_summary

    if summary is None:
        return
    if json:
        print_json(summary)
    else:
        print_summary(summary)
