"""One layer of a tile when other ranks own some of its inputs: exchange and multiply, compiled.

Each rank holds some rows of a layer. Of its columns it *owns* some (their activations are in its
tile) and *receives* the others. A layer is three parts of a `PackedNetwork`:

=================  ============================================================================
``3 l``            rows that need nothing from others: finished at once
``3 l + 1``        the owned columns of all other rows: sums only
``3 l + 2``        the received columns of these rows: the sums go on, and are finished
=================  ============================================================================

Parts 0 and 1 are multiplied while the messages travel. Rows that others need are packed into one
buffer, each neighbour's rows one behind another, a row's columns contiguous; what arrives has the
same form, so part 2 reads it where it lies.

A full tile uses the persistent requests; any other width (the last tiles of all) makes immediate
ones, so that not one word more is sent than there are columns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.comm.compiled import Calls, allreduce, copy, startall, transfer, waitall, wtime
from sparsednn.kernels.microkernel import FIRST, LAST, WHOLE
from sparsednn.kernels.packing import PackedNetwork
from sparsednn.kernels.tiles import multiply_layer

__all__ = [
    "AGREE",
    "COMPUTE",
    "PACK",
    "PHASES",
    "WAIT",
    "Link",
    "agree",
    "finish_exchange",
    "multiply_linked",
    "start_exchange",
]

#: Phases of a layer: columns of `Link.seconds`, and what events are.
PHASES = ("pack", "compute", "wait", "agree")
PACK, COMPUTE, WAIT, AGREE = range(4)


class Link(NamedTuple):
    """What one stream of tiles on one rank needs to exchange rows with its neighbours.

    Messages of layer l are ``receive_first[l]:receive_first[l+1]`` (rank, first row and rows in the
    receive buffer) and the same for `send_…`; ``pack_first[l]:pack_first[l+1]`` are the rows of
    the tile, in `pack_rows`, that are packed. `requests` are handles of persistent requests, one
    for each message: for each layer its receives, then its sends. Without any (`full` is 0 then)
    immediate requests are made in `own_requests`.

    `counts` ``(layers, 4)``: words and messages sent, words and calls of agreements. `seconds`
    ``(layers, 4)`` by phase. `events` ``(room, 4)``: phase, layer, begin, end (MPI_Wtime), as many
    as there is room for; `event_count` counts all.
    """

    calls: Calls
    receive_first: NDArray[np.int64]
    receive_rank: NDArray[np.int64]
    receive_row: NDArray[np.int64]
    receive_rows: NDArray[np.int64]
    send_first: NDArray[np.int64]
    send_rank: NDArray[np.int64]
    send_row: NDArray[np.int64]
    send_rows: NDArray[np.int64]
    pack_first: NDArray[np.int64]
    pack_rows: NDArray[np.int32]
    requests: NDArray[np.uint8]
    own_requests: NDArray[np.uint8]
    statuses: NDArray[np.uint8]
    send: NDArray[np.float32]
    receive: NDArray[np.float32]
    agreed: NDArray[np.int32]
    counts: NDArray[np.int64]
    seconds: NDArray[np.float64]
    events: NDArray[np.float64]
    event_count: NDArray[np.int64]
    full: int  # columns of a tile that has persistent requests
    overlap: int  # 0: wait before anything is multiplied (to see what overlap gains)
    tag: int


@jit
def _note(link: Link, phase: int, layer: int, begin: float, end: float) -> None:
    link.seconds[layer, phase] += end - begin
    at = link.event_count[0]
    link.event_count[0] = at + 1
    if at < link.events.shape[0]:
        link.events[at, 0] = phase
        link.events[at, 1] = layer
        link.events[at, 2] = begin
        link.events[at, 3] = end


@jit
def _post(
    link: Link,
    function: int,
    buffer: int,
    messages: tuple[int, int],
    rank: NDArray[np.int64],
    row: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: int,
    request: int,
) -> int:
    """Start immediate sends or receives of these messages; their requests are stored one by one."""
    calls = link.calls
    for m in range(messages[0], messages[1]):
        error = transfer(
            function, buffer + 4 * columns * int(row[m]), columns * int(rows[m]), calls.float32,
            int(rank[m]), link.tag, calls.comm, request,
        )  # fmt: skip
        if error != 0:
            return error
        request += calls.handle_bytes
    return 0


@jit
def start_exchange(link: Link, layer: int, x: int, ldx: int, columns: int) -> int:
    """Post the receives, pack the rows that others need, and start sending them.

    `x` is the address of a tile ``(rows, ldx)``; returns MPI's error code.
    """
    calls = link.calls
    persistent = columns == link.full
    receives = (link.receive_first[layer], link.receive_first[layer + 1])
    sends = (link.send_first[layer], link.send_first[layer + 1])
    incoming, outgoing = receives[1] - receives[0], sends[1] - sends[0]
    made = link.requests.ctypes.data + calls.handle_bytes * (receives[0] + sends[0])
    own = link.own_requests.ctypes.data
    error = 0
    if incoming and persistent:
        error = startall(calls.startall, incoming, made)
    elif incoming:
        error = _post(
            link, calls.irecv, link.receive.ctypes.data, receives, link.receive_rank,
            link.receive_row, link.receive_rows, columns, own,
        )  # fmt: skip
    if error != 0:
        return error
    target = link.send.ctypes.data
    for k in range(link.pack_first[layer], link.pack_first[layer + 1]):
        copy(target, x + 4 * ldx * int(link.pack_rows[k]), 4 * columns)
        target += 4 * columns
    if outgoing and persistent:
        error = startall(calls.startall, outgoing, made + calls.handle_bytes * incoming)
    elif outgoing:
        error = _post(
            link, calls.isend, link.send.ctypes.data, sends, link.send_rank, link.send_row,
            link.send_rows, columns, own + calls.handle_bytes * incoming,
        )  # fmt: skip
    if error != 0:
        return error
    link.counts[layer, 0] += columns * (link.pack_first[layer + 1] - link.pack_first[layer])
    link.counts[layer, 1] += outgoing
    return 0


@jit
def finish_exchange(link: Link, layer: int, columns: int) -> int:
    """Wait until everything of this layer has been sent and received; returns MPI's error code."""
    calls = link.calls
    before = link.receive_first[layer] + link.send_first[layer]
    count = link.receive_first[layer + 1] + link.send_first[layer + 1] - before
    if count == 0:
        return 0
    requests = link.own_requests.ctypes.data
    if columns == link.full:
        requests = link.requests.ctypes.data + calls.handle_bytes * before
    return waitall(calls.waitall, count, requests, link.statuses.ctypes.data)


@jit
def multiply_linked(
    net: PackedNetwork,
    link: Link,
    layer: int,
    x: int,
    ldx: int,
    y: int,
    ldy: int,
    columns: int,
    alive: int,
    filled: int,
    source_filled: NDArray[np.uint8],
    order: NDArray[np.int32],
) -> int:
    """One layer of a tile, without its second activation pass; arguments as for `multiply_layer`.

    All ranks of the communicator call it for the same layer and the same columns, in the same
    order. Returns MPI's error code, 0 if all went well.
    """
    clock = link.calls.wtime
    begin = wtime(clock)
    error = start_exchange(link, layer, x, ldx, columns)
    if error != 0:
        return error
    now = wtime(clock)
    _note(link, PACK, layer, begin, now)
    if link.overlap == 0:
        error = finish_exchange(link, layer, columns)
        if error != 0:
            return error
        begin, now = now, wtime(clock)
        _note(link, WAIT, layer, begin, now)
    begin = now
    multiply_layer(
        net, 3 * layer, x, ldx, y, ldy, columns, alive, filled, source_filled, order, WHOLE
    )
    multiply_layer(
        net, 3 * layer + 1, x, ldx, y, ldy, columns, alive, 0, source_filled, order, FIRST
    )
    now = wtime(clock)
    _note(link, COMPUTE, layer, begin, now)
    if link.overlap != 0:
        error = finish_exchange(link, layer, columns)
        if error != 0:
            return error
        begin, now = now, wtime(clock)
        _note(link, WAIT, layer, begin, now)
    if link.receive_first[layer + 1] > link.receive_first[layer]:
        begin = now
        received = link.receive.ctypes.data
        nothing = source_filled[:0]
        multiply_layer(
            net, 3 * layer + 2, received, columns, y, ldy, columns, alive, filled, nothing, order,
            LAST,
        )  # fmt: skip
        _note(link, COMPUTE, layer, begin, wtime(clock))
    return 0


@jit
def agree(link: Link, layer: int, alive: NDArray[np.int32], columns: int) -> int:
    """Combine the alive words of all ranks: a column lives while it lives anywhere."""
    calls = link.calls
    begin = wtime(calls.wtime)
    error = allreduce(
        calls.allreduce, alive.ctypes.data, link.agreed.ctypes.data, columns, calls.int32,
        calls.bitwise_or, calls.comm,
    )  # fmt: skip
    if error != 0:
        return error
    alive[:columns] = link.agreed[:columns]
    link.counts[layer, 2] += columns
    link.counts[layer, 3] += 1
    _note(link, AGREE, layer, begin, wtime(calls.wtime))
    return 0
