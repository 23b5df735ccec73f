"""The whole network as one small partitioning problem: units, nets and links.

All layers together are one hypergraph: a vertex per neuron, and for neuron ``j`` a net with ``j``
itself (its owner) and all rows of the next layer that have a nonzero in column ``j``. Its
connectivity-1 cost is the number of words of the whole forward pass, exactly. Two things make it
small:

* rows of a layer with the same column pattern are always on the same side of every net: they move
  together as one *unit* (in pieces, where a whole group would be too heavy for the balance);
* columns with the same row pattern are nets with the same rows: they are kept once, as one *net*
  with a size, and a *link* says how many of its columns a unit of the layer before owns.

With ``Λ(C)`` the parts of the rows of net ``C`` and ``p(u)`` the part of unit ``u``::

    words = Σ_C size(C) · |Λ(C)| - Σ_links columns(u, C) · [p(u) ∈ Λ(C)] - (columns that are free)

Neurons without weights of their own (inputs, empty rows) are *free*: they do no work, so that
each is given to a part of its own net in the end, whatever the rest is; it then saves one word.
In the official Graph Challenge networks there are 16 rows to a unit and 16 columns to a net, so
the problem is about 256 times smaller than the network. In a network pruned without structure
every row is a unit, and every column a net.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.network import SparseNetwork
from sparsednn.partitioners.groups import NO_UNIT, numbered, pieces, row_groups
from sparsednn.partitioners.hypergraph import transposed_pattern
from sparsednn.patterns import equal_rows

__all__ = ["Arrays", "UnitModel"]


class Arrays(NamedTuple):
    """The problem as flat arrays; units and nets of all layers are numbered through.

    ``first_unit[k]:first_unit[k + 1]`` are layer ``k``'s units, ``first_net`` the same for nets.
    Compressed lists: ``unit_net`` (the nets of a unit's row), ``net_unit`` (the units of a net),
    ``link_net`` and ``link_columns`` (the next layer's nets in which a unit owns columns),
    ``owner_unit`` (the units of the layer before that own columns of a net).
    """

    first_unit: NDArray[np.int64]
    first_net: NDArray[np.int64]
    unit_ptr: NDArray[np.int64]
    unit_net: NDArray[np.int32]
    net_ptr: NDArray[np.int64]
    net_unit: NDArray[np.int32]
    link_ptr: NDArray[np.int64]
    link_net: NDArray[np.int32]
    link_columns: NDArray[np.int32]
    owner_ptr: NDArray[np.int64]
    owner_unit: NDArray[np.int32]
    net_size: NDArray[np.int32]
    unit_weight: NDArray[np.int64]


class UnitModel:
    """A network's units, nets and links.

    Parameters
    ----------
    network
        The network.
    groups
        `row_groups` of the network, where they are at hand.
    heaviest
        ``(n_layers,)``: the largest weight that a unit of each layer may have; heavier groups of
        equal rows are cut into pieces of nearly equal numbers of rows (one row at least). None:
        groups stay whole.

    Attributes
    ----------
    arrays
        `Arrays`.
    unit_of
        Per layer ``(n_out,)`` int32: the number (counted over all layers) of a row's unit.
    free_columns
        How many columns with a nonzero have a free owner.
    """

    def __init__(
        self,
        network: SparseNetwork,
        *,
        groups: Sequence[NDArray[np.int64]] | None = None,
        heaviest: Sequence[int] | None = None,
    ) -> None:
        groups = groups or row_groups(network)
        self.unit_of: list[NDArray[np.int32]] = []
        self.free_columns = 0
        parts: list[_LayerParts] = []
        n_units = n_nets = 0
        for k, layer in enumerate(network):
            limit = None if heaviest is None else heaviest[k]
            weights = np.diff(layer.indptr)
            unit_of, leaders, rows_of_unit = pieces(groups[k], weights, limit)
            pointers, rows = transposed_pattern(layer)
            column_class, class_columns = numbered(equal_rows(pointers, rows), np.diff(pointers))
            # A unit's row is its leader's; a net's columns are all like the first of the class.
            kept = np.zeros(layer.n_in, dtype=np.bool_)
            kept[class_columns] = True
            units, nets = _entries(layer.indptr, layer.indices, leaders, kept, column_class)
            link = np.zeros((3, 0), dtype=np.int64)
            if k:
                before, n_before = self.unit_of[-1], n_units - parts[-1].n_units
                owned = (before != NO_UNIT) & (column_class >= 0)
                keys = (before[owned] - n_before).astype(np.int64) * max(
                    class_columns.size, 1
                ) + column_class[owned]
                keys, count = np.unique(keys, return_counts=True)
                link = np.stack(
                    (keys // max(class_columns.size, 1) + n_before,
                     keys % max(class_columns.size, 1) + n_nets, count)
                )  # fmt: skip
                self.free_columns += int(
                    np.count_nonzero((before == NO_UNIT) & (column_class >= 0))
                )
            else:
                self.free_columns += int(np.count_nonzero(column_class >= 0))
            parts.append(
                _LayerParts(
                    leaders.size, class_columns.size, units + n_units, nets + n_nets, link,
                    np.bincount(column_class[column_class >= 0], minlength=class_columns.size),
                    weights[leaders] * rows_of_unit,
                )
            )  # fmt: skip
            unit_of[unit_of != NO_UNIT] += n_units
            self.unit_of.append(unit_of)
            n_units += leaders.size
            n_nets += class_columns.size
        self.arrays = _joined(parts)

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.unit_of)

    @property
    def n_units(self) -> int:
        """Number of units of all layers."""
        return self.arrays.unit_weight.size

    def labels_of(self, owners: Sequence[NDArray[np.int32]]) -> NDArray[np.int32] | None:
        """``(n_units,)`` int32: each unit's part, or None if a unit's rows are in several.

        Parameters
        ----------
        owners
            Per layer ``(n_out,)``: the part of each row (no entry for the inputs).
        """
        labels = np.zeros(self.n_units, dtype=np.int32)
        for unit_of, part in zip(self.unit_of, owners, strict=True):
            busy = unit_of != NO_UNIT
            labels[unit_of[busy]] = part[busy]
            if (labels[unit_of[busy]] != part[busy]).any():
                return None
        return labels

    def owners_of(self, labels: NDArray[np.int32]) -> list[NDArray[np.int32]]:
        """Per layer ``(n_out,)`` int32: the part of each row; `NO_UNIT` for free (empty) ones."""
        owners = []
        for unit_of in self.unit_of:
            part = np.full(unit_of.size, NO_UNIT, dtype=np.int32)
            busy = unit_of != NO_UNIT
            part[busy] = labels[unit_of[busy]]
            owners.append(part)
        return owners


class _LayerParts(NamedTuple):
    n_units: int
    n_nets: int
    units: NDArray[np.int64]
    nets: NDArray[np.int64]
    link: NDArray[np.int64]
    net_size: NDArray[np.int64]
    unit_weight: NDArray[np.int64]


def _entries(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    rows: NDArray[np.int64],
    kept: NDArray[np.bool_],
    column_class: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every nonzero of `rows` in a kept column: the place in `rows`, the column's class."""
    sizes = indptr[rows + 1] - indptr[rows]
    place = np.repeat(np.arange(rows.size), sizes)
    inside = np.arange(place.size) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    columns = indices[indptr[rows][place] + inside]
    chosen = kept[columns]
    return place[chosen], column_class[columns[chosen]]


def _compressed(
    major: NDArray[np.int64], minor: NDArray[np.int64], n: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """Pairs as compressed lists by `major`; also the order that sorted them."""
    order = np.argsort(major, kind="stable")
    pointers = np.zeros(n + 1, dtype=np.int64)
    np.cumsum(np.bincount(major, minlength=n), out=pointers[1:])
    return pointers, minor[order].astype(np.int32), order


def _joined(parts: Sequence[_LayerParts]) -> Arrays:
    first_unit = np.concatenate(([0], np.cumsum([p.n_units for p in parts])))
    first_net = np.concatenate(([0], np.cumsum([p.n_nets for p in parts])))
    n_units, n_nets = int(first_unit[-1]), int(first_net[-1])
    units = np.concatenate([p.units for p in parts])
    nets = np.concatenate([p.nets for p in parts])
    owner, owned, columns = np.concatenate([p.link for p in parts], axis=1)
    unit_ptr, unit_net, _ = _compressed(units, nets, n_units)
    net_ptr, net_unit, _ = _compressed(nets, units, n_nets)
    link_ptr, link_net, order = _compressed(owner, owned, n_units)
    owner_ptr, owner_unit, _ = _compressed(owned, owner, n_nets)
    return Arrays(
        first_unit,
        first_net,
        unit_ptr,
        unit_net,
        net_ptr,
        net_unit,
        link_ptr,
        link_net,
        columns[order].astype(np.int32),
        owner_ptr,
        owner_unit,
        np.concatenate([p.net_size for p in parts]).astype(np.int32),
        np.concatenate([p.unit_weight for p in parts]).astype(np.int64),
    )
