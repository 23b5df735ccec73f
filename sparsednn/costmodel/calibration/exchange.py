"""Messages between neighbours, timed on the ranks through the very calls that inference makes.

Everything here is collective over the ranks of a communicator, and returns the same on all of them.
The loops are compiled, as those of the engine are: `kernels.linked.start_exchange` and
`finish_exchange` on a link of `distributed.links.make_link`. Must not know: what becomes of the
times.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.comm.compiled import wtime
from sparsednn.costmodel.calibration.timing import Action, Effort, in_rounds
from sparsednn.distributed.links import make_link
from sparsednn.distributed.plan import ExchangePlan, offsets
from sparsednn.kernels.cpu import aligned
from sparsednn.kernels.linked import Link, finish_exchange, multiply_linked, start_exchange
from sparsednn.kernels.packing import PackedNetwork, Rows, pack_rows

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = [
    "measure_exchange",
    "measure_layer",
    "measure_overhead",
    "measure_overlap",
    "measure_pack",
    "measure_ping_pong",
    "slowest",
]

_WORD = 4
#: Columns of the tiles whose rows are sent: the shortest message is one row of eight bytes.
_COLUMNS = 2
#: Neurons of the tile from which rows are packed: with their longest rows 768 KiB, as a tile that
#: fills its part of the second-level cache.
_TILE_ROWS = 512


def slowest(comm: Communicator, run: Callable[[int], object]) -> Action:
    """Make an action of something that all ranks do at once: the seconds of the slowest rank.

    They begin together (behind a barrier), and each stops its own clock.
    """
    from sparsednn.comm.mpi import load_mpi

    clock = load_mpi().Wtime

    def action(repeats: int) -> float:
        comm.barrier()
        begin = clock()
        run(repeats)
        seconds = np.array([clock() - begin])
        comm.allreduce(seconds, "max")
        return float(seconds[0])

    return action


@jit
def _exchanges(link: Link, layer: int, columns: int, repeats: int) -> int:
    for _ in range(repeats):
        error = start_exchange(link, layer, 0, 0, columns)
        if error != 0:
            return error
        error = finish_exchange(link, layer, columns)
        if error != 0:
            return error
    return 0


@jit
def _starts(link: Link, layer: int, columns: int, repeats: int) -> int:
    """As `_exchanges`; the seconds within `start_exchange` are added up in `link.seconds`."""
    for _ in range(repeats):
        begin = wtime(link.calls.wtime)
        error = start_exchange(link, layer, 0, 0, columns)
        if error != 0:
            return error
        link.seconds[layer, 0] += wtime(link.calls.wtime) - begin
        error = finish_exchange(link, layer, columns)
        if error != 0:
            return error
    return 0


@jit
def _overlapped(link: Link, layer: int, columns: int, busy: float, repeats: int) -> int:
    """As `_exchanges`, with `busy` seconds of work (which is none of MPI's) in between."""
    for _ in range(repeats):
        error = start_exchange(link, layer, 0, 0, columns)
        if error != 0:
            return error
        end = wtime(link.calls.wtime) + busy
        while wtime(link.calls.wtime) < end:
            pass
        error = finish_exchange(link, layer, columns)
        if error != 0:
            return error
    return 0


@jit
def _packs(link: Link, layer: int, x: int, ldx: int, columns: int, repeats: int) -> int:
    for _ in range(repeats):
        start_exchange(link, layer, x, ldx, columns)
    return 0


@jit
def _layers(
    net: PackedNetwork,
    link: Link,
    x: int,
    columns: int,
    alive: int,
    nothing: NDArray[np.uint8],
    order: NDArray[np.int32],
    repeats: int,
) -> int:
    for _ in range(repeats):
        error = multiply_linked(
            net, link, 0, x, columns, x, columns, columns, alive, 0, nothing, order
        )
        if error != 0:
            return error
    return 0


def _ring(comm: Communicator, rows: int, messages: int) -> ExchangePlan:
    """Each rank sends `rows` rows to each of the next `messages` ranks."""
    steps = range(1, messages + 1)
    ahead = np.array(sorted((comm.rank + step) % comm.size for step in steps), np.int64)
    behind = np.array(sorted((comm.rank - step) % comm.size for step in steps), np.int64)
    first = offsets(np.full(messages, rows, np.int64))
    every = np.zeros(rows * messages, np.int32)
    return ExchangePlan(ahead, first, every, behind, first, every)


def _link(
    comm: Communicator,
    sizes: Sequence[int],
    stack: ExitStack,
    *,
    messages: int = 1,
    persistent: bool = True,
) -> Link:
    """A link with a layer for each size (bytes of a message), in which nothing is packed."""
    rows = [max(1, round(size / (_WORD * _COLUMNS))) for size in sizes]
    plans = [_ring(comm, count, messages) for count in rows]
    link = make_link(plans, comm, _COLUMNS, stack, persistent=persistent)
    return link._replace(pack_first=np.zeros_like(link.pack_first))


def measure_exchange(
    comm: Communicator,
    sizes: Sequence[int],
    effort: Effort,
    *,
    messages: int = 1,
    persistent: bool = True,
) -> list[float]:
    """Return the seconds of one exchange for each size.

    Every rank sends a message of so many bytes to each of the next `messages` ranks and receives
    as many: start, wait, again. Nothing is packed.

    Parameters
    ----------
    comm
        Has more ranks than `messages`.
    sizes
        Bytes of a message; multiples of 8.
    persistent
        Whether requests are made once, as for full tiles, or each time anew.
    """
    with ExitStack() as stack:
        link = _link(comm, sizes, stack, messages=messages, persistent=persistent)
        actions = [
            slowest(comm, partial(_checked, _exchanges, link, layer, _COLUMNS))
            for layer in range(len(sizes))
        ]
        found = in_rounds(actions, effort)
        comm.barrier()  # nobody frees requests that a slower one still waits for
    return [float(one) for one in found]


def measure_overhead(comm: Communicator, effort: Effort) -> float:
    """Return the processor's seconds for starting one small message or one receive."""
    with ExitStack() as stack:
        link = _link(comm, [8], stack)
        slow = slowest(comm, partial(_checked, _starts, link, 0, _COLUMNS))
        repeats = 1000
        samples = []
        for _ in range(effort.rounds + 1):
            link.seconds[:] = 0
            slow(repeats)
            spent = np.array([link.seconds[0, 0] / repeats])
            comm.allreduce(spent, "max")
            samples.append(float(spent[0]))
        comm.barrier()
    return float(np.median(samples[1:])) / 2  # a receive and a send


def measure_overlap(comm: Communicator, sizes: Sequence[int], effort: Effort) -> list[float]:
    """Return which part of an exchange goes on while the ranks compute, for each size.

    With an exchange alone ``t`` seconds, and with ``t`` seconds of work between its start and its
    end ``T`` seconds in all, it is ``(2 t - T) / t``, between 0 and 1.
    """
    alone = measure_exchange(comm, sizes, effort)
    with ExitStack() as stack:
        link = _link(comm, sizes, stack)
        actions = [
            slowest(comm, partial(_checked, _overlapped, link, layer, _COLUMNS, busy))
            for layer, busy in enumerate(alone)
        ]
        both = in_rounds(actions, effort)
        comm.barrier()
    return [
        float(np.clip((2 * t - together) / t, 0, 1))
        for t, together in zip(alone, both, strict=True)
    ]


def measure_pack(
    comm: Communicator, shapes: Sequence[tuple[int, int]], effort: Effort
) -> list[float]:
    """Return the seconds of packing rows of a tile into the send buffer.

    Parameters
    ----------
    shapes
        Rows and columns of what is packed; the rows are random ones of a larger tile, ascending.
    """
    widest = max(columns for _, columns in shapes)
    rng = np.random.default_rng(comm.rank)
    none, empty = np.zeros(0, np.int64), np.zeros(0, np.int32)
    plans = []
    for rows, _ in shapes:
        picked = np.sort(rng.permutation(np.resize(np.arange(_TILE_ROWS), max(rows, _TILE_ROWS))))
        picked = picked[np.linspace(0, picked.size - 1, rows).astype(np.int64)].astype(np.int32)
        plans.append(ExchangePlan(none, offsets(none), picked, none, offsets(none), empty))
    tile = aligned((_TILE_ROWS, widest + 16), np.float32)
    tile[:] = 0.5
    place = (tile.ctypes.data, tile.shape[1])
    with ExitStack() as stack:
        link = make_link(plans, comm, widest, stack, persistent=False)
        actions = [
            slowest(comm, partial(_checked, _packs, link, layer, *place, columns))
            for layer, (_, columns) in enumerate(shapes)
        ]
        found = in_rounds(actions, effort)
    return [float(one) for one in found]


def measure_layer(comm: Communicator, effort: Effort) -> float:
    """Return the seconds of a layer in which there is nothing to multiply and nothing to send."""
    rows = Rows(
        np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0, np.float32),
        np.zeros(0, np.float32), np.zeros(0, np.int32),
    )  # fmt: skip
    net = pack_rows([rows, rows, rows], [1, 1], 0)
    none = np.zeros(0, np.int64)
    plan = ExchangePlan(none, offsets(none), none.astype(np.int32), none, offsets(none),
                        none.astype(np.int32))  # fmt: skip
    columns = 48
    tile = aligned((1, columns), np.float32)
    alive = aligned((columns,), np.int32)
    nothing, order = np.zeros(0, np.uint8), np.zeros((2, 1), np.int32)
    with ExitStack() as stack:
        link = make_link([plan], comm, columns, stack, persistent=False)
        run = partial(
            _checked, _layers, net, link, tile.ctypes.data, columns, alive.ctypes.data, nothing,
            order,
        )  # fmt: skip
        layer = slowest(comm, run)
        return float(in_rounds([layer], effort)[0])


def measure_ping_pong(comm: Communicator, sizes: Sequence[int], effort: Effort) -> list[float]:
    """Return the seconds of one message from rank 0 to rank 1, half of a message to and fro.

    Blocking sends and receives of mpi4py; other ranks wait.
    """
    actions = [
        slowest(comm, partial(_ping_pong, comm.raw, np.zeros(max(1, size), np.uint8)))
        for size in sizes
    ]
    return [float(one) / 2 for one in in_rounds(actions, effort)]


def _ping_pong(raw: Any, data: NDArray[np.uint8], repeats: int) -> None:
    if raw.rank > 1:
        return
    other = 1 - raw.rank
    for _ in range(repeats):
        if raw.rank == 0:
            raw.Send(data, other)
            raw.Recv(data, other)
        else:
            raw.Recv(data, other)
            raw.Send(data, other)


def _checked(loop: Callable[..., int], *arguments: Any) -> None:
    """Run a compiled loop; MPI's error, if there is one, as an exception."""
    code = loop(*arguments)
    if code:
        from sparsednn.comm.compiled import mpi_error
        from sparsednn.errors import LaunchError

        raise LaunchError(f"MPI reports an error in an exchange: {mpi_error(code)}")
