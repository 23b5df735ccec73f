"""A training with a fault in one rank: ``training_fault_program.py FAULT LOG train …``.

It is `sparsednn` but for one function. FAULT is ``PLACE:KIND:RANK:CALLS``: after so many calls of
the function that PLACE stands for, that rank raises an exception (KIND is its name), is killed
(KILL) or sets the largest size of a file (a number); or it is ``none``. LOG is a file that all
ranks add to: ``rank R PID`` at the start, and rank 0 then ``step S`` behind each step, ``saving S``
and ``saved S`` around each checkpoint; or ``-``.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed.fault_program import instead, strike

from sparsednn.cli.main import main
from sparsednn.comm.mpi import launched


def load(kind: str, calls: int) -> None:
    """While a rank reads its rows of a native file."""
    from sparsednn.formats.native import RowReader

    instead(RowReader, "rows", kind, calls=calls)


def exchange(kind: str, calls: int) -> None:
    """Within the compiled loops of a step, where a layer waits for its messages."""
    from sparsednn.comm.compiled import Calls
    from sparsednn.comm.mpi import load_mpi
    from sparsednn.distributed import links

    real = links.calls_of
    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    kept = []
    left = calls

    def calls_of(comm: Any) -> Calls:
        found = real(comm)
        waitall = function(found.waitall)

        def failing(count: int, requests: int, statuses: int) -> int:
            nonlocal left
            left -= 1
            if left < 0:
                if kind == "MPI":
                    return int(load_mpi().ERR_TRUNCATE)
                strike(kind)
            return int(waitall(count, requests, statuses))

        kept.append(function(failing))
        address = ctypes.cast(kept[-1], ctypes.c_void_p).value
        assert address is not None
        return found._replace(waitall=address)

    links.calls_of = calls_of


def evaluation(kind: str, calls: int) -> None:
    """At the start of the evaluation behind an epoch."""
    from sparsednn.training.stepper import Stepper

    instead(Stepper, "evaluate", kind, calls=calls)


def gather(kind: str, calls: int) -> None:
    """While a checkpoint's arrays are gathered."""
    from sparsednn.comm.communicator import Communicator
    from sparsednn.training import trainer

    real, begun = trainer.gather_network, False

    def gather_network(*args: Any) -> Any:
        nonlocal begun
        if not begun:
            begun = True
            instead(Communicator, "gather", kind, calls=calls)
        return real(*args)

    trainer.gather_network = gather_network


def write(kind: str, calls: int) -> None:
    """When a checkpoint is about to be written."""
    from sparsednn.training import trainer

    instead(trainer, "write_checkpoint", kind, calls=calls)


def written(kind: str, calls: int) -> None:
    """Within a checkpoint: after so many bytes of them, counted over all checkpoints."""
    from sparsednn.formats import _container

    real = _container.atomic_file

    @contextmanager
    def atomic_file(*args: Any, **how: Any) -> Iterator[Any]:
        with real(*args, **how) as file:
            yield _Counted(file, kind)

    _container.atomic_file = atomic_file
    _Counted.left = calls


class _Counted:
    """A file that fails, on the disk to the byte, when enough has been written."""

    left = 0

    def __init__(self, file: Any, kind: str) -> None:
        self._file, self._kind = file, kind

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if view.nbytes > _Counted.left:
            self._file.write(view[: _Counted.left])
            self._file.flush()
            strike(self._kind)
        _Counted.left -= view.nbytes
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Os:
    """The module `os` with one function that is another."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def _in_files(name: str, kind: str, calls: int, *, behind: bool = False) -> None:
    """Let a function of `os` fail, where checkpoints and metrics are written."""
    from sparsednn import atomic
    from sparsednn.training import metrics

    left = calls

    def failing(*args: Any, **how: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0 and not behind:
            strike(kind)
        result = getattr(os, name)(*args, **how)
        if left < 0:
            strike(kind)
        return result

    for module in (atomic, metrics):
        module.os = _Os(name, failing)


def fsync(kind: str, calls: int) -> None:
    """Before a checkpoint, or metrics, are forced to the disk."""
    _in_files("fsync", kind, calls)


def link(kind: str, calls: int) -> None:
    """Before the file gets its temporary name."""
    _in_files("link", kind, calls)


def replace(kind: str, calls: int) -> None:
    """Between a file's temporary name and its own."""
    _in_files("replace", kind, calls)


def replaced(kind: str, calls: int) -> None:
    """When the file has its name, and nobody knows yet."""
    _in_files("replace", kind, calls, behind=True)


def line(kind: str, calls: int) -> None:
    """Between a line of metrics, behind an epoch, and the checkpoint that goes with it."""
    from sparsednn.training.metrics import MetricsFile

    real, left = MetricsFile.write, calls

    def write(self: MetricsFile, record: Any) -> None:
        nonlocal left
        real(self, record)
        left -= 1
        if left < 0:
            strike(kind)

    MetricsFile.write = write  # type: ignore[method-assign]


def keep_log(path: str, rank: int) -> None:
    """Tell who and, on rank 0, where the training is; not even SIGKILL takes what was told."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def tell(what: str) -> None:
        os.write(descriptor, f"{what}\n".encode())

    tell(f"rank {rank} {os.getpid()}")
    if rank:
        return
    from sparsednn.training import trainer
    from sparsednn.training.progress import Progress

    add, write_checkpoint = Progress.add, trainer.write_checkpoint

    def told_add(self: Progress, *args: Any) -> None:
        add(self, *args)
        tell(f"step {self.step}")

    def told_write(path: Any, state: Any) -> None:
        tell(f"saving {state.progress['step']}")
        write_checkpoint(path, state)
        tell(f"saved {state.progress['step']}")

    Progress.add = told_add  # type: ignore[method-assign]
    trainer.write_checkpoint = told_write


if __name__ == "__main__":
    fault, log = sys.argv[1:3]
    here = launched()
    assert here is not None, "to be started by mpirun"
    if log != "-":
        keep_log(log, here.rank)
    if fault != "none":
        place, kind, rank, calls = fault.split(":")
        if here.rank == int(rank):
            globals()[place](kind, int(calls))
    sys.argv[1:3] = []
    main()
