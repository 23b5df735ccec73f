"""Networks, partitions and comparisons for the tests of loading and their check programs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from networks import random_layer
from sparsednn import SparseNetwork
from sparsednn.distributed.shard import NetworkShard
from sparsednn.partitioners.partition import Partition, PartitionMeta


def network(
    seed: int = 0,
    widths: Sequence[int] = (23, 31, 17, 17, 3),
    *,
    activation: str = "relu",
    bias: str = "mixed",
) -> SparseNetwork:
    rng = np.random.default_rng(seed)
    made = [
        random_layer(rng, n_out, n_in, activation=activation, bias=bias)
        for n_in, n_out in pairwise(widths)
    ]
    return SparseNetwork(made, name=f"sample-{seed}")


def partition(net: SparseNetwork, parts: int, kind: str = "random", seed: int = 0) -> Partition:
    """Any division: ``random``, ``cyclic``, ``block``; ``gaps`` leaves parts without rows."""
    rng = np.random.default_rng(seed)
    owners = []
    for k, size in enumerate([net.n_in, *(layer.n_out for layer in net)]):
        match kind:
            case "random":
                owners.append(rng.integers(0, parts, size))
            case "cyclic":
                owners.append(np.arange(size) % parts)
            case "block":
                owners.append(np.arange(size) * parts // size)
            case _:
                owners.append(np.where(np.arange(size) % 3, k % parts, (k + 1) % parts))
    meta = PartitionMeta("rule", kind, None, None, seed, 1, 0.0, net.name, net.hash)
    return Partition(owners, parts, meta)


def assert_same_shard(found: NetworkShard, expected: NetworkShard) -> None:
    for name in ("name", "hash", "edges", "part", "parts", "n_in", "n_out", "droppable_from"):
        assert getattr(found, name) == getattr(expected, name), name
    assert all(a is b for a, b in zip(found.owners, expected.owners, strict=True))
    for ours, theirs in zip(found.layers, expected.layers, strict=True):
        assert (ours.n_out, ours.n_in) == (theirs.n_out, theirs.n_in)
        assert ours.activation == theirs.activation
        for name in ("rows", "indptr", "indices", "values", "bias"):
            one, other = getattr(ours, name), getattr(theirs, name)
            assert one.dtype == other.dtype, name
            np.testing.assert_array_equal(one, other)


def assert_same_network(found: SparseNetwork, expected: SparseNetwork) -> None:
    assert (found.name, found.hash) == (expected.name, expected.hash)
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("indptr", "indices", "values", "bias"):
            one: Any = getattr(ours, name)
            assert one.dtype == getattr(theirs, name).dtype
