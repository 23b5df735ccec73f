"""The kernels of training, one by one, against NumPy: on the twin, as PTX, on a device."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from networks import ACTIVATIONS, random_layer
from sparsednn import InputSet, SparseNetwork
from sparsednn.activations import Activation
from sparsednn.comm.alone import Alone
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import whole_shard
from sparsednn.gpu.orders import Order, Result
from sparsednn.gpu.storage import TILE
from sparsednn.kernels.packing import bounds
from sparsednn.training.device_memory import DeviceParameters
from sparsednn.training.device_packed import BACKS, PARTS, SAMPLED, DevicePacking, finished_here
from sparsednn.training.losses import Targets, derivative, loss_gradient, score
from sparsednn.training.optimizers import SGD, Adam

THREADS = 64
MACROS = {"THREADS": THREADS, "STORE": 0, "INDEX_BITS": 16}
PIECES = {f"SAMPLED_{rows}": most for rows, most in SAMPLED.items()}
NAN, INF = np.nan, np.inf


def to_tiles(x, lines, fill=0.0):
    """``(n, columns)`` as tiles of `lines` lines: zero beyond the columns, `fill` below."""
    n, columns = x.shape
    tiles = -(-columns // TILE)
    padded = np.full((lines, tiles * TILE), fill, np.float32)
    padded[:n] = 0
    padded[:n, :columns] = x
    return np.ascontiguousarray(padded.reshape(lines, tiles, TILE).transpose(1, 0, 2))


def from_tiles(tiles, n, columns):
    here = tiles.transpose(1, 0, 2).reshape(tiles.shape[1], -1)
    return here[:n, :columns]


def give(device, picks, *, add=0, **numbers):
    """Orders on the device."""
    orders = np.zeros(Order.FIRST_PICK + picks.size, np.int32)
    orders[Order.COUNT], orders[Order.ADD_PIECE] = picks.size, add
    for name, number in numbers.items():
        orders[Order[name.upper()]] = np.float32(number).view(np.int32)
    orders[Order.FIRST_PICK :] = picks
    return device.upload(orders)


class Placed:
    """A random layer, the activation of the one before it, and both on a device."""

    def __init__(self, device, shape, before, seed):
        n_out, n_in, density, self.columns = shape
        rng = self.rng = np.random.default_rng(seed)
        first = random_layer(rng, n_in, 3, activation=before)
        self.layer = random_layer(rng, n_out, n_in, density=density, shared=0.8)
        network = SparseNetwork([first, self.layer])
        shard = whole_shard(network)
        self.packing = DevicePacking(shard, plans_of_all([shard])[0])
        self.parameters = DeviceParameters(device, self.packing, ())
        self.n_in, self.n_out, self.before = n_in, n_out, Activation.parse(before)
        flat = self.packing.flat([(one.values, one.bias) for one in network])
        device.upload(flat, out=self.parameters.theta)
        self.device = device
        # Both kinds of indices, whatever the layer's size.
        self.bits = 16 if self.columns % 2 else 32
        if self.bits == 32:
            p = self.parameters
            p.parts, p.backs = (
                one._replace(index=device.upload(device.download(one.index).astype(np.uint32)))
                for one in (p.parts, p.backs)
            )
        p = self.parameters
        self.run("refresh_transposed", p.theta, p.place, p.turned, np.int64(p.place.size), blocks=2)

    def run(self, name, *arguments, blocks=3):
        macros = {**MACROS, **PIECES, "INDEX_BITS": self.bits}
        function = self.device.function("training", name, **macros)
        self.device.launch(function, blocks, THREADS, arguments)

    def lines(self, rows):
        return self.rng.standard_normal((rows, self.columns)).astype(np.float32)


SHAPES = [(1, 1, 1.0, 1), (5, 7, 0.4, 3), (33, 20, 0.3, 32), (17, 40, 0.0, 33), (60, 45, 0.2, 70)]


@pytest.fixture
def empty_among_nans(monkeypatch):
    """Where empty operands of `einsum` lie there is NaN: NumPy reads it, and multiplies by 0."""
    memory, einsum = np.full(1, NAN, np.float32), np.einsum

    def moved(array):
        if array.size:
            return array
        return np.ndarray(array.shape, array.dtype, memory, strides=array.strides)

    monkeypatch.setattr(np, "einsum", lambda how, *arrays: einsum(how, *map(moved, arrays)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("before", ACTIVATIONS)
def test_transposed_product_and_derivative(device, empty_among_nans, shape, before):
    placed = Placed(device, shape, before, shape[0])
    d_spare, s_spare = shape[3] % 3, shape[3] % 2
    delta, saved = placed.lines(placed.n_out), placed.before.apply(placed.lines(placed.n_in))
    s = device.upload(to_tiles(np.full((placed.n_in, placed.columns), NAN), placed.n_in + s_spare))
    tables, p = placed.parameters.backs, placed.parameters
    orders = give(device, np.zeros(placed.columns, np.int64))
    y = device.upload(to_tiles(saved, placed.n_in + 2))
    expected = placed.layer.weight.T @ delta
    size = np.abs(placed.layer.weight.T) @ np.abs(delta) + 1e-30
    for given, factor in ((None, 1), (y, derivative(placed.before, saved))):
        placed.run(
            "backward_layer", device.upload(to_tiles(delta, placed.n_out + d_spare)), s,
            tables.table, tables.limits, tables.bundle, tables.index, p.turned, tables.row, None,
            np.int32(BACKS + 1), orders, given, np.int32(placed.n_out + d_spare),
            np.int32(placed.n_in + s_spare), np.int32(placed.n_in + 2), np.int32(shape[3] % 2),
        )  # fmt: skip
        found = from_tiles(device.download(s), placed.n_in, placed.columns)
        assert (np.abs(found - expected * factor) <= 1e-6 * size * np.abs(factor)).all()


@pytest.mark.parametrize("before", [*ACTIVATIONS, "clamped_relu:32"])
def test_derivative_alone_keeps_what_is_no_number(device, before):
    activation = Activation.parse(before)
    rng = np.random.default_rng(3)
    y = activation.apply(rng.standard_normal((6, 37)).astype(np.float32) * 3)
    y[0, :4] = [NAN, INF, 0.0, 1.5]
    s = rng.standard_normal((4, 37)).astype(np.float32)
    s[1, :3] = [NAN, INF, -INF]
    memory, orders = device.upload(to_tiles(s, 5, 7.0)), give(device, np.zeros(37, np.int64))
    code, low, high = bounds(activation)
    function = device.function("training", "multiply_derivative", **MACROS, **PIECES)
    device.launch(
        function, 2, THREADS,
        (
            memory, device.upload(to_tiles(y, 6)), np.int32(4), orders, np.int32(5), np.int32(6),
            np.int32(code), np.float32(low), np.float32(high),
        ),
    )  # fmt: skip
    got = device.download(memory)
    with np.errstate(invalid="ignore"):
        expected = s * derivative(activation, y[:4])
    np.testing.assert_allclose(from_tiles(got, 4, 37), expected, rtol=1e-6)
    assert (got[:, 4] == 7).all()  # lines behind the first n stay


@pytest.mark.parametrize("together", [1, 2, 9])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sampled_product(device, shape, together):
    placed = Placed(device, shape, "relu", shape[0] + together)
    x, delta = placed.lines(placed.n_in), placed.lines(placed.n_out)
    p, layer = placed.parameters, placed.layer
    tiles = [
        device.upload(to_tiles(x, placed.n_in + 1)),
        device.upload(to_tiles(delta, layer.n_out)),
    ]
    marks = np.full(placed.packing.size, 5, np.float32)
    device.upload(marks, out=p.gradient)
    rows = np.repeat(np.arange(layer.n_out), np.diff(layer.indptr))
    products = delta[rows].astype(np.float64) * x[layer.indices]
    for piece in range(2):
        orders = give(device, np.zeros(placed.columns, np.int64), add=piece)
        for first in range(0, -(-placed.columns // TILE) + 2, together):
            placed.run(
                "sampled", *tiles, p.weight_gradient, p.bias_gradient, p.parts.table, p.samples,
                p.parts.index, p.parts.row, p.pieces, np.int32(PARTS), orders, np.int32(first),
                np.int32(together), np.int32(placed.n_in + 1), np.int32(layer.n_out),
            )  # fmt: skip
        found = device.download(p.gradient)
        weights, biases = placed.packing.layers_of(found)[1]
        limit = 1e-6 * (1 + piece) * np.abs(products).sum(axis=1)
        assert (np.abs(weights - (1 + piece) * products.sum(axis=1)) <= limit).all()
        limit = 1e-6 * (1 + piece) * np.abs(delta).sum(axis=1)
        assert (np.abs(biases - (1 + piece) * delta.sum(axis=1)) <= limit).all()
    # Padding, and the other layer, were not touched.
    nothing = placed.packing.flat(
        [
            (np.full(n, NAN, np.float32), np.full(m, NAN, np.float32))
            for n, m in placed_sizes(placed)
        ]
    )
    own = placed.packing.layers_of(np.where(np.isnan(nothing), found, 0))
    assert (found[~np.isnan(nothing)] == 5).all()
    assert (own[0][0] == 5).all()
    assert (own[0][1] == 5).all()


def placed_sizes(placed):
    return [
        (one[0].size, one[1].size)
        for one in placed.packing.layers_of(np.zeros(placed.packing.size))
    ]


@pytest.mark.parametrize("stored", [False, True])
def test_picked_images(device, stored):
    rng = np.random.default_rng(4)
    dense = rng.standard_normal((9, 50)) * (rng.random((9, 50)) < 0.4)
    dense[:, 3] = 0
    if not stored:
        dense = (dense != 0).astype(np.float32)
    images = InputSet.from_dense(dense)
    picks = rng.permutation(50)[:35]
    x = device.zeros((2, 11, TILE), np.float32)
    function = device.function("training", "load_picked", **MACROS, **PIECES)
    arguments = (
        x, device.upload(images.indptr), device.upload(images.indices.astype(np.uint16)),
        device.upload(images.values) if stored else None, give(device, picks), np.int32(11),
    )  # fmt: skip
    device.launch(function, 3, THREADS, arguments)
    got = device.download(x)
    assert np.array_equal(from_tiles(got, 9, 35), dense[:, picks].astype(np.float32))
    assert np.count_nonzero(got) == np.count_nonzero(dense[:, picks])


def run_loss(device, loss, activation, y, targets, picks, images, *, threads=THREADS, train=True):
    """Score and gradient as a kernel finds them."""
    n_out, columns = y.shape
    tiles = -(-columns // TILE)
    delta = device.upload(to_tiles(np.full_like(y, NAN), n_out + 1)) if train else None
    scores, results = (
        device.zeros(2 * tiles, np.float64),
        device.zeros(int(Result.SIZE), np.float64),
    )
    labels = None if targets.labels is None else device.upload(targets.labels.astype(np.int32))
    values = (
        None if targets.values is None else device.upload(np.ascontiguousarray(targets.values.T))
    )
    softmax = activation.kind == "softmax"
    code, low, high = bounds(finished_here(activation))
    factor = 2 / (n_out * images) if loss == "mse" else 1 / images
    orders = give(device, picks, factor=factor)
    function = device.function(
        "losses", "squares" if loss == "mse" else "cross_entropy", THREADS=threads
    )
    arguments = (
        device.upload(to_tiles(y, n_out + 2)), delta, labels, values, orders, np.int32(n_out),
        np.int32(n_out + 2), np.int32(n_out + 1), np.int32(code), np.float32(low), np.float32(high),
        *((np.int32(softmax),) if loss == "mse" else ()), scores,
    )  # fmt: skip
    device.launch(function, 2, threads, arguments)
    add = device.function("losses", "add_scores", THREADS=THREADS)
    for piece in range(2):
        orders = give(device, picks, add=piece)
        device.launch(add, 1, THREADS, (scores, orders, results))
    got = device.download(results)
    assert got[Result.SQUARED_NORM] == 0
    return got[Result.LOSS] / 2, got[Result.CORRECT] / 2, device.download(delta) if train else None


@pytest.mark.parametrize("dense", [False, True], ids=["labels", "dense"])
@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("last", [*ACTIVATIONS, "softmax"])
def test_losses(device, last, loss, dense):
    for n_out, columns, threads in ((1, 1, 64), (10, 33, 64), (37, 20, 1024)):
        rng = np.random.default_rng([n_out, columns])
        activation = Activation.parse(last)
        y = finished_here(activation).apply(
            4 * rng.standard_normal((n_out, columns)).astype(np.float32)
        )
        picks = rng.permutation(80)[:columns]
        labels = None if dense else rng.integers(0, n_out, 80)
        values = rng.random((n_out, 80)).astype(np.float32) if dense else None
        targets = Targets(labels, values)
        own = Targets(*(None if t is None else t[..., picks] for t in targets))
        rows = np.arange(n_out, dtype=np.int32)
        expected, gradient = loss_gradient(
            loss, activation, y, own, rows, n_out, columns + 5, Alone()
        )
        found, correct, delta = run_loss(
            device, loss, activation, y, targets, picks, columns + 5, threads=threads
        )
        np.testing.assert_allclose(found, expected.loss, rtol=1e-6, atol=1e-12)
        assert correct == expected.correct
        size = np.abs(gradient).max()
        np.testing.assert_allclose(
            from_tiles(delta, n_out, columns), gradient, rtol=1e-5, atol=2e-7 * (size + 1)
        )
        beyond = from_tiles(delta, n_out, delta.shape[0] * TILE)[:, columns:]
        assert (beyond == 0).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_ties_and_what_is_no_number(device, loss):
    """The first of the largest outputs wins; NaN and infinity make the loss tell."""
    y = np.array(
        [
            [1, 1, 1, NAN, INF, -INF, 0, 2],
            [1, 1, 2, 1, 0, -INF, 0, NAN],
            [0, 1, 2, 0, 0, -INF, 0, 1],
        ],
        np.float32,
    )
    labels = np.array([0, 1, 1, 1, 0, 0, 0, 0])
    activation, rows = Activation("identity"), np.arange(3, dtype=np.int32)
    for column in range(y.shape[1]):
        mine = y[:, column : column + 1]
        expected = score(
            loss, activation, mine, Targets(labels[column : column + 1], None), rows, 3, Alone()
        )
        found, correct, _ = run_loss(
            device, loss, activation, mine, Targets(labels, None), np.array([column]), 1,
            train=column % 2 == 0,
        )  # fmt: skip
        assert correct == expected.correct, column
        np.testing.assert_allclose(found, expected.loss, rtol=1e-6, err_msg=str(column))


OPTIMIZERS = [
    SGD(),
    SGD(weight_decay=0.01),
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True, weight_decay=0.01),
    Adam(),
    Adam(0.8, 0.99, 1e-6, 0.02),
]


def run_update(device, optimizer, arrays, orders, results):
    """One update in place, on the device."""
    theta, gradient, *slots = arrays
    name = f"update_{optimizer.name}"
    if optimizer.name == "adam":
        one, two = optimizer.beta1, optimizer.beta2
        constants = [np.float32(n) for n in (one, 1 - one, two, 1 - two, optimizer.epsilon)]
    else:
        slots = slots or [None]
        constants = [np.float32(optimizer.momentum), np.int32(optimizer.nesterov)]
    function = device.function("updates", name, THREADS=THREADS)
    arguments = (
        theta, gradient, *slots, orders, results, np.int64(theta.size // 4),
        np.float32(optimizer.weight_decay), *constants,
    )  # fmt: skip
    device.launch(function, 2, THREADS, arguments)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=str)
@pytest.mark.parametrize("clip", [None, 0.5, 1e9])
def test_updates(device, optimizer, clip):
    rng = np.random.default_rng(5)
    host = [rng.standard_normal(808).astype(np.float32) for _ in range(2 + len(optimizer.slots))]
    if optimizer.name == "adam":
        host[3] = np.abs(host[3])
    theta, gradient, *slots = (array.astype(np.float64) for array in host)
    arrays = [device.upload(array) for array in host]
    results, sums = device.zeros(int(Result.SIZE), np.float64), device.empty(7, np.float64)
    rate, step, factor = 0.1, 3, 0.5
    norm = np.sqrt((gradient**2).sum())
    scale = factor * (1.0 if clip is None else min(1.0, clip / (norm + 1e-6)))
    optimizer.update(
        theta, gradient, dict(zip(optimizer.slots, slots, strict=True)), rate=rate, step=step,
        scale=scale,
    )  # fmt: skip
    numbers = {"rate": rate, "scale": factor, "clip": clip or 0.0}
    if optimizer.name == "adam":
        numbers["rate"] = rate / (1 - optimizer.beta1**step)
        numbers["correction"] = np.sqrt(1 - optimizer.beta2**step)
    orders = give(device, np.zeros(0, np.int64), **numbers)
    function = device.function("updates", "squared_norm", THREADS=THREADS)
    device.launch(function, 7, THREADS, (arrays[1], np.int64(808), sums))
    function = device.function("updates", "add_squares", THREADS=THREADS)
    device.launch(function, 1, THREADS, (sums, np.int32(7), results))
    assert device.download(results)[Result.SQUARED_NORM] == pytest.approx(norm**2, rel=1e-12)
    # What is no number changes nothing.
    bad = np.zeros(int(Result.SIZE))
    bad[Result.LOSS] = NAN
    run_update(device, optimizer, arrays, orders, device.upload(bad))
    bad[:] = 0
    bad[Result.SQUARED_NORM] = INF
    if clip is not None:
        run_update(device, optimizer, arrays, orders, device.upload(bad))
    for array, before in zip(arrays, host, strict=True):
        assert np.array_equal(device.download(array), before)
    run_update(device, optimizer, arrays, orders, results)
    expected = [theta, gradient, *slots]
    for array, after in zip(arrays, expected, strict=True):
        np.testing.assert_allclose(device.download(array), after, rtol=2e-5, atol=2e-6)


def test_parameters_go_in_and_out_of_the_packing():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        widths = rng.integers(1, 40, 4)
        layers = [
            random_layer(rng, int(b), int(a), density=rng.choice([0.0, 0.2, 1.0]), shared=0.7)
            for a, b in pairwise(widths)
        ]
        shard = whole_shard(SparseNetwork(layers))
        packing = DevicePacking(shard, plans_of_all([shard])[0])
        given = [(layer.values, layer.bias) for layer in layers]
        flat = packing.flat(given)
        assert flat.size == packing.size
        assert flat.size % 8 == 0
        for (values, bias), (again, bias_again) in zip(given, packing.layers_of(flat), strict=True):
            assert np.array_equal(values, again)
            assert np.array_equal(bias, bias_again)
        nonzero = sum(np.count_nonzero(v) + np.count_nonzero(b) for v, b in given)
        assert np.count_nonzero(flat) == nonzero
        for back, layer in zip(packing.backs[1::BACKS], layers, strict=True):
            assert replace(back).edges == layer.values.size
