"""What ONNX's operators mean: which operations they are here, and what arrays these have.

A tensor of ONNX is either images ``(N, C, H, W)`` or flat ``(N, values)``. Here it is the output of
an operation, which is never flattened: a product behind a Flatten is a fully connected layer on the
images in front of it, whose weights stand in the same order.

Use it through `sparsednn.dense.onnx_file`; must not know: the order of nodes, where names are from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense._onnx_nodes import Names
from sparsednn.dense._onnx_windows import OnnxWindow
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import (
    Add,
    AveragePool,
    BatchNorm,
    Concatenate,
    FullyConnected,
    Operation,
    Relu,
    Shape,
    shape_text,
)
from sparsednn.errors import FormatError, ShapeError
from sparsednn.formats._common import located
from sparsednn.formats._onnx_graph import OnnxFile, SparseConstant, label

__all__ = ["Operators", "Value"]

_FLOATS: Final = {"float16": "f4", "bfloat16": "f4", "float32": "f4", "float64": "f8"}

Array = NDArray[Any]
_Attributes = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """What a tensor of the file is: the output of the operation `source`, for N images.

    `flat` says that it is ``(N, values)``; `unsure` names a Reshape to a size that the file
    computes, which only a product can confirm to be flat; `ended` names a Softmax, behind which
    nothing may come.
    """

    source: str
    flat: bool = False
    unsure: str = ""
    ended: str = ""


class Operators:
    """Takes one node after the other into account.

    Parameters
    ----------
    file
        The file.
    graph
        Where operations are added; it has the images.
    names
        Of the operations.

    Attributes
    ----------
    values
        What is known of each tensor that depends on the images, which stand there from the start.
    arrays
        Of all operations, by full name.
    """

    def __init__(
        self, file: OnnxFile, graph: OperationGraph, names: Names, values: dict[str, Value]
    ) -> None:
        self.file, self.path = file, file.path
        self.graph, self.values = graph, values
        self.arrays: dict[str, Array] = {}
        self._names = names
        self._biases: set[str] = set()  # what Adds give that were taken into a product
        self._readers: dict[str, Callable[[Any, _Attributes], Value]] = {
            "Conv": self._convolution, "Gemm": self._gemm, "MatMul": self._matmul,
            "BatchNormalization": self._batch_norm, "Relu": self._relu, "MaxPool": self._max_pool,
            "AveragePool": self._average_pool, "GlobalAveragePool": self._global_average,
            "ReduceMean": self._reduce_mean, "Add": self._sum, "Sum": self._sum,
            "Concat": self._concatenate, "Flatten": self._flatten, "Reshape": self._reshape,
            "Squeeze": self._squeeze, "Identity": self._pass, "Dropout": self._pass,
            "Softmax": self._softmax, "LogSoftmax": self._softmax,
        }  # fmt: skip

    def apply(self, node: Any) -> None:
        """Take a node into account whose inputs are known.

        Raises
        ------
        FormatError
            If it is not supported, or not in this way.
        ShapeError
            If shapes do not fit.
        """
        if node.op_type not in self._readers or node.domain not in ("", "ai.onnx"):
            raise self._refused(
                node, f"is not supported: read are Constant, {', '.join(self._readers)}"
            )
        for extra in node.output[1:]:
            if extra and (extra in self.file.outputs or self.file.readers(extra)):
                raise self._refused(node, f"has a second output '{extra}' in use")
        with located(f"{self.path}: {label(node)}"):
            value = self._readers[node.op_type](node, self.file.attributes(node))
        self.values[node.output[0]] = value

    # -- what nodes read -------------------------------------------------------------------------

    def _refused(self, node: Any, why: str) -> FormatError:
        return FormatError(f"{self.path}: {label(node)} {why}")

    def _input(self, node: Any, index: int) -> str:
        """Name of an input; empty if it is not given."""
        return str(node.input[index]) if len(node.input) > index else ""

    def _data(
        self, node: Any, index: int = 0, *, unsure: bool = False, ended: bool = False
    ) -> Value:
        """Return what comes in as data; unsure or ended only where that is asked for."""
        name = self._input(node, index)
        value = self.values.get(name)
        if value is None:
            what = "a constant" if self.file.is_constant(name) else "not computed of the images"
            raise self._refused(node, f"takes '{name}' as data, which is {what}")
        if value.ended and not ended:
            raise self._refused(
                node, f"follows {value.ended}: a softmax is left out only at the end"
            )
        if value.unsure and not unsure:
            raise self._refused(
                node, f"follows {value.unsure} to a size that is computed: only Gemm and MatMul may"
            )
        return value

    def _image(self, node: Any) -> tuple[Value, Shape]:
        """Return what comes in, and its shape, where it must be images."""
        value = self._data(node)
        if value.flat:
            raise self._refused(node, "takes images, but what comes is flat")
        return value, self.graph.shape(value.source)

    def _same(self, node: Any) -> list[Value]:
        """Return all inputs, of which either all or none are flat."""
        values = [self._data(node, index) for index in range(len(node.input))]
        if len({value.flat for value in values}) > 1:
            raise self._refused(node, "takes images and flat values at once")
        return values

    def _floats(self, node: Any, name: str) -> Array:
        """Read a constant of numbers, in full."""
        if not self.file.is_constant(name):
            raise self._refused(node, f"takes '{name}', which is no constant of the file")
        found = self.file.constant(name)
        if isinstance(found, SparseConstant):
            full = np.zeros(found.shape, found.values.dtype)
            full[found.rows, found.columns] = found.values
            found = full
        if found.dtype.name not in _FLOATS:
            raise self._refused(node, f"takes '{name}' of {found.dtype.name}, expected floats")
        return found.astype(_FLOATS[found.dtype.name])

    def _integers(self, node: Any, name: str) -> list[int]:
        if not self.file.is_constant(name):
            raise self._refused(node, f"takes '{name}', which is no constant of the file")
        return [int(number) for number in self.file.dense(name).reshape(-1)]

    def _add(
        self, operation: Operation, *inputs: Value, arrays: Mapping[str, Array | None] = {}
    ) -> Value:
        """Add an operation with its arrays; what it gives is flat if what it reads is."""
        self.graph.add(operation, *(value.source for value in inputs))
        for parameter in self.graph.parameters_of(operation.name):
            key = parameter.name.rpartition(".")[2]
            array = arrays[key]
            assert array is not None  # it has been asked for
            if array.size != parameter.words:
                raise ShapeError(
                    f"its {key} has shape {list(array.shape)}, expected {list(parameter.shape)}"
                )
            self.arrays[parameter.name] = array.reshape(parameter.shape)
        return Value(operation.name, inputs[0].flat)

    # -- products --------------------------------------------------------------------------------

    def _convolution(self, node: Any, attributes: _Attributes) -> Value:
        value, shape = self._image(node)
        name = self._input(node, 1)
        kernel = self._floats(node, name)
        groups = attributes.get("group", 1)
        if kernel.ndim != 4:
            raise ShapeError(
                f"its kernel '{name}' has shape {list(kernel.shape)}: only those of images are read"
            )
        filters, channels, *taps = kernel.shape
        if channels * groups != shape[0]:
            raise ShapeError(
                f"its kernel '{name}' has shape {list(kernel.shape)} in {groups} groups, which "
                f"does not fit an input of {shape_text(shape)}"
            )
        bias = self._bias(node, (1, filters, 1, 1))
        operation = OnnxWindow.of(attributes, shape[1:], taps).convolution(
            self._names.of(node), shape, filters=filters, groups=groups, bias=bias is not None
        )
        return self._add(operation, value, arrays={"weight": kernel, "bias": bias})

    def _gemm(self, node: Any, attributes: _Attributes) -> Value:
        if attributes.get("transA", 0):
            raise self._refused(node, "has its data transposed: only x·W is read")
        matrix = self._floats(node, self._input(node, 1))
        if matrix.ndim == 2 and not attributes.get("transB", 0):
            matrix = matrix.T
        factor = attributes.get("alpha", 1.0)
        return self._fully_connected(
            node, matrix if factor == 1 else matrix * matrix.dtype.type(factor),
            attributes.get("beta", 1.0),
        )  # fmt: skip

    def _matmul(self, node: Any, attributes: _Attributes) -> Value:
        matrix = self._floats(node, self._input(node, 1))
        return self._fully_connected(node, matrix.T if matrix.ndim == 2 else matrix)

    def _fully_connected(self, node: Any, matrix: Array, beta: float = 1.0) -> Value:
        """Add a product with a matrix ``(filters, values)``."""
        value, name = self._data(node, unsure=True), self._input(node, 1)
        shape = self.graph.shape(value.source)
        if matrix.ndim != 2:
            raise ShapeError(f"its weights '{name}' are no matrix: {list(matrix.shape)}")
        if not value.flat:
            raise self._refused(
                node, f"takes images of {shape_text(shape)}: a Flatten in front of it is missing"
            )
        filters, size = matrix.shape
        if size != prod(shape):
            raise ShapeError(
                f"it takes {size} values by '{name}', but {prod(shape)} come ({shape_text(shape)} "
                f"from '{value.source}')"
            )
        bias = self._bias(node, (1, filters), beta)
        operation = FullyConnected(self._names.of(node), filters, bias is not None)
        flat = replace(value, unsure="")
        return self._add(operation, flat, arrays={"weight": matrix.copy("C"), "bias": bias})

    def _bias(self, node: Any, shape: tuple[int, ...], factor: float = 1.0) -> Array | None:
        """Return the numbers that are added to a product, one for each filter; None if none are.

        They are the node's third input, or stand in an Add that alone reads what it gives, or both.
        `shape` has the filters where the product's output has them, and 1 elsewhere.
        """
        found: Array | None = None
        name = self._input(node, 2) if node.op_type != "MatMul" else ""
        if name:
            found = self._floats(node, name)
            if node.op_type == "Conv" and found.ndim == 1:  # a number for each channel
                found = found.reshape(-1, 1, 1)
            found = _broadcast(found, name, shape)
            found = found if factor == 1 else found * found.dtype.type(factor)
        behind = self.file.readers(node.output[0])
        alone = len(behind) == 1 and node.output[0] not in self.file.outputs
        if alone and behind[0].op_type == "Add":
            others = [other for other in behind[0].input if self.file.is_constant(other)]
            if len(others) == 1:
                more = _broadcast(self._floats(behind[0], others[0]), others[0], shape)
                found = more if found is None else found + more
                self._biases.add(behind[0].output[0])
        return found

    # -- between the products --------------------------------------------------------------------

    def _batch_norm(self, node: Any, attributes: _Attributes) -> Value:
        value = self._data(node)
        if attributes.get("training_mode", 0) or (self.file.opset < 14 and any(node.output[1:])):
            raise self._refused(node, "is in training mode: export the model for inference")
        shape = self.graph.shape(value.source)
        if not attributes.get("spatial", 1) or (value.flat and shape[1:] != (1, 1)):
            raise self._refused(node, "normalises each value by itself: only channels are read")
        keys = ("weight", "bias", "running_mean", "running_var")
        arrays = {key: self._floats(node, self._input(node, k)) for k, key in enumerate(keys, 1)}
        operation = BatchNorm(
            self._names.of(node),
            float(_decimal(attributes.get("epsilon", 1e-5))),
            float(1 - _decimal(attributes.get("momentum", 0.9))),  # PyTorch's is of the new
        )
        return self._add(operation, value, arrays=arrays)

    def _relu(self, node: Any, attributes: _Attributes) -> Value:
        value = self._data(node)
        return self._add(Relu(self._names.of(node)), value)

    def _window(self, node: Any, attributes: _Attributes, shape: Shape) -> OnnxWindow:
        if "kernel_shape" not in attributes:
            raise self._refused(node, "has no kernel_shape")
        return OnnxWindow.of(attributes, shape[1:], attributes["kernel_shape"])

    def _max_pool(self, node: Any, attributes: _Attributes) -> Value:
        value, shape = self._image(node)
        window = self._window(node, attributes, shape)
        return self._add(window.max_pool(self._names.of(node), shape), value)

    def _average_pool(self, node: Any, attributes: _Attributes) -> Value:
        value, shape = self._image(node)
        operation = self._window(node, attributes, shape).average_pool(
            self._names.of(node),
            shape,
            count_include_pad=bool(attributes.get("count_include_pad", 0)),
        )
        return self._add(operation, value)

    def _global_average(self, node: Any, attributes: _Attributes) -> Value:
        value, shape = self._image(node)
        return self._add(AveragePool(self._names.of(node), shape[1:], shape[1:]), value)

    def _reduce_mean(self, node: Any, attributes: _Attributes) -> Value:
        value, _ = self._image(node)
        axes = self._axes(node, attributes)
        if axes != {2, 3}:
            raise self._refused(
                node, f"is over axes {sorted(axes) or 'unknown'}: only height and width (2, 3)"
            )
        mean = self._global_average(node, attributes)
        return replace(mean, flat=value.flat or not attributes.get("keepdims", 1))

    def _axes(self, node: Any, attributes: _Attributes) -> set[int]:
        """Axes of images, which old files have as an attribute and new ones as an input."""
        name = self._input(node, 1)
        given = self._integers(node, name) if name else attributes.get("axes", ())
        return {axis + 4 if axis < 0 else axis for axis in given}

    def _sum(self, node: Any, attributes: _Attributes) -> Value:
        if node.output[0] in self._biases:
            return next(self.values[name] for name in node.input if name in self.values)
        constants = [name for name in node.input if self.file.is_constant(name)]
        if constants:
            raise self._refused(
                node, f"adds the constant '{constants[0]}' to what is no product of its own"
            )
        values = self._same(node)
        return values[0] if len(values) == 1 else self._add(Add(self._names.of(node)), *values)

    def _concatenate(self, node: Any, attributes: _Attributes) -> Value:
        # Values of flattened images stand channel by channel, so this is the same for them.
        values = self._same(node)
        axis = attributes.get("axis", 1)
        if axis not in (1, -1 if values[0].flat else -3):
            raise self._refused(node, f"is along axis {axis}: only channels (1)")
        return (
            values[0] if len(values) == 1 else self._add(Concatenate(self._names.of(node)), *values)
        )

    # -- what changes no value -------------------------------------------------------------------

    def _pass(self, node: Any, attributes: _Attributes) -> Value:
        training = self._input(node, 2) if node.op_type == "Dropout" else ""
        if training and (not self.file.is_constant(training) or self.file.dense(training).any()):
            raise self._refused(node, "is in training mode: export the model for inference")
        return self._data(node, unsure=True, ended=True)

    def _flatten(self, node: Any, attributes: _Attributes) -> Value:
        value, axis = self._data(node, ended=True), attributes.get("axis", 1)
        if axis not in (1, -1 if value.flat else -3):
            raise self._refused(node, f"has axis {axis}: only 1 keeps the images apart")
        return replace(value, flat=True)

    def _squeeze(self, node: Any, attributes: _Attributes) -> Value:
        value, shape = self._image(node)
        if self._axes(node, attributes) != {2, 3} or shape[1:] != (1, 1):
            raise self._refused(
                node, f"of {shape_text(shape)}: only axes 2 and 3 of channels×1×1 are read"
            )
        return replace(value, flat=True)

    def _reshape(self, node: Any, attributes: _Attributes) -> Value:
        value, name = self._data(node, ended=True), self._input(node, 1)
        if not self.file.is_of_shapes(name):
            raise self._refused(node, "has a shape that depends on values")
        if not self.file.is_constant(name):  # computed of the number of images, mostly
            return replace(value, flat=True, unsure=label(node))
        shape = self.graph.shape(value.source)
        size, target = prod(shape), self._integers(node, name)
        before = [size] if value.flat else list(shape)
        # 0 is what it was; -1, once, is whatever is left.
        batch, *rest = [
            before[axis - 1] if axis and number == 0 and axis <= len(before) else number
            for axis, number in enumerate(target)
        ] or [1]
        known = -prod(rest)
        if rest.count(-1) == 1 and batch != -1 and known > 0 and size % known == 0:
            rest[rest.index(-1)] = size // known
        if batch not in (0, -1, self._batch) or rest not in ([size], list(shape)):
            raise self._refused(
                node, f"to {target}: {shape_text(shape)} can be flattened, (0, -1), but not "
                "arranged in another way"
            )  # fmt: skip
        return replace(value, flat=len(rest) == 1)

    @property
    def _batch(self) -> int | None:
        """Number of images that the file was made for; None if any will do."""
        (shape,) = self.file.inputs.values()
        return None if shape is None else shape[0]

    def _softmax(self, node: Any, attributes: _Attributes) -> Value:
        value = self._data(node)
        shape = self.graph.shape(value.source)
        axis = attributes.get("axis", -1 if self.file.opset >= 13 else 1)
        if shape[1:] != (1, 1) or axis not in (1, -1 if value.flat else -3):
            raise self._refused(
                node, f"is along axis {axis} of {shape_text(shape)}: only over the logits is read"
            )
        return replace(value, ended=label(node))


def _broadcast(array: Array, name: str, shape: tuple[int, ...]) -> Array:
    """Return a number for each filter, where a constant adds such to outputs of a shape."""
    try:
        return np.broadcast_to(array, shape).reshape(-1).copy()
    except ValueError:
        raise ShapeError(
            f"adds '{name}' of shape {list(array.shape)} to {max(shape)} filters: only one number "
            "for each is read"
        ) from None


def _decimal(value: float) -> Decimal:
    """Return the number that a person wrote, of which ONNX keeps 32 bits.

    >>> 1 - _decimal(0.8999999761581421)
    Decimal('0.1')
    """
    return Decimal(str(np.float32(value)))
