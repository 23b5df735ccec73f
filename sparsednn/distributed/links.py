"""`make_link`: plans of all layers as the compiled loops want them, with buffers and requests.

One place for inference and for training, forward (expand) and backward (fold).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.compiled import calls_of, handles, no_calls, status_bytes
from sparsednn.distributed.plan import ExchangePlan, offsets
from sparsednn.kernels.cpu import aligned
from sparsednn.kernels.linked import PHASES, Link
from sparsednn.kernels.microkernel import LANES, MAX_VECTORS

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["make_link", "persistent_everywhere"]

#: Persistent requests of a rank; each takes some hundred bytes in the MPI library. Beyond, requests
#: are made for each exchange.
_MOST_PERSISTENT = 1 << 16


def persistent_everywhere(plans: Sequence[ExchangePlan], group: Communicator, times: int) -> bool:
    """Whether `times` sets of persistent requests are few enough on every rank; collective.

    All ranks alike, or a persistent send would meet an immediate receive: legal, but untidy.
    """
    requests = sum(plan.messages_sent + plan.receive_ranks.size for plan in plans)
    return not group.any_rank(requests * times > _MOST_PERSISTENT)


def make_link(
    plans: Sequence[ExchangePlan],
    comm: Communicator,
    columns: int,
    stack: ExitStack,
    *,
    persistent: bool,
    keep: bool = False,
    words: int = 0,
    overlap: bool = True,
    events: int = 0,
    tag: int = 0,
) -> Link:
    """Make buffers and requests for exchanges of all layers.

    Parameters
    ----------
    plans
        The messages of each layer; `ExchangePlan.reversed` ones for the fold.
    comm
        Of one stream of tiles; no one else uses it with this `tag`. Without ranks (`Alone`) there
        are no messages, and no MPI.
    columns
        Of a full tile.
    stack
        Gives the requests back to MPI when it is closed.
    persistent
        Whether full tiles have persistent requests, see `persistent_everywhere`.
    keep
        Whether what is received in each layer is kept, as the backward pass wants it again: then
        every layer has rows of its own in the receive buffer, one layer behind another.
    words
        Room for agreements (`linked.agree`), in columns.
    overlap, events, tag
        As in `Link`.
    """
    received = [plan.words_received for plan in plans]
    first = offsets(np.array(received, np.int64)) if keep else np.zeros(len(plans) + 1, np.int64)
    slack = LANES * MAX_VECTORS  # the last row is read in whole vectors
    send = aligned((max(p.words_sent for p in plans) * columns + slack,), np.float32)
    receive = aligned(((sum if keep else max)(received) * columns + slack,), np.float32)
    receive[:] = 0
    found: list[Any] = []
    for layer, plan in enumerate(plans if persistent else ()):
        exchange = comm.neighbour_exchange(
            _views(send, plan.send_ranks, plan.send_first, columns),
            _views(receive, plan.receive_ranks, plan.receive_first + first[layer], columns),
            layer=layer,
            tag=tag,
        )
        stack.callback(exchange.free)
        found += exchange.requests
    most = max(p.messages_sent + p.receive_ranks.size for p in plans)
    calls = no_calls() if comm.raw is None else calls_of(comm)
    receives = np.array([p.receive_ranks.size for p in plans], np.int64)
    sends = np.array([p.messages_sent for p in plans], np.int64)
    return Link(
        calls=calls,
        receive_first=offsets(receives),
        receive_rank=_joined([p.receive_ranks for p in plans]),
        receive_row=_joined([p.receive_first[:-1] + first[layer] for layer, p in enumerate(plans)]),
        receive_rows=_joined([np.diff(p.receive_first) for p in plans]),
        send_first=offsets(sends),
        send_rank=_joined([p.send_ranks for p in plans]),
        send_row=_joined([p.send_first[:-1] for p in plans]),
        send_rows=_joined([np.diff(p.send_first) for p in plans]),
        pack_first=offsets(np.array([p.words_sent for p in plans], np.int64)),
        pack_rows=np.concatenate([p.send_rows for p in plans]),
        requests=handles(found) if found else np.zeros(0, np.uint8),
        own_requests=np.zeros(max(1, most) * calls.handle_bytes, np.uint8),
        statuses=np.zeros(max(1, most) * (0 if comm.raw is None else status_bytes()), np.uint8),
        send=send,
        receive=receive,
        agreed=np.zeros(words, np.int32),
        counts=np.zeros((len(plans), 4), np.int64),
        seconds=np.zeros((len(plans), len(PHASES)), np.float64),
        events=np.zeros((events, 4), np.float64),
        event_count=np.zeros(1, np.int64),
        full=columns if persistent else 0,
        overlap=int(overlap),
        tag=tag,
    )


def _views(
    buffer: NDArray[np.float32], ranks: NDArray[np.int64], first: NDArray[np.int64], columns: int
) -> dict[int, NDArray[np.float32]]:
    return {
        int(rank): buffer[columns * int(first[i]) : columns * int(first[i + 1])]
        for i, rank in enumerate(ranks)
    }


def _joined(pieces: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(pieces).astype(np.int64)
