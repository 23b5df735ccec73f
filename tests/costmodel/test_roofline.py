"""Rooflines and overlap against numbers worked out by hand, and what they never do."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.costmodel.overlap import chained, exposed, overlapped
from sparsednn.costmodel.platform import Link, Node, Platform, Processor, load_platform
from sparsednn.costmodel.prediction import BOUNDS
from sparsednn.costmodel.roofline import (
    FLOPS,
    MEMORY,
    Work,
    bound_of,
    gemm,
    operation_seconds,
    ridge,
    roof_of,
    roofline,
    stream_seconds,
)
from sparsednn.errors import UsageError

#: Four cores of 100 Gflop/s, 10 GB/s alone and 25 GB/s together; 1 MB caches of 100 GB/s.
NODE = Platform(
    "toy", "made up", Processor("cpu", 1e11, 1e10, 1e6, 1e11, 0.8, 0.5, 1e-5, 5e9),
    Node(4, 8, 8e9, 2.5e10), 1, Link(1e-6, 1e10, 5e-7, 0.0),
)  # fmt: skip

WORK = st.floats(0, 1e15)
RATE = st.floats(1e3, 1e15)
TIME = st.floats(0, 1e3)


def test_a_roofline_by_hand() -> None:
    # 3 Gflop at 100 Gflop/s: 30 ms. 0.2 GB at 10 GB/s: 20 ms; 0.5 GB: 50 ms.
    assert roofline(3e9, 2e8, 1e11, 1e10) == pytest.approx(0.030)
    assert roofline(3e9, 5e8, 1e11, 1e10) == pytest.approx(0.050)
    assert ridge(1e11, 1e10) == 10
    assert roofline(3e9, 3e8, 1e11, 1e10) == pytest.approx(3e9 / 1e11) == pytest.approx(3e8 / 1e10)
    assert roofline(0, 0, 1e11, 1e10) == 0


def test_a_product_by_hand() -> None:
    # 100 × 200 by 200 × 300: 2·100·300·200 flops; 20000 + 60000 + 30000 numbers.
    assert gemm(100, 300, 200) == Work(12e6, 440e3)
    assert gemm(100, 300, 200, itemsize=8).nbytes == 880e3


@given(st.floats(1, 1e15), st.floats(1, 1e15), RATE, RATE)
def test_the_other_form_of_the_formula(
    flops: float, nbytes: float, peak: float, bandwidth: float
) -> None:
    reached = min(peak, bandwidth * (flops / nbytes))
    assert roofline(flops, nbytes, peak, bandwidth) == pytest.approx(flops / reached)


@given(WORK, WORK, RATE, RATE, st.floats(1, 100))
def test_more_work_takes_no_less_and_faster_machines_no_more(
    flops: float, nbytes: float, peak: float, bandwidth: float, factor: float
) -> None:
    seconds = roofline(flops, nbytes, peak, bandwidth)
    assert roofline(flops * factor, nbytes, peak, bandwidth) >= seconds
    assert roofline(flops, nbytes * factor, peak, bandwidth) >= seconds
    assert roofline(flops, nbytes, peak * factor, bandwidth) <= seconds
    assert roofline(flops, nbytes, peak, bandwidth * factor) <= seconds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 0, 1, 1), "work from 0 is needed"),
        ((0, math.nan, 1, 1), "work from 0 is needed"),
        ((1, 1, 0, 1), "positive rates are needed"),
        ((1, 1, 1, -1), "positive rates are needed"),
    ],
)
def test_nonsense_is_refused(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        roofline(*arguments)


@pytest.mark.parametrize(
    ("threads", "ranks", "peak", "bandwidth"),
    [
        (1, 1, 1e11, 1e10),
        (2, 1, 2e11, 2e10),
        (4, 1, 4e11, 2.5e10),  # the node's memory, not 4 · 10
        (1, 4, 1e11, 2.5e10 / 4),
        (2, 2, 2e11, 2.5e10 / 2),
        (1, 8, 1e11 / 2, 2.5e10 / 8),  # two ranks on each core
        (2, 4, 2e11 / 2, 2.5e10 / 4),
        (8, 1, 8e11 / 2, 2.5e10),
    ],
)
def test_what_a_rank_can_reach(threads: int, ranks: int, peak: float, bandwidth: float) -> None:
    roof = roof_of(NODE, 1.0, threads, ranks=ranks)
    assert roof.peak == pytest.approx(peak)
    assert roof.bandwidth == pytest.approx(bandwidth)
    assert roof_of(NODE, 0.5, threads, ranks=ranks).peak == pytest.approx(peak / 2)


def test_a_working_set_that_fits_comes_from_the_cache() -> None:
    assert stream_seconds(NODE, 1e9) == pytest.approx(0.1)
    assert stream_seconds(NODE, 1e9, working_set=1e6) == pytest.approx(0.01)
    assert stream_seconds(NODE, 1e9, working_set=1.1e6) == pytest.approx(0.1)
    assert stream_seconds(NODE, 1e9, 2, working_set=1.1e6) == pytest.approx(0.005)
    assert stream_seconds(NODE, 1e9, ranks=8, working_set=1e6) == pytest.approx(0.02)


def test_an_operation_says_what_limits_it() -> None:
    assert {FLOPS, MEMORY} <= set(BOUNDS)
    # At half the peak the ridge is at 5 flops per byte.
    assert operation_seconds(NODE, 1e9, 1e8, 0.5) == pytest.approx(0.02)
    assert bound_of(NODE, 1e9, 1e8, 0.5) == FLOPS
    assert operation_seconds(NODE, 1e9, 4e8, 0.5) == pytest.approx(0.04)
    assert bound_of(NODE, 1e9, 4e8, 0.5) == MEMORY
    assert bound_of(NODE, 1e9, 4e8, 0.5, working_set=1e5) == FLOPS


def test_a_gpu_is_one_thread() -> None:
    gpus = load_platform("gpu-node-8")
    assert roof_of(gpus, threads=16) == roof_of(gpus)
    assert roof_of(gpus, ranks=8).bandwidth == pytest.approx(gpus.processor.memory_bandwidth)


@pytest.mark.parametrize(("efficiency", "threads"), [(0.0, 1), (1.1, 1), (math.nan, 1), (0.5, 0)])
def test_operations_that_are_none_are_refused(efficiency: float, threads: int) -> None:
    with pytest.raises(UsageError, match=r"an efficiency|at least 1 thread"):
        operation_seconds(NODE, 1e9, 1e9, efficiency, threads)


@given(st.integers(1, 16), st.integers(1, 8), st.floats(1, 1e12), st.floats(1, 1e12))
def test_one_more_rank_is_never_quicker(
    threads: int, ranks: int, flops: float, nbytes: float
) -> None:
    alone = operation_seconds(NODE, flops, nbytes, 1.0, threads, ranks=ranks)
    assert operation_seconds(NODE, flops, nbytes, 1.0, threads, ranks=ranks + 1) >= alone


# Overlap


def test_overlap_by_hand() -> None:
    assert exposed(3, 4, 0.5) == 1
    assert exposed(3, 6, 0.5) == 0
    assert overlapped(3, 4, 0.5) == 5
    # Transfers of 2, 2, 2 behind steps of 1, 3, 1 at half speed: left 2; 2 - 1.5 + 2 = 2.5;
    # 2.5 - 0.5 + 2 = 4. In all 5 + 4.
    assert chained([1, 3, 1], [2, 2, 2], 0.5) == pytest.approx(9)
    assert chained([], [], 1.0) == 0


@given(TIME, TIME, st.floats(0, 1))
def test_overlap_lies_between_the_longer_and_the_sum(
    transfer: float, compute: float, overlap: float
) -> None:
    together = overlapped(transfer, compute, overlap)
    assert together <= (transfer + compute) * (1 + 1e-12)
    assert together >= max(transfer, compute) * (1 - 1e-12)
    assert overlapped(transfer, compute, 0) == transfer + compute
    assert overlapped(transfer, compute, 1) == pytest.approx(max(transfer, compute))


@given(st.lists(st.tuples(TIME, TIME), max_size=10), st.floats(0, 1), st.floats(0, 1))
def test_chains_are_bounded_and_overlap_helps(
    steps: list[tuple[float, float]], low: float, high: float
) -> None:
    computes, transfers = [c for c, _ in steps], [t for _, t in steps]
    low, high = min(low, high), max(low, high)
    slow, quick = chained(computes, transfers, low), chained(computes, transfers, high)
    assert quick <= slow * (1 + 1e-12)
    assert slow <= (sum(computes) + sum(transfers)) * (1 + 1e-12)
    assert quick >= sum(computes)
    # The last transfer has nothing to hide behind, and all of them follow each other.
    last = transfers[-1] if transfers else 0.0
    first = computes[0] if computes else 0.0
    longest = max(sum(computes) + last, first + sum(transfers))
    assert quick >= longest * (1 - 1e-9)
    assert chained(computes, transfers, 0) == pytest.approx(sum(computes) + sum(transfers))
    assert chained(computes, transfers, 1) <= quick * (1 + 1e-12)


def test_overlap_refuses_nonsense() -> None:
    with pytest.raises(UsageError, match="an overlap is from 0 to 1, found 2"):
        exposed(1, 1, 2)
    with pytest.raises(UsageError, match="times are not negative"):
        overlapped(1, -1, 0.5)
    with pytest.raises(UsageError, match="2 steps, but 1 transfers"):
        chained([1, 1], [1], 0.5)
