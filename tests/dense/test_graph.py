"""Operations and graphs of them: shapes, costs, order, identity, and what is refused."""

from __future__ import annotations

import json
import random
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.networks import NETWORKS, make_network
from sparsednn.dense.operations import (
    KINDS,
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Operation,
    Relu,
    operation_from_json,
)
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError


def chain(*operations: Operation, image: tuple[int, int, int] = (3, 8, 9)) -> OperationGraph:
    """A network of one operation behind the other."""
    graph = OperationGraph("chain")
    at = graph.add(Input("image", image))
    for operation in operations:
        at = graph.add(operation, at)
    return graph.finish()


def random_graph(seed: int) -> OperationGraph:
    """Branches of all kinds that split and meet, with one output."""
    dice = random.Random(seed)
    graph = OperationGraph("random")
    graph.add(Input("image", (dice.randint(1, 5), dice.randint(3, 9), dice.randint(3, 9))))
    open_ends = ["image"]
    for number in range(dice.randint(1, 15)):
        name, source = f"node{number}", dice.choice([*open_ends, *graph.nodes])
        kind = dice.randrange(6)
        same = [each for each in graph.nodes if graph.shape(each) == graph.shape(source)]
        level = [each for each in graph.nodes if graph.shape(each)[1:] == graph.shape(source)[1:]]
        operation: Operation
        inputs = [source]
        if kind == 0:
            filters = dice.randint(1, 6)
            operation = Convolution(name, filters, (3, 1), padding=(1, 0), bias=dice.random() < 0.5)
        elif kind == 1:
            operation = Relu(name)
        elif kind == 2:
            operation = BatchNorm(name, epsilon=dice.choice([1e-5, 1e-3]))
        elif kind == 3:
            operation = MaxPool(name, (3, 3), padding=(1, 1), ceil_mode=dice.random() < 0.5)
        elif kind == 4:
            operation, inputs = Add(name), [source, *dice.choices(same, k=dice.randint(1, 2))]
        else:
            operation, inputs = Concatenate(name), [source, *dice.choices(level, k=2)]
        graph.add(operation, *inputs)
        open_ends = [each for each in graph.nodes if not graph.successors(each)]
    if len(open_ends) > 1:
        graph.add(Concatenate("meet"), *open_ends)
    graph.add(FullyConnected("fc", 7), "meet" if len(open_ends) > 1 else open_ends[0])
    return graph.finish()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), shuffle=st.integers(0, 2**32))
def test_a_graph_survives_json_in_any_order_of_its_operations(seed: int, shuffle: int) -> None:
    graph = random_graph(seed)
    content = json.loads(json.dumps(graph.as_json()))
    back = OperationGraph.from_json(content)
    assert [each.name for each in back] == [each.name for each in graph]
    assert back.operations == graph.operations
    assert all(back.predecessors(each) == graph.predecessors(each) for each in graph.nodes)
    random.Random(shuffle).shuffle(content["operations"])
    shuffled = OperationGraph.from_json(content)
    assert shuffled == graph == back
    assert hash(shuffled) == hash(graph)
    assert shuffled.parameters.items() == dict(graph.parameters.items()).items()
    order = {operation.name: place for place, operation in enumerate(shuffled)}
    assert all(order[source] < order[each] for source, each in shuffled.nodes.edges)
    assert shuffled.forward_flops(3) == graph.forward_flops(3)
    assert shuffled.backward_flops(3) == graph.backward_flops(3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_operation_lies_between_input_and_output(seed: int) -> None:
    graph = random_graph(seed)
    assert networkx.is_directed_acyclic_graph(graph.nodes)
    assert networkx.descendants(graph.nodes, graph.input) == set(graph.nodes) - {graph.input}
    assert networkx.ancestors(graph.nodes, graph.output) == set(graph.nodes) - {graph.output}
    for name in graph.nodes:
        for source in graph.predecessors(name):
            assert name in graph.successors(source)


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"name": "other"}, True),
        ({"filters": 9}, False),
        ({"epsilon": 1e-4}, False),
        ({"node": "other"}, False),
    ],
)
def test_the_identity_is_that_of_the_structure(change: dict[str, Any], same: bool) -> None:
    def made(
        name: str = "n", filters: int = 8, epsilon: float = 1e-5, node: str = "conv"
    ) -> OperationGraph:
        graph = OperationGraph(name)
        at = graph.add(Input("image", (3, 8, 9)))
        at = graph.add(Convolution(node, filters, (3, 3)), at)
        graph.add(BatchNorm("bn", epsilon), at)
        return graph.finish()

    assert (made(**change).identity == made().identity) is same
    assert len(made().identity) == 64


def test_inputs_of_a_concatenation_keep_their_order_and_are_part_of_the_identity() -> None:
    def made(first: str, second: str) -> OperationGraph:
        graph = OperationGraph("n")
        at = graph.add(Input("image", (3, 8, 9)))
        for name, filters in (("a", 2), ("b", 5)):
            graph.add(Convolution(name, filters, (1, 1)), at)
        graph.add(Concatenate("both"), first, second)
        return graph.finish()

    assert made("b", "a").predecessors("both") == ("b", "a")
    assert made("b", "a").input_shapes("both") == ((5, 8, 9), (2, 8, 9))
    assert made("b", "a").shape("both") == (7, 8, 9)
    assert made("b", "a") != made("a", "b")
    assert made("a", "b").successors("image") == ("a", "b")
    assert OperationGraph.from_json(made("b", "a").as_json()) == made("b", "a")


def test_flops_words_and_parameters() -> None:
    graph = chain(
        Convolution("conv", 8, (3, 5), (2, 1), (1, 2), groups=1),
        BatchNorm("bn"),
        Relu("relu"),
        MaxPool("max", (2, 3), (2, 3)),
        AveragePool("mean", (2, 3), (2, 3)),
        FullyConnected("fc", 10),
    )
    words = 8 * 4 * 9
    assert [graph.shape(each.name) for each in graph] == [
        (3, 8, 9), (8, 4, 9), (8, 4, 9), (8, 4, 9), (8, 2, 3), (8, 1, 1), (10, 1, 1),
    ]  # fmt: skip
    products = 2 * words * 3 * 15
    assert graph.forward_flops(5, "conv") == 5 * products
    assert graph.backward_flops(5, "conv") == 5 * products  # images need no gradient
    assert graph.forward_flops(5, "bn") == 5 * 7 * words
    assert graph.backward_flops(5, "bn") == 5 * 9 * words
    assert graph.forward_flops(5, "relu") == graph.backward_flops(5, "relu") == 5 * words
    assert graph.forward_flops(5, "max") == 5 * 48 * 6
    assert graph.backward_flops(5, "max") == 5 * 48
    assert graph.forward_flops(5, "mean") == 5 * 8 * 6
    assert graph.backward_flops(5, "mean") == 5 * 8 * 7
    assert graph.forward_flops(5, "fc") == 5 * 160
    assert graph.backward_flops(5, "fc") == 2 * 5 * 160
    assert graph.forward_flops(5, "image") == graph.backward_flops(5, "image") == 0
    rows = graph.describe(5)
    assert sum(row["forward_flops"] for row in rows) == graph.forward_flops(5)
    assert sum(row["backward_flops"] for row in rows) == graph.backward_flops(5)
    assert sum(row["output_words"] for row in rows) == graph.output_words(5)
    assert graph.output_words(5) == 5 * (216 + 3 * words + 48 + 8 + 10)
    assert sum(row["parameters"] for row in rows) == graph.trained_words == 368 + 16 + 90
    assert {name: each.shape for name, each in graph.parameters.items()} == {
        "conv.weight": (8, 3, 3, 5), "conv.bias": (8,), "bn.weight": (8,), "bn.bias": (8,),
        "bn.running_mean": (8,), "bn.running_var": (8,), "fc.weight": (10, 8, 1, 1),
        "fc.bias": (10,),
    }  # fmt: skip
    assert [name for name, each in graph.parameters.items() if not each.trained] == [
        "bn.running_mean",
        "bn.running_var",
    ]
    assert graph.parameter("fc.weight").torch_shape == (10, 8)
    assert graph.parameter("conv.weight").torch_shape == (8, 3, 3, 5)
    assert [row["details"] for row in rows][1] == ("8 filters of 3×5, stride 2×1, padding 1×2")
    assert graph.classes == 10


def test_an_output_that_two_read_has_its_gradients_added() -> None:
    graph = OperationGraph("n")
    image = graph.add(Input("image", (3, 4, 5)))
    relu = graph.add(Relu("relu"), image)
    graph.add(Add("twice"), relu, relu, relu)
    graph.finish()
    assert graph.predecessors("twice") == ("relu",) * 3
    assert graph.successors("relu") == ("twice",)
    assert graph.forward_flops(2, "twice") == 2 * 2 * 60
    assert graph.backward_flops(2, "relu") == 2 * 2 * 60  # no gradient of images, but two sums


def test_groups_and_dilation() -> None:
    graph = chain(Convolution("conv", 6, (2, 3), dilation=(3, 2), groups=3, bias=False))
    assert graph.shape("conv") == (6, 5, 5)
    assert graph.parameters["conv.weight"].shape == (6, 1, 2, 3)
    assert graph.forward_flops() == 2 * 6 * 25 * 6
    assert graph.describe()[1]["details"] == "6 filters of 2×3, dilation 3×2, 3 groups"


@settings(max_examples=200, deadline=None)
@given(
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    taps=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    ceil_mode=st.booleans(),
)
def test_pools_have_the_shape_of_pytorch_and_pads_that_give_it(
    size: tuple[int, int],
    taps: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
) -> None:
    torch = pytest.importorskip("torch")
    padding = (min(padding[0], taps[0] // 2), min(padding[1], taps[1] // 2))
    operation = MaxPool("pool", taps, stride, padding, ceil_mode)
    x = torch.from_numpy(np.random.default_rng(sum(size)).standard_normal((1, 2, *size)))
    try:
        expected = torch.nn.functional.max_pool2d(x, taps, stride, padding, ceil_mode=ceil_mode)
    except RuntimeError:
        with pytest.raises(ShapeError, match=r"operation 'pool' \(max pool\): a window of "):
            operation.output_shape((2, *size))
        return
    assert operation.output_shape((2, *size)) == tuple(expected.shape[1:])
    top, left, bottom, right = operation.pads((2, *size))
    padded = torch.nn.functional.pad(x, (left, right, top, bottom), value=-torch.inf)
    assert torch.equal(torch.nn.functional.max_pool2d(padded, taps, stride), expected)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    taps=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 3),
    count=st.booleans(),
)
def test_averages_are_sums_by_their_divisors(
    size: tuple[int, int], taps: tuple[int, int], stride: int, count: bool
) -> None:
    torch = pytest.importorskip("torch")
    padding = (taps[0] // 2, taps[1] // 2)
    operation = AveragePool("pool", taps, (stride, stride), padding, count)
    x = torch.from_numpy(np.random.default_rng(7).standard_normal((1, 2, *size)))
    pool = torch.nn.functional.avg_pool2d
    expected = pool(x, taps, stride, padding, count_include_pad=count)
    sums = pool(x, taps, stride, padding, divisor_override=1)
    divisors = operation.divisors((2, *size))
    np.testing.assert_allclose(sums.numpy() / divisors, expected.numpy(), rtol=1e-12)


def refused(*operations: Operation, image: tuple[int, int, int] = (3, 8, 9)) -> str:
    with pytest.raises(ShapeError) as caught:
        chain(*operations, image=image)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_shapes_that_do_not_fit_are_told_with_operation_and_shapes() -> None:
    text = refused(Convolution("conv", 4, (9, 3)))
    assert text.startswith("operation 'conv' (convolution): 4 filters of 9×3 do not fit an input")
    assert "3×8×9" in text
    assert "2 groups" in refused(Convolution("conv", 4, (1, 1), groups=2))
    assert "input of 3×8×9" in refused(AveragePool("pool", (9, 9)))
    graph = OperationGraph("n")
    graph.add(Input("image", (3, 8, 9)))
    graph.add(Convolution("conv", 4, (3, 3)), "image")
    with pytest.raises(ShapeError, match=r"'add' \(add\): .* same shape, found 3×8×9 and 4×6×7"):
        graph.add(Add("add"), "image", "conv")
    with pytest.raises(ShapeError, match=r"same height and width, found 3×8×9 and 4×6×7"):
        graph.add(Concatenate("both"), "image", "conv")
    with pytest.raises(ShapeError, match=r"it takes at least 2 inputs, not 1"):
        graph.add(Add("add"), "image")
    with pytest.raises(ShapeError, match=r"it takes 1 input, not 2"):
        graph.add(Relu("relu"), "image", "conv")
    with pytest.raises(ShapeError, match=r"it takes 0 inputs, not 1"):
        graph.add(Input("more", (3, 8, 9)), "image")
    assert len(graph) == 2, "what was refused must not be in the graph"


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Convolution("a", 0, (3, 3)), "filters must be positive, found 0"),
        (lambda: Convolution("a", 1, (3, 0)), "taps must be positive, found 3×0"),
        (lambda: Convolution("a", 1, (3, 3), stride=(0, 1)), "stride must be positive"),
        (lambda: Convolution("a", 1, (3, 3), padding=(0, -1)), "padding must be not negative"),
        (lambda: MaxPool("a", (3, 3), padding=(2, 0)), "at most half the window of 3×3, found 2×0"),
        (lambda: Input("image", (0, 8, 8)), "image must be positive, found 0×8×8"),
        (lambda: BatchNorm("a", epsilon=0.0), "epsilon must be positive"),
        (lambda: BatchNorm("a", momentum=float("nan")), "momentum from 0 to 1"),
        (lambda: Relu(""), "name must be a word"),
        (lambda: Relu("a b"), "name must be a word"),
    ],
)
def test_attributes_out_of_range(make: Any, text: str) -> None:
    with pytest.raises(ShapeError, match=text):
        make()


def test_a_graph_must_be_one_network() -> None:
    graph = OperationGraph("n")
    with pytest.raises(ShapeError, match="one input, found none"):
        graph.finish()
    graph.add(Input("image", (3, 8, 9)))
    with pytest.raises(ShapeError, match="reads 'nothing', which is not there"):
        graph.add(Relu("relu"), "nothing")
    graph.add(Relu("relu"), "image")
    with pytest.raises(ShapeError, match="two operations 'relu'"):
        graph.add(Relu("relu"), "image")
    graph.add(Relu("other"), "image")
    with pytest.raises(ShapeError, match="one output must have no reader, found 'relu', 'other'"):
        graph.finish()
    graph.add(Add("sum"), "relu", "other")
    graph.add(Input("second", (3, 8, 9)))
    with pytest.raises(ShapeError, match="one input, found 'image', 'second'"):
        graph.finish()
    graph.add(Add("all"), "sum", "second")
    with pytest.raises(ShapeError, match="one input, found 'image', 'second'"):
        graph.finish()
    done = chain(Relu("relu"))
    with pytest.raises(UsageError, match="it is finished"):
        done.add(Relu("more"), "relu")
    with pytest.raises(InputError, match="no operation 'more'"):
        done.shape("more")
    with pytest.raises(InputError, match=r"no parameter 'relu\.weight'"):
        done.parameter("relu.weight")
    with pytest.raises(ShapeError, match=r"'relu' is 3×8×9, expected was one logit"):
        _ = done.classes


def test_a_cycle_is_named() -> None:
    operations: list[tuple[Operation, list[str]]] = [
        (Input("image", (3, 8, 9)), []),
        (Add("a"), ["image", "c"]),
        (Relu("b"), ["a"]),
        (Relu("c"), ["b"]),
        (Relu("end"), ["c"]),
    ]
    with pytest.raises(ShapeError, match=r"in a cycle: (\w) → \w → \w → \1$"):
        OperationGraph.of_operations("n", operations)
    operations[1] = (Relu("a"), ["image"])
    assert len(OperationGraph.of_operations("n", operations)) == 5
    with pytest.raises(ShapeError, match="two operations 'b'"):
        OperationGraph.of_operations("n", [*operations, (Relu("b"), ["a"])])
    with pytest.raises(ShapeError, match="reads 'lost', which is not there"):
        OperationGraph.of_operations("n", [*operations, (Relu("x"), ["lost"])])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.update(format="x"), "not a network"),
        (lambda c: c.update(version=2), "version 2, expected 1"),
        (lambda c: c.update(operations=3), "a list of 'operations'"),
        (lambda c: c["operations"].append(3), "a list of 'inputs', found 3"),
        (lambda c: c["operations"][1].pop("inputs"), "a list of 'inputs'"),
        (lambda c: c["operations"][1].update(kind="what"), "kind is one of input, convolution"),
        (lambda c: c["operations"][1].update(kind=[]), "kind is one of input, convolution"),
        (lambda c: c["operations"][1].update(taps=[3]), r"its taps should be tuple\[int, int\]"),
        (lambda c: c["operations"][1].update(taps=[3, True]), "its taps should be"),
        (lambda c: c["operations"][1].update(filters="4"), "its filters should be int, found '4'"),
        (lambda c: c["operations"][1].update(bias=1), "its bias should be bool, found 1"),
        (lambda c: c["operations"][1].update(more=1), "convolution 'conv1': .*'more'"),
        (lambda c: c["operations"][1].pop("filters"), "convolution 'conv1': .*'filters'"),
        (lambda c: c["operations"][1].update(filters=0), "filters must be positive"),
    ],
)
def test_damaged_json_is_told_in_one_line(change: Any, text: str) -> None:
    content = json.loads(json.dumps(make_network("lenet5").as_json()))
    change(content)
    with pytest.raises((FormatError, ShapeError), match=text) as caught:
        OperationGraph.from_json(content)
    assert "\n" not in str(caught.value)


def test_every_kind_goes_through_json() -> None:
    examples: list[Operation] = [
        Input("a", (1, 2, 3)),
        Convolution("a", 4, (3, 1), (2, 1), (1, 0), (1, 2), 2, False),
        FullyConnected("a", 10, bias=False),
        MaxPool("a", (3, 3), (2, 2), (1, 1), ceil_mode=True),
        AveragePool("a", (3, 3), (2, 2), (1, 1), count_include_pad=False),
        Relu("a"),
        BatchNorm("a", 1e-3, 0.2),
        Add("a"),
        Concatenate("a"),
    ]
    assert {type(each) for each in examples} == set(KINDS.values())
    for each in examples:
        assert operation_from_json(json.loads(json.dumps(each.as_json()))) == each


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_go_through_json(name: str) -> None:
    graph = make_network(name)
    back = OperationGraph.from_json(json.loads(json.dumps(graph.as_json())))
    assert back == graph
    assert list(back.parameters) == list(graph.parameters)
