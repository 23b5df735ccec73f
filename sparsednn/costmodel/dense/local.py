"""`LocalCosts`: seconds of what one rank computes, by kind and shape; calibrated or by rooflines.

With ``measured["dense"]`` (`calibration.dense`), for the backend and the number of threads::

    t = (Σ_j c_j a_j) · correction        a_0, a_1: of a call; the others: of its work (`surface`)

of which the calls are *overhead*, and the rest is arithmetic or memory traffic, whichever has the
higher roof. On a platform that was `scaled`, arithmetic is divided by ``speed["flops"]``, traffic
by ``speed["memory_bandwidth"]``. Other numbers of threads than those measured share the work of
the largest that is not more.

Without the table, or on a GPU::

    t = launch_seconds · calls + max(flops / (efficiency · peak · threads), bytes / bandwidth)

with ``gemm_efficiency`` for products and 1 for all else; the bandwidth is that of the cache for an
operation that fits it, else the rank's part of its node's memory (`roofline.roof_of`).

Must not know: graphs, other ranks, messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.dense.features import KINDS, Rows, overhead_terms
from sparsednn.costmodel.dense.surface import Surface
from sparsednn.costmodel.roofline import FLOPS, MEMORY, roof_of
from sparsednn.costmodel.sparse.linked import linked_costs
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["OVERHEAD", "LocalCosts", "Seconds", "amounts"]

OVERHEAD: Final = "overhead"
_ITEM: Final = 4
#: Backends in the order in which "auto" takes them, where a table has them.
_ORDER: Final = ("torch", "im2col")

#: Calls, flops for each element, and how often elements of the input and of the output are read or
#: written, of what is no product; calls for rooflines only.
_PASSES: Final[dict[str, tuple[float, float, float, float]]] = {
    "relu_forward": (1, 1, 1, 1),
    "relu_backward": (1, 1, 2, 1),
    "batch_norm_forward": (3, 7, 3, 1),
    "batch_norm_backward": (2, 9, 4, 1),
    "max_pool_forward": (1, 1, 1, 1),
    "max_pool_backward": (1, 1, 1, 1),
    "average_pool_forward": (1, 1, 1, 1),
    "average_pool_backward": (1, 1, 1, 1),
    "add_forward": (1, 1, 2, 1),
    "add_backward": (1, 0, 0, 0),
    "concatenate_forward": (1, 0, 0, 2),
    "concatenate_backward": (1, 0, 0, 2),
    "loss_forward": (5, 8, 5, 5),
    "loss_backward": (1, 0, 1, 1),
    "data": (1, 2, 1, 1),
    "update": (1, 4, 5, 0),
    "gradients": (0, 0, 0, 0),
}


@dataclass(frozen=True, slots=True)
class Seconds:
    """Seconds of operations, ``(operations,)`` each, by what they are for."""

    overhead: NDArray[np.float64]
    flops: NDArray[np.float64]
    memory: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        """All together."""
        return self.overhead + self.flops + self.memory

    def by_bound(self) -> dict[str, NDArray[np.float64]]:
        """The same by name of `prediction.BOUNDS`."""
        return {OVERHEAD: self.overhead, FLOPS: self.flops, MEMORY: self.memory}


def amounts(kind: str, rows: Rows) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
    """Return calls, and ``(operations,)`` flops and bytes of a kind's operations."""
    if kind.startswith(("matrix", "pointwise", "window")):
        b, c, h, w, k, r, s, _, _, ho, wo, _ = rows.T
        products = 2.0 * b * k * ho * wo * c * r * s
        moved = _ITEM * (b * c * h * w + b * k * ho * wo + k * c * r * s)
        each = 2.0 if kind.endswith("backward") else 1.0
        return each, each * products, each * moved
    b, c, h, w, k, ho, wo, r, s, _, _, _ = rows.T
    calls, flops, read, written = _PASSES[kind]
    x, y = b * c * h * w, b * k * ho * wo
    taps = r * s if kind.startswith(("max", "average")) else 1.0
    return calls, flops * np.maximum(x, y * taps), _ITEM * (read * x + written * y)


@dataclass(frozen=True, eq=False)
class LocalCosts:
    """What one rank of a platform takes for operations of dense networks.

    Attributes
    ----------
    backend
        That was found for "auto".
    surfaces
        Kind → what was measured; empty: rooflines.
    """

    platform: Platform
    backend: str
    threads: int
    ranks: int
    surfaces: Mapping[str, Surface]
    _measured_threads: int = 1

    @classmethod
    def of(
        cls, platform: Platform, backend: str = "auto", threads: int = 1, *, ranks: int = 1
    ) -> LocalCosts:
        """Look up what a platform has.

        Parameters
        ----------
        platform
            Calibrated or not.
        backend
            ``torch``, ``im2col``, or ``auto``: the first of these that was measured. One that was
            not measured gets rooflines.
        threads
            Of a rank.
        ranks
            That compute at the same time, for the crowding and the share of the memory.

        Raises
        ------
        UsageError
            If there are no threads.
        FormatError
            If the platform's table cannot be used.
        """
        if threads < 1:
            raise UsageError(f"threads: 1 or more are needed, found {threads}")
        tables = platform.parsed("dense", parse_tables) or {}
        if backend == "auto":
            backend = next((name for name in _ORDER if name in tables), _ORDER[0])
        found = tables.get(backend, {})
        if not found or platform.processor.kind == "gpu":
            return cls(platform, backend, threads, ranks, {})
        fitting = max((each for each in found if each <= threads), default=min(found))
        return cls(platform, backend, threads, ranks, found[fitting], fitting)

    @property
    def calibrated(self) -> bool:
        """Whether measured times are behind it."""
        return bool(self.surfaces)

    def seconds(self, kind: str, rows: Rows) -> Seconds:
        """Return what operations take.

        Parameters
        ----------
        kind
            One of `features.KINDS`.
        rows
            ``(operations, columns)``, see `features`. An operation on nothing takes its call.

        Raises
        ------
        UsageError
            If there is no such kind.
        """
        if kind not in KINDS:
            raise UsageError(f"no operation '{kind}'; there are {', '.join(KINDS)}")
        distinct, back = _distinct(rows)
        if kind in self.surfaces:
            found = self._measured(self.surfaces[kind], distinct)
        else:
            found = self._roofline(kind, distinct)
        crowding = self._crowding()
        work = (distinct[:, :4] > 0).all(axis=1)
        return Seconds(
            found.overhead[back] * crowding,
            (found.flops * work)[back] * crowding,
            (found.memory * work)[back] * crowding,
        )

    def _measured(self, surface: Surface, rows: Rows) -> Seconds:
        # Rows without elements have logarithms of nothing: any small size will do.
        parts = surface.parts(np.maximum(rows, 1e-3))
        calls = overhead_terms()
        overhead, work = parts[:, :calls].sum(axis=1), parts[:, calls:].sum(axis=1)
        work = work * min(1.0, self._measured_threads / self.threads)
        by_flops = self._bound_by_flops(surface.kind, rows)
        speed = self.platform.speed
        return Seconds(
            overhead,
            np.where(by_flops, work / speed["flops"], 0.0),
            np.where(by_flops, 0.0, work / speed["memory_bandwidth"]),
        )

    def _crowding(self) -> float:
        """How many times longer than alone, where ranks take turns on the cores.

        Turns cost something themselves, and ranks wait for others that have none: where sparse runs
        have shown how much (`costmodel.sparse.linked`), this is in it.
        """
        crowding = self.platform.crowding(self.ranks, self.threads)
        if crowding > 1:
            crowding *= linked_costs(self.platform, "training", self.ranks, self.ranks).blocks
        return crowding

    def _roofs(self, kind: str) -> tuple[float, float, float]:
        """flop/s, bytes/s from memory, bytes/s from the cache; of a rank that has its cores."""
        product = kind.startswith(("matrix", "pointwise", "window"))
        efficiency = self.platform.processor.gemm_efficiency if product else 1.0
        crowding = self._crowding()
        roof = roof_of(self.platform, efficiency, self.threads, ranks=self.ranks)
        cache = roof_of(self.platform, 1.0, self.threads, ranks=self.ranks, working_set=0.0)
        # `seconds` multiplies all by the crowding, which the memory's share has already.
        return roof.peak * crowding, roof.bandwidth * crowding, cache.bandwidth * crowding

    def _bound_by_flops(self, kind: str, rows: Rows) -> NDArray[np.bool_]:
        _, flops, nbytes = amounts(kind, rows)
        peak, memory, cache = self._roofs(kind)
        fits = nbytes <= self.platform.processor.cache_bytes
        return np.asarray(flops / peak >= nbytes / np.where(fits, cache, memory))

    def _roofline(self, kind: str, rows: Rows) -> Seconds:
        calls, flops, nbytes = amounts(kind, rows)
        peak, memory, cache = self._roofs(kind)
        fits = nbytes <= self.platform.processor.cache_bytes
        streaming = nbytes / np.where(fits, cache, memory)
        arithmetic = flops / peak
        by_flops = arithmetic >= streaming
        launch = self.platform.processor.launch_seconds
        return Seconds(
            np.full(len(rows), calls * launch),
            np.where(by_flops, arithmetic, 0.0),
            np.where(by_flops, 0.0, streaming),
        )


def _distinct(rows: Rows) -> tuple[Rows, NDArray[np.intp]]:
    """Return the different rows, and which of them each row is; ranks are mostly alike."""
    # One number for each row is quicker to sort; it is looked at whether it told all apart.
    weights = np.sqrt(np.arange(2.0, 2.0 + rows.shape[1]))
    _, first, back = np.unique(rows @ weights, return_index=True, return_inverse=True)
    back = back.reshape(-1)
    distinct = rows[first]
    if np.array_equal(distinct[back], rows):
        return distinct, back
    distinct, back = np.unique(rows, axis=0, return_inverse=True)
    return distinct, back.reshape(-1)


def parse_tables(table: Any) -> dict[str, dict[int, dict[str, Surface]]]:
    """Read ``measured["dense"]``: backend → threads → kind → `Surface`.

    Raises
    ------
    UsageError
        Naming what is nonsense.
    """
    backends = table.get("backends") if isinstance(table, Mapping) else None
    if not isinstance(backends, Mapping):
        raise UsageError("backends: a table is needed")
    found: dict[str, dict[int, dict[str, Surface]]] = {}
    for backend, of_threads in backends.items():
        if not isinstance(of_threads, Mapping) or not all(
            str(key).isdigit() and isinstance(kinds, Mapping) for key, kinds in of_threads.items()
        ):
            raise UsageError(f"backends: {backend}: tables by number of threads are needed")
        found[str(backend)] = {
            int(threads): {
                str(kind): Surface.from_table(str(kind), one) for kind, one in kinds.items()
            }
            for threads, kinds in of_threads.items()
        }
    return found
