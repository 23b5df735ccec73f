"""The model: `SparseLayer` and `SparseNetwork`, the objects that everything else takes.

A layer is a sparse matrix in CSR form whose rows are the output neurons, so a row-wise
partition of the network is a slice of rows. This module knows NumPy only: no file format, no
kernel, no MPI, and SciPy not before somebody asks for a SciPy matrix (``inspect`` stays fast).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn._compressed import as_int32, check_compressed
from sparsednn.activations import Activation
from sparsednn.errors import InputError, ShapeError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = [
    "LayerSummary",
    "NetworkDigest",
    "NetworkSummary",
    "Shaped",
    "SparseLayer",
    "SparseNetwork",
    "check_chain",
    "first_droppable",
]

IndexArray = NDArray[np.int32] | NDArray[np.int64]


class SparseLayer:
    """One layer: a float32 CSR matrix ``(n_out, n_in)``, a bias ``(n_out,)``, an activation.

    Computes ``y = f(W x + b)`` on activations of shape ``(n_in, batch)``.

    Parameters
    ----------
    indptr, indices, values
        CSR arrays: ``(n_out + 1,)``, ``(nnz,)``, ``(nnz,)``. Columns ascend within a row, with no
        duplicates. They are converted to int64, int32 and float32 if they are not that already,
        otherwise shared, not copied: the caller must not change them afterwards.
    n_in
        Number of input neurons (columns), below 2**31.
    bias
        ``(n_out,)``, or one number for all rows.
    activation
        An `Activation` or its written form.
    check
        Walk through the arrays and reject what a kernel could not survive. Pass False only for
        arrays that were just made by code that guarantees it.

    Raises
    ------
    ShapeError
        If the arrays do not fit together, or an index is out of range.
    InputError
        If columns are not ascending (or duplicated), or a weight or bias is NaN or infinite.
    """

    __slots__ = ("activation", "bias", "indices", "indptr", "n_in", "values")

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    bias: NDArray[np.float32]
    n_in: int
    activation: Activation

    def __init__(
        self,
        indptr: ArrayLike,
        indices: ArrayLike,
        values: ArrayLike,
        n_in: int,
        *,
        bias: ArrayLike = 0.0,
        activation: Activation | str = "identity",
        check: bool = True,
    ) -> None:
        self.indptr = np.ascontiguousarray(indptr, dtype=np.int64)
        if check and n_in >= 2**31:
            raise ShapeError(f"a layer has at most 2^31 - 1 input neurons, found {n_in}")
        self.indices = as_int32(indices, n_in, "column")
        self.values = np.ascontiguousarray(values, dtype=np.float32)
        self.n_in = int(n_in)
        if isinstance(activation, str):
            activation = Activation.parse(activation)
        self.activation = activation
        full = np.asarray(bias, dtype=np.float32)
        if full.ndim == 0:
            full = np.full(max(self.indptr.size - 1, 0), full, dtype=np.float32)
        self.bias = np.ascontiguousarray(full)
        if check:
            self._check()

    def _check(self) -> None:
        if self.indptr.ndim != 1 or self.indptr.size < 2:
            raise ShapeError(f"indptr must have n_out + 1 >= 2 entries, shape {self.indptr.shape}")
        if self.n_in < 1:
            raise ShapeError(f"a layer needs at least one input neuron, found {self.n_in}")
        if self.bias.shape != (self.n_out,):
            raise ShapeError(f"bias has shape {self.bias.shape}, the layer has {self.n_out} rows")
        if not np.isfinite(self.bias).all():
            row = int(np.argmin(np.isfinite(self.bias)))
            raise InputError(f"bias of row {row} is {self.bias[row]}: it must be finite")
        check_compressed(
            self.indptr,
            self.indices,
            self.values,
            self.n_in,
            major="row",
            minor="column",
            value=lambda row, column: f"weight ({row}, {column})",
        )

    @classmethod
    def from_scipy(
        cls, matrix: Any, *, bias: ArrayLike = 0.0, activation: Activation | str = "identity"
    ) -> SparseLayer:
        """Make a layer of any SciPy sparse matrix or array ``(n_out, n_in)``.

        Columns are sorted. Duplicate entries are an error, not a sum; stored zeros are kept.
        """
        csr = matrix.tocsr()
        if not csr.has_sorted_indices:
            csr = csr.sorted_indices()
        if csr.nnz != matrix.nnz:  # a COO matrix: SciPy has added up entries of the same place
            raise InputError(f"{matrix.nnz - csr.nnz} entries of the matrix are there twice")
        return cls(
            csr.indptr, csr.indices, csr.data, csr.shape[1], bias=bias, activation=activation
        )

    @property
    def n_out(self) -> int:
        """Number of output neurons (rows)."""
        return self.indptr.size - 1

    @property
    def shape(self) -> tuple[int, int]:
        """``(n_out, n_in)``."""
        return self.n_out, self.n_in

    @property
    def nnz(self) -> int:
        """Number of stored weights (edges)."""
        return self.values.size

    @property
    def weight(self) -> csr_array:
        """The weights as a SciPy CSR array that shares this layer's memory."""
        from scipy.sparse import csr_array

        return csr_array((self.values, self.indices, self.indptr), shape=self.shape)

    @property
    def keeps_zero(self) -> bool:
        """Whether a column of zeros stays one, so that dead columns may be dropped here."""
        return self.activation.keeps_zero(self.bias)

    @property
    def summary(self) -> LayerSummary:
        """Shape, nonzeros and activation."""
        low, high = float(self.bias.min()), float(self.bias.max())
        return LayerSummary(self.n_out, self.n_in, self.nnz, str(self.activation), low, high)

    def __repr__(self) -> str:
        """Return shape, nonzeros and activation."""
        return f"SparseLayer({self.n_out}×{self.n_in}, nnz={self.nnz}, {self.activation})"


class Shaped(Protocol):
    """What a chain is checked by: a layer's sizes and activation, its weights or not."""

    @property
    def n_out(self) -> int:
        """Number of output neurons."""

    @property
    def n_in(self) -> int:
        """Number of input neurons."""

    @property
    def activation(self) -> Activation:
        """What follows the product."""


def check_chain(layers: Sequence[Shaped], name: str) -> None:
    """Refuse layers that are no network; `name` is the network's, for messages.

    Raises
    ------
    ShapeError
        If there is no layer, or a layer's inputs are not the layer before's outputs.
    InputError
        If softmax stands anywhere but in the last layer.
    """
    if not layers:
        raise ShapeError(f"network '{name}' has no layers")
    for i, (before, after) in enumerate(itertools.pairwise(layers), 1):
        if before.n_out != after.n_in:
            raise ShapeError(
                f"network '{name}': layer {i} has shape {(before.n_out, before.n_in)}, "
                f"layer {i + 1} has shape {(after.n_out, after.n_in)}: "
                f"{before.n_out} outputs do not fit {after.n_in} inputs"
            )
        if before.activation.kind == "softmax":
            raise InputError(
                f"network '{name}': softmax in layer {i} of {len(layers)}; "
                "only the last layer may have it"
            )


def first_droppable(keep_zero: Sequence[bool]) -> int:
    """Index of the first layer from which every layer keeps zero at zero.

    Examples
    --------
    >>> first_droppable([True, False, True, True])
    2
    >>> first_droppable([True, False])
    2
    """
    first = len(keep_zero)
    while first and keep_zero[first - 1]:
        first -= 1
    return first


class NetworkDigest:
    """The content hash of a network, layer by layer, so that no more than one has to be there.

    SHA-256 over shapes, pattern, weights, biases and activations in a fixed byte order and width.
    With `pattern_only`, over shapes and pattern: training leaves that as it is.
    """

    __slots__ = ("_digest", "_pattern_only")

    def __init__(self, *, pattern_only: bool = False) -> None:
        self._pattern_only = pattern_only
        kind = b"sparsednn-pattern-1" if pattern_only else b"sparsednn-network-1"
        self._digest = hashlib.sha256(kind)

    def add(self, layer: SparseLayer) -> None:
        """Take in the next layer; it is not kept."""
        head = f"|{layer.n_out}x{layer.n_in}:{layer.nnz}"
        head += "|" if self._pattern_only else f":{layer.activation}|"
        self._digest.update(head.encode())
        arrays: list[tuple[NDArray[Any], str]] = [(layer.indptr, "<i8"), (layer.indices, "<i4")]
        if not self._pattern_only:
            arrays += [(layer.values, "<f4"), (layer.bias, "<f4")]
        for array, dtype in arrays:
            self._digest.update(np.ascontiguousarray(array, dtype=dtype).data)

    def hexdigest(self) -> str:
        """Return the hash of all layers so far; of all layers it is `SparseNetwork.hash`."""
        return self._digest.hexdigest()


def bytes_once(arrays: Iterable[NDArray[Any]]) -> int:
    """Bytes of arrays of which some may be the same one; that counts once."""
    return sum({array.ctypes.data: array.nbytes for array in arrays if array.size}.values())


class SparseNetwork(Sequence[SparseLayer]):
    """A chain of layers; behaves as a sequence of `SparseLayer`.

    Raises
    ------
    ShapeError
        If there is no layer, or a layer's inputs are not the layer before's outputs.
    InputError
        If softmax stands anywhere but in the last layer.
    """

    def __init__(self, layers: Sequence[SparseLayer], *, name: str = "network") -> None:
        self.layers = tuple(layers)
        self.name = name
        check_chain(self.layers, name)

    def __len__(self) -> int:
        """Number of layers."""
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """Layer `index`, or a tuple of layers for a slice."""
        return self.layers[index]

    def __iter__(self) -> Iterator[SparseLayer]:
        """Iterate over the layers, from the input to the output."""
        return iter(self.layers)

    @property
    def n_in(self) -> int:
        """Number of input neurons of the first layer."""
        return self.layers[0].n_in

    @property
    def n_out(self) -> int:
        """Number of output neurons of the last layer."""
        return self.layers[-1].n_out

    @property
    def edges(self) -> int:
        """Stored weights of all layers; the challenge's rate counts these per image."""
        return sum(layer.nnz for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays of all layers take; what layers share counts once."""
        return bytes_once(
            array
            for layer in self.layers
            for array in (layer.indptr, layer.indices, layer.values, layer.bias)
        )

    @cached_property
    def droppable_from(self) -> int:
        """First layer index from which every layer keeps zero at zero.

        A column that is dead behind layer ``i >= droppable_from - 1`` ends as zeros whatever
        follows, so it may be dropped there. ``len(self)`` if not even the last layer keeps zero.
        """
        return first_droppable([layer.keeps_zero for layer in self.layers])

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the content: what identifies the network whatever file it came from.

        See `NetworkDigest`; neither the name nor the file format changes it.
        """
        digest = NetworkDigest()
        for layer in self.layers:
            digest.add(layer)
        return digest.hexdigest()

    @cached_property
    def pattern_hash(self) -> str:
        """SHA-256 of shapes and pattern only: what a partition depends on. See `NetworkDigest`."""
        digest = NetworkDigest(pattern_only=True)
        for layer in self.layers:
            digest.add(layer)
        return digest.hexdigest()

    @property
    def summary(self) -> NetworkSummary:
        """What ``inspect`` prints."""
        return NetworkSummary(
            self.name, tuple(layer.summary for layer in self.layers), self.nbytes, self.hash
        )

    def __repr__(self) -> str:
        """Return name, widths and edges."""
        return (
            f"SparseNetwork('{self.name}', {len(self)} layers, "
            f"{self.n_in} -> {self.n_out}, edges={self.edges})"
        )


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """Shape, nonzeros, activation and bias range of one layer."""

    n_out: int
    n_in: int
    nnz: int
    activation: str
    bias_min: float
    bias_max: float

    @property
    def density(self) -> float:
        """Stored weights over ``n_out * n_in``."""
        return self.nnz / (self.n_out * self.n_in)


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """What is known of a network without touching its weights; ``nbytes`` is in bytes.

    ``hash`` is None where it would have to be computed from weights that were not read.
    """

    name: str
    layers: tuple[LayerSummary, ...]
    nbytes: int
    hash: str | None
