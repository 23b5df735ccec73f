"""`ExchangePlan`: which activations a rank sends to whom in one layer, and which it receives.

Worked out once from the rank's own rows and the owners of the neurons in front of them; nobody
needs the whole network. What a rank wants to receive in all layers is told to the owners in one
exchange. Words and messages that follow from the definition (`partitioners.metrics`) and from these
plans are the same; tests say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.distributed.shard import LayerShard, NetworkShard

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["ExchangePlan", "exchange_plans", "offsets", "plans_of_all", "wanted_columns"]


@dataclass(frozen=True, slots=True)
class ExchangePlan:
    """One layer's messages of one rank, in the forward direction (*expand*).

    Attributes
    ----------
    send_ranks, send_first, send_rows
        ``send_rows[send_first[i]:send_first[i+1]]`` (int32) go to rank ``send_ranks[i]``; they are
        positions among the inputs that this rank owns. Ranks ascend; each message has at least one
        row.
    receive_ranks, receive_first, receive_columns
        The same for what comes in, as global column numbers (int32), ascending in each message.
        Received rows lie in this order, one message behind another.

    Backward (*fold*) the same messages go the other way: partial sums of the received columns
    return to their owners, which add them at ``send_rows``. `reversed` is that exchange.
    """

    send_ranks: NDArray[np.int64]
    send_first: NDArray[np.int64]
    send_rows: NDArray[np.int32]
    receive_ranks: NDArray[np.int64]
    receive_first: NDArray[np.int64]
    receive_columns: NDArray[np.int32]

    @property
    def words_sent(self) -> int:
        """Words that this rank sends for one image."""
        return self.send_rows.size

    @property
    def words_received(self) -> int:
        """Words that this rank receives for one image."""
        return self.receive_columns.size

    @property
    def messages_sent(self) -> int:
        """Messages that this rank sends, for any number of images at a time."""
        return self.send_ranks.size

    @property
    def reversed(self) -> ExchangePlan:
        """The fold: what was received is sent back, and the other way round.

        Its ``send_rows`` are positions in the receive buffer, its ``receive_columns`` positions
        among the owned inputs.
        """
        return ExchangePlan(
            self.receive_ranks,
            self.receive_first,
            np.arange(self.receive_columns.size, dtype=np.int32),
            self.send_ranks,
            self.send_first,
            self.send_rows,
        )


def wanted_columns(
    layer: LayerShard, owners: NDArray[np.int32], part: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Columns that a part's rows need and others own.

    Returns
    -------
    columns, owners
        int32, sorted by owner, then column.
    """
    needed = np.zeros(layer.n_in, np.bool_)
    needed[layer.indices] = True
    needed &= owners != part
    columns = np.flatnonzero(needed).astype(np.int32)
    order = np.argsort(owners[columns], kind="stable")
    return columns[order], owners[columns[order]]


def exchange_plans(shard: NetworkShard, group: Communicator) -> list[ExchangePlan]:
    """Work out the plans of all layers; collective over the ranks of `group` (two all-to-alls).

    Rank r of `group` holds part r.
    """
    parts, depth = shard.parts, len(shard.layers)
    wanted = [
        wanted_columns(layer, shard.owners[k], shard.part) for k, layer in enumerate(shard.layers)
    ]
    counts = np.zeros((parts, depth), np.int64)
    for k, (_, owners) in enumerate(wanted):
        counts[:, k] = np.bincount(owners, minlength=parts)
    asked, _ = group.all_to_all(counts.reshape(-1), np.full(parts, depth, np.int64))
    # For each owner the columns of all layers, one layer behind another.
    columns = [
        columns[owners == other] for other in range(parts) for columns, owners in wanted
    ] or [np.empty(0, np.int32)]
    requests, _ = group.all_to_all(np.concatenate(columns), counts.sum(axis=1))
    return _assemble(shard, wanted, np.asarray(asked).reshape(parts, depth), np.asarray(requests))


def plans_of_all(shards: Sequence[NetworkShard]) -> list[list[ExchangePlan]]:
    """Plans of all parts, in one process: for tests, and for predicting what is not run here."""
    wanted = [
        [wanted_columns(layer, one.owners[k], one.part) for k, layer in enumerate(one.layers)]
        for one in shards
    ]
    plans = []
    for owner, shard in enumerate(shards):
        counts = np.array(
            [[np.count_nonzero(owners == owner) for _, owners in layers] for layers in wanted],
            np.int64,
        )
        requests = [columns[owners == owner] for layers in wanted for columns, owners in layers]
        plans.append(_assemble(shard, wanted[owner], counts, np.concatenate(requests)))
    return plans


def _assemble(
    shard: NetworkShard,
    wanted: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]],
    asked: NDArray[np.int64],
    requests: NDArray[np.int32],
) -> list[ExchangePlan]:
    """Put a rank's plans together from what it wants and what others ask it for.

    `asked` ``(parts, layers)`` says how many columns each other part asks for; `requests` are these
    columns, by part, then layer.
    """
    ends = np.cumsum(asked.reshape(-1)).reshape(asked.shape)
    plans = []
    for k, (columns, owners) in enumerate(wanted):
        receive_ranks, receive_counts = np.unique(owners, return_counts=True)
        send_ranks = np.flatnonzero(asked[:, k])
        pieces = [requests[ends[r, k] - asked[r, k] : ends[r, k]] for r in send_ranks]
        owned = np.flatnonzero(shard.owners[k] == shard.part)
        sent = np.concatenate([np.empty(0, np.int32), *pieces])
        plans.append(
            ExchangePlan(
                send_ranks.astype(np.int64),
                offsets(asked[send_ranks, k]),
                np.searchsorted(owned, sent).astype(np.int32),
                receive_ranks.astype(np.int64),
                offsets(receive_counts),
                columns,
            )
        )
    return plans


def offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where items of these sizes begin, one behind another, and where the last ends."""
    result = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts, out=result[1:])
    return result
