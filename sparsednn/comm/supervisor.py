"""Stands between the launcher and each rank, and notes how a rank ended. A script, not a module.

Launchers do not say reliably which rank failed first and how: Hydra returns the exit codes of all
ranks or-ed together, takes its own SIGKILLs into account, and gives a signal as a bare number. So
each rank runs below one small process, which waits for it, writes down a failure with its time,
and ends in the same way, so that the launcher sees what it would have seen. A failure that the
launcher itself caused, cleaning up, is marked as such.

Started by its path, with ``python -I -S``: nothing but the standard library may be used, and every
import is paid by every rank. Must not know: MPI (it only passes on what the launcher has set up),
and the program that it runs. Two ways to call it::

    supervisor.py rank FOLDER COMMAND…     below the launcher: FOLDER/RANK.json tells a failure
    supervisor.py launcher PID COMMAND…    becomes COMMAND, which ends when the process PID does
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time

_PDEATHSIG = 1
_FORWARDED = (
    signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_ENDING = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
#: Whole seconds that a rank has to end when it is told to.
_PATIENCE = 5
_RANK = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")


def _end_with_parent(parent: int, number: signal.Signals) -> None:
    """Be sent a signal when the parent is gone (Linux), so that no rank is left behind."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PDEATHSIG, int(number))
    if os.getppid() != parent:  # gone before we asked
        os.kill(os.getpid(), number)


def _become(command: list[str]) -> None:
    """Replace this process by a command."""
    for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and what is ignored stays ignored
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"sparsednn: error: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127 if isinstance(error, FileNotFoundError) else 126)


def _supervise(folder: str, command: list[str]) -> None:
    """Run a rank, note its failure, and end as it did."""
    told: list[int] = []
    own, launcher = os.getpid(), os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    rank = os.fork()
    if rank == 0:
        _end_with_parent(own, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
        _become(command)

    patience = float("inf")

    def forward(number: int, frame: object) -> None:
        nonlocal patience
        told.append(number)
        os.kill(rank, number)  # not waited for yet, so the number is still its own
        if number in _ENDING and patience == float("inf"):
            patience = time.monotonic() + _PATIENCE
            signal.alarm(_PATIENCE + 1)

    def alarmed(number: int, frame: object) -> None:
        # The launcher is gone, or a rank does not heed it: Hydra would wait for that one for ever.
        # (Sent also when only the launcher's thread ends that started us, which means nothing.)
        if os.getppid() != launcher or time.monotonic() > patience:
            told.append(number)
            os.kill(rank, signal.SIGKILL)

    for number in _FORWARDED:
        signal.signal(number, forward)
    signal.signal(signal.SIGALRM, alarmed)
    _end_with_parent(launcher, signal.SIGALRM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED)
    # Wait without reaping, so that a signal forwarded meanwhile cannot meet another process.
    os.waitid(os.P_PID, rank, os.WEXITED | os.WNOWAIT)
    at = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    code = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])
    if code:
        _note(folder, {"pid": rank, "code": code, "at": at, "told": bool(told)})
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank has left its own
        if -code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(own, -code)
    os._exit(code if code >= 0 else 128 - code)


def _note(folder: str, failure: dict[str, object]) -> None:
    name = next((os.environ[name] for name in _RANK if name in os.environ), None)
    if name is None:
        return
    path = os.path.join(folder, name)
    try:
        with open(f"{path}.part", "w", encoding="ascii") as file:
            json.dump({"rank": int(name), **failure}, file)
        os.rename(f"{path}.part", f"{path}.json")
    except (OSError, ValueError):
        pass  # on another node, where the folder is not: the launcher's exit code is what there is


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "launcher":
        _end_with_parent(int(where), signal.SIGTERM)
        _become(rest)
    else:
        _supervise(where, rest)
