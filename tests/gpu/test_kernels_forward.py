"""The kernels of inference, one by one, against NumPy: on the twin, as PTX, on a device."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from networks import ACTIVATIONS, random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.gpu.launcher import Launcher
from sparsednn.gpu.network import DeviceNetwork
from sparsednn.gpu.storage import TILE, narrow, stored_dtype, widen
from sparsednn.kernels.reference import forward

#: Of the sums of absolute products of a row: rounding of float32, and of what is stored.
ROUNDING = (3e-7, 2e-3, 2e-2)


def to_tiles(x, lines=None, store=0):
    """``(n, columns)`` float32 as ``(tiles, lines, TILE)`` of stored values, zero beyond them."""
    n, columns = x.shape
    tiles = max(1, -(-columns // TILE))
    padded = np.zeros((lines or n, tiles * TILE), np.float32)
    padded[:n, :columns] = x
    return np.ascontiguousarray(narrow(padded.reshape(-1, tiles, TILE).transpose(1, 0, 2), store))


def from_tiles(memory, n, columns, lines=None, store=0):
    lines = lines or n
    tiles = -(-columns // TILE)
    here = widen(memory.reshape(-1)[: tiles * lines * TILE].reshape(tiles, lines, TILE), store)
    return here.transpose(1, 0, 2).reshape(lines, -1)[:n, :columns]


def columns_of(bits, columns):
    """Which columns have their bit set."""
    column = np.arange(columns)
    return (bits[column // TILE] >> (column % TILE).astype(np.uint32)) & 1 == 1


def place(device, network, store=0):
    return DeviceNetwork(device, network, store, 0)


def magnitude(layer, x):
    """What rounding may be a share of: the sums of absolute products, and the bias."""
    return abs(layer.weight) @ np.abs(x) + np.abs(layer.bias)[:, None]


def run_layers(device, placed, x, first, last, *, width=0, store=0, near=0, spare=0):
    """Start `layer` once, or `resident` for several; returns outputs and living columns."""
    n_in, n_out = placed.widths[first], placed.widths[last]
    columns = x.shape[1]
    before = device.upload(to_tiles(x, n_in + spare, store))
    tiles = before.shape[0]
    after = device.zeros(tiles * (n_out + spare) * TILE, stored_dtype(store))
    count = device.upload(np.array([columns], np.int32))
    alive = device.zeros(tiles, np.uint32)
    launch = Launcher(device, placed.index_bits, placed.store)
    arrays = placed.layer(first, None)
    lines = np.int32(n_in + spare), np.int32(n_out + spare)
    if width:
        most = max(placed.widths[first : last + 1])
        function = launch.function("layer", "resident", THREADS=64, RESIDENT_WIDTH=width)
        arguments = (
            before, after, *arrays[:-1], np.int32(first), np.int32(last), count, alive, *lines,
            np.int32(most),
        )  # fmt: skip
        size = np.dtype(stored_dtype(store)).itemsize
        device.launch(function, 2, 64, arguments, shared=2 * most * width * size)
    else:
        function = launch.function("layer", "layer", THREADS=64)
        arguments = (
            before, after, *arrays[:-1], np.int32(arrays.number), count, alive, *lines,
            np.int32(near),
        )  # fmt: skip
        device.launch(function, 3, 64, arguments)
    device.synchronize()
    y = from_tiles(device.download(after), n_out, columns, n_out + spare, store)
    return y, columns_of(device.download(alive), columns)


SHAPES = [(1, 1, 0.5, 1), (5, 7, 0.4, 3), (33, 20, 0.3, 32), (40, 17, 0.0, 33), (64, 50, 0.15, 70)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("activation", [*ACTIVATIONS, "clamped_relu:32"])
def test_a_layer_equals_the_formula(device, shape, activation):
    n_out, n_in, density, columns = shape
    rng = np.random.default_rng(n_out)
    layer = random_layer(rng, n_out, n_in, density=density, shared=0.7, activation=activation)
    x = rng.standard_normal((n_in, columns)).astype(np.float32)
    x[:, rng.random(columns) < 0.3] = 0
    network = SparseNetwork([layer])
    y, alive = run_layers(
        device, place(device, network), x, 0, 1, near=columns % 2, spare=columns % 3
    )
    expected = forward(layer, x)
    assert (np.abs(y - expected) <= ROUNDING[0] * (magnitude(layer, x) + 1)).all()
    assert np.array_equal(alive, (y != 0).any(axis=0))


@pytest.mark.parametrize("store", [1, 2], ids=["fp16", "bf16"])
def test_halves_are_stored_and_summed_in_fp32(device, store):
    rng = np.random.default_rng(store)
    layer = random_layer(rng, 30, 25, shared=0.6, activation="relu")
    x = rng.standard_normal((25, 40)).astype(np.float32)
    y, alive = run_layers(
        device, place(device, SparseNetwork([layer]), store), x, 0, 1, store=store
    )
    # The same arithmetic from values that are exactly those that are stored: one rounding is left.
    values = widen(narrow(layer.values, store), store)
    rounded = SparseLayer(
        layer.indptr, layer.indices, values, 25, bias=layer.bias, activation="relu"
    )
    seen = widen(narrow(x, store), store)
    exact = forward(rounded, seen)
    slack = 3e-7 * (magnitude(rounded, seen) + 1)
    low, high = (widen(narrow(np.maximum(exact + s, 0), store), store) for s in (-slack, slack))
    assert ((low <= y) & (y <= high)).all()
    assert np.array_equal(alive, (y != 0).any(axis=0))


@pytest.mark.parametrize("width", [8, 16])
def test_layers_in_shared_memory_equal_single_ones(device, width):
    rng = np.random.default_rng(width)
    widths = (19, 41, 8, 1, 23)
    kinds = ("relu", "tanh", "identity", "clamped_relu:2.0")
    network = SparseNetwork(
        [
            random_layer(rng, b, a, shared=0.6, activation=kind)
            for (a, b), kind in zip(itertools.pairwise(widths), kinds, strict=True)
        ]
    )
    x = rng.standard_normal((19, 45)).astype(np.float32)
    placed = place(device, network)
    y, alive = run_layers(device, placed, x, 0, 4, width=width)
    for k in range(4):
        x, _ = run_layers(device, placed, x, k, k + 1)
    assert np.array_equal(y, x)
    assert np.array_equal(alive, (y != 0).any(axis=0))


def test_many_columns_take_the_dense_form(device):
    rng = np.random.default_rng(4)
    layer = random_layer(rng, 20, 15, density=0.5, shared=0.0, activation="relu")
    placed = place(device, SparseNetwork([layer]))
    x = rng.standard_normal((15, 3)).astype(np.float32)
    few, _ = run_layers(device, placed, x, 0, 1)
    many, _ = run_layers(device, placed, np.repeat(x, 200, axis=1), 0, 1)
    assert np.array_equal(np.repeat(few, 200, axis=1), many)  # zeros add nothing, in the same order
    table = device.download(placed.layer(0, None).table).reshape(-1, 16)
    assert table[0, 12] == 1
    assert table[0, 13] == 512


def test_nan_and_infinity_go_through(device):
    layer = SparseLayer([0, 1, 2, 3], [0, 1, 2], [1.0, 1.0, -1.0], 3, activation="clamped_relu:2.0")
    x = np.array([[np.nan], [np.inf], [np.inf]], np.float32)
    y, _ = run_layers(device, place(device, SparseNetwork([layer])), x, 0, 1)
    assert np.isnan(y[0, 0])
    assert y[1, 0] == 2
    assert y[2, 0] == 0


@pytest.mark.parametrize("store", [0, 2], ids=["fp32", "bf16"])
def test_negative_zero_is_dead(device, store):
    layer = SparseLayer([0, 1], [0], [-1e-30], 1, bias=[-0.0])
    x = np.array([[1e-30, 1e30]], np.float32)  # the first product is below every float32
    y, alive = run_layers(
        device, place(device, SparseNetwork([layer]), store), x, 0, 1, store=store
    )
    assert y[0, 0] == 0  # of fused multiply-adds it is -0
    assert alive.tolist() == [False, True]


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (10, 33), (70, 5)])
def test_softmax(device, n, columns):
    rng = np.random.default_rng(n)
    z = (20 * rng.standard_normal((n, columns))).astype(np.float32)
    y = device.upload(to_tiles(z))
    count = device.upload(np.array([columns], np.int32))
    alive = device.zeros(y.shape[0], np.uint32)
    function = device.function("layer", "softmax", THREADS=64, INDEX_BITS=16, STORE=0)
    device.launch(function, 2, 64, (y, np.int32(n), count, alive, np.int32(n)))
    e = np.exp(z.astype(np.float64) - z.max(axis=0))
    found = from_tiles(device.download(y), n, columns)
    np.testing.assert_allclose(found, e / e.sum(axis=0), rtol=2e-6, atol=1e-7)
    assert columns_of(device.download(alive), columns).all()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("with_values", [False, True])
def test_images_become_columns(device, bits, with_values):
    rng = np.random.default_rng(bits)
    dense = np.where(rng.random((11, 37)) < 0.3, rng.standard_normal((11, 37)), 0)
    dense[:, 4] = 0
    image, feature = np.nonzero(dense.T)
    indptr = np.searchsorted(image, np.arange(38)).astype(np.int64) + 5  # counts from 5
    values = dense.T[image, feature].astype(np.float32)
    index = np.uint16 if bits == 16 else np.uint32
    x = device.zeros(2 * 11 * TILE, np.float32)
    columns, ids = device.zeros(1, np.int32), device.zeros(64, np.int32)
    function = device.function("columns", "load_images", THREADS=64, INDEX_BITS=bits, STORE=0)
    arguments = (
        x, device.upload(indptr), device.upload(feature.astype(index)),
        device.upload(values) if with_values else None, np.int64(5), np.int32(37), np.int32(11),
        columns, ids,
    )  # fmt: skip
    device.launch(function, 2, 64, arguments)
    expected = dense if with_values else (dense != 0)
    assert np.array_equal(from_tiles(device.download(x), 11, 37), expected.astype(np.float32))
    assert device.download(columns)[0] == 37
    assert np.array_equal(device.download(ids)[:37], np.arange(37))


def test_dense_columns_come_and_go(device):
    rng = np.random.default_rng(1)
    dense = rng.standard_normal((6, 40)).astype(np.float32)
    x, columns = device.empty(2 * 7 * TILE, np.float32), device.zeros(1, np.int32)
    load = device.function("columns", "load_dense", THREADS=64, INDEX_BITS=16, STORE=0)
    arguments = (
        x, device.upload(dense), np.int32(6), np.int32(35), np.int64(40), np.int32(7), columns
    )  # fmt: skip
    device.launch(load, 2, 64, arguments)
    save = device.function("columns", "store_dense", THREADS=64, INDEX_BITS=16, STORE=0)
    order = rng.permutation(35).astype(np.int32)
    for ids, place_of in ((None, np.arange(35)), (device.upload(order), order)):
        out = device.zeros((6, 50), np.float32)
        arguments = (x, out, np.int32(6), columns, np.int64(50), np.int32(7), ids)
        device.launch(save, 2, 64, arguments)
        expected = np.zeros((6, 50), np.float32)
        expected[:, place_of] = dense[:, :35]
        assert np.array_equal(device.download(out), expected)


@pytest.mark.parametrize("columns", [1, 31, 32, 64, 100, 2500])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_dead_columns_go(device, columns, share):
    rng = np.random.default_rng(columns)
    n, tiles = 3, -(-columns // TILE)
    living = rng.random(columns) < share
    bits = np.zeros(tiles * TILE, np.uint64)
    bits[:columns] = living
    bits[columns:] = 1  # beyond the last column: to be ignored
    words = (bits.reshape(tiles, TILE) << np.arange(TILE, dtype=np.uint64)).sum(axis=1)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    alive = device.upload(words.astype(np.uint32))
    now, left = device.upload(np.array([columns], np.int32)), device.zeros(1, np.int32)
    offsets, y = device.zeros(tiles, np.int32), device.zeros(tiles * 4 * TILE, np.float32)
    ids, kept = (
        device.upload(np.arange(columns, dtype=np.int32) + 7),
        device.zeros(columns, np.int32),
    )
    macros = {"THREADS": 64, "INDEX_BITS": 16, "STORE": 0}
    count = device.function("columns", "count_living", **macros)
    device.launch(count, 1, 64, (alive, now, offsets, left))
    keep = device.function("columns", "keep_living", **macros)
    arguments = (
        device.upload(to_tiles(x, 5)), y, alive, offsets, now, left, ids, kept, np.int32(n),
        np.int32(5), np.int32(4),
    )  # fmt: skip
    device.launch(keep, 2, 64, arguments)
    found = int(device.download(left)[0])
    assert found == living.sum()
    assert np.array_equal(device.download(kept)[:found], np.flatnonzero(living) + 7)
    padded = from_tiles(device.download(y), n, -(-found // TILE) * TILE, 4)
    assert np.array_equal(padded[:, :found], x[:, living])
    assert not padded[:, found:].any()
    flags = device.zeros(columns + 7, np.uint8)
    tell = device.function("columns", "tell_living", **macros)
    device.launch(tell, 2, 64, (alive, now, ids, flags))
    assert np.array_equal(device.download(flags)[7:] == 1, living)


@pytest.mark.parametrize("store", [0, 1])
@pytest.mark.parametrize(("columns", "distinct"), [(1, 1), (40, 3), (70, 70), (200, 12)])
def test_equal_columns_end(device, columns, distinct, store):
    rng = np.random.default_rng(columns)
    n, tiles = 35, -(-columns // TILE)
    which = rng.integers(distinct, size=columns) if distinct < columns else np.arange(columns)
    x = rng.standard_normal((n, distinct)).astype(np.float32)[:, which]
    living = rng.random(columns) < 0.8
    bits = np.zeros(tiles * TILE, np.uint64)
    bits[:columns] = living
    words = (bits.reshape(tiles, TILE) << np.arange(TILE, dtype=np.uint64)).sum(axis=1)
    alive, now = (
        device.upload(words.astype(np.uint32)),
        device.upload(np.array([columns], np.int32)),
    )
    tiles_of_x = device.upload(to_tiles(x, store=store))
    size = 1 << (2 * tiles * TILE - 1).bit_length()
    hashes, table = device.zeros(tiles * TILE, np.uint64), device.zeros(size, np.uint64)
    first, slots = device.zeros(size, np.uint32), device.zeros(tiles * TILE, np.uint32)
    differs, merged = device.zeros(tiles * TILE, np.uint8), device.zeros(columns, np.int32)
    ids = device.upload(np.arange(columns, dtype=np.int32))
    macros = {"THREADS": 64, "INDEX_BITS": 16, "STORE": store}
    for kernel, arguments in (
        ("hash_columns", (tiles_of_x, now, np.int32(n), np.int32(n), hashes)),
        ("enter_columns", (hashes, alive, now, table, first, slots, np.uint32(size - 1))),
        (
            "compare_columns",
            (tiles_of_x, alive, now, first, slots, np.int32(n), np.int32(n), differs),
        ),
        ("drop_equal", (alive, now, first, slots, differs, ids, merged)),
    ):
        device.launch(device.function("merge", kernel, **macros), 2, 64, arguments)
    leader = {}
    expected = np.zeros(columns, np.int32)
    for column in np.flatnonzero(living):
        expected[column] = leader.setdefault(int(which[column]), column) + 1
    expected[expected == np.arange(columns) + 1] = 0
    assert np.array_equal(device.download(merged), expected)
    kept = columns_of(device.download(alive), columns)
    assert np.array_equal(kept, living & (expected == 0))


def test_equal_hashes_are_no_proof(device):
    """Columns whose hashes are made equal, but which differ, both stay."""
    x = device.upload(to_tiles(np.array([[1.0, 2.0, 1.0]], np.float32)))
    now = device.upload(np.array([3], np.int32))
    alive = device.upload(np.array([7], np.uint32))
    hashes = device.upload(np.full(TILE, 99, np.uint64))
    table, first = device.zeros(64, np.uint64), device.zeros(64, np.uint32)
    slots, differs = device.zeros(TILE, np.uint32), device.zeros(TILE, np.uint8)
    merged, ids = device.zeros(3, np.int32), device.upload(np.arange(3, dtype=np.int32))
    macros = {"THREADS": 64, "INDEX_BITS": 16, "STORE": 0}
    one = np.int32(1)
    for kernel, arguments in (
        ("enter_columns", (hashes, alive, now, table, first, slots, np.uint32(63))),
        ("compare_columns", (x, alive, now, first, slots, one, one, differs)),
        ("drop_equal", (alive, now, first, slots, differs, ids, merged)),
    ):
        device.launch(device.function("merge", kernel, **macros), 1, 64, arguments)
    assert np.array_equal(device.download(merged), [0, 0, 1])
    assert device.download(alive)[0] == 0b011
