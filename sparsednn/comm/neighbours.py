"""`NeighbourExchange`: messages with a few other ranks, planned once and sent many times.

Persistent requests on fixed buffers: MPI sees addresses, sizes and partners once, and a round is
no more than ``MPI_Start`` and ``MPI_Waitall``. The reverse of an exchange (the fold to this
expand) is the exchange with sends and receives swapped. Must not know: whose buffers these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sparsednn.comm._buffers import Array, flat, mpi_type, pieces
from sparsednn.comm.mpi import load_mpi
from sparsednn.errors import ShapeError, UsageError

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["NeighbourExchange"]

#: Exchanges that an error left between start and finish: MPI may still write into their buffers.
_abandoned: list[NeighbourExchange] = []


class NeighbourExchange:
    """Messages to and from other ranks, with buffers that stay the same.

    Made by `Communicator.neighbour_exchange`. `start` reads the send buffers and lets messages fly;
    until `finish` returns, send buffers must not be written nor receive buffers touched. Every
    message has its counterpart on the other rank: same tag, dtype and size, started in the same
    round. The exchange holds references to the buffers until `free`, which its owner must call
    (or use it in a ``with`` statement): MPI has state of its own for each message.

    Parameters
    ----------
    comm
        The communicator.
    sends, receives
        For each other rank the array that goes there, or comes from there. C-contiguous, any
        dtype that MPI knows. An empty array is as good as none: it makes no request and is no
        message. No rank sends to itself.
    layer
        What to count the traffic under.
    verb
        What else to count it under: "exchange", or "fold" for the reverse of one.
    tag
        MPI's tag, to tell apart exchanges that are under way between the same ranks.

    Attributes
    ----------
    words, nbytes, messages
        What one `start` sends from this rank: array elements, bytes, partners.
    requests
        MPI's persistent requests: those of the receives, then those of the sends, in the order
        given; more than one for an array of more than the communicator's `limit`. Whoever starts
        these himself must start them one after another in this order, where an array has more than
        one (``MPI_Startall`` may take any order, and pieces find each other by order), and counts
        the traffic himself.
    """

    __slots__ = (
        "_checked", "_comm", "_expected", "_freed", "_in_pieces", "_layer", "_started",
        "_verb", "messages", "nbytes", "requests", "words",
    )  # fmt: skip

    words: int
    nbytes: int
    messages: int
    requests: tuple[Any, ...]

    def __init__(
        self,
        comm: Communicator,
        sends: Mapping[int, Array],
        receives: Mapping[int, Array],
        *,
        layer: int | None,
        tag: int,
        verb: str = "exchange",
    ) -> None:
        self._comm = comm
        self._verb = verb
        self._layer = layer
        self._started = False
        self._checked = False
        self._freed = False
        incoming = self._checked_buffers(receives, "receive from", written=True)
        outgoing = self._checked_buffers(sends, "send to", written=False)
        self.words = sum(data.size for _, data, _ in outgoing)
        self.nbytes = sum(data.nbytes for _, data, _ in outgoing)
        self.messages = len(outgoing)
        # (source, elements, datatype) of each receive request, to hold against what came.
        self._expected: list[tuple[int, int, Any]] = []
        requests = []
        for source, data, kind in incoming:
            for piece in pieces(data, comm.limit):
                requests.append(comm.raw.Recv_init([piece, kind], source, tag))
                self._expected.append((source, piece.size, kind))
        for dest, data, kind in outgoing:
            for piece in pieces(data, comm.limit):
                requests.append(comm.raw.Send_init([piece, kind], dest, tag))
        self._in_pieces = len(requests) > len(incoming) + len(outgoing)
        self.requests = tuple(requests)

    def _checked_buffers(
        self, arrays: Mapping[int, Array], what: str, *, written: bool
    ) -> list[tuple[int, Array, Any]]:
        """Rank, flat view and MPI type of each buffer that is not empty."""
        checked = []
        for rank, array in arrays.items():
            where = f"neighbour exchange{self._of_layer()}: {what} rank {rank}"
            if not 0 <= rank < self._comm.size:
                raise UsageError(f"{where}: there are {self._comm.size} ranks")
            if rank == self._comm.rank:
                raise UsageError(f"{where}: that is this rank itself")
            data = flat(array, where, written=written)
            kind = mpi_type(data, where)
            if data.size:
                checked.append((int(rank), data, kind))
        return checked

    def _of_layer(self) -> str:
        return "" if self._layer is None else f" of layer {self._layer}"

    def start(self, words: int | None = None) -> None:
        """Let all messages fly, and count them.

        Parameters
        ----------
        words
            What to count as words, where buffers have padding that travels, too (its bytes are
            counted); by default `words`.

        Raises
        ------
        UsageError
            If it was started and not finished, or freed.
        """
        if self._started:
            raise UsageError(f"neighbour exchange{self._of_layer()}: started twice")
        if self._freed:
            raise UsageError(f"neighbour exchange{self._of_layer()}: started after free")
        self._started = True
        if self._in_pieces:
            for request in self.requests:
                request.Start()
        elif self.requests:
            load_mpi().Prequest.Startall(self.requests)
        sent = self.words if words is None else words
        self._comm.traffic.count(self._verb, self._layer, sent, self.nbytes, self.messages)

    def finish(self) -> None:
        """Wait until all has come and the send buffers may be changed.

        MPI moves long messages within its own calls: what one does between `start` and `finish`
        overlaps with them only as far as the library makes progress by itself.

        Raises
        ------
        UsageError
            If it was not started.
        ShapeError
            If a rank sends less than this one expects (looked at in the first round, since sizes
            stay) or more.
        """
        if not self._started:
            raise UsageError(f"neighbour exchange{self._of_layer()}: finished but not started")
        mpi = load_mpi()
        statuses = None if self._checked else [mpi.Status() for _ in self.requests]
        try:
            mpi.Request.Waitall(self.requests, statuses)
        except mpi.Exception as error:
            codes = {error.Get_error_class(), *(status.Get_error() for status in statuses or ())}
            if mpi.ERR_TRUNCATE not in {mpi.Get_error_class(code) for code in codes}:
                raise
            raise ShapeError(
                f"neighbour exchange{self._of_layer()}: a message for rank {self._comm.rank} is "
                "longer than its buffer"
            ) from None
        self._started = False
        if statuses is not None:
            self._checked = True
            self._check_sizes(statuses)

    def _check_sizes(self, statuses: list[Any]) -> None:
        received = statuses[: len(self._expected)]
        for (source, size, kind), status in zip(self._expected, received, strict=True):
            found = status.Get_count(kind)
            if found != size:
                raise ShapeError(
                    f"neighbour exchange{self._of_layer()}: {size} {kind.Get_name()} expected "
                    f"from rank {source}, found {found}"
                )

    def free(self) -> None:
        """Give the requests back to MPI; a second time does nothing.

        Raises
        ------
        UsageError
            If it was started and not finished: messages are under way.
        """
        if self._started:
            raise UsageError(f"neighbour exchange{self._of_layer()}: freed before finish")
        for request in self.requests:
            request.Free()
        self.requests = ()
        self._freed = True

    def __enter__(self) -> NeighbourExchange:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._started and error is not None:
            # Neither waiting (a partner may be gone) nor freeing memory under MPI's hands.
            _abandoned.append(self)
            return
        self.free()

    def __repr__(self) -> str:
        """Return what one round sends."""
        return f"NeighbourExchange(words={self.words}, messages={self.messages})"
