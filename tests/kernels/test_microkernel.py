"""Each register block against its readable twin."""

from __future__ import annotations

import numba
import numpy as np
import pytest

from sparsednn.kernels.microkernel import (
    FIRST,
    LANES,
    LAST,
    PREFETCH_COLUMNS,
    WHOLE,
    compress,
    emulate,
    multiply,
)


@pytest.mark.parametrize(("rows", "vectors"), sorted(multiply))
@pytest.mark.parametrize("columns", [0, 1, 5])
def test_block_equals_emulation(rows: int, vectors: int, columns: int) -> None:
    block = multiply[rows, vectors]

    @numba.njit
    def call(x, ldx, pattern, weights, order, bias, target, y, ldy, stage, lo, hi, alive, filled):
        block(
            x.ctypes.data, ldx, pattern.ctypes.data, weights.ctypes.data, order.ctypes.data,
            order.size, bias.ctypes.data, target.ctypes.data, y.ctypes.data, ldy, stage, lo, hi,
            alive.ctypes.data, filled.ctypes.data, None,
        )  # fmt: skip

    rng = np.random.default_rng(rows * 10 + vectors)
    width = vectors * LANES
    x = rng.standard_normal((9, width + 3)).astype(np.float32)
    padded = np.zeros(columns + PREFETCH_COLUMNS, np.int32)
    pattern = padded[:columns]
    pattern[:] = rng.choice(9, columns, replace=False)
    weights = rng.standard_normal((columns, rows)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32)
    target = rng.permutation(rows).astype(np.int32)
    y = np.full((rows, width + 1), 99, np.float32)
    alive = np.zeros(width, np.int32)
    lo, hi = np.float32(0), np.float32(0.8)
    order = np.arange(columns, dtype=np.int32)[::2].copy()  # as if every other row were zero
    filled = np.zeros(rows, np.uint8)
    ldx, ldy = x.shape[1], y.shape[1]
    call(x, ldx, pattern, weights, order, bias, target, y, ldy, WHOLE, lo, hi, alive, filled)
    expected = emulate(x[:, :width], pattern[order], weights[order], bias, 0.0, 0.8)
    np.testing.assert_array_equal(filled[target], expected.any(axis=1))
    np.testing.assert_allclose(y[target, :width], expected, rtol=1e-5, atol=1e-6)
    assert (y[:, width] == 99).all(), "nothing is written behind the panel"
    np.testing.assert_array_equal(alive != 0, y[:, :width].any(axis=0))


def test_compress_packs_the_live_lanes() -> None:
    @numba.njit
    def call(source, alive, target):
        return compress(source.ctypes.data, alive.ctypes.data, target.ctypes.data)

    rng = np.random.default_rng(1)
    source = rng.standard_normal(LANES).astype(np.float32)
    for _ in range(20):
        alive = rng.integers(0, 2, LANES).astype(np.int32) * rng.integers(1, 2**31 - 1)
        target = np.zeros(LANES, np.float32)
        kept = call(source, alive.astype(np.int32), target)
        assert kept == np.count_nonzero(alive)
        np.testing.assert_array_equal(target[:kept], source[alive != 0])


@pytest.mark.parametrize(("rows", "vectors"), sorted(multiply))
def test_a_block_goes_on_from_earlier_sums(rows: int, vectors: int) -> None:
    """Columns multiplied in two halves, the second resumed, give what all at once gives."""
    block = multiply[rows, vectors]

    @numba.njit
    def call(x, pattern, weights, bias, target, y, stage, lo, hi, alive):
        order = np.arange(pattern.size - PREFETCH_COLUMNS).astype(np.int32)
        block(
            x.ctypes.data, x.shape[1], pattern.ctypes.data, weights.ctypes.data, order.ctypes.data,
            order.size, bias.ctypes.data, target.ctypes.data, y.ctypes.data, y.shape[1], stage,
            lo, hi, alive.ctypes.data, 0, None,
        )  # fmt: skip

    rng = np.random.default_rng(rows * 10 + vectors)
    width = vectors * LANES
    x = rng.standard_normal((12, width)).astype(np.float32)
    weights = rng.standard_normal((12, rows)).astype(np.float32)
    bias = rng.standard_normal(rows).astype(np.float32)
    target = rng.permutation(rows).astype(np.int32)
    y = np.full((rows, width), np.nan, np.float32)
    alive = np.zeros(width, np.int32)
    lo, hi = np.float32(0), np.float32(0.8)
    for part, stage in ((slice(0, 5), FIRST), (slice(5, 12), LAST)):
        assert not alive.any(), "unfinished sums say nothing of dead columns"
        pattern = np.zeros(part.stop - part.start + PREFETCH_COLUMNS, np.int32)
        pattern[:-PREFETCH_COLUMNS] = np.arange(12)[part]
        call(x, pattern, weights[part].copy(), bias, target, y, stage, lo, hi, alive)
    expected = emulate(x, np.arange(12, dtype=np.int32), weights, bias, 0.0, 0.8)
    np.testing.assert_allclose(y[target], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(alive != 0, y.any(axis=0))
