"""What the processor can do at most: fused multiply-adds in registers; and what a small call takes.

The peak is measured, not read from a data sheet: a virtual machine does not tell its clock, and a
vector unit may be half as wide as its instructions. Must not know: memory and ranks.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from sparsednn._jit import intrinsic, jit
from sparsednn.costmodel.calibration.timing import Action, Effort, in_rounds, repeated
from sparsednn.kernels.cpu import in_threads
from sparsednn.kernels.microkernel import LANES

__all__ = ["SUMS", "measure_launch", "measure_peak", "multiply_adds"]

SUMS = 24  # independent accumulators, enough to fill the pipelines and to stay in registers
_ROUNDS = 10_000  # of all accumulators, in one repetition


@intrinsic
def _multiply_add(typing_context: Any, rounds: Any, weight: Any) -> Any:
    """``sums = weight × sums + weight`` on vectors, so often, without touching memory."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        rounds, weight = args
        vector = ir.VectorType(ir.FloatType(), LANES)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{LANES}f32")
        index = ir.IntType(32)
        splat = ir.Constant(vector, ir.Undefined)
        for lane in range(LANES):
            splat = b.insert_element(splat, weight, index(lane))
        sums = [cgutils.alloca_once(b, vector) for _ in range(SUMS)]
        for number, cell in enumerate(sums):
            b.store(ir.Constant(vector, [float(number + lane) for lane in range(LANES)]), cell)
        with cgutils.for_range(b, rounds, intp=ir.IntType(64)):
            for cell in sums:
                b.store(b.call(fma, [splat, b.load(cell), splat]), cell)
        total = b.load(sums[0])
        for cell in sums[1:]:
            total = b.fadd(total, b.load(cell))
        return b.extract_element(total, index(0))  # so that nothing can be optimised away

    return types.float32(types.int64, types.float32), generate


@jit
def multiply_adds(rounds: int, weight: np.float32) -> float:
    """Do `SUMS` independent multiply-adds of `LANES` numbers, so often."""
    return _multiply_add(rounds, weight)  # type: ignore[no-any-return]


def measure_peak(cores: int, effort: Effort) -> tuple[float, float]:
    """Return flop/s in float32 of one core, and of all cores together (a multiply-add is 2)."""

    def on(threads: int) -> Action:
        def action(repeats: int) -> float:
            def work() -> None:
                multiply_adds(_ROUNDS * repeats, np.float32(0.5))

            begin = time.perf_counter()
            in_threads(work, threads)
            return time.perf_counter() - begin

        return action

    flops = 2.0 * LANES * SUMS * _ROUNDS
    one, every = in_rounds([on(1), on(cores)], effort)
    return flops / float(one), cores * flops / float(every)


def measure_launch(effort: Effort) -> float:
    """Return the seconds of one small NumPy call: what starting an operation costs at least."""
    a, b, c = (np.full((8, 8), 0.5, np.float32) for _ in range(3))

    def chain() -> None:
        np.matmul(a, b, out=c)
        np.add(c, b, out=c)
        np.maximum(c, a, out=c)

    return float(in_rounds([repeated(chain)], effort)[0]) / 3
