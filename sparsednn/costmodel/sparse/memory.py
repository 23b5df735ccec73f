"""Bytes that a rank needs for inference: packed rows, tiles, messages, inputs.

With L layers, P parts of a layer (three where ranks share the neurons, else one), and for a rank g
groups of rows, b blocks, r packed rows, p the groups' pattern lengths and e weights in all parts:

    packed = 8 (P L + 1) + 16 (g + 1) + 8 (b + 1) + 8 b + 4 (p + 8) + 8 r + 4 e + 8 (L + 1) + 16 P L

which is `kernels.packing.PackedNetwork`, array by array. A stream (thread) has besides, with S the
row stride of a tile of T columns, n the neurons that the rank owns of the widest layer, n_0 of the
input, s and v the most words that it sends and receives in a layer:

    tile = 4 (2 n S + n_0 S + T (s + v))

Pools for columns that die are not in it: they take what is free, a sixteenth of the memory at most.
The sparse inputs of m images with z nonzeros each take ``8 (m + 1) + 2 m z n_0 / N_0`` bytes (4
instead of 2 above 65,536 inputs of a rank).

Must not know: seconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.sparse.work import HEIGHTS, SparseWork

__all__ = ["inference_bytes", "input_bytes", "packed_bytes", "tile_bytes"]

_READ_AHEAD = 8  # pattern entries behind the last, see `kernels.microkernel.PREFETCH_COLUMNS`
_NARROW = 1 << 16


def packed_bytes(work: SparseWork) -> NDArray[np.int64]:
    """``(ranks,)`` bytes of each rank's packed rows of all layers, forward."""
    parts = (3 if work.ranks > 1 else 1) * work.layers
    total = work.blocks.sum(axis=(0, 2))
    groups, patterns = work.groups.sum(axis=(0, 2)), work.patterns.sum(axis=(0, 2))
    blocks, rows = total.sum(axis=-1), (total * np.array(HEIGHTS)).sum(axis=-1)
    edges = work.edges.sum(axis=0)
    offsets = 8 * (parts + 1) + 16 * (groups + 1) + 8 * (2 * blocks + 1)
    limits = 8 * (work.layers + 1) + 16 * parts
    return np.asarray(offsets + 4 * (patterns + _READ_AHEAD) + 8 * rows + 4 * edges + limits)


def tile_bytes(work: SparseWork, columns: int) -> NDArray[np.int64]:
    """``(ranks,)`` bytes of one stream's tiles of `columns` columns, and of its messages."""
    from sparsednn.kernels.sizes import row_stride

    stride = row_stride(columns)
    words = work.words_sent.max(axis=0) + work.words_received.max(axis=0)
    rows = 2 * work.neurons.max(axis=0) + work.neurons[0]
    return np.asarray(4 * (rows * stride + words * columns))


def input_bytes(work: SparseWork, images: int, nonzeros_per_image: float) -> NDArray[np.float64]:
    """``(ranks,)`` bytes of the sparse inputs that each rank keeps of so many images."""
    share = work.neurons[0] / work.widths[0]
    index = np.where(work.neurons[0].max() > _NARROW, 4, 2)
    return np.asarray(8.0 * (images + 1) + index * images * nonzeros_per_image * share)


def inference_bytes(
    work: SparseWork, images: int, columns: int, threads: int, nonzeros_per_image: float
) -> NDArray[np.float64]:
    """``(ranks,)`` bytes that inference on so many images of a rank's group needs."""
    return np.asarray(
        packed_bytes(work)
        + threads * tile_bytes(work, columns)
        + input_bytes(work, images, nonzeros_per_image)
    )
