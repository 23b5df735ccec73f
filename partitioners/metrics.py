"""What a partition costs: words, messages and balance, counted from the definition.

A *word* is one activation of one image. In layer ``k`` the owner of input ``j`` sends it to every
other part that has a row with a nonzero in column ``j``; a *message* is all that one part sends to
another in one layer. Backward, the same messages go the other way, so a training step costs twice
the words. This module is the truth that hypergraph models and exchange plans are held against; it
uses none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.partitioners.partition import Partition

__all__ = ["LayerStats", "PartitionStats", "evaluate", "layer_stats", "needs"]


@dataclass(frozen=True, slots=True)
class LayerStats:
    """What one layer of a partition costs.

    Attributes
    ----------
    words
        Words sent in a forward pass of one image.
    messages
        Pairs of parts of which one sends to the other.
    max_words_sent, max_words_received
        The largest number of words that one part sends, or receives.
    max_messages
        The largest number of messages that one part sends.
    imbalance
        Nonzeros of the heaviest part over the mean (1.0 is even; 1.0 for a layer with none).
    empty_parts
        Parts that have no row in this layer.
    """

    words: int
    messages: int
    max_words_sent: int
    max_words_received: int
    max_messages: int
    imbalance: float
    empty_parts: int


@dataclass(frozen=True)
class PartitionStats:
    """What a whole partition costs, for a forward pass of one image.

    Attributes
    ----------
    layers
        One entry per layer.
    traffic
        ``(parts, parts)`` int64: words that part ``a`` sends to part ``b``, all layers together.
    partners
        ``(parts,)`` int64: messages that each part sends, all layers together.
    """

    layers: tuple[LayerStats, ...]
    traffic: NDArray[np.int64]
    partners: NDArray[np.int64]

    @cached_property
    def words_total(self) -> int:
        """Words of all layers."""
        return sum(layer.words for layer in self.layers)

    @property
    def words_per_layer(self) -> list[int]:
        """Words of each layer."""
        return [layer.words for layer in self.layers]

    @property
    def words_training_step(self) -> int:
        """Words of a training step of one image: forward, and the same again backward."""
        return 2 * self.words_total

    @cached_property
    def messages_total(self) -> int:
        """Messages of all layers."""
        return sum(layer.messages for layer in self.layers)

    @property
    def max_words_per_rank(self) -> int:
        """The largest number of words that one part sends in all layers together."""
        return int(self.traffic.sum(axis=1).max())

    @property
    def max_messages_per_rank(self) -> int:
        """The largest number of messages that one part sends in all layers together."""
        return int(self.partners.max())

    @property
    def imbalance_max(self) -> float:
        """The largest imbalance of a layer: heaviest part over mean."""
        return max(layer.imbalance for layer in self.layers)

    @property
    def empty_parts_max(self) -> int:
        """The largest number of parts without a row in a layer."""
        return max(layer.empty_parts for layer in self.layers)


def needs(layer: SparseLayer, owners: NDArray[Any], parts: int) -> NDArray[np.bool_]:
    """``(n_in, parts)`` bool: the parts that have a row with a nonzero in a column.

    Parameters
    ----------
    layer
        The layer.
    owners
        ``(n_out,)``: the part of each row.
    parts
        Number of parts.
    """
    needed = np.zeros((layer.n_in, parts), dtype=np.bool_)
    needed[layer.indices, np.repeat(owners, np.diff(layer.indptr))] = True
    return needed


def layer_stats(
    layer: SparseLayer, before: NDArray[Any], after: NDArray[Any], parts: int
) -> tuple[LayerStats, NDArray[np.int64]]:
    """Count one layer.

    Parameters
    ----------
    layer
        The layer.
    before, after
        ``(n_in,)`` and ``(n_out,)``: the parts of its inputs and of its rows.
    parts
        Number of parts.

    Returns
    -------
    stats, traffic
        `LayerStats`, and ``(parts, parts)`` int64 words from each part to each other.
    """
    needed = needs(layer, after, parts)
    needed[np.arange(layer.n_in), before] = False
    column, receiver = np.nonzero(needed)
    traffic = np.bincount(before[column] * np.int64(parts) + receiver, minlength=parts * parts)
    traffic = traffic.reshape(parts, parts).astype(np.int64)
    work = np.bincount(after, weights=np.diff(layer.indptr), minlength=parts)
    rows = np.bincount(after, minlength=parts)
    stats = LayerStats(
        words=int(traffic.sum()),
        messages=int(np.count_nonzero(traffic)),
        max_words_sent=int(traffic.sum(axis=1).max()),
        max_words_received=int(traffic.sum(axis=0).max()),
        max_messages=int(np.count_nonzero(traffic, axis=1).max()),
        imbalance=float(work.max() * parts / layer.nnz) if layer.nnz else 1.0,
        empty_parts=int(np.count_nonzero(rows == 0)),
    )
    return stats, traffic


def evaluate(network: SparseNetwork, partition: Partition) -> PartitionStats:
    """Count all layers of a partition.

    Raises
    ------
    InputError
        (any of its kinds) if the partition was made for another network.
    """
    partition.check(network)
    parts = partition.parts
    traffic = np.zeros((parts, parts), dtype=np.int64)
    partners = np.zeros(parts, dtype=np.int64)
    layers = []
    for layer, before, after in zip(
        network, partition.owners[:-1], partition.owners[1:], strict=True
    ):
        stats, sent = layer_stats(layer, before, after, parts)
        layers.append(stats)
        traffic += sent
        partners += np.count_nonzero(sent, axis=1)
    return PartitionStats(tuple(layers), traffic, partners)
