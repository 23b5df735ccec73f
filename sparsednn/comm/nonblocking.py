"""`NonblockingVerbs`: the verbs of `Communicator` that return at once, with a `Pending`.

Each checks, counts and gives what its namesake without "start" does; only the waiting is left to
`Pending.wait`. Must not know: what is computed in the meantime.
"""

from __future__ import annotations

from sparsednn.comm._buffers import Array, pieces
from sparsednn.comm._ranks import Ranks
from sparsednn.comm.mpi import load_mpi
from sparsednn.comm.pending import Pending

__all__ = ["NonblockingVerbs"]


class NonblockingVerbs(Ranks):
    """Verbs of which several may be under way at once, also beside those that block.

    They are collective: all ranks of a communicator start them in the same order, among its other
    verbs, too, with the same root, operation, dtype and size. Several communicators may be served
    in any order. A start on one rank never meets the blocking namesake on another. They raise
    what all verbs of `Communicator` raise, at the start, and count there.
    """

    __slots__ = ()

    def start_broadcast(self, array: Array, root: int = 0, *, layer: int | None = None) -> Pending:
        """Start what `broadcast` does; the root may read `array` meanwhile, and not write it."""
        data, kind = self._for_broadcast(array, root, layer)
        if self.size == 1:
            return Pending()
        blocks = pieces(data, self.limit)
        return Pending((self.raw.Ibcast([piece, kind], root) for piece in blocks), data)

    def start_reduce(
        self, array: Array, root: int = 0, op: str = "sum", *, layer: int | None = None
    ) -> Pending:
        """Start what `reduce` does; others than the root may read `array` meanwhile."""
        data, kind, how = self._for_reduce(array, root, op, layer)
        if self.size == 1:
            return Pending()
        raw, blocks = self.raw, pieces(data, self.limit)
        if self.rank == root:
            in_place = load_mpi().IN_PLACE
            return Pending(
                (raw.Ireduce(in_place, [piece, kind], how, root) for piece in blocks), data
            )
        return Pending((raw.Ireduce([piece, kind], None, how, root) for piece in blocks), data)

    def start_allreduce(
        self,
        array: Array,
        op: str = "sum",
        *,
        layer: int | None = None,
        verb: str = "allreduce",
    ) -> Pending:
        """Start what `allreduce` does."""
        data, kind, how = self._for_allreduce(array, op, layer, verb)
        if self.size == 1:
            return Pending()
        raw, in_place, blocks = self.raw, load_mpi().IN_PLACE, pieces(data, self.limit)
        return Pending((raw.Iallreduce(in_place, [piece, kind], how) for piece in blocks), data)
