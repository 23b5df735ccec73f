"""What the passes of training work on: a rank's layers, a tile's memory, and orders to threads.

Flat arrays and numbers only, so that compiled code takes it as it is; `backprop` has the loops.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.compiled import Calls
from sparsednn.kernels.linked import Link
from sparsednn.kernels.packing import PackedNetwork

__all__ = [
    "ADD",
    "AT_ONCE",
    "BACKWARD",
    "BACKWARD_WAIT",
    "COLUMNS",
    "FORWARD",
    "FORWARD_WAIT",
    "GO_BACKWARD",
    "GO_FORWARD",
    "INPUTS",
    "LAST_TILE",
    "PASS",
    "PASSES",
    "SAMPLE",
    "STOP",
    "SUMS_WAIT",
    "Passes",
    "Sums",
]

#: What the time of a step goes into: columns of `Passes.seconds`.
PASSES = ("forward", "forward wait", "backward", "sample", "backward wait", "sums wait")
FORWARD, FORWARD_WAIT, BACKWARD, SAMPLE, BACKWARD_WAIT, SUMS_WAIT = range(6)


class Sums(NamedTuple):
    """Sums of gradients over data groups: one message for each layer's weights, one for biases.

    `calls` are those of the data groups' communicator; ``requests`` one handle for each.
    """

    calls: Calls
    wanted: int  # 0: there is one data group
    first: NDArray[np.int64]  # (layers + 2,): where in the gradient each message begins
    requests: NDArray[np.uint8]
    statuses: NDArray[np.uint8]


#: What a round of the team is: places in `Passes.orders`, and what stands at the first.
PASS, COLUMNS, ADD, AT_ONCE, INPUTS, LAST_TILE = range(6)
STOP, GO_FORWARD, GO_BACKWARD = range(3)


class Passes(NamedTuple):
    """A rank's layers, and the memory of one tile.

    `net` has the parts of `kernels.linked` (three for each layer, each cut for the threads by
    `packing.divide`), `back` two for each layer: the received, then the owned columns as rows, with
    int32 places in ``net.weight``. ``code``, ``low``, ``high`` ``(layers,)`` are the activations.
    ``activations`` holds a tile ``(width[l], stride)`` for each neuron layer at ``at[l]``;
    ``received_row[l]`` is the first row of layer l in the expand's receive buffer. ``deltas``
    ``(2, widest * stride)``, ``folded`` ``(most received * stride,)``; ``alive`` ``(threads, …)``,
    ``order``: what `multiply_layer` wants. ``theta`` and ``gradient`` are all parameters (`net` has
    views of them) and their gradients. ``orders`` (see `PASS`), ``meeting`` and ``error`` are
    shared by the threads.
    """

    net: PackedNetwork
    back: PackedNetwork
    code: NDArray[np.int64]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    expand: Link
    fold: Link
    sums: Sums
    activations: NDArray[np.float32]
    at: NDArray[np.int64]
    received_row: NDArray[np.int64]
    deltas: NDArray[np.float32]
    folded: NDArray[np.float32]
    alive: NDArray[np.int32]
    order: NDArray[np.int32]
    theta: NDArray[np.float32]
    gradient: NDArray[np.float32]
    orders: NDArray[np.int64]
    rate: NDArray[np.float32]  # (1,): learning rate of an order to step at once
    meeting: NDArray[np.int64]
    error: NDArray[np.int64]
    clock: NDArray[np.int64]  # (threads, 2): what `team.seconds` works with
    seconds: NDArray[np.float64]  # (layers, PASSES), of thread 0
    stride: int
    threads: int
