"""Keep what a native library prints away from standard output, which is for results."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

__all__ = ["native_output"]

# File descriptors belong to the process: two threads that switch them would restore each
# other's temporary ones.
_SWITCHING = threading.RLock()


@contextlib.contextmanager
def native_output(*, quiet: bool) -> Iterator[None]:
    """Send what compiled code prints to file descriptor 1 elsewhere, and restore it afterwards.

    Parameters
    ----------
    quiet
        True: nowhere. False: to standard error.

    Notes
    -----
    Standard error itself is left alone: should a library end the process, its last words are
    there. Another thread's prints to standard output meet the same fate meanwhile.
    """
    with _SWITCHING:
        _flush()
        saved = _standard_output()
        if saved is None:
            yield
            return
        try:
            _point_stdout_at(quiet)
            try:
                yield
            finally:
                # What C and C++ still hold would otherwise appear behind the results.
                _flush()
                os.dup2(saved, 1)
        finally:
            os.close(saved)


def _standard_output() -> int | None:
    """A copy of file descriptor 1; None if it is closed (a daemon): nothing can be spoilt then."""
    try:
        return os.dup(1)
    except OSError:
        return None


def _point_stdout_at(quiet: bool) -> None:
    with contextlib.suppress(OSError):
        if not quiet:
            os.dup2(2, 1)
            return
    # Also where standard error is closed: then there is nowhere to show it.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
    finally:
        os.close(nowhere)


def _flush() -> None:
    if sys.stdout is not None:
        # Closed by somebody, or a broken pipe: the next print says so itself.
        with contextlib.suppress(ValueError, OSError):
            sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
