"""``partition``, ``evaluate`` and ``hypergraph``: who owns which neuron."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.cli._common import (
    BiasOption,
    JsonOption,
    LayersOption,
    ModelArgument,
    note,
    print_json,
    print_table,
)
from sparsednn.cli._reading import reads_models
from sparsednn.cli._targets import check_targets
from sparsednn.errors import InputError, UsageError

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions
    from sparsednn.network import SparseNetwork
    from sparsednn.partitioners import Compared, Options

_PARTITIONERS = "kahypar, mtkahypar, block, cyclic, random, file or command"

PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        help="Draw words per layer and who sends to whom (.png, .svg or .pdf).",
        show_default=False,
    ),
]


@reads_models
def partition(
    model: ModelArgument,
    *,
    options: ReadOptions,
    parts: Annotated[int, typer.Option("--parts", metavar="K", help="Number of parts (ranks).")],
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="FILE",
            help="Write the partition (.npz); with --compare that of joint.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="joint: all layers together; multiphase: layer after layer with one "
            "partitioner (default: joint, or multiphase if --partitioner is given).",
            show_default=False,
        ),
    ] = None,
    partitioner: Annotated[
        str | None,
        typer.Option(
            "--partitioner",
            metavar="NAME",
            help=f"{_PARTITIONERS} (default: kahypar; for joint those that are installed).",
            show_default=False,
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="Of the partitioner.", show_default=False),
    ] = None,
    rows: Annotated[
        bool,
        typer.Option(
            "--rows",
            help="multiphase: every row by itself, as in the paper (otherwise rows of equal "
            "pattern stay together where the balance allows: quicker, and no worse).",
        ),
    ] = False,
    imbalance: Annotated[
        float,
        typer.Option(
            "--imbalance", help="How much heavier than the mean a layer's heaviest part may be."
        ),
    ] = 0.03,
    seed: Annotated[int, typer.Option("--seed", help="The same seed, the same partition.")] = 1,
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Threads (default: all cores).", show_default=False),
    ] = None,
    effort: Annotated[
        str, typer.Option("--effort", help="How long joint searches: quick, default or thorough.")
    ] = "default",
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="One table of block, cyclic, random, every partitioner and joint."
        ),
    ] = False,
    parts_from: Annotated[
        Path | None,
        typer.Option(
            "--parts-from",
            metavar="FOLDER",
            help="Of the partitioner file: layer-1.part, layer-2.part, …",
            show_default=False,
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--command",
            metavar="TEMPLATE",
            help="Of the partitioner command: a program with {hgr}, {fix}, {parts}, "
            "{imbalance}, {seed}, {out} in it, such as 'shmetis {hgr} {fix} {parts} 5'.",
            show_default=False,
        ),
    ] = None,
    allow_dense: Annotated[
        bool, typer.Option("--allow-dense", help="Also a model in which no weight is zero.")
    ] = False,
    plot: PlotOption = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress and no warnings on standard error.")
    ] = False,
    native_output: Annotated[
        bool,
        typer.Option(
            "--native-output",
            help="Show on standard error what partitioners print; it is silenced otherwise.",
        ),
    ] = False,
    layers: LayersOption = None,
    bias: BiasOption = None,
    json: JsonOption = False,
) -> None:
    """Decide which part (rank) owns which neuron, so that few words have to be sent.

    A word is one activation of one image that a part sends to another.
    """
    from sparsednn.cli._progress import Progress
    from sparsednn.partitioners import SOLVERS, Options, report
    from sparsednn.partitioners import compare as compare_all
    from sparsednn.partitioners.balance import layer_balance
    from sparsednn.pruning import is_dense
    from sparsednn.sources import load_network

    # What is wrong with the call is told before anything is read.
    if quiet and native_output:
        raise UsageError("--quiet and --native-output exclude each other")
    if compare:
        _refuse_with_compare(
            {"--method": method, "--partitioner": partitioner, "--preset": preset,
             "--parts-from": parts_from, "--command": command}
        )  # fmt: skip
    partitioner = _partitioner(partitioner, parts_from, command)
    method = method or ("joint" if partitioner is None else "multiphase")
    wanted = Options(
        parts, imbalance=imbalance, seed=seed, threads=threads, preset=preset, rows=rows,
        effort=effort, quiet=not native_output, path=parts_from, command=command,
    )  # fmt: skip
    if not compare:
        _check_method(method, partitioner, wanted)
    _check_plot(plot)
    check_targets(model, {"--out": out, "--plot": plot})

    network = load_network(model, layers=layers, bias=bias, options=options)
    if is_dense(network) and not allow_dense:
        raise InputError(
            f"{model}: no weight is zero, so that every part needs nearly every word: prune it "
            f"first ('sparsednn prune {model} --sparsity 0.9 --out FILE'), or --allow-dense"
        )
    with ExitStack() as stack:
        if not quiet:
            progress = stack.enter_context(Progress(len(network), frozenset(SOLVERS)))

            def warn(line: str) -> None:
                progress.clear()
                note(f"warning: {line}")

            for line in layer_balance(network, parts, imbalance).warnings:
                warn(line)
            wanted = replace(wanted, report=progress, warn=warn)
        if compare:
            results = list(compare_all(network, wanted))
        else:
            results = [report.partitioned(network, wanted, method=method, partitioner=partitioner)]
    best = report.best_of(results)
    if out is not None:
        best.partition.save(out)
    _draw(results, plot)
    if json:
        print_json({**report.document(network, results), "out": None if out is None else str(out)})
        return
    _print_header(network, results[0])
    print("\n".join(["", *report.table(network, results), "", report.training_note(results)]))
    if out is not None and not quiet:
        note(f"{out}: {best.partition.parts} parts, {best.method} ({best.partitioner})")


@reads_models
def evaluate(
    model: ModelArgument,
    partition: Annotated[
        Path, typer.Argument(metavar="PARTITION", help="A file that 'partition' wrote.")
    ],
    *,
    options: ReadOptions,
    per_layer: Annotated[
        bool, typer.Option("--per-layer", help="Also everything about each layer.")
    ] = False,
    plot: PlotOption = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    json: JsonOption = False,
) -> None:
    """Count the words, messages and balance of a partition file."""
    from sparsednn.partitioners import read_partition, report
    from sparsednn.sources import load_network

    _check_plot(plot)
    check_targets(model, {"--plot": plot}, (partition,))
    found = read_partition(partition)
    network = load_network(model, layers=layers, bias=bias, options=options)
    found.check(network, file=partition)
    result = report.evaluated(network, found)
    _draw([result], plot)
    if json:
        print_json(report.document(network, [result], timed=False, per_layer=per_layer))
        return
    _print_header(network, result)
    lines = ["", *report.table(network, [result], timed=False), "", report.training_note([result])]
    if per_layer:
        lines += ["", *report.layer_table(result.stats, full=True)]
    print("\n".join(lines))


@reads_models
def hypergraph(
    model: ModelArgument,
    *,
    options: ReadOptions,
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            metavar="FOLDER",
            help="Where to write layer-1.hgr, layer-1.fix, …",
            show_default=False,
        ),
    ],
    parts: Annotated[
        int | None,
        typer.Option(
            "--parts",
            metavar="K",
            help="Number of parts (default: those of --partition).",
            show_default=False,
        ),
    ] = None,
    partition: Annotated[
        Path | None,
        typer.Option(
            "--partition",
            metavar="FILE",
            help="A partition: fixed vertices then stand for the owners of each layer's inputs.",
            show_default=False,
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option("--layer", help="Only this layer, from 1.", show_default=False),
    ] = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    json: JsonOption = False,
) -> None:
    """Write the layers' hypergraphs for other partitioners, in hMetis' format.

    A vertex is a row (weight: its nonzeros), a net a column; nets of fewer than two pins are left
    out, as they cannot be cut. 'partition --parts-from FOLDER' reads layer-1.part, … back.
    """
    from sparsednn.partitioners import read_partition
    from sparsednn.partitioners.export import write_hypergraphs
    from sparsednn.sources import load_network

    given = None if partition is None else read_partition(partition)
    if parts is None:
        if given is None:
            raise UsageError("--parts is needed, or a --partition to take them from")
        parts = given.parts
    network = load_network(model, layers=layers, bias=bias, options=options)
    if given is not None:
        given.check(network, file=partition or "")
    written = write_hypergraphs(network, parts, out, partition=given, layer=layer)
    first = layer or 1
    if json:
        rows = [
            {"layer": number, "vertices": graph.n_vertices, "nets": graph.n_nets,
             "pins": graph.n_pins, "fixed": int((graph.fixed >= 0).sum())}
            for number, graph in enumerate(written, first)
        ]  # fmt: skip
        print_json({"network": network.name, "hash": network.hash, "parts": parts,
                    "out": str(out), "layers": rows})  # fmt: skip
        return
    print_table(
        [
            ("network", network.name),
            ("parts", str(parts)),
            ("out", f"{out} ({len(written)} layers, .hgr and .fix)"),
            ("vertices", f"{sum(graph.n_vertices for graph in written):,}"),
            ("nets", f"{sum(graph.n_nets for graph in written):,}"),
            ("pins", f"{sum(graph.n_pins for graph in written):,}"),
        ]
    )


def _refuse_with_compare(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--compare runs every method and partitioner: it takes no {name}")


def _partitioner(name: str | None, parts_from: Path | None, command: str | None) -> str | None:
    """The partitioner that is meant: --parts-from and --command say it, too."""
    for kind, option, value in (
        ("file", "--parts-from", parts_from),
        ("command", "--command", command),
    ):
        if value is not None and name not in (None, kind):
            raise UsageError(f"{option} belongs to '--partitioner {kind}', not to '{name}'")
        if value is None and name == kind:
            raise UsageError(f"--partitioner {kind} needs {option}")
        if value is not None:
            name = kind
    return name


def _check_method(method: str, partitioner: str | None, options: Options) -> None:
    """Raise what is wrong with the names, or not installed."""
    from sparsednn.partitioners import METHODS, get_solver

    if method not in METHODS:
        raise UsageError(f"--method {method}: known are {', '.join(METHODS)}")
    if method == "joint" and partitioner is None:
        if options.preset is not None:
            raise UsageError("--preset belongs to a partitioner: name one with --partitioner")
        return
    name = partitioner or "kahypar"
    get_solver(
        name,
        preset=options.preset,
        threads=options.threads if name == "mtkahypar" else None,
        path=options.path,
        command=options.command,
    )


def _check_plot(path: Path | None) -> None:
    if path is not None:
        from sparsednn.pictures import check_picture

        check_picture(path)


def _draw(results: Sequence[Compared], path: Path | None) -> None:
    if path is not None:
        from sparsednn.partitioners.plot import plot_comparison

        plot_comparison(results, path)


def _print_header(network: SparseNetwork, result: Compared) -> None:
    meta = result.partition.meta
    print_table(
        [
            ("network", f"{network.name} ({len(network)} layers, {network.edges:,} edges)"),
            ("hash", network.hash),
            ("parts", f"{result.partition.parts:,}"),
            ("imbalance", f"{meta.imbalance:g} allowed"),
            ("seed", str(meta.seed)),
        ]
    )
