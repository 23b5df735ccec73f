"""Plan once: rows of a layer rearranged into the bundles that a team of GPU threads multiplies.

A *bundle* is 8, 4, 2 or 1 rows that have the same columns (the same idea as the blocks of
`sparsednn.kernels.packing`, with sizes that do not depend on the host). Bundles of one size stand
together, long ones first, so that the threads of a warp do the same. All layers of a network lie
one behind another in the same arrays; a table says where each begins. The kernels read exactly this
(``sources/product.cuh``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit, read_only
from sparsednn.errors import ShapeError
from sparsednn.kernels.packing import Rows
from sparsednn.patterns import equal_rows

__all__ = [
    "ALIGNED",
    "BUNDLE_ROWS",
    "FIELDS",
    "PackedLayer",
    "densified",
    "index_dtype",
    "pack_layer",
    "tables",
]

#: Rows of a bundle, in the order in which bundles stand.
BUNDLE_ROWS = (8, 4, 2, 1)

#: Patterns and weights of a bundle begin at a multiple of so many elements: vectors are loaded.
ALIGNED = 8

#: Columns of the table of layers, as ``enum Field`` in ``product.cuh``; 16 with what is reserved.
FIELDS = (
    "bundle_first", "index_first", "weight_first", "row_first",
    "ends_8", "ends_4", "ends_2", "ends_1",
    "n_in", "n_out", "code", "add", "wide_entry", "wide_above",
)  # fmt: skip
_TABLE_WIDTH = 16
_MOST = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True, eq=False)
class PackedLayer:
    """One layer's bundles, in host memory.

    Attributes
    ----------
    bundle
        ``(bundles, 4)`` int32: where pattern begins in `index`, its connections, where the weights
        begin, and the rows in `row`.
    index
        Patterns, uint16 or uint32; padded to `ALIGNED` elements each (with zeros, never used).
    weight
        Like ``Rows.values``: the R weights of a bundle's connection side by side; padded likewise.
    row, bias
        ``(rows,)`` int32 and float32: line of the output, and bias, in the order of the bundles.
    ends
        How many bundles have 8, at least 4, at least 2, at least 1 rows.
    n_in, n_out
        Lines of the input that may be read, and of the output that may be written.
    code, low, high
        The activation, see `sparsednn.kernels.packing`.
    add
        Whether sums start from what the output holds.
    edges
        Weights without padding.
    """

    bundle: NDArray[np.int32]
    index: NDArray[Any]
    weight: NDArray[Any]
    row: NDArray[np.int32]
    bias: NDArray[np.float32]
    ends: tuple[int, int, int, int]
    n_in: int
    n_out: int
    code: int
    low: float
    high: float
    add: bool
    edges: int

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        arrays = (self.bundle, self.index, self.weight, self.row, self.bias)
        return sum(array.nbytes for array in arrays)


def index_dtype(lines: int) -> type[np.uint16] | type[np.uint32]:
    """Smallest type that numbers so many lines: two bytes up to 65536 neurons."""
    return np.uint16 if lines <= 1 << 16 else np.uint32


@jit
def _fill(
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    values: NDArray[Any],
    rows: NDArray[np.int64],
    bundle: NDArray[np.int32],
    sizes: NDArray[np.int64],
    leads: NDArray[np.uint8],
    index: NDArray[Any],
    weight: NDArray[Any],
) -> None:
    """Copy patterns (from the bundles that lead their group) and interleave weights."""
    for b in range(bundle.shape[0]):
        pattern, connections, at, first = bundle[b]
        if leads[b]:
            begin = indptr[rows[first]]
            for k in range(connections):
                index[pattern + k] = indices[begin + k]
        for r in range(sizes[b]):
            begin = indptr[rows[first + r]]
            for k in range(connections):
                weight[at + k * sizes[b] + r] = values[begin + k]


def _padded(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return -(-counts // ALIGNED) * ALIGNED


def _before(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where items of these sizes begin, one behind another."""
    return np.cumsum(counts) - counts


def pack_layer(
    rows: Rows, n_in: int, n_out: int, *, indices: type[Any] | None = None, add: bool = False
) -> PackedLayer:
    """Arrange rows into bundles.

    Parameters
    ----------
    rows
        CSR rows with ascending columns; columns are lines of the input tile, targets lines of the
        output. Rows without weights are kept: their output is f(bias).
    n_in, n_out
        Lines of input and output.
    indices
        Type of the patterns; by default the smallest for `n_in`.
    add
        See `PackedLayer`.

    Raises
    ------
    ShapeError
        If the layer has more than 2³¹ - 1 weights, padding included.
    """
    count = rows.target.size
    kind = indices or index_dtype(n_in)
    lengths = np.diff(rows.indptr)
    leader = equal_rows(rows.indptr, rows.indices)
    source = np.argsort(leader, kind="stable")
    leaders, sizes = np.unique(leader, return_counts=True)
    sizes = sizes.astype(np.int64)
    first = _before(sizes)
    length = lengths[leaders] if count else np.zeros(0, np.int64)
    pattern = _before(_padded(length))

    group_of, start_of, size_of, ends = [], [], [], []
    taken = np.zeros_like(sizes)
    for size in BUNDLE_ROWS:
        times = sizes // size if size == BUNDLE_ROWS[0] else (sizes & size) // size
        group = np.repeat(np.arange(sizes.size), times)
        turn = np.arange(group.size) - np.repeat(_before(times), times)
        order = np.argsort(-length[group], kind="stable")
        group_of.append(group[order])
        start_of.append((first[group] + taken[group] + turn * size)[order])
        size_of.append(np.full(group.size, size, np.int64))
        taken += times * size
        ends.append(sum(part.size for part in group_of))
    group, start, bundle_size = map(np.concatenate, (group_of, start_of, size_of))
    connections = length[group]
    weight_at = _before(_padded(connections * bundle_size))
    row_at = _before(bundle_size)
    used = int(_padded(connections * bundle_size).sum()), int(_padded(length).sum())
    if max(used) > _MOST:
        raise ShapeError(f"a layer of {used[0]} weights is too large for the GPU's kernels")
    bundle = np.stack([pattern[group], connections, weight_at, row_at], axis=1).astype(np.int32)
    ordered = source[np.repeat(start - row_at, bundle_size) + np.arange(count)]
    leads = np.zeros(group.size, np.uint8)
    leads[np.unique(group, return_index=True)[1]] = 1
    index = np.zeros(used[1], kind)
    weight = np.zeros(used[0], rows.values.dtype)
    _fill(
        read_only(rows.indptr), read_only(rows.indices), read_only(rows.values), ordered, bundle,
        bundle_size, leads, index, weight,
    )  # fmt: skip
    return PackedLayer(
        bundle=bundle,
        index=index,
        weight=weight,
        row=rows.target[ordered].astype(np.int32),
        bias=rows.bias[ordered].astype(np.float32),
        ends=(ends[0], ends[1], ends[2], ends[3]),
        n_in=n_in,
        n_out=n_out,
        code=rows.code,
        low=rows.low,
        high=rows.high,
        add=add,
        edges=rows.values.size,
    )


def densified(rows: Rows, n_in: int) -> Rows:
    """Return the same rows with every column stored: then all of them share one pattern."""
    count = rows.target.size
    values = np.zeros((count, n_in), rows.values.dtype)
    values[np.repeat(np.arange(count), np.diff(rows.indptr)), rows.indices] = rows.values
    return rows._replace(
        indptr=np.arange(count + 1, dtype=np.int64) * n_in,
        indices=np.tile(np.arange(n_in, dtype=np.int32), count),
        values=values.reshape(-1),
    )


def tables(
    layers: Sequence[PackedLayer], wide: dict[int, tuple[int, int]] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the table of layers ``(layers, 16)`` and the activations' bounds ``(layers, 2)``.

    Parameters
    ----------
    layers
        In the order in which their arrays lie one behind another.
    wide
        For some layers the number of another form of them, and from how many columns on (exclusive)
        that one is used.
    """
    table = np.zeros((len(layers), _TABLE_WIDTH), np.int64)
    limits = np.zeros((len(layers), 2), np.float32)
    at = np.zeros(4, np.int64)
    for number, layer in enumerate(layers):
        entry, above = (wide or {}).get(number, (number, np.iinfo(np.int64).max))
        table[number, : len(FIELDS)] = (
            *at, *layer.ends, layer.n_in, layer.n_out, layer.code, layer.add, entry, above
        )  # fmt: skip
        limits[number] = layer.low, layer.high
        at += (layer.bundle.shape[0], layer.index.size, layer.weight.size, layer.row.size)
    return table, limits
