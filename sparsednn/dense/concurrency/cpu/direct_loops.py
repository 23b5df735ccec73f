"""The direct convolution: tiles of pixels times filters in registers, channels last.

For some pixels and some filters (two vectors of them) all sums stay in registers while the taps of
the windows are gone through; nothing is copied to columns, and what is fused behind the product is
done before a sum is stored. Pixels are found by a table of their places, as in the indirect
convolution (Dukhan 2019, arXiv 1907.02129), but of windows instead of taps: padding is made once,
around a copy of the rows that a segment meets, so that a tap is always as far from its window.

Written as LLVM IR through numba's ``intrinsic``, since no loop in plain numba promises registers.
The intrinsics are in the file of the loops that call them, so that a cached loop is renewed with
them. Must not know: tasks, threads, what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic, jit
from sparsednn.kernels.microkernel import LANES

__all__ = ["VECTORS", "convolve", "lanes", "pack", "tile_pixels"]

Real = NDArray[np.floating[Any]]
Whole = NDArray[np.int64]

_I32, _I64 = ir.IntType(32), ir.IntType(64)

#: Vectors of filters in a tile.
VECTORS = 2
#: Pixels of the largest tile: its sums, two vectors of weights and one of inputs fit 32 registers
#: of AVX-512 and Arm (maps of ImageNet's networks are multiples of 14 or 7), or 16 of AVX2.
_LARGE = LANES != 8


def lanes(dtype: Any) -> int:
    """Elements of a dtype in one vector."""
    return LANES * 4 // int(np.dtype(dtype).itemsize)


def tile_pixels() -> int:
    """Pixels of the largest tile."""
    return 14 if _LARGE else 6


def _at(b: Any, address: Any, offset: int, type_: ir.Type) -> Any:
    """Pointer to `type_` at ``address + offset`` bytes."""
    if offset:
        address = b.add(address, ir.Constant(_I64, offset))
    return b.inttoptr(address, type_.as_pointer())


def _make_tile(pixels: int, vectors: int) -> Callable[..., None]:
    """Make the intrinsic of a tile of so many pixels and vectors of filters.

    Its arguments, all but the last int64 addresses, bytes and counts:

    x, places
        Where the first window begins; int64 ``(pixels,)``: where each does, bytes from there.
    runs, n_runs, run
        int64 bytes from the beginning of a window to each run of its elements that lie side by
        side, how many there are, and how many elements in each.
    kernel
        ``(n_runs, run, filters)``.
    tail
        ``(3, filters)``: of each sum the first is subtracted, it is multiplied by the second, and
        the third is added.
    y, step
        Where the first pixel's results go, and bytes from a pixel to the next one.
    floor
        What is less becomes this; NaN stays NaN. Its type is that of all arrays.
    """

    @intrinsic
    def multiply_tile(
        typing_context: Any,
        x: Any,
        places: Any,
        runs: Any,
        n_runs: Any,
        run: Any,
        kernel: Any,
        tail: Any,
        y: Any,
        step: Any,
        floor: Any,
    ) -> Any:
        wide = floor == types.float64
        signature = types.void(*[types.int64] * 9, floor)

        def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
            x, places, runs, n_runs, run, kernel, tail, y, step, floor = args
            scalar: Any = ir.DoubleType() if wide else ir.FloatType()
            size, count = (8, LANES // 2) if wide else (4, LANES)
            vector = ir.VectorType(scalar, count)
            width = vectors * count * size  # bytes of weights for one element of a window
            fma = cgutils.get_or_insert_function(
                b.module,
                ir.FunctionType(vector, [vector] * 3),
                f"llvm.fmuladd.v{count}f{8 * size}",
            )
            undefined = ir.Constant(vector, ir.Undefined)
            everywhere = ir.Constant(ir.VectorType(_I32, count), [0] * count)

            def splat(value: Any) -> Any:
                single = b.insert_element(undefined, value, ir.Constant(_I32, 0))
                return b.shuffle_vector(single, undefined, everywhere)

            zero = ir.Constant(vector, [0.0] * count)
            sums = [[cgutils.alloca_once(b, vector) for _ in range(vectors)] for _ in range(pixels)]
            for row in sums:
                for cell in row:
                    b.store(zero, cell)
            starts = [b.add(x, b.load(_at(b, places, 8 * p, _I64))) for p in range(pixels)]
            run_bytes = b.mul(run, ir.Constant(_I64, width))
            with cgutils.for_range(b, n_runs, intp=_I64) as outer:
                at = b.add(runs, b.mul(outer.index, ir.Constant(_I64, 8)))
                shift = b.load(_at(b, at, 0, _I64))
                windows = [b.add(start, shift) for start in starts]
                weights = b.add(kernel, b.mul(outer.index, run_bytes))
                with cgutils.for_range(b, run, intp=_I64) as inner:
                    here = b.add(weights, b.mul(inner.index, ir.Constant(_I64, width)))
                    loaded = [
                        b.load(_at(b, here, v * count * size, vector), align=size)
                        for v in range(vectors)
                    ]
                    offset = b.mul(inner.index, ir.Constant(_I64, size))
                    for p in range(pixels):
                        value = splat(b.load(_at(b, b.add(windows[p], offset), 0, scalar)))
                        for v in range(vectors):
                            cell = sums[p][v]
                            b.store(b.call(fma, [value, loaded[v], b.load(cell)]), cell)
            low = splat(floor)
            for v in range(vectors):
                mean, scale, shift = (
                    b.load(_at(b, tail, n * width + v * count * size, vector), align=size)
                    for n in range(3)
                )
                place = y
                for p in range(pixels):
                    z = b.fmul(b.fsub(b.load(sums[p][v]), mean), scale)
                    z = b.fadd(z, shift)
                    z = b.select(b.fcmp_ordered("<=", z, low), low, z)
                    b.store(z, _at(b, place, v * count * size, vector), align=size)
                    place = b.add(place, step)
            return context.get_dummy_value()

        return signature, generate

    return multiply_tile


# Larger tiles than the registers hold are never called there, but all names must be there.
_MOST = tile_pixels()
_most_2, _most_1 = _make_tile(_MOST, 2), _make_tile(_MOST, 1)
_SOME = 7 if _LARGE else 4
_some_2, _some_1 = _make_tile(_SOME, 2), _make_tile(_SOME, 1)
_four_2, _four_1 = _make_tile(4, 2), _make_tile(4, 1)
_two_2, _two_1 = _make_tile(2, 2), _make_tile(2, 1)
_one_2, _one_1 = _make_tile(1, 2), _make_tile(1, 1)


@jit
def _fill_tile(
    x: Real,
    tile: Real,
    at: int,
    rows: tuple[int, int],
    width: int,
    steps: tuple[int, int],
    channels: int,
    left: int,
    across: int,
) -> None:
    """Copy ``rows`` of the image that begins at `at`, zeros around it, to `tile`.

    The tile's rows are `across` pixels of `channels`, the image's `steps` ``(row, pixel)`` elements
    apart; rows from ``rows[0]`` on, up to the end of the tile, `rows[1]` is the image's height.
    """
    long = across * channels
    inner = min(width, across - left)
    for i in range(tile.size // long):
        line = tile[i * long : (i + 1) * long]
        row = rows[0] + i
        if row < 0 or row >= rows[1]:
            line[:] = 0
            continue
        line[: left * channels] = 0
        line[(left + inner) * channels :] = 0
        if steps[1] == channels:
            target = line[left * channels : (left + inner) * channels]
            source = x[at + row * steps[0] : at + row * steps[0] + inner * channels]
            for j in range(np.uint64(target.size)):
                target[j] = source[j]
            continue
        for p in range(inner):
            target = line[(left + p) * channels : (left + p + 1) * channels]
            begin = at + row * steps[0] + p * steps[1]
            source = x[begin : begin + channels]
            for j in range(np.uint64(channels)):
                target[j] = source[j]


@jit
def convolve(
    x: Real,
    work: Real,
    kernel: Real,
    tail: Real,
    y: Real,
    places: Whole,
    runs: Whole,
    blocks: Whole,
    segments: Whole,
    plan: Whole,
    floor: Any,
) -> None:
    """Convolve, and finish what is behind it.

    Parameters
    ----------
    x, y
        Flat memory of the tensors.
    work
        For the copy with padding of the largest segment; empty without padding.
    kernel, tail
        As `pack` made them.
    places
        Bytes from the first window of a segment to each of the others; with a uniform distance
        only those of the first tile.
    runs
        See `_make_tile`.
    blocks
        ``(n, 5)``: of each block of filters the first element in `kernel` and in `tail`, the
        first channel of its group in x, the first channel in y, and how many filters there are.
    segments
        ``(n, 5)``: where its image or first pixel begins in x and in y, pixels of the output, the
        first row of x that its tile begins with, and elements of the tile.
    plan
        Elements of a run; bytes from window to window where that is uniform, otherwise 0; elements
        from pixel to pixel of y; whether there is padding; of x height, width, elements from row
        to row and from pixel to pixel, channels; padding on the left; pixels of a tile's row.
    floor
        See `_make_tile`.
    """
    size = x.itemsize
    count = LANES * 4 // size
    run, uniform, y_step, padded = plan[0], plan[1], plan[2], plan[3]
    n_runs = runs.size
    scratch = np.empty(2 * _MOST * count, x.dtype)
    for s in range(segments.shape[0]):
        x_at, y_at, pixels = segments[s, 0], segments[s, 1], segments[s, 2]
        start = x.ctypes.data + x_at * size
        if padded:
            tile = work[: segments[s, 4]]
            _fill_tile(
                x, tile, x_at, (segments[s, 3], plan[4]), plan[5], (plan[6], plan[7]), plan[8],
                plan[9], plan[10],
            )  # fmt: skip
            start = work.ctypes.data
        for n in range(blocks.shape[0]):
            kernel_at = kernel.ctypes.data + blocks[n, 0] * size
            tail_at = tail.ctypes.data + blocks[n, 1] * size
            base = start + blocks[n, 2] * size
            filled = blocks[n, 4]
            double = filled > count
            width = 2 * count if double else count
            p = 0
            while p < pixels:
                rest = pixels - p
                m = 1
                if rest >= _MOST:
                    m = _MOST
                elif rest >= _SOME:
                    m = _SOME
                elif rest >= 4:
                    m = 4
                elif rest >= 2:
                    m = 2
                first = base + p * uniform
                table = places.ctypes.data
                if uniform == 0:
                    table += 8 * p
                target = y.ctypes.data + (y_at + p * y_step + blocks[n, 3]) * size
                step = y_step * size
                if filled < width:
                    target, step = scratch.ctypes.data, width * size
                if m == _MOST:
                    if double:
                        _most_2(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                    else:
                        _most_1(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                elif m == _SOME:
                    if double:
                        _some_2(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                    else:
                        _some_1(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                elif m == 4:
                    if double:
                        _four_2(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                    else:
                        _four_1(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                elif m == 2:
                    if double:
                        _two_2(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                    else:
                        _two_1(
                            first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                            target, step, floor,
                        )  # fmt: skip
                elif double:
                    _one_2(
                        first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                        target, step, floor,
                    )  # fmt: skip
                else:
                    _one_1(
                        first, table, runs.ctypes.data, n_runs, run, kernel_at, tail_at,
                        target, step, floor,
                    )  # fmt: skip
                if filled < width:
                    for q in range(m):
                        to = y_at + (p + q) * y_step + blocks[n, 3]
                        for j in range(filled):
                            y[to + j] = scratch[q * width + j]
                p += m


@jit
def pack(kernel: Real, packed: Real, blocks: Whole) -> None:
    """Write a kernel ``(filters, channels, r, s)`` block by block as tiles want it.

    ``packed[block, tap, channel, filter]``, blocks as for `convolve`; what a block has too many
    stays as it is (zero).
    """
    channels, taps = kernel.shape[1], kernel.shape[2] * kernel.shape[3]
    flat = kernel.reshape(kernel.size)
    deep = channels * taps
    count = LANES * 4 // kernel.itemsize
    for n in range(blocks.shape[0]):
        filled = blocks[n, 4]
        width = 2 * count if filled > count else count
        at = blocks[n, 0]
        for tap in range(taps):
            for c in range(channels):
                source = blocks[n, 3] * deep + c * taps + tap
                line = packed[at : at + width]
                for f in range(filled):
                    line[f] = flat[source + f * deep]
                at += width
