"""Memory by formula against what one rank allocates, on a grid that is not there."""

from __future__ import annotations

import tracemalloc
from math import prod
from typing import Any

import numpy as np
import pytest

from convolutions import random_shape
from sparsednn.comm import Alone
from sparsednn.comm.pending import Pending
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.distributed import DistributedConvolution
from sparsednn.dense.distribution import Distribution
from sparsednn.dense.flow import make_flow, products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import ALGORITHMS, Grid, Placement, legal_placements
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    Add,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)
from sparsednn.dense.planning.memory import (
    flow_memory,
    keeps_output,
    loss_memory,
    product_memory,
    step_memory,
)
from sparsednn.dense.pool import GridPool

ITEMSIZE = 8
#: Python's own objects: bookkeeping of panels, views, counts.
SLACK = 24_000


class FakeExchange:
    def start(self):
        pass

    def finish(self):
        pass

    def free(self):
        pass


class FakeCommunicator:
    """One of `size` ranks, alone: what comes from others is memory of the right size."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size

    def neighbour_exchange(self, sends: Any, receives: Any, **_: Any) -> FakeExchange:
        return FakeExchange()

    def start_broadcast(self, array: Any, root: int, **_: Any) -> Pending:
        return Pending()

    start_reduce = start_broadcast

    def start_allreduce(self, array: Any, **_: Any) -> Pending:
        return Pending()

    def allgather(self, array: Any, counts: Any, **_: Any) -> Any:
        assert array.size == counts[self.rank]
        return np.zeros(sum(counts), array.dtype)

    def reduce_scatter(self, array: Any, counts: Any, **_: Any) -> Any:
        assert array.size == sum(counts)
        return np.zeros(counts[self.rank], array.dtype)


class FakePool(GridPool):
    """Grids as they are; only the ranks along their axes are not there."""

    def along(self, shape: tuple[int, ...], *axes: int) -> Any:
        sizes = [shape[axis] for axis in axes]
        places = [self.grid(shape).coordinates[axis] for axis in axes]
        return FakeCommunicator(int(np.ravel_multi_index(places, sizes)), prod(sizes))


class NullBackend(ReferenceBackend):
    """Its convolutions compute nothing, and return arrays of the right shapes."""

    def convolution(self, x, kernel, *, stride, pads, dilation, groups):
        size = [
            (x.shape[2 + a] + pads[a] + pads[2 + a] - dilation[a] * (kernel.shape[2 + a] - 1) - 1)
            // stride[a]
            + 1
            for a in (0, 1)
        ]
        return np.zeros((x.shape[0], kernel.shape[0], *size), x.dtype)

    def convolution_gradients(self, x, dy, kernel, **_):
        return np.zeros_like(x), np.zeros_like(kernel)

    def convolution_kernel_gradient(self, x, dy, kernel_shape, **_):
        return np.zeros(kernel_shape, x.dtype)


def measured(
    distribution: Distribution, rank: int, *, has_bias: bool, input_gradient: bool, training: bool
) -> tuple[int, int]:
    """Peak bytes that are allocated besides what is given; what lies between two passes."""
    world: Any = FakeCommunicator(rank, distribution.input.ranks)
    pool = FakePool(world)
    x = np.zeros(distribution.input.block(rank).shape)
    dy = np.zeros(distribution.output.block(rank).shape)
    words = distribution.kernel.block(rank).size
    words += distribution.bias.block(rank).size if has_bias else 0
    parameters, gradient = np.zeros(words), np.zeros(words)

    def run() -> int:
        op = DistributedConvolution(
            pool,
            distribution,
            NullBackend(),
            np.float64,
            has_bias=has_bias,
            input_gradient=input_gradient,
        )
        tracemalloc.reset_peak()
        between = 0
        for _ in range(2):  # what is made in the first step and stays is there in the second
            op.forward(x, parameters)
            if not training:
                op.forget()
                continue
            between = tracemalloc.get_traced_memory()[0]
            op.backward(dy, parameters, gradient)
            op.finish()
        return between

    tracemalloc.start()
    # NumPy's sums take a buffer of so many elements for each operand that is not contiguous.
    elements = np.setbufsize(64)
    try:
        run()  # what Python keeps for itself the first time is not ours
        before = tracemalloc.get_traced_memory()[0]
        between = run() - before
        return tracemalloc.get_traced_memory()[1] - before, between
    finally:
        np.setbufsize(elements)
        tracemalloc.stop()


def large_shape(source: np.random.Generator) -> ConvolutionShape:
    """A convolution whose tensors are large beside Python's objects."""
    groups = int(source.choice([1, 1, 2, 3]))
    taps = tuple(int(each) for each in source.integers(1, 4, 2))
    return ConvolutionShape(
        images=int(source.integers(1, 25)),
        channels=groups * int(source.integers(8, 48)),
        height=int(source.integers(9, 30)),
        width=int(source.integers(9, 30)),
        filters=groups * int(source.integers(8, 48)),
        taps=taps,
        stride=tuple(int(each) for each in source.integers(1, 3, 2)),
        padding=tuple(int(each) for each in source.integers(0, 2, 2)),
        groups=groups,
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_executor_needs_no_more_and_not_much_less_than_the_formula(algorithm, training):
    source = np.random.default_rng([ALGORITHMS.index(algorithm), training])
    for _ in range(12):
        shape = large_shape(source)
        ranks = int(source.choice([1, 2, 3, 4, 6, 8, 12]))
        every = legal_placements(shape, ranks, algorithm)
        placement = every[int(source.integers(len(every)))]
        distribution = Distribution.of(shape, placement)
        how = {
            "has_bias": bool(source.integers(2)),
            "input_gradient": bool(source.integers(3)),
            "training": training,
        }
        memory = product_memory(distribution, **how)
        rank = int(source.integers(ranks))
        peak, between = measured(distribution, rank, **how)
        formula = memory.buffers + np.maximum(memory.forward, memory.backward)
        formula = int(formula[rank]) * ITEMSIZE
        context = f"{shape} {placement} rank {rank} {how}"
        assert peak <= formula + SLACK, context
        assert formula <= 1.3 * peak + SLACK, f"{context}: {formula} {peak}"
        kept = int((memory.buffers + memory.kept)[rank]) * ITEMSIZE
        if training:
            assert abs(between - kept) <= SLACK, f"{context}: {between} {kept}"


def test_empty_shares_need_nothing_and_do_not_fail():
    shape = ConvolutionShape(2, 3, 5, 4, 2, (3, 3), padding=(1, 1))
    for algorithm in ("data", "2d", "3d"):
        placement = Placement(Grid(b=5), algorithm)
        memory = product_memory(Distribution.of(shape, placement))
        for words in (memory.buffers, memory.kept, memory.forward, memory.backward):
            assert words.shape == (5,)
            assert words.min() >= 0


def test_parameters_are_the_distributions_tiles():
    source = np.random.default_rng(5)
    for _ in range(30):
        shape = random_shape(source)
        every = legal_placements(shape, 4)
        distribution = Distribution.of(shape, every[int(source.integers(len(every)))])
        tiles = distribution.kernel.sizes() + distribution.bias.sizes()
        for slots in range(3):
            found = product_memory(distribution, has_bias=True, optimizer_slots=slots)
            np.testing.assert_array_equal(found.parameters, tiles * (2 + slots))
        found = product_memory(distribution, has_bias=True, training=False, optimizer_slots=2)
        np.testing.assert_array_equal(found.parameters, tiles)


def _graph() -> OperationGraph:
    graph = OperationGraph("branches")
    graph.add(Input("image", (3, 12, 10)))
    graph.add(Convolution("stem", 6, (3, 3), padding=(1, 1)), "image")
    graph.add(BatchNorm("norm"), "stem")
    graph.add(Relu("relu"), "norm")
    graph.add(Convolution("left", 6, (1, 1)), "relu")
    graph.add(Add("sum"), "left", "relu")
    graph.add(MaxPool("pool", (2, 2), (2, 2)), "sum")
    graph.add(Concatenate("both"), "pool", "pool")
    graph.add(FullyConnected("fc", 5), "both")
    return graph.finish()


def test_which_outputs_are_kept():
    graph = _graph()
    kept = {each.name: keeps_output(graph, each.name) for each in graph}
    assert kept == {
        "image": True,  # the stem's input
        "stem": True,  # the batch normalisation's input
        "norm": False,  # the ReLU writes over it
        "relu": True,  # kept by itself, read by two
        "left": False,
        "sum": False,  # the pool keeps where the largest were
        "pool": False,
        "both": True,  # the last layer's input
        "fc": False,
    }


def test_a_network_is_the_sum_of_its_operations():
    graph = _graph()
    placements = {
        "stem": Placement(Grid(h=2, k=2), "2d"),
        "left": Placement(Grid(b=4), "data"),
        "fc": Placement(Grid(c=4), "channel"),
    }
    flow = make_flow(graph, 6, placements, 4)
    found = [
        step_memory(step, output_kept=keeps_output(graph, name), itemsize=8)
        for name, step in flow.steps.items()
    ]
    last = flow.steps["fc"].output.layout
    found.append(loss_memory(last, flow.logits, itemsize=8))
    total = sum(each.resident.max() for each in found) + max(e.transient.max() for e in found)
    assert flow_memory(graph, flow, itemsize=8) == total
    # Everything but where the largest were, one byte for each, is numbers.
    half = flow_memory(graph, flow, itemsize=4)
    where = int(flow.steps["pool"].output.layout.sizes().max())
    assert abs(2 * half - total - where) <= 2 * len(found)


def test_inference_and_plain_sgd_need_less():
    graph = make_network("resnet20")
    placements = dict.fromkeys(products(graph), Placement(Grid(b=2), "data"))
    flow = make_flow(graph, 8, placements, 2)
    infer = flow_memory(graph, flow, training=False)
    plain = flow_memory(graph, flow)
    adam = flow_memory(graph, flow, optimizer_slots=2)
    assert infer < plain < adam
    assert adam - plain == 2 * 4 * graph.trained_words


class NullLayers(NullBackend):
    """Nor do its other layers compute anything."""

    def max_pool(self, x, *, taps, stride, pads=(0, 0, 0, 0)):
        size = [(x.shape[2 + a] + pads[a] + pads[2 + a] - taps[a]) // stride[a] + 1 for a in (0, 1)]
        shape = (*x.shape[:2], *size)
        return np.zeros(shape, x.dtype), np.zeros(shape, np.uint8)

    def max_pool_gradient(self, dy, where, x_shape, **_):
        return np.zeros(x_shape, dy.dtype)

    def average_pool(self, x, *, count, **_):
        return np.zeros((*x.shape[:2], *count.shape), x.dtype)

    def average_pool_gradient(self, dy, x_shape, **_):
        return np.zeros(x_shape, dy.dtype)

    def relu(self, x, *, in_place=False):
        return x if in_place else np.zeros_like(x)

    def relu_gradient(self, dy, y, *, in_place=False):
        return dy if in_place else np.zeros_like(dy)

    def channel_squares(self, x, mean):
        return np.ones_like(mean)

    def normalize(self, x, *_):
        return np.zeros_like(x)

    def normalize_gradient_sums(self, dy, x, mean, inverse_std):
        return np.zeros_like(mean), np.zeros_like(mean)

    def normalize_gradient(self, dy, *_):
        return np.zeros_like(dy)


@pytest.mark.parametrize("network", ["smallcnn", "lenet5", "resnet20", "branches"])
def test_a_network_on_one_rank_needs_no_more(network):
    """Its peak over two steps; the formula has all that is kept at once, and may be larger."""
    graph = _graph() if network == "branches" else make_network(network)
    placements = dict.fromkeys(products(graph), Placement(Grid(), "data"))
    images = 256 if network == "branches" else 16
    formula = flow_memory(graph, make_flow(graph, images, placements, 1), itemsize=8)
    x = np.zeros((images, *graph.image))

    tracemalloc.start()
    elements = np.setbufsize(64)
    try:
        before = tracemalloc.get_traced_memory()[0]
        model = DenseModel(Alone(), graph, placements, NullLayers(), dtype=np.float64)
        batch = model.batch(images)
        tracemalloc.reset_peak()
        for _ in range(2):
            logits = batch.forward(x, training=True)
            batch.backward(np.zeros_like(logits))
        peak = tracemalloc.get_traced_memory()[1] - before
        model.free()
    finally:
        np.setbufsize(elements)
        tracemalloc.stop()
    peak += x.nbytes  # made before, and counted
    assert peak <= formula + 200_000  # Python's objects of 70 layers
    assert formula <= 1.35 * peak
