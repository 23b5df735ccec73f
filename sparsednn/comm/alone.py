"""`Alone`: a communicator of one rank that needs no MPI.

What is written for ranks runs in one process with it, where there may be no MPI, or no reason to
load it. Nothing leaves the rank, so nothing is counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm._buffers import Array
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.neighbours import NeighbourExchange
from sparsednn.comm.pending import Pending
from sparsednn.comm.traffic import Traffic
from sparsednn.errors import ShapeError, UsageError

__all__ = ["Alone"]


class Alone(Communicator):
    """Rank 0 of 1. Every verb gives what MPI would give to a single rank.

    `raw` is None: whoever uses that needs a real communicator.
    """

    __slots__ = ()

    def __init__(self, *, traffic: Traffic | None = None) -> None:
        self.raw = None  # type: ignore[assignment]  # nobody may use it: there is no MPI
        self.rank, self.size = 0, 1
        self.traffic = Traffic() if traffic is None else traffic
        self.limit = 2**31 - 1
        self._own_tag = 2**15 - 1

    def neighbour_exchange(
        self,
        sends: Mapping[int, Array],
        receives: Mapping[int, Array],
        *,
        layer: int | None = None,
        tag: int = 0,
        verb: str = "exchange",
    ) -> NeighbourExchange:
        """Plan an exchange without messages; there is nobody to send to."""
        return NeighbourExchange(self, sends, receives, layer=layer, tag=tag, verb=verb)

    def broadcast(self, array: Array, root: int = 0, *, layer: int | None = None) -> None:
        """Leave the array as it is."""
        self._check_rank(root, "broadcast: root")

    def start_broadcast(self, array: Array, root: int = 0, *, layer: int | None = None) -> Pending:
        """Leave the array as it is; it is over already."""
        self._check_rank(root, "broadcast: root")
        return Pending()

    def reduce(
        self, array: Array, root: int = 0, op: str = "sum", *, layer: int | None = None
    ) -> None:
        """Leave the array as it is."""
        self._check_rank(root, "reduce: root")

    def start_reduce(
        self, array: Array, root: int = 0, op: str = "sum", *, layer: int | None = None
    ) -> Pending:
        """Leave the array as it is; it is over already."""
        self._check_rank(root, "reduce: root")
        return Pending()

    def allreduce(
        self,
        array: Array,
        op: str = "sum",
        *,
        layer: int | None = None,
        verb: str = "allreduce",
    ) -> None:
        """Leave the array as it is."""

    def start_allreduce(
        self,
        array: Array,
        op: str = "sum",
        *,
        layer: int | None = None,
        verb: str = "allreduce",
    ) -> Pending:
        """Leave the array as it is; it is over already."""
        return Pending()

    def reduce_scatter(
        self,
        array: Array,
        counts: Sequence[int] | NDArray[Any],
        op: str = "sum",
        *,
        layer: int | None = None,
    ) -> Array:
        """Return a flat copy."""
        return _counted(array, counts, "reduce_scatter")

    def allgather(
        self,
        array: Array,
        counts: Sequence[int] | NDArray[Any] | None = None,
        *,
        layer: int | None = None,
    ) -> Array:
        """Return a flat copy."""
        return _counted(array, counts, "allgather")

    def all_to_all(
        self, array: Array, counts: Sequence[int] | NDArray[Any], *, layer: int | None = None
    ) -> tuple[Array, NDArray[np.int64]]:
        """Return a flat copy, and its size."""
        own = _counted(array, counts, "all_to_all")
        return own, np.array([own.size], np.int64)

    def gather(self, array: Array, root: int = 0) -> list[Array] | None:
        """Return a list with a flat copy."""
        self._check_rank(root, "gather: root")
        return [array.reshape(-1).copy()]

    def broadcast_json(self, value: Any, root: int = 0) -> Any:
        """Return the value as JSON gives it back."""
        self._check_rank(root, "broadcast_json: root")
        try:
            return json.loads(json.dumps(value))
        except (TypeError, ValueError) as error:
            raise UsageError(f"broadcast_json: the value of rank 0 is not JSON: {error}") from None

    def allgather_text(self, text: str) -> list[str]:
        """Return the text in a list."""
        return [text]

    def any_rank(self, flag: bool) -> bool:
        """Return the flag."""
        return bool(flag)

    def split(
        self, color: int | None, key: int = 0, *, traffic: Traffic | None = None
    ) -> Communicator | None:
        """Return another `Alone`, or None without a color."""
        return None if color is None else self.duplicate(traffic=traffic)

    def duplicate(self, *, traffic: Traffic | None = None) -> Communicator:
        """Return another `Alone`."""
        return Alone(traffic=self.traffic if traffic is None else traffic)

    def barrier(self) -> None:
        """Do nothing: there is nobody to wait for."""

    def free(self) -> None:
        """Do nothing."""


def _counted(array: Array, counts: Sequence[int] | NDArray[Any] | None, verb: str) -> Array:
    own = array.reshape(-1).copy()
    if counts is not None and [int(count) for count in counts] != [own.size]:
        raise ShapeError(f"{verb}: {own.size} elements, but counts that add up to {sum(counts)}")
    return own
