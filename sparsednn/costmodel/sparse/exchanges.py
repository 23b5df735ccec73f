"""Neighbour exchange of a layer: what each rank's messages take on their links.

Ranks fill the nodes in order. With α, B and o a link's latency, bandwidth and processor time per
message, and only the messages on that link counted, rank r takes

    within a node      α + k max(bytes out, bytes in) / B
    between nodes      α + max(bytes out of the node, bytes into it) / B

as a node's card is shared by its ranks, and besides ``k o (messages out + messages in)`` of its
processor; k is the crowding, busy threads per processor (`costmodel.neighbours` has the same, for
any messages). While the rank computes for c seconds a share `overlap` of the link's speed is left:
of a transfer of t seconds ``max(0, t - overlap c)`` shows.

Where `calibrate` has timed the engine's own exchanges within a node, these take the place of all
that: of m messages each way of n bytes on average the time of just that on as many ranks
(``measured["exchange_many"]``), else m times that of one (`neighbours.message_seconds`).

Must not know: layers' arithmetic.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.neighbours import message_seconds
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.costmodel.tables import SizeTable
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["Transfers", "transfers_of"]

_Floats = NDArray[np.float64]
_WORD = 4  # bytes


@dataclass(frozen=True, eq=False)
class Transfers:
    """Seconds of one tile's exchanges, each ``(layers, ranks)``.

    Attributes
    ----------
    within, between
        Of the messages on each kind of link.
    latency
        What of the longer one is latency.
    processor
        The rank's own time for its messages, α and bytes aside.
    overlap
        Of the two links.
    """

    within: _Floats
    between: _Floats
    latency: _Floats
    processor: _Floats
    overlap: tuple[float, float]

    def corrected(self, factor: float, constant: float, per_byte: NDArray[Any]) -> Transfers:
        """Return the same, with exchanges of a node that take more; see `sparse.linked`."""
        some = self.within > 0
        more = np.where(some, factor * self.within + constant + per_byte, 0.0)
        return replace(self, within=more)

    def exposed(self, computing: _Floats) -> _Floats:
        """Seconds that are left to wait behind ``(layers, ranks)`` seconds of computing."""
        near, far = self.overlap
        shown = np.maximum(self.within - near * computing, self.between - far * computing)
        return np.maximum(shown, 0.0)


def transfers_of(
    platform: Platform, work: SparseWork, columns: int, *, groups: int = 1, streams: int = 1
) -> Transfers:
    """Return what one tile's messages take.

    Parameters
    ----------
    platform, work
        The machine, and what its ranks do.
    columns
        Of the tile.
    groups
        Data groups, which exchange at the same time.
    streams
        Threads of a rank that exchange at the same time: they share bandwidth.
    """
    crowding = platform.crowding(work.ranks * groups, streams)
    shape = (work.layers, work.ranks)
    node = np.arange(work.ranks) // platform.node.ranks
    sums = np.zeros((2, 4, *shape))
    known: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
    for layer, one in enumerate(work.sends):
        if id(one) not in known:
            far = node[one.source] != node[one.target]
            every = one.sums(work.ranks).astype(float)
            away = _sums(one.source, one.target, one.words, far, work.ranks)
            known[id(one)] = every - away, away
        sums[0][:, layer], sums[1][:, layer] = known[id(one)]
    seconds, latency, busy = np.zeros((2, *shape)), np.zeros((2, *shape)), np.zeros(shape)
    for kind, link in enumerate((platform.within, platform.between)):
        sent, received, out, into = sums[kind]
        some = out + into > 0
        if link is None or not some.any():
            continue
        nbytes = _WORD * columns * streams * np.stack([sent, received])
        if kind == 1:
            nbytes = np.stack([_per_node(one, node) for one in nbytes])
        longest = nbytes.max(axis=0)
        if kind == 0 and "exchange" in platform.measured:
            pairs = np.maximum(np.maximum(out, into), 1.0)
            for found, nbytes in ((seconds, longest), (latency, np.zeros(shape))):
                found[kind] = some * _measured(
                    platform, work.ranks * groups, pairs, nbytes, streams
                )
            continue
        # Within a node the processors themselves copy.
        per_byte = (crowding if kind == 0 else 1.0) / link.bandwidth
        latency[kind] = link.latency_seconds * some
        seconds[kind] = latency[kind] + longest * per_byte * some
        busy += link.overhead_seconds * crowding * (out + into)
    longer = np.where(seconds[0] >= seconds[1], latency[0], latency[1])
    far_overlap = 0.0 if platform.between is None else platform.between.overlap
    both = (platform.within.overlap, far_overlap)
    return Transfers(seconds[0], seconds[1], longer, busy, both)


def _measured(
    platform: Platform, ranks: int, messages: _Floats, nbytes: _Floats, streams: int
) -> _Floats:
    """Measured seconds of so many messages each way, of so many bytes together."""
    each = nbytes / messages
    seconds = messages * message_seconds(platform, each, ranks=ranks * streams)
    tables = platform.parsed("exchange_many", _parse) if streams == 1 else None
    for (among, count), table in (tables or {}).items():
        if among == ranks:
            speed = platform.speed
            known = table.at(each, latency=speed["link_latency"], bandwidth=speed["link_bandwidth"])
            seconds = np.where(messages == count, known, seconds)
    return np.asarray(seconds)


def _parse(tables: Any) -> dict[tuple[int, int], SizeTable]:
    """Tables by ranks and messages."""
    try:
        return {
            (int(table["ranks"]), int(table["messages"])): SizeTable.of(
                table["bytes"], table["seconds"]
            )
            for table in tables
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"ranks, messages, bytes, seconds: {type(error).__name__} {error}"
        ) from error


def _sums(
    source: NDArray[np.int32],
    target: NDArray[np.int32],
    words: NDArray[np.int32],
    chosen: NDArray[np.bool_],
    ranks: int,
) -> _Floats:
    """As `Messages.sums`, of the chosen messages."""
    ends = (source[chosen], target[chosen])
    counts = [np.bincount(end, words[chosen], ranks) for end in ends]
    return np.stack([*counts, *(np.bincount(end, minlength=ranks) for end in ends)]).astype(float)


def _per_node(values: _Floats, node: NDArray[np.int64]) -> _Floats:
    """Give each rank the sum over its node; ``(layers, ranks)``."""
    first = np.flatnonzero(np.diff(node, prepend=-1))
    return np.asarray(np.add.reduceat(values, first, axis=1)[:, node])
