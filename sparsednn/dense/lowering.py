"""From a chain of operations to the sparse path: one sparse matrix for each product of a network.

Images are flattened as everywhere here (NCHW): the value of channel ``c`` at ``(y, x)`` is neuron
``(c·height + y)·width + x``, so the lowered network takes and gives such columns. What becomes of
an operation:

==================  ==========================================================================
operation           in the sparse network
==================  ==========================================================================
convolution         the matrix of all output pixels (`sparsednn.formats.lowering.toeplitz`); a
                    weight that is zero is not stored, for any pixel
fully connected     its matrix ``(filters, channels · rows · columns)``
average pooling     a matrix: the windows' taps, each row over its divisor
batch norm          with its running statistics folded into the product in front of it: rows are
                    scaled, the bias is, and is shifted
ReLU                the activation of the product in front of it
==================  ==========================================================================

Batch norm or ReLU with no product in front (first in the chain, or batch norm behind a ReLU) is
a diagonal matrix. Max-pooling is not linear; additions and concatenations are no chains. A kernel
has its zeros before it is lowered: see `sparsednn.dense.pruning`.

Must not know: files, ranks, partitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import networkx
import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import (
    AveragePool,
    BatchNorm,
    Convolution,
    FullyConnected,
    Input,
    Operation,
    Relu,
)
from sparsednn.errors import InputError, ShapeError, UsageError
from sparsednn.formats import lowering
from sparsednn.formats._common import located
from sparsednn.formats._csr import CsrArrays, compress
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["layer_operations", "lower", "pieces"]

Arrays = Mapping[str, NDArray[Any]]

_MATRICES: Final = (Convolution, FullyConnected, AveragePool)
_FOLDED: Final = (BatchNorm, Relu)
_SHOWN_PIECES: Final = 6


def lower(
    graph: OperationGraph,
    arrays: Arrays,
    first: str | None = None,
    last: str | None = None,
    *,
    threshold: float = 0.0,
) -> SparseNetwork:
    """Make the sparse network that computes what a chain of operations does.

    Parameters
    ----------
    graph
        The network.
    arrays
        Its arrays by full name, float32 or float64; those of the chain are enough.
    first, last
        The first and the last operation of the chain; None: the first one behind the input, the
        network's output. Outputs in between may have other readers, too.
    threshold
        Kernel weights of at most this magnitude count as zeros; before batch norm is folded in.

    Returns
    -------
    SparseNetwork
        float32, a layer for each tuple of `layer_operations`. It takes columns of the input of
        `first`, flattened, and gives the output of `last` for inference.

    Raises
    ------
    InputError
        If an operation is no matrix of a chain, `last` does not depend on `first`, there is no such
        operation, or a number is NaN or infinite (or becomes it in float32).
    ShapeError
        If an array is missing, or has another shape or type.
    UsageError
        If the threshold is negative or no number.
    MemoryError
        If a matrix is larger than this machine's memory.
    """
    if not 0.0 <= threshold < math.inf:
        raise UsageError(f"threshold must be a number of at least 0, found {threshold}")
    groups = layer_operations(graph, first, last)
    layers = [_Lowering(graph, arrays, group[0], threshold).layer(group) for group in groups]
    whole = sum(map(len, groups)) == len(graph) - 1  # but the input
    ends = "" if whole else f":{groups[0][0]}..{groups[-1][-1]}"
    return SparseNetwork(layers, name=graph.name + ends)


def layer_operations(
    graph: OperationGraph, first: str | None = None, last: str | None = None
) -> tuple[tuple[str, ...], ...]:
    """Names of the operations that each layer of `lower` computes, from the first to the last.

    Parameters and errors as for `lower`.
    """
    groups: list[list[str]] = []
    rectified = False  # whether the last group has its ReLU
    for operation in _chain(graph, first, last):
        begins = (
            not groups
            or isinstance(operation, _MATRICES)
            or (isinstance(operation, BatchNorm) and rectified)
        )
        if begins:
            groups.append([])
            rectified = False
        groups[-1].append(operation.name)
        rectified = rectified or isinstance(operation, Relu)
    return tuple(map(tuple, groups))


def pieces(graph: OperationGraph) -> tuple[tuple[str, ...], ...]:
    """Names of operations that `lower` takes: chains as long as can be, in topological order.

    Each begins with a matrix. All but the last operation of a piece have one reader, so that
    nothing outside needs what is between; no operation is in two pieces.
    """
    found: dict[str, list[str]] = {}  # by the last operation
    for operation in graph:
        sources = graph.predecessors(operation.name)
        piece = found.get(sources[0]) if len(sources) == 1 else None
        if piece is not None and len(graph.successors(sources[0])) > 1:
            piece = None
        if not isinstance(operation, _MATRICES) and not (
            isinstance(operation, _FOLDED) and piece is not None
        ):
            continue
        if piece is None:
            piece = []
        else:
            del found[sources[0]]
        piece.append(operation.name)
        found[operation.name] = piece
    order = {operation.name: place for place, operation in enumerate(graph)}
    return tuple(tuple(piece) for piece in sorted(found.values(), key=lambda each: order[each[0]]))


def _chain(graph: OperationGraph, first: str | None, last: str | None) -> list[Operation]:
    """Operations from `first` to `last`, or the error that `lower` promises."""
    first = graph.input if first is None else graph.operation(first).name
    last = graph.output if last is None else graph.operation(last).name
    between = networkx.ancestors(graph.nodes, last) | {last}
    if first not in between:
        raise InputError(f"network {graph.name}: '{last}' does not depend on '{first}'")
    between &= networkx.descendants(graph.nodes, first) | {first}
    chain = [
        operation
        for operation in graph
        if operation.name in between and not isinstance(operation, Input)
    ]
    if not chain:
        raise InputError(f"network {graph.name}: '{last}' is where images come in, no operation")
    # What is left after this has one input each, so what is between two of them is one path.
    for operation in chain:
        if not isinstance(operation, _MATRICES + _FOLDED):
            raise InputError(
                f"network {graph.name}: {operation} is no matrix; pieces that can be lowered: "
                f"{_pieces_text(graph)}"
            )
    return chain


def _pieces_text(graph: OperationGraph) -> str:
    names = [piece[0] if len(piece) == 1 else f"{piece[0]}…{piece[-1]}" for piece in pieces(graph)]
    more = f" and {len(names) - _SHOWN_PIECES} more" if len(names) > _SHOWN_PIECES else ""
    return (", ".join(names[:_SHOWN_PIECES]) or "none") + more


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A product on the way to a layer.

    `kernel` has the shape of `geometry`; `bias` ``(filters,)`` is float64; `divisors`, of an
    average's rows, ``(height, width)`` of its output.
    """

    kernel: NDArray[Any]
    bias: NDArray[np.float64]
    geometry: lowering.Convolution
    divisors: NDArray[np.float64] | None = None


class _Lowering:
    """One layer of the sparse network; its first operation is `name`."""

    def __init__(self, graph: OperationGraph, arrays: Arrays, name: str, threshold: float) -> None:
        self._graph, self._arrays, self._threshold = graph, arrays, threshold
        self._operation = graph.operation(name)
        self._shape = graph.input_shapes(name)[0]

    def layer(self, names: tuple[str, ...]) -> SparseLayer:
        """Return the layer of these operations, as `layer_operations` grouped them."""
        matrix = self._start()
        activation = "identity"
        for name in names:
            operation = self._graph.operation(name)
            if isinstance(operation, BatchNorm):
                matrix = self._normalized(matrix, operation)
            elif isinstance(operation, Relu):
                activation = "relu"
        geometry = matrix.geometry
        _, height, width = geometry.output
        # What is too large for float32 becomes inf, whose place is named then.
        with (
            located(f"network {self._graph.name}: {self._operation}"),
            np.errstate(over="ignore"),
        ):
            bias = np.repeat(matrix.bias.astype(np.float32), height * width)
            return SparseLayer(
                *self._rows(matrix), geometry.shape[1], bias=bias, activation=activation
            )

    def _start(self) -> _Matrix:
        """Return the matrix of the first operation, or the identity where that is to be folded."""
        operation, shape = self._operation, self._shape
        channels = shape[0]
        if isinstance(operation, (Convolution, FullyConnected)):
            kernel = self._array(operation, "weight")
            if self._threshold:  # NaN stays, and will be told
                kernel = np.where(np.abs(kernel) <= self._threshold, 0, kernel)
            filters = operation.filters
            bias = self._array(operation, "bias") if operation.bias else np.zeros(filters)
            made = operation.geometry(1, shape)
            pads = (*made.padding, *made.padding)
            geometry = lowering.Convolution(
                made.kernel_shape, shape, made.stride, pads, made.dilation
            )
            return _Matrix(kernel, bias.astype(np.float64), geometry)
        divisors = None
        if isinstance(operation, AveragePool):
            geometry = lowering.Convolution(
                (channels, 1, *operation.taps), shape, operation.stride, operation.pads(shape)
            )
            divisors = operation.divisors(shape)
        else:
            geometry = lowering.Convolution((channels, 1, 1, 1), shape)
        kernel = np.ones(geometry.kernel, np.float32)
        return _Matrix(kernel, np.zeros(channels), geometry, divisors)

    def _normalized(self, matrix: _Matrix, operation: BatchNorm) -> _Matrix:
        """Fold batch norm with its running statistics into a matrix, in float64."""
        weight, bias, mean, variance = (
            self._array(operation, name).astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        with np.errstate(all="ignore"):
            scale = weight / np.sqrt(variance + operation.epsilon)
            shift = bias - mean * scale
        wrong = ~(np.isfinite(scale) & np.isfinite(shift))
        if wrong.any():
            channel = int(np.argmax(wrong))
            raise InputError(
                f"network {self._graph.name}: {operation}: channel {channel} would be scaled by "
                f"{scale[channel]} and shifted by {shift[channel]}: both must be finite"
            )
        return _Matrix(
            matrix.kernel * scale[:, None, None, None],
            matrix.bias * scale + shift,
            matrix.geometry,
            matrix.divisors,
        )

    def _rows(self, matrix: _Matrix) -> CsrArrays:
        """Return the CSR arrays."""
        if isinstance(self._operation, FullyConnected):  # one pixel, and many weights: no copies
            return compress(lowering.kernel_matrix(matrix.kernel))
        kernel = matrix.kernel.astype(np.float32, copy=False)
        rows = lowering.toeplitz(kernel, matrix.geometry)
        if matrix.divisors is None:
            return rows
        divisors = np.tile(matrix.divisors.ravel(), matrix.geometry.output[0])
        values = rows.values / np.repeat(divisors, np.diff(rows.indptr))
        return CsrArrays(rows.indptr, rows.indices, values.astype(np.float32))

    def _array(self, operation: Operation, name: str) -> NDArray[Any]:
        """Return an array of an operation, checked."""
        parameter = self._graph.parameter(f"{operation.name}.{name}")
        array = self._arrays.get(parameter.name)
        if array is None:
            raise ShapeError(f"network {self._graph.name}: no array for '{parameter.name}'")
        if array.shape != parameter.shape or array.dtype not in (np.float32, np.float64):
            raise ShapeError(
                f"network {self._graph.name}: parameter '{parameter.name}' is {array.dtype} "
                f"{list(array.shape)}, expected float32 or float64 {list(parameter.shape)}"
            )
        return array
