"""`Pending`: a verb that was started and may not be over yet.

MPI reads and writes the memory of an array behind Python's back until the operation is over, so
that array must live until then, whatever becomes of those who started it. Must not know: which
verb it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparsednn.comm._buffers import Array
from sparsednn.comm.mpi import load_mpi

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["Pending"]

#: All that are under way. One that is forgotten, or that an error leaves behind, stays here for
#: good, and its array with it: neither waiting (a partner may be gone) nor freeing memory under
#: MPI's hands.
_under_way: set[Pending] = set()


class Pending:
    """An operation between its start and its end.

    Made by the `start_…` verbs of a communicator. Until `wait` returns, the array that was given
    must not be written, and not be read where the operation writes. Every one must be waited for,
    on every rank, in any order; one that is not keeps its array in memory as long as the process
    lives.

    Parameters
    ----------
    requests
        Starts MPI's operations, one whenever it is asked for the next. None: it is over already.
    array
        The memory that they use.
    """

    __slots__ = ("_array", "_requests")

    def __init__(self, requests: Iterable[MPI.Request] = (), array: Array = None) -> None:
        self._array = array
        self._requests: list[MPI.Request] = []
        # One after another: should one not start, those before it are under way and are kept.
        for request in requests:
            self._requests.append(request)
            _under_way.add(self)

    def wait(self) -> None:
        """Return when the operation is over on this rank; a second time does nothing.

        MPI moves long messages within its own calls: what one does before this overlaps with them
        only as far as the library makes progress by itself.
        """
        if self._requests:
            load_mpi().Request.Waitall(self._requests)
            self._requests.clear()
        self._array = None
        _under_way.discard(self)

    def __repr__(self) -> str:
        """Return whether it is under way."""
        return f"Pending({'under way' if self._requests else 'over'})"
