"""The sampled product: gradients of stored weights only, ``G = (delta x^T)`` where W has an entry.

For a weight in row i and column j the gradient is the dot product of row i of ``delta`` and row j
of ``x`` over the batch (Demirci & Ferhatosmanoglu, arXiv 2104.11805, the update of the backward
pass). The blocks are those of the forward product (`packing`), so gradients lie where the weights
lie, and an optimizer is a loop over two flat arrays.

A dot product ends with a sum over the lanes of a vector, which alone would cost more than its
multiplications. So as many dot products as a vector has lanes are summed together: a tree of
pairwise sums of shuffled vectors ends in one vector with one dot product per lane, which is stored
as it is. Written as LLVM IR like the microkernel, and for its reasons. `emulate` is the readable
twin. Sums go over the batch in a fixed order, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic, jit
from sparsednn.kernels.microkernel import (
    _BYTES,
    _F32,
    _I32,
    _I64,
    _VEC,
    _VEC_BYTES,
    LANES,
    MAX_ROWS,
    _at,
    _int64,
    _splat,
)
from sparsednn.kernels.packing import PackedNetwork

__all__ = ["emulate", "sample", "sample_layer"]

#: Vectors of columns that a block takes at a time.
_WIDTHS = (4, 2, 1)
_REGISTERS = 16  # vectors of delta that may stay in registers


def _pairwise(b: Any, first: Any, second: Any, width: int) -> Any:
    """Add neighbouring groups of `width` lanes; groups of the results alternate."""
    low, high = [], []
    for start in range(0, LANES, 2 * width):
        low += [start + lane for lane in range(width)]
        low += [LANES + start + lane for lane in range(width)]
        high += [start + width + lane for lane in range(width)]
        high += [LANES + start + width + lane for lane in range(width)]
    indices = ir.VectorType(_I32, LANES)
    return b.fadd(
        b.shuffle_vector(first, second, ir.Constant(indices, low)),
        b.shuffle_vector(first, second, ir.Constant(indices, high)),
    )


def _lane_sums(b: Any, vector: Callable[[int], Any], offset: int = 0, stride: int = 1) -> Any:
    """One vector whose lane q is the sum of the lanes of ``vector(offset + q)``, depth first."""
    if stride == LANES:
        return vector(offset)
    return _pairwise(
        b,
        _lane_sums(b, vector, offset, 2 * stride),
        _lane_sums(b, vector, offset + stride, 2 * stride),
        stride,
    )


def _block_sample(rows: int, vectors: int) -> Callable[..., None]:
    """Make the intrinsic for a block of `rows` rows and `vectors` vectors of columns.

    Its arguments, all int64 addresses and counts but for scale (float32):

    x, ldx
        Inputs, first column of the panel; elements per row.
    pattern, n_cols
        int32 column numbers that all rows of the block share, and how many.
    delta, ldd, targets
        Gradients with respect to the sums z, first column of the panel; elements per row; int32
        ``(rows,)``: each row's place there.
    out, add, scale
        float32 ``(n_cols, rows)``, the rows side by side as the block's weights are: ``scale``
        times the products is stored (add 0) or added (add 1).
    """
    columns = max(1, LANES // rows)  # of one turn of the loop
    slots = columns * rows

    @intrinsic
    def sample_block(
        typing_context: Any,
        x: Any,
        ldx: Any,
        pattern: Any,
        n_cols: Any,
        delta: Any,
        ldd: Any,
        targets: Any,
        out: Any,
        add: Any,
        scale: Any,
    ) -> Any:
        signature = types.void(*[types.int64] * 9, types.float32)

        def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
            x, ldx, pattern, n_cols, delta, ldd, targets, out, add, scale = args
            fma = cgutils.get_or_insert_function(
                b.module, ir.FunctionType(_VEC, [_VEC] * 3), f"llvm.fmuladd.v{LANES}f32"
            )
            factor = _splat(b, scale)
            adds = b.icmp_unsigned("!=", add, _int64(0))
            row_bytes, delta_bytes = (b.mul(ld, _int64(_BYTES)) for ld in (ldx, ldd))
            places = [
                b.add(
                    delta,
                    b.mul(b.sext(b.load(_at(b, targets, _BYTES * r, _I32)), _I64), delta_bytes),
                )
                for r in range(rows)
            ]

            def of_row(r: int, v: int) -> Any:
                return b.load(_at(b, places[r], _VEC_BYTES * v, _VEC), align=_BYTES)

            kept: dict[tuple[int, int], Any] = {}
            if rows * vectors <= _REGISTERS:
                kept = {(r, v): of_row(r, v) for r in range(rows) for v in range(vectors)}

            def turn(first: Any, last: Any) -> list[Any]:
                """Sums of `columns` columns from `first` on; of the last ones perhaps twice."""
                loaded = []
                for k in range(columns):
                    at = b.add(first, _int64(k))
                    if last is not None:
                        at = b.select(b.icmp_signed("<", at, last), at, last)
                    number = b.load(_at(b, pattern, b.mul(at, _int64(_BYTES)), _I32))
                    source = b.add(x, b.mul(b.sext(number, _I64), row_bytes))
                    loaded.append(
                        [
                            b.load(_at(b, source, _VEC_BYTES * v, _VEC), align=_BYTES)
                            for v in range(vectors)
                        ]
                    )

                def product(slot: int) -> Any:
                    k, r = divmod(slot, rows)
                    total = None
                    for v in range(vectors):
                        one = kept.get((r, v)) or of_row(r, v)
                        if total is None:
                            total = b.fmul(loaded[k][v], one)
                        else:
                            total = b.call(fma, [loaded[k][v], one, total])
                    return total

                return [
                    b.fmul(_lane_sums(b, product, start), factor)
                    for start in range(0, slots, LANES)
                ]

            whole = b.mul(b.udiv(n_cols, _int64(columns)), _int64(columns))
            with cgutils.for_range_slice(b, _int64(0), whole, _int64(columns), intp=_I64) as (k, _):
                sums = turn(k, None)
                place = b.add(out, b.mul(k, _int64(_BYTES * rows)))
                for i, total in enumerate(sums):
                    target = _at(b, place, _VEC_BYTES * i, _VEC)
                    zero = ir.Constant(_VEC, [0.0] * LANES)
                    before = b.select(adds, b.load(target, align=_BYTES), zero)
                    b.store(b.fadd(before, total), target, align=_BYTES)
            rest = b.sub(n_cols, whole)
            with b.if_then(b.icmp_unsigned("!=", rest, _int64(0)), likely=False):
                sums = turn(whole, b.sub(n_cols, _int64(1)))
                place = b.add(out, b.mul(whole, _int64(_BYTES * rows)))
                cells = [cgutils.alloca_once_value(b, total) for total in sums]
                lanes = [b.ptrtoint(cell, _I64) for cell in cells]
                with cgutils.for_range(b, b.mul(rest, _int64(rows)), intp=_I64) as loop:
                    # With more than one vector of sums a turn has one column: nothing is left over.
                    offset = b.mul(loop.index, _int64(_BYTES))
                    total = b.load(_at(b, lanes[0], offset, _F32))
                    target = _at(b, place, offset, _F32)
                    before = b.select(adds, b.load(target), ir.Constant(_F32, 0.0))
                    b.store(b.fadd(before, total), target)
            return context.get_dummy_value()

        return signature, generate

    return sample_block


#: ``sample[rows, vectors]``: the intrinsics.
sample: dict[tuple[int, int], Callable[..., None]] = {
    (rows, vectors): _block_sample(rows, vectors)
    for rows in (1, 2, 4, 8)
    if rows <= MAX_ROWS
    for vectors in _WIDTHS
}

_S11, _S12, _S14 = (sample[1, v] for v in (1, 2, 4))
_S21, _S22, _S24 = (sample[2, v] for v in (1, 2, 4))
_S41, _S42, _S44 = (sample[4, v] for v in (1, 2, 4))
_S81, _S82, _S84 = (sample[min(8, MAX_ROWS), v] for v in (1, 2, 4))


def emulate(
    x: NDArray[np.float32], pattern: NDArray[np.int32], delta: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Compute what a block does: ``(n_cols, rows)``, from ``(n_in, batch)``, ``(rows, batch)``."""
    return np.asarray(x[pattern] @ delta.T, dtype=np.float32)


def _block_outer(rows: int) -> Callable[..., None]:
    """Make the intrinsic for a block of `rows` rows and one image: there is nothing to sum over.

    Arguments as for `_block_sample`; one column's products are stored as one small vector.
    """

    @intrinsic
    def outer_block(
        typing_context: Any,
        x: Any,
        ldx: Any,
        pattern: Any,
        n_cols: Any,
        delta: Any,
        ldd: Any,
        targets: Any,
        out: Any,
        add: Any,
        scale: Any,
    ) -> Any:
        signature = types.void(*[types.int64] * 9, types.float32)

        def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
            x, ldx, pattern, n_cols, delta, ldd, targets, out, add, scale = args
            kind = ir.VectorType(_F32, rows)
            undefined = ir.Constant(kind, ir.Undefined)
            zero = ir.Constant(kind, [0.0] * rows)
            adds = b.icmp_unsigned("!=", add, _int64(0))
            row_bytes, delta_bytes = (b.mul(ld, _int64(_BYTES)) for ld in (ldx, ldd))
            of_rows = undefined
            for r in range(rows):
                target = b.sext(b.load(_at(b, targets, _BYTES * r, _I32)), _I64)
                one = b.load(_at(b, delta, b.mul(target, delta_bytes), _F32))
                of_rows = b.insert_element(of_rows, b.fmul(one, scale), ir.Constant(_I32, r))
            with cgutils.for_range(b, n_cols, intp=_I64) as loop:
                number = b.load(_at(b, pattern, b.mul(loop.index, _int64(_BYTES)), _I32))
                one = b.load(_at(b, x, b.mul(b.sext(number, _I64), row_bytes), _F32))
                same = b.insert_element(undefined, one, ir.Constant(_I32, 0))
                lanes = ir.Constant(ir.VectorType(_I32, rows), [0] * rows)
                products = b.fmul(of_rows, b.shuffle_vector(same, undefined, lanes))
                place = _at(b, out, b.mul(loop.index, _int64(_BYTES * rows)), kind)
                before = b.select(adds, b.load(place, align=_BYTES), zero)
                b.store(b.fadd(before, products), place, align=_BYTES)
            return context.get_dummy_value()

        return signature, generate

    return outer_block


_O1, _O2, _O4, _O8 = (_block_outer(rows) for rows in (1, 2, 4, 8))


@jit
def sample_layer(
    net: PackedNetwork,
    layer: int,
    x: int,
    ldx: int,
    delta: int,
    ldd: int,
    columns: int,
    out: int,
    add: int,
    scale: np.float32,
) -> None:
    """Gradients of one layer's weights: ``out (+)= scale * (delta x^T)`` at the stored entries.

    `x`, `delta` are addresses of ``(n_in, ldx)`` and ``(n_out, ldd)`` float32. Columns are rounded
    up to whole vectors: in these lanes `delta` is zero and `x` finite. `out` is the address of an
    array like ``net.weight``.
    """
    pattern = net.pattern.ctypes.data
    target = net.target.ctypes.data
    vectors = (columns + LANES - 1) // LANES
    for group in range(net.layer_group[layer], net.layer_group[layer + 1]):
        p = pattern + 4 * net.group_pattern[group]
        n = net.group_pattern[group + 1] - net.group_pattern[group]
        for block in range(net.group_block[group], net.group_block[group + 1]):
            row = net.block_row[block]
            rows = net.block_row[block + 1] - row
            g = out + 4 * net.block_weight[block]
            t = target + 4 * row
            if columns == 1:
                if rows == 8:
                    _O8(x, ldx, p, n, delta, ldd, t, g, add, scale)
                elif rows == 4:
                    _O4(x, ldx, p, n, delta, ldd, t, g, add, scale)
                elif rows == 2:
                    _O2(x, ldx, p, n, delta, ldd, t, g, add, scale)
                else:
                    _O1(x, ldx, p, n, delta, ldd, t, g, add, scale)
                continue
            first = 0
            more = np.int64(add)
            while first < vectors:
                left = vectors - first
                v = 4 if left >= 4 else (2 if left >= 2 else 1)
                xs, ds = x + 4 * LANES * first, delta + 4 * LANES * first
                first += v
                if rows == 8:
                    if v == 4:
                        _S84(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                    elif v == 2:
                        _S82(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                    else:
                        _S81(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                elif rows == 4:
                    if v == 4:
                        _S44(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                    elif v == 2:
                        _S42(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                    else:
                        _S41(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                elif rows == 2:
                    if v == 4:
                        _S24(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                    elif v == 2:
                        _S22(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                    else:
                        _S21(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                elif v == 4:
                    _S14(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                elif v == 2:
                    _S12(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                else:
                    _S11(xs, ldx, p, n, ds, ldd, t, g, more, scale)
                more = np.int64(1)
