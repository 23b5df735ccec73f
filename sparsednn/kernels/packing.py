"""Plan once: a network's CSR layers rearranged into the blocks that the microkernel multiplies.

Rows with the same column pattern form a *group*; a group is cut into *blocks* of at most MAX_ROWS
rows (a power of two each), whose weights are stored column by column, the rows side by side. In the
official Graph Challenge networks 16 rows share each pattern; in a network pruned without structure
every row is a group of its own, and the plan degenerates to plain CSR.

Weights are copied, never merged: rows that happen to have equal weights are still all multiplied.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit, read_only
from sparsednn.activations import Activation
from sparsednn.kernels.microkernel import MAX_ROWS, PREFETCH_COLUMNS
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.patterns import equal_rows

__all__ = [
    "CLAMP",
    "SIGMOID",
    "SOFTMAX",
    "TANH",
    "PackedNetwork",
    "Rows",
    "bounds",
    "divide",
    "pack",
    "pack_rows",
]

#: Activation codes of the compiled loops. CLAMP covers identity, ReLU and clamped ReLU, which the
#: microkernel applies itself; the others are a second pass over the tile.
CLAMP, SIGMOID, TANH, SOFTMAX = 0, 1, 2, 3


class Rows(NamedTuple):
    """Rows to be packed: CSR arrays, each row's bias and its place in the output, the activation.

    A layer of a network is one of these; so is any part of its rows or columns. Values are weights
    (float32), or int32 numbers that stand for weights: then what is packed says where each went.
    """

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[Any]
    bias: NDArray[np.float32]
    target: NDArray[np.int32]
    code: int = CLAMP
    low: float = -float("inf")
    high: float = float("inf")


class PackedNetwork(NamedTuple):
    """All layers' blocks in flat arrays (numba takes a named tuple of arrays as it is).

    Layer l has groups ``layer_group[l]:layer_group[l+1]``; group g has the columns
    ``pattern[group_pattern[g]:group_pattern[g+1]]`` and the blocks
    ``group_block[g]:group_block[g+1]``; block b has the rows
    ``target[block_row[b]:block_row[b+1]]`` (and their `bias`) and its weights start at
    ``weight[block_weight[b]]``. `pattern` is longer than the last group by what the microkernel
    reads ahead.
    """

    layer_group: NDArray[np.int64]
    group_pattern: NDArray[np.int64]
    group_block: NDArray[np.int64]
    block_row: NDArray[np.int64]
    block_weight: NDArray[np.int64]
    pattern: NDArray[np.int32]
    target: NDArray[np.int32]
    bias: NDArray[np.float32]
    weight: NDArray[Any]  # float32; or int32 places of weights, see `Rows`
    width: NDArray[np.int64]  # neurons of the input and behind each layer, (layers + 1,)
    code: NDArray[np.int64]  # activation code of each layer
    low: NDArray[np.float32]
    high: NDArray[np.float32]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self)


@jit
def _copy_weights(
    indptr: NDArray[np.int64],
    values: NDArray[Any],
    source: NDArray[np.int64],
    block_row: NDArray[np.int64],
    weight: NDArray[Any],
) -> None:
    """Interleave the weights of each block's rows; `block_row` are offsets into `source`."""
    at = 0
    for b in range(block_row.size - 1):
        first, last = block_row[b], block_row[b + 1]
        start = indptr[source[first]]
        length = indptr[source[first] + 1] - start
        for k in range(length):
            for r in range(first, last):
                weight[at] = values[indptr[source[r]] + k]
                at += 1


def _block_sizes(rows: int) -> list[int]:
    """Cut a group into powers of two, the largest first.

    >>> _block_sizes(3)
    [2, 1]
    """
    sizes = [MAX_ROWS] * (rows // MAX_ROWS)
    rest = rows % MAX_ROWS
    size = MAX_ROWS
    while rest:
        size //= 2
        if rest >= size:
            sizes.append(size)
            rest -= size
    return sizes


def bounds(activation: Activation) -> tuple[int, float, float]:
    """Code, lower and upper bound of an activation."""
    inf = float("inf")
    match activation.kind:
        case "relu":
            return CLAMP, 0.0, inf
        case "clamped_relu":
            return CLAMP, 0.0, activation.limit or 0.0
        case "sigmoid":
            return SIGMOID, -inf, inf
        case "tanh":
            return TANH, -inf, inf
        case "softmax":
            return SOFTMAX, -inf, inf
        case _:
            return CLAMP, -inf, inf


class _Blocks(NamedTuple):
    source: NDArray[np.int64]  # rows in the order of the blocks
    block_size: NDArray[np.int64]
    blocks_of_group: NDArray[np.int64]
    pattern_length: NDArray[np.int64]
    pattern: NDArray[np.int32]


def _plan(rows: Rows, most: int | None) -> _Blocks:
    if rows.target.size == 0:
        none = np.empty(0, np.int64)
        return _Blocks(none, none, none, none, np.empty(0, np.int32))
    leader = equal_rows(rows.indptr, rows.indices)
    # Groups in the order of their first row, rows ascending within: neighbours stay neighbours.
    source = np.argsort(leader, kind="stable")
    leaders, sizes = np.unique(leader, return_counts=True)
    if most is not None:
        pieces = -(-sizes // most)
        last = np.cumsum(pieces) - 1
        rest = sizes - (pieces - 1) * most
        leaders, sizes = np.repeat(leaders, pieces), np.full(int(pieces.sum()), most)
        sizes[last] = rest
    cut = {int(size): _block_sizes(int(size)) for size in np.unique(sizes)}
    blocks_of = np.array([len(cut[int(size)]) for size in sizes], np.int64)
    block_size = np.concatenate([cut[int(size)] for size in sizes]).astype(np.int64)
    lengths = rows.indptr[leaders + 1] - rows.indptr[leaders]
    # The leaders' column lists one behind another: a ragged gather without a Python loop.
    ends = np.cumsum(lengths)
    position = np.arange(int(ends[-1])) + np.repeat(
        rows.indptr[leaders] - (ends - lengths), lengths
    )
    return _Blocks(source, block_size, blocks_of, lengths, rows.indices[position])


def _offsets(counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    flat = np.concatenate(counts)
    result = np.zeros(flat.size + 1, np.int64)
    np.cumsum(flat, out=result[1:])
    return result


def pack(network: SparseNetwork) -> PackedNetwork:
    """Arrange all layers of a network into blocks; takes about 4 bytes per edge more."""
    return pack_rows(
        (_layer_rows(layer) for layer in network),
        [network.n_in, *(layer.n_out for layer in network)],
        network.edges,
    )


def _layer_rows(layer: SparseLayer) -> Rows:
    """All rows of a layer."""
    places = np.arange(layer.n_out, dtype=np.int32)
    limits = bounds(layer.activation)
    return Rows(layer.indptr, layer.indices, layer.values, layer.bias, places, *limits)


def pack_rows(
    parts: Iterable[Rows],
    width: Iterable[int],
    edges: int,
    *,
    dtype: type[np.float32] | type[np.int32] = np.float32,
    group_rows: int | None = None,
) -> PackedNetwork:
    """Arrange rows into blocks, each of `parts` like a layer of its own.

    Parameters
    ----------
    parts
        Taken one by one, and not kept: nobody has to have all of them at once. There may be some
        without rows.
    width
        Kept as it is.
    edges
        Weights of all parts together.
    dtype
        Of the values.
    group_rows
        Cut groups into such of at most so many rows, for whoever divides groups among threads.
    """
    weight = np.empty(edges + PREFETCH_COLUMNS * MAX_ROWS, dtype)  # room to read ahead
    weight[edges:] = 0
    weight = weight[:edges]
    plans: list[_Blocks] = []
    targets, biases, block_weights, limits = [], [], [], []
    at = 0
    for part in parts:
        plan = _plan(part, group_rows)
        _copy_weights(
            read_only(part.indptr),
            read_only(part.values),
            plan.source,
            _offsets([plan.block_size]),
            weight[at : at + part.values.size],
        )
        length_of_block = np.repeat(plan.pattern_length, plan.blocks_of_group)
        ends = np.cumsum(length_of_block * plan.block_size)
        block_weights.append(at + ends - length_of_block * plan.block_size)
        at += part.values.size
        targets.append(part.target[plan.source])
        biases.append(part.bias[plan.source])
        limits.append((part.code, part.low, part.high))
        plans.append(plan)
    code, low, high = zip(*limits, strict=True)
    return PackedNetwork(
        layer_group=_offsets([np.array([plan.pattern_length.size]) for plan in plans]),
        group_pattern=_offsets([plan.pattern_length for plan in plans]),
        group_block=_offsets([plan.blocks_of_group for plan in plans]),
        block_row=_offsets([plan.block_size for plan in plans]),
        block_weight=np.concatenate(block_weights),
        pattern=np.concatenate(
            [*(plan.pattern for plan in plans), np.zeros(PREFETCH_COLUMNS, np.int32)]
        ),
        target=np.concatenate(targets),
        bias=np.concatenate(biases),
        weight=weight,
        width=np.array(list(width), np.int64),
        code=np.array(code, np.int64),
        low=np.array(low, np.float32),
        high=np.array(high, np.float32),
    )


def divide(packed: PackedNetwork, threads: int) -> PackedNetwork:
    """Cut every part into `threads` consecutive ones of about equally many weights.

    Part p becomes the parts ``p * threads`` to ``(p + 1) * threads - 1``, perhaps without groups;
    arrays are shared.
    """
    if threads == 1:
        return packed
    length = np.diff(packed.group_pattern)
    rows = packed.block_row[packed.group_block]
    weights = np.zeros(length.size + 1, np.int64)
    # A group costs its weights, and a little for itself: rows without weights are written, too.
    np.cumsum(length * np.diff(rows) + 4, out=weights[1:])
    first, last = weights[packed.layer_group[:-1]], weights[packed.layer_group[1:]]
    share = np.arange(threads) / threads
    targets = first[:, None] + (last - first)[:, None] * share
    cuts = np.searchsorted(weights, targets.reshape(-1)).reshape(targets.shape)
    cuts = np.clip(cuts, packed.layer_group[:-1, None], packed.layer_group[1:, None])
    return packed._replace(
        layer_group=np.append(cuts.reshape(-1), packed.layer_group[-1]),
        code=np.repeat(packed.code, threads),
        low=np.repeat(packed.low, threads),
        high=np.repeat(packed.high, threads),
    )
