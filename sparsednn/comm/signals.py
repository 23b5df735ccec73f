"""A rank that is told to end does so at once, and leaves no temporary file behind.

`launcher.default_signals` gives a rank the system's own action, which needs nobody's help, but
cannot clean up. `clean_end` does, for the part of a rank's life in which there is something to
clean up. Must not know: what that is, and MPI.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

__all__ = ["clean_end"]


@contextlib.contextmanager
def clean_end(clean: Callable[[], None]) -> Iterator[None]:
    """While entered, SIGTERM and SIGINT call `clean` and end the process, whatever it is doing.

    Python's handlers run between two instructions of the main thread, which executes none while it
    waits in MPI. But the number of a signal is written to a file descriptor at once, and a thread
    that reads from there needs the GIL only, which MPI calls and compiled loops do not hold.
    (MPI_Init and MPI_Finalize hold it: be outside then.)

    Parameters
    ----------
    clean
        Is called in a thread of its own, with the main thread still running; what it raises is
        ignored. The process then ends by the same signal, with the system's own action, so that
        whoever waits for it sees why.

    Notes
    -----
    A signal that is ignored stays ignored. Outside the main thread this does nothing, since only
    that one may set handlers. Processes that are forked meanwhile and execute no other program
    share the descriptor: a signal to one of them ends this process, too.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [
        int(number)
        for number in (signal.SIGTERM, signal.SIGINT)
        if signal.getsignal(number) != signal.SIG_IGN
    ]
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading, numbers, clean), daemon=True)
    watcher.start()
    outer = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _leave_it_to_the_watcher) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(outer)
        os.close(writing)  # the watcher ends; first of all it reads what has come meanwhile
        watcher.join()
        os.close(reading)


def _leave_it_to_the_watcher(number: int, frame: FrameType | None) -> None:
    """Be a handler: without one of Python nothing is written to the descriptor."""


def _watch(reading: int, numbers: list[int], clean: Callable[[], None]) -> None:
    library = ctypes.CDLL(None)
    while told := os.read(reading, 1):
        if told[0] not in numbers:  # some other signal that has a handler of Python
            continue
        with contextlib.suppress(Exception):
            clean()
        library.signal(told[0], None)  # SIG_DFL; Python's own would have to be the main thread's
        os.kill(os.getpid(), told[0])
        os._exit(128 + told[0])  # not reached where the system's action is to end
