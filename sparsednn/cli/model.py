"""``inspect`` and ``convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsednn.amounts import bytes_text
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

if TYPE_CHECKING:
    from sparsednn.formats import ReadOptions

_SHOWN_LAYERS = 12


@reads_models
def inspect(
    model: ModelArgument,
    *,
    options: ReadOptions,
    layers: LayersOption = None,
    bias: BiasOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Read and check all weights, and compute the hash.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Show a network's layers, size and content hash."""
    from sparsednn.sources import summarize

    found = summarize(model, layers=layers, bias=bias, options=options, check=check)
    edges = sum(layer.nnz for layer in found.layers)
    if json:
        rows: list[dict[str, Any]] = [
            {
                "n_out": layer.n_out,
                "n_in": layer.n_in,
                "nnz": layer.nnz,
                "density": layer.density,
                "activation": layer.activation,
                "bias_min": layer.bias_min,
                "bias_max": layer.bias_max,
            }
            for layer in found.layers
        ]
        print_json(
            {
                "network": found.name,
                "layers": len(found.layers),
                "inputs": found.layers[0].n_in,
                "outputs": found.layers[-1].n_out,
                "edges": edges,
                "bytes": found.nbytes,
                "hash": found.hash,
                "layer": rows,
            }
        )
        return
    print_table(
        [
            ("network", found.name),
            ("layers", str(len(found.layers))),
            ("inputs", str(found.layers[0].n_in)),
            ("outputs", str(found.layers[-1].n_out)),
            ("edges", f"{edges:,}"),
            ("memory", bytes_text(found.nbytes)),
            ("hash", found.hash or "not computed (--check does)"),
        ]
    )
    print(
        f"\n{'layer':>5} {'outputs':>9} {'inputs':>9} {'nonzeros':>12} {'density':>9}  activation"
    )
    count = len(found.layers)
    for index, layer in enumerate(found.layers):
        if count > _SHOWN_LAYERS and _SHOWN_LAYERS // 2 <= index < count - _SHOWN_LAYERS // 2:
            if index == _SHOWN_LAYERS // 2:
                print(f"{'…':>5} ({count - _SHOWN_LAYERS} more; --json lists all)")
            continue
        print(
            f"{index + 1:>5} {layer.n_out:>9} {layer.n_in:>9} {layer.nnz:>12,} "
            f"{layer.density:>9.3%}  {layer.activation}"
        )


@reads_models
def convert(
    model: ModelArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT",
            help="Where to write; the suffix chooses the format (.safetensors is ours).",
            show_default=False,
        ),
    ],
    *,
    options: ReadOptions,
    format: FormatOption = None,
    layers: LayersOption = None,
    bias: BiasOption = None,
) -> None:
    """Write a network in another format."""
    from sparsednn.formats import check_target_format, write_network
    from sparsednn.sources import load_network

    check_target_format(out, format)
    network = load_network(model, layers=layers, bias=bias, options=options)
    write_network(network, out, format=format)
    note(f"{out}: {len(network)} layers, {network.edges:,} edges, hash {network.hash[:16]}…")
