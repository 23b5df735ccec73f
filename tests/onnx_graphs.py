"""Our networks as ONNX models, one node or a few for each operation, as exporters write them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.dense.graph import OperationGraph
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


class Exporter:
    """Writes a network as an ONNX model; `seed` chooses among the ways to say the same."""

    def __init__(self, graph: OperationGraph, arrays: dict[str, Any], seed: int = 0) -> None:
        self._graph, self._arrays = graph, arrays
        self._dice = random.Random(seed)
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._flat: dict[str, bool] = {}
        # Not below 14: there the evaluator takes all batch normalisation to be in training.
        self._opset = self._dice.choice([15, 17, 18])

    def model(self, batch: int | str = "N") -> Any:
        """The model; its input has the name of the input's operation, its output ``logits``."""
        from onnx import TensorProto, helper, numpy_helper

        for operation in self._graph:
            self._add(operation)
        self._node("Identity", [self._graph.output], "logits")
        double = any(each.dtype == np.float64 for each in self._arrays.values())
        kind = TensorProto.DOUBLE if double else TensorProto.FLOAT
        image = [batch, *self._graph.image]
        made = helper.make_graph(
            self._nodes,
            self._graph.name,
            [helper.make_tensor_value_info(self._graph.input, kind, image)],
            [helper.make_tensor_value_info("logits", kind, None)],
            [numpy_helper.from_array(each, name) for name, each in self._constants.items()],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", self._opset)])
        model.ir_version = 9
        return model

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def _constant(self, name: str, array: Any) -> str:
        self._constants[name] = np.asarray(array)
        return name

    def _parameter(self, operation: Operation, key: str) -> str:
        name = f"{operation.name}.{key}"
        return self._constant(name, self._arrays[name])

    def _flattened(self, source: str) -> str:
        if self._flat[source]:
            return source
        name = f"{source}/flat/{len(self._nodes)}"
        match self._dice.randrange(4):
            case 0:
                return self._node("Flatten", [source], name)
            case 1:
                shape = self._constant(f"{name}/shape", [0, -1])
                return self._node("Reshape", [source, shape], name)
            case 2:
                size = int(np.prod(self._graph.shape(source)))
                return self._node(
                    "Reshape", [source, self._constant(f"{name}/shape", [-1, size])], name
                )
        shape = self._node("Shape", [source], f"{name}/size")
        first = self._node(
            "Gather", [shape, self._constant(f"{name}/0", np.array([0]))], f"{name}/images"
        )
        rest = self._constant(f"{name}/rest", np.array([-1]))
        target = self._node("Concat", [first, rest], f"{name}/target", axis=0)
        return self._node("Reshape", [source, target], name)

    def _image(self, source: str) -> str:
        if not self._flat[source]:
            return source
        shape = self._constant(f"{source}/shape", [0, *self._graph.shape(source)])
        return self._node("Reshape", [source, shape], f"{source}/image/{len(self._nodes)}")

    def _add(self, operation: Operation) -> None:
        name = operation.name
        sources = list(self._graph.predecessors(name))
        images = (Convolution, MaxPool, AveragePool)
        flat = [self._flat[each] for each in sources]
        if isinstance(operation, images) or len(set(flat)) > 1:
            sources, flat = [self._image(each) for each in sources], [False]
        self._flat[name] = isinstance(operation, FullyConnected) or bool(flat and flat[0])
        match operation:
            case Input():
                pass
            case Convolution():
                keys = ["weight", "bias"] if operation.bias else ["weight"]
                more = {"kernel_shape": operation.taps} if self._dice.random() < 0.5 else {}
                self._node(
                    "Conv", [*sources, *(self._parameter(operation, key) for key in keys)], name,
                    strides=operation.stride, pads=operation.padding * 2,
                    dilations=operation.dilation, group=operation.groups, **more,
                )  # fmt: skip
            case FullyConnected():
                self._product(operation, self._flattened(sources[0]))
            case MaxPool():
                self._node(
                    "MaxPool", sources, name, kernel_shape=operation.taps,
                    strides=operation.stride, pads=operation.padding * 2,
                    ceil_mode=int(operation.ceil_mode),
                )  # fmt: skip
            case AveragePool():
                self._average(operation, sources[0])
            case Relu():
                self._node("Relu", sources, name)
            case BatchNorm():
                keys = ["weight", "bias", "running_mean", "running_var"]
                self._node(
                    "BatchNormalization",
                    [*sources, *(self._parameter(operation, key) for key in keys)], name,
                    epsilon=operation.epsilon, momentum=1 - operation.momentum,
                )  # fmt: skip
            case Add():
                self._node("Add" if len(sources) == 2 else "Sum", sources, name)
            case Concatenate():
                self._node("Concat", sources, name, axis=1)
            case _:
                raise AssertionError(operation)

    def _product(self, operation: FullyConnected, source: str) -> None:
        name, key = operation.name, f"{operation.name}.weight"
        matrix = self._arrays[key].reshape(operation.filters, -1)
        bias = [self._parameter(operation, "bias")] if operation.bias else []
        if self._dice.random() < 0.5:
            turned = self._dice.random() < 0.5
            self._constant(key, matrix if turned else np.ascontiguousarray(matrix.T))
            self._node("Gemm", [source, key, *bias], name, transB=int(turned))
            return
        self._constant(key, np.ascontiguousarray(matrix.T))
        if not bias:
            self._node("MatMul", [source, key], name)
            return
        product = self._node("MatMul", [source, key], f"{name}/product")
        self._node("Add", self._dice.sample([product, *bias], 2), name)

    def _average(self, operation: AveragePool, source: str) -> None:
        shape, name = self._graph.shape(source.partition("/image")[0]), operation.name
        whole = operation.taps == shape[1:] and operation.padding == (0, 0)
        if not whole or operation.stride != operation.taps or self._dice.random() < 0.3:
            self._node(
                "AveragePool", [source], name, kernel_shape=operation.taps,
                strides=operation.stride, pads=operation.padding * 2,
                count_include_pad=int(operation.count_include_pad),
            )  # fmt: skip
        elif self._dice.random() < 0.5:
            self._node("GlobalAveragePool", [source], name)
        elif self._opset < 18:
            self._node("ReduceMean", [source], name, axes=[2, 3], keepdims=1)
        else:
            axes = self._constant(f"{name}/axes", np.array([-1, -2]))
            self._flat[name] = self._dice.random() < 0.5
            self._node("ReduceMean", [source, axes], name, keepdims=int(not self._flat[name]))


def write_onnx(
    path: Path, graph: OperationGraph, arrays: dict[str, Any], seed: int = 0,
    batch: int | str = "N",
) -> Path:  # fmt: skip
    """Write a network to a file, and return its path."""
    import onnx

    onnx.save(Exporter(graph, arrays, seed).model(batch), path)
    return path
