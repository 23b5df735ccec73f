"""Arithmetic that NumPy has no single call for; generated code calls these by name.

Arguments are arrays or NumPy scalars of one type. Overflow wraps, as in PTX; the machine runs all
of it under ``np.errstate(all="ignore")``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = ["HELPERS", "KernelFault"]

Value = Any  # an array or a NumPy scalar


class KernelFault(Exception):  # noqa: N818 - what CUDA calls it
    """A kernel did what it must not do: which of the running lanes, at which instruction."""

    def __init__(self, message: str, index: int = 0, pc: int | None = None) -> None:
        super().__init__(message)
        self.message, self.index, self.pc = message, index, pc


HELPERS: dict[str, Callable[..., Any]] = {}


def helper(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let generated code call a function."""
    HELPERS[function.__name__] = function
    return function


# -- integers


def _nonzero(b: Value, pc: int) -> None:
    if not np.all(b):
        index = int(np.flatnonzero(np.atleast_1d(b) == 0)[0])
        raise KernelFault("integer division by zero", index, pc)


@helper
def divide(a: Value, b: Value, pc: int) -> Value:
    """Divide integers, towards zero."""
    _nonzero(b, pc)
    if a.dtype.kind == "u":
        return a // b
    return (a - np.fmod(a, b)) // b


@helper
def remainder(a: Value, b: Value, pc: int) -> Value:
    """Return the remainder of `divide`."""
    _nonzero(b, pc)
    return np.fmod(a, b)


@helper
def high(a: Value, b: Value) -> Value:
    """Return the upper half of the product."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = np.dtype(f"{a.dtype.kind}{a.dtype.itemsize * 2}")
        return ((a.astype(wide) * b.astype(wide)) >> wide.type(bits)).astype(a.dtype)
    half, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = a.view("u8"), b.view("u8")
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + ((x0 * y0) >> half)
    other = x0 * y1 + (middle & low)
    result = x1 * y1 + (middle >> half) + (other >> half)
    if a.dtype.kind == "i":
        zero = np.uint64(0)
        result = result - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return result.view(a.dtype)


@helper
def lop3(a: Value, b: Value, c: Value, table: int) -> Value:
    """Combine bits by a truth table of 8 rows."""
    result = a & np.uint32(0)
    for row in range(8):
        if table >> row & 1:
            term = a if row & 4 else ~a
            term = term & (b if row & 2 else ~b)
            result = result | (term & (c if row & 1 else ~c))
    return result


@helper
def shift_left(a: Value, by: Value) -> Value:
    """Shift left; amounts beyond the width give 0."""
    width = 8 * a.dtype.itemsize
    if by.ndim == 0:
        return a << a.dtype.type(by) if by < width else a & a.dtype.type(0)
    return np.where(by < width, a << by.astype(a.dtype), a.dtype.type(0))


@helper
def shift_right(a: Value, by: Value) -> Value:
    """Shift right, with the sign if there is one; amounts beyond the width give 0 or -1."""
    width = 8 * a.dtype.itemsize
    return (
        a >> np.minimum(by, by.dtype.type(width - 1)).astype(a.dtype)
        if (a.dtype.kind == "i")
        else np.where(by < width, a >> by.astype(a.dtype), a.dtype.type(0))
    )


@helper
def funnel(a: Value, b: Value, by: Value, left: bool, clamp: bool) -> Value:
    """Shift the pair (b, a) and return the upper word (left) or the lower (right)."""
    by = np.minimum(by, np.uint32(32)) if clamp else by & np.uint32(31)
    pair = (b.astype("u8") << np.uint64(32)) | a.astype("u8")
    by = by.astype("u8")
    if left:
        return ((pair << by) >> np.uint64(32)).astype("u4")
    return (pair >> by).astype("u4")


@helper
def extract(a: Value, start: Value, length: Value) -> Value:
    """Return a bit field, with its sign if the type has one (bfe)."""
    width = 8 * a.dtype.itemsize
    wide = np.dtype("u8")
    start = np.minimum(start & np.uint32(255), np.uint32(width))
    length = np.minimum(length & np.uint32(255), np.uint32(width))
    bits = a.view(f"u{a.dtype.itemsize}").astype(wide)
    if a.dtype.kind == "i":  # positions beyond the word read the sign
        bits = a.astype("i8").view("u8") if a.dtype.itemsize == 8 else a.astype("i8").view(wide)
        shifted = bits.view("i8") >> np.minimum(start, np.uint32(63)).astype("i8")
        keep = np.minimum(length, np.uint32(64)).astype("i8")
        up = np.int64(64) - keep
        result = np.where(keep == 0, np.int64(0), (shifted << (up & 63)) >> (up & 63))
        # The sign comes from the last bit of the field that lies within the word.
        return result.astype(a.dtype)
    shifted = np.where(start < 64, bits >> (start.astype(wide) & np.uint64(63)), np.uint64(0))
    mask = np.where(
        length >= 64, ~np.uint64(0), (np.uint64(1) << (length.astype(wide) & np.uint64(63))) - 1
    )
    return (shifted & mask.astype(wide)).astype(a.dtype)


@helper
def insert(a: Value, b: Value, start: Value, length: Value) -> Value:
    """Put a bit field into b (bfi)."""
    width = 8 * a.dtype.itemsize
    start = np.minimum(start & np.uint32(255), np.uint32(width)).astype("u8")
    length = np.minimum(length & np.uint32(255), np.uint32(width)).astype("u8")
    ones = np.where(
        length >= 64, ~np.uint64(0), (np.uint64(1) << (length & np.uint64(63))) - np.uint64(1)
    )
    mask = np.where(start >= 64, np.uint64(0), ones << (start & np.uint64(63)))
    moved = np.where(start >= 64, np.uint64(0), a.astype("u8") << (start & np.uint64(63)))
    return ((b.astype("u8") & ~mask) | (moved & mask)).astype(a.dtype)


@helper
def permute(a: Value, b: Value, selector: Value) -> Value:
    """Pick four bytes of eight (prmt, the default mode)."""
    pair = (b.astype("u8") << np.uint64(32)) | a.astype("u8")
    result = np.uint32(0)
    for byte in range(4):
        pick = (selector >> np.uint32(4 * byte)) & np.uint32(15)
        value = (pair >> ((pick & np.uint32(7)).astype("u8") * np.uint64(8))) & np.uint64(255)
        value = value.astype("u4")
        sign = np.where(value & np.uint32(128), np.uint32(255), np.uint32(0))
        value = np.where(pick & np.uint32(8), sign, value)
        result = result | (value.astype("u4") << np.uint32(8 * byte))
    return result


@helper
def popcount(a: Value) -> Value:
    """Count the ones."""
    ones = [np.uint64(x) for x in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)]
    x = a.astype("u8")
    x = x - ((x >> np.uint64(1)) & ones[0])
    x = (x & ones[1]) + ((x >> np.uint64(2)) & ones[1])
    x = (x + (x >> np.uint64(4))) & ones[2]
    return ((x * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype("u4")


@helper
def leading_zeros(a: Value) -> Value:
    """Count the zeros above the highest one."""
    width = 8 * a.dtype.itemsize
    x = a
    for shift in (1, 2, 4, 8, 16, 32):
        if shift < width:
            x = x | (x >> a.dtype.type(shift))
    return (np.uint32(width) - popcount(x)).astype("u4")


@helper
def find_bit(a: Value, amount: bool) -> Value:
    """Return the place of the highest bit that differs from the sign (bfind); -1 if none."""
    bits = a.view(f"u{a.dtype.itemsize}")
    if a.dtype.kind == "i":
        bits = np.where(a < 0, ~bits, bits)
    zeros = leading_zeros(bits)
    width = np.uint32(8 * a.dtype.itemsize)
    found = zeros if amount else width - np.uint32(1) - zeros
    return np.where(zeros == width, np.uint32(0xFFFFFFFF), found).astype("u4")


@helper
def reverse_bits(a: Value) -> Value:
    """Reverse the order of the bits."""
    kind = a.dtype.type
    x = a
    width = 8 * a.dtype.itemsize
    masks = {1: 0x5555555555555555, 2: 0x3333333333333333, 4: 0x0F0F0F0F0F0F0F0F}
    masks |= {8: 0x00FF00FF00FF00FF, 16: 0x0000FFFF0000FFFF, 32: 0x00000000FFFFFFFF}
    for shift, mask in masks.items():
        if shift < width:
            m = kind(mask & ((1 << width) - 1))
            x = ((x >> kind(shift)) & m) | ((x & m) << kind(shift))
    return x


# -- floating point


@helper
def fused(a: Value, b: Value, c: Value) -> Value:
    """Return a·b + c, rounded once.

    float32 is exact for normal results: the product is exact in float64, and a sum that lands
    halfway between two float32 is settled by its own rounding error. float64 uses error-free
    transformations, correct but for rare halfway cases.
    """
    if a.dtype.itemsize == 8:
        return _fused_double(a, b, c)
    product = a.astype("f8") * b.astype("f8")
    wide = c.astype("f8")
    total = product + wide
    halfway = (total.view("i8") & 0x1FFFFFFF) == 0x10000000
    if np.any(halfway):
        total = np.where(halfway, _odd(product, wide, total), total)
    return total.astype("f4")


def _two_sum_error(a: Value, b: Value, total: Value) -> Value:
    part = total - a
    return (a - (total - part)) + (b - part)


def _odd(a: Value, b: Value, total: Value) -> Value:
    """Move an even, inexact sum to its odd neighbour towards the exact value (round to odd)."""
    error = _two_sum_error(a, b, total)
    even = (total.view("i8") & 1) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    return np.where(even & (error != 0) & np.isfinite(total), np.nextafter(total, towards), total)


def _fused_double(a: Value, b: Value, c: Value) -> Value:
    product = a * b
    split = 134217729.0
    high_a, high_b = a * split - (a * split - a), b * split - (b * split - b)
    low_a, low_b = a - high_a, b - high_b
    error = ((high_a * high_b - product) + high_a * low_b + low_a * high_b) + low_a * low_b
    total = product + c
    better = total + (error + _two_sum_error(product, c, total))
    return np.where(np.isfinite(better), better, total)


@helper
def directed(wide: Value, mode: str) -> Value:
    """Round float64 to float32 downwards (rm), upwards (rp) or towards zero (rz).

    Not exact where the float64 itself was rounded, and onto a float32 (``fma.rm``, rarely).
    """
    near = wide.astype("f4")
    back = near.astype("f8")
    down = np.nextafter(near, np.float32(-np.inf))
    up = np.nextafter(near, np.float32(np.inf))
    if mode == "rm":
        return np.where(back > wide, down, near)
    if mode == "rp":
        return np.where(back < wide, up, near)
    return np.where(
        (back > wide) & (wide > 0), down, np.where((back < wide) & (wide < 0), up, near)
    )


@helper
def flush(a: Value) -> Value:
    """Replace subnormal numbers by zeros of their sign (ftz)."""
    return np.where(np.abs(a) < np.float32(1.17549435e-38), np.copysign(np.float32(0), a), a)


@helper
def saturate(a: Value) -> Value:
    """Clamp to [0, 1]; NaN gives 0."""
    return np.fmin(np.fmax(a, a.dtype.type(0)), a.dtype.type(1))


@helper
def wide_call(function: Callable[[Value], Value], a: Value) -> Value:
    """Evaluate in float64 and round once."""
    return function(a.astype("f8")).astype(a.dtype)


@helper
def float_to_int(a: Value, to: str, mode: str) -> Value:
    """Convert with rounding; clamps to the range, NaN gives 0."""
    rounding = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[mode]
    limits = np.iinfo(to)
    wide = rounding(a.astype("f8"))
    if limits.bits < 64:
        inside = np.clip(wide, float(limits.min), float(limits.max))
        return np.where(np.isnan(wide), 0.0, inside).astype("i8").astype(to)
    big, small = wide >= float(limits.max), wide <= float(limits.min)
    safe = np.where(big | small | np.isnan(wide), 0.0, wide).astype(to)
    kind = np.dtype(to).type
    return np.where(big, kind(limits.max), np.where(small, kind(limits.min), safe))


@helper
def clamp_int(a: Value, to: str) -> Value:
    """Convert integers, clamped to the range (cvt.sat)."""
    limits, own = np.iinfo(to), np.iinfo(a.dtype)
    low, up = max(limits.min, own.min), min(limits.max, own.max)
    return np.clip(a, a.dtype.type(low), a.dtype.type(up)).astype(to)


@helper
def to_bfloat(a: Value, mode: str = "rn") -> Value:
    """Round float32 to bfloat16, as bits; NaN gives 0x7fff."""
    bits = a.view("u4")
    if mode == "rn":
        rounded = (
            bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        ) >> np.uint32(16)
    else:
        rounded = bits >> np.uint32(16)
    return np.where(np.isnan(a), np.uint32(0x7FFF), rounded).astype("u2")


@helper
def from_bfloat(a: Value) -> Value:
    """Return bfloat16 bits as float32."""
    return (a.astype("u4") << np.uint32(16)).view("f4")


@helper
def to_half(a: Value, mode: str = "rn") -> Value:
    """Round to float16, as bits; NaN gives 0x7fff."""
    half = a.astype("f2")
    if mode == "rz":
        over = np.abs(half.astype("f8")) > np.abs(a.astype("f8"))
        half = np.where(over, np.nextafter(half, np.float16(0)), half)
    return np.where(np.isnan(a), np.uint16(0x7FFF), half.view("u2"))
