"""The program with a fault in one rank: ``fault_program.py PLACE KIND RANK NAMES infer …``.

It is `sparsednn` but for one function, the PLACE, which on that rank raises an exception (KIND is
its name), kills the process (KILL), sleeps for ever (SLEEP, having said "asleep") or sets the
largest size of a file (a number). NAMES is "named" if unfinished files have temporary names, as on
network file systems. With ``--ranks`` the ranks are started as this program, too.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from sparsednn import atomic
from sparsednn.cli.main import main
from sparsednn.comm import launcher
from sparsednn.comm.mpi import launched


def strike(kind: str) -> None:
    """Be the fault."""
    if kind == "KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "SLEEP":
        print("asleep", flush=True)
        time.sleep(600)
    if kind.isdigit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(kind), int(kind)))
        return
    raise getattr(builtins, kind)("as the test wants it")


def instead(owner: Any, name: str, kind: str, *, calls: int = 0) -> None:
    """Let a function fail after so many calls."""
    real: Callable[..., Any] = getattr(owner, name)
    left = calls

    def failing(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            strike(kind)
        return real(*args, **kwargs)

    setattr(owner, name, failing)


def load(kind: str) -> None:
    """While a rank reads its rows of a native file."""
    from sparsednn.formats.native import RowReader

    instead(RowReader, "rows", kind, calls=2)


def scatter(kind: str) -> None:
    """While rank 0 sends the others their rows of a file of another format."""
    from sparsednn.distributed import loading

    instead(loading.LayerShard, "__init__", kind, calls=2)


def deal(kind: str) -> None:
    """While rank 0 sends the others their inputs."""
    from sparsednn.distributed import inputs

    instead(inputs._Share, "entries", kind)


def plan(kind: str) -> None:
    """Before a rank's compiled loops, while the others are in theirs and wait for its messages."""
    from sparsednn.distributed.compiled import CompiledPlan

    instead(CompiledPlan, "run", kind, calls=1)  # the first call is the warm-up


def exchange(kind: str) -> None:
    """Within the compiled loops, where a middle layer waits for its messages."""
    from sparsednn.comm.compiled import Calls
    from sparsednn.comm.mpi import load_mpi
    from sparsednn.distributed import links

    real = links.calls_of
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    kept = []

    def calls_of(comm: Any) -> Calls:
        calls = real(comm)
        waitall, layers = function(calls.waitall), 0

        def failing(count: int, requests: int, statuses: int) -> int:
            nonlocal layers
            layers += 1
            if layers == 3:
                if kind == "MPI":
                    return int(load_mpi().ERR_TRUNCATE)
                strike(kind)
            return int(waitall(count, requests, statuses))

        kept.append(function(failing))
        address = ctypes.cast(kept[-1], ctypes.c_void_p).value
        assert address is not None
        return calls._replace(waitall=address)

    links.calls_of = calls_of


def layer(kind: str) -> None:
    """In a middle layer of the reference, with its messages under way."""
    from sparsednn.distributed.layer import DistributedLayer

    instead(DistributedLayer, "multiply_owned", kind, calls=2)


def outputs(kind: str) -> None:
    """While outputs are gathered."""
    from sparsednn.distributed.gathering import Gathering

    instead(Gathering, "outputs", kind)


def categories(kind: str) -> None:
    """While categories are gathered, the outputs being written already."""
    from sparsednn.distributed.gathering import Gathering

    instead(Gathering, "categories", kind)


def trace(kind: str) -> None:
    """While the trace is gathered, the last time that ranks wait for each other."""
    from sparsednn.distributed import inference

    instead(inference, "gather_trace", kind)


def elsewhere(kind: str) -> None:
    """A rank that finds other files by the same names."""
    os.chdir(kind)


def before_writing(kind: str) -> None:
    """When all is loaded and the files are about to be opened, outside of what ranks do alike."""
    from sparsednn.cli._infer import Request

    instead(Request, "sink", kind)


def as_ranks_too(fault: list[str]) -> None:
    """Let ``--ranks`` start this program."""
    run_command = launcher.run_command

    def with_fault(ranks: int, command: list[str], **options: Any) -> launcher.Outcome:
        return run_command(ranks, [sys.executable, __file__, *fault, *command[3:]], **options)

    launcher.run_command = with_fault  # type: ignore[assignment]


if __name__ == "__main__":
    place, kind, rank, names = fault = sys.argv[1:5]
    here = launched()
    if here is None:
        as_ranks_too(fault)
    elif here.rank == int(rank):
        globals()[place](kind)
    if names == "named":
        atomic._nameless = lambda folder: None
    sys.argv[1:5] = []
    main()
