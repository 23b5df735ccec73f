"""Compiled byte loops of the triplet files. Arrays in, status codes out: no files, no errors.

Both directions avoid arbitrary-precision arithmetic in the same way: they compute in float64,
where the error is a few units of the last place, and hand the rare number for which such an
error could change the result back to Python (`UNSURE`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit

__all__ = ["BAD", "LINE_BYTES", "OK", "UNSURE", "bucket", "count", "format_lines", "parse"]
__all__ += ["spread"]

OK: Final = 0
BAD: Final = 1
UNSURE: Final = 2

LINE_BYTES: Final = 40
"""No written line is longer: two ids of 10 digits, a value of 15 characters, separators."""

# Powers up to 1e22 are exact; the others are correctly rounded.
_POWER: Final = np.array([float(f"1e{k}") for k in range(101)])
_EXACT_POWER: Final = 22
_MARGIN: Final = 2.0**-50  # more than the sum of four rounding errors of 2^-53


@jit
def _scale(x: float, power: int) -> float:
    """Return ``x * 10**power`` for ``|power| <= 100``."""
    if power >= 0:
        x *= _POWER[power]
    else:
        x /= _POWER[-power]
    return x


@jit
def _byte(text: NDArray[np.uint8], i: int) -> int:
    """``text[i]``; an unsigned index spares the test for a negative one, a sixth of the time."""
    return int(text[np.uint64(i)])


@jit
def _whole(text: NDArray[np.uint8], i: int) -> tuple[int, int]:
    """Digits at ``text[i:]``: the number (-1 if none, or too many to be an index) and the end."""
    first = i
    number = 0
    digit = _byte(text, i) - 48
    while digit >= 0 and digit <= 9:
        number = number * 10 + digit
        i += 1
        digit = _byte(text, i) - 48
    if i == first or i - first > 18:
        return -1, i
    return number, i


@jit
def _significant(text: NDArray[np.uint8], i: int) -> tuple[np.uint64, int]:
    """First 19 significant digits at ``text[i:]``, and how many digits follow these."""
    mantissa = np.uint64(0)
    kept = 0
    dropped = 0
    while True:
        digit = _byte(text, i) - 48
        if digit >= 0 and digit <= 9:
            if kept < 19:
                mantissa = mantissa * np.uint64(10) + np.uint64(digit)
                kept += 1 if mantissa > 0 else 0
            else:
                dropped += 1
        elif digit != -2:  # the point
            return mantissa, dropped
        i += 1


@jit
def _decimal(text: NDArray[np.uint8], i: int) -> tuple[int, np.float32, int]:
    """Read the number at ``text[i:]``: status, value, end (the end is right for `UNSURE` too)."""
    negative = _byte(text, i) == 45
    if negative or _byte(text, i) == 43:
        i += 1
    first = i
    mantissa = np.uint64(0)
    digit = _byte(text, i) - 48
    while digit >= 0 and digit <= 9:
        mantissa = mantissa * np.uint64(10) + np.uint64(digit)
        i += 1
        digit = _byte(text, i) - 48
    digits = i - first
    fraction = 0
    if digit == -2:
        i += 1
        point = i
        digit = _byte(text, i) - 48
        while digit >= 0 and digit <= 9:
            mantissa = mantissa * np.uint64(10) + np.uint64(digit)
            i += 1
            digit = _byte(text, i) - 48
        fraction = i - point
        digits += fraction
    if digits == 0:
        return BAD, np.float32(0), i
    power = -fraction
    if digits > 19:
        mantissa, dropped = _significant(text, first)
        power += dropped
    if _byte(text, i) == 101 or _byte(text, i) == 69:
        i += 1
        minus = _byte(text, i) == 45
        if minus or _byte(text, i) == 43:
            i += 1
        exponent, i = _whole(text, i)
        if exponent < 0:
            return BAD, np.float32(0), i
        power += -exponent if minus else exponent
    if mantissa == 0:
        return OK, -np.float32(0) if negative else np.float32(0), i
    if power > 100 or power < -100:
        return UNSURE, np.float32(0), i
    x = _scale(np.float64(mantissa), power)
    value = np.float32(x)
    if (
        mantissa > np.uint64(2**53) or power > _EXACT_POWER or power < -_EXACT_POWER
    ) and np.float32(x * (1 - _MARGIN)) != np.float32(x * (1 + _MARGIN)):
        return UNSURE, value, i
    if np.isinf(value):
        return BAD, value, i
    return OK, -value if negative else value, i


@jit
def parse(
    text: NDArray[np.uint8],
    start: int,
    stop: int,
    max_row: int,
    max_col: int,
    first: int,
    known: bool,
    known_value: np.float32,
    rows: NDArray[np.int32],
    cols: NDArray[np.int32],
    values: NDArray[np.float32],
) -> tuple[int, int, int, bool]:
    """Read the lines of ``text[start:stop]`` into 0-based triplets from entry `first` on.

    ``text[stop - 1]`` must be a newline: every inner loop ends there at the latest, so none of
    them tests for the end. With `known`, the first line has the value `known_value`.

    Returns the status, the place where the line of the problem starts (or `stop`), the entry
    that it would have become (or the number of entries), and whether all values were 1.
    """
    i = start
    entry = first
    ones = True
    while i < stop:
        line = i
        while _byte(text, i) == 32 or _byte(text, i) == 9:
            i += 1
        row, i = _whole(text, i)
        if row < 1 or row > max_row or not (_byte(text, i) == 9 or _byte(text, i) == 32):
            return BAD, line, entry, ones
        while _byte(text, i) == 32 or _byte(text, i) == 9:
            i += 1
        col, i = _whole(text, i)
        if col < 1 or col > max_col or not (_byte(text, i) == 9 or _byte(text, i) == 32):
            return BAD, line, entry, ones
        while _byte(text, i) == 32 or _byte(text, i) == 9:
            i += 1
        status, value, i = _decimal(text, i)
        if status == UNSURE and known:
            status, value = OK, known_value
        known = False
        if status != OK:
            return status, line, entry, ones
        while _byte(text, i) == 32 or _byte(text, i) == 9:
            i += 1
        if _byte(text, i) == 13:
            i += 1
        if _byte(text, i) != 10:
            return BAD, line, entry, ones
        i += 1
        rows[entry] = row - 1
        cols[entry] = col - 1
        values[entry] = value
        ones &= value == 1
        entry += 1
    return OK, stop, entry, ones


@jit
def _put_whole(out: NDArray[np.uint8], p: int, number: int) -> int:
    """Write a number >= 0 at ``out[p:]``; returns the end."""
    size = 1
    bound = 10
    while number >= bound:
        size += 1
        bound *= 10
    for k in range(p + size - 1, p - 1, -1):
        tens = number // 10
        out[k] = 48 + number - 10 * tens
        number = tens
    return p + size


@jit
def _put_scientific(out: NDArray[np.uint8], p: int, value: np.float32, decimals: int) -> int:
    """Write `value` as ``%e`` with `decimals` digits at ``out[p:]``; returns the end.

    Returns 0 if float64 cannot tell which way to round (or `value` is not finite), -1 if the text
    would not read back as `value`.
    """
    if not np.isfinite(value):
        return 0
    x = np.float64(abs(value))
    low = 10**decimals
    exponent = 0
    whole = 0
    if x > 0:
        exponent = math.floor(math.log10(x))
        scaled = _scale(x, decimals - exponent)
        if scaled < low:
            exponent -= 1
            scaled = _scale(x, decimals - exponent)
        elif scaled >= 10 * low:
            exponent += 1
            scaled = _scale(x, decimals - exponent)
        # 24 bits of a float32 times 5^12 (28 bits) fit into a float64: exact, ties included.
        exact = 0 <= decimals - exponent <= 12
        if not exact and abs(scaled - math.floor(scaled) - 0.5) < 1e-5:
            return 0
        whole = int(np.rint(scaled))
        if whole >= 10 * low:
            whole = low
            exponent += 1
        power = exponent - decimals
        back = _scale(np.float64(whole), power)
        if (power > _EXACT_POWER or power < -_EXACT_POWER) and (
            np.float32(back * (1 - _MARGIN)) != np.float32(back * (1 + _MARGIN))
        ):
            return 0
        if np.float32(back) != np.float32(x):
            return -1
    if value < 0 or (x == 0 and math.copysign(1.0, value) < 0):
        out[p] = 45
        p += 1
    for k in range(p + 1 + decimals, p + 1, -1):
        tens = whole // 10
        out[k] = 48 + whole - 10 * tens
        whole = tens
    out[p] = 48 + whole
    out[p + 1] = 46
    p += 2 + decimals
    out[p] = 101
    out[p + 1] = 45 if exponent < 0 else 43
    exponent = abs(exponent)
    out[p + 2] = 48 + exponent // 10
    out[p + 3] = 48 + exponent % 10
    return p + 4


@jit
def format_lines(
    rows: NDArray[np.int32],
    cols: NDArray[np.int32],
    values: NDArray[np.float32],
    bits: NDArray[np.int32],
    start: int,
    token: NDArray[np.uint8],
    out: NDArray[np.uint8],
) -> tuple[int, int]:
    """Write the triplets from `start` on as lines into `out`.

    `bits` is `values` seen as integers; if both are empty, every value is written ``1``. If
    `token` is not empty, it is the text of the first value. Returns the entry at which the
    loop stopped (all are written if it is the number of rows) and the bytes written before it.
    """
    p = 0
    token_at = 0
    token_size = 0
    for k in range(start, rows.size):
        line = p
        p = _put_whole(out, p, int(rows[k]) + 1)
        out[p] = 9
        p = _put_whole(out, p + 1, int(cols[k]) + 1)
        out[p] = 9
        p += 1
        if bits.size == 0:
            out[p] = 49
            p += 1
        elif k > start and bits[k] == bits[k - 1]:
            for j in range(token_size):
                out[p + j] = out[token_at + j]
            token_at = p
            p += token_size
        else:
            token_at = p
            if k == start and token.size > 0:
                for j in range(token.size):
                    out[p + j] = token[j]
                p += token.size
            else:
                end = _put_scientific(out, p, values[k], 6)
                if end < 0:
                    end = _put_scientific(out, p, values[k], 8)
                if end <= 0:
                    return k, line
                p = end
            token_size = p - token_at
        out[p] = 10
        p += 1
    return rows.size, p


@jit
def count(major: NDArray[Any], minor: NDArray[Any], indptr: NDArray[np.int64]) -> bool:
    """Fill `indptr` (zeros on entry) with the run starts of `major`; are the pairs ascending?"""
    ascending = True
    for k in range(major.size):
        indptr[int(major[k]) + 1] += 1
        if k > 0:
            ascending &= (major[k] > major[k - 1]) | (
                (major[k] == major[k - 1]) & (minor[k] > minor[k - 1])
            )
    for r in range(indptr.size - 1):
        indptr[r + 1] += indptr[r]
    return ascending


@jit
def bucket(
    keys: NDArray[Any],
    others: NDArray[Any],
    values: NDArray[np.float32],
    place: NDArray[np.int64],
    out_others: NDArray[Any],
    out_values: NDArray[np.float32],
) -> None:
    """Stable counting sort by key; `place` (the run starts) is used up."""
    for k in range(keys.size):
        key = int(keys[k])
        p = place[key]
        place[key] = p + 1
        out_others[p] = others[k]
        if values.size > 0:
            out_values[p] = values[k]


@jit
def spread(
    minor_ptr: NDArray[np.int64],
    majors: NDArray[Any],
    values: NDArray[np.float32],
    major_ptr: NDArray[np.int64],
    place: NDArray[np.int64],
    out_minors: NDArray[Any],
    out_values: NDArray[np.float32],
) -> tuple[int, int]:
    """Second stable pass: from runs by minor to runs by major with minors ascending.

    `place` is a copy of `major_ptr` that is used up. Returns the first duplicate pair, or
    ``(-1, -1)``.
    """
    for c in range(minor_ptr.size - 1):
        for k in range(minor_ptr[c], minor_ptr[c + 1]):
            r = int(majors[k])
            p = place[r]
            if p > major_ptr[r] and int(out_minors[p - 1]) == c:
                return r, c
            place[r] = p + 1
            out_minors[p] = c
            if values.size > 0:
                out_values[p] = values[k]
    return -1, -1
