"""`Communicator`: the few MPI verbs that the toolkit uses, checked, counted, and without pickle.

Everything travels as memory of arrays. A call of more than `limit` elements goes in pieces, since
counts in MPI are 32-bit integers; beyond the limit being right matters more than being quick.
Must not know: networks, partitions, and what the numbers mean.

What `Traffic` counts for a verb, with p ranks (p = 1 counts nothing):

==============  ===========================  ==============  ==================================
verb            words that leave this rank   messages        the algorithm that this is true of
==============  ===========================  ==============  ==================================
broadcast       n; 0 on the chain's last     1; 0            pipelined chain root, root + 1, …
reduce          n; 0 on the root             1; 0            pipelined chain to the root
allreduce       2n(p - 1)/p, rounded up      2(p - 1)        ring reduce-scatter, ring allgather
reduce_scatter  all elements but my piece    p - 1           ring
allgather       n(p - 1), n my part          p - 1           each part goes round the ring
all_to_all      those for other ranks        non-empty ones  direct
send, gather    n; gather's root 0           1; 0            direct
==============  ===========================  ==============  ==================================

A verb that is started (`start_broadcast`, …; `nonblocking`) is counted then, as its namesake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm._buffers import (
    Array,
    as_counts,
    empty,
    flat,
    mpi_operation,
    mpi_type,
    pieces,
)
from sparsednn.comm.mpi import load_mpi
from sparsednn.comm.neighbours import NeighbourExchange
from sparsednn.comm.nonblocking import NonblockingVerbs
from sparsednn.comm.traffic import Traffic
from sparsednn.errors import ShapeError, UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Communicator"]


class Communicator(NonblockingVerbs):
    """Ranks that work together, and the verbs between them.

    Parameters
    ----------
    raw
        mpi4py's intracommunicator; `free` frees it.
    traffic
        Where to count; a new one if not given. Children share it.
    limit
        The most elements of one MPI call, 1 to 2³¹ - 1; the same on all ranks.

    Notes
    -----
    Every verb but `send` and `receive` is collective: all ranks of the communicator call it, in
    the same order, with the same root, operation, dtype, and (broadcast, reduce, allreduce,
    reduce_scatter) size. Every verb raises `ShapeError` for an array that is not C-contiguous or
    does not have the size that its counts say, and `UsageError` for a rank or an operation that is
    none and for elements that MPI does not know. These are found on the rank that made the
    mistake; others may then wait, so an error that may be one rank's alone belongs in
    `failure.together`, or ends in `failure.abort`.
    """

    __slots__ = ()

    def neighbour_exchange(
        self,
        sends: Mapping[int, Array],
        receives: Mapping[int, Array],
        *,
        layer: int | None = None,
        tag: int = 0,
        verb: str = "exchange",
    ) -> NeighbourExchange:
        """Plan messages between fixed buffers; see `NeighbourExchange`. Sends nothing yet."""
        self._check_tag(tag)
        return NeighbourExchange(self, sends, receives, layer=layer, tag=tag, verb=verb)

    def broadcast(self, array: Array, root: int = 0, *, layer: int | None = None) -> None:
        """Fill `array` on every rank with what it holds on `root`; in place."""
        data, kind = self._for_broadcast(array, root, layer)
        if self.size > 1:
            for piece in pieces(data, self.limit):
                self.raw.Bcast([piece, kind], root)

    def reduce(
        self, array: Array, root: int = 0, op: str = "sum", *, layer: int | None = None
    ) -> None:
        """Combine the arrays of all ranks on `root`, in place; those of the others stay.

        `op` as for `allreduce`.
        """
        data, kind, operation = self._for_reduce(array, root, op, layer)
        if self.size > 1:
            for piece in pieces(data, self.limit):
                if self.rank == root:
                    self.raw.Reduce(load_mpi().IN_PLACE, [piece, kind], operation, root)
                else:
                    self.raw.Reduce([piece, kind], None, operation, root)

    def allreduce(
        self,
        array: Array,
        op: str = "sum",
        *,
        layer: int | None = None,
        verb: str = "allreduce",
    ) -> None:
        """Combine the arrays of all ranks element by element; in place, the result on every rank.

        `op` is "sum", "max", "min" or "or" (of the bits; the only one for bool, and not for
        floats). Sums of floats depend on the number of ranks and on the library by rounding.
        `verb` is what it is counted under.
        """
        data, kind, operation = self._for_allreduce(array, op, layer, verb)
        if self.size > 1:
            for piece in pieces(data, self.limit):
                self.raw.Allreduce(load_mpi().IN_PLACE, [piece, kind], operation)

    def reduce_scatter(
        self,
        array: Array,
        counts: Sequence[int] | NDArray[Any],
        op: str = "sum",
        *,
        layer: int | None = None,
    ) -> Array:
        """Combine the arrays of all ranks and return this rank's piece of the result, flat.

        Parameters
        ----------
        array
            ``sum(counts)`` elements, the pieces of ranks 0, 1, … after each other.
        counts
            Elements of each rank's piece; the same on all ranks.
        op
            As for `allreduce`.
        """
        data = flat(array, "reduce_scatter")
        kind, operation = mpi_type(data, "reduce_scatter"), mpi_operation(data, op)
        sizes = as_counts(counts, self.size, "reduce_scatter")
        _check_total("reduce_scatter", data, sizes)
        mine = empty(data, sizes[self.rank])
        if self.size == 1:
            mine[:] = data
        elif 0 < data.size <= self.limit:
            self.raw.Reduce_scatter([data, kind], [mine, kind], sizes, operation)
        else:
            for owner, block in enumerate(_blocks(data, sizes)):
                target = pieces(mine, self.limit)
                for piece in pieces(block, self.limit):
                    into = [next(target), kind] if owner == self.rank else None
                    self.raw.Reduce([piece, kind], into, operation, owner)
        self._count("reduce_scatter", layer, data, data.size - mine.size, self.size - 1)
        return mine

    def allgather(
        self,
        array: Array,
        counts: Sequence[int] | NDArray[Any] | None = None,
        *,
        layer: int | None = None,
    ) -> Array:
        """Return the arrays of all ranks after each other, flat, on every rank.

        Parameters
        ----------
        array
            Any number of elements, also none.
        counts
            The number of each rank, the same on all ranks; found out (with one more small message)
            if not given. All ranks give it, or none does.
        """
        data = flat(array, "allgather")
        kind = mpi_type(data, "allgather")
        if counts is None:
            sizes = self._all_sizes(data.size)
        else:
            sizes = as_counts(counts, self.size, "allgather")
        if data.size != sizes[self.rank]:
            raise ShapeError(
                f"allgather: rank {self.rank} has {data.size} elements, its count says "
                f"{sizes[self.rank]}"
            )
        result = self._concatenation(data, kind, sizes)
        words = data.size * (self.size - 1)
        self._count("allgather", layer, data, words, self.size - 1)
        return result

    def all_to_all(
        self, array: Array, counts: Sequence[int] | NDArray[Any], *, layer: int | None = None
    ) -> tuple[Array, NDArray[np.int64]]:
        """Send each rank its part of `array`.

        Parameters
        ----------
        array
            ``sum(counts)`` elements: what rank 0 gets, then what rank 1 gets, …
        counts
            Elements for each rank, this one too.

        Returns
        -------
        received, received_counts
            What came from ranks 0, 1, … after each other, flat; and ``(size,)`` int64.
        """
        data = flat(array, "all_to_all")
        kind = mpi_type(data, "all_to_all")
        sizes = as_counts(counts, self.size, "all_to_all")
        _check_total("all_to_all", data, sizes)
        received_counts = np.empty(self.size, np.int64)
        self.raw.Alltoall(np.asarray(sizes, np.int64), received_counts)
        received = empty(data, int(received_counts.sum()))
        outgoing = _blocks(data, sizes)
        incoming = _blocks(received, received_counts.tolist())
        incoming[self.rank][:] = outgoing[self.rank]
        # Not MPI_Alltoallv: whether its counts and displacements keep to the limit is another
        # question on each rank, and asking all would cost one more collective.
        requests = []
        for step in range(1, self.size):
            source = (self.rank - step) % self.size
            for piece in pieces(incoming[source], self.limit):
                requests.append(self.raw.Irecv([piece, kind], source, self._own_tag))
        for step in range(1, self.size):
            dest = (self.rank + step) % self.size
            for piece in pieces(outgoing[dest], self.limit):
                requests.append(self.raw.Isend([piece, kind], dest, self._own_tag))
        load_mpi().Request.Waitall(requests)
        others = sum(1 for dest, count in enumerate(sizes) if count and dest != self.rank)
        self._count("all_to_all", layer, data, data.size - sizes[self.rank], others)
        return received, received_counts

    def send(self, array: Array, dest: int, tag: int = 0) -> None:
        """Send to another rank, which calls `receive` with an array of this size and dtype.

        Returns when `array` may be changed again. An empty array is not sent (nor received).
        """
        self._check_rank(dest, "send: dest", other=True)
        self._check_tag(tag)
        data = flat(array, "send")
        kind = mpi_type(data, "send")
        for piece in pieces(data, self.limit):
            self.raw.Send([piece, kind], dest, tag)
        self._count("send", None, data, data.size, 1)

    def receive(self, array: Array, source: int, tag: int = 0) -> None:
        """Fill `array` with what another rank sends; raises ShapeError if that is less."""
        self._check_rank(source, "receive: source", other=True)
        self._check_tag(tag)
        data = flat(array, "receive", written=True)
        kind = mpi_type(data, "receive")
        status = load_mpi().Status()
        for piece in pieces(data, self.limit):
            self.raw.Recv([piece, kind], source, tag, status)
            found = status.Get_count(kind)
            if found != piece.size:
                raise ShapeError(
                    f"receive: {piece.size} {data.dtype} expected from rank {source}, found {found}"
                )

    def gather(self, array: Array, root: int = 0) -> list[Array] | None:
        """Collect the arrays of all ranks on one.

        Any sizes, the same dtype. Returns on `root` a list of flat arrays, one for each rank (its
        own is a copy), and None elsewhere.
        """
        self._check_rank(root, "gather: root")
        data = flat(array, "gather")
        kind = mpi_type(data, "gather")
        sizes = np.empty(self.size, np.int64) if self.rank == root else None
        self.raw.Gather(np.array([data.size], np.int64), sizes, root)
        self._count("gather", None, data, 0 if self.rank == root else data.size, 1)
        if sizes is None:
            for piece in pieces(data, self.limit):
                self.raw.Send([piece, kind], root, self._own_tag)
            return None
        gathered = [empty(data, int(size)) for size in sizes]
        gathered[root][:] = data
        requests = [
            self.raw.Irecv([piece, kind], source, self._own_tag)
            for source, into in enumerate(gathered)
            if source != root
            for piece in pieces(into, self.limit)
        ]
        load_mpi().Request.Waitall(requests)
        return gathered

    def broadcast_json(self, value: Any, root: int = 0) -> Any:
        """Return the value of `root` on every rank, as JSON gives it back (tuples become lists).

        For small metadata; not counted.

        Raises
        ------
        UsageError
            On every rank, if the value of `root` is not JSON.
        """
        self._check_rank(root, "broadcast_json: root")
        text = b""
        size = np.empty(1, np.int64)
        reason = ""
        if self.rank == root:
            try:
                text = json.dumps(value).encode()
                size[0] = len(text)
            except (TypeError, ValueError) as error:
                # The others wait for a size: they hear that there is none.
                reason = f": {error}"
                size[0] = -1
        self.raw.Bcast(size, root)
        if size[0] < 0:
            raise UsageError(f"broadcast_json: the value of rank {root} is not JSON{reason}")
        data = np.frombuffer(text, np.uint8).copy() if text else np.empty(int(size[0]), np.uint8)
        for piece in pieces(data, self.limit):
            self.raw.Bcast(piece, root)
        return json.loads(data.tobytes())

    def allgather_text(self, text: str) -> list[str]:
        """Return the texts of all ranks on every rank, as UTF-8 bytes on the way; not counted.

        Lone surrogates (file names that are not UTF-8) arrive as they are.
        """
        mine = np.frombuffer(text.encode(errors="surrogatepass"), np.uint8)
        sizes = self._all_sizes(mine.size)
        everything = self._concatenation(mine, mpi_type(mine, "allgather_text"), sizes)
        return [
            block.tobytes().decode(errors="surrogatepass") for block in _blocks(everything, sizes)
        ]

    def any_rank(self, flag: bool) -> bool:
        """Return on every rank whether `flag` is true on any; one int32 allreduce, not counted."""
        state = np.array([flag], np.int32)
        self.raw.Allreduce(load_mpi().IN_PLACE, state, load_mpi().MAX)
        return bool(state[0])

    def split(
        self, color: int | None, key: int = 0, *, traffic: Traffic | None = None
    ) -> Communicator | None:
        """Divide the ranks: those of one `color` (from 0) go together, ordered by `key`, then rank.

        Returns the new communicator, which shares this one's `Traffic` unless given another; None
        where `color` is None. Collective.
        """
        if color is not None and color < 0:
            raise UsageError(f"split: color {color} is negative; None leaves a rank out")
        mpi = load_mpi()
        raw = self.raw.Split(mpi.UNDEFINED if color is None else color, key)
        return self._child(raw, traffic) if raw else None

    def duplicate(self, *, traffic: Traffic | None = None) -> Communicator:
        """Return the same ranks on a communicator of its own; shares the `Traffic` like `split`."""
        return self._child(self.raw.Dup(), traffic)

    def _child(self, raw: MPI.Comm, traffic: Traffic | None) -> Communicator:
        return Communicator(
            raw, traffic=self.traffic if traffic is None else traffic, limit=self.limit
        )

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.raw.Barrier()

    def free(self) -> None:
        """Free mpi4py's communicator (collective); a second time does nothing."""
        if self.raw:
            self.raw.Free()

    def _all_sizes(self, size: int) -> list[int]:
        sizes = np.empty(self.size, np.int64)
        self.raw.Allgather(np.array([size], np.int64), sizes)
        return [int(one) for one in sizes]

    def _concatenation(self, data: Array, kind: Any, sizes: list[int]) -> Array:
        """The flat arrays of all ranks after each other."""
        total = sum(sizes)
        result = empty(data, total)
        if self.size > 1 and 0 < total <= self.limit:
            self.raw.Allgatherv([data, kind], [result, sizes, None, kind])
            return result
        for owner, block in enumerate(_blocks(result, sizes)):
            if owner == self.rank:
                block[:] = data
            if self.size > 1:
                for piece in pieces(block, self.limit):
                    self.raw.Bcast([piece, kind], owner)
        return result

    def __repr__(self) -> str:
        """Return rank and size."""
        return f"Communicator(rank {self.rank} of {self.size})"


def _blocks(array: Array, sizes: Sequence[int]) -> list[Array]:
    """Views of consecutive blocks of a flat array."""
    ends = np.cumsum(sizes).tolist()
    return [array[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def _check_total(verb: str, array: Array, sizes: Sequence[int]) -> None:
    if array.size != sum(sizes):
        raise ShapeError(f"{verb}: {array.size} elements, but counts that add up to {sum(sizes)}")
