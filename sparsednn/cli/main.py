"""The ``sparsednn`` program: the commands put together, and errors turned into exit codes.

Exit codes: 0 done, 2 usage, 3 bad input, 4 the answer differs from the truth, 5 something is not
installed; 1 is a bug of ours, 130 an interrupt.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from sparsednn import __version__
from sparsednn.cli import data, doctor, model, run
from sparsednn.errors import SparseDNNError

__all__ = ["app", "main"]

app = typer.Typer(
    name="sparsednn",
    help="Sparse deep neural networks on many processors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sparsednn {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error.")
    ] = False,
) -> None:
    if debug:
        os.environ["SPARSEDNN_DEBUG"] = "1"


app.command("inspect")(model.inspect)
app.command("convert")(model.convert)
app.command("infer")(run.infer)
app.add_typer(data.app, name="datasets")
app.command("doctor")(doctor.doctor)
app.command("demo")(run.demo)


def main() -> None:
    """Run the program; one line on stderr and an exit code for every error."""
    try:
        app()
    except SparseDNNError as error:
        _fail(error, str(error), error.exit_code)
    except MemoryError as error:
        _fail(error, f"out of memory: {error}" if str(error) else "out of memory", 3)
    except BrokenPipeError:
        # The reader of our output has gone (``sparsednn … | head``): nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt as error:
        _fail(error, "interrupted", 130)
    except Exception as error:
        _fail(error, f"{type(error).__name__}: {error} (--debug shows where)", 1)


def _fail(error: BaseException, message: str, code: int) -> None:
    if os.environ.get("SPARSEDNN_DEBUG"):
        raise error
    line = " ".join(message.split())
    print(f"sparsednn: error: {line}", file=sys.stderr)
    sys.exit(code)
