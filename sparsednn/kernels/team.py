"""Threads that go through one compiled function together: a team, and where its members meet.

The passes of training are short (a small step takes less than a millisecond) and meet after every
layer. So the threads stay, and inside compiled code they meet at a counter in memory instead of
going back to Python. Must not know: what is computed.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic, jit

__all__ = ["Team", "meet", "seconds"]

_I32, _I64 = ir.IntType(32), ir.IntType(64)
_SPINS = 4096  # looks at the counter before the core is offered to others


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


class Team:
    """A fixed number of threads that run one function together, each with its number.

    The caller's thread is number 0 (the one that talks to MPI). Use it in a ``with`` block, or
    `close` it; the threads are daemons, so a program that ends does not wait for them.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._tasks: list[queue.SimpleQueue[Callable[[int], None] | None]] = []
        self._done: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        for number in range(1, threads):
            tasks: queue.SimpleQueue[Callable[[int], None] | None] = queue.SimpleQueue()
            self._tasks.append(tasks)
            threading.Thread(target=self._work, args=(tasks, number), daemon=True).start()

    def _work(self, tasks: queue.SimpleQueue[Callable[[int], None] | None], number: int) -> None:
        while (task := tasks.get()) is not None:
            try:
                task(number)
            except BaseException as error:  # told to the caller below
                self._done.put(error)
            else:
                self._done.put(None)

    def run(self, task: Callable[[int], None]) -> None:
        """Run ``task(number)`` on all threads; returns when all are done, raises what one raised.

        A task whose threads `meet` must not raise in one of them only: the others would wait.
        """
        for tasks in self._tasks:
            tasks.put(task)
        errors: list[BaseException | None] = []
        try:
            task(0)
        finally:
            errors += [self._done.get() for _ in self._tasks]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads."""
        while self._tasks:
            self._tasks.pop().put(None)

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.close()
