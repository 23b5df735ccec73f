"""Plan once: a network's CSR layers rearranged into the blocks that the microkernel multiplies.

Rows with the same column pattern form a *group*; a group is cut into *blocks* of at most MAX_ROWS
rows (a power of two each), whose weights are stored column by column, the rows side by side. In the
official Graph Challenge networks 16 rows share each pattern; in a network pruned without structure
every row is a group of its own, and the plan degenerates to plain CSR.

Weights are copied, never merged: rows that happen to have equal weights are still all multiplied.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit, read_only
from sparsednn.kernels.microkernel import MAX_ROWS, PREFETCH_COLUMNS
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.patterns import equal_rows

__all__ = ["PackedNetwork", "pack"]

#: Activation codes of the compiled loops. CLAMP covers identity, ReLU and clamped ReLU, which the
#: microkernel applies itself; the others are a second pass over the tile.
CLAMP, SIGMOID, TANH, SOFTMAX = 0, 1, 2, 3


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
    weight: NDArray[np.float32]
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
    values: NDArray[np.float32],
    target: NDArray[np.int32],
    block_row: NDArray[np.int64],
    weight: NDArray[np.float32],
) -> None:
    """Interleave the weights of each block's rows; `block_row` are offsets into `target`."""
    at = 0
    for b in range(block_row.size - 1):
        first, last = block_row[b], block_row[b + 1]
        start = indptr[target[first]]
        length = indptr[target[first] + 1] - start
        for k in range(length):
            for r in range(first, last):
                weight[at] = values[indptr[target[r]] + k]
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


def _bounds(layer: SparseLayer) -> tuple[int, float, float]:
    inf = float("inf")
    match layer.activation.kind:
        case "relu":
            return CLAMP, 0.0, inf
        case "clamped_relu":
            return CLAMP, 0.0, layer.activation.limit or 0.0
        case "sigmoid":
            return SIGMOID, -inf, inf
        case "tanh":
            return TANH, -inf, inf
        case "softmax":
            return SOFTMAX, -inf, inf
        case _:
            return CLAMP, -inf, inf


class _LayerBlocks(NamedTuple):
    target: NDArray[np.int32]
    block_size: NDArray[np.int64]
    blocks_of_group: NDArray[np.int64]
    pattern_length: NDArray[np.int64]
    pattern: NDArray[np.int32]


def _plan_layer(layer: SparseLayer) -> _LayerBlocks:
    leader = equal_rows(layer.indptr, layer.indices)
    # Groups in the order of their first row, rows ascending within: neighbours stay neighbours.
    target = np.argsort(leader, kind="stable").astype(np.int32)
    leaders, sizes = np.unique(leader, return_counts=True)
    cut = {int(size): _block_sizes(int(size)) for size in np.unique(sizes)}
    blocks_of = np.array([len(cut[int(size)]) for size in sizes], np.int64)
    block_size = np.concatenate([cut[int(size)] for size in sizes]).astype(np.int64)
    lengths = layer.indptr[leaders + 1] - layer.indptr[leaders]
    # The leaders' column lists one behind another: a ragged gather without a Python loop.
    ends = np.cumsum(lengths)
    position = np.arange(int(ends[-1])) + np.repeat(
        layer.indptr[leaders] - (ends - lengths), lengths
    )
    return _LayerBlocks(target, block_size, blocks_of, lengths, layer.indices[position])


def _offsets(counts: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    flat = np.concatenate(counts)
    result = np.zeros(flat.size + 1, np.int64)
    np.cumsum(flat, out=result[1:])
    return result


def pack(network: SparseNetwork) -> PackedNetwork:
    """Arrange all layers of a network into blocks; takes about 4 bytes per edge more."""
    layers = [_plan_layer(layer) for layer in network]
    block_row = _offsets([part.block_size for part in layers])
    weight = np.empty(network.edges, np.float32)
    block_weights: list[NDArray[np.int64]] = []
    at = 0
    for layer, part in zip(network, layers, strict=True):
        local_rows = _offsets([part.block_size])
        _copy_weights(
            read_only(layer.indptr),
            read_only(layer.values),
            part.target,
            local_rows,
            weight[at : at + layer.nnz],
        )
        length_of_block = np.repeat(part.pattern_length, part.blocks_of_group)
        ends = np.cumsum(length_of_block * part.block_size)
        block_weights.append(at + ends - length_of_block * part.block_size)
        at += layer.nnz
    bounds = [_bounds(layer) for layer in network]
    return PackedNetwork(
        layer_group=_offsets([np.array([part.pattern_length.size]) for part in layers]),
        group_pattern=_offsets([part.pattern_length for part in layers]),
        group_block=_offsets([part.blocks_of_group for part in layers]),
        block_row=block_row,
        block_weight=np.concatenate(block_weights),
        pattern=np.concatenate(
            [*(part.pattern for part in layers), np.zeros(PREFETCH_COLUMNS, np.int32)]
        ),
        target=np.concatenate([part.target for part in layers]),
        bias=np.concatenate(
            [layer.bias[part.target] for layer, part in zip(network, layers, strict=True)]
        ),
        weight=weight,
        width=np.array([network.n_in, *(layer.n_out for layer in network)], np.int64),
        code=np.array([code for code, _, _ in bounds], np.int64),
        low=np.array([low for _, low, _ in bounds], np.float32),
        high=np.array([high for _, _, high in bounds], np.float32),
    )
