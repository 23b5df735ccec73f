"""``infer`` and ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.cli._common import (
    BiasOption,
    JsonOption,
    LayersOption,
    MnistOption,
    ModelArgument,
    note,
    print_json,
    print_table,
)
from sparsednn.cli._device import DeviceOption, KernelOption, TransportOption
from sparsednn.cli._ranks import (
    RANKS_PANEL,
    GridOption,
    RanksOption,
    start_ranks,
    told_once,
    under_launcher,
)
from sparsednn.cli._reading import reads_models
from sparsednn.errors import AnswerMismatchError

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions


@told_once()
@reads_models
def infer(
    model: ModelArgument,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs",
            metavar="INPUTS",
            help="Path (.tsv, .npz, .npy, .safetensors) or a name: graph-challenge:1024 (needs "
            "MNIST), digits:1024, digits:test, mnist:train, mnist:test.",
            show_default=False,
        ),
    ],
    *,
    options: ReadOptions,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth", help="Categories file to compare with; exit code 4 if they differ."
        ),
    ] = None,
    categories_out: Annotated[
        Path | None, typer.Option("--categories-out", help="Write the categories, 1-based.")
    ] = None,
    outputs_out: Annotated[
        Path | None,
        typer.Option("--outputs-out", help="Write the outputs: .npy (dense), .npz or .tsv."),
    ] = None,
    kernel: KernelOption = None,
    device: DeviceOption = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            help="On a GPU: how weights and activations are stored, fp32, fp16 or bf16; sums are "
            "fp32. What fp16 and bf16 lose is measured on a sample, and told.",
        ),
    ] = "fp32",
    merge: Annotated[
        bool,
        typer.Option(
            "--merge/--no-merge",
            help="On a GPU: compute columns that have become equal once, or each (to measure it).",
        ),
    ] = True,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", help="Threads of each rank (default: cores / ranks).", show_default=False
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", help="Only the first N images.", show_default=False),
    ] = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    mnist: MnistOption = None,
    partition: Annotated[
        Path | None,
        typer.Option(
            "--partition",
            help="Who owns which neuron, by 'sparsednn partition'; as many ranks as parts, or a "
            "multiple.",
            show_default=False,
            rich_help_panel=RANKS_PANEL,
        ),
    ] = None,
    grid: GridOption = None,
    ranks: RanksOption = None,
    transport: TransportOption = "auto",
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            help="Write what each rank does when, for ui.perfetto.dev (JSON).",
            show_default=False,
            rich_help_panel=RANKS_PANEL,
        ),
    ] = None,
    overlap: Annotated[
        bool,
        typer.Option(
            "--overlap/--no-overlap",
            help="Multiply owned columns while messages travel, or wait first (to measure it).",
            rich_help_panel=RANKS_PANEL,
        ),
    ] = True,
    drop: Annotated[
        bool,
        typer.Option(
            "--drop/--no-drop",
            help="Drop columns that have died, or send and multiply them, too.",
            rich_help_panel=RANKS_PANEL,
        ),
    ] = True,
    json: JsonOption = False,
) -> None:
    """Run inputs through a network; print the categories' number and the rate."""
    from sparsednn.cli._infer import Request, infer_here, infer_on_ranks

    request = Request(
        model, inputs, options, truth, categories_out, outputs_out, kernel, threads, images,
        layers, bias, mnist, partition, grid, trace, overlap, drop, device, precision, merge,
        transport,
    )  # fmt: skip
    request.check_call()
    if ranks is not None:
        start_ranks(ranks)
    run = infer_on_ranks if partition or grid or under_launcher() else infer_here
    told = run(request)
    if told is None:  # a rank that has nothing to say
        return
    summary, difference = told
    if json:
        print_json(summary)
    else:
        print_table(_rows(summary))
    if difference is not None:
        raise AnswerMismatchError(f"{truth}: {difference}")


def _rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The table for people; what is known of single layers is for programs."""
    rows: list[tuple[str, str]] = []
    for name, value in summary.items():
        if name == "layer_seconds":
            rows += [(f"seconds {phase}", _seconds(sum(one))) for phase, one in value.items()]
        elif isinstance(value, dict):
            rows += [(f"{name} {part}", _seconds(number)) for part, number in value.items()]
        else:
            rows.append((name, _shown(value)))
    return rows


def _seconds(value: float) -> str:
    """To the millisecond, and finer where that would be nothing.

    >>> [_seconds(1234.5678), _seconds(0.25), _seconds(0.000123456), _seconds(0.0)]
    ['1234.568', '0.250', '0.000123', '0.000']
    """
    return f"{value:.3f}" if value >= 0.1 or not value else f"{value:.3g}"


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    if isinstance(value, float):
        return f"{value:.3e}" if value >= 1e6 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def demo(json: JsonOption = False) -> None:
    """Generate the official 1024x120 network, run the digits through it, check the answer."""
    from sparsednn.demo import run_demo

    result = run_demo(progress=note)
    if json:
        print_json(result)
    else:
        print_table([(name.replace("_", " "), _shown(value)) for name, value in result.items()])
    if result["answer"] != "pass":
        raise AnswerMismatchError("the numba kernel's categories differ from the reference's")
