"""Predicted steps of CNNs: formulas by hand, limits, what grows with what, strategies."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.costmodel.collectives.measured import collective_seconds
from sparsednn.costmodel.dense.algorithms import (
    STRATEGIES,
    predict_algorithms,
    strategy_placements,
)
from sparsednn.costmodel.dense.local import LocalCosts
from sparsednn.costmodel.dense.step import predict_step
from sparsednn.costmodel.dense.timeline import Timeline
from sparsednn.costmodel.dense.transfers import Transfers, words_between
from sparsednn.costmodel.dense.work import local_work
from sparsednn.costmodel.platform import Platform, load_platform
from sparsednn.costmodel.prediction import BOUNDS, Prediction
from sparsednn.dense.flow import make_flow, products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import ALGORITHMS, Grid, Placement, factorizations, make_placement
from sparsednn.dense.layout import overlaps
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Relu,
)
from sparsednn.dense.planning.candidates import grid_placements
from sparsednn.errors import UsageError

SERVER = load_platform("two-core-server")
CLUSTER = load_platform("infiniband-128")


@lru_cache
def everything() -> OperationGraph:
    """Every kind of operation."""
    graph = OperationGraph("everything")
    image = graph.add(Input("image", (3, 9, 8)))
    first = graph.add(Convolution("first", 6, (3, 3), padding=(1, 1)), image)
    x = graph.add(Relu("relu1"), graph.add(BatchNorm("norm"), first))
    y = graph.add(Convolution("same", 6, (3, 3), padding=(1, 1), bias=False), x)
    x = graph.add(Relu("relu2"), graph.add(Add("sum"), y, x))
    left = graph.add(Convolution("left", 4, (1, 1)), x)
    right = graph.add(MaxPool("around", (3, 3), stride=(1, 1), padding=(1, 1)), x)
    x = graph.add(Concatenate("both"), left, right)
    x = graph.add(MaxPool("half", (2, 2), stride=(2, 2)), x)
    x = graph.add(AveragePool("mean", graph.shape(x)[1:]), x)
    graph.add(FullyConnected("logits", 5), x)
    return graph.finish()


def same(graph: OperationGraph, placement: Placement) -> dict[str, Placement]:
    return dict.fromkeys(products(graph), placement)


def predicted(
    placement: Placement, *, images: int = 8, platform: Platform = SERVER, training: bool = True
) -> Prediction:
    graph = everything()
    ranks = placement.grid.ranks
    return predict_step(platform, graph, images, same(graph, placement), ranks, training=training)


# -- by hand and limits --------------------------------------------------------------------------


def test_one_rank_is_the_sum_of_its_operations() -> None:
    graph = everything()
    alone = same(graph, Placement(Grid(), "data"))
    flow = make_flow(graph, 8, alone, 1)
    costs = LocalCosts.of(SERVER)
    for training in (True, False):
        step = predict_step(SERVER, graph, 8, alone, 1, training=training)
        expected = sum(
            float(costs.seconds(one.kind, one.rows).total[0])
            for one in local_work(flow, training=training)
        )
        assert step.seconds == pytest.approx(expected)
        assert step.words == 0
        assert step.charged["link bandwidth"] == step.charged["latency"] == 0
        assert step.charged["imbalance"] == pytest.approx(0, abs=1e-12)


def test_data_parallelism_by_hand() -> None:
    """Σ forward(b/P) + Σ backward(b/P) + Σ allreduce(K + bias), without overlap."""
    graph = OperationGraph("two")
    x = graph.add(Input("image", (4, 6, 6)))
    x = graph.add(Convolution("conv", 8, (3, 3)), x)
    graph.add(FullyConnected("fc", 10), x)
    graph.finish()
    platform = dataclasses.replace(SERVER, within=dataclasses.replace(SERVER.within, overlap=0.0))
    got = predict_step(platform, graph, 8, None, 2)
    half = predict_step(platform, graph, 4, None, 1)
    # Rooflines: on two ranks the node's memory is shared, so take the local part from them.
    flow = make_flow(graph, 8, same(graph, Placement(Grid(b=2), "data")), 2)
    costs = LocalCosts.of(platform, ranks=2)
    local = sum(
        float(costs.seconds(one.kind, one.rows).total.max())
        for one in local_work(flow, training=True)
    )
    sums = [
        collective_seconds(platform, "allreduce", 2, nbytes, started=True).seconds
        for nbytes in (24, 4 * (8 * 4 * 9 + 8), 4 * (8 * 16 * 10 + 10))
    ]
    assert got.seconds == pytest.approx(local + sum(sums))
    assert got.seconds > half.seconds
    assert got.parts["gradients"] == pytest.approx(sum(sums))


def test_all_of_a_transfer_goes_on_beside_the_backward_pass_where_the_link_can() -> None:
    slow = dataclasses.replace(SERVER.within, overlap=0.0)
    quick = dataclasses.replace(SERVER.within, overlap=1.0)
    graph, placement = everything(), Placement(Grid(b=2), "data")
    waiting, hidden = (
        predict_step(dataclasses.replace(SERVER, within=link), graph, 64, same(graph, placement), 2)
        for link in (slow, quick)
    )
    assert hidden.seconds < waiting.seconds
    assert hidden.parts["gradients"] < waiting.parts["gradients"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 3, 4]), st.data(), st.booleans())
def test_parts_charges_and_words_of_any_placement(
    ranks: int, data: st.DataObject, training: bool
) -> None:
    graph = everything()
    placements = {}
    for name in products(graph):
        grid = data.draw(st.sampled_from(factorizations(ranks)))
        placements[name] = data.draw(st.sampled_from(grid_placements(grid)))
    images = data.draw(st.integers(1, 7))
    step = predict_step(SERVER, graph, images, placements, ranks, training=training)
    flow = make_flow(graph, images, placements, ranks)
    assert step.words == flow.total_words(training=training).sum()
    assert step.seconds > 0
    assert sum(step.parts.values()) == pytest.approx(step.seconds)
    assert sum(step.charged.values()) == pytest.approx(step.seconds)
    assert set(step.charged) == set(BOUNDS)
    assert min(step.charged.values()) >= 0
    assert min(step.parts.values()) >= -1e-15
    assert ("backward" in step.parts) == training


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(["data", "spatial", "filter", "channel", "2d", "2.5d", "3d"]), st.data())
def test_better_machines_are_no_slower(algorithm: str, data: st.DataObject) -> None:
    grids = [
        grid for grid in factorizations(4)
        if any(each.algorithm == algorithm for each in grid_placements(grid))
    ]  # fmt: skip
    placement = make_placement(data.draw(st.sampled_from(grids)), algorithm)
    here = predicted(placement).seconds
    for better in (
        SERVER.scaled(flops=3.0),
        SERVER.scaled(memory_bandwidth=3.0),
        SERVER.scaled(link_bandwidth=3.0),
        SERVER.scaled(link_latency=0.3),
    ):
        assert predicted(placement, platform=better).seconds <= here * (1 + 1e-9)
    assert predicted(placement, images=16).seconds >= here * (1 - 1e-9)


def test_more_threads_than_cores_share_them() -> None:
    graph = make_network("lenet5")
    one = predict_step(SERVER, graph, 32, None, 2, threads=1)
    two = predict_step(SERVER, graph, 32, None, 2, threads=2)
    four = predict_step(SERVER, graph, 32, None, 4)
    assert two.seconds >= one.seconds * 0.99
    assert four.seconds >= one.seconds * 0.99


def test_a_forward_pass_is_a_part_of_a_step() -> None:
    placement = Placement(Grid(k=2), "filter")
    whole, forward = predicted(placement), predicted(placement, training=False)
    assert forward.seconds < whole.seconds
    assert forward.words < whole.words
    assert forward.memory_bytes < whole.memory_bytes
    assert set(forward.parts) == {"data", "forward"}


def test_ranks_that_have_no_room() -> None:
    with pytest.raises(UsageError, match="has 4 ranks"):
        predict_step(SERVER, everything(), 8, None, 8)


def test_panels_overlap_with_products_where_the_link_can() -> None:
    """2D: a panel's broadcasts go on beside the panel before; the first one's do not."""
    graph = make_network("vgg16", (3, 32, 32))
    grid = Placement(Grid(b=2, k=2), "2d")
    seconds = []
    for overlap in (0.0, 0.5, 1.0):
        link = dataclasses.replace(SERVER.within, overlap=overlap)
        platform = dataclasses.replace(SERVER, within=link)
        seconds.append(predict_step(platform, graph, 32, same(graph, grid), 4).seconds)
    assert seconds[0] > seconds[1] > seconds[2]


# -- timeline and transfers ----------------------------------------------------------------------


def test_a_timeline_by_hand() -> None:
    line = Timeline(2, overlap=0.5)
    line.compute({"flops": np.array([1.0, 3.0])})
    line.lap("forward", "a")
    first = line.start({"latency": 1.0, "link bandwidth": 3.0})
    line.start({"link bandwidth": 1.0})
    line.compute({"flops": np.array([4.0, 4.0])})  # 2 of the first transfer's 4 are done
    line.finish(first)
    line.lap("forward", "b")
    line.finish()
    line.lap("gradients")
    seconds, charged = line.end()
    assert seconds == pytest.approx(3 + 4 + 2 + 1)
    assert line.phases == pytest.approx({"forward": 9.0, "gradients": 1.0})
    assert charged["imbalance"] == pytest.approx(1.0)  # rank 0 waits 2
    assert charged["flops"] == pytest.approx(6.0)
    assert charged["latency"] == pytest.approx(0.5)
    assert charged["link bandwidth"] == pytest.approx(2.5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(factorizations(4)), st.sampled_from(factorizations(4)), st.integers(1, 6))
def test_words_between_layouts_are_those_of_the_moves(one: Grid, other: Grid, images: int) -> None:
    graph = everything()
    layouts = [
        make_flow(graph, images, same(graph, grid_placements(grid)[0]), 4).steps["same"].output
        for grid in (one, other)
    ]
    owned, needed = (held.layout for held in layouts)
    words = words_between(owned, needed)
    for a in range(4):
        for b in range(4):
            boxes = overlaps(owned.block(a), needed.block(b))
            expected = sum(
                int(np.prod([part.stop - part.start for part in box])) for box, _ in boxes
            )
            assert words[a, b] == expected


def test_a_move_of_nothing_takes_nothing() -> None:
    flow = make_flow(everything(), 4, same(everything(), Placement(Grid(b=4), "data")), 4)
    layout = flow.steps["same"].output.layout
    line = Timeline(4, 0.0)
    Transfers(SERVER, 4).move(line, layout, layout, back=False)
    assert line.end()[0] == 0
    assert sum(Transfers(SERVER, 4).collective("allreduce", (1, 1), 100.0).values()) == 0
    assert sum(Transfers(SERVER, 4).collective("allreduce", (4, 1), 0.0).values()) == 0


# -- algorithms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategies_are_placements_that_run(strategy: str) -> None:
    graph = make_network("lenet5")
    found = strategy_placements(strategy, SERVER, graph, 16, 4)
    assert found
    for placements in found:
        assert set(placements) == set(products(graph))
        for placement in placements.values():
            placement.check()
            assert placement.grid.ranks == 4
            assert placement.algorithm in ALGORITHMS


def test_hybrid_divides_the_kernels_of_fully_connected_layers_only() -> None:
    graph = make_network("lenet5")
    for placements in strategy_placements("hybrid", SERVER, graph, 16, 4):
        assert {placements[name].algorithm for name in ("conv1", "conv2")} == {"data"}
        (algorithm,) = {placements[name].algorithm for name in ("fc1", "fc2", "fc3")}
        assert algorithm in ("filter", "channel")


def test_the_quickest_grid_of_each_strategy_that_fits() -> None:
    graph = make_network("lenet5")
    found = predict_algorithms(SERVER, graph, 16, 4)
    assert list(found) == list(STRATEGIES)
    for strategy, best in found.items():
        for placements in strategy_placements(strategy, SERVER, graph, 16, 4):
            assert best.seconds <= predict_step(SERVER, graph, 16, placements, 4).seconds
        assert set(best.details["grids"]) == set(products(graph))
    assert found["2.5d"].seconds <= found["2d"].seconds * (1 + 1e-12)
    limit = found["data"].memory_bytes - 1
    assert "data" not in predict_algorithms(SERVER, graph, 16, 4, memory_per_rank=limit)
    with pytest.raises(UsageError, match="no strategy 'magic'"):
        predict_algorithms(SERVER, graph, 16, 4, strategies=["magic"])


def test_a_thousand_ranks() -> None:
    graph = make_network("resnet50")
    placement = Placement(Grid(b=32, k=32), "3d")
    step = predict_step(CLUSTER, graph, 1024, same(graph, placement), 1024)
    alone = predict_step(CLUSTER, graph, 1, None, 1)
    assert alone.seconds < step.seconds < 1024 * alone.seconds
    assert step.bound != "flops"
