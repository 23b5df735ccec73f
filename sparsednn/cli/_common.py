"""What the commands share: messages on stderr, results on stdout, option types."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "BiasOption",
    "FormatOption",
    "JsonOption",
    "LayersOption",
    "MnistOption",
    "ModelArgument",
    "note",
    "print_json",
    "print_table",
]

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Path of a model file or folder, or a name such as graph-challenge:1024-120, "
        "mlp:784-300-100-10@0.05 (random, density 5%) or radixnet:784-1024x4-10.",
        show_default=False,
    ),
]
LayersOption = Annotated[
    int | None,
    typer.Option("--layers", help="Only the first N layers.", show_default=False),
]
BiasOption = Annotated[
    float | None,
    typer.Option(
        "--bias",
        help="Bias of all neurons of a Graph Challenge folder (default: the official one).",
        show_default=False,
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        help="native, graph-challenge, npz or matrix-market (default: by OUT's suffix).",
        show_default=False,
    ),
]
MnistOption = Annotated[
    Path | None,
    typer.Option(
        "--mnist",
        metavar="FOLDER",
        help="Folder with the MNIST idx files, plain or gzipped (default: SPARSEDNN_DATA).",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def note(text: str) -> None:
    """Print a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)


def print_json(value: dict[str, Any]) -> None:
    """Print a result for programs."""
    print(json.dumps(value, indent=2))


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print a result for people: one name and one value per line, aligned."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
