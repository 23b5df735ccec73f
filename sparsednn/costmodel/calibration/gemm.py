"""What part of the peak the BLAS of NumPy reaches: one thread, float32, many shapes.

A product of ``m × k`` and ``k × n`` takes ``2 m n k`` flops on ``m n + m k + k n`` words. Must not
know: networks.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.calibration.fit import Residuals, residuals_of
from sparsednn.costmodel.calibration.timing import Effort, in_rounds, repeated

__all__ = ["SHAPES", "efficiency_of", "gemm_residuals", "measure_gemm"]

#: m, n, k: squares, then products with one long or one short side, as convolutions (filters ×
#: places × taps) and fully connected layers (outputs × images × inputs) have them.
SHAPES = (
    (48, 48, 48), (96, 96, 96), (192, 192, 192), (384, 384, 384), (768, 768, 768),
    (12, 6000, 75), (24, 3000, 216), (48, 1500, 432), (96, 800, 864), (192, 400, 1728),
    (320, 40, 700), (700, 40, 320), (40, 700, 320), (1400, 24, 1400), (640, 96, 1280),
)  # fmt: skip
#: Products whose sides all have so much are large: their tiles fill the registers and caches.
_LARGE = 96
_WORD = 4


def measure_gemm(effort: Effort, *, quick: bool = False) -> dict[str, Any]:
    """Return the table: ``m``, ``n``, ``k`` and ``seconds`` of products on one thread."""
    from threadpoolctl import threadpool_limits

    shapes = SHAPES[1::3] if quick else SHAPES
    rng = np.random.default_rng(0)
    actions = []
    for m, n, k in shapes:
        a, b = rng.random((m, k), np.float32), rng.random((k, n), np.float32)
        c = np.empty((m, n), np.float32)
        actions.append(repeated(partial(np.matmul, a, b, out=c)))
    with threadpool_limits(1):
        seconds = in_rounds(actions, effort)
    sides = zip("mnk", zip(*shapes, strict=True), strict=True)
    return {name: list(side) for name, side in sides} | {"seconds": seconds.tolist()}


def _work(table: dict[str, Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Flops and bytes of a table's products."""
    m, n, k = (np.asarray(table[side], np.float64) for side in ("m", "n", "k"))
    return 2 * m * n * k, _WORD * (m * n + m * k + k * n)


def efficiency_of(table: dict[str, Any], peak: float) -> float:
    """Return the part of `peak` (flop/s) that large products reach: their median, at most 1."""
    flops, _ = _work(table)
    rates = flops / np.asarray(table["seconds"])
    shortest = np.min([table["m"], table["n"], table["k"]], axis=0)
    large = shortest >= min(_LARGE, int(shortest.max()))
    return min(1.0, float(np.median(rates[large])) / peak)


def gemm_residuals(
    table: dict[str, Any], peak: float, efficiency: float, bandwidth: float, launch: float
) -> Residuals:
    """Hold the roofline against a table.

    ``seconds = launch + max(flops / (efficiency × peak), bytes / bandwidth)``.
    """
    flops, nbytes = _work(table)
    formula = launch + np.maximum(flops / (efficiency * peak), nbytes / bandwidth)
    return residuals_of(formula, table["seconds"])
