"""`DistributedLayer`: a rank's rows of one layer, split into the columns that it owns and the rest.

Who owns what: rank m owns rows of W and the matching outputs; of the inputs it owns those that the
partition gives it. Forward, step by step:

1. send the owned inputs that others need, start receiving those that it needs (`ExchangePlan`);
2. multiply the owned columns while messages travel;
3. wait; add the products of the received columns, add the bias, apply the activation.

This object is the split and its readable product (SciPy), the truth for the compiled one
(`kernels.linked`). It knows no MPI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import LayerShard
from sparsednn.kernels.packing import Rows, bounds

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Columns", "DistributedLayer"]


@dataclass(frozen=True, slots=True)
class Columns:
    """Some columns of all rows of a rank, as CSR with local column numbers: ``(rows, width)``."""

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32]
    values: NDArray[np.float32]
    width: int

    @property
    def matrix(self) -> csr_array:
        """The same as a SciPy matrix that shares the arrays."""
        from scipy.sparse import csr_array

        shape = (self.indptr.size - 1, self.width)
        return csr_array((self.values, self.indices, self.indptr), shape=shape)

    def rows(self, chosen: NDArray[np.int64]) -> Columns:
        """Return the chosen rows only."""
        lengths = np.diff(self.indptr)[chosen]
        indptr = np.zeros(chosen.size + 1, np.int64)
        np.cumsum(lengths, out=indptr[1:])
        position = np.arange(indptr[-1]) + np.repeat(self.indptr[chosen] - indptr[:-1], lengths)
        return Columns(indptr, self.indices[position], self.values[position], self.width)


@dataclass(frozen=True, slots=True)
class DistributedLayer:
    """One rank's part of a layer.

    Attributes
    ----------
    plan
        The messages in front of it.
    owned
        All rows of this rank, restricted to the columns that it owns, numbered as it owns them.
    received
        The same rows, restricted to the columns that it receives, numbered as they arrive.
    bias, activation
        ``(rows,)`` float32, and f.
    """

    plan: ExchangePlan
    owned: Columns
    received: Columns
    bias: NDArray[np.float32]
    activation: Activation

    @classmethod
    def make(
        cls, layer: LayerShard, plan: ExchangePlan, owners: NDArray[np.int32], part: int
    ) -> DistributedLayer:
        """Split a rank's rows; `owners` ``(n_in,)`` are those of the layer's inputs."""
        place = np.empty(layer.n_in, np.int32)
        mine = owners == part
        place[mine] = np.arange(np.count_nonzero(mine), dtype=np.int32)
        place[plan.receive_columns] = np.arange(plan.receive_columns.size, dtype=np.int32)
        inside = mine[layer.indices]
        owned = _restrict(layer, place, inside, int(np.count_nonzero(mine)))
        received = _restrict(layer, place, ~inside, plan.receive_columns.size)
        return cls(plan, owned, received, layer.bias, layer.activation)

    @property
    def n_rows(self) -> int:
        """Rows of this rank; may be none."""
        return self.bias.size

    def multiply_owned(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Sums over the owned columns: ``(owned inputs, batch)`` to ``(rows, batch)`` float32."""
        return np.asarray(self.owned.matrix @ x, dtype=np.float32)

    def add_received(self, z: NDArray[np.float32], received: NDArray[np.float32]) -> None:
        """Add the products of the received columns and the bias to `z`, in place.

        `received` is ``(received inputs, batch)`` float32.
        """
        z += self.received.matrix @ received
        z += self.bias[:, None]

    def packed_parts(self) -> tuple[Rows, Rows, Rows]:
        """Return the three parts that `kernels.linked` multiplies.

        Softmax needs all rows of a column, so here its last step is left out (identity).
        """
        code = self.activation
        limits = bounds(Activation("identity") if code.kind == "softmax" else code)
        needs_others = np.diff(self.received.indptr) > 0
        inner, outer = np.flatnonzero(~needs_others), np.flatnonzero(needs_others)
        nothing = np.zeros(outer.size, np.float32)

        def part(
            columns: Columns,
            chosen: NDArray[np.int64],
            bias: NDArray[np.float32],
            limits: tuple[int, float, float],
        ) -> Rows:
            some, places = columns.rows(chosen), chosen.astype(np.int32)
            return Rows(some.indptr, some.indices, some.values, bias, places, *limits)

        return (
            part(self.owned, inner, self.bias[inner], limits),
            part(self.owned, outer, nothing, bounds(Activation("identity"))),
            part(self.received, outer, self.bias[outer], limits),
        )


def _restrict(
    layer: LayerShard, place: NDArray[np.int32], chosen: NDArray[np.bool_], width: int
) -> Columns:
    """Keep the chosen entries and renumber their columns by `place`, in the order of the layer."""
    before = np.zeros(chosen.size + 1, np.int64)
    np.cumsum(chosen, out=before[1:])
    return Columns(before[layer.indptr], place[layer.indices[chosen]], layer.values[chosen], width)
