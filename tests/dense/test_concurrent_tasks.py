"""Tasks of a pass: what they read and write, what waits for what, and the bounds."""

from __future__ import annotations

import networkx
import pytest

from sparsednn.dense.concurrency.bounds import bounds_of, flops_and_words
from sparsednn.dense.concurrency.tasks import (
    BACKWARD,
    INPUT_GRADIENT,
    KERNEL_GRADIENT,
    LOSS,
    SUM,
    TaskGraph,
)
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    Input,
    MaxPool,
    Relu,
)

NETWORKS = ("lenet5", "vgg16", "resnet20", "resnet50", "googlenet", "inception_v3", "pathnet")


def module() -> OperationGraph:
    """Two branches that end in a concatenation, one of them in a pool; and a shortcut."""
    net = OperationGraph("module")
    image = net.add(Input("image", (3, 8, 8)))
    stem = net.add(
        Relu("stem.relu"), net.add(Convolution("stem", 4, (3, 3), padding=(1, 1)), image)
    )
    one = net.add(Convolution("one", 2, (1, 1), bias=False), stem)
    one = net.add(Relu("one.relu"), net.add(BatchNorm("one.bn"), one))
    two = net.add(MaxPool("two", (3, 3), (1, 1), (1, 1)), stem)
    both = net.add(Concatenate("both"), one, two)
    same = net.add(Convolution("same", 6, (1, 1)), both)
    total = net.add(Relu("total.relu"), net.add(Add("total"), both, same))
    net.add(AveragePool("mean", (8, 8), (8, 8)), total)
    return net.finish()


def test_inference_fuses_and_writes_where_it_is_wanted() -> None:
    """Elementwise operations join what is in front of them; a concatenation has no task."""
    tasks = TaskGraph(module(), 2)
    assert list(tasks.tasks) == ["image", "stem", "one", "two", "same", "total", "mean"]
    assert tasks.tasks["one"].operations == ("one", "one.bn", "one.relu")
    assert tasks.tasks["total"].operations == ("total", "total.relu")
    assert tasks.tasks["one"].writes == ("one.relu",)
    assert tasks.root("one.relu") == ("both", 0)
    assert tasks.root("two") == ("both", 2)
    assert set(tasks.waits.predecessors("same")) == {"one", "two"}
    assert {one.name for one in tasks.roots} == {
        "image", "stem.relu", "both", "same", "total.relu", "mean",
    }  # fmt: skip
    # "same" has no elementwise operation behind it; "total" reads two outputs.
    assert tasks.tasks["total"].reads == ("both", "same")


def test_training_has_both_gradients_side_by_side() -> None:
    """Nothing but the gradient of its output, and what it reads, is in front of a gradient."""
    tasks = TaskGraph(module(), 2, training=True)
    kernel, given = f"same ({KERNEL_GRADIENT})", f"same ({INPUT_GRADIENT})"
    assert not networkx.has_path(tasks.waits, kernel, given)
    assert not networkx.has_path(tasks.waits, given, kernel)
    assert tasks.tasks[kernel].reads == ("total:gradient", "both")
    # The sum's gradient is that of both that are added up: no task, no copy.
    assert tasks.tasks[f"both ({SUM})"].reads == ("total:gradient", given_tensor("same"))
    assert tasks.root("two:gradient") == ("both:gradient", 2)
    assert tasks.tasks[f"one.bn ({BACKWARD})"].reads == (
        "one.bn:gradient", "one", "one.bn:statistics",
    )  # fmt: skip
    # The images need no gradient.
    assert f"stem ({INPUT_GRADIENT})" not in tasks.tasks
    order = list(tasks.tasks)
    assert order.index(LOSS) == order.index("mean") + 1


def given_tensor(reader: str) -> str:
    """The part of the gradient of "both" that comes from a reader."""
    return f"both:gradient:{reader}"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, training: bool, fuse: bool) -> None:
    """The order respects what waits; every tensor that is read is written; flops are all there."""
    graph = make_network(name)
    tasks = TaskGraph(graph, 3, training=training, fuse=fuse)
    order = {task: number for number, task in enumerate(tasks.tasks)}
    assert all(order[first] < order[second] for first, second in tasks.waits.edges)
    assert networkx.is_weakly_connected(tasks.waits)
    written = {tensor for task in tasks for tensor in task.writes}
    for task in tasks:
        for tensor in task.reads:
            root = tasks.root(tensor)[0]
            assert any(tasks.root(each)[0] == root for each in written)
    forward = sum(task.flops for task in tasks if not task.backward and task.action != LOSS)
    assert forward == graph.forward_flops(3)
    # Each part of a task's output is written by one task only.
    assert len(written) == sum(len(task.writes) for task in tasks)
    if training:
        trained = {each.name.rpartition(".")[0] for each in graph.parameters.values()}
        done = {
            operation
            for task in tasks
            for operation in task.operations
            if task.action in (KERNEL_GRADIENT, BACKWARD)
        }
        assert trained <= done


def test_bounds_by_hand() -> None:
    """A diamond with costs 1; 2 and 5; 1: work 9, critical path 7."""
    net = OperationGraph("diamond")
    image = net.add(Input("image", (1, 1, 1)))
    net.add(Add("end"), net.add(Relu("few"), image), net.add(Relu("many"), image))
    tasks = TaskGraph(net.finish(), 1, fuse=False)
    found = bounds_of(tasks, {"image": 1.0, "few": 2.0, "many": 5.0, "end": 1.0})
    assert (found.work, found.critical_path, found.width) == (9.0, 7.0, 2)
    assert found.path == ("image", "many", "end")
    assert found.bound == pytest.approx(9 / 7)
    assert [level.tasks for level in found.levels] == [("image",), ("many", "few"), ("end",)]
    assert found.levels[1].gain == pytest.approx(7 / 5)


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_of_networks(name: str) -> None:
    """No chain costs more than the critical path; chains of operations gain nothing forward."""
    tasks = TaskGraph(make_network(name), 1, training=True, fuse=False)
    costs = flops_and_words(tasks)
    forward, backward = (bounds_of(tasks, costs, part=part) for part in ("forward", "backward"))
    whole = bounds_of(tasks, costs)
    both = forward.critical_path + costs[LOSS] + backward.critical_path
    assert whole.critical_path == pytest.approx(both)
    assert whole.work == pytest.approx(forward.work + costs[LOSS] + backward.work)
    assert sum(len(level.tasks) for level in whole.levels) == len(tasks)
    weighted = networkx.DiGraph()
    weighted.add_weighted_edges_from(
        (first, second, costs[first]) for first, second in tasks.waits.edges
    )
    last = costs[whole.path[-1]]
    longest = networkx.dag_longest_path_length(weighted)
    assert longest <= whole.critical_path <= longest + max(costs.values())
    assert whole.critical_path == pytest.approx(sum(costs[task] for task in whole.path[:-1]) + last)
    if name in ("vgg16", "lenet5"):
        assert forward.bound == 1.0
    else:
        assert forward.bound > 1.005
    assert backward.bound > 1.5
