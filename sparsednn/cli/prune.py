"""``prune``: from a dense model to a sparse one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.cli._common import (
    BiasOption,
    FormatOption,
    JsonOption,
    LayersOption,
    ModelArgument,
    note,
    print_json,
    print_table,
)
from sparsednn.cli._reading import reads_models
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions
    from sparsednn.network import SparseNetwork


@reads_models
def prune(
    model: ModelArgument,
    *,
    options: ReadOptions,
    sparsity: Annotated[
        float,
        typer.Option(
            "--sparsity",
            help="Fraction of all weights that are to be zero, such as 0.9.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Where to write; the suffix chooses the format (.safetensors is ours).",
            show_default=False,
        ),
    ],
    scope: Annotated[
        str,
        typer.Option("--scope", help="global: one threshold; layer: each layer to the sparsity."),
    ] = "global",
    keep: Annotated[
        list[int] | None,
        typer.Option(
            "--keep",
            metavar="LAYER",
            help="Leave this layer (from 1) as it is. May be repeated.",
            show_default=False,
        ),
    ] = None,
    format: FormatOption = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
    json: JsonOption = False,
) -> None:
    """Set a network's smallest weights to zero and write the result; nothing is retrained."""
    from sparsednn import pruning
    from sparsednn.atomic import check_target
    from sparsednn.formats import check_target_format, write_network
    from sparsednn.sources import load_network

    # What is wrong with the call is told before anything is read.
    written = check_target_format(out, format)
    if os.path.exists(model) and out.exists() and out.samefile(model):
        raise UsageError(f"{out}: is the model itself, whose weights would be lost: choose another")
    if written == "native":
        check_target(out)
    if not 0.0 <= sparsity < 1.0:
        raise UsageError(f"--sparsity must be at least 0 and below 1, found {sparsity}")
    if scope not in pruning.SCOPES:
        raise UsageError(f"--scope {scope}: known are {', '.join(pruning.SCOPES)}")
    before = load_network(model, layers=layers, bias=bias, options=options)
    after = pruning.prune(before, sparsity, scope=scope, keep=keep or ())
    write_network(after, out, format=format)
    for number, layer in enumerate(after, 1):
        if not layer.nnz and before[number - 1].nnz:
            note(f"layer {number} has no weights left: its outputs no longer depend on the input")
    _print(before, after, out, json)


def _print(before: SparseNetwork, after: SparseNetwork, out: Path, json: bool) -> None:
    positions = sum(layer.n_out * layer.n_in for layer in after)
    pairs = list(zip(before, after, strict=True))
    if json:
        print_json(
            {
                "network": after.name,
                "out": str(out),
                "layers": len(after),
                "edges_before": before.edges,
                "edges": after.edges,
                "sparsity_before": 1 - before.edges / positions,
                "sparsity": 1 - after.edges / positions,
                "hash": after.hash,
                "layer": [
                    {
                        "n_out": new.n_out,
                        "n_in": new.n_in,
                        "nnz_before": old.nnz,
                        "nnz": new.nnz,
                        "density_before": old.summary.density,
                        "density": new.summary.density,
                    }
                    for old, new in pairs
                ],
            }
        )
        return
    print_table(
        [
            ("network", after.name),
            ("out", str(out)),
            ("edges", f"{before.edges:,} → {after.edges:,}"),
            ("sparsity", f"{1 - before.edges / positions:.3%} → {1 - after.edges / positions:.3%}"),
            ("hash", after.hash),
        ]
    )
    print(
        f"\n{'layer':>5} {'outputs':>9} {'inputs':>9} {'before':>12} {'after':>12} "
        f"{'density before':>15} {'after':>9}"
    )
    for number, (old, new) in enumerate(pairs, 1):
        print(
            f"{number:>5} {new.n_out:>9} {new.n_in:>9} {old.nnz:>12,} {new.nnz:>12,} "
            f"{old.summary.density:>15.3%} {new.summary.density:>9.3%}"
        )
