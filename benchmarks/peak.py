"""The machine's own fused-multiply-add peak, measured on the spot: registers only, no memory."""

from __future__ import annotations

import threading
import time

import numpy as np

from sparsednn.costmodel.calibration.machine import SUMS, multiply_adds
from sparsednn.kernels.microkernel import LANES

_ROUNDS = 10_000_000


def fma_lanes_per_second(threads: int, repeats: int = 5) -> float:
    """Median over `repeats` of multiply-adds (lanes) per second of all threads together."""
    weight = np.float32(0.5)
    multiply_adds(10, weight)
    rates = []
    for _ in range(repeats):
        workers = [
            threading.Thread(target=multiply_adds, args=(_ROUNDS, weight)) for _ in range(threads)
        ]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        rates.append(threads * SUMS * LANES * _ROUNDS / (time.perf_counter() - start))
    return float(np.median(rates))


if __name__ == "__main__":
    for count in (1, 2):
        print(f"{count} thread(s): {fma_lanes_per_second(count) / 1e9:.1f} billion lanes/s")
