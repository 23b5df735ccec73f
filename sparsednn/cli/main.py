"""The ``sparsednn`` program: the commands put together, and errors turned into exit codes.

Exit codes: 0 done, 2 usage, 3 bad input, 4 the answer differs from the truth, 5 something is not
installed, 6 ranks could not be started or failed; 1 is a bug of ours, 130 an interrupt, 143 a
termination.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import traceback
from types import FrameType
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sparsednn import __version__
from sparsednn.cli import (
    calibrate,
    cnn,
    data,
    doctor,
    model,
    partition,
    plan,
    prune,
    run,
    simulate,
    sweep,
    train,
    validate,
)
from sparsednn.errors import SparseDNNError

__all__ = ["app", "main"]


class _Terminated(KeyboardInterrupt):  # like its base, it is no error
    """SIGTERM, of a batch system or ``kill``: temporary files go, as they do for Ctrl-C."""


class _StoppedError(Exception):
    """Carries (as its cause) what typer would otherwise end the program for in its own way."""


class _Program(TyperGroup):
    """The commands; Ctrl-C and a reader that has gone are left to `main`."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, BrokenPipeError) as error:
            raise _StoppedError from error


app = typer.Typer(
    cls=_Program,
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
app.command("prune")(prune.prune)
app.command("partition")(partition.partition)
app.command("evaluate")(partition.evaluate)
app.command("hypergraph")(partition.hypergraph)
app.command("infer")(run.infer)
app.command("train")(train.train)
app.add_typer(cnn.app, name="cnn")
app.add_typer(data.app, name="datasets")
app.command("plan")(plan.plan)
app.command("sweep")(sweep.sweep)
app.command("simulate")(simulate.simulate)
app.command("validate")(validate.validate)
app.command("calibrate")(calibrate.calibrate)
app.command("doctor")(doctor.doctor)
app.command("demo")(run.demo)


def main() -> None:
    """Run the program; one line on stderr and an exit code for every error."""
    for stream in (sys.stdout, sys.stderr):
        # A file name or a sign (×) that the terminal has no letter for must not stop us.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    sys.exit(_flushed(_run()))


def _run() -> int:
    """Run the program and tell its error; returns the exit code."""
    try:
        app()
    except SystemExit as end:  # typer's way to return
        return end.code if isinstance(end.code, int) else 0
    except SparseDNNError as error:
        return _failed(error, str(error), error.exit_code)
    except MemoryError as error:
        return _failed(error, f"out of memory: {error}" if str(error) else "out of memory", 3)
    except ModuleNotFoundError as error:
        return _failed(error, f"{error} ('sparsednn doctor' says what to install)", 5)
    except _StoppedError as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            return _interrupted(error.__cause__)
        # The reader of our output has gone (``sparsednn … | head``): nothing is wrong.
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except OSError as error:  # stdout is full, say: the library names its files itself
        return _failed(error, f"{error.filename or 'stdout'}: {error.strerror or error}", 3)
    except Exception as error:
        return _failed(error, f"{type(error).__name__}: {error} (--debug shows where)", 1)
    return 0


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _interrupted(error: KeyboardInterrupt) -> int:
    if isinstance(error, _Terminated):
        return _failed(error, "terminated", 143)
    return _failed(error, "interrupted", 130)


def _failed(error: BaseException, message: str, code: int) -> int:
    if os.environ.get("SPARSEDNN_DEBUG"):
        traceback.print_exception(error)
    line = " ".join(message.split())
    print(f"sparsednn: error: {line}", file=sys.stderr)
    return code


def _flushed(code: int) -> int:
    """Write out what is left of stdout, which Python would do later, and with a traceback."""
    if sys.stdout is None:  # closed by the caller
        return code
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not code and not isinstance(error, BrokenPipeError):
            return _failed(error, f"stdout: {error.strerror}", 3)
    return code
