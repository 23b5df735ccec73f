"""An ONNX file: its nodes, who makes and who reads each tensor, and the constants beside them.

Opens the file (with its external data). Constants are initializers (dense or sparse), Constant
nodes, and Identity or Transpose of these. `OnnxGraph` is a file that is a chain: it finds the one
input and the one output, and follows the tensor from one to the other; a branch is an error. What
the operators mean is not known here. ONNX is imported when a file is read, not before.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, MissingDependencyError
from sparsednn.formats._common import reading

__all__ = ["OnnxFile", "OnnxGraph", "SparseConstant", "label"]

_SHAPE_OPERATORS = frozenset(
    {"Shape", "Gather", "Concat", "Unsqueeze", "Squeeze", "Slice", "Cast", "Identity", "Constant",
     "Mul", "Add", "Sub", "Div"}
)  # fmt: skip


# AttributeProto's numbers: 1 a float, 2 an int, 3 a text, 7 a list of ints.
_ATTRIBUTE_KINDS = {
    "alpha": 1, "beta": 1, "min": 1, "max": 1, "transA": 2, "transB": 2, "axis": 2, "group": 2,
    "allowzero": 2, "auto_pad": 3, "strides": 7, "pads": 7, "dilations": 7, "perm": 7,
    "epsilon": 1, "momentum": 1, "training_mode": 2, "spatial": 2, "ceil_mode": 2,
    "count_include_pad": 2, "storage_order": 2, "keepdims": 2, "kernel_shape": 7, "axes": 7,
}  # fmt: skip


class SparseConstant(NamedTuple):
    """A sparse initializer: coordinates and values ``(nnz,)``, shape ``(rows, columns)``."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: NDArray[Any]
    shape: tuple[int, int]

    def transpose(self) -> SparseConstant:
        """Return the transpose."""
        return SparseConstant(self.columns, self.rows, self.values, self.shape[::-1])


def label(node: Any) -> str:
    """Say which node a message is about: ``Gemm 'fc1'`` (or the name of what it makes)."""
    domain = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    # In a damaged file a name may be bytes that are no text.
    return f"{domain}{node.op_type} '{node.name or ', '.join(map(str, node.output))}'"


class OnnxFile:
    """The graph of one file, and the constants in it.

    Attributes
    ----------
    path
        The file.
    opset
        Version of ONNX's own operators.
    nodes
        All of them, in the file's order, which should be a topological one.
    inputs, outputs
        What comes in and is no constant, and what goes out: name → sizes, None where a size is a
        name; None if nothing is said.

    Raises
    ------
    MissingDependencyError
        If onnx is not installed.
    FormatError
        If the file is missing, damaged, or has no operators.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._onnx: Any = importlib.import_module("onnx")
        except ImportError as error:
            raise MissingDependencyError(
                f"{path}: reading it needs onnx: pip install 'sparsednn[onnx]'"
            ) from error
        model = self._load()
        graph = model.graph
        self.opset = max(
            (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
            default=0,
        )
        if not graph.node or not self.opset:
            raise FormatError(f"{path}: not an ONNX model, or truncated: it has no operators")
        self.nodes: list[Any] = list(graph.node)
        self._dense = {tensor.name: tensor for tensor in graph.initializer}
        self._sparse = {tensor.values.name: tensor for tensor in graph.sparse_initializer}
        self._producers = {name: node for node in graph.node for name in node.output if name}
        self._consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)
        weights = {*self._dense, *self._sparse}
        self.inputs = {one.name: _shape(one) for one in graph.input if one.name not in weights}
        self.outputs = {one.name: _shape(one) for one in graph.output}

    def _load(self) -> Any:
        path = self.path
        helper = importlib.import_module("onnx.external_data_helper")
        try:
            with reading(path):
                with open(path, "rb"):  # a missing file or folder is told as everywhere
                    pass
                model = self._onnx.load(os.fspath(path), load_external_data=False)
        except (FormatError, MemoryError):
            raise
        except Exception as error:  # protobuf's own, which cannot be imported without it
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise FormatError(f"{path}: not an ONNX model, or truncated: {reason}") from error
        try:
            helper.load_external_data_for_model(model, os.fspath(path.parent))
        except MemoryError:
            raise
        except Exception as error:  # OSError, ValueError or onnx's own, by its version
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise FormatError(f"{path}: its external data cannot be read: {reason}") from error
        return model

    def readers(self, tensor: str) -> list[Any]:
        """Nodes that read a tensor, one that reads it twice twice."""
        return self._consumers.get(tensor, [])

    def producer(self, tensor: str) -> Any:
        """Return the node that makes a tensor; None if there is none."""
        return self._producers.get(tensor)

    def attributes(self, node: Any) -> dict[str, Any]:
        """Attributes of a node as Python values; texts as ``str``.

        Raises
        ------
        FormatError
            If one that is used here is of another type than ONNX says.
        """
        value = self._onnx.helper.get_attribute_value
        for attribute in node.attribute:
            if _ATTRIBUTE_KINDS.get(attribute.name, attribute.type) != attribute.type:
                raise FormatError(
                    f"{self.path}: {label(node)}: attribute '{attribute.name}' is of a wrong type"
                )
        found = {attribute.name: value(attribute) for attribute in node.attribute}
        return {
            name: one.decode(errors="replace") if isinstance(one, bytes) else one
            for name, one in found.items()
        }

    def is_constant(self, name: str) -> bool:
        """Whether `constant` gives something."""
        return self._origin(name) is not None

    def is_of_shapes(self, name: str) -> bool:
        """Whether a tensor is computed of sizes and constants only, of no values."""
        waiting, seen = [name], {name}
        while waiting:
            tensor = waiting.pop()
            node = self._producers.get(tensor)
            if self.is_constant(tensor) or (node is not None and node.op_type == "Shape"):
                continue
            if node is None or node.op_type not in _SHAPE_OPERATORS:
                return False
            fresh = set(node.input) - seen - {""}
            seen |= fresh
            waiting += fresh
        return True

    def _origin(self, name: str) -> tuple[str, list[Any]] | None:
        """Return the initializer or Constant behind a tensor, and the Transposes in between."""
        between: list[Any] = []
        for _ in range(len(self._producers) + 1):
            if name in self._dense or name in self._sparse:
                return name, between
            node = self._producers.get(name)
            if node is None or node.op_type not in ("Constant", "Identity", "Transpose"):
                return None
            if node.op_type == "Constant":
                return name, between
            if node.op_type == "Transpose":
                between.insert(0, node)
            if len(node.input) != 1:
                return None
            name = node.input[0]
        return None

    def constant(self, name: str) -> NDArray[Any] | SparseConstant:
        """Read a constant.

        Raises
        ------
        FormatError
            If the tensor is none, or its data do not fit its shape.
        """
        origin = self._origin(name)
        if origin is None:
            raise FormatError(f"{self.path}: tensor '{name}' is no constant")
        try:
            found = self._read(origin[0])
            for node in origin[1]:
                permutation = self.attributes(node).get("perm")
                if isinstance(found, SparseConstant):
                    found = found.transpose() if permutation in (None, [1, 0]) else found
                else:
                    found = np.transpose(found, permutation)
        except FormatError:
            raise
        except Exception as error:  # whatever NumPy and onnx say of damaged data
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise FormatError(f"{self.path}: tensor '{name}' cannot be read: {reason}") from error
        return found

    def dense(self, name: str) -> NDArray[Any]:
        """Read a constant that must not be sparse."""
        found = self.constant(name)
        if isinstance(found, SparseConstant):
            raise FormatError(f"{self.path}: tensor '{name}' is sparse: only a matrix may be")
        return found

    def _read(self, name: str) -> NDArray[Any] | SparseConstant:
        if name in self._sparse:
            return self._sparse_constant(name, self._sparse[name])
        array = self._onnx.numpy_helper.to_array
        if name in self._dense:
            return np.asarray(array(self._dense[name]))
        for key, value in self.attributes(self._producers[name]).items():
            if key == "value":
                return np.asarray(array(value))
            if key == "sparse_value":
                return self._sparse_constant(name, value)
            if key.startswith("value_"):
                return np.asarray(value, np.float32 if "float" in key else None)
        raise FormatError(f"{self.path}: {label(self._producers[name])} has no value")

    def _sparse_constant(self, name: str, tensor: Any) -> SparseConstant:
        array = self._onnx.numpy_helper.to_array
        values, shape = array(tensor.values), tuple(tensor.dims)
        indices = array(tensor.indices).astype(np.int64)
        if len(shape) != 2 or min(shape) < 1 or indices.shape[:1] != values.shape:
            raise FormatError(
                f"{self.path}: sparse tensor '{name}' of shape {list(shape)} with indices "
                f"{list(indices.shape)} and values {list(values.shape)}: only matrices are read"
            )
        if indices.ndim == 1:  # positions in the flattened matrix
            rows, columns = np.divmod(indices, shape[1])
        else:
            rows, columns = indices.T
        return SparseConstant(rows, columns, values, (int(shape[0]), int(shape[1])))


class OnnxGraph(OnnxFile):
    """The graph of one file that is a chain.

    Raises
    ------
    MissingDependencyError, FormatError
        As for `OnnxFile`; also if there is not one input and one output.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        for what, found in (("inputs", self.inputs), ("outputs", self.outputs)):
            if len(found) != 1:
                named = ", ".join(f"'{name}'" for name in found) or "none"
                raise FormatError(f"{path}: only chains are read, with one of its {what}: {named}")
        ((self.input, self.input_shape),) = self.inputs.items()
        (self.output,) = self.outputs

    def chain(self) -> Iterator[tuple[str, Any]]:
        """Follow the data: each node with the name of the tensor that enters it.

        Raises
        ------
        FormatError
            Where a tensor has no use or several, before the output is reached.
        """
        tensor, steps = self.input, 0
        while True:
            # Its size is asked for by exporters in front of a Reshape; that is no use of values.
            users = [node for node in self._consumers.get(tensor, ()) if node.op_type != "Shape"]
            ends = tensor == self.output
            if len(users) + ends > 1:
                named = ", ".join(label(node) for node in users)
                also = "the output and " if ends else ""
                raise FormatError(
                    f"{self.path}: tensor '{tensor}' branches, to {also}{named}: only chains are "
                    "read"
                )
            if ends:
                return
            if not users or steps > len(self._producers):
                raise FormatError(
                    f"{self.path}: tensor '{tensor}' does not lead to the output '{self.output}'"
                )
            node = users[0]
            if not node.output:
                raise FormatError(f"{self.path}: {label(node)} has no output")
            yield tensor, node
            for extra in node.output[1:]:
                if extra in self._consumers or extra == self.output:
                    raise FormatError(
                        f"{self.path}: {label(node)} has a second output '{extra}' in use: only "
                        "chains are read"
                    )
            tensor, steps = node.output[0], steps + 1


def _shape(value: Any) -> tuple[int | None, ...] | None:
    """Sizes of a tensor, None where one is a name; None if nothing is said."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(
        int(size.dim_value) if size.HasField("dim_value") and size.dim_value > 0 else None
        for size in kind.shape.dim
    )
