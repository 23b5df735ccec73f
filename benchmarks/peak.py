"""The machine's own fused-multiply-add peak, measured on the spot: registers only, no memory."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types

from sparsednn._jit import intrinsic, jit
from sparsednn.kernels.microkernel import LANES

_SUMS = 24  # independent accumulators, as many as the largest block of the kernel has
_ROUNDS = 10_000_000


@intrinsic
def _multiply_add(typing_context: Any, rounds: Any, weight: Any) -> Any:
    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        rounds, weight = args
        vector = ir.VectorType(ir.FloatType(), LANES)
        kind = ir.FunctionType(vector, [vector] * 3)
        fma = cgutils.get_or_insert_function(b.module, kind, f"llvm.fma.v{LANES}f32")
        index = ir.IntType(32)
        splat = ir.Constant(vector, ir.Undefined)
        for lane in range(LANES):
            splat = b.insert_element(splat, weight, index(lane))
        sums = [cgutils.alloca_once(b, vector) for _ in range(_SUMS)]
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
def _run(rounds: int, weight: np.float32) -> float:
    return _multiply_add(rounds, weight)  # type: ignore[no-any-return]


def fma_lanes_per_second(threads: int, repeats: int = 5) -> float:
    """Median over `repeats` of multiply-adds (lanes) per second of all threads together."""
    weight = np.float32(0.5)
    _run(10, weight)
    rates = []
    for _ in range(repeats):
        workers = [threading.Thread(target=_run, args=(_ROUNDS, weight)) for _ in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates.append(threads * _SUMS * LANES * _ROUNDS / (time.perf_counter() - start))
    return float(np.median(rates))


if __name__ == "__main__":
    for count in (1, 2):
        print(f"{count} thread(s): {fma_lanes_per_second(count) / 1e9:.1f} billion lanes/s")
