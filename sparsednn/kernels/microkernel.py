"""The inner loop: R rows with one column pattern times V vectors of columns, in registers.

Written as LLVM IR through numba's ``intrinsic``, because the speed depends on what no loop in
plain numba can promise: R x V accumulators that never leave the vector registers while a loaded
activation vector is used for all R rows (the rows share their column pattern), and a loaded weight
for all V vectors. `emulate` is the readable twin, for tests and for readers.

Must not know: layers, networks, tiles. It takes addresses (int64, bytes) and counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba.core import cgutils, config, types
from numpy.typing import NDArray

from sparsednn._jit import intrinsic

__all__ = [
    "FIRST",
    "LANES",
    "LAST",
    "MAX_ROWS",
    "MAX_VECTORS",
    "PREFETCH_COLUMNS",
    "WHOLE",
    "atomic_add",
    "compress",
    "emulate",
    "multiply",
]


def _features() -> set[str]:
    """Features of the processor that numba compiles for: this one's, unless it is told another."""
    if config.CPU_FEATURES is None:
        return {name for name, there in llvm.get_host_cpu_features().items() if there}
    return {name[1:] for name in config.CPU_FEATURES.split(",") if name.startswith("+")}


def _block_shape() -> tuple[int, int, int]:
    """Lanes of a float32 vector, rows and vectors of the largest block, for the processor.

    R x V accumulators, V activation vectors and one weight must fit the registers: 8 x 3 + 4 of
    32 (AVX-512, Arm), 4 x 3 + 4 of 16 (AVX2, SSE). Both also exceed the 8 to 10 independent
    sums that hide the latency of a fused multiply-add.
    """
    features = _features()
    if "avx512f" in features:
        return 16, 8, 3
    if "avx2" in features:
        return 8, 4, 3
    if features & {"neon", "sve"}:
        return 4, 8, 3
    return 4, 4, 3


#: Lanes of one vector; rows and vectors of columns of the largest block.
LANES, MAX_ROWS, MAX_VECTORS = _block_shape()

_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
_F32 = ir.FloatType()
_VEC = ir.VectorType(_F32, LANES)
_IVEC = ir.VectorType(_I32, LANES)
_BYTES = 4  # of a float32 and of an int32
_VEC_BYTES = _BYTES * LANES
#: A layer's weights are read once per tile, in order, and faster than the processor's own
#: prefetching keeps up with: they are asked for this far ahead (2 to 4 KiB measured best).
_PREFETCH_BYTES = 2048
#: The activations of a pattern lie anywhere; where they do not fit the second-level cache they are
#: asked for so many columns ahead. Patterns lie one behind another, so this runs into the next
#: one; behind the last one the caller keeps so many entries (of any value) to be read.
PREFETCH_COLUMNS = 8
#: Whether a block multiplies all columns of its rows, or the first or the last part of them.
WHOLE, FIRST, LAST = range(3)
#: Blocks of fewer rows multiply so little per load that the processor looks ahead far enough.
_PREFETCH_ROWS = 4


def _int64(value: int) -> ir.Constant:
    return ir.Constant(_I64, value)


def _at(builder: Any, address: Any, offset: Any, type_: ir.Type) -> Any:
    """Pointer to `type_` at ``address + offset`` bytes; `offset` is a number or an IR value."""
    if isinstance(offset, int):
        offset = _int64(offset)
    return builder.inttoptr(builder.add(address, offset), type_.as_pointer())


def _splat(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(_VEC, ir.Undefined)
    single = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(_IVEC, [0] * LANES))


def _prefetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at `address`, which may be any number: nothing is really read."""
    byte_pointer = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte_pointer, _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    read, keep_near, data = (ir.Constant(_I32, value) for value in (0, 3, 1))
    builder.call(function, [builder.inttoptr(address, byte_pointer), read, keep_near, data])


def _finish_block(
    b: Any,
    sums: list[list[Any]],
    rows_of_y: list[tuple[Any, Any]],
    bias: Any,
    lo: Any,
    hi: Any,
    alive: Any,
    filled: Any,
) -> None:
    """Generate the end of a block: bias, clamp, store, and note what is not zero."""
    vectors = len(sums[0])
    low, high = _splat(b, lo), _splat(b, hi)
    bits: list[Any] = [ir.Constant(_IVEC, [0] * LANES)] * vectors
    one = ir.Constant(_IVEC, [1] * LANES)
    mark_rows = b.icmp_unsigned("!=", filled, _int64(0))
    for r, (target, place) in enumerate(rows_of_y):
        offset = _splat(b, b.load(_at(b, bias, _BYTES * r, _F32)))
        of_row = ir.Constant(_IVEC, [0] * LANES)
        for v in range(vectors):
            z = b.fadd(b.load(sums[r][v]), offset)
            # Ordered comparisons are false for NaN, so that NaN goes through unhidden.
            z = b.select(b.fcmp_ordered("<", z, low), low, z)
            z = b.select(b.fcmp_ordered(">", z, high), high, z)
            b.store(z, _at(b, place, _VEC_BYTES * v, _VEC), align=_BYTES)
            # Shifting out the sign makes -0.0 count as the zero that it is.
            magnitude = b.shl(b.bitcast(z, _IVEC), one)
            bits[v] = b.or_(bits[v], magnitude)
            of_row = b.or_(of_row, magnitude)
        with b.if_then(mark_rows):
            lanes = b.icmp_unsigned("!=", of_row, ir.Constant(_IVEC, [0] * LANES))
            mask = b.bitcast(lanes, ir.IntType(LANES))
            mark = b.zext(b.icmp_unsigned("!=", mask, mask.type(0)), ir.IntType(8))
            flag = _at(b, filled, target, ir.IntType(8))
            b.store(b.or_(b.load(flag), mark), flag)
    for v in range(vectors):
        place = _at(b, alive, _VEC_BYTES * v, _IVEC)
        b.store(b.or_(b.load(place, align=_BYTES), bits[v]), place, align=_BYTES)


def _block_multiply(rows: int, vectors: int) -> Callable[..., None]:
    """Make the intrinsic for a block of `rows` rows times `vectors` vectors of columns.

    Its arguments, all int64 addresses and counts but for lo and hi (float32):

    x, ldx
        Activations of the layer's input, first column of the panel; elements per row.
    pattern, weights
        int32 column indices that all rows of the block share; float32 ``(columns, rows)``: for
        each column the rows' weights, side by side.
    order, n_cols
        int32 positions in the pattern that are to be multiplied, and how many: all of them, or
        those whose activations are not all zero in this tile.
    bias, targets
        float32 and int32, ``(rows,)``: each row's bias, and its place in the output.
    y, ldy
        Output, first column of the panel; elements per row.
    stage
        For rows whose columns are multiplied in two parts. WHOLE (0): all columns at once. FIRST:
        the sums are stored as they are (no bias, no clamp, no alive bits). LAST: sums start at what
        is in `y`, and are finished.
    lo, hi
        The activation clamps to [lo, hi]: (0, inf) is ReLU, (-inf, inf) the identity.
    alive
        int32 per column of the panel: the bits of every nonzero output are or-ed into it.
    filled
        uint8 per output row: set to 1 where a row is not all zero in this panel. 0 (no address):
        nobody wants to know.
    base
        None, or an address: then `weights` are int32 places in the float32 array that begins there
        (the transposed product reads the weights where the forward product keeps them).
    """

    @intrinsic
    def multiply_block(
        typing_context: Any,
        x: Any,
        ldx: Any,
        pattern: Any,
        weights: Any,
        order: Any,
        n_cols: Any,
        bias: Any,
        targets: Any,
        y: Any,
        ldy: Any,
        stage: Any,
        lo: Any,
        hi: Any,
        alive: Any,
        filled: Any,
        base: Any,
    ) -> Any:
        reals = [types.float32] * 2
        signature = types.void(*[types.int64] * 11, *reals, types.int64, types.int64, base)
        indirect = isinstance(base, types.Integer)

        def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
            x, ldx, pattern, weights, order, n_cols, bias, targets = args[:8]
            y, ldy, stage, lo, hi, alive, filled, values = args[8:]
            fma = cgutils.get_or_insert_function(
                b.module, ir.FunctionType(_VEC, [_VEC] * 3), f"llvm.fmuladd.v{LANES}f32"
            )
            sums = [[cgutils.alloca_once(b, _VEC) for _ in range(vectors)] for _ in range(rows)]
            zero = ir.Constant(_VEC, [0.0] * LANES)
            rows_of_y = []
            for r in range(rows):
                target = b.sext(b.load(_at(b, targets, _BYTES * r, _I32)), _I64)
                rows_of_y.append((target, b.add(y, b.mul(b.mul(target, ldy), _int64(_BYTES)))))
            with b.if_else(b.icmp_unsigned("==", stage, _int64(LAST))) as (resumed, fresh):
                with resumed:
                    for (_, place), row in zip(rows_of_y, sums, strict=True):
                        for v, cell in enumerate(row):
                            start = b.load(_at(b, place, _VEC_BYTES * v, _VEC), align=_BYTES)
                            b.store(start, cell)
                with fresh:
                    for row in sums:
                        for cell in row:
                            b.store(zero, cell)
            row_bytes = b.mul(ldx, _int64(_BYTES))
            with cgutils.for_range(b, n_cols, intp=_I64) as loop:
                place = b.mul(loop.index, _int64(_BYTES))
                position = b.sext(b.load(_at(b, order, place, _I32)), _I64)
                at = b.mul(position, _int64(_BYTES))
                column = b.sext(b.load(_at(b, pattern, at, _I32)), _I64)
                source = b.add(x, b.mul(column, row_bytes))
                loaded = [
                    b.load(_at(b, source, _VEC_BYTES * v, _VEC), align=_BYTES)
                    for v in range(vectors)
                ]
                first = b.add(weights, b.mul(at, _int64(rows)))
                if rows >= _PREFETCH_ROWS:
                    _prefetch(b, b.add(first, _int64(_PREFETCH_BYTES)))
                    later = b.load(_at(b, b.add(pattern, at), _BYTES * PREFETCH_COLUMNS, _I32))
                    ahead = b.add(x, b.mul(b.sext(later, _I64), row_bytes))
                    for v in range(vectors):
                        _prefetch(b, b.add(ahead, _int64(_VEC_BYTES * v)))
                if indirect and rows >= _PREFETCH_ROWS:
                    for r in range(rows):
                        offset = _BYTES * (rows * PREFETCH_COLUMNS + r)
                        slot = b.sext(b.load(_at(b, first, offset, _I32)), _I64)
                        _prefetch(b, b.add(values, b.mul(slot, _int64(_BYTES))))
                for r in range(rows):
                    if indirect:
                        slot = b.sext(b.load(_at(b, first, _BYTES * r, _I32)), _I64)
                        one = b.load(_at(b, values, b.mul(slot, _int64(_BYTES)), _F32))
                    else:
                        one = b.load(_at(b, first, _BYTES * r, _F32))
                    weight = _splat(b, one)
                    for v in range(vectors):
                        new = b.call(fma, [weight, loaded[v], b.load(sums[r][v])])
                        b.store(new, sums[r][v])
            with b.if_else(b.icmp_unsigned("==", stage, _int64(FIRST))) as (unfinished, finished):
                with unfinished:
                    for (_, place), row in zip(rows_of_y, sums, strict=True):
                        for v, cell in enumerate(row):
                            b.store(b.load(cell), _at(b, place, _VEC_BYTES * v, _VEC), align=_BYTES)
                with finished:
                    _finish_block(b, sums, rows_of_y, bias, lo, hi, alive, filled)
            return context.get_dummy_value()

        return signature, generate

    return multiply_block


#: ``multiply[rows, vectors]``: the intrinsics, for rows 1, 2, 4 … MAX_ROWS and all vectors.
multiply: dict[tuple[int, int], Callable[..., None]] = {
    (rows, vectors): _block_multiply(rows, vectors)
    for rows in (1, 2, 4, 8)
    if rows <= MAX_ROWS
    for vectors in range(1, MAX_VECTORS + 1)
}


def emulate(
    x: NDArray[np.float32],
    pattern: NDArray[np.int32],
    weights: NDArray[np.float32],
    bias: NDArray[np.float32],
    lo: float,
    hi: float,
) -> NDArray[np.float32]:
    """Compute what a block does: ``clamp(weights.T @ x[pattern] + bias, lo, hi)``."""
    z = weights.T @ x[pattern] + bias[:, None]
    return np.asarray(np.clip(z, lo, hi), dtype=np.float32)


@intrinsic
def compress(
    typing_context: Any, source: Any, alive: Any, target: Any
) -> Any:  # pragma: no cover - compiled
    """Store the lanes of one vector whose `alive` word is not zero, packed, at `target`.

    Arguments are addresses: float32 source, int32 alive words, float32 target. All LANES lanes of
    the target are written, the ones behind the packed lanes with garbage, so the caller leaves
    room for a whole vector and writes from left to right. Returns how many lanes were kept.
    """
    signature = types.int64(types.int64, types.int64, types.int64)

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        source, alive, target = args
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        squeeze = cgutils.get_or_insert_function(
            b.module,
            ir.FunctionType(_VEC, [_VEC, mask_type, _VEC]),
            f"llvm.experimental.vector.compress.v{LANES}f32",
        )
        words = b.load(_at(b, alive, 0, _IVEC), align=_BYTES)
        mask = b.icmp_unsigned("!=", words, ir.Constant(_IVEC, [0] * LANES))
        values = b.load(_at(b, source, 0, _VEC), align=_BYTES)
        packed = b.call(squeeze, [values, mask, ir.Constant(_VEC, ir.Undefined)])
        b.store(packed, _at(b, target, 0, _VEC), align=_BYTES)
        bits = b.bitcast(mask, ir.IntType(LANES))
        return b.ctpop(b.zext(bits, _I64))

    return signature, generate


@intrinsic
def atomic_add(
    typing_context: Any, address: Any, amount: Any
) -> Any:  # pragma: no cover - compiled
    """Add to the int64 at `address` and return what was there before: how threads share work."""
    signature = types.int64(types.int64, types.int64)

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        pointer = b.inttoptr(args[0], _I64.as_pointer())
        return b.atomic_rmw("add", pointer, args[1], "monotonic")

    return signature, generate
