"""The roofline: an operation takes as long as its arithmetic, or as moving its bytes.

::

    t = max(flops / peak, bytes / bandwidth) = flops / min(peak, bandwidth · flops/bytes)

Sources: Williams, Waterman and Patterson 2009; Castelló et al., PDP 2021. flops are float32, a
multiply-add is 2; bytes are read and written together. Must not know: which operation it is, but
for the sizes of a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = [
    "FLOPS",
    "MEMORY",
    "Roof",
    "Work",
    "bound_of",
    "gemm",
    "operation_seconds",
    "ridge",
    "roof_of",
    "roofline",
    "stream_seconds",
]

#: What limits an operation; both are among `prediction.BOUNDS`.
FLOPS: Final = "flops"
MEMORY: Final = "memory bandwidth"


@dataclass(frozen=True, slots=True)
class Work:
    """flops and bytes (read and written) of an operation."""

    flops: float
    nbytes: float


@dataclass(frozen=True, slots=True)
class Roof:
    """What one rank can reach: flop/s, and bytes/s read and written."""

    peak: float
    bandwidth: float


def roofline(flops: float, nbytes: float, peak: float, bandwidth: float) -> float:
    """Return max(flops/peak, bytes/bandwidth) in seconds.

    >>> roofline(2e9, 1e9, peak=1e11, bandwidth=1e10)
    0.1

    Raises
    ------
    UsageError
        If work is negative, or a rate is not positive.
    """
    if not (flops >= 0 and nbytes >= 0):
        raise UsageError(f"roofline: work from 0 is needed, found {flops} flops, {nbytes} bytes")
    if not (peak > 0 and bandwidth > 0):
        raise UsageError(
            f"roofline: positive rates are needed, found {peak} flop/s, {bandwidth} bytes/s"
        )
    return max(flops / peak, nbytes / bandwidth)


def ridge(peak: float, bandwidth: float) -> float:
    """Return the flops per byte from which on arithmetic limits: peak/bandwidth.

    >>> ridge(1e11, 1e10)
    10.0
    """
    return peak / bandwidth


def gemm(m: int, n: int, k: int, itemsize: int = 4) -> Work:
    """Return 2mnk flops and (mk + kn + mn)·itemsize bytes: a product of m×k and k×n.

    >>> gemm(2, 3, 4)
    Work(flops=48.0, nbytes=104.0)
    """
    return Work(2.0 * m * n * k, float(itemsize) * (m * k + k * n + m * n))


def roof_of(
    platform: Platform,
    efficiency: float = 1.0,
    threads: int = 1,
    *,
    ranks: int = 1,
    working_set: float | None = None,
) -> Roof:
    """Return what a rank of a platform can reach.

    ::

        peak      = efficiency · threads · flops / crowding
        bandwidth = min(threads · memory_bandwidth, node.memory_bandwidth / ranks on the node)
                    or threads · cache_bandwidth / crowding, where the working set fits the caches

    Parameters
    ----------
    platform
        Of the rank. A GPU is one thread.
    efficiency
        Part of the peak that such an operation reaches, (0, 1].
    threads
        Of the rank: cores that it computes with.
    ranks
        That compute at the same time; those of a node share its memory, and its cores if they are
        too few.
    working_set
        Bytes that are used again and again. None: from main memory.
    """
    if not 0 < efficiency <= 1:
        raise UsageError(f"an efficiency is above 0 and at most 1, found {efficiency}")
    if threads < 1 or ranks < 1:
        raise UsageError(f"at least 1 thread and 1 rank, found {threads} and {ranks}")
    processor = platform.processor
    workers = 1 if processor.kind == "gpu" else threads
    crowding = platform.crowding(ranks, threads)
    if working_set is not None and working_set <= workers * processor.cache_bytes:
        bandwidth = workers * processor.cache_bandwidth / crowding
    else:
        share = platform.node.memory_bandwidth / platform.ranks_on_node(ranks)
        bandwidth = min(workers * processor.memory_bandwidth, share)
    return Roof(efficiency * workers * processor.flops / crowding, bandwidth)


def operation_seconds(
    platform: Platform,
    flops: float,
    nbytes: float,
    efficiency: float = 1.0,
    threads: int = 1,
    *,
    ranks: int = 1,
    working_set: float | None = None,
) -> float:
    """Return the seconds of an operation on one rank: its roofline; see `roof_of`.

    What starting it takes (``processor.launch_seconds``) is not in it.

    Raises
    ------
    UsageError
        If something is out of range.
    """
    roof = roof_of(platform, efficiency, threads, ranks=ranks, working_set=working_set)
    return roofline(flops, nbytes, roof.peak, roof.bandwidth)


def bound_of(
    platform: Platform,
    flops: float,
    nbytes: float,
    efficiency: float = 1.0,
    threads: int = 1,
    *,
    ranks: int = 1,
    working_set: float | None = None,
) -> str:
    """Return what limits an operation: `FLOPS` or `MEMORY`; arguments of `operation_seconds`."""
    roof = roof_of(platform, efficiency, threads, ranks=ranks, working_set=working_set)
    return FLOPS if flops / roof.peak >= nbytes / roof.bandwidth else MEMORY


def stream_seconds(
    platform: Platform,
    nbytes: float,
    threads: int = 1,
    *,
    ranks: int = 1,
    working_set: float | None = None,
) -> float:
    """Return the seconds of reading and writing so many bytes once, without arithmetic."""
    return operation_seconds(
        platform, 0.0, nbytes, 1.0, threads, ranks=ranks, working_set=working_set
    )
