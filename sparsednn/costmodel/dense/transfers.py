"""What ranks of a dense network send: collectives along grid axes, and moves of blocks.

As `sparsednn.dense.moves`: each rank packs a box for each rank that needs one, the messages go,
meanwhile it copies what it has itself, and unpacks. ::

    move = packing(sent) + max over ranks(exchange) + packing(kept) + packing(received)

with `neighbours.messages_seconds` and `neighbours.packing_seconds`; collectives are
`collectives.measured.collective_seconds`. Must not know: what is computed.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.collectives.measured import collective_seconds
from sparsednn.costmodel.neighbours import messages_seconds, packing_seconds
from sparsednn.dense.layout import Layout

if TYPE_CHECKING:
    from sparsednn.costmodel.dense.timeline import Timeline
    from sparsednn.costmodel.platform import Platform

__all__ = ["Transfers", "words_between"]

_Floats = NDArray[np.float64]


def words_between(owned: Layout, needed: Layout) -> NDArray[np.int64]:
    """Return ``(ranks, ranks)``: numbers that a rank (row) owns and another (column) needs."""
    words = np.ones((owned.ranks, owned.ranks), np.int64)
    for mine, theirs in zip(owned.intervals, needed.intervals, strict=True):
        # Most axes are divided into few parts: as many different intervals.
        own, to_own = np.unique(mine.reshape(owned.ranks, -1), axis=0, return_inverse=True)
        want, to_want = np.unique(theirs.reshape(owned.ranks, -1), axis=0, return_inverse=True)
        a, b = own.reshape(len(own), -1, 2), want.reshape(len(want), -1, 2)
        low = np.maximum(a[:, None, :, None, 0], b[None, :, None, :, 0])
        high = np.minimum(a[:, None, :, None, 1], b[None, :, None, :, 1])
        common = np.maximum(high - low, 0).sum(axis=(2, 3))
        words *= common[to_own.reshape(-1)][:, to_want.reshape(-1)]
    return words


@dataclass(frozen=True, eq=False)
class _Moved:
    """Seconds of a move on each rank, in one direction."""

    before: _Floats
    messages: _Floats
    latency: _Floats
    after: _Floats


@dataclass(eq=False)
class Transfers:
    """Seconds of what ranks send on a platform; what was worked out is kept.

    Attributes
    ----------
    platform, ranks
        Where, and how many in all.
    itemsize
        Bytes of a number.
    """

    platform: Platform
    ranks: int
    itemsize: int = 4
    _moves: dict[Hashable, tuple[_Moved, _Moved]] = field(default_factory=dict)
    _collectives: dict[Hashable, dict[str, float]] = field(default_factory=dict)

    def collective(
        self, verb: str, group: tuple[int, int], nbytes: float, *, started: bool = False
    ) -> dict[str, float]:
        """Return the seconds of a collective: what it takes without bytes, and what they add.

        Parameters
        ----------
        verb
            One of `collectives.VERBS`.
        group
            Ranks of it, and how far they are apart.
        nbytes
            Of the whole array.
        started
            Whether it is one that is started and waited for later.
        """
        key = verb, group, float(nbytes), started
        if key not in self._collectives:
            ranks, stride = group
            found = {"latency": 0.0, "link bandwidth": 0.0}
            if ranks > 1 and nbytes > 0:
                job = max(self.ranks, ranks)
                whole, least = (
                    collective_seconds(
                        self.platform, verb, ranks, some, stride, job=job, started=started
                    ).seconds
                    for some in (nbytes, min(nbytes, self.itemsize))
                )
                found = {"latency": min(least, whole), "link bandwidth": max(0.0, whole - least)}
            self._collectives[key] = found
        return self._collectives[key]

    def packing(self, words: NDArray[Any], rows: NDArray[Any] | float = 0.0) -> _Floats:
        """Return the seconds of copying so many numbers, in so many rows; arrays of any shape."""
        per_byte = packing_seconds(self.platform, 1.0)
        per_row = packing_seconds(self.platform, 0.0, 1.0)
        crowding = self.platform.crowding(self.ranks)
        return np.asarray(crowding * (words * self.itemsize * per_byte + rows * per_row))

    def move(self, timeline: Timeline, owned: Layout, needed: Layout, *, back: bool) -> None:
        """Put a move of blocks on the timeline, or its way back."""
        key = _key(owned), _key(needed)
        if key not in self._moves:
            self._moves[key] = self._work_out(owned, needed)
        moved = self._moves[key][back]
        nothing = np.zeros(self.ranks)
        if not (moved.messages.any() or moved.after.any()):
            return
        timeline.compute({"memory bandwidth": moved.before + nothing})
        if moved.messages.any():
            timeline.exchange(moved.messages, moved.latency)
        timeline.compute({"memory bandwidth": moved.after + nothing})

    def _work_out(self, owned: Layout, needed: Layout) -> tuple[_Moved, _Moved]:
        none = np.zeros(self.ranks)
        if owned.same_as(needed):
            return (_Moved(none, none, none, none),) * 2
        words = words_between(owned, needed)
        own = np.diagonal(words).astype(np.float64)
        np.fill_diagonal(words, 0)
        source, target = np.nonzero(words)
        nbytes = words[source, target] * float(self.itemsize)
        sent, received = (words.sum(axis=axis).astype(np.float64) for axis in (1, 0))
        runs = [_runs(one) for one in (owned, needed)]
        pack, unpack = (self.packing(each, each / runs[0]) for each in (sent, received))
        kept = self.packing(own, own / np.maximum(1.0, np.minimum(*runs)))
        found = []
        for one, other, first, last in ((source, target, pack, unpack),
                                        (target, source, unpack, pack)):  # fmt: skip
            seconds = messages_seconds(self.platform, self.ranks, one, other, nbytes)
            least = messages_seconds(self.platform, self.ranks, one, other, np.minimum(nbytes, 4.0))
            found.append(_Moved(first, seconds, np.minimum(least, seconds), last + kept))
        return found[0], found[1]


def _runs(layout: Layout) -> _Floats:
    """``(ranks,)``: numbers that stand after each other in a tile and in what others get of it.

    A row of the last axis; whole planes, where that is not divided.
    """
    run = layout.lengths(3).astype(np.float64)
    if layout.lengths(3).min(initial=0) == layout.shape[3]:
        run = run * layout.lengths(2)
        if layout.lengths(2).min(initial=0) == layout.shape[2]:
            run = run * layout.lengths(1)
    return np.asarray(np.maximum(run, 1.0))


def _key(layout: Layout) -> Hashable:
    return layout.shape, tuple(axis.tobytes() for axis in layout.intervals)
