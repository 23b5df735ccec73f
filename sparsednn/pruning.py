"""Magnitude pruning: keep the weights that are largest in absolute value.

The plainest method there is (Han et al., 2015; Gale et al., "The state of sparsity in deep neural
networks", 2019), for a dense model that has to become sparse before a partition means anything.
It needs no data and does no retraining: accuracy is the user's to check. Biases stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import UsageError
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["SCOPES", "check_pruning", "is_dense", "largest_magnitudes", "prune"]

SCOPES: Final = ("global", "layer")
"""Where magnitudes compete: in the whole network, or within each layer."""


def is_dense(network: SparseNetwork) -> bool:
    """Whether no layer leaves out a single weight, as in a model that was never pruned."""
    return all(layer.nnz == layer.n_out * layer.n_in for layer in network)


def prune(
    network: SparseNetwork,
    sparsity: float,
    *,
    scope: str = "global",
    keep: Collection[int] = (),
) -> SparseNetwork:
    """Set the smallest weights to zero, that is: leave them out.

    Of ``N`` positions (``n_out · n_in``, stored or not) exactly ``N - round(sparsity · N)`` weights
    stay. Positions that are not stored count as zeros already, so a network that is sparse enough
    stays as it is; a stored zero is a weight of magnitude 0, and among the first to go. Of equal
    magnitudes the earlier one stays (layer, then row, then column): the result depends on nothing
    but the arguments.

    Parameters
    ----------
    network
        Not changed; the result shares biases with it, and layers that lose nothing.
    sparsity
        The fraction of positions that are to be zero, ``0 <= sparsity < 1``.
    scope
        ``"global"``: one threshold for all layers together, so layers of small weights lose more;
        ``"layer"``: each layer to the same sparsity.
    keep
        Numbers (from 1) of layers that stay as they are and do not count, often the last one.

    Raises
    ------
    UsageError
        If `sparsity` or `scope` is none of these, or there is no such layer to keep.

    Examples
    --------
    >>> layer = SparseLayer([0, 2, 4], [0, 1, 0, 1], [1.0, -3.0, 2.0, 2.0], 2)
    >>> prune(SparseNetwork([layer]), 0.5)[0].weight.toarray().tolist()
    [[0.0, -3.0], [2.0, 0.0]]
    """
    check_pruning(sparsity, scope)
    for number in keep:
        if not 1 <= number <= len(network):
            raise UsageError(f"no layer {number} to keep: the network has {len(network)} layers")
    chosen = [k for k in range(len(network)) if k + 1 not in keep]
    groups = [[k] for k in chosen] if scope == "layer" else [chosen]
    layers = list(network)
    for group in groups:
        sizes = [network[k].n_out * network[k].n_in for k in group]
        stay = sum(sizes) - round(sparsity * sum(sizes))
        marked = largest_magnitudes([network[k].values for k in group], stay)
        for k, kept in zip(group, marked, strict=True):
            layers[k] = _part(network[k], kept)
    return SparseNetwork(layers, name=network.name)


def check_pruning(sparsity: float, scope: str) -> None:
    """Raise what `prune` says of a sparsity and a scope.

    Raises
    ------
    UsageError
        If the sparsity is out of range, or the scope is unknown.
    """
    if not 0.0 <= sparsity < 1.0:
        raise UsageError(f"sparsity must be at least 0 and below 1, found {sparsity}")
    if scope not in SCOPES:
        raise UsageError(f"unknown scope '{scope}': known are {', '.join(SCOPES)}")


def largest_magnitudes(values: Sequence[NDArray[Any]], count: int) -> list[NDArray[np.bool_]]:
    """Mark the `count` largest magnitudes of all flat arrays together; the earlier of equal ones.

    Where `count` is not less than there are values, all are marked.
    """
    total = sum(array.size for array in values)
    if count >= total:
        return [np.ones(array.size, np.bool_) for array in values]
    if count == 0:
        return [np.zeros(array.size, np.bool_) for array in values]
    magnitudes = np.abs(np.concatenate(values))
    magnitudes.partition(total - count)
    threshold = magnitudes[total - count]
    # What partition has put behind the threshold is not smaller; the rest of the count are ties.
    ties = count - int(np.count_nonzero(magnitudes[total - count :] > threshold))
    del magnitudes
    marked = []
    for array in values:
        size = np.abs(array)
        kept = size > threshold
        equal = np.flatnonzero(size == threshold)[:ties]
        kept[equal] = True
        ties -= equal.size
        marked.append(kept)
    return marked


def _part(layer: SparseLayer, kept: NDArray[np.bool_]) -> SparseLayer:
    """Leave the weights that are not `kept` ``(nnz,)`` out of a layer."""
    if kept.all():
        return layer
    before = np.concatenate(([0], np.cumsum(kept)))  # how many are kept up to each weight
    return SparseLayer(
        before[layer.indptr],
        layer.indices[kept],
        layer.values[kept],
        layer.n_in,
        bias=layer.bias,
        activation=layer.activation,
        check=False,  # a part of rows that were checked
    )
