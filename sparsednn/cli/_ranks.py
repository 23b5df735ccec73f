"""The ranks' side of a command: its beginning, its end, and ``--ranks``, which starts them.

A command runs its work on ranks in `on_ranks`, which sees to it that all end when one fails, and
that an error that all have is told once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.errors import SparseDNNError

if TYPE_CHECKING:
    from sparsednn.comm import Communicator

__all__ = ["RANKS_PANEL", "GridOption", "RanksOption", "on_ranks", "start_ranks", "under_launcher"]

RANKS_PANEL = "On many ranks (mpirun -n K sparsednn …, or --ranks K)"

RanksOption = Annotated[
    int | None,
    typer.Option(
        "--ranks",
        metavar="K",
        help="Start K ranks on this machine, under the mpirun of the MPI that is installed.",
        show_default=False,
        rich_help_panel=RANKS_PANEL,
    ),
]
GridOption = Annotated[
    str | None,
    typer.Option(
        "--grid",
        metavar="DxM",
        help="D groups share the images, the M ranks of each the neurons (default: M is the "
        "partition's number of parts, 1 without).",
        show_default=False,
        rich_help_panel=RANKS_PANEL,
    ),
]


def start_ranks(ranks: int) -> None:
    """Start this very command on so many ranks, and end with their exit code."""
    from sparsednn.comm.launcher import run_ranks

    raise typer.Exit(run_ranks(ranks, _without("--ranks", sys.argv[1:])))


def _without(option: str, arguments: list[str]) -> list[str]:
    """Arguments without an option and its value.

    >>> _without("--ranks", ["infer", "net", "--ranks", "4", "--json", "--ranks=3"])
    ['infer', 'net', '--json']
    """
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and argument != option and not argument.startswith(f"{option}="):
            kept.append(argument)
        skip = not skip and argument == option
    return kept


def under_launcher() -> bool:
    """Whether mpirun, srun or the like has started this process; loads no MPI."""
    from sparsednn.comm.mpi import launched

    return launched() is not None


@contextmanager
def on_ranks() -> Iterator[Communicator]:
    """Begin the life of a rank, and end it: yields the communicator of all ranks.

    An error that all ranks have raised alike is told by rank 0, and all end with its code. Any
    other ends all ranks at once, told by the one that has it.
    """
    from sparsednn.comm.failure import abort
    from sparsednn.comm.launcher import default_signals
    from sparsednn.comm.mpi import world

    default_signals()
    comm = world()
    try:
        yield comm
    except SparseDNNError as error:
        if comm.size == 1:
            raise
        if not error.everywhere:
            abort(comm, error, error.exit_code)
        if comm.rank:
            raise SystemExit(error.exit_code) from None
        raise
    except (SystemExit, typer.Exit):
        raise
    except KeyboardInterrupt as error:
        if comm.size == 1:
            raise
        abort(comm, KeyboardInterrupt("interrupted") if not error.args else error, 130)
    except BaseException as error:
        if comm.size == 1:
            raise
        abort(comm, error, 3 if isinstance(error, (MemoryError, OSError)) else 1)
