"""``simulate``: K ranks' layers and messages replayed as events, on a platform."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.cli._common import BiasOption, JsonOption, LayersOption, note, print_json
from sparsednn.cli._plan import (
    MACHINE_PANEL,
    SPARSE_PANEL,
    BatchOption,
    CacheOption,
    EffortOption,
    OptimizerOption,
    PlatformOption,
    QuietOption,
    SampledOption,
    SeedOption,
    head_lines,
    images_text,
    model_keys,
    requested,
    telling,
)
from sparsednn.cli._reading import reads_models

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

__all__ = ["simulate"]


@reads_models
def simulate(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="Path of a model file or folder, or a name such as graph-challenge:1024-120.",
            show_default=False,
        ),
    ],
    *,
    options: ReadOptions,
    platform: PlatformOption,
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks",
            metavar="RANGE",
            help="1..512: powers of two and both ends; or numbers: 1,2,4 (default: the parts of "
            "the file, or 1..512, or what the platform has).",
            show_default=False,
            rich_help_panel=MACHINE_PANEL,
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            "--partition",
            metavar="METHODS|FILE",
            help="Methods, with commas: random, cyclic, block, joint, kahypar, mtkahypar "
            "(default: random,joint); or a file that 'partition' wrote.",
            show_default=False,
            rich_help_panel=SPARSE_PANEL,
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="METHODS",
            help="More methods, beside those of --partition.",
            show_default=False,
            rich_help_panel=SPARSE_PANEL,
        ),
    ] = None,
    images: BatchOption = 1,
    training: Annotated[
        bool,
        typer.Option("--training", help="A step of training instead of a run of inference."),
    ] = False,
    threads: Annotated[
        int,
        typer.Option("--threads", help="Of each rank.", rich_help_panel=MACHINE_PANEL),
    ] = 1,
    optimizer: OptimizerOption = "sgd",
    effort: EffortOption = "quick",
    seed: SeedOption = 1,
    sampled: SampledOption = None,
    cache: CacheOption = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE",
            help="Write the ranks' time line in Chrome's format (.json); for one number of ranks "
            "and one method.",
            show_default=False,
        ),
    ] = None,
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
    """Replay ranks that are not there: every layer, every message; late ranks make others late.

    One image is a sparse matrix–vector product in each layer. The closed form stands beside
    each simulated time, and the critical path: what it would take if links were never shared.
    """
    from sparsednn.cli._targets import check_targets
    from sparsednn.costmodel.planning.request import refuse_dense
    from sparsednn.costmodel.planning.simulated import (
        simulated_methods,
        simulated_ranks,
        simulated_rows,
    )
    from sparsednn.costmodel.platform import load_platform

    refuse_dense(network)
    methods = simulated_methods(partition, compare)
    request, _ = requested(
        network, options, memory_per_rank=None, batch=images, plot=plot, training=training,
        threads=threads, optimizer=optimizer, partition=methods, effort=effort, seed=seed,
        cache=cache, layers=layers, sampled=sampled, bias=bias, image=None,
    )  # fmt: skip
    machine = load_platform(platform)
    numbers = simulated_ranks(ranks, request, machine, traced=trace is not None)
    for number in numbers:
        machine.check_ranks(number)
    check_targets(network, {"--plot": plot, "--trace": trace}, [Path(platform)])
    with telling(quiet) as (report, warn):
        model = request.sparse(report=report, warn=warn)
        rows = simulated_rows(model, machine, numbers, images, report=report, trace=trace)
    if plot is not None:
        from sparsednn.costmodel.planning.plots import plot_simulated

        plot_simulated(rows, plot, title=f"{model.name} on {machine.name}, {images_text(images)}")
    if json:
        print_json(
            {**model_keys(model, machine, images), "threads": threads,
             "rows": [row.as_json() for row in rows]}
        )  # fmt: skip
        return
    from sparsednn.costmodel.planning.report import simulated_table

    print("\n".join([*head_lines(model, machine, images), "", *simulated_table(rows)]))
    for path in (plot, trace):
        if path is not None and not quiet:
            note(f"{path}: written")
