"""``sweep``: how a network's predicted time depends on one figure of the machine or the run."""

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
    model_keys,
    requested,
    telling,
)
from sparsednn.cli._reading import reads_models

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

__all__ = ["sweep"]


@reads_models
def sweep(
    model: PlannedArgument,
    *,
    options: ReadOptions,
    axis: Annotated[
        str,
        typer.Option(
            "--axis",
            help="batch, flops, memory-bandwidth, link-bandwidth, link-latency or nodes.",
            show_default=False,
        ),
    ],
    values: Annotated[
        str,
        typer.Option(
            "--values",
            metavar="LIST",
            help="Factors of the platform's own figure; for batch and nodes numbers, or a range "
            "such as 1..1024.",
            show_default=False,
        ),
    ],
    platform: PlatformOption,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks",
            metavar="K",
            help="How many (not with --axis nodes: nodes are full).",
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
            help="Draw time over the axis, and what it is spent on (.svg, .png or .pdf).",
            show_default=False,
        ),
    ] = None,
    quiet: QuietOption = False,
    json: JsonOption = False,
) -> None:
    """Vary one axis and predict the time: of the best configuration, and of every strategy."""
    from sparsednn.cli._targets import check_targets
    from sparsednn.costmodel.planning.sweep import check_axis, sweep_axis
    from sparsednn.costmodel.platform import load_platform

    request, limit = requested(
        model, options, memory_per_rank=memory_per_rank, batch=batch, plot=plot,
        training=training, threads=threads, optimizer=optimizer, partition=partition,
        effort=effort, seed=seed, cache=cache, layers=layers, sampled=sampled, bias=bias,
        algorithm=algorithm, image=image, classes=classes,
    )  # fmt: skip
    chosen = check_axis(axis, values, ranks)
    machine = load_platform(platform)
    if ranks is not None:
        machine.check_ranks(ranks)
    check_targets(model, {"--plot": plot}, [Path(platform)])
    with telling(quiet) as (report, warn):
        network = request.make(report=report, warn=warn)
        rows = sweep_axis(
            network, machine, axis, chosen, ranks, batch, memory_per_rank=limit, report=report
        )
    where = "" if ranks is None else f", {ranks:,} rank{'s' * (ranks > 1)}"
    if plot is not None:
        from sparsednn.costmodel.planning.plots import plot_sweep

        plot_sweep(rows, axis, plot, title=f"{network.name} on {machine.name}{where}")
    if json:
        print_json(
            {**model_keys(network, machine, batch), "axis": axis, "ranks": ranks,
             "memory_per_rank": limit, "rows": [row.as_json() for row in rows]}
        )  # fmt: skip
        return
    from sparsednn.costmodel.planning.report import sweep_table

    first, *notes = head_lines(network, machine, None if axis == "batch" else batch)
    print("\n".join([first + where, *notes, "", *sweep_table(rows, axis)]))
    if plot is not None and not quiet:
        note(f"{plot}: written")
