"""ONNX files as dense networks, held against ONNX's own reference evaluator."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_graphs import Exporter, write_onnx
from sparsednn.comm import Alone
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, make_placement
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.onnx_file import read_onnx
from sparsednn.dense.operations import (
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
)
from sparsednn.dense.runs.source import network_file, network_for, numbers_file
from sparsednn.dense.state_dict import StateFile, read_state_dict
from sparsednn.errors import FormatError, InputError, MissingDependencyError, ShapeError

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'sparsednn[onnx]'")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402  (onnx may be missing)
from onnx.reference import ReferenceEvaluator  # noqa: E402

RNG = np.random.default_rng(5)


def array(*shape: int) -> Any:
    return RNG.standard_normal(shape).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    name = attributes.pop("name", f"{kind.lower()}_{output}")
    return helper.make_node(kind, inputs.split(), output.split(), name=name, **attributes)


def saved(
    path: Path, nodes: list[Any], weights: dict[str, Any], *, shape: Any = ("N", 2, 6, 7),
    opset: int = 18, inputs: str = "x", outputs: str = "y",
) -> Path:  # fmt: skip
    """A model whose input is ``x`` and whose output is ``y``, in a file."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs.split()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


def logits(graph: OperationGraph, arrays: dict[str, Any], x: Any) -> Any:
    """What a network gives in inference, by the reference backend in float64."""
    placements = {name: make_placement(Grid(), "data") for name in products(graph)}
    model = DenseModel(Alone(), graph, placements, ReferenceBackend(), dtype=np.float64)
    model.parameters.fill(lambda name, block: arrays[name][np.ix_(*block)].astype(np.float64))
    found = model.batch(len(x)).forward(x.astype(np.float64), training=False).copy()
    model.free()
    return found


def agrees(path: Path, softmax: bool = False) -> OperationGraph:
    """Our outputs are those of the reference evaluator."""
    graph, arrays = read_onnx(path)
    dtype = next((each.dtype for each in arrays.values()), np.dtype(np.float32))
    images = RNG.standard_normal((3, *graph.image)).astype(dtype)
    (expected,) = ReferenceEvaluator(str(path)).run(None, {graph.input: images})
    found = logits(graph, arrays, images)
    if softmax:
        found = np.exp(found) / np.exp(found).sum(axis=1, keepdims=True)
    tolerance = 2e-5 * max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected.reshape(3, -1), rtol=0, atol=tolerance)
    return graph


# ---- networks of ours, there and back


def random_arrays(graph: OperationGraph, seed: int, dtype: Any) -> dict[str, Any]:
    source = np.random.default_rng(seed)
    arrays = {}
    for name, each in graph.parameters.items():
        values = source.uniform(0.1, 1, each.shape)
        if not name.endswith("running_var"):
            values *= source.choice([-1, 1], each.shape)
        arrays[name] = values.astype(dtype)
    return arrays


def random_network(seed: int) -> OperationGraph:
    """Branches of all kinds of operations that split and meet, and end in logits."""
    dice = random.Random(seed)
    graph = OperationGraph("random")
    sizes = dice.randint(1, 4), dice.randint(4, 9), dice.randint(4, 9)
    graph.add(Input("image", sizes))
    ends = ["image"]
    for number in range(dice.randint(2, 9)):
        name, source = f"node{number}", dice.choice([*ends, *graph.nodes])
        shape = graph.shape(source)
        level = [each for each in graph.nodes if graph.shape(each)[1:] == shape[1:]]
        same = [each for each in level if graph.shape(each) == shape]
        groups = dice.choice([n for n in (1, 2, 3) if shape[0] % n == 0])
        way = dice.choice([True, False])
        choices: list[tuple[Operation, list[str]]] = [
            (Convolution(name, groups * dice.randint(1, 3), (3, 1), (dice.randint(1, 2), 1),
                         (1, dice.randint(0, 1)), groups=groups, bias=way), [source]),
            (Convolution(name, 2, (2, 3), dilation=(1, 2), padding=(1, 2), bias=way), [source]),
            (Relu(name), [source]),
            (BatchNorm(name, dice.choice([1e-5, 1e-3]), dice.choice([0.1, 0.01])), [source]),
            (MaxPool(name, (3, 2), (2, 1), (1, 1), way), [source]),
            (AveragePool(name, (3, 3), padding=(1, 1), count_include_pad=way), [source]),
            (AveragePool(name, shape[1:], shape[1:]), [source]),
            (FullyConnected(name, dice.randint(1, 5), way), [source]),
            (Add(name), [source, *dice.choices(same, k=dice.randint(1, 2))]),
            (Concatenate(name), [source, *dice.choices(level, k=2)]),
        ]  # fmt: skip
        graph.add(*_flattened(dice.choice(choices)))
        ends = [each for each in graph.nodes if not graph.successors(each)]
    tops = [graph.add(FullyConnected(f"top{k}", 4), each) for k, each in enumerate(ends)]
    if len(tops) > 1:
        graph.add(Add("sum"), *tops)
    return graph.finish()


def _flattened(chosen: tuple[Operation, list[str]]) -> tuple[Any, ...]:
    operation, inputs = chosen
    return operation, *inputs


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), way=st.integers(0, 2**32), double=st.booleans())
def test_networks_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, seed: int, way: int, double: bool
) -> None:
    graph = random_network(seed)
    arrays = random_arrays(graph, seed, np.float64 if double else np.float32)
    path = write_onnx(tmp_path_factory.getbasetemp() / "net.onnx", graph, arrays, way)
    found = read_onnx(path)
    assert found.graph == graph
    assert found.graph.name == "net"
    assert set(found.arrays) == set(arrays)
    for name, each in arrays.items():
        assert found.arrays[name].dtype == each.dtype
        np.testing.assert_array_equal(found.arrays[name], each, err_msg=name)
    if double:  # float32 would need tolerances that depend on the network
        agrees(path)


def test_a_network_by_name(tmp_path: Path) -> None:
    """Names, identity and numbers are those of the network that was written."""
    graph = make_network("resnet20", (3, 8, 8))
    arrays = initial_parameters(graph, seed=2)
    path = write_onnx(tmp_path / "net.onnx", graph, arrays, batch=1)
    assert network_file("net.onnx") == Path("net.onnx")
    assert numbers_file(str(path)) == path
    assert network_for(str(path)) == graph
    assert agrees(path).classes == 10
    found = read_state_dict(path, graph)
    assert list(found) == list(arrays)
    for name, each in arrays.items():
        np.testing.assert_array_equal(found[name], each)
        assert found[name].flags.writeable
    with StateFile(path, graph) as file:
        block = file.array("fc.weight", [np.array([3, 1]), slice(8), slice(None), slice(None)])
    np.testing.assert_array_equal(block, arrays["fc.weight"][[3, 1], :8])
    with pytest.raises(FormatError, match=r"net\.onnx: the file lacks parameter 'conv1\.bias'"):
        StateFile(path, make_network("lenet5"))


# ---- ways to say it


def test_names_are_those_of_weights_or_nodes(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "net.onnx",
        [
            node("Relu", "x", "a", name="conv1"),  # what the next one's weights are called
            node("Conv", "a conv1.weight", "b", name="/conv1/Conv"),
            node("Conv", "b conv1.weight", "c", name="/conv1/Conv"),  # the same weights again
            node("Conv", "c onnx::Conv_3", "d", name="/conv2/Conv"),
            node("Relu", "d", "e", name="a relu"),
            node("Flatten", "e", "f"),
            node("Identity", "fc.weight", "w1"),
            node("Transpose", "w1", "w2", perm=[1, 0]),
            node("MatMul", "f w2", "g", name=""),
            node("Relu", "g", "y", name=""),
        ],
        {
            "conv1.weight": array(2, 2, 1, 1), "onnx::Conv_3": array(3, 2, 3, 3),
            "fc.weight": array(4, 3 * 4 * 5),
        },
    )  # fmt: skip
    graph = agrees(path)
    assert [each.name for each in graph] == [
        "x", "conv1_2", "conv1", "/conv1/Conv", "/conv2/Conv", "a_relu", "fc", "y",
    ]  # fmt: skip
    assert graph.parameter("fc.weight").torch_shape == (4, 60)


KERNEL = {"k": array(4, 2, 3, 3), "b": array(4)}


@pytest.mark.parametrize(
    ("kind", "attributes", "padding", "rounded"),
    [
        ("Conv", {"auto_pad": "VALID"}, (0, 0), False),
        ("Conv", {"auto_pad": "SAME_UPPER"}, (1, 1), False),
        ("Conv", {"auto_pad": "SAME_LOWER", "dilations": [2, 1]}, (2, 1), False),
        ("Conv", {"pads": [1, 1, 0, 1], "strides": [2, 2]}, (1, 1), False),  # no window meets it
        ("Conv", {"pads": [0, 1, 1, 1], "strides": [2, 2], "kernel_shape": [3, 3]}, None, False),
        ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 1]}, None, False),
        ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 1]}, (1, 1), False),
        ("MaxPool", {"pads": [0, 0, 1, 0], "strides": [2, 2]}, (0, 0), True),
        ("MaxPool", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (0, 1), True),
        ("MaxPool", {"pads": [0, 0, 2, 0]}, None, False),
        ("MaxPool", {"ceil_mode": 1, "strides": [2, 2]}, (0, 0), True),
        ("AveragePool", {"pads": [1, 1, 1, 1], "count_include_pad": 1}, (1, 1), False),
        ("AveragePool", {"pads": [1, 1, 1, 1]}, (1, 1), False),
        ("AveragePool", {"ceil_mode": 1, "strides": [3, 2]}, (0, 0), False),
        ("AveragePool", {"ceil_mode": 1, "strides": [2, 2]}, None, False),
        ("AveragePool", {"dilations": [2, 1]}, None, False),
    ],
)  # fmt: skip
def test_windows(
    tmp_path: Path, kind: str, attributes: dict[str, Any], padding: Any, rounded: bool
) -> None:
    inputs = "x k b" if kind == "Conv" else "x"
    if kind != "Conv":
        attributes = {"kernel_shape": [3, 3]} | attributes
    path = saved(
        tmp_path / "net.onnx",
        [node(kind, inputs, "a", name="w", **attributes), node("GlobalAveragePool", "a", "y")],
        KERNEL,
        opset=19,
    )
    if padding is None:
        with pytest.raises(ShapeError, match=rf"net\.onnx: {kind} 'w': its .*(pads|full|none)"):
            read_onnx(path)
        return
    operation = agrees(path).operation("w")
    assert isinstance(operation, Convolution | MaxPool | AveragePool)
    assert operation.padding == padding
    assert getattr(operation, "ceil_mode", False) == rounded


def test_biases_softmax_and_flat_values(tmp_path: Path) -> None:
    """Adds of constants become biases; flat values go through everything that does not care."""
    path = saved(
        tmp_path / "net.onnx",
        [
            node("Conv", "x k b", "c0"),
            node("Add", "more c0", "c1"),
            node("ReduceMean", "c1", "m", axes=[2, 3], keepdims=0),
            node("BatchNormalization", "m s s s v", "n", epsilon=1e-3),
            node("Relu", "n", "r"),
            node("Gemm", "r w row", "g", alpha=0.5, beta=-2.0, name="first"),
            node("Add", "g row", "h"),
            node("MatMul", "r w", "i"),
            node("Add", "i one", "j"),
            node("Sum", "h j h", "k0"),
            node("Sum", "k0", "k1"),
            node("Dropout", "k1", "l mask"),
            node("Concat", "l i2", "y0", axis=-1),
            node("MatMul", "r w", "i2"),
            node("Softmax", "y0", "y1"),
            node("Identity", "y1", "y"),
        ],
        KERNEL | {
            "more": array(1, 4, 1, 1), "s": array(4), "v": abs(array(4)), "w": array(4, 5),
            "row": array(1, 5), "one": np.float32(0.5),
        },
        opset=17,
    )  # fmt: skip
    # Nodes should stand behind what they read, but need not.
    with pytest.raises(Exception, match="i2"):
        ReferenceEvaluator(str(path)).run(None, {"x": np.zeros((1, 2, 6, 7), np.float32)})
    model = onnx.load(path)
    later = model.graph.node.pop(13)
    model.graph.node.insert(12, later)
    assert read_onnx(path).graph == agrees(_resaved(model, path), softmax=True)
    graph, arrays = read_onnx(path)
    assert graph.operation("conv_c0") == Convolution("conv_c0", 4, (3, 3))
    assert set(graph.parameters) == set(arrays)
    assert graph.operation("batchnormalization_n").as_json()["epsilon"] == 1e-3


def _resaved(model: Any, path: Path) -> Path:
    onnx.save(model, path)
    return path


def test_flat_images(tmp_path: Path) -> None:
    """What takes vectors is a network of as many channels."""
    path = saved(
        tmp_path / "flat.onnx",
        [
            node("Gemm", "x w b", "a"),
            node("Relu", "a", "c"),
            node("Reshape", "c image", "d"),
            node("Conv", "d k", "e"),
            node("Squeeze", "e axes", "f"),
            node("LogSoftmax", "f", "y"),
        ],
        {
            "w": array(6, 3), "b": array(3), "image": np.array([-1, 3, 1, 1]),
            "k": array(4, 3, 1, 1), "axes": np.array([2, -1]),
        },
        shape=(5, 6),
    )  # fmt: skip
    graph, arrays = read_onnx(path)
    assert graph.image == (6, 1, 1)
    assert arrays["gemm_a.weight"].shape == (3, 6, 1, 1)
    x = array(5, 6)
    (expected,) = ReferenceEvaluator(str(path)).run(None, {"x": x})
    found = logits(graph, arrays, x.reshape(5, 6, 1, 1))
    found -= np.log(np.exp(found).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_numbers_of_other_types_and_sparse_ones(tmp_path: Path, dtype: int) -> None:
    values = [0.0, 1.5, -2.0, 0.25, 0.0, 4.0]
    path = saved(tmp_path / "net.onnx", [node("Gemm", "x w", "a"), node("MatMul", "a v", "y")], {},
                 shape=(1, 6))  # fmt: skip
    model = onnx.load(path)
    model.graph.initializer.append(helper.make_tensor("w", dtype, (6, 1), values))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([3.0], np.float32), "v"),
        numpy_helper.from_array(np.array([1]), "v_indices"), [1, 2],
    )  # fmt: skip
    model.graph.sparse_initializer.append(sparse)
    _, arrays = read_onnx(_resaved(model, path))
    assert arrays["gemm_a.weight"].ravel().tolist() == values
    assert arrays["gemm_a.weight"].dtype == (np.float64 if dtype == 11 else np.float32)
    assert arrays["matmul_y.weight"].ravel().tolist() == [0.0, 3.0]


# ---- what is not read

W = KERNEL | {
    "w": array(84, 5), "row": array(5), "q": array(3, 2, 3), "one": np.array([0, 1]),
    "s": array(2), "yes": np.array(True), "flat": np.array([0, -1]), "image": array(2, 6, 7),
}  # fmt: skip
FLAT = node("Flatten", "x", "f")
GEMM = node("Gemm", "f w", "g", name="fc")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("LRN", "x", "y", size=3)], "LRN 'lrn_y' is not supported: read are Constant, Conv"),
        ([node("Relu", "x", "y", domain="own")], r"own\.Relu '.*' is not supported"),
        ([FLAT, node("Gemm", "f w", "y", transA=1)], "has its data transposed"),
        ([node("Gemm", "x w", "y")], "takes images of 2×6×7: a Flatten in front of it is missing"),
        ([FLAT, node("Gemm", "w f", "y")], "takes 'f', which is no constant of the file"),
        ([node("Conv", "k x", "y")], "takes 'k' as data, which is a constant"),
        ([node("Conv", "x q", "y")], r"its kernel 'q' has shape \[3, 2, 3\]"),
        ([node("Conv", "x one", "y")], "takes 'one' of int64, expected floats"),
        ([node("Conv", "x k", "y", group=2)], r"\[4, 2, 3, 3\] in 2 groups, .* input of 2×6×7"),
        ([node("Conv", "x k s", "y")], r"adds 's' of shape \[2, 1, 1\] to 4 filters"),
        ([node("Conv", "x k", "y", strides=[0, 1])], r"its strides are \[0, 1\]"),
        ([node("Conv", "x k", "y", pads=[1, 1])], r"auto_pad is NOTSET and its pads are \[1, 1\]"),
        ([node("Conv", "x k", "y", kernel_shape=[3, 2])], r"its kernel_shape is \[3, 2\]"),
        ([node("Conv", "x k", "y", dilations=[4, 4])], "do not fit an input of 2×6×7"),
        ([node("Conv", "x k", "y", pads=[-1, 0, -1, 0])], "padding must be not negative"),
        ([node("Conv", "x k", "y", group=2.0)], "attribute 'group' is of a wrong type"),
        ([node("MaxPool", "x", "y")], "has no kernel_shape"),
        ([node("MaxPool", "x", "y i", kernel_shape=[2, 2]), node("Relu", "i", "z")],
         "second output 'i' in use"),
        ([FLAT, node("MaxPool", "f", "y", kernel_shape=[2, 2])], "what comes is flat"),
        ([node("ReduceMean", "x one", "y")], r"is over axes \[0, 1\]: only height and width"),
        ([node("Add", "x image", "y")], "adds the constant 'image' to what is no product"),
        ([node("Add", "x s", "y")], "adds the constant 's'"),
        ([FLAT, node("Add", "f x", "y")], "takes images and flat values at once"),
        ([node("Concat", "x x", "y", axis=2)], "is along axis 2: only channels"),
        ([node("Flatten", "x", "y", axis=2)], "has axis 2: only 1 keeps the images apart"),
        ([node("Reshape", "x one", "y")], r"to \[0, 1\]: 2×6×7 can be flattened"),
        ([node("Reshape", "x x", "y")], "has a shape that depends on values"),
        ([node("Squeeze", "x", "y")], "only axes 2 and 3 of channels×1×1"),
        ([FLAT, GEMM, node("Dropout", "g s yes", "y")], "is in training mode"),
        ([node("BatchNormalization", "x s s s s", "y", training_mode=1)], "is in training mode"),
        ([FLAT, node("BatchNormalization", "f s s s s", "y")], "each value by itself"),
        ([node("BatchNormalization", "x row row row row", "y")], r"shape \[5\], expected \[2\]"),
        ([node("Softmax", "x", "y", axis=1)], "is along axis 1 of 2×6×7"),
        ([FLAT, GEMM, node("Softmax", "g", "h"), node("Relu", "h", "y")],
         "Relu 'relu_y' follows Softmax 'softmax_h': a softmax is left out only at the end"),
        ([FLAT, node("Gemm", "f row", "y")], r"its weights 'row' are no matrix: \[5\]"),
        ([FLAT, GEMM, node("Gemm", "g w", "y", name="two")],
         r"Gemm 'two': it takes 84 values by 'w', but 5 come \(5×1×1 from 'fc'\)"),
        ([node("Shape", "x", "n"), node("Reshape", "x n", "y")], "the output in an unknown way"),
        ([node("Shape", "x", "n"), node("Reshape", "x n", "a"), node("Relu", "a", "y")],
         "to a size that is computed: only Gemm and MatMul may"),
        ([node("Relu", "x", "y"), node("Relu", "x", "z")], "gives 'z', which nobody reads"),
        ([node("Relu", "y", "z"), node("Relu", "z", "y")],
         r"in a cycle: (Relu 'relu_\w') → Relu 'relu_\w' → \1$"),
        ([node("Relu", "lost", "y")], "takes 'lost', which nothing in the file gives"),
        ([node("Relu", "x", "y"), node("Relu", "x", "y")], "gives 'y', which is there twice"),
        ([node("Constant", "", "y", value_float=1.0)], "output 'y' does not depend on its input"),
        ([node("Constant", "", "c", value_float=1.0), node("Add", "c z", "z2"),
          node("Relu", "c", "z"), node("Sum", "x z2", "y")], "'z2' as data, which is not computed"),
        ([helper.make_node("Relu", ["x"], [])], "has no output"),
    ],
)  # fmt: skip
def test_files_that_are_not_read(tmp_path: Path, nodes: list[Any], message: str) -> None:
    path = saved(tmp_path / "net.onnx", nodes, W)
    with pytest.raises((FormatError, ShapeError), match=rf"net\.onnx: .*{message}") as caught:
        read_onnx(path)
    assert "\n" not in str(caught.value)


def test_inputs_outputs_and_files_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(message: str, *, error: type[Exception] = FormatError, **options: Any) -> None:
        path = saved(tmp_path / "net.onnx", [node("Relu", "x", "y")], {}, **options)
        with pytest.raises(error, match=rf"net\.onnx: {message}"):
            network_for(str(path))

    fails("it must have one input, found 'x', 'z'", inputs="x z")
    fails("it must have one output, found 'x', 'y'", outputs="x y")
    fails(
        r"input 'x' has shape \['\?', 3, '\?', 8\], expected images of a fixed",
        shape=("N", 3, "H", 8),
    )
    fails("input 'x' has shape unknown, expected", shape=None)
    fails(r"input 'x' has shape \[1, 3, 8\], expected", shape=(1, 3, 8))
    fails("is of ONNX opset 6, read are 7 and later", opset=6)
    fails("network net: its output 'relu_y' is 2×6×7, expected was one logit", error=ShapeError)
    path = tmp_path / "net.onnx"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-40], "not an ONNX model, or truncated"),
        (b"", "not an ONNX model"),
        (b"{}", "not an ONNX model"),
    ):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=rf"net\.onnx: {message}"):
            read_onnx(path)
    with pytest.raises(FormatError, match=r"none\.onnx: no such file"):
        network_for(str(tmp_path / "none.onnx"))
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        MissingDependencyError, match=r"needs onnx: pip install 'sparsednn\[onnx\]'$"
    ):
        read_onnx(path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damaged_files_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes are wrong: an error of ours in one line, or a network with all its arrays."""
    graph = random_network(data.draw(st.integers(0, 5)))
    content = bytearray(
        Exporter(graph, random_arrays(graph, 1, np.float32)).model().SerializeToString()
    )
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        found = read_onnx(path)
    except InputError as error:
        told = str(error)
    else:
        assert set(found.arrays) == set(found.graph.parameters)
        return
    assert "damaged.onnx: " in told
    assert "\n" not in told
