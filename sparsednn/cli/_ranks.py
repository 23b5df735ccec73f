"""The ranks' side of a command: its beginning, its end, and ``--ranks``, which starts them.

A command runs its work on ranks in `on_ranks`, which sees to it that all end when one fails, and
that an error that all have is told once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.errors import LaunchError, MissingDependencyError, SparseDNNError, UsageError

if TYPE_CHECKING:
    from sparsednn.comm import Communicator

__all__ = [
    "RANKS_PANEL",
    "GridOption",
    "RanksOption",
    "on_ranks",
    "start_ranks",
    "told_once",
    "under_launcher",
]

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


#: Where launchers tell a process which one of its node it is: Open MPI's, Hydra, PALS, Slurm.
_LOCAL_RANK = (
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "MPI_LOCALRANKID",
    "PALS_LOCAL_RANKID",
    "SLURM_LOCALID",
)


def _first_of_node(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is the first of its node, or alone; loads no MPI.

    >>> _first_of_node({"PMI_SIZE": "4", "PMI_RANK": "2", "MPI_LOCALRANKID": "0"})
    True
    >>> _first_of_node({"PMI_SIZE": "4", "PMI_RANK": "3", "MPI_LOCALRANKID": "1"})
    False
    """
    from sparsednn.comm.mpi import launched

    if launched(environ) is None:
        return True
    return next((environ[name] for name in _LOCAL_RANK if name in environ), "0") == "0"


@contextmanager
def told_once() -> Iterator[None]:
    """Let one rank of each node tell what is wrong with the call or with MPI; also a decorator.

    Such an error comes before the ranks can talk to each other, and all of a node have it. A
    launcher ends the job at the first rank that fails, and one that has not spoken by then never
    will. So the others end as if nothing were wrong: code and message are the first one's.
    """
    if under_launcher():
        from sparsednn.comm.launcher import default_signals

        default_signals()  # a rank that is ended because another one failed has nothing to tell
    try:
        yield
    except (UsageError, MissingDependencyError, LaunchError) as error:
        if error.everywhere or _first_of_node():
            raise
        raise SystemExit(0) from None


@contextmanager
def on_ranks() -> Iterator[Communicator]:
    """Begin the life of a rank, and end it: yields the communicator of all ranks.

    An error that all ranks have raised alike is told by rank 0, and all end with its code. Any
    other ends all ranks at once, told by the one that has it.
    """
    from sparsednn.atomic import remove_temporaries
    from sparsednn.comm.launcher import default_signals
    from sparsednn.comm.mpi import world
    from sparsednn.comm.signals import clean_end

    if not under_launcher():  # alone: main's own handlers say what has happened, and nobody waits
        yield world()
        return
    default_signals()  # all that may be done while MPI starts
    comm = world()
    with clean_end(remove_temporaries), _ending_all(comm):
        yield comm


@contextmanager
def _ending_all(comm: Communicator) -> Iterator[None]:
    """Let an error that all have end this rank, and any other end all ranks."""
    from sparsednn.comm.failure import abort

    try:
        yield
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
    except BaseException as error:
        if comm.size == 1:
            raise
        abort(comm, error, 3 if isinstance(error, (MemoryError, OSError)) else 1)
