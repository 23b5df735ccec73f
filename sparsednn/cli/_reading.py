"""The options for reading checkpoints, once for all commands that take a MODEL.

A command takes one parameter ``options: ReadOptions`` and is decorated with `reads_models`; on the
command line it has the options of `_declare` instead, in a panel of their own in ``--help``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

__all__ = ["reads_models"]

_PANEL = "Reading checkpoints (.safetensors, .pt, .pth, shards)"


def _declare(
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            metavar="PATTERN",
            help="Read only layers with such names, in this order: a glob ('classifier.*'), "
            "re:REGEX, or !PATTERN to leave out. May be repeated.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    activation: Annotated[
        str | None,
        typer.Option(
            "--activation",
            help="Of the hidden layers: relu (default), clamped_relu:X, sigmoid, tanh, identity.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    output_activation: Annotated[
        str | None,
        typer.Option(
            "--output-activation",
            help="Of the last layer: identity (default), softmax, or as for --activation.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    transposed: Annotated[
        bool,
        typer.Option(
            "--transposed",
            help="Matrices are stored (inputs, outputs), as in Keras and GPT-2.",
            rich_help_panel=_PANEL,
        ),
    ] = False,
    conv: Annotated[
        str | None,
        typer.Option(
            "--conv",
            metavar="matrix",
            help="matrix: read kernels (k, c, r, s) as matrices (k, c·r·s).",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            "--input-size",
            metavar="HxW",
            help="Size of the images (or CxHxW): read convolutions as whole sparse matrices.",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    conv_stride: Annotated[
        str | None,
        typer.Option(
            "--conv-stride",
            metavar="N[,N…]",
            help="Of all convolutions, or of each (default: 1).",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
    conv_padding: Annotated[
        str | None,
        typer.Option(
            "--conv-padding",
            metavar="N[,N…]",
            help="Of all convolutions, or of each: a number or 'same' (default: 0).",
            show_default=False,
            rich_help_panel=_PANEL,
        ),
    ] = None,
) -> None:
    """Declare the options; never called."""


def reads_models(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter ``options: ReadOptions`` by the options for reading.

    What is wrong with a value is a `UsageError` before the command starts.
    """
    declared = inspect.signature(_declare, eval_str=True).parameters

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        from sparsednn.formats import ReadOptions

        typed = {name: given.pop(name) for name in declared}
        typed["select"] = tuple(typed["select"] or ())
        command(**given, options=ReadOptions.parse(**typed))

    own = inspect.signature(command)
    # The command imports the class for its types only: any name stands for it here.
    hints = get_type_hints(command, localns={"ReadOptions": object}, include_extras=True)
    parameters = [
        *(
            parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY)
            for name, parameter in own.parameters.items()
            if name != "options"
        ),
        *(p.replace(kind=p.KEYWORD_ONLY) for p in declared.values()),
    ]
    wrapped.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped
