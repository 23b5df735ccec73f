"""The planner against brute force; costs against the flow that is executed."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from sparsednn.dense.flow import make_flow, products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import (
    ALGORITHMS,
    Grid,
    Placement,
    factorizations,
    legal_placements,
)
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
from sparsednn.dense.planning.elimination import elimination_order, minimise
from sparsednn.dense.planning.memory import flow_memory
from sparsednn.dense.planning.placement_costs import NetworkCosts, mean_words
from sparsednn.dense.planning.plan import NetworkPlan
from sparsednn.dense.planning.planner import plan_network
from sparsednn.errors import FormatError, UsageError


def chain(source: np.random.Generator, convolutions: int) -> OperationGraph:
    """Convolutions, some normalised or pooled, and a fully connected layer."""
    graph = OperationGraph("chain")
    height, width = (int(each) for each in source.integers(5, 12, 2))
    last = graph.add(Input("image", (int(source.integers(1, 6)), height, width)))
    for number in range(convolutions):
        filters, taps = int(source.integers(2, 12)), int(source.choice([1, 3]))
        stride = (int(source.integers(1, 3)), 1)
        last = graph.add(
            Convolution(f"conv{number}", filters, (taps, taps), stride, (taps // 2, taps // 2)),
            last,
        )
        kind = source.integers(3)
        if kind == 0:
            last = graph.add(BatchNorm(f"norm{number}"), last)
        elif kind == 1 and min(graph.shape(last)[1:]) > 2:
            last = graph.add(MaxPool(f"pool{number}", (3, 2), (2, 2), (1, 0)), last)
        last = graph.add(Relu(f"relu{number}"), last)
    graph.add(FullyConnected("fc", int(source.integers(2, 14))), last)
    return graph.finish()


def branching() -> OperationGraph:
    """Two modules whose branches are concatenated, grouped convolutions, and a shortcut."""
    graph = OperationGraph("branching")
    last = graph.add(Input("image", (4, 10, 9)))
    for module in range(2):
        ends = []
        for branch, taps in enumerate((1, 3, 3)):
            name = f"m{module}b{branch}"
            made = graph.add(Convolution(f"{name}a", 4 + branch, (1, 1)), last)
            groups = 2 if branch == 2 else 1
            made = graph.add(
                Convolution(
                    f"{name}c", 6, (taps, taps), padding=(taps // 2, taps // 2), groups=groups
                ),
                made,
            )
            ends.append(graph.add(Relu(f"{name}r"), made))
        ends.append(graph.add(MaxPool(f"m{module}pool", (3, 3), (1, 1), (1, 1)), last))
        last = graph.add(Concatenate(f"m{module}"), *ends)
    made = graph.add(Convolution("side", graph.shape(last)[0], (3, 3), padding=(1, 1)), last)
    last = graph.add(Add("sum"), made, last)
    last = graph.add(AveragePool("mean", graph.shape(last)[1:]), last)
    graph.add(FullyConnected("fc", 7), last)
    return graph.finish()


def distinct(costs: NetworkCosts, name: str) -> list[Placement]:
    found = {
        (each.grid, each.mode): each for each in legal_placements(costs.shapes[name], costs.ranks)
    }
    return list(found.values())


def random_placements(
    costs: NetworkCosts, source: np.random.Generator, *, legal: bool = True
) -> dict[str, Placement]:
    chosen = {}
    for name in costs.products:
        every = distinct(costs, name)
        if not legal:
            every = [Placement(grid, "3d") for grid in factorizations(costs.ranks)]
        chosen[name] = every[int(source.integers(len(every)))]
    return chosen


def words_of_flow(graph, images, placements, ranks, training):
    flow = make_flow(graph, images, placements, ranks)
    volumes = [step.volume(training=training) for step in flow.steps.values() if step.inputs]
    volumes.append(flow.loss_volume())
    return flow, [int(each.total(training=training).max()) for each in volumes]


# --- costs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_costs_are_those_of_the_flow(training):
    source = np.random.default_rng(7)
    graphs = [branching(), make_network("resnet20"), chain(source, 3), chain(source, 4)]
    for graph, ranks in itertools.product(graphs, (1, 2, 6)):
        images = int(source.integers(1, 9))
        costs = NetworkCosts(graph, images, ranks, training=training, optimizer_slots=1, itemsize=8)
        for number in range(4):
            placements = random_placements(costs, source, legal=number > 0)
            flow, words = words_of_flow(graph, images, placements, ranks, training)
            assert costs.words(placements) == sum(words)
            memory = flow_memory(graph, flow, training=training, optimizer_slots=1, itemsize=8)
            assert costs.memory(placements) == memory


@pytest.mark.parametrize("training", [True, False])
def test_mean_words_are_the_mean_of_all_ranks(training):
    source = np.random.default_rng(8)
    for graph in (branching(), chain(source, 3), make_network("lenet5")):
        costs = NetworkCosts(graph, 5, 12, training=training)
        for _ in range(10):
            for name, placement in random_placements(costs, source).items():
                mean = mean_words(
                    costs.shapes[name], placement.grid, placement.mode,
                    has_bias=graph.operation(name).bias,
                    input_gradient=costs.has_gradient(name), training=training,
                )  # fmt: skip
                words = costs.placed(name, placement).words
                # Allreduces round up, one for the bias and one for the kernel.
                assert words.mean() - 1 <= mean <= words.mean() + 1e-6


# --- elimination ---------------------------------------------------------------------------------


def test_elimination_finds_the_least_sum():
    source = np.random.default_rng(9)
    for _ in range(150):
        sizes = {name: int(source.integers(1, 5)) for name in "abcde"}
        tables = []
        for _ in range(int(source.integers(1, 8))):
            scope = tuple(source.permutation(list("abcde"))[: int(source.integers(1, 4))].tolist())
            table = source.integers(0, 9, [sizes[name] for name in scope]).astype(float)
            table[source.random(table.shape) < 0.1] = np.inf
            tables.append((scope, table))
        names = sorted({name for scope, _ in tables for name in scope})

        def total(values, tables=tables):
            return sum(table[tuple(values[name] for name in scope)] for scope, table in tables)

        every = [
            dict(zip(names, values, strict=True))
            for values in itertools.product(*(range(sizes[name]) for name in names))
        ]
        found, where = minimise(tables)
        assert found == min(map(total, every))
        assert total(where) == found
        order, largest = elimination_order([scope for scope, _ in tables], sizes)
        assert sorted(order) == names
        assert largest >= max(table.size for _, table in tables)


def test_width_of_chains_and_of_crossing_pairs():
    names = [f"v{i}" for i in range(9)]
    sizes = dict.fromkeys(names, 10)
    assert elimination_order(itertools.pairwise(names), sizes)[1] == 100
    assert elimination_order(itertools.combinations(names[:4], 2), sizes)[1] == 10_000


# --- the planner ---------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("convolutions", "ranks"), [(1, 4), (2, 2), (2, 3), (1, 6)])
def test_plans_of_chains_are_optimal(convolutions, ranks, training):
    source = np.random.default_rng([convolutions, ranks, training])
    for _ in range(2):
        graph = chain(source, convolutions)
        images = int(source.integers(1, 12))
        costs = NetworkCosts(graph, images, ranks, training=training)
        every = [distinct(costs, name) for name in costs.products]
        best = min(
            costs.words(dict(zip(costs.products, each, strict=True)))
            for each in itertools.product(*every)
        )
        plan = plan_network(graph, images, ranks, training=training)
        assert plan.optimal
        # What is the same for all layers may have ranks without work, and be better.
        uniform = min(
            costs.words(dict.fromkeys(costs.products, Placement(grid, algorithm)))
            for grid in factorizations(ranks)
            for algorithm in ("2.5d", "3d", *(["spatial"] if grid.bhw == ranks else []))
        )
        # It may even mix the two.
        assert plan.totals.words <= min(best, uniform, plan.totals.data_parallel_words)
        _, words = words_of_flow(graph, images, plan.placements, ranks, training)
        assert plan.totals.words == sum(words)


def test_memory_limits_are_kept_and_the_least_is_told():
    source = np.random.default_rng(11)
    limited = 0
    for _ in range(4):
        graph = chain(source, 1)
        images, ranks = int(source.integers(4, 12)), 4
        costs = NetworkCosts(graph, images, ranks, optimizer_slots=1)
        every = [
            dict(zip(costs.products, each, strict=True))
            for each in itertools.product(*(distinct(costs, name) for name in costs.products))
        ]
        memory = np.array([costs.memory(each) for each in every])
        words = np.array([costs.words(each) for each in every])
        free = plan_network(graph, images, ranks, optimizer_slots=1)
        for limit in np.unique(np.quantile(memory, [0, 0.02, 0.1, 0.5], method="lower")):
            plan = plan_network(graph, images, ranks, memory_per_rank=int(limit), optimizer_slots=1)
            assert plan.totals.memory <= limit
            assert plan.totals.memory == costs.memory(plan.placements)
            best = words[memory <= limit].min()
            assert plan.totals.words <= 1.1 * best
            assert plan.totals.words >= free.totals.words
            limited += plan.totals.words > free.totals.words
        with pytest.raises(UsageError) as caught:
            plan_network(
                graph, images, ranks, memory_per_rank=int(memory.min()) - 1, optimizer_slots=1
            )
        assert str(caught.value).startswith("--memory-per-rank ")
        assert "no grid of 4 ranks needs less than" in str(caught.value)
        told = re.search(r"less than ([\d.]+) KiB a rank", str(caught.value))
        assert told is not None
        assert float(told[1]) == pytest.approx(memory.min() / 1024, abs=0.051)
    assert limited > 3  # the limit was in the way


@pytest.mark.parametrize("network", ["branching", "smallcnn", "resnet20", "lenet5"])
@pytest.mark.parametrize("ranks", [1, 4])
def test_plans_are_no_worse_than_one_placement_for_all(network, ranks):
    graph = branching() if network == "branching" else make_network(network)
    costs = NetworkCosts(graph, 12, ranks)
    plan = plan_network(graph, 12, ranks)
    for grid in factorizations(ranks):
        for algorithm in ("2.5d", "3d"):
            same = dict.fromkeys(costs.products, Placement(grid, algorithm))
            assert plan.totals.words <= costs.words(same)
    data = dict.fromkeys(costs.products, Placement(Grid(b=ranks), "data"))
    assert plan.totals.words <= costs.words(data) == plan.totals.data_parallel_words
    assert plan.totals.data_parallel_memory == costs.memory(data)
    # A limit that data parallelism just meets.
    limited = plan_network(graph, 12, ranks, memory_per_rank=costs.memory(data))
    assert limited.totals.words <= costs.words(data)
    assert limited.totals.memory <= costs.memory(data)


def test_where_branches_join_it_is_step_by_step_and_still_good():
    graph = branching()
    costs = NetworkCosts(graph, 16, 4)
    plan = plan_network(graph, 16, 4)
    assert not plan.optimal
    source = np.random.default_rng(12)
    sampled = min(costs.words(random_placements(costs, source)) for _ in range(200))
    assert plan.totals.words < sampled
    # Nor is there a better placement for any one layer.
    for name in costs.products:
        for placement in [*distinct(costs, name)][::7]:
            assert costs.words({**plan.placements, name: placement}) >= 0.98 * plan.totals.words


def test_an_algorithm_or_a_grid_may_be_asked_for():
    graph = make_network("smallcnn")
    for algorithm in ALGORITHMS:
        plan = plan_network(graph, 8, 4, algorithm=algorithm)
        assert {each.algorithm for each in plan.placements.values()} == {algorithm}
    plan = plan_network(graph, 8, 4, grid=Grid(b=2, k=2))
    assert {each.grid for each in plan.placements.values()} == {Grid(b=2, k=2)}
    costs = NetworkCosts(graph, 8, 4)
    best = min(
        costs.words(dict(zip(costs.products, each, strict=True)))
        for each in itertools.product(
            [Placement(Grid(b=2, k=2), name) for name in ("2d", "3d")], repeat=4
        )
    )
    assert plan.totals.words == best
    plan = plan_network(graph, 3, 8, grid=Grid(b=8))  # more ranks than images
    assert plan.totals.words <= plan.totals.data_parallel_words
    both = plan_network(graph, 8, 4, grid=Grid(c=2, b=2), algorithm="2.5d")
    assert set(both.placements.values()) == {Placement(Grid(c=2, b=2), "2.5d")}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"grid": Grid(b=2, k=3)}, "--grid 2x1x1x3x1: it has 6 places for 4 ranks"),
        ({"algorithm": "4d"}, "algorithm '4d' is unknown"),
        ({"algorithm": "2d", "grid": Grid(c=4)}, "algorithm 2d: there is one rank along the"),
        ({"memory_per_rank": 100_000}, "--memory-per-rank 97.7 KiB: no grid of 4 ranks needs"),
        (
            {"memory_per_rank": 100_000, "grid": Grid(b=4), "algorithm": "data"},
            "--memory-per-rank 97.7 KiB: grid 4x1x1x1x1 of algorithm data needs",
        ),
    ],
)
def test_what_cannot_be_is_told_in_one_line(arguments, line):
    with pytest.raises(UsageError) as caught:
        plan_network(make_network("smallcnn"), 8, 4, **arguments)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_no_images_and_no_ranks_are_refused():
    for images, ranks in ((0, 2), (4, 0)):
        with pytest.raises(UsageError, match="at least 1 image and 1 rank"):
            plan_network(make_network("smallcnn"), images, ranks)


def test_one_rank_sends_nothing():
    plan = plan_network(make_network("resnet20"), 4, 1, training=True)
    assert plan.totals.words == 0
    assert {each.algorithm for each in plan.placements.values()} == {"data"}


# --- JSON ----------------------------------------------------------------------------------------


def test_plans_survive_json_and_say_what_is_asked_for():
    graph = make_network("smallcnn")
    plan = plan_network(graph, 16, 4, memory_per_rank=1 << 24, optimizer_slots=1)
    content = json.loads(json.dumps(plan.as_json()))
    assert NetworkPlan.from_json(content) == plan
    assert content["network"] == "smallcnn"
    assert content["identity"] == graph.identity
    layers = {row["layer"]: row for row in content["layers"]}
    keys = {
        "layer", "algorithm", "grid", "words", "memory", "data_parallel_words", "redistribution",
    }  # fmt: skip
    assert all(keys <= set(row) for row in content["layers"])
    assert set(products(graph)) <= set(layers)
    totals = content["totals"]
    for key in ("words", "data_parallel_words", "lower_bound", "mean_words"):
        assert totals[key] == pytest.approx(sum(row[key] for row in content["layers"]))
    for row in content["layers"]:
        assert row["redistribution"] <= row["words"]
        if row["algorithm"]:
            placement = plan.placements[row["layer"]]
            assert (row["algorithm"], row["grid"]) == (placement.algorithm, str(placement.grid))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"format": "something"}, "not a plan"),
        ({"version": 9}, "format version 9, expected 1"),
        ({"images": None, "layers": [{"layer": "x"}]}, "cannot be read"),
        ({"totals": 4}, "cannot be read"),
    ],
)
def test_what_is_no_plan_is_refused(change, line):
    content = plan_network(make_network("lenet5"), 4, 2).as_json()
    with pytest.raises(FormatError, match=line):
        NetworkPlan.from_json({**content, **change})


def test_a_plan_is_no_list():
    with pytest.raises(FormatError, match="not a plan"):
        NetworkPlan.from_json([1])
