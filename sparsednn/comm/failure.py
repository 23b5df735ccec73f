"""When one rank fails, all end, and everyone is told why.

`together` for stages in which ranks do not wait for each other (reading files, checking options):
all ranks fail in the same way, in order, and a caller may go on. `abort` for everything else: a
rank that waits for one that is gone would wait for ever. Must not know: what a stage does.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from sparsednn import errors
from sparsednn.comm.alone import Alone
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.mpi import load_mpi
from sparsednn.errors import SparseDNNError

__all__ = ["abort", "together"]

#: Seconds that a launcher is given to forward the line that says why.
_FORWARDING = 0.5


@contextmanager
def together(comm: Communicator, stage: str) -> Iterator[None]:
    """Let a block fail on all ranks if it fails on one.

    At the end of the block the ranks tell each other how it went: one allreduce of a flag, and
    only if some failed, their messages. None of it is counted as traffic.

    Parameters
    ----------
    comm
        The ranks that go through the block together.
    stage
        What is done there ("loading the network"), for errors that do not say it themselves.

    Raises
    ------
    SparseDNNError
        On every rank the error of the lowest rank that failed: of the same class if that is one of
        `sparsednn.errors`, with "rank R: " in front (as launchers count, of all ranks of the
        program; once, in stages within stages), unless all ranks failed with the same message;
        `everywhere` is set if `comm` has all ranks of the program. Any other exception becomes a
        plain SparseDNNError that names stage and kind. The rank's own error is its cause.

    Notes
    -----
    Only for blocks in which no rank waits for another: a rank that fails leaves the block and
    would be waited for. KeyboardInterrupt and SystemExit are no failures of the stage and pass
    untouched; the other ranks then wait, until who catches them calls `abort`.
    """
    if isinstance(comm, Alone):
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    if not comm.any_rank(own is not None):
        return
    everyone = load_mpi().COMM_WORLD
    mine = json.dumps([everyone.rank, _told(own, stage)])
    told = [json.loads(text) for text in comm.allgather_text(mine)]
    rank, (name, message) = next((rank, what) for rank, what in told if what is not None)
    if all(what == told[0][1] for _, what in told):
        if isinstance(own, SparseDNNError):
            own.everywhere = comm.size == everyone.size
            raise own
    else:
        message = _of_rank(rank, message)
    kind: type[SparseDNNError] = getattr(errors, name)
    raised = kind(message)
    raised.everywhere = comm.size == everyone.size
    raise raised from own


def _told(error: Exception | None, stage: str) -> tuple[str, str] | None:
    """Name of the nearest class in `sparsednn.errors`, and message."""
    if error is None:
        return None
    for kind in type(error).__mro__:
        if kind.__module__ == errors.__name__ and kind.__name__ in errors.__all__:
            return kind.__name__, str(error)
    return SparseDNNError.__name__, f"{stage}: {_plain(error)}"


def _plain(error: BaseException) -> str:
    """One line for an error that is not ours: its class says what its text may not."""
    if isinstance(error, SparseDNNError):
        return " ".join(str(error).split())
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _of_rank(rank: int, message: str) -> str:
    """Say which rank it was, unless the message (of `together`) says it already."""
    return message if re.match(r"rank \d+: ", message) else f"rank {rank}: {message}"


def abort(comm: Communicator, error: BaseException, code: int) -> NoReturn:
    """Tell the error in one line on stderr and end all ranks of the program.

    Parameters
    ----------
    comm
        Knows this rank.
    error
        Why; the line starts with "sparsednn: error: rank R: ". With ``SPARSEDNN_DEBUG`` in the
        environment the traceback goes in front.
    code
        Exit code, 1 to 255; launchers end with it.

    Notes
    -----
    ``MPI_Abort`` on the whole world, since other communicators' ranks may wait for this one, too.
    Nothing is cleaned up in Python after it: no ``finally``, no ``atexit``.
    """
    if os.environ.get("SPARSEDNN_DEBUG"):
        with suppress(Exception):
            traceback.print_exception(error)
    line = _of_rank(comm.rank, _plain(error))
    # A stream that is closed or broken must not keep this rank from ending the others.
    with suppress(Exception):
        sys.stdout.flush()
    with suppress(Exception):
        sys.stderr.write(f"sparsednn: error: {line}\n")  # one write: other ranks may write, too
        sys.stderr.flush()
    # The launcher forwards what it reads until it hears of the end; on a busy machine that is late.
    time.sleep(_FORWARDING)
    load_mpi().COMM_WORLD.Abort(code)
    os._exit(code)  # MPI_Abort does not return; if one does, nothing may go on here
