"""The hypergraph of one layer: what a partitioner is given.

The model is that of Demirci & Ferhatosmanoglu (ICS 2021, arXiv 2104.11805): a vertex per row of
the layer (weight: its nonzeros), a net per column with the rows that have a nonzero there, and one
fixed vertex per part that stands for the ranks that own something already. The connectivity-1
cost of a partition is then exactly the number of words that the ranks send. This module knows
arrays only: no native library, no chain of layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, ShapeError
from sparsednn.network import SparseLayer

__all__ = ["FREE", "Hypergraph", "layer_hypergraph", "parts_of_nets", "transposed_pattern"]

FREE = -1
"""In `Hypergraph.fixed`: the vertex may go to any part."""


@dataclass(frozen=True, slots=True)
class Hypergraph:
    """Vertices with weights, nets with weights, and where fixed vertices must be.

    Attributes
    ----------
    net_ptr
        ``(n_nets + 1,)`` int64: the pins of net ``e`` are ``pins[net_ptr[e]:net_ptr[e + 1]]``.
    pins
        ``(n_pins,)`` int32 vertex numbers; no vertex twice in a net. Nets of no or one pin are
        legal (they cost nothing).
    vertex_weights
        ``(n_vertices,)`` int64, not negative: work.
    net_weights
        ``(n_nets,)`` int64, positive: words.
    fixed
        ``(n_vertices,)`` int32: the part of a fixed vertex, `FREE` for the others.
    """

    net_ptr: NDArray[np.int64]
    pins: NDArray[np.int32]
    vertex_weights: NDArray[np.int64]
    net_weights: NDArray[np.int64]
    fixed: NDArray[np.int32]

    @property
    def n_vertices(self) -> int:
        """Number of vertices, fixed ones included."""
        return self.vertex_weights.size

    @property
    def n_nets(self) -> int:
        """Number of nets."""
        return self.net_weights.size

    @property
    def n_pins(self) -> int:
        """Number of pins of all nets."""
        return self.pins.size

    def check(self, parts: int) -> None:
        """Reject what a native partitioner could hang or crash on.

        Raises
        ------
        ShapeError
            If arrays do not fit together, a pin or a fixed part is out of range.
        InputError
            If a weight is not in range, or a net has a vertex twice.
        """
        pointers = self.net_ptr
        if pointers.ndim != 1 or pointers.size != self.n_nets + 1 or pointers[0] != 0:
            raise ShapeError(
                f"hypergraph: net_ptr has shape {pointers.shape} for {self.n_nets} nets, "
                "or does not start at 0"
            )
        sizes = np.diff(pointers)
        if (sizes < 0).any() or pointers[-1] != self.n_pins:
            raise ShapeError(
                f"hypergraph: net_ptr must ascend to the number of pins, {self.n_pins}, "
                f"found {int(pointers[-1])} at its end"
            )
        if self.fixed.shape != self.vertex_weights.shape:
            raise ShapeError(
                f"hypergraph: fixed has shape {self.fixed.shape}, there are {self.n_vertices} "
                "vertices"
            )
        if self.n_pins and not 0 <= int(self.pins.min()) <= int(self.pins.max()) < self.n_vertices:
            raise ShapeError(f"hypergraph: a pin is outside the {self.n_vertices} vertices")
        if self.n_vertices and not FREE <= int(self.fixed.min()) <= int(self.fixed.max()) < parts:
            raise ShapeError(f"hypergraph: a vertex is fixed to a part outside 0 to {parts - 1}")
        if (self.vertex_weights < 0).any():
            raise InputError("hypergraph: a vertex has a negative weight")
        if (self.net_weights <= 0).any():
            raise InputError("hypergraph: a net has a weight below 1")
        nets = np.repeat(np.arange(self.n_nets), sizes)
        keys = np.sort(nets * max(self.n_vertices, 1) + self.pins)
        if keys.size and (keys[1:] == keys[:-1]).any():
            net = int(keys[:-1][keys[1:] == keys[:-1]][0]) // self.n_vertices
            raise InputError(f"hypergraph: net {net} has a vertex twice")

    def connectivity_cost(self, labels: NDArray[Any], parts: int) -> int:
        """Connectivity-1: the sum over nets of weight × (number of its parts - 1).

        Parameters
        ----------
        labels
            ``(n_vertices,)``: the part of each vertex.
        parts
            Number of parts.
        """
        touched = parts_of_nets(self.net_ptr, self.pins, labels, parts)
        spread = np.maximum(np.count_nonzero(touched, axis=1) - 1, 0)
        return int(spread @ self.net_weights)

    def part_weights(self, labels: NDArray[Any], parts: int) -> NDArray[np.int64]:
        """``(parts,)`` int64: the weight of the vertices of each part."""
        weights = np.zeros(parts, dtype=np.int64)
        np.add.at(weights, labels, self.vertex_weights)
        return weights


def parts_of_nets(
    net_ptr: NDArray[np.int64], pins: NDArray[np.int32], labels: NDArray[Any], parts: int
) -> NDArray[np.bool_]:
    """``(n_nets, parts)`` bool: whether a net has a pin in a part."""
    touched = np.zeros((net_ptr.size - 1, parts), dtype=np.bool_)
    touched[np.repeat(np.arange(net_ptr.size - 1), np.diff(net_ptr)), labels[pins]] = True
    return touched


def transposed_pattern(layer: SparseLayer) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """The pattern of a layer by columns.

    Returns
    -------
    pointers, rows
        ``(n_in + 1,)`` int64 and ``(nnz,)`` int32: ``rows[pointers[j]:pointers[j + 1]]`` are the
        rows with a nonzero in column ``j``, ascending.
    """
    pointers = np.zeros(layer.n_in + 1, dtype=np.int64)
    np.cumsum(np.bincount(layer.indices, minlength=layer.n_in), out=pointers[1:])
    rows = np.repeat(np.arange(layer.n_out, dtype=np.int32), np.diff(layer.indptr))
    # A stable sort by column keeps the rows ascending.
    return pointers, rows[np.argsort(layer.indices, kind="stable")]


def layer_hypergraph(
    layer: SparseLayer,
    parts: int,
    *,
    owners: NDArray[Any] | None = None,
    following: NDArray[Any] | None = None,
) -> Hypergraph:
    """The hypergraph whose connectivity-1 cost is the words that this layer's rows cause.

    Vertices ``0 … n_out - 1`` are the rows. If something is given, vertices ``n_out … n_out +
    parts - 1`` follow, of weight 0, fixed to their part.

    Parameters
    ----------
    layer
        The layer.
    parts
        Number of parts, K.
    owners
        ``(n_in,)``: the part that owns each input of this layer. Fixed vertex ``owners[j]`` then
        is a pin of net ``j``. `FREE`, or None for all: nobody owns it yet, and whoever will can be
        one of the net's parts, so that connectivity-1 is right without it.
    following
        ``(n_out, parts)`` bool, or whole numbers: the parts that need each output of this layer
        in the next one, or how many words they need. For each there is a net of the row and that
        part's fixed vertex, with these words as its weight: cut, unless the row is there. None:
        not known yet.

    Returns
    -------
    Hypergraph
        Net ``j < n_in`` is column ``j``; then come those of `following`.
    """
    pointers, rows = transposed_pattern(layer)
    sizes = np.diff(pointers)
    n_fixed = parts if owners is not None or following is not None else 0
    if owners is None:
        pins = rows
    else:
        if owners.shape != (layer.n_in,):
            raise ShapeError(f"owners have shape {owners.shape}, the layer {layer.shape}")
        owned = owners != FREE
        pins = np.empty(rows.size + int(np.count_nonzero(owned)), dtype=np.int32)
        last = (pointers[1:] + np.cumsum(owned) - 1)[owned]  # the place behind each net's rows
        own = np.ones(pins.size, dtype=np.bool_)
        own[last] = False
        pins[own] = rows
        pins[last] = layer.n_out + owners[owned]
        sizes = sizes + owned
    needed = np.ones(layer.n_in, dtype=np.int64)
    if following is not None:
        if following.shape != (layer.n_out, parts):
            raise ShapeError(
                f"the next layer's parts have shape {following.shape}, "
                f"expected {(layer.n_out, parts)}"
            )
        row, part = np.nonzero(following)
        pairs = np.column_stack((row, layer.n_out + part)).astype(np.int32)
        pins = np.concatenate((pins, pairs.ravel()))
        sizes = np.concatenate((sizes, np.full(row.size, 2)))
        needed = np.concatenate((needed, following[row, part].astype(np.int64)))
    net_ptr = np.zeros(sizes.size + 1, dtype=np.int64)
    np.cumsum(sizes, out=net_ptr[1:])
    weights = np.zeros(layer.n_out + n_fixed, dtype=np.int64)
    weights[: layer.n_out] = np.diff(layer.indptr)
    fixed = np.full(layer.n_out + n_fixed, FREE, dtype=np.int32)
    fixed[layer.n_out :] = np.arange(n_fixed)
    return Hypergraph(net_ptr, pins, weights, needed, fixed)
