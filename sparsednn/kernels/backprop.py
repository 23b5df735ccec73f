"""Forward and backward pass of one tile through all layers of a rank, compiled.

Who owns what: a rank has its rows of every W and the matching activations. A tile is some columns
(images); all activations of the tile stay until the backward pass has used them, also those that
were received. With E the expand of a layer (owned inputs → received inputs) and its transpose the
fold, layer by layer (Demirci & Ferhatosmanoglu, arXiv 2104.11805):

====================  ==============================================================
forward               send owned inputs that others need; ``z = W_own x``; wait;
                      ``z += W_recv E x``; ``y = f(z + b)``
backward, delta = z'  ``t = W_recv^T delta``; send t back; ``s = W_own^T delta``;
                      ``G = delta x^T`` at the stored weights, ``g_b = delta 1``;
                      wait; ``s += fold of t``; ``delta of the layer before = s f'(y)``
====================  ==============================================================

The sums of gradients over data groups start as soon as a layer's are there (`Sums`), and travel
during the layers before it. Weights lie as the forward product wants them (`packing`); the
transposed product reads them there through a second packing that holds places instead of weights,
so there is one copy of each weight. Gradients lie as the weights do.

All threads of a rank's team run `forward` and `backward` together and `meet`; thread 0 talks to
MPI. Every element is computed by one thread in a fixed order: results do not depend on threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.comm.compiled import iallreduce, waitall
from sparsednn.kernels.linked import Link, finish_exchange, start_exchange
from sparsednn.kernels.microkernel import FIRST, LAST, WHOLE
from sparsednn.kernels.packing import SIGMOID, TANH
from sparsednn.kernels.passes import (
    ADD,
    AT_ONCE,
    BACKWARD,
    BACKWARD_WAIT,
    COLUMNS,
    FORWARD,
    FORWARD_WAIT,
    GO_FORWARD,
    INPUTS,
    LAST_TILE,
    PASS,
    SAMPLE,
    STOP,
    SUMS_WAIT,
    Passes,
    Sums,
)
from sparsednn.kernels.sampled import sample_layer
from sparsednn.kernels.team import arrive, meet, seconds, wait_until, watch
from sparsednn.kernels.tile_loops import bias_gradients, multiply_derivative
from sparsednn.kernels.tiles import activate, multiply_layer

__all__ = ["go", "start_sums", "wait_for_sums"]


@jit
def _rows_of(rows: int, thread: int, threads: int) -> tuple[int, int]:
    """Which rows are a thread's."""
    return rows * thread // threads, rows * (thread + 1) // threads


@jit
def _exchanges(link: Link, layer: int) -> bool:
    """Whether this rank sends or receives anything in a layer."""
    receives = link.receive_first[layer + 1] - link.receive_first[layer]
    return bool(receives + link.send_first[layer + 1] - link.send_first[layer] > 0)


@jit
def forward(p: Passes, columns: int, thread: int) -> None:
    """Take the first `columns` columns of the input tile through all layers.

    Softmax in the last layer is left to the loss. An error code of MPI is in ``error[0]``.
    """
    threads, ld = p.threads, p.stride
    clock = p.clock[thread]
    meeting = p.meeting.ctypes.data
    alive = p.alive[thread].ctypes.data
    nothing = np.empty(0, np.uint8)
    base = p.activations.ctypes.data
    for layer in range(p.code.size):
        x, y = base + 4 * p.at[layer], base + 4 * p.at[layer + 1]
        rows = p.net.width[layer + 1]
        exchange = _exchanges(p.expand, layer)
        begin = seconds(clock)
        if exchange and thread == 0:
            p.error[0] |= start_exchange(p.expand, layer, x, ld, columns)
        multiply_layer(
            p.net, 3 * layer * threads + thread, x, ld, y, ld, columns, alive, 0, nothing, p.order,
            WHOLE,
        )  # fmt: skip
        multiply_layer(
            p.net, (3 * layer + 1) * threads + thread, x, ld, y, ld, columns, alive, 0, nothing,
            p.order, FIRST,
        )  # fmt: skip
        if exchange:
            if thread == 0:
                now = seconds(clock)
                p.error[0] |= finish_exchange(p.expand, layer, columns)
                p.seconds[layer, FORWARD] += now - begin
                begin = seconds(clock)
                p.seconds[layer, FORWARD_WAIT] += begin - now
            meet(meeting, threads)
            if p.error[0] != 0:
                return
            received = p.expand.receive.ctypes.data + 4 * columns * p.received_row[layer]
            multiply_layer(
                p.net, (3 * layer + 2) * threads + thread, received, columns, y, ld, columns,
                alive, 0, nothing, p.order, LAST,
            )  # fmt: skip
        if p.code[layer] == SIGMOID or p.code[layer] == TANH:
            meet(meeting, threads)
            first, last = _rows_of(rows, thread, threads)
            tile = p.activations[p.at[layer + 1] + first * ld :]
            activate(tile, last - first, ld, columns, p.code[layer])
        meet(meeting, threads)
        if thread == 0:
            p.seconds[layer, FORWARD] += seconds(clock) - begin


@jit
def _add_incoming(p: Passes, layer: int, s: NDArray[np.float32], columns: int) -> None:
    """Add what has been folded back to the owned inputs, one message after another."""
    places, first = p.expand.pack_rows, p.expand.pack_first[layer]
    received = p.fold.receive
    for row in range(p.expand.pack_first[layer + 1] - first):
        at = np.int64(places[first + row]) * p.stride
        into, source = s[at : at + columns], received[row * columns : (row + 1) * columns]
        for c in range(columns):
            into[c] += source[c]


@jit
def backward(
    p: Passes,
    columns: int,
    thread: int,
    out: NDArray[np.float32],
    add: int,
    scale: np.float32,
    inputs: int,
    last_tile: int,
) -> None:
    """Take ``deltas[0]`` back through all layers, and leave the gradients in `out`.

    Parameters
    ----------
    p, columns, thread
        As in `forward`, which has gone before with the same columns. ``deltas[0]`` has the gradient
        with respect to z of the last layer, ``(own rows, stride)``, zero in the lanes behind the
        columns.
    out
        Weights, then biases, in the order of ``net.weight`` and ``net.bias``; ``scale`` times the
        gradients is stored there (add 0) or added (add 1). It may be the parameters themselves:
        then this is a step of plain SGD.
    inputs
        Whether the gradient with respect to the inputs is wanted, too (1); it is left in
        ``deltas[side]``, where side is the number of layers modulo 2.
    last_tile
        Whether gradients are complete behind this, and their sums over data groups may start (1).
    """
    threads, ld = p.threads, p.stride
    clock = p.clock[thread]
    meeting = p.meeting.ctypes.data
    alive = p.alive[thread].ctypes.data
    nothing = np.empty(0, np.uint8)
    base = p.activations.ctypes.data
    values = p.net.weight.ctypes.data
    edges = p.net.weight.size
    biases = out[edges:]
    side = 0
    for layer in range(p.code.size - 1, -1, -1):
        delta, s = p.deltas[side], p.deltas[1 - side]
        d = delta.ctypes.data
        x = base + 4 * p.at[layer]
        down = layer > 0 or inputs != 0
        exchange = down and _exchanges(p.fold, layer)
        begin = seconds(clock)
        if exchange:
            multiply_layer(
                p.back, 2 * layer * threads + thread, d, ld, p.folded.ctypes.data, ld, columns,
                alive, 0, nothing, p.order, WHOLE, values,
            )  # fmt: skip
            meet(meeting, threads)
            if thread == 0:
                p.error[0] |= start_exchange(p.fold, layer, p.folded.ctypes.data, ld, columns)
        if down:
            multiply_layer(
                p.back, (2 * layer + 1) * threads + thread, d, ld, s.ctypes.data, ld, columns,
                alive, 0, nothing, p.order, WHOLE, values,
            )  # fmt: skip
        if out.ctypes.data == values:
            meet(meeting, threads)  # nobody reads these weights any more
        now = seconds(clock)
        if thread == 0:
            p.seconds[layer, BACKWARD] += now - begin
        target = out.ctypes.data
        for part in (3 * layer, 3 * layer + 1):
            sample_layer(p.net, part * threads + thread, x, ld, d, ld, columns, target, add, scale)
        bias_gradients(p.net, 3 * layer * threads + thread, delta, ld, columns, biases, add, scale)
        if _exchanges(p.expand, layer):
            received = p.expand.receive.ctypes.data + 4 * columns * p.received_row[layer]
            part = (3 * layer + 2) * threads + thread
            sample_layer(p.net, part, received, columns, d, ld, columns, target, add, scale)
            bias_gradients(p.net, part, delta, ld, columns, biases, add, scale)
        begin = seconds(clock)
        if thread == 0:
            p.seconds[layer, SAMPLE] += begin - now
        if exchange:
            if thread == 0:
                p.error[0] |= finish_exchange(p.fold, layer, columns)
            meet(meeting, threads)
            if p.error[0] != 0:
                return
            if thread == 0:
                now = seconds(clock)
                p.seconds[layer, BACKWARD_WAIT] += now - begin
                begin = now
                _add_incoming(p, layer, s, columns)
        meet(meeting, threads)
        if thread == 0 and last_tile != 0 and p.sums.wanted != 0:
            p.error[0] |= _start_sum(p.sums, layer, out)
        if layer > 0:
            first, last = _rows_of(p.net.width[layer], thread, threads)
            y = p.activations[p.at[layer] + first * ld : p.at[layer] + last * ld]
            multiply_derivative(
                s[first * ld : last * ld], y, p.code[layer - 1], p.low[layer - 1],
                p.high[layer - 1],
            )  # fmt: skip
            meet(meeting, threads)
        if thread == 0:
            p.seconds[layer, BACKWARD] += seconds(clock) - begin
        side = 1 - side
    if thread == 0 and last_tile != 0 and p.sums.wanted != 0:
        p.error[0] |= _start_sum(p.sums, p.code.size, out)


@jit
def _start_sum(sums: Sums, message: int, gradient: NDArray[np.float32]) -> int:
    """Start to add up one layer's gradients (message = layer), or all biases' (behind them)."""
    calls = sums.calls
    first, last = sums.first[message], sums.first[message + 1]
    return iallreduce(
        calls.iallreduce, calls.in_place, gradient.ctypes.data + 4 * first, last - first,
        calls.float32, calls.add, calls.comm,
        sums.requests.ctypes.data + calls.handle_bytes * message,
    )  # fmt: skip


@jit
def wait_for_sums(p: Passes) -> int:
    """Wait until the sums that `backward` has started are there; returns MPI's error code."""
    calls = p.sums.calls
    clock = p.clock[0]
    begin = seconds(clock)
    error = waitall(
        calls.waitall, p.code.size + 1, p.sums.requests.ctypes.data, p.sums.statuses.ctypes.data
    )
    p.seconds[0, SUMS_WAIT] += seconds(clock) - begin
    return error


@jit
def start_sums(p: Passes, gradient: NDArray[np.float32]) -> int:
    """Start all sums at once: for a rank that has no image in this batch."""
    error = 0
    for layer in range(p.code.size - 1, -1, -1):
        error |= _start_sum(p.sums, layer, gradient)
    return error | _start_sum(p.sums, p.code.size, gradient)


@jit
def go(p: Passes, thread: int, given: int, ended: int, seen: int) -> int:
    """A thread's part in rounds of the team (`team.Team`), which do what ``p.orders`` says.

    Thread 0 does one round, and waits until `ended` has reached `seen`. The others do rounds as
    long as they come: see ``serve`` there. One function for both, since compiling takes long.
    """
    while True:
        if thread != 0:
            now = watch(given, seen)
            if now == seen:
                return seen
            seen = now
            if p.orders[PASS] == STOP:
                return -1
        columns = p.orders[COLUMNS]
        if p.orders[PASS] == GO_FORWARD:
            forward(p, columns, thread)
        else:
            at_once = p.orders[AT_ONCE] != 0
            backward(
                p, columns, thread,
                p.theta if at_once else p.gradient,
                1 if at_once else p.orders[ADD],
                -p.rate[0] if at_once else np.float32(1),
                p.orders[INPUTS], p.orders[LAST_TILE],
            )  # fmt: skip
        if thread == 0:
            wait_until(ended, seen)
            return seen
        arrive(ended)
