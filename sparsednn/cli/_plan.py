"""What ``plan``, ``sweep`` and ``simulate`` share: option types, the request, progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.cli._common import note

if TYPE_CHECKING:
    from sparsednn.costmodel.planning.request import ModelRequest
    from sparsednn.costmodel.planning.rows import Model
    from sparsednn.costmodel.platform import Platform
    from sparsednn.formats import ReadOptions

MACHINE_PANEL = "The machine"
SPARSE_PANEL = "Sparse networks"
DENSE_PANEL = "Dense networks"

PlannedArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A sparse network: a path, or a name such as graph-challenge:1024-120 or "
        "mlp:784-300-10@0.05. Or a dense one: vgg16, resnet50, …, or a graph (.json).",
        show_default=False,
    ),
]
PlatformOption = Annotated[
    str,
    typer.Option(
        "--platform",
        metavar="NAME|FILE",
        help="two-core-server, node-64, gpu-node-8, infiniband-128, or a file that 'calibrate' "
        "wrote (.toml).",
        show_default=False,
        rich_help_panel=MACHINE_PANEL,
    ),
]
BatchOption = Annotated[
    int,
    typer.Option(
        "--batch", "--images", metavar="N", help="Images of a run, or of a step, of all ranks."
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory-per-rank",
        metavar="AMOUNT",
        help="What a rank may use, such as 2G (default: its share of the platform's memory).",
        show_default=False,
        rich_help_panel=MACHINE_PANEL,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        help="Of each rank (default: 1, or its share of the node's cores, whichever is quicker).",
        show_default=False,
        rich_help_panel=MACHINE_PANEL,
    ),
]
TrainingOption = Annotated[
    bool | None,
    typer.Option(
        "--training/--inference",
        help="A step of training, or a run of inference (default: inference of sparse networks, "
        "training of dense ones).",
        show_default=False,
    ),
]
OptimizerOption = Annotated[
    str, typer.Option("--optimizer", help="sgd, momentum or adam; for --training.")
]
PartitionOption = Annotated[
    str | None,
    typer.Option(
        "--partition",
        metavar="METHODS",
        help="Methods to try, with commas: cyclic, block, random, joint, kahypar, mtkahypar "
        "(default: the first four); or a file that 'partition' wrote.",
        show_default=False,
        rich_help_panel=SPARSE_PANEL,
    ),
]
EffortOption = Annotated[
    str,
    typer.Option(
        "--effort",
        help="How long joint searches: quick, default or thorough.",
        rich_help_panel=SPARSE_PANEL,
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", help="Of partitions.", rich_help_panel=SPARSE_PANEL)
]
SampledOption = Annotated[
    int | None,
    typer.Option(
        "--layers-sampled",
        metavar="N",
        help="Partition only the first N layers, and repeat the later of them (0: all; default: "
        "about 24, where the layers are all alike).",
        show_default=False,
        rich_help_panel=SPARSE_PANEL,
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help="Keep partitions there for the next time.",
        show_default=False,
        rich_help_panel=SPARSE_PANEL,
    ),
]
AlgorithmOption = Annotated[
    str | None,
    typer.Option(
        "--algorithm",
        metavar="NAMES",
        help="Algorithms to try, with commas (default: all).",
        show_default=False,
        rich_help_panel=DENSE_PANEL,
    ),
]
ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="CxHxW",
        help="Size of the images, for networks by name (default: what is usual).",
        show_default=False,
        rich_help_panel=DENSE_PANEL,
    ),
]
ClassesOption = Annotated[
    int | None,
    typer.Option(
        "--classes", help="Of networks by name.", show_default=False, rich_help_panel=DENSE_PANEL
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]

Report = Callable[[str, float], None]
Warn = Callable[[str], None]


def requested(
    model: str,
    options: ReadOptions,
    *,
    memory_per_rank: str | None,
    batch: int,
    plot: Path | None,
    image: str | None,
    **typed: Any,
) -> tuple[ModelRequest, int | None]:
    """Return the request and the limit in bytes; tells what is wrong before anything is read."""
    from sparsednn.cli._cnn import image_shape
    from sparsednn.costmodel.planning.request import ModelRequest
    from sparsednn.dense.planning.request import memory_bytes
    from sparsednn.errors import UsageError
    from sparsednn.formats import ReadOptions as Read

    limit = None if memory_per_rank is None else memory_bytes(memory_per_rank)
    if batch < 1:
        raise UsageError(f"--batch must be at least 1, found {batch}")
    request = ModelRequest(
        model=model,
        options=None if options == Read() else options,
        image=image_shape(image),
        **typed,
    )
    request.check()
    if plot is not None:
        from sparsednn.pictures import check_picture

        check_picture(plot)
    return request, limit


@contextmanager
def telling(quiet: bool) -> Iterator[tuple[Report | None, Warn | None]]:
    """Yield what takes progress and warnings; nothing of it where it is to be quiet."""
    if quiet:
        yield None, None
        return
    from sparsednn.cli._progress import Progress

    with Progress() as progress:

        def warn(line: str) -> None:
            progress.clear()
            note(f"warning: {line}")

        yield progress, warn


def model_keys(network: Model, platform: Platform, images: int) -> dict[str, Any]:
    """What JSON says of a network and where it runs."""
    return {
        "model": network.name,
        "platform": platform.name,
        "training": network.training,
        "images": images,
        "notes": list(network.notes),
    }


def images_text(images: int) -> str:
    """A number of images.

    >>> images_text(1), images_text(2000)
    ('1 image', '2,000 images')
    """
    return f"{images:,} image{'s' * (images != 1)}"


def head_lines(network: Model, platform: Platform, images: int | None) -> list[str]:
    """The same for people."""
    what = "a training step" if network.training else "inference"
    of = "" if images is None else f" of {images_text(images)}"
    return [f"{network.name} on {platform.name}: {what}{of}", *network.notes]
