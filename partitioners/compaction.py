"""Smaller hypergraphs with the same costs: drop nets that cannot be cut, merge identical ones.

A native partitioner pays for every net; in a RadiX-Net 16 columns have the same rows. Everything
here is array operations: no loop over nets or pins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.partitioners.hypergraph import Hypergraph

__all__ = ["drop_small_nets", "merge_identical_nets"]


def drop_small_nets(hypergraph: Hypergraph, least: int = 2) -> Hypergraph:
    """Leave out the nets with fewer than `least` pins; vertices stay as they are.

    With the default every partition costs what it did before: a net of one pin is in one part.

    Parameters
    ----------
    hypergraph
        The hypergraph; returned itself if there is nothing to drop.
    least
        1 drops the empty nets only, which no file format can hold.
    """
    sizes = np.diff(hypergraph.net_ptr)
    return _select(hypergraph, sizes >= least, hypergraph.net_weights)


def merge_identical_nets(hypergraph: Hypergraph) -> Hypergraph:
    """Merge the nets that have the same pins into one, whose weight is the sum of theirs.

    Every partition costs exactly what it did before. The order of the pins in a net does not
    matter; each merged net stands where the first of its nets stood, with the pins as they were
    there.

    Nets are compared by size and a 64-bit hash, and then pin by pin, so that no two different nets
    are ever merged. (Should two have the same hash, then those identical to the second stay
    unmerged: still the same costs.)

    Returns
    -------
    Hypergraph
        Shares the vertex arrays. The given one itself, if no two nets are identical.
    """
    if hypergraph.n_nets < 2:
        return hypergraph
    sizes = np.diff(hypergraph.net_ptr)
    hashes = _hashes(hypergraph)
    # Stable: within a group of equals the first net comes first.
    order = np.lexsort((hashes, sizes))
    same = (sizes[order[1:]] == sizes[order[:-1]]) & (hashes[order[1:]] == hashes[order[:-1]])
    if not same.any():
        return hypergraph
    # The place in `order` of the first net of each one's group.
    heads = np.concatenate(([0], np.where(same, 0, np.arange(1, order.size))))
    first = np.empty(order.size, dtype=np.int64)
    first[order] = order[np.maximum.accumulate(heads)]
    first = _verified(hypergraph, sizes, first)
    weights = np.zeros(hypergraph.n_nets, dtype=np.int64)
    np.add.at(weights, first, hypergraph.net_weights)
    return _select(hypergraph, first == np.arange(hypergraph.n_nets), weights)


def _hashes(hypergraph: Hypergraph) -> NDArray[np.uint64]:
    """``(n_nets,)``: the sum over a net's pins of a mixed vertex number, whatever their order."""
    # The finalizer of splitmix64 (Steele, Lea & Flood, OOPSLA 2014); uint64 wraps around.
    mixed = np.arange(1, hypergraph.n_vertices + 1, dtype=np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    sums = np.zeros(hypergraph.n_pins + 1, dtype=np.uint64)
    np.cumsum(mixed[hypergraph.pins], out=sums[1:])
    ends: NDArray[np.uint64] = sums[hypergraph.net_ptr[1:]] - sums[hypergraph.net_ptr[:-1]]
    return ends


def _verified(
    hypergraph: Hypergraph, sizes: NDArray[np.int64], first: NDArray[np.int64]
) -> NDArray[np.int64]:
    """`first`, but a net whose pins are not those of its first net is its own first."""
    nets = np.flatnonzero(first != np.arange(first.size))
    nets = nets[sizes[nets] > 0]
    lengths = sizes[nets]
    # Keys that sort by net, then pin: both sides of each comparison with their pins ascending.
    place = np.repeat(np.arange(nets.size), lengths)
    within = np.arange(place.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    keys = place * hypergraph.n_vertices

    def ascending(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        starts = np.repeat(hypergraph.net_ptr[chosen], lengths)
        return np.sort(keys + hypergraph.pins[starts + within])

    different = ascending(nets) != ascending(first[nets])
    refused = nets[np.unique(place[different])]
    result = first.copy()
    result[refused] = refused
    return result


def _select(
    hypergraph: Hypergraph, kept: NDArray[np.bool_], weights: NDArray[np.int64]
) -> Hypergraph:
    """Only the nets that are kept, with new weights."""
    if kept.all():
        return hypergraph
    sizes = np.diff(hypergraph.net_ptr)
    net_ptr = np.zeros(int(np.count_nonzero(kept)) + 1, dtype=np.int64)
    np.cumsum(sizes[kept], out=net_ptr[1:])
    return Hypergraph(
        net_ptr,
        hypergraph.pins[np.repeat(kept, sizes)],
        hypergraph.vertex_weights,
        weights[kept],
        hypergraph.fixed,
    )
