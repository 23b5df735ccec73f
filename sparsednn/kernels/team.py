"""Threads that go through one compiled function together: a team, and where its members meet.

The passes of training are short (a small step takes less than a millisecond) and meet after every
layer. So the threads stay, and inside compiled code they meet at a counter in memory instead of
going back to Python. Must not know: what is computed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic, jit

__all__ = ["Team", "arrive", "meet", "seconds", "wait_until", "watch"]

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_SPINS = 4096  # looks at the counter before the core is offered to others
#: Looks for the next function before a thread falls asleep: some hundred microseconds, as long as
#: what usually comes between two passes.
_PATIENCE = 400_000


@intrinsic
def _count(typing_context: Any, address: Any, amount: Any) -> Any:  # pragma: no cover - compiled
    """Add to the int64 at `address` and return what was there; no access moves across it."""
    signature = types.int64(types.int64, types.int64)

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], _I64.as_pointer())
        return b.atomic_rmw("add", pointer, args[1], "seq_cst")

    return signature, generate


@intrinsic
def _look(typing_context: Any, address: Any) -> Any:  # pragma: no cover - compiled
    """Read the int64 at `address` as it is now."""
    signature = types.int64(types.int64)

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], _I64.as_pointer())
        return b.load_atomic(pointer, "seq_cst", 8)

    return signature, generate


@intrinsic
def _offer_core(typing_context: Any) -> Any:  # pragma: no cover - compiled
    """Let another thread have this core (POSIX ``sched_yield``)."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        function = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(_I32, []), "sched_yield"
        )
        return b.call(function, [])

    return types.int32(), generate


@intrinsic
def _read_clock(typing_context: Any, address: Any) -> Any:  # pragma: no cover - compiled
    """POSIX ``clock_gettime(CLOCK_MONOTONIC)``: seconds and nanoseconds, int64, to `address`."""
    signature = types.int32(types.int64)

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I32, [_I32, _I64.as_pointer()])
        function = cgutils.get_or_insert_function(b.module, kind, "clock_gettime")
        return b.call(function, [_I32(1), b.inttoptr(args[0], _I64.as_pointer())])

    return signature, generate


@jit
def seconds(cell: NDArray[np.int64]) -> float:
    """Time now in seconds, from some moment on; `cell` ``(2,)`` is working space."""
    _read_clock(cell.ctypes.data)
    return float(cell[0]) + 1e-9 * float(cell[1])


@jit
def meet(counter: int, threads: int) -> None:
    """Wait until all `threads` threads are here; `counter` is the address of an int64, 0 at first.

    What each has written before is seen by all behind it. The counter only grows, so it can be used
    again at once: the n-th meeting ends when it has reached ``n * threads``.
    """
    if threads == 1:
        return
    arrived = _count(counter, 1) + 1
    target = (arrived + threads - 1) // threads * threads
    spins = 0
    while _look(counter) < target:
        spins += 1
        if spins >= _SPINS:
            _offer_core()


@jit
def watch(counter: int, seen: int) -> int:
    """Wait a moment until the int64 at `counter` is no longer `seen`; returns what it is."""
    now = seen
    for _ in range(_PATIENCE):
        now = int(_look(counter))
        if now != seen:
            break
    return now


@jit
def arrive(counter: int) -> None:
    """Add one to the int64 at `counter`; what was written before is seen by who sees that."""
    _count(counter, 1)


@jit
def wait_until(counter: int, target: int) -> None:
    """Wait until the int64 at `counter` has reached `target`."""
    spins = 0
    while _look(counter) < target:
        spins += 1
        if spins >= _SPINS:
            _offer_core()


class Team:
    """Threads that wait for work in compiled code, beside the caller's, which is number 0.

    A *round* is one piece of work for all. Between two rounds the others spin for a moment in
    compiled code, since going back to Python would mean to wait for its lock twice, and that takes
    longer than a small pass; only when nothing comes they go back there, and to sleep.

    Parameters
    ----------
    threads
        How many, the caller's included.
    serve
        ``serve(number, given, ended, seen)`` runs on each of the others, without the lock: it waits
        with `watch` at the address `given` until that is not `seen` any more, does the round,
        arrives (`arrive`) at the address `ended`, and so on. It returns the number of the last
        round that it has done when nothing comes, and -1 when it is told to end.

    Notes
    -----
    The threads are daemons: a program that ends does not wait for them.
    """

    def __init__(self, threads: int, serve: Callable[[int, int, int, int], int]) -> None:
        self.threads = threads
        # Rounds begun; and how many times one of the others has ended one. A cache line each.
        self._cells = np.zeros(16, np.int64)
        self._given = self._cells.ctypes.data
        self.ended = self._given + 64
        self._rounds = 0
        self._serve = serve
        self._sleeping = threading.Condition()
        for number in range(1, threads):
            threading.Thread(target=self._work, args=(number,), daemon=True).start()

    def _work(self, number: int) -> None:
        seen = 0
        while (seen := self._serve(number, self._given, self.ended, seen)) >= 0:
            with self._sleeping:
                while self._cells[0] == seen:
                    self._sleeping.wait()

    def begin(self) -> int:
        """Begin a round; returns what the int64 at `ended` will have reached at its end.

        What to do in it has been written where `serve` looks for it, before. The caller does its
        own part, and waits with `wait_until`, before the next round begins.
        """
        self._rounds += 1
        if self.threads > 1:
            with self._sleeping:
                arrive(self._given)
                self._sleeping.notify_all()
        return self._rounds * (self.threads - 1)
