"""Text files of whole numbers, line by line, as arrays; no loop over numbers.

Knows nothing of what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError
from sparsednn.formats._text import load

__all__ = ["Numbers", "format_numbers", "read_numbers"]

_DIGITS: Final = 18  # any number of so many digits fits into int64
_CHUNK: Final = 1 << 18  # numbers that are formatted at a time
_NEWLINE: Final = 10


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers of a file, and which of its lines they stand in; comments are left out.

    Attributes
    ----------
    path
        For messages.
    values
        ``(n,)`` int64, in the order of the file.
    starts
        ``(n_lines + 1,)`` int64: line ``i`` holds ``values[starts[i]:starts[i + 1]]``.
    lines
        ``(n_lines,)`` int64: the number of each line in the file, from 1 on.
    """

    path: Path
    values: NDArray[np.int64]
    starts: NDArray[np.int64]
    lines: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """``(n_lines,)``: how many numbers each line has."""
        return np.diff(self.starts)

    def line(self, index: int) -> NDArray[np.int64]:
        """The numbers of a line."""
        return self.values[self.starts[index] : self.starts[index + 1]]

    def where(self, index: int) -> str:
        """File and line number, for a message."""
        return f"{self.path}: line {self.lines[index]}"

    def expect_lines(self, count: int) -> None:
        """Raise `FormatError` if there are more or fewer lines than `count`."""
        if self.lines.size > count:
            raise FormatError(f"{self.where(count)}: expected the end, after {count} lines")
        if self.lines.size < count:
            raise FormatError(f"{self.path}: has {self.lines.size} lines, expected {count}")

    def column(self, first: int, what: str, least: int, most: int | None) -> NDArray[np.int64]:
        """The numbers from line `first` on, one in each line, from `least` to `most`.

        Raises
        ------
        FormatError
            If a line has none or more than one, or a number is not in the range.
        """
        alone = self.counts[first:] == 1
        if not alone.all():
            at = first + int(alone.argmin())
            raise FormatError(f"{self.where(at)}: has {self.counts[at]} numbers, expected one")
        values = self.values[self.starts[first] :]
        legal = values >= least
        if most is not None:
            legal &= values <= most
        if not legal.all():
            at = int(legal.argmin())
            wanted = f"at least {least}" if most is None else f"{least} to {most}"
            raise FormatError(f"{self.where(first + at)}: {what} {values[at]}, expected {wanted}")
        return values


def read_numbers(path: Path) -> Numbers:
    """Read a file of whole numbers; lines that start with ``%`` are comments.

    Empty lines at the end are left out, others are lines without numbers.

    Raises
    ------
    FormatError
        If the file cannot be read, does not end in a newline, or has anything but numbers,
        naming the line.
    """
    text = load(path)
    if not text.size:
        return Numbers(path, np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64))
    ends = np.flatnonzero(text == _NEWLINE)
    if int(text[-1]) != _NEWLINE:
        raise FormatError(
            f"{path}: line {ends.size + 1}: no newline at its end: the file was cut off"
        )
    begins = np.concatenate(([0], ends[:-1] + 1))
    kept = text[begins] != ord("%")
    if not kept.all():
        text = np.where(np.repeat(kept, ends + 1 - begins), text, np.uint8(ord(" ")))
    inside, heads = _tokens(path, text, ends)
    # Tokens before the end of each line, so that differences are tokens per line.
    starts = np.concatenate(([0], np.searchsorted(heads, ends)))
    counts = np.diff(starts)
    filled = np.flatnonzero(counts)
    kept[int(filled[-1]) + 1 if filled.size else 0 :] = False
    # Comments have no tokens, so the lines that stay share all tokens among them.
    chosen = np.flatnonzero(kept)
    values = _values(path, text, inside, heads, ends)
    return Numbers(path, values, np.concatenate(([0], starts[chosen + 1])), chosen + 1)


def _tokens(
    path: Path, text: NDArray[np.uint8], ends: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """What is inside a number, and where numbers begin."""
    digit = (text >= ord("0")) & (text <= ord("9"))
    minus = text == ord("-")
    wrong = ~(digit | minus | (text == ord(" ")) | (text == ord("\t")) | (text == ord("\r")))
    wrong[ends] = False
    # A minus belongs in front of a digit, and behind none; the last byte is a newline.
    signs = np.flatnonzero(minus)
    wrong[signs] = ~digit[signs + 1] | (digit[signs - 1] & (signs > 0))
    if wrong.any():
        at = int(wrong.argmax())
        line = int(np.searchsorted(ends, at)) + 1
        found = repr(text[at : at + 1].tobytes())[1:]
        raise FormatError(f"{path}: line {line}: {found}, expected whole numbers only")
    inside = digit | minus
    heads = np.flatnonzero(inside & ~np.concatenate(([False], inside[:-1])))
    return inside, heads


def _values(
    path: Path,
    text: NDArray[np.uint8],
    inside: NDArray[np.bool_],
    heads: NDArray[np.int64],
    ends: NDArray[np.int64],
) -> NDArray[np.int64]:
    tails = np.flatnonzero(inside[:-1] & ~inside[1:]) + 1  # behind each number
    lengths = tails - heads
    if int(lengths.max(initial=0)) > _DIGITS:
        at = int((lengths > _DIGITS).argmax())
        line = int(np.searchsorted(ends, heads[at])) + 1
        raise FormatError(f"{path}: line {line}: a number of more than {_DIGITS} digits")
    negative = text[heads] == ord("-")
    values = np.zeros(heads.size, dtype=np.int64)
    # From the last digit of all numbers to the first; fewer numbers each time.
    power = 1
    active = np.arange(heads.size)
    for place in range(1, int(lengths.max(initial=0)) + 1):
        active = active[lengths[active] - negative[active] >= place]
        values[active] += (text[tails[active] - place].astype(np.int64) - ord("0")) * power
        power *= 10
    values[negative] *= -1
    return values


def format_numbers(
    values: NDArray[np.int64], line_ends: NDArray[np.int64] | None = None
) -> Iterator[bytes]:
    """Format numbers as text, piece by piece.

    Parameters
    ----------
    values
        ``(n,)`` int64, above -10**18 and below 10**18.
    line_ends
        Ascending: a line ends behind ``values[:line_ends[i]]``; the last is ``n``. None: each
        number has its own line. Numbers of a line are separated by one blank.
    """
    last = np.ones(values.size, dtype=np.bool_)
    if line_ends is not None:
        last[:] = False
        last[line_ends - 1] = True
    for start in range(0, values.size, _CHUNK):
        yield _format_chunk(values[start : start + _CHUNK], last[start : start + _CHUNK])


def _format_chunk(values: NDArray[np.int64], last: NDArray[np.bool_]) -> bytes:
    rest = np.abs(values)
    digits = len(str(int(rest.max())))
    # A row per number: sign, digits, separator; bytes that are not needed are left out below.
    text = np.empty((values.size, digits + 2), dtype=np.uint8)
    used = np.ones(text.shape, dtype=np.bool_)
    text[:, 0] = ord("-")
    used[:, 0] = values < 0
    text[:, -1] = np.where(last, _NEWLINE, ord(" "))
    for column in range(digits, 0, -1):
        used[:, column] = rest > 0
        rest, digit = np.divmod(rest, 10)
        text[:, column] = digit + ord("0")
    used[:, digits] = True  # zero has one digit
    return text[used].tobytes()
