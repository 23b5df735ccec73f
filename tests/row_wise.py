"""Networks, inputs and partitions for the checks of the row-wise engine; the same on all ranks."""

from __future__ import annotations

import numpy as np

from networks import ACTIVATIONS, random_layer
from sparsednn import InputSet, SparseNetwork
from sparsednn.partitioners import Partition, PartitionMeta


def make_network(seed, *, most=40, last=ACTIVATIONS, bias=None):
    """Odd sizes, empty rows, single neurons, shared patterns, all activations."""
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, most, rng.integers(2, 7))
    layers = []
    for index in range(widths.size - 1):
        kinds = last if index == widths.size - 2 else ACTIVATIONS
        layers.append(
            random_layer(
                rng,
                int(widths[index + 1]),
                int(widths[index]),
                density=float(rng.choice([0.05, 0.3, 1.0])),
                shared=float(rng.choice([0.0, 0.5, 1.0])),
                activation=str(rng.choice(kinds)),
                bias=bias or str(rng.choice(["mixed", "negative", "zero"])),
            )
        )
    return SparseNetwork(layers)


def dying_network(seed):
    """Columns die layer after layer, so that tiles are packed on the way."""
    rng = np.random.default_rng(seed)
    layer = [
        random_layer(rng, 33, 33, density=0.15, activation="clamped_relu:2", bias="negative")
        for _ in range(8)
    ]
    return SparseNetwork(layer)


def make_inputs(network, images, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((network.n_in, images)) < 0.3
    return InputSet.from_dense(mask * rng.standard_normal(mask.shape))


def local(inputs, owners, part):
    """What one part sees of the inputs, also if it owns none."""
    csc = inputs.to_scipy().tocsr()[np.flatnonzero(owners == part)].tocsc()
    csc.sort_indices()
    return InputSet(csc.indptr, csc.indices, csc.data, csc.shape[0], check=False)


def by_hand(network, parts, seed):
    """Owners at random, with parts that have nothing in some layers."""
    rng = np.random.default_rng(seed)
    owners = []
    for size in (network.n_in, *(layer.n_out for layer in network)):
        some = rng.permutation(parts)[: rng.integers(1, parts + 1)]
        owners.append(rng.choice(some, size).astype(np.int32))
    meta = PartitionMeta("rule", "by hand", None, None, seed, 1, 0.0, network.name, network.hash)
    return Partition(owners, parts, meta)


def tolerance(network):
    """Sums in another order differ by units in the last place of the largest partial sum."""
    return 1e-6 * (1 + max(float(np.abs(layer.values).sum()) for layer in network))
