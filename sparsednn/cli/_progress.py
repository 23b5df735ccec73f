"""Progress of long work on standard error: one line that is rewritten, or a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

__all__ = ["Progress", "duration"]

_TERMINAL_PERIOD: Final = 0.1
_LINE_PERIOD: Final = 2.0


class Progress:
    """Call it with a stage's name and the share of it that is done, or `show` a text.

    On a terminal one line is rewritten, and gone at the end. Elsewhere (a log file) there is a
    line every two seconds at most, so that quick work prints nothing.

    Parameters
    ----------
    layers
        The stages called `by_layer` count these.
    by_layer
        Names of stages whose share is in layers.
    period
        Seconds from line to line where there is no terminal.
    """

    def __init__(
        self,
        layers: int = 0,
        by_layer: frozenset[str] = frozenset(),
        *,
        period: float = _LINE_PERIOD,
    ) -> None:
        self._layers, self._by_layer = layers, by_layer
        self._stream = sys.stderr
        self._terminal = self._stream is not None and self._stream.isatty()
        self._period = _TERMINAL_PERIOD if self._terminal else period
        self._stage = ""
        self._shown_width = 0
        self._stage_start = self._last_report = self._last = time.monotonic()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the line off the terminal."""
        self.clear()

    def __call__(self, stage: str, share: float) -> None:
        """Show it, if the last time was long enough ago."""
        now = time.monotonic()
        if stage != self._stage:
            # A stage reports at its first step's end: it began when the one before ended.
            self._stage, self._stage_start = stage, self._last_report
        self._last_report = now
        self.show(lambda: self._text(stage, share, now - self._stage_start))

    def show(self, text: Callable[[], str]) -> None:
        """Show a text, which is made only if the last time was long enough ago."""
        now = time.monotonic()
        if now - self._last < self._period or self._stream is None:  # closed by the caller
            return
        self._last = now
        line = text()
        if self._terminal:
            print(f"\r{line:<{self._shown_width}}", end="", file=self._stream, flush=True)
            self._shown_width = len(line)
        else:
            print(line, file=self._stream, flush=True)

    def log(self, text: str) -> None:
        """Print a line that stays, however quick the work is."""
        if self._stream is not None:
            self.clear()
            self._last = time.monotonic()
            print(text, file=self._stream, flush=True)

    def clear(self) -> None:
        """Make room for another line."""
        if self._shown_width:
            print(f"\r{'':<{self._shown_width}}\r", end="", file=self._stream, flush=True)
            self._shown_width = 0

    def _text(self, stage: str, share: float, seconds: float) -> str:
        where = f"{share:.0%}"
        if stage in self._by_layer:
            where = f"layer {round(share * self._layers)} of {self._layers}"
        if not 0.0 < share < 1.0:
            return f"{stage}: {where}"
        return f"{stage}: {where}, about {duration(seconds * (1.0 - share) / share)} left"


def duration(seconds: float) -> str:
    """A time to come, as far as one can know it.

    >>> duration(8.4), duration(100), duration(4000)
    ('8 s', '2 min', '1.1 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
