"""`clean_end`: a process that is told to end cleans up first, also while it waits in C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from sparsednn.comm.signals import clean_end

#: Its main thread takes a lock of C twice: it waits for ever, and no handler of Python is run.
PROGRAM = """
import ctypes, signal, sys, time
from sparsednn.comm.signals import clean_end

def clean():
    print("cleaned", flush=True)
    if sys.argv[1] == "raise":
        raise OSError("not all")

signal.signal(signal.SIGINT, signal.SIG_IGN if sys.argv[1] == "ignore" else signal.SIG_DFL)
signal.signal(signal.SIGTERM, lambda *_: print("handled", flush=True))
signal.signal(signal.SIGUSR1, lambda *_: None)
with clean_end(clean):
    print("up", flush=True)
    library, lock = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    while True:
        library.pthread_mutex_lock(lock)
"""


@pytest.mark.parametrize("what", ["end", "raise"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_that_waits_in_c(number, what):
    process = start(what)
    process.send_signal(signal.SIGUSR1)  # which is none of ours
    process.send_signal(number)
    assert process.communicate(timeout=20) == ("cleaned\n", "")
    assert process.returncode == -number


def test_what_is_ignored_stays_ignored():
    process = start("ignore")
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.terminate()
    assert process.communicate(timeout=20) == ("cleaned\n", "")
    assert process.returncode == -signal.SIGTERM


def start(what: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_all_is_as_before():
    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        fd = signal.set_wakeup_fd(-1)
        signal.set_wakeup_fd(fd)
        return handlers, fd, threading.active_count(), os.dup(0)

    before = state()
    os.close(before[-1])
    with pytest.raises(KeyError), clean_end(lambda: None):
        raise KeyError
    after = state()
    os.close(after[-1])
    assert after == before


def test_other_threads_may_not_set_handlers():
    seen = []

    def inside() -> None:
        with clean_end(lambda: None):
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert seen == [before]
