"""Threads that stay, and a range of work dealt out to them.

Must not know: what is done with the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["Parts"]


class Parts:
    """Run a function on contiguous parts of a range, one for each thread.

    Parameters
    ----------
    threads
        The caller's included. The others are started when first needed, sleep between calls, and
        end with the program or when this object goes.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._others: ThreadPoolExecutor | None = None

    def bounds(self, size: int, work: int, least: int) -> list[tuple[int, int]]:
        """``[first, last)`` of each part of `size` things; none is empty.

        `work` is the amount in all of them, and a part gets no less than `least`: to wake a thread
        takes some ten microseconds. Parts depend on the arguments alone.
        """
        parts = max(1, min(self.threads, size, work // least))
        return [(size * n // parts, size * (n + 1) // parts) for n in range(parts)]

    def run(self, bounds: list[tuple[int, int]], function: Callable[[int, int, int], None]) -> None:
        """Call ``function(number, first, last)`` for each part and wait for all.

        Raises what the first of them has raised.
        """
        if len(bounds) == 1:
            function(0, *bounds[0])
            return
        if self._others is None:
            self._others = ThreadPoolExecutor(self.threads - 1, thread_name_prefix="local-part")
        waiting = [
            self._others.submit(function, number, *part)
            for number, part in enumerate(bounds[1:], start=1)
        ]
        try:
            function(0, *bounds[0])
        finally:
            for other in waiting:
                other.exception()
        for other in waiting:
            other.result()
