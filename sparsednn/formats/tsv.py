"""Triplet files: one ``row TAB column TAB value`` per line, 1-based, as the Graph Challenge has.

Reading takes spaces or TABs, any usual number, CRLF, blank lines at the end, and gzip (``.gz``).
A last line without a newline is refused, since it may be half of a line. A value becomes what
``numpy.float32(float(text))`` is. Memory: the file is mapped, and besides the result (10 bytes per
line or less) only one chunk per thread is held. Writing gives the official bytes: TAB, ``%e``,
newline. A float32 that seven digits do not identify is written with nine (``%.8e``), so nothing is
ever lost.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError
from sparsednn.formats import _tsv_loops as loops
from sparsednn.formats._common import thread_map
from sparsednn.formats._text import after_last_newline, cuts, load, newlines, stripped

__all__ = ["MAX_ID", "Triplets", "compress", "read_triplets", "slices", "write_triplets"]

MAX_ID = 2**31 - 1

_CHUNK = 16 << 20
_WRITE_LINES = 1 << 16  # their text stays in the cache until it is written

Indices = NDArray[np.int32] | NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Triplets:
    """Entries of a triplet file in file order, 0-based; entry k stands in line k + 1.

    ``rows`` is int32, ``cols`` is int32 or uint16, ``values`` is float32 or None if all are 1;
    each has the shape ``(entries,)``.
    """

    path: Path
    rows: NDArray[np.int32]
    cols: Indices
    values: NDArray[np.float32] | None

    @property
    def n_rows(self) -> int:
        """Largest 1-based row of the file; 0 if it is empty."""
        return int(self.rows.max()) + 1 if self.rows.size else 0

    @property
    def n_cols(self) -> int:
        """Largest 1-based column of the file; 0 if it is empty."""
        return int(self.cols.max()) + 1 if self.cols.size else 0


def read_triplets(
    path: Path,
    *,
    max_row: int = MAX_ID,
    max_col: int = MAX_ID,
    labels: tuple[str, str] = ("row", "column"),
    narrow: bool = False,
    threads: int | None = None,
    chunk_bytes: int = _CHUNK,
) -> Triplets:
    """Read a triplet file in parallel; an empty file has no entries.

    Parameters
    ----------
    path
        The file; ``.gz`` is decompressed into memory.
    max_row, max_col
        The largest 1-based ids allowed.
    labels
        What rows and columns are called in messages.
    narrow
        Keep the columns as uint16 if `max_col` allows it (at most 65536), else as int32.
    threads
        At most so many threads; None for the cores of this process.
    chunk_bytes
        A thread takes about so many bytes at a time.

    Raises
    ------
    FormatError
        Naming file and line: binary content, a line without exactly three fields, an index that
        is no whole number, 0 or too large, a value that is no finite float32, an empty line
        before the end, or a last line without a newline (a file that was cut off). Duplicates
        are found by `compress`.
    """
    text = load(path)
    end = stripped(text)
    body = after_last_newline(text, end)
    parts = [(text, a, b) for a, b in cuts(text, body, chunk_bytes)]
    if body < end:  # the loops want a newline behind every line
        last = np.frombuffer(text[body:end].tobytes() + b"\n", np.uint8)
        parts.append((last, 0, last.size))
    sizes = thread_map(lambda part: newlines(*part), parts, threads)
    firsts = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    total = int(firsts[-1])

    rows = np.empty(total, np.int32)
    narrow = narrow and max_col <= 65536
    wide_cols = np.empty(0 if narrow else total, np.int32)
    narrow_cols = np.empty(total if narrow else 0, np.uint16)
    # Files of ones never get a value array; whether this may be one, its first value tells.
    ones_first = bool(parts) and _starts_with_one(parts[0][0])
    values = None if ones_first else np.empty(total, np.float32)

    def read_part(k: int) -> NDArray[np.float32] | None:
        a, b = int(firsts[k]), int(firsts[k + 1])
        part_cols = np.empty(b - a, np.int32) if narrow else wide_cols[a:b]
        part_values = np.empty(b - a, np.float32) if values is None else values[a:b]
        ones = _parse_part(
            path, parts[k], a, (max_row, max_col), labels, rows[a:b], part_cols, part_values
        )
        if narrow:
            narrow_cols[a:b] = part_cols
        return None if ones or values is not None else part_values

    read = thread_map(read_part, range(len(parts)), threads)
    if body < end and not np.any(text[end:] == 10):
        # Half a number is a number, too: without its newline a last line cannot be trusted.
        raise FormatError(
            f"{path}: line {total}: no newline at the end of the last line: the file was cut off "
            "(if it is whole, add one)"
        )
    if any(part is not None for part in read):
        values = np.ones(total, np.float32)
        for k, part in enumerate(read):
            if part is not None:
                values[firsts[k] : firsts[k + 1]] = part
    return Triplets(path, rows, narrow_cols if narrow else wide_cols, values)


def compress(
    triplets: Triplets, n_rows: int, n_cols: int, *, by_column: bool = False
) -> tuple[NDArray[np.int64], Indices, NDArray[np.float32] | None]:
    """Sort triplets into compressed rows, or columns: ``(indptr, indices, values)``.

    Linear in the entries: one pass over a file that is sorted that way already, and three
    (counting sorts) over any other.

    Returns
    -------
    tuple
        ``(n + 1,)`` int64, ``(nnz,)`` of the triplets' dtype (ascending in every run),
        ``(nnz,)`` float32 or None.

    Raises
    ------
    FormatError
        If a pair is there twice, naming the file and both lines.
    """
    major: Indices = triplets.cols if by_column else triplets.rows
    minor: Indices = triplets.rows if by_column else triplets.cols
    n_major, n_minor = (n_cols, n_rows) if by_column else (n_rows, n_cols)
    indptr = np.zeros(n_major + 1, np.int64)
    if loops.count(major, minor, indptr):
        return indptr, minor, triplets.values
    values = np.empty(0, np.float32) if triplets.values is None else triplets.values
    minor_ptr = np.zeros(n_minor + 1, np.int64)
    loops.count(minor, major, minor_ptr)
    majors, by_minor = np.empty_like(major), np.empty_like(values)
    loops.bucket(minor, major, values, minor_ptr[:-1].copy(), majors, by_minor)
    indices, sorted_values = np.empty_like(minor), np.empty_like(values)
    a, b = loops.spread(
        minor_ptr, majors, by_minor, indptr, indptr[:-1].copy(), indices, sorted_values
    )
    if a >= 0:
        lines = np.flatnonzero((major == a) & (minor == b))[:2] + 1
        row, col = (b, a) if by_column else (a, b)
        raise FormatError(
            f"{triplets.path}: line {lines[1]}: entry ({row + 1}, {col + 1}) is there twice, "
            f"first in line {lines[0]}"
        )
    return indptr, indices, None if triplets.values is None else sorted_values


def write_triplets(
    path: Path,
    blocks: Iterable[tuple[NDArray[np.int32], Indices, NDArray[np.float32] | None]],
) -> None:
    """Write 0-based ``(rows, cols, values)`` blocks as lines, in order, to an atomic file.

    Without values (None), every line ends in ``1``. Holds one block's lines in memory at most.

    Raises
    ------
    FormatError
        If the file cannot be written.
    """
    # One thread writes while this one formats, as each takes about as long as the other: a text
    # is in use until the one after it is ready, so two buffers take turns.
    buffers = itertools.cycle(
        [np.empty(loops.LINE_BYTES * _WRITE_LINES, np.uint8) for _ in range(2)]
    )
    with atomic_file(path) as file, ThreadPoolExecutor(1) as writer:
        pending: Future[int] | None = None
        for rows, cols, values in blocks:
            for a in range(0, rows.size, _WRITE_LINES):
                b = a + _WRITE_LINES
                part = None if values is None else values[a:b]
                for text in _lines(rows[a:b], cols[a:b], part, buffers):
                    if pending is not None:
                        pending.result()
                    pending = writer.submit(file.write, text)
        if pending is not None:
            pending.result()


def slices(
    indptr: NDArray[np.int64], entries: int = _WRITE_LINES
) -> Iterator[tuple[int, int, NDArray[np.int32]]]:
    """Cut compressed rows for writing: pairs of places, and the row of each entry between them.

    >>> [(a, b, rows.tolist()) for a, b, rows in slices(np.array([0, 2, 2, 5]), 3)]
    [(0, 2, [0, 0]), (2, 5, [2, 2, 2])]
    """
    row, n_rows = 0, indptr.size - 1
    while row < n_rows:
        last = int(np.searchsorted(indptr, indptr[row] + entries, side="right")) - 1
        last = min(max(last, row + 1), n_rows)
        runs = np.diff(indptr[row : last + 1])
        a, b = int(indptr[row]), int(indptr[last])
        if b > a:
            yield a, b, np.repeat(np.arange(row, last, dtype=np.int32), runs)
        row = last


def _starts_with_one(text: NDArray[np.uint8]) -> bool:
    fields = text[:256].tobytes().partition(b"\n")[0].split()
    try:
        return len(fields) == 3 and float(fields[2]) == 1
    except ValueError:
        return False


def _parse_part(
    path: Path,
    part: tuple[NDArray[np.uint8], int, int],
    before: int,
    limits: tuple[int, int],
    labels: tuple[str, str],
    rows: NDArray[np.int32],
    cols: NDArray[np.int32],
    values: NDArray[np.float32],
) -> bool:
    """Parse one part, whose first line is line ``before + 1``; returns whether all values are 1."""
    text, at, stop = part
    entry, all_ones = 0, True
    known, value = False, np.float32(0)
    while True:
        status, at, entry, ones = loops.parse(
            text, at, stop, *limits, entry, known, value, rows, cols, values
        )
        all_ones &= ones
        if status == loops.OK:
            return all_ones
        line = _line_at(text, at)
        if status == loops.UNSURE:
            value = np.float32(np.nan)
            with contextlib.suppress(ValueError), np.errstate(over="ignore"):
                value = np.float32(float(line.split()[2]))
            if np.isfinite(value):
                known = True
                continue
        what = _explain(line, limits, labels)
        magic = bytes(text[:2]) if before == 0 and entry == 0 else b""
        if magic == b"\x1f\x8b":
            what = "gzip-compressed content: its name must end in .gz"
        raise FormatError(f"{path}: line {before + entry + 1}: {what}")


def _line_at(text: NDArray[np.uint8], at: int) -> bytes:
    size = 256
    while True:
        window = text[at : at + size].tobytes()
        line, newline, _ = window.partition(b"\n")
        if newline or len(window) < size:
            return line
        size *= 2


def _explain(line: bytes, limits: tuple[int, int], labels: tuple[str, str]) -> str:
    """Say what is wrong with a line that the compiled loop has refused."""
    if b"\0" in line:
        return "binary content (a NUL byte), expected text"
    fields = line.split()
    if not fields:
        return "empty line"
    shown = [ascii(field.decode("latin-1")[:40]) for field in fields]
    if len(fields) != 3:
        found = f"{len(fields)} field" + ("s" if len(fields) > 1 else "")
        return f"found {found} ({' '.join(shown[:4])}), expected '{' '.join(labels)} value'"
    for field, text, limit, label in zip(fields, shown, limits, labels, strict=False):
        if not field.isdigit():
            return f"{label} {text} is not a whole number"
        if len(field) > 18 or int(field) > limit:
            return f"{label} {text.strip(chr(39))} is out of range, the largest is {limit}"
        if int(field) == 0:
            return f"{label} 0 is out of range: ids start at 1"
    try:
        number = float(fields[2])
    except ValueError:
        return f"value {shown[2]} is not a number"
    if not np.isfinite(number) or abs(number) > float(np.finfo(np.float32).max):
        return f"value {shown[2]} is not a finite float32 number"
    return f"cannot read {line.decode('latin-1')[:60]!a}, expected '{' '.join(labels)} value'"


def _lines(
    rows: NDArray[np.int32],
    cols: Indices,
    values: NDArray[np.float32] | None,
    buffers: Iterator[NDArray[np.uint8]],
) -> Iterator[memoryview]:
    """Text of a block, in one piece, or in more where Python has to round a value."""
    rows32 = np.ascontiguousarray(rows, np.int32)
    cols32 = np.ascontiguousarray(cols, np.int32)
    values32 = np.ascontiguousarray([] if values is None else values, np.float32)
    entry, token = 0, b""
    while entry < rows32.size:
        out = next(buffers)
        entry, size = loops.format_lines(
            rows32,
            cols32,
            values32,
            values32.view(np.int32),
            entry,
            np.frombuffer(token, np.uint8),
            out,
        )
        yield out[:size].data
        if entry < rows32.size:
            token = b"%e" % values32[entry]
            if np.float32(float(token)) != values32[entry]:
                token = b"%.8e" % values32[entry]
