"""Kernels of training: sampled and transposed products, teams of threads, the cache's stamp."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from networks import random_layer
from sparsednn import SparseLayer, SparseNetwork, _jit
from sparsednn._jit import jit
from sparsednn.kernels.microkernel import LANES, MAX_VECTORS, WHOLE, multiply
from sparsednn.kernels.packing import PackedNetwork, Rows, divide, pack, pack_rows
from sparsednn.kernels.sampled import emulate, sample_layer
from sparsednn.kernels.team import Team, arrive, meet, wait_until, watch
from sparsednn.kernels.tiles import multiply_layer


def tile(rng: np.random.Generator, rows: int, columns: int, behind: float) -> np.ndarray:
    """Columns, and something in the lanes behind them."""
    ld = -(-columns // LANES) * LANES + 3 * LANES
    made = np.full((rows, ld), behind, np.float32)
    made[:, :columns] = rng.standard_normal((rows, columns))
    return made


sizes = st.integers(1, 70)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.sampled_from([1, 2, 15, 16, 17, 33, 64, 100]), st.integers(0, 2**31))
def test_sampled_product(n_out: int, n_in: int, columns: int, seed: int) -> None:
    """Stored, then added to, with a factor; also for one image, empty rows, shared patterns."""
    rng = np.random.default_rng(seed)
    shared, density = rng.choice([0.0, 0.5, 1.0]), rng.choice([0.0, 0.1, 0.5, 1.0])
    layer = random_layer(rng, n_out, n_in, density=float(density), shared=float(shared))
    net = pack(SparseNetwork([layer]))
    # Behind the columns delta is zero, and x is not.
    x, delta = tile(rng, n_in, columns, 7.0), tile(rng, n_out, columns, 0.0)
    found = np.full(net.weight.size, 5.0, np.float32)
    for add in (0, 1):
        sample_layer(
            net, 0, x.ctypes.data, x.shape[1], delta.ctypes.data, delta.shape[1], columns,
            found.ctypes.data, add, np.float32(0.5),
        )  # fmt: skip
    rows = np.repeat(np.arange(n_out), np.diff(layer.indptr))
    dense = delta[:, :columns] @ x[:, :columns].T
    expected = pack(
        SparseNetwork([SparseLayer(layer.indptr, layer.indices, dense[rows, layer.indices], n_in)])
    )
    np.testing.assert_allclose(found, expected.weight, rtol=1e-4, atol=1e-4)


def test_emulation_is_the_sampled_product_of_a_block() -> None:
    rng = np.random.default_rng(1)
    x, delta = rng.standard_normal((9, 5)), rng.standard_normal((3, 5))
    pattern = np.array([1, 4, 8], np.int32)
    found = emulate(x.astype(np.float32), pattern, delta.astype(np.float32))
    for k, column in enumerate(pattern):
        for row in range(3):
            assert found[k, row] == pytest.approx(float(x[column] @ delta[row]), rel=1e-5)


def product(
    net: PackedNetwork, part: int, x: np.ndarray, rows: int, base: int | None
) -> np.ndarray:
    """One part of a packed network on a tile."""
    columns = x.shape[1] - 3 * LANES
    y = np.zeros((rows, x.shape[1]), np.float32)
    alive = np.zeros(x.shape[1] + LANES * MAX_VECTORS, np.int32)
    order = np.tile(np.arange(net.pattern.size + 1, dtype=np.int32), (2, 1))
    multiply_layer(
        net, part, x.ctypes.data, x.shape[1], y.ctypes.data, y.shape[1], columns,
        alive.ctypes.data, 0, np.empty(0, np.uint8), order, WHOLE, base,
    )  # fmt: skip
    return y[:, :columns]


@settings(max_examples=30, deadline=None)
@given(sizes, sizes, st.integers(0, 2**31))
def test_weights_at_other_places(n_out: int, n_in: int, seed: int) -> None:
    """A packing that holds places gives what one that holds the weights gives, bit by bit."""
    rng = np.random.default_rng(seed)
    layer = random_layer(rng, n_out, n_in, shared=float(rng.choice([0.0, 1.0])))
    weights = rng.permutation(layer.nnz + 5).astype(np.float32)
    places = rng.integers(0, weights.size, layer.nnz).astype(np.int32)
    target = np.arange(n_out, dtype=np.int32)

    def packed(values: np.ndarray, dtype: type) -> PackedNetwork:
        rows = Rows(layer.indptr, layer.indices, values, np.zeros(n_out, np.float32), target)
        return pack_rows([rows], [n_in, n_out], layer.nnz, dtype=dtype, group_rows=5)

    x = tile(rng, n_in, 2 * LANES, 0.0)
    direct = product(packed(weights[places], np.float32), 0, x, n_out, None)
    found = product(packed(places, np.int32), 0, x, n_out, weights.ctypes.data)
    assert np.array_equal(found, direct)


def test_parts_for_threads_are_all_rows_once() -> None:
    rng = np.random.default_rng(3)
    layers = [random_layer(rng, n, m, shared=s) for n, m, s in ((40, 9, 0), (1, 40, 1), (30, 1, 1))]
    net = pack(SparseNetwork(layers))
    for threads in (1, 2, 3, 7):
        cut = divide(net, threads)
        assert cut.layer_group.size == 3 * threads + 1
        assert np.all(np.diff(cut.layer_group) >= 0)
        assert np.array_equal(cut.layer_group[::threads], net.layer_group)
        assert cut.low.size == cut.high.size == cut.code.size == 3 * threads


@jit
def rounds(values: np.ndarray, threads: int, thread: int, meeting: int, times: int) -> None:
    """Each thread adds to its own number what its neighbour's was before, and they meet."""
    for _ in range(times):
        before = values[(thread + 1) % threads]
        meet(meeting, threads)
        values[thread] += before
        meet(meeting, threads)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_meetings(threads: int) -> None:
    values = np.ones(threads, np.int64)
    meeting = np.zeros(1, np.int64)
    others = [
        threading.Thread(target=rounds, args=(values, threads, n, meeting.ctypes.data, 40))
        for n in range(1, threads)
    ]
    for other in others:
        other.start()
    rounds(values, threads, 0, meeting.ctypes.data, 40)
    for other in others:
        other.join()
    assert values.tolist() == [2**40] * threads


def test_a_team_works_awake_and_from_sleep() -> None:
    orders = np.zeros(2, np.int64)  # what is added; whether to stop
    sums = np.zeros(4, np.int64)

    @jit
    def part(orders, sums, number, given, ended, seen):  # type: ignore[no-untyped-def]
        while True:
            if number != 0:
                now = watch(given, seen)
                if now == seen:
                    return seen
                seen = now
                if orders[1] != 0:
                    return -1
            sums[number] += orders[0]
            if number == 0:
                wait_until(ended, seen)
                return seen
            arrive(ended)

    team = Team(4, lambda *given: int(part(orders, sums, *given)))
    before = threading.active_count()
    total = 0
    for round_ in range(30):
        orders[0] = round_
        total += round_
        part(orders, sums, 0, 0, team.ended, team.begin())
        assert sums.tolist() == [total] * 4
        if round_ % 10 == 0:
            time.sleep(0.05)  # by now they have given up watching
    orders[1] = 1
    team.begin()
    for _ in range(200):
        if threading.active_count() == before - 3:
            break
        time.sleep(0.01)
    assert threading.active_count() == before - 3


def test_what_is_cached_depends_on_all_kernels() -> None:
    names = {name for name, _, _ in _jit._sources()}
    assert {"_jit.py", "compiled.py", "microkernel.py", "sampled.py", "backprop.py"} <= names
    assert len(multiply) >= MAX_VECTORS
