"""Neighbour exchange: every rank sends messages to some, gets some, and waits for all of its own.

With ms, mr a rank's messages sent and received, crowding k (`Platform.crowding`), and α, B, o of
the link (`Link`), a rank r takes ::

    T_r = o·k·(ms + mr) + max(within_r, between_r)

    within_r  = α + k·max(bytes out, bytes in) / B           its messages within the node
    between_r = α + max(node's bytes out, node's bytes in) / B   of all ranks of its node, which
                                                             share the network card

where a term without messages is 0, and o is that of each message's link: latency and bandwidth
(Hockney 1994), overhead (LogP, Culler et al. 1993). The exchange takes as long as its busiest rank.

With ``measured["exchange"]`` = {bytes, seconds, pack_seconds_per_byte, pack_seconds_per_row}, what
one exchange of a message each way between 2 ranks of a node takes, messages within the node take
instead the sum of their times, sent or received, whichever is more; overhead is in these.
``measured["exchange_crowded"]`` is the same with more ranks than cores; without it, k times as
long.

Must not know: networks, partitions; who else computes meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.costmodel.platform_parts import POSITIVE, check
from sparsednn.costmodel.tables import SizeTable
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Link, Platform

__all__ = ["exchange_seconds", "message_seconds", "messages_seconds", "packing_seconds"]

_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Side:
    """Bytes and messages of each rank over one kind of link; each ``(ranks,)``."""

    sent_bytes: _Floats
    received_bytes: _Floats
    sent_messages: _Floats
    received_messages: _Floats

    @property
    def messages(self) -> _Floats:
        return self.sent_messages + self.received_messages


def messages_seconds(
    platform: Platform, ranks: int, source: ArrayLike, target: ArrayLike, nbytes: ArrayLike
) -> _Floats:
    """Return what an exchange of given messages takes on each rank.

    Parameters
    ----------
    platform
        Rank r is on node ``r // platform.node.ranks``.
    ranks
        Of the run.
    source, target, nbytes
        ``(messages,)``: from which rank, to which, and how long.

    Returns
    -------
    NDArray
        ``(ranks,)`` float64 seconds; 0 for ranks without messages.

    Raises
    ------
    UsageError
        If there is no such rank, or no network where one is needed.
    """
    sources, targets = np.asarray(source, np.intp), np.asarray(target, np.intp)
    sizes = np.asarray(nbytes, np.float64)
    if not (sources.ndim == 1 and sources.shape == targets.shape == sizes.shape):
        raise UsageError("messages: as many sources, targets and bytes are needed")
    if sources.size == 0:
        return np.zeros(ranks)
    if min(sources.min(), targets.min()) < 0 or max(sources.max(), targets.max()) >= ranks:
        raise UsageError(f"messages: ranks from 0 to {ranks - 1} are needed")
    if not (np.isfinite(sizes).all() and (sizes >= 0).all()):
        raise UsageError("messages: bytes from 0 are needed")
    if ranks <= platform.node.ranks:
        within = _side(ranks, sources, targets, sizes)
        return _one_node(platform, ranks, within, _summed(platform, ranks, sources, targets, sizes))
    far = sources // platform.node.ranks != targets // platform.node.ranks
    near = ~far
    beside = (sources[near], targets[near], sizes[near])
    return _all_nodes(
        platform,
        ranks,
        _side(ranks, *beside),
        _side(ranks, sources[far], targets[far], sizes[far]),
        _summed(platform, ranks, *beside),
    )


def exchange_seconds(
    platform: Platform,
    sent_bytes: ArrayLike,
    received_bytes: ArrayLike,
    sent_messages: ArrayLike,
    received_messages: ArrayLike,
    *,
    remote: float | None = None,
) -> _Floats:
    """Return what an exchange takes on each rank, where only its totals are known.

    Messages of a rank are taken to be of equal size.

    Parameters
    ----------
    platform
        Rank r is on node ``r // platform.node.ranks``.
    sent_bytes, received_bytes, sent_messages, received_messages
        ``(ranks,)``.
    remote
        Part of bytes and messages that leaves the node. None: partners are spread evenly over all
        other ranks, (p - m)/(p - 1) of them on other nodes with m ranks on a node.

    Returns
    -------
    NDArray
        ``(ranks,)`` float64 seconds.

    Raises
    ------
    UsageError
        If the arrays differ in shape, or `remote` is not in [0, 1].
    """
    totals = [
        np.asarray(total, np.float64)
        for total in (sent_bytes, received_bytes, sent_messages, received_messages)
    ]
    if totals[0].ndim != 1 or any(total.shape != totals[0].shape for total in totals):
        raise UsageError("exchange: four arrays of one figure for each rank are needed")
    if any(not np.isfinite(total).all() or (total < 0).any() for total in totals):
        raise UsageError("exchange: bytes and messages from 0 are needed")
    if remote is not None and not 0 <= remote <= 1:
        raise UsageError(f"exchange: a remote part from 0 to 1 is needed, found {remote}")
    ranks = totals[0].size
    if ranks <= platform.node.ranks:
        everything = _Side(*totals)
        return _one_node(platform, ranks, everything, _of_totals(platform, ranks, everything))
    if remote is None:
        remote = (ranks - platform.node.ranks) / (ranks - 1)
    within = _Side(*(total * (1 - remote) for total in totals))
    between = _Side(*(total * remote for total in totals))
    return _all_nodes(platform, ranks, within, between, _of_totals(platform, ranks, within))


def message_seconds(
    platform: Platform, nbytes: ArrayLike, link: Link | None = None, *, ranks: int = 2
) -> _Floats:
    """Return what one message each way between two ranks takes, each exchange alone.

    ::

        o·k + α + k·n/B + o·k

    or as measured, for the link within a node. k is the crowding, and matters within a node only.

    Parameters
    ----------
    platform
        Whose `measured` tables are used.
    nbytes
        n, any shape.
    link
        None: `platform.within`.
    ranks
        Of the run, for the crowding.

    Returns
    -------
    NDArray
        float64 seconds, the shape of `nbytes`.
    """
    sizes = np.asarray(nbytes, np.float64)
    chosen = platform.within if link is None else link
    crowding = platform.crowding(ranks)
    if chosen == platform.within:
        table, slower = _table(platform, crowding)
        if table is not None:
            speed = platform.speed
            return slower * table.at(
                sizes, latency=speed["link_latency"], bandwidth=speed["link_bandwidth"]
            )
        copying = crowding
    else:
        copying = 1.0
    fixed = 2 * chosen.overhead_seconds * crowding + chosen.latency_seconds
    return np.asarray(fixed + sizes * (copying / chosen.bandwidth))


def packing_seconds(platform: Platform, nbytes: float, rows: float = 0.0) -> float:
    """Return what copying rows into a message takes, or out of one.

    ::

        n·(seconds per byte) + rows·(seconds per row)

    as measured; else 2n/cache_bandwidth: each byte is read and written.

    Parameters
    ----------
    platform
        With ``measured["exchange"]`` or without.
    nbytes, rows
        n bytes, in so many rows.
    """
    measured = platform.parsed("exchange", _parse)
    if measured is None or measured.packing is None:
        return 2 * nbytes / platform.processor.cache_bandwidth
    per_byte, per_row = measured.packing
    return (nbytes * per_byte + rows * per_row) / platform.speed["flops"]


@dataclass(frozen=True, slots=True)
class _Measured:
    table: SizeTable
    packing: tuple[float, float] | None


def _parse(table: Any) -> _Measured:
    if not isinstance(table, Mapping):
        raise UsageError(f"a table is needed, found {table!r}")
    for key in ("bytes", "seconds"):
        if key not in table:
            raise UsageError(f"{key}: a list of numbers is needed, it is missing")
    packing = None
    if "pack_seconds_per_byte" in table or "pack_seconds_per_row" in table:
        rates = [table.get(f"pack_seconds_per_{unit}", 0.0) for unit in ("byte", "row")]
        for unit, rate in zip(("byte", "row"), rates, strict=True):
            # A fit may well find that one of them is nothing.
            if rate != 0:
                check(f"pack_seconds_per_{unit}", rate, POSITIVE)
        packing = (float(rates[0]), float(rates[1]))
    return _Measured(SizeTable.of(table["bytes"], table["seconds"]), packing)


def _table(platform: Platform, crowding: float) -> tuple[SizeTable | None, float]:
    """What was measured within a node, and by how much it is slower than that; None: nothing."""
    if crowding > 1:
        crowded = platform.parsed("exchange_crowded", _parse)
        if crowded is not None:
            return crowded.table, 1.0
    measured = platform.parsed("exchange", _parse)
    return (None if measured is None else measured.table), crowding


def _side(ranks: int, source: NDArray[np.intp], target: NDArray[np.intp], sizes: _Floats) -> _Side:
    return _Side(
        _sums(source, sizes, ranks),
        _sums(target, sizes, ranks),
        np.bincount(source, minlength=ranks).astype(np.float64),
        np.bincount(target, minlength=ranks).astype(np.float64),
    )


def _sums(place: NDArray[np.intp], weights: _Floats, places: int) -> _Floats:
    # NumPy's type hints have it that sums of weights are integers.
    return np.asarray(np.bincount(place, weights, places), np.float64)


def _summed(
    platform: Platform,
    ranks: int,
    source: NDArray[np.intp],
    target: NDArray[np.intp],
    sizes: _Floats,
) -> _Floats | None:
    """Sums of measured times of each rank's messages within nodes; None: nothing is measured."""
    if _table(platform, platform.crowding(ranks))[0] is None:
        return None
    times = message_seconds(platform, sizes, ranks=ranks)
    return np.maximum(_sums(source, times, ranks), _sums(target, times, ranks))


def _of_totals(platform: Platform, ranks: int, side: _Side) -> _Floats | None:
    """As `_summed`, with each rank's messages of its mean size."""
    if _table(platform, platform.crowding(ranks))[0] is None:
        return None
    sums = []
    for total, messages in (
        (side.sent_bytes, side.sent_messages),
        (side.received_bytes, side.received_messages),
    ):
        mean = total / np.maximum(messages, np.finfo(np.float64).tiny)
        mean = np.where(messages > 0, mean, 0.0)
        sums.append(messages * message_seconds(platform, mean, ranks=ranks))
    return np.maximum(*sums)


def _one_node(platform: Platform, ranks: int, within: _Side, measured: _Floats | None) -> _Floats:
    if measured is not None:
        return measured
    overhead, transfer = _within(platform, ranks, within)
    return overhead + transfer


def _all_nodes(
    platform: Platform, ranks: int, within: _Side, between: _Side, measured: _Floats | None
) -> _Floats:
    link = platform.link(0, ranks - 1)
    node = np.arange(ranks) // platform.node.ranks
    nodes = platform.nodes_of(ranks)
    out, into = (_sums(node, side, nodes) for side in (between.sent_bytes, between.received_bytes))
    card = link.latency_seconds + np.maximum(out, into)[node] / link.bandwidth
    far = np.where(between.messages > 0, card, 0.0)
    far_overhead = between.messages * (link.overhead_seconds * platform.crowding(ranks))
    if measured is not None:
        return np.asarray(far_overhead + np.maximum(measured, far))
    overhead, transfer = _within(platform, ranks, within)
    return np.asarray(far_overhead + overhead + np.maximum(transfer, far))


def _within(platform: Platform, ranks: int, side: _Side) -> tuple[_Floats, _Floats]:
    """Seconds of processors' overhead, and of the transfer; each ``(ranks,)``."""
    link, crowding = platform.within, platform.crowding(ranks)
    busiest = np.maximum(side.sent_bytes, side.received_bytes)
    transfer = link.latency_seconds + busiest * (crowding / link.bandwidth)
    overhead = side.messages * (link.overhead_seconds * crowding)
    return overhead, np.where(side.messages > 0, transfer, 0.0)
