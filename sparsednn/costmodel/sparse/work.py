"""`SparseWork`: all that the models need of a network and a partition, without weights.

For each layer and rank how many blocks of 1, 2, 4 and 8 rows there are and how long their patterns
are together, for each layer who sends how many words to whom. These are exactly the blocks that
`kernels.packing` makes of each rank's rows and the messages of `distributed.plan`; tests hold them
against both. What a block or a message costs is others' business.

Must not know: platforms, seconds, MPI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.errors import UsageError
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.partitioners.partition import Partition

__all__ = ["HEIGHTS", "Messages", "SparseWork"]

#: Rows of a block. Where eight rows do not fit the registers, no block has eight.
HEIGHTS: Final = (1, 2, 4, 8)
_SEED: Final = 20210614  # of the keys that patterns are compared by; any number will do
#: What `_Counted.forward` and ``backward`` hold of a part, see `counting.FIGURES`.
_BLOCKS, _LENGTHS, _GROUPS, _PATTERN = slice(0, 4), slice(4, 8), 8, 9


@dataclass(frozen=True, eq=False)
class Messages:
    """One layer's messages in the forward direction, by source, each source's in its order.

    Attributes
    ----------
    source, target, words
        ``(m,)`` int32: from whom, to whom, how many words (activations) for one image.
    """

    source: NDArray[np.int32]
    target: NDArray[np.int32]
    words: NDArray[np.int32]

    @classmethod
    def of(cls, source: ArrayLike, target: ArrayLike, words: ArrayLike) -> Messages:
        """Sort messages by source; those of one source keep their order."""
        arrays = [np.asarray(one, np.int32).reshape(-1) for one in (source, target, words)]
        # Small numbers are sorted digit by digit, in the time of a walk.
        small = arrays[0].astype(np.uint16) if arrays[0].max(initial=0) < 1 << 16 else arrays[0]
        order = np.argsort(small, kind="stable")
        return cls(*(one[order] for one in arrays))

    @property
    def reversed(self) -> Messages:
        """The fold: the same messages the other way round."""
        return Messages.of(self.target, self.source, self.words)

    def __len__(self) -> int:
        """Number of messages."""
        return self.source.size

    def sums(self, ranks: int) -> NDArray[np.int64]:
        """``(4, ranks)``: words sent, words received, messages sent, messages received."""
        ends = (self.source, self.target)
        # Sums of whole numbers below 2^53 are exact in double precision.
        words = [np.bincount(end, self.words, ranks).astype(np.int64) for end in ends]
        return np.stack([*words, *(np.bincount(end, minlength=ranks) for end in ends)])


@dataclass(frozen=True, eq=False)
class SparseWork:
    """What each rank computes, sends and receives in each layer, for one image and one thread.

    Attributes
    ----------
    name, ranks
        Of the network; ranks among which its neurons are divided.
    widths
        ``(layers + 1,)`` int64: neurons, of the input and behind each layer.
    neurons
        ``(layers + 1, ranks)`` int64: how many of these each rank owns.
    blocks, lengths
        ``(layers, ranks, 3, 4)`` int64: blocks of `HEIGHTS` rows in the three parts of
        `kernels.linked` (rows that need nothing from others, the owned columns of the other rows,
        the received columns of these), and the sums of these blocks' pattern lengths.
    groups, patterns
        ``(layers, ranks, 3)`` int64: groups of rows that share a pattern, the sums of the groups'
        pattern lengths; for the memory that the packed rows take.
    back_blocks, back_lengths, back_groups, back_patterns
        The same of the transposed packing of training (`training.packed`), with two parts: the
        received, then the owned columns as rows. ``(0, ranks, 2, …)`` if nobody asked for it.
    sends
        One `Messages` per layer. Layers may share one.
    """

    name: str
    ranks: int
    widths: NDArray[np.int64]
    neurons: NDArray[np.int64]
    blocks: NDArray[np.int64]
    lengths: NDArray[np.int64]
    groups: NDArray[np.int64]
    patterns: NDArray[np.int64]
    back_blocks: NDArray[np.int64]
    back_lengths: NDArray[np.int64]
    back_groups: NDArray[np.int64]
    back_patterns: NDArray[np.int64]
    sends: tuple[Messages, ...]

    @classmethod
    def of(
        cls,
        network: SparseNetwork,
        owners: Partition | Sequence[ArrayLike],
        ranks: int | None = None,
        *,
        training: bool = False,
    ) -> SparseWork:
        """Count a network that is divided among ranks.

        Parameters
        ----------
        network
            Its weights do not matter.
        owners
            A partition, or one vector of owners per neuron layer, the inputs included.
        ranks
            Needed with vectors only.
        training
            Count the transposed packing, too.

        Raises
        ------
        UsageError
            If `owners` do not fit the network, or name ranks that are not there.
        """
        vectors: Sequence[ArrayLike]
        if isinstance(owners, Partition):
            vectors = owners.owners
            ranks = owners.parts if ranks is None else ranks
        else:
            vectors = owners
        if ranks is None or ranks < 1:
            raise UsageError(f"ranks must be at least 1, found {ranks}")
        widths = [network.n_in, *(layer.n_out for layer in network)]
        checked = _checked(vectors, widths, ranks)
        keys = np.random.default_rng(_SEED).integers(
            0, 2**64, max(widths), np.uint64, endpoint=False
        )
        sorted_owners = [_by_owner(vector, ranks) for vector in checked]
        counted = [
            _count(layer, checked[k : k + 2], sorted_owners[k : k + 2], ranks, keys, training)
            for k, layer in enumerate(network)
        ]
        ahead = np.stack([one.forward for one in counted])
        back = np.stack([one.backward for one in counted])[: len(network) if training else 0]
        return cls(
            name=network.name,
            ranks=ranks,
            widths=np.array(widths, np.int64),
            neurons=np.stack([np.diff(first) for _, first in sorted_owners]),
            blocks=ahead[..., _BLOCKS],
            lengths=ahead[..., _LENGTHS],
            groups=ahead[..., _GROUPS],
            patterns=ahead[..., _PATTERN],
            back_blocks=back[..., _BLOCKS],
            back_lengths=back[..., _LENGTHS],
            back_groups=back[..., _GROUPS],
            back_patterns=back[..., _PATTERN],
            sends=tuple(one.messages for one in counted),
        )

    @classmethod
    def whole(cls, network: SparseNetwork, *, training: bool = False) -> SparseWork:
        """Count a network that one rank has alone: part 0 has everything."""
        widths = [network.n_in, *(layer.n_out for layer in network)]
        return cls.of(network, [np.zeros(w, np.int32) for w in widths], 1, training=training)

    def repeated(self, layers: int) -> SparseWork:
        """Return the work of a network of so many layers: these, over and over.

        For networks too deep to be counted, or partitioned, as a whole.

        Raises
        ------
        UsageError
            If `layers` is below 1, or the last layer's neurons are not divided as the first's are.
        """
        if layers < 1:
            raise UsageError(f"layers must be at least 1, found {layers}")
        if layers > self.layers and not np.array_equal(self.neurons[0], self.neurons[-1]):
            raise UsageError(
                f"'{self.name}': its layers cannot be repeated, as ranks own "
                f"{self.neurons[-1].sum()} neurons behind the last and {self.neurons[0].sum()} in "
                "front of the first, or others than there"
            )
        which = np.arange(layers) % self.layers
        trained = self.back_blocks.shape[0] > 0
        names = ["blocks", "lengths", "groups", "patterns"]
        back = which if trained else which[:0]
        return replace(
            self,
            widths=np.append(self.widths[which], self.widths[which[-1] + 1]),
            neurons=np.concatenate([self.neurons[which], self.neurons[which[-1] + 1][None]]),
            sends=tuple(self.sends[k] for k in which),
            **{name: getattr(self, name)[which] for name in names},
            **{f"back_{name}": getattr(self, f"back_{name}")[back] for name in names},
        )

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.sends)

    @property
    def trained(self) -> bool:
        """Whether the transposed packing was counted."""
        return len(self.back_blocks) == self.layers

    @cached_property
    def edges(self) -> NDArray[np.int64]:
        """``(layers, ranks)``: stored weights."""
        return np.asarray((self.lengths * np.array(HEIGHTS)).sum(axis=(-2, -1)))

    @cached_property
    def _sums(self) -> NDArray[np.int64]:
        known: dict[int, NDArray[np.int64]] = {}
        for one in self.sends:
            if id(one) not in known:
                known[id(one)] = one.sums(self.ranks)
        return np.stack([known[id(one)] for one in self.sends])

    @property
    def words_sent(self) -> NDArray[np.int64]:
        """``(layers, ranks)``: words that a rank sends for one image."""
        return self._sums[:, 0]

    @property
    def words_received(self) -> NDArray[np.int64]:
        """``(layers, ranks)``: words that a rank receives for one image."""
        return self._sums[:, 1]

    @property
    def messages_sent(self) -> NDArray[np.int64]:
        """``(layers, ranks)``: messages that a rank sends for one tile."""
        return self._sums[:, 2]

    @property
    def messages_received(self) -> NDArray[np.int64]:
        """``(layers, ranks)``: messages that a rank receives for one tile."""
        return self._sums[:, 3]


@dataclass(frozen=True, eq=False)
class _Counted:
    """One layer: `counting.FIGURES` of each part and rank, and the messages."""

    forward: NDArray[np.int64]
    backward: NDArray[np.int64]
    messages: Messages


def _by_owner(owners: NDArray[np.int32], ranks: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Neurons sorted by owner, and where each owner's begin."""
    first = np.zeros(ranks + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=ranks), out=first[1:])
    return np.argsort(owners, kind="stable"), first


def _count(
    layer: SparseLayer,
    owners: Sequence[NDArray[np.int32]],
    by_owner: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
    ranks: int,
    keys: NDArray[np.uint64],
    training: bool,
) -> _Counted:
    from sparsednn._jit import read_only
    from sparsednn.costmodel.sparse.counting import FIGURES, count_layer

    forward = np.zeros((ranks, 3, FIGURES), np.int64)
    backward = np.zeros((ranks, 2, FIGURES), np.int64)
    most = min(layer.nnz, ranks * (ranks - 1))
    source, target, words = (np.empty(most, np.int32) for _ in range(3))
    (columns, first_column), (rows, first_row) = by_owner
    found = count_layer(
        read_only(layer.indptr), read_only(layer.indices), read_only(owners[0]),
        read_only(owners[1]), rows, first_row, columns, first_column, keys, keys, int(training),
        forward, backward, source, target, words,
    )  # fmt: skip
    messages = Messages.of(source[:found], target[:found], words[:found])
    return _Counted(forward, backward, messages)


def _checked(
    owners: Sequence[ArrayLike], widths: Sequence[int], ranks: int
) -> list[NDArray[np.int32]]:
    vectors: list[NDArray[Any]] = [np.asarray(vector) for vector in owners]
    sizes = [vector.size for vector in vectors]
    if sizes != list(widths):
        raise UsageError(f"owners are given for layers of {sizes} neurons, they have {widths}")
    for k, vector in enumerate(vectors):
        if vector.ndim != 1 or vector.dtype.kind not in "iu":
            raise UsageError(f"owners of neuron layer {k}: a vector of whole numbers is needed")
        low, high = int(vector.min(initial=0)), int(vector.max(initial=0))
        if low < 0 or high >= ranks:
            wrong = low if low < 0 else high
            raise UsageError(f"owners of neuron layer {k}: rank {wrong} is not in 0 to {ranks - 1}")
    return [np.ascontiguousarray(vector, np.int32) for vector in vectors]
