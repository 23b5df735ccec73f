"""`Ranks`: what all verbs of `Communicator` share: who is there, checks, and counting.

What a verb checks and counts is the same whether it blocks or not, so it stands here once. Must
not know: how anything travels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sparsednn.comm._buffers import Array, flat, mpi_operation, mpi_type
from sparsednn.comm.mpi import load_mpi
from sparsednn.comm.traffic import Traffic
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Ranks"]


class Ranks:
    """Ranks that work together; see `Communicator` for the parameters."""

    __slots__ = ("_own_tag", "limit", "rank", "raw", "size", "traffic")

    raw: MPI.Comm
    rank: int
    size: int
    traffic: Traffic
    limit: int

    def __init__(
        self, raw: MPI.Comm, *, traffic: Traffic | None = None, limit: int = 2**31 - 1
    ) -> None:
        if not 1 <= limit <= 2**31 - 1:
            raise UsageError(f"limit of elements in one MPI call: {limit} is not in 1 to 2**31 - 1")
        mpi = load_mpi()
        self.raw = raw
        self.rank = raw.Get_rank()
        self.size = raw.Get_size()
        self.traffic = Traffic() if traffic is None else traffic
        self.limit = limit
        # The largest tag is ours: a user's message never meets one from inside a verb.
        self._own_tag = int(mpi.COMM_WORLD.Get_attr(mpi.TAG_UB))

    def _for_broadcast(self, array: Array, root: int, layer: int | None) -> tuple[Array, Any]:
        """Check and count a broadcast; the flat array and MPI's type of its elements."""
        self._check_rank(root, "broadcast: root")
        data = flat(array, "broadcast", written=self.rank != root)
        kind = mpi_type(data, "broadcast")
        last = (self.rank - root) % self.size == self.size - 1
        self._count("broadcast", layer, data, 0 if last else data.size, 1)
        return data, kind

    def _for_reduce(
        self, array: Array, root: int, op: str, layer: int | None
    ) -> tuple[Array, Any, Any]:
        """Check and count a reduce; the flat array, MPI's type, and MPI's operation."""
        self._check_rank(root, "reduce: root")
        data = flat(array, "reduce", written=self.rank == root)
        kind, how = mpi_type(data, "reduce"), mpi_operation(data, op)
        self._count("reduce", layer, data, 0 if self.rank == root else data.size, 1)
        return data, kind, how

    def _for_allreduce(
        self, array: Array, op: str, layer: int | None, verb: str
    ) -> tuple[Array, Any, Any]:
        """Check and count an allreduce; the flat array, MPI's type, and MPI's operation."""
        data = flat(array, "allreduce", written=True)
        kind, how = mpi_type(data, "allreduce"), mpi_operation(data, op)
        words = -(-2 * data.size * (self.size - 1) // self.size)
        self._count(verb, layer, data, words, 2 * (self.size - 1))
        return data, kind, how

    def _count(self, verb: str, layer: int | None, data: Array, words: int, messages: int) -> None:
        if self.size == 1:
            words = 0
        self.traffic.count(
            verb, layer, words, words * data.dtype.itemsize, messages if words else 0
        )

    def _check_rank(self, rank: int, what: str, *, other: bool = False) -> None:
        if not 0 <= rank < self.size:
            raise UsageError(f"{what} {rank} is none of {self.size} ranks")
        if other and rank == self.rank:
            raise UsageError(f"{what} {rank} is this rank itself")

    def _check_tag(self, tag: int) -> None:
        if not 0 <= tag < self._own_tag:
            raise UsageError(f"tag {tag} is not in 0 to {self._own_tag - 1}")
