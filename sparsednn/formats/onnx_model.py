"""ONNX models: chains of fully connected and convolutional layers.

A layer is Gemm, MatMul or Conv, then Add or Sub of a constant (more bias), then one activation:
Relu, Sigmoid, Tanh, Clip from 0 (clamped_relu), or Softmax at the end. Identity, Dropout, Flatten
and Reshape change nothing but the arrangement of one sample's values, which is followed: the
first dimension must stay the batch. A convolution becomes the sparse matrix of the whole of it
(`sparsednn.formats.lowering`). Every other operator is an error that names its node; nothing is
left out. Weights that are zero are not stored.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, ShapeError
from sparsednn.formats import _csr
from sparsednn.formats._common import FLOAT32_MAX, first_layers, located, reading
from sparsednn.formats._csr import CsrArrays
from sparsednn.formats._onnx_graph import OnnxGraph, SparseConstant, label
from sparsednn.formats.lowering import Convolution, toeplitz
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["read"]

_FLOATS: Final = ("float16", "bfloat16", "float32", "float64")
_BINARY: Final = ("Gemm", "MatMul", "Conv", "Add", "Sub", "Reshape")
_ACTIVATIONS: Final = {"Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh"}


def read(path: str | os.PathLike[str], *, layers: int | None = None) -> SparseNetwork:
    """Read an ONNX model as a sparse network.

    Parameters
    ----------
    path
        The ``.onnx`` file; external data beside it are found.
    layers
        Read only so many layers from the first on; None for all.

    Raises
    ------
    MissingDependencyError
        If onnx is not installed.
    FormatError
        If the file is damaged, no chain, or has an operator that is not read.
    ShapeError, InputError
        As for `SparseLayer` and `SparseNetwork`, with the file and the node in front.
    UsageError
        If `layers` is below 1.
    """
    path = Path(path)
    if layers is not None:
        first_layers(path, layers, layers)  # below 1 is told before anything is read
    graph = OnnxGraph(path)
    chain = _Chain(graph, layers)
    for tensor, node in graph.chain():
        if chain.complete(node):
            break
        chain.apply(tensor, node)
    else:
        chain.finish()
    count = first_layers(path, len(chain.layers), layers)
    with located(path):
        return SparseNetwork([one.made(path) for one in chain.layers[:count]], name=path.stem)


@dataclass(slots=True)
class _Layer:
    """A layer whose bias and activation may still follow."""

    where: str
    arrays: CsrArrays
    n_in: int
    bias: NDArray[np.float32]
    activation: str | None = None

    def made(self, path: Path) -> SparseLayer:
        with located(f"{path}: {self.where}"):
            return SparseLayer(
                *self.arrays, self.n_in, bias=self.bias, activation=self.activation or "identity"
            )


@dataclass(slots=True)
class _Chain:
    """The layers so far, and how the values of one sample are arranged behind them."""

    graph: OnnxGraph
    wanted: int | None
    layers: list[_Layer] = field(default_factory=list)
    shape: tuple[int | None, ...] | None = field(init=False)  # of one sample
    size: int | None = field(init=False)  # number of its values
    reshaped: str | None = None  # a Reshape that only the next layer can confirm

    def __post_init__(self) -> None:
        shape = self.graph.input_shape
        if shape is not None and len(shape) < 2:
            raise FormatError(
                f"{self.graph.path}: input '{self.graph.input}' has shape {_text(shape)}, expected "
                "the batch first and one dimension or more behind it"
            )
        self._arrange(None if shape is None else shape[1:])

    def _arrange(self, shape: tuple[int | None, ...] | None) -> None:
        self.shape = shape
        sizes = [] if shape is None else [n for n in shape if n is not None]
        self.size = math.prod(sizes) if shape is not None and len(sizes) == len(shape) else None

    def _refuse(self, node: Any, why: str) -> FormatError:
        return FormatError(f"{self.graph.path}: {label(node)} {why}")

    def complete(self, node: Any) -> bool:
        """Whether all wanted layers are there, and `node` no longer belongs to the last one."""
        if self.wanted is None or len(self.layers) < self.wanted:
            return False
        ended = self.layers[-1].activation is not None
        return ended or node.op_type in ("Gemm", "MatMul", "Conv")

    def apply(self, tensor: str, node: Any) -> None:
        """Take one more node into account."""
        readers: dict[str, Callable[[str, Any], None]] = {
            "Gemm": self._gemm, "MatMul": self._matmul, "Conv": self._conv,
            "Add": self._add, "Sub": self._add,
            "Relu": self._activate, "Sigmoid": self._activate, "Tanh": self._activate,
            "Clip": self._clip, "Softmax": self._softmax,
            "Identity": self._pass, "Dropout": self._pass,
            "Flatten": self._flatten, "Reshape": self._reshape,
        }  # fmt: skip
        if node.op_type not in readers or node.domain not in ("", "ai.onnx"):
            raise self._refuse(node, f"is not supported: read are {', '.join(readers)}")
        if len(node.input) < 2 and node.op_type in _BINARY:
            raise self._refuse(node, "has one input, two are needed")
        with (
            reading(self.graph.path),  # puts the file in front of a MemoryError
            located(f"{self.graph.path}: {label(node)}"),
            np.errstate(over="ignore", invalid="ignore"),  # the layer's check names inf and nan
        ):
            readers[node.op_type](tensor, node)

    def finish(self) -> None:
        """Check what only the end can tell."""
        path = self.graph.path
        if not self.layers:
            raise FormatError(f"{path}: no Gemm, MatMul or Conv between its input and its output")
        if self.reshaped:
            raise FormatError(f"{path}: {self.reshaped} arranges the output in an unknown way")

    def _input(self, node: Any, index: int) -> str | None:
        """Name of an optional input; None if it is not given."""
        return node.input[index] or None if len(node.input) > index else None

    def _floats(self, node: Any, name: str) -> NDArray[Any] | SparseConstant:
        if not self.graph.is_constant(name):
            raise self._refuse(node, f"takes '{name}', which is no constant of the file")
        found = self.graph.constant(name)
        dtype = found.values.dtype if isinstance(found, SparseConstant) else found.dtype
        if dtype.name not in _FLOATS:
            raise self._refuse(node, f"takes '{name}' of {dtype.name}, expected floats")
        return found

    def _dense(self, node: Any, name: str) -> NDArray[np.float32]:
        found = self._floats(node, name)
        if isinstance(found, SparseConstant):
            raise self._refuse(node, f"takes '{name}', which is sparse: only a matrix may be")
        return found.astype(np.float32)

    # ---- layers

    def _gemm(self, tensor: str, node: Any) -> None:
        attributes = self.graph.attributes(node)
        if node.input[0] != tensor or attributes.get("transA", 0):
            raise self._refuse(node, "has the data on the right or transposed: only x·W is read")
        weight = self._floats(node, node.input[1])
        matrix = weight if attributes.get("transB", 0) else weight.transpose()
        self._fully_connected(node, matrix, float(attributes.get("alpha", 1.0)))
        name = self._input(node, 2)
        if name is not None:
            beta = np.float32(attributes.get("beta", 1.0))
            self._add_bias(node, beta * self._dense(node, name))

    def _matmul(self, tensor: str, node: Any) -> None:
        if node.input[0] != tensor:
            raise self._refuse(node, "has the data on the right: only x·W is read")
        self._fully_connected(node, self._floats(node, node.input[1]).transpose(), 1.0)

    def _fully_connected(
        self, node: Any, matrix: NDArray[Any] | SparseConstant, factor: float
    ) -> None:
        name = node.input[1]
        if len(matrix.shape) != 2 or 0 in matrix.shape:
            raise self._refuse(node, f"takes '{name}' of shape {_text(matrix.shape[::-1])}")
        n_out, n_in = (int(size) for size in matrix.shape)
        if self.shape is not None and len(self.shape) != 1:
            raise self._refuse(
                node, f"takes samples of shape {_text(self.shape)}: a Flatten is missing"
            )
        if self.size not in (None, n_in):
            before = f" ({self.layers[-1].where})" if self.layers else ""
            raise ShapeError(f"takes {n_in} inputs by '{name}', but {self.size} come{before}")
        if isinstance(matrix, SparseConstant):
            rows, columns, values, _ = matrix
            arrays = _csr.from_coordinates(rows, columns, values.astype(np.float32), n_out)
        else:
            arrays = _csr.compress(matrix)
        if factor != 1.0:
            arrays = arrays._replace(values=arrays.values * np.float32(factor))
        self._open(node, name, arrays, n_in, (n_out,))

    def _conv(self, tensor: str, node: Any) -> None:
        attributes = self.graph.attributes(node)
        name = self._input(node, 1)
        if node.input[0] != tensor or name is None:
            raise self._refuse(node, "does not take the data first and its kernel then")
        kernel = self._dense(node, name)
        image = self.shape
        if kernel.ndim != 4:
            raise self._refuse(node, f"has a kernel of shape {_text(kernel.shape)}: only 2-D")
        if image is None or len(image) != 3 or None in image:
            raise self._refuse(
                node,
                f"takes samples of shape {_text(image)}: channels, height and width must be "
                "known: export the model with a fixed image size",
            )
        k, c, r, s = kernel.shape
        stride = tuple(attributes.get("strides", (1, 1)))
        dilation = tuple(attributes.get("dilations", (1, 1)))
        if len(stride) != 2 or len(dilation) != 2:
            raise self._refuse(node, f"has strides {stride} and dilations {dilation}: only 2-D")
        channels, height, width = (int(n or 0) for n in image)
        pads = self._pads(node, attributes, (height, width), (r, s), stride, dilation)
        geometry = Convolution((k, c, r, s), (channels, height, width), stride, pads, dilation)
        if geometry.groups != attributes.get("group", 1):
            raise self._refuse(
                node, f"has kernel {_text(kernel.shape)} for {channels} channels, but "
                f"{attributes.get('group', 1)} groups"
            )  # fmt: skip
        self._open(node, name, toeplitz(kernel, geometry), geometry.shape[1], geometry.output)
        bias = self._input(node, 2)
        if bias is not None:
            self._add_bias(node, self._dense(node, bias).reshape(-1, 1, 1))

    def _pads(
        self,
        node: Any,
        attributes: dict[str, Any],
        size: tuple[int, int],
        taps: tuple[int, int],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
    ) -> tuple[int, int, int, int]:
        kind = attributes.get("auto_pad", "NOTSET")
        if kind == "VALID":
            return 0, 0, 0, 0
        if kind in ("SAME_UPPER", "SAME_LOWER"):
            totals = [
                max(0, (-(-n // step) - 1) * step + d * (t - 1) + 1 - n)
                for n, t, step, d in zip(size, taps, stride, dilation, strict=True)
            ]
            small = [total // 2 for total in totals]
            large = [total - total // 2 for total in totals]
            first, last = (small, large) if kind == "SAME_UPPER" else (large, small)
            return first[0], first[1], last[0], last[1]
        pads = tuple(attributes.get("pads", (0, 0, 0, 0)))
        if kind != "NOTSET" or len(pads) != 4:
            raise self._refuse(node, f"has auto_pad {kind} and pads {list(pads)}")
        return pads

    def _open(
        self, node: Any, name: str, arrays: CsrArrays, n_in: int, shape: tuple[int, ...]
    ) -> None:
        where = f"layer {len(self.layers) + 1} ({label(node)}, weights '{name}')"
        bias = np.zeros(arrays.indptr.size - 1, np.float32)
        self.layers.append(_Layer(where, arrays, n_in, bias))
        self._arrange(shape)
        self.reshaped = None

    # ---- what follows a layer

    def _unfinished(self, node: Any) -> _Layer:
        """Return the layer that a bias or an activation belongs to."""
        if not self.layers or self.layers[-1].activation is not None:
            raise self._refuse(node, "does not follow directly upon a Gemm, MatMul or Conv")
        return self.layers[-1]

    def _add(self, tensor: str, node: Any) -> None:
        self._unfinished(node)
        first = node.input[0] == tensor
        if node.op_type == "Sub" and not first:
            raise self._refuse(node, "subtracts the data from a constant")
        constant = self._dense(node, node.input[1] if first else node.input[0])
        self._add_bias(node, -constant if node.op_type == "Sub" else constant)

    def _add_bias(self, node: Any, bias: NDArray[np.float32]) -> None:
        layer = self._unfinished(node)
        shape = tuple(n or 0 for n in self.shape) if self.shape is not None else layer.bias.shape
        if bias.ndim == len(shape) + 1 and bias.shape[0] == 1:
            bias = bias[0]
        try:
            full = np.broadcast_to(bias, shape)
        except ValueError:
            raise ShapeError(
                f"adds a constant of shape {_text(bias.shape)} to samples of shape {_text(shape)}"
            ) from None
        layer.bias = layer.bias + full.reshape(-1)

    def _activate(self, tensor: str, node: Any) -> None:
        self._unfinished(node).activation = _ACTIVATIONS[node.op_type]

    def _clip(self, tensor: str, node: Any) -> None:
        attributes = self.graph.attributes(node)
        bounds: list[float | None] = []
        for index, key in ((1, "min"), (2, "max")):
            name = self._input(node, index)
            bound = np.asarray(attributes.get(key)) if name is None else self._dense(node, name)
            if bound.size != 1:
                raise self._refuse(node, f"has {bound.size} numbers as its {key}")
            bounds.append(None if bound.item() is None else float(bound.item()))
        low, high = bounds
        if low != 0 or (high is not None and high <= 0):
            raise self._refuse(node, f"clips to {low}, {high}: only from 0 to a positive bound")
        unbounded = high is None or high >= FLOAT32_MAX
        self._unfinished(node).activation = "relu" if unbounded else f"clamped_relu:{high}"

    def _softmax(self, tensor: str, node: Any) -> None:
        axis = self.graph.attributes(node).get("axis", -1 if self.graph.opset >= 13 else 1)
        if axis not in (1, -1) or self.shape is None or len(self.shape) != 1:
            raise self._refuse(
                node, f"of axis {axis} and samples of shape {_text(self.shape)}: only over all"
            )
        self._unfinished(node).activation = "softmax"

    # ---- what changes no value

    def _pass(self, tensor: str, node: Any) -> None:
        training = self._input(node, 2) if node.op_type == "Dropout" else None
        constant = not training or self.graph.is_constant(training)
        if not constant or (training and self.graph.dense(training).any()):
            raise self._refuse(node, "is in training mode: export the model for inference")

    def _flatten(self, tensor: str, node: Any) -> None:
        axis = self.graph.attributes(node).get("axis", 1)
        if axis < 0 and self.shape is not None:
            axis += len(self.shape) + 1
        if axis != 1:
            raise self._refuse(node, f"has axis {axis}: only 1 keeps the batch")
        self._rearrange((self.size,))

    def _rearrange(self, shape: tuple[int | None, ...]) -> None:
        """Set the shape of samples; their size stays what it was where the shape does not say."""
        size = self.size
        self._arrange(shape)
        self.size = size if self.size is None else self.size

    def _reshape(self, tensor: str, node: Any) -> None:
        name = self._input(node, 1)
        if node.input[0] != tensor or name is None or not self.graph.is_of_shapes(name):
            raise self._refuse(node, "has a shape that depends on values")
        if not self.graph.is_constant(name):  # computed of the batch size, mostly
            self.shape, self.reshaped = None, label(node)
            return
        target = [int(n) for n in self.graph.dense(name).reshape(-1)]
        if 0 in target and self.graph.attributes(node).get("allowzero", 0):
            raise self._refuse(node, f"to {target} has a dimension of no values")
        batch = self.graph.input_shape[0] if self.graph.input_shape else None
        rest = [self.shape[k] if n == 0 and self.shape is not None and k < len(self.shape) else n
                for k, n in enumerate(target[1:])]  # fmt: skip
        known = math.prod(n for n in rest if n is not None and n != -1)
        open_ended = rest.count(-1) + rest.count(None)
        if open_ended == 1 and self.size is not None and known and self.size % known == 0:
            rest = [self.size // known if n in (-1, None) else n for n in rest]
            known, open_ended = self.size, 0
        keeps_batch = target[:1] in ([0], [-1]) or (batch is not None and target[:1] == [batch])
        fits = self.size is None or (known == self.size and not open_ended)
        if not rest or not keeps_batch or not fits or (target[0] == -1 and open_ended):
            raise self._refuse(
                node, f"to {target} does not keep samples of shape {_text(self.shape)} whole"
            )
        self._rearrange(tuple(None if n == -1 else n for n in rest))


def _text(shape: Any) -> str:
    """Write a shape for a message."""
    return "unknown" if shape is None else str(["?" if n is None else n for n in shape])
