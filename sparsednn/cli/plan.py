"""``plan``: the best configuration of a network for each number of ranks, on a platform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.cli._common import BiasOption, JsonOption, LayersOption, note, print_json
from sparsednn.cli._plan import (
    MACHINE_PANEL,
    AlgorithmOption,
    BatchOption,
    CacheOption,
    ClassesOption,
    EffortOption,
    ImageOption,
    MemoryOption,
    OptimizerOption,
    PartitionOption,
    PlannedArgument,
    PlatformOption,
    QuietOption,
    SampledOption,
    SeedOption,
    ThreadsOption,
    TrainingOption,
    head_lines,
    images_text,
    model_keys,
    requested,
    telling,
)
from sparsednn.cli._reading import reads_models

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

__all__ = ["plan"]


@reads_models
def plan(
    model: PlannedArgument,
    *,
    options: ReadOptions,
    platform: PlatformOption,
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks",
            metavar="RANGE",
            help="1..1024: powers of two and both ends; or numbers: 1,2,4 (default: 1..1024, or "
            "what the platform has).",
            show_default=False,
            rich_help_panel=MACHINE_PANEL,
        ),
    ] = None,
    batch: BatchOption = 256,
    memory_per_rank: MemoryOption = None,
    threads: ThreadsOption = None,
    training: TrainingOption = None,
    optimizer: OptimizerOption = "sgd",
    partition: PartitionOption = None,
    effort: EffortOption = "quick",
    seed: SeedOption = 1,
    sampled: SampledOption = None,
    cache: CacheOption = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    algorithm: AlgorithmOption = None,
    image: ImageOption = None,
    classes: ClassesOption = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw time and speed-up over the ranks (.svg, .png or .pdf).",
            show_default=False,
        ),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Predict how a network runs on a platform, and which configuration is best.

    Sparse networks: grids of groups × parts, methods of partitions, threads; dense ones:
    algorithms and their grids. Nothing is run, and no MPI is needed.
    """
    from sparsednn.cli._targets import check_targets
    from sparsednn.costmodel.planning.ranks import parse_ranks, ranks_up_to
    from sparsednn.costmodel.planning.rows import plan_ranks
    from sparsednn.costmodel.platform import load_platform

    request, limit = requested(
        model, options, memory_per_rank=memory_per_rank, batch=batch, plot=plot,
        training=training, threads=threads, optimizer=optimizer, partition=partition,
        effort=effort, seed=seed, cache=cache, layers=layers, sampled=sampled, bias=bias,
        algorithm=algorithm, image=image, classes=classes,
    )  # fmt: skip
    asked = None if ranks is None else parse_ranks(ranks)
    machine = load_platform(platform)
    numbers = asked or ranks_up_to(1024, machine)
    for number in numbers:
        machine.check_ranks(number)
    check_targets(model, {"--plot": plot}, [Path(platform)])
    with telling(quiet) as (report, warn):
        network = request.make(report=report, warn=warn)
        rows = plan_ranks(network, machine, numbers, batch, memory_per_rank=limit, report=report)
    if plot is not None:
        from sparsednn.costmodel.planning.plots import plot_plan

        plot_plan(rows, plot, title=f"{network.name} on {machine.name}, {images_text(batch)}")
    if json:
        print_json(
            {**model_keys(network, machine, batch), "memory_per_rank": limit,
             "rows": [row.as_json() for row in rows]}
        )  # fmt: skip
        return
    from sparsednn.costmodel.planning.report import plan_table

    print("\n".join([*head_lines(network, machine, batch), "", *plan_table(rows)]))
    if plot is not None and not quiet:
        note(f"{plot}: written")
