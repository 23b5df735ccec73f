"""ONNX chains, held against ONNX's own reference evaluator."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.formats_samples import outputs
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.errors import (
    FormatError,
    InputError,
    MissingDependencyError,
    ShapeError,
    UsageError,
)
from sparsednn.formats import read_network, summarize_network

onnx = pytest.importorskip("onnx", reason="needs onnx: pip install onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402  (onnx may be missing)
from onnx.reference import ReferenceEvaluator  # noqa: E402

RNG = np.random.default_rng(11)
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


def array(*shape: int, density: float = 0.6) -> np.ndarray:
    kept = RNG.random(shape) < density
    return np.where(kept, RNG.standard_normal(shape), 0).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    name = attributes.pop("name", f"{kind}_{output}".lower())
    return helper.make_node(kind, inputs.split(), [output], name=name, **attributes)


def model(
    nodes: list[Any],
    weights: dict[str, Any],
    *,
    shape: Any = ("N", 6),
    opset: int = 18,
    sparse: Any = (),
) -> Any:
    """A model whose input is ``x`` and whose output is ``y``."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
        sparse_initializer=list(sparse),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 9
    return made


def saved(path: Path, *arguments: Any, **options: Any) -> Path:
    onnx.save(model(*arguments, **options), path)
    return path


def agrees(path: Path, *shape: int) -> None:
    """Our outputs are those of the reference evaluator."""
    x = RNG.standard_normal((9, *shape)).astype(np.float32)
    expected = ReferenceEvaluator(str(path)).run(None, {"x": x})[0].reshape(9, -1)
    np.testing.assert_allclose(outputs(read_network(path), x), expected, **CLOSE)


# ---- what is read


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_chains_of_all_kinds(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    widths = data.draw(st.lists(st.integers(1, 8), min_size=2, max_size=5))
    nodes, weights, tensor, opset = [], {}, "x", data.draw(st.sampled_from([7, 11, 13, 18]))

    def then(kind: str, *others: str, **attributes: Any) -> None:
        nonlocal tensor
        nodes.append(node(kind, " ".join((tensor, *others)), f"t{len(nodes)}", **attributes))
        tensor = f"t{len(nodes) - 1}"

    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        w, b = f"w{k}", f"b{k}"
        weights[b] = array(*data.draw(st.sampled_from([(n_out,), (1, n_out), (1,)])))
        if data.draw(st.booleans()):
            turned = data.draw(st.booleans())
            weights[w] = array(n_out, n_in) if turned else array(n_in, n_out)
            more = [b] if data.draw(st.booleans()) else []
            alpha, beta = data.draw(st.sampled_from([(1.0, 1.0), (0.5, -2.0)]))
            then("Gemm", w, *more, transB=int(turned), alpha=alpha, beta=beta)
        else:
            weights[w] = array(n_in, n_out)
            then("MatMul", w)
            if data.draw(st.booleans()):
                then(data.draw(st.sampled_from(["Add", "Sub"])), b)
        if data.draw(st.booleans()):
            then("Identity")
        kind = data.draw(st.sampled_from(["", "Relu", "Sigmoid", "Tanh", "Clip"]))
        if kind == "Clip" and opset < 11:
            then("Clip", min=0.0, max=0.75)
        elif kind == "Clip":
            weights |= {"low": np.float32(0), "high": np.float32(0.75)}
            then("Clip", "low", *(["high"] if data.draw(st.booleans()) else []))
        elif kind:
            then(kind)
    nodes[-1].output[0] = "y"
    path = tmp_path_factory.getbasetemp() / "chain.onnx"
    onnx.save(model(nodes, weights, shape=("N", widths[0]), opset=opset), path)
    agrees(path, widths[0])
    assert len(read_network(path)) == len(widths) - 1


def test_what_is_stored(tmp_path: Path) -> None:
    w, b = array(4, 6), array(4)
    path = saved(
        tmp_path / "net.onnx",
        [node("Gemm", "x w b", "a", transB=1), node("Clip", "a low high", "y")],
        {"w": w, "b": b, "low": np.float32(0), "high": np.float32(6)},
    )
    network = read_network(path)
    assert network.name == "net"
    np.testing.assert_array_equal(network[0].weight.toarray(), w)
    assert network.edges == np.count_nonzero(w)
    np.testing.assert_array_equal(network[0].bias, b)
    assert str(network[0].activation) == "clamped_relu:6.0"
    assert summarize_network(path) == network.summary


@pytest.mark.parametrize("opset", [9, 13])
def test_softmax_at_the_end(tmp_path: Path, opset: int) -> None:
    path = saved(
        tmp_path / "net.onnx",
        [node("MatMul", "x w", "a"), node("Softmax", "a", "y")],
        {"w": array(6, 5)},
        opset=opset,
    )
    agrees(path, 6)


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_dtypes(tmp_path: Path, dtype: int) -> None:
    made = model([node("Gemm", "x w", "y")], {})
    values = [0.0, 1.5, -2.0, 0.25, 0.0, 4.0]
    made.graph.initializer.append(helper.make_tensor("w", dtype, (6, 1), values))
    onnx.save(made, tmp_path / "net.onnx")
    found = read_network(tmp_path / "net.onnx")
    assert found[0].weight.toarray().tolist() == [values]
    assert found.edges == 4


@pytest.mark.parametrize("where", ["initializer", "constant"])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("turned", [0, 1])
def test_sparse_weights(tmp_path: Path, where: str, flat: bool, turned: int) -> None:
    w = array(6, 6, density=0.3)
    places = np.argwhere(w)
    indices = np.flatnonzero(w) if flat else places
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(w[w != 0], "w"),
        numpy_helper.from_array(indices.astype(np.int64), "w_indices"),
        [6, 6],
    )
    nodes = [node("Gemm", "x w", "y", transB=turned)]
    inside = where == "initializer"
    if not inside:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    path = saved(tmp_path / "net.onnx", nodes, {}, sparse=[sparse] if inside else [])
    network = read_network(path)
    np.testing.assert_array_equal(network[0].weight.toarray(), w if turned else w.T)


def test_constants_of_every_kind(tmp_path: Path) -> None:
    w = array(5, 6)
    path = saved(
        tmp_path / "net.onnx",
        [
            helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(array(5))),
            helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0, 5.0]),
            helper.make_node("Constant", [], ["d"], value_float=0.5),
            node("Identity", "w", "w1"),
            node("Transpose", "w1", "w2", perm=[1, 0]),
            node("MatMul", "x w2", "t0"),
            node("Add", "b t0", "t1"),
            node("Add", "t1 c", "t2"),
            node("Sub", "t2 d", "y"),
        ],
        {"w": w},
    )
    agrees(path, 6)
    np.testing.assert_array_equal(read_network(path)[0].weight.toarray(), w)


def test_external_data(tmp_path: Path) -> None:
    made = model([node("MatMul", "x w", "y")], {"w": array(6, 40)})
    path = tmp_path / "net.onnx"
    onnx.save(made, path, save_as_external_data=True, location="weights.dat", size_threshold=0)
    agrees(path, 6)
    data = tmp_path / "weights.dat"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(FormatError, match=r"net\.onnx: "):
        read_network(path)
    data.unlink()
    with pytest.raises(FormatError, match=r"net\.onnx: its external data cannot be read: .*w"):
        read_network(path)


# ---- arrangements


@pytest.mark.parametrize(
    "target", [[0, -1], [-1, 24], [0, 24], [0, 4, 6], [-1, 4, 6], [0, 0, 6], [0, -1, 2, 3]]
)
def test_reshapes_that_keep_samples_whole(tmp_path: Path, target: list[int]) -> None:
    path = saved(
        tmp_path / "net.onnx",
        [
            node("Reshape", "x s", "t0"),
            node("Flatten", "t0", "t1"),
            node("Dropout", "t1", "t2"),
            node("MatMul", "t2 w", "t3"),
            node("Reshape", "t3 z", "t4"),
            node("Relu", "t4", "y"),
        ],
        {"s": np.array(target), "w": array(24, 6), "z": np.array([-1, 2, 3])},
        shape=("N", 4, 6),
    )
    agrees(path, 4, 6)


@pytest.mark.parametrize(
    "target", [[-1, 12], [48, -1], [1, -1], [-1], [24], [0, 5, -1], [0, 23], [2, 24]]
)
def test_reshapes_that_do_not(tmp_path: Path, target: list[int]) -> None:
    path = saved(
        tmp_path / "net.onnx",
        [node("Reshape", "x s", "a"), node("MatMul", "a w", "y")],
        {"s": np.array(target), "w": array(24, 6)},
        shape=("N", 4, 6),
    )
    with pytest.raises(FormatError, match=r"Reshape 'reshape_a' to \[.*\] does not keep samples"):
        read_network(path)


def test_a_reshape_by_the_size_of_the_batch(tmp_path: Path) -> None:
    """What exporters make of ``x.view(x.size(0), -1)``."""
    shape = [
        node("Shape", "x", "s0"),
        node("Gather", "s0 zero", "s1"),
        node("Unsqueeze", "s1 zero1", "s2"),
        node("Concat", "s2 minus", "s3", axis=0),
        node("Reshape", "x s3", "a"),
    ]
    weights = {"zero": np.array(0), "zero1": np.array([0]), "minus": np.array([-1])}
    path = saved(
        tmp_path / "net.onnx",
        [*shape, node("MatMul", "a w", "y")],
        weights | {"w": array(24, 5)},
        shape=("N", 4, 6),
    )
    agrees(path, 4, 6)
    # The layer behind it is what tells that the samples are whole.
    saved(
        path, [*shape, node("MatMul", "a w", "y")], weights | {"w": array(6, 5)}, shape=("N", 4, 6)
    )
    with pytest.raises(ShapeError, match="takes 6 inputs by 'w', but 24 come"):
        read_network(path)
    nodes = [node("MatMul", "x w", "t"), node("Shape", "t", "s"), node("Reshape", "t s", "y")]
    saved(path, nodes, {"w": array(6, 5)})
    with pytest.raises(FormatError, match="'reshape_y' arranges the output in an unknown way"):
        read_network(path)


# ---- convolutions


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"pads": [1, 2, 0, 1]},
        {"strides": [2, 1], "pads": [1, 1, 1, 1]},
        {"dilations": [1, 2]},
        {"auto_pad": "SAME_UPPER"},
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [3, 2]},
        {"auto_pad": "VALID"},
    ],
)
@pytest.mark.parametrize("group", [1, 2])
def test_convolutions(tmp_path: Path, attributes: dict[str, Any], group: int) -> None:
    first = [node("Conv", "x k b", "t0", group=group, **attributes), node("Relu", "t0", "t1")]
    weights = {"k": array(4, 4 // group, 2, 3), "b": array(4), "c": array(4, 1, 1)}
    second = [node("Conv", "t1 q", "t2"), node("Add", "t2 c", "t3"), node("Tanh", "t3", "y")]
    path = saved(
        tmp_path / "net.onnx",
        first + second,
        weights | {"q": array(4, 4, 2, 1)},
        shape=("N", 4, 7, 8),
    )
    agrees(path, 4, 7, 8)


def test_a_convolutional_network(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "net.onnx",
        [
            node("Reshape", "x image", "t0"),
            node("Conv", "t0 k", "t1", pads=[1, 1, 1, 1]),
            node("Clip", "t1 low high", "t2"),
            node("Flatten", "t2", "t3", axis=-3),
            node("Gemm", "t3 w b", "t4", transB=1),
            node("Softmax", "t4", "y"),
        ],
        {
            "image": np.array([-1, 1, 5, 6]), "k": array(3, 1, 3, 3), "w": array(10, 90),
            "b": array(10), "low": np.float32(0), "high": np.float32(1),
        },
        shape=("N", 30),
    )  # fmt: skip
    agrees(path, 30)
    assert [layer.shape for layer in read_network(path)] == [(90, 30), (10, 90)]


def test_a_model_that_torch_would_export(tmp_path: Path) -> None:
    """The same names and operators; PyTorch's exporter itself needs another package."""
    weights = {"fc.0.weight": array(5, 6), "fc.0.bias": array(5), "fc.2.weight": array(3, 5)}
    path = saved(
        tmp_path / "net.onnx",
        [
            node("Gemm", "x fc.0.weight fc.0.bias", "h", transB=1, alpha=1.0, beta=1.0),
            node("Relu", "h", "r"),
            node("Gemm", "r fc.2.weight", "y", transB=1),
        ],
        weights,
        shape=(1, 6),
    )
    network = read_network(path)
    for layer, name in zip(network, ("fc.0.weight", "fc.2.weight"), strict=True):
        np.testing.assert_array_equal(layer.weight.toarray(), weights[name])


# ---- what is not read

W = {"w": array(6, 6), "v": array(6, 6), "b": array(6), "two": np.float32(2)}
GEMM = node("Gemm", "x w", "t", name="fc1")


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            [GEMM, node("Gelu", "t", "y", name="act")],
            "Gelu 'act' is not supported: read are Gemm, ",
        ),
        ([GEMM, node("MaxPool", "t", "y", name="")], "MaxPool 'y' is not supported"),
        ([GEMM, node("Relu", "t", "y", domain="my.own")], "my.own.Relu '.*' is not supported"),
        (
            [GEMM, node("Gemm", "t v", "a", name="fc2"), node("Add", "t a", "y", name="skip")],
            "tensor 't' branches, to Gemm 'fc2', Add 'skip': only chains",
        ),
        ([GEMM, node("Add", "t t", "y")], "tensor 't' branches"),
        ([node("Gemm", "x w", "y"), node("Relu", "y", "z")], "'y' branches, to the output and"),
        ([GEMM, node("Relu", "t", "z")], "tensor 'z' does not lead to the output 'y'"),
        ([node("Gemm", "w x", "y")], "has the data on the right or transposed"),
        ([node("Gemm", "x w", "y", transA=1)], "has the data on the right or transposed"),
        ([node("MatMul", "w x", "y")], "has the data on the right"),
        ([node("Gemm", "x q", "y")], "takes 'q', which is no constant of the file"),
        ([node("Gemm", "x b", "y")], r"takes 'b' of shape \[6\]"),
        ([node("Relu", "x", "y")], "does not follow directly upon a Gemm, MatMul or Conv"),
        ([node("Add", "x b", "y")], "does not follow directly upon"),
        ([GEMM, node("Relu", "t", "a"), node("Tanh", "a", "y")], "Tanh '.*' does not follow"),
        ([GEMM, node("Clip", "t two", "y")], "clips to 2.0, None: only from 0 to a positive bound"),
        ([GEMM, node("Clip", "t", "y")], "clips to None, None"),
        ([GEMM, node("Sub", "b t", "y")], "subtracts the data from a constant"),
        ([GEMM, node("Softmax", "t", "y", axis=0)], "of axis 0"),
        ([GEMM, node("Flatten", "t", "y", axis=0)], "has axis 0: only 1 keeps the batch"),
        ([node("Identity", "x", "y")], "no Gemm, MatMul or Conv between its input"),
        ([node("Conv", "x w", "y")], r"kernel of shape \[6, 6\]: only 2-D"),
        ([node("Gemm", "x", "y")], "has one input, two are needed"),
        ([node("Gemm", "x w", "y", transB=1.0)], "attribute 'transB' is of a wrong type"),
        ([GEMM, node("Clip", "t b", "y")], "has 6 numbers as its min"),
        ([GEMM, node("Dropout", "t two two", "y")], "is in training mode"),
        ([GEMM, node("Reshape", "t t", "y")], "branches"),
    ],
)  # fmt: skip
def test_graphs_that_are_no_chains(tmp_path: Path, nodes: list[Any], message: str) -> None:
    path = saved(tmp_path / "net.onnx", nodes, W)
    with pytest.raises(FormatError, match=rf"net\.onnx: .*{message}") as caught:
        read_network(path)
    assert "\n" not in str(caught.value)


def test_shapes_and_numbers_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"

    def fails(error: type[Exception], message: str, nodes: list[Any], **options: Any) -> None:
        weights = W | {
            "narrow": array(5, 3),
            "k": array(2, 3, 3, 3),
            "nan": np.full((6, 6), np.nan, np.float32),
            "ints": np.ones((6, 6), np.int64),
        }
        saved(path, nodes, weights, **options)
        with pytest.raises(error, match=rf"net\.onnx: .*{message}"):
            read_network(path)

    fails(ShapeError, r"Gemm 'g': takes 5 inputs by 'narrow', but 6 come \(layer 1 \(Gemm 'fc1'",
          [GEMM, node("Gemm", "t narrow", "y", name="g")])  # fmt: skip
    fails(ShapeError, r"adds a constant of shape \[5, 3\] to samples of shape \[6\]",
          [GEMM, node("Add", "t narrow", "y")])  # fmt: skip
    fails(InputError, r"layer 1 \(Gemm 'gemm_y', weights 'nan'\): weight \(0, 0\) is nan",
          [node("Gemm", "x nan", "y")])  # fmt: skip
    fails(FormatError, "takes 'ints' of int64, expected floats", [node("Gemm", "x ints", "y")])
    fails(FormatError, r"takes samples of shape \[2, 3\]: a Flatten is missing",
          [node("MatMul", "x w", "y")], shape=("N", 2, 3))  # fmt: skip
    conv = [node("Conv", "x k", "y")]
    fails(FormatError, r"shape \[3, '\?', 8\]: .* fixed image size", conv, shape=("N", 3, "H", 8))
    fails(FormatError, "samples of shape unknown", conv, shape=None)
    fails(FormatError, "for 6 channels, but 1 groups", conv, shape=("N", 6, 8, 8))
    fails(ShapeError, "Conv 'conv_y': kernel 3×3 is larger", conv, shape=("N", 3, 2, 2))
    fails(FormatError, r"input 'x' has shape \[6\], expected the batch", [GEMM], shape=(6,))
    fails(InputError, "softmax in layer 1 of 2",
          [GEMM, node("Softmax", "t", "s"), node("Gemm", "s w", "y")])  # fmt: skip


def test_first_layers(tmp_path: Path) -> None:
    nodes = [
        node("Gemm", "x w b", "t0"),
        node("Relu", "t0", "t1"),
        node("MatMul", "t1 v", "t2"),
        node("Add", "t2 b", "t3"),
        node("Gelu", "t3", "y"),
    ]
    path = saved(tmp_path / "net.onnx", nodes, W)
    network = read_network(path, layers=1)
    assert [str(layer.activation) for layer in network] == ["relu"]
    for layers in (2, None):  # what follows the second layer would be its activation
        with pytest.raises(FormatError, match="Gelu"):
            read_network(path, layers=layers)
    saved(path, [*nodes[:3], node("Add", "t2 b", "y")], W)
    assert read_network(path, layers=2).hash == read_network(path).hash
    with pytest.raises(FormatError, match="has 2 layers, 3 were asked for"):
        read_network(path, layers=3)
    for wrong, error in ({"layers": 0}, UsageError), ({"bias": 1.0}, UsageError):
        with pytest.raises(error):
            read_network(path, **wrong)


def test_several_inputs(tmp_path: Path) -> None:
    made = model([node("Gemm", "x w", "y")], W)
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (6, 6)))
    onnx.save(made, tmp_path / "net.onnx")
    assert len(read_network(tmp_path / "net.onnx")) == 1  # older files list their weights, too
    made.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, (6, 6)))
    onnx.save(made, tmp_path / "net.onnx")
    with pytest.raises(FormatError, match="only chains are read, with one of its inputs: 'x', 'z'"):
        read_network(tmp_path / "net.onnx")


def test_damaged_files(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.onnx", [GEMM, node("Relu", "t", "y")], W)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 23), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"net\.onnx: not an ONNX model, or truncated") as bad:
            read_network(path)
        assert "\n" not in str(bad.value)
    for content in (bytes(range(256)), b"hello\n"):
        path.write_bytes(content)
        with pytest.raises(FormatError, match=r"net\.onnx: not an ONNX model"):
            read_network(path)
    path.unlink()
    with pytest.raises(FormatError, match=r"net\.onnx: no such file"):
        read_network(path)


def test_tensors_whose_data_do_not_fit(tmp_path: Path) -> None:
    made = model([GEMM, node("Relu", "t", "y")], W)
    made.graph.initializer[0].raw_data = b"123"
    onnx.save(made, tmp_path / "net.onnx")
    with pytest.raises(FormatError, match=r"net\.onnx: tensor 'w' cannot be read"):
        read_network(tmp_path / "net.onnx")


def test_constants_that_go_in_circles(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "net.onnx",
        [node("Identity", "q", "r"), node("Identity", "r", "q"), node("Gemm", "x q", "y")],
        {},
    )
    with pytest.raises(FormatError, match="takes 'q', which is no constant"):
        read_network(path)


def test_without_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "net.onnx", [node("Gemm", "x w", "y")], W)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        MissingDependencyError, match=r"net\.onnx: .* pip install 'sparsednn\[onnx\]'$"
    ):
        read_network(path)
