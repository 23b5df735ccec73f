"""``infer`` and ``demo``."""

from __future__ import annotations

import time
from contextlib import ExitStack
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
from sparsednn.cli._reading import reads_models
from sparsednn.errors import AnswerMismatchError, FormatError, UsageError

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions


@reads_models
def infer(
    model: ModelArgument,
    inputs: Annotated[
        str,
        typer.Option(
            "--inputs",
            metavar="INPUTS",
            help="Path (.tsv, .npz, .npy, .safetensors) or a name: graph-challenge:1024 (needs "
            "MNIST), digits:1024, mnist:train, mnist:test.",
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
    kernel: Annotated[str, typer.Option("--kernel", help="numba or reference.")] = "numba",
    threads: Annotated[
        int | None,
        typer.Option("--threads", help="Threads (default: all cores).", show_default=False),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option("--images", help="Only the first N images.", show_default=False),
    ] = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    mnist: MnistOption = None,
    json: JsonOption = False,
) -> None:
    """Run inputs through a network; print the categories' number and the rate."""
    from sparsednn.formats import read_categories, write_categories
    from sparsednn.inference import compare_categories
    from sparsednn.inference import infer as run_inference
    from sparsednn.kernels import get_kernel
    from sparsednn.outputs import check_outputs, output_sink
    from sparsednn.sources import load_inputs, load_network

    # What is wrong with the call is told before anything is read or run.
    if threads is not None and threads < 1:
        raise UsageError(f"--threads must be at least 1, found {threads}")
    check_outputs(categories_out, outputs_out, (model, inputs, truth))
    get_kernel(kernel)
    expected = None if truth is None else read_categories(truth)
    start = time.perf_counter()
    network = load_network(model, layers=layers, bias=bias, options=options)
    columns = load_inputs(inputs, n_features=network.n_in, mnist=mnist, images=images)
    read_seconds = time.perf_counter() - start
    if expected is not None and expected.size and int(expected[-1]) > columns.n_images:
        raise FormatError(
            f"{truth}: has image {int(expected[-1])}, but there are only {columns.n_images}"
        )
    with ExitStack() as stack:
        sink = None
        if outputs_out is not None:
            sink = stack.enter_context(output_sink(outputs_out, network.n_out, columns.n_images))
        result = run_inference(network, columns, kernel=kernel, threads=threads, sink=sink)
    found = result.categories + 1
    if categories_out is not None:
        write_categories(found, categories_out)

    difference = None
    verdict = None
    if expected is not None:
        difference = compare_categories(found, expected)
        verdict = "pass" if difference is None else "fail"
    summary: dict[str, Any] = {
        "network": network.name,
        "neurons": max(layer.n_out for layer in network),
        "layers": len(network),
        "edges": result.edges,
        "images": result.images,
        "threads": result.threads,
        "kernel": result.kernel,
        "seconds": {
            "read": read_seconds,
            "prepare": result.prepare_seconds,
            "infer": result.infer_seconds,
        },
        "edges_per_second": result.edges_per_second,
        "categories": int(found.size),
        "truth": verdict,
    }
    if json:
        print_json(summary)
    else:
        seconds = summary.pop("seconds")
        rows = [(name, _shown(value)) for name, value in summary.items()]
        rows[7:7] = [(f"seconds {name}", f"{value:.3f}") for name, value in seconds.items()]
        print_table(rows)
    if difference is not None:
        raise AnswerMismatchError(f"{truth}: {difference}")


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
