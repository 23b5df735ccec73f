"""Row groups and packed blocks hold exactly the network."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings

from networks import networks
from sparsednn import SparseNetwork
from sparsednn.kernels.microkernel import MAX_ROWS
from sparsednn.kernels.packing import pack


def unpack(network: SparseNetwork) -> list[np.ndarray]:
    """The dense matrices that the packed arrays describe, read off in the slowest way."""
    packed = pack(network)
    found = []
    row_base = 0
    for index, layer in enumerate(network):
        dense = np.zeros(layer.shape, np.float32)
        seen = np.zeros(layer.n_out, int)
        for group in range(packed.layer_group[index], packed.layer_group[index + 1]):
            pattern = packed.pattern[packed.group_pattern[group] : packed.group_pattern[group + 1]]
            for block in range(packed.group_block[group], packed.group_block[group + 1]):
                first, last = packed.block_row[block], packed.block_row[block + 1]
                assert (last - first) & (last - first - 1) == 0
                assert last - first <= MAX_ROWS
                rows = packed.target[first:last]
                seen[rows] += 1
                np.testing.assert_array_equal(packed.bias[first:last], layer.bias[rows])
                at = packed.block_weight[block]
                size = pattern.size * rows.size
                weights = packed.weight[at : at + size].reshape(pattern.size, rows.size)
                dense[np.ix_(rows, pattern)] = weights.T
        assert (seen == 1).all(), "every row is in exactly one block"
        row_base += layer.n_out
        found.append(dense)
    return found


@given(network=networks())
@settings(deadline=None, max_examples=60)
def test_packing_keeps_every_weight(network: SparseNetwork) -> None:
    for layer, dense in zip(network, unpack(network), strict=True):
        np.testing.assert_array_equal(dense, layer.weight.toarray())
