"""The parts of a platform, as figures: `Processor`, `Node`, `Link`, `Copies`; each checks its own.

Units: seconds, bytes, bytes/s, flop/s (float32; a multiply-add is 2). Must not know: files, and
how the parts are put together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeVar

from sparsednn.errors import UsageError

__all__ = ["KINDS", "POSITIVE", "Copies", "Link", "Node", "Processor", "check", "read_part"]

#: What a rank computes with.
KINDS: Final = ("cpu", "gpu")


@dataclass(frozen=True, slots=True)
class Rule:
    """What a figure has to be: in words, and as a test of its value."""

    needed: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


POSITIVE: Final = Rule("a positive number", lambda value: _is_number(value) and value > 0)
_FROM_ZERO: Final = Rule("a number from 0", lambda value: _is_number(value) and value >= 0)
_EFFICIENCY: Final = Rule(
    "a number above 0 and at most 1", lambda value: _is_number(value) and 0 < value <= 1
)
_SHARE: Final = Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
COUNT: Final = Rule("a whole number from 1", _is_count)
TEXT: Final = Rule("a text", lambda value: isinstance(value, str) and bool(value.strip()))
_KIND: Final = Rule(
    " or ".join(f'"{kind}"' for kind in KINDS),
    lambda value: isinstance(value, str) and value in KINDS,
)


def check(name: str, value: Any, rule: Rule) -> None:
    """Raise `UsageError` unless `value` is what `rule` wants.

    >>> check("flops", 1e9, POSITIVE)
    """
    if not rule.holds(value):
        shown = repr(value) if len(repr(value)) <= 40 else f"a {type(value).__name__}"
        raise UsageError(f"{name}: {rule.needed} is needed, found {shown}")


class _Part:
    """Checks every figure of a dataclass by its class's `RULES`."""

    __slots__ = ()
    RULES: ClassVar[Mapping[str, Rule]] = {}

    def __post_init__(self) -> None:
        """Check the figures."""
        for name, rule in self.RULES.items():
            check(name, getattr(self, name), rule)


@dataclass(frozen=True, slots=True)
class Processor(_Part):
    """What a rank computes with: one core (for each of its threads), or one GPU.

    Attributes
    ----------
    kind
        ``"cpu"`` or ``"gpu"``.
    flops
        flop/s in float32 at peak, of one core or device; a multiply-add is 2.
    memory_bandwidth
        Bytes/s, read and written together, that one core or device alone gets from main memory.
    cache_bytes
        Of the last private cache: L2 of a core, L2 of a GPU.
    cache_bandwidth
        Bytes/s, read and written together, from that cache.
    gemm_efficiency
        Part of the peak, (0, 1], that a large matrix product reaches.
    sparse_efficiency
        Part of the peak, (0, 1], that the sparse kernel reaches: tile in the cache, blocks of 8
        rows of one pattern, full panels.
    launch_seconds
        Of starting one operation of a dense network: a Python call, a kernel launch.
    reduction_bandwidth
        Bytes/s at which received bytes are added to others: 1/γ.

    Raises
    ------
    UsageError
        If a figure is nonsense; the line names it.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {
        "kind": _KIND,
        "flops": POSITIVE,
        "memory_bandwidth": POSITIVE,
        "cache_bytes": POSITIVE,
        "cache_bandwidth": POSITIVE,
        "gemm_efficiency": _EFFICIENCY,
        "sparse_efficiency": _EFFICIENCY,
        "launch_seconds": _FROM_ZERO,
        "reduction_bandwidth": POSITIVE,
    }

    kind: str
    flops: float
    memory_bandwidth: float
    cache_bytes: float
    cache_bandwidth: float
    gemm_efficiency: float
    sparse_efficiency: float
    launch_seconds: float
    reduction_bandwidth: float


@dataclass(frozen=True, slots=True)
class Node(_Part):
    """One machine: a memory, and processors that share it.

    Attributes
    ----------
    processors
        Cores, or devices.
    ranks
        That a node gets at most; more ranks than processors share them in time.
    memory_bytes
        Of the node (of all its devices together).
    memory_bandwidth
        Bytes/s of the whole node.

    Raises
    ------
    UsageError
        If a figure is nonsense.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {
        "processors": COUNT,
        "ranks": COUNT,
        "memory_bytes": POSITIVE,
        "memory_bandwidth": POSITIVE,
    }

    processors: int
    ranks: int
    memory_bytes: float
    memory_bandwidth: float


@dataclass(frozen=True, slots=True)
class Link(_Part):
    """What carries messages. One of n bytes alone takes o + α + n/B + o from call to arrival.

    Attributes
    ----------
    latency_seconds
        α of one message, without the processors' o on both sides.
    bandwidth
        B, bytes/s in each direction. Within a node: of each rank, while the others send too.
        Between nodes: of a node's network card, which its ranks share.
    overhead_seconds
        o of LogP: processor time per message, on each side.
    overlap
        Speed, [0, 1] of the full one, at which transfers go on while the rank computes.

    Raises
    ------
    UsageError
        If a figure is nonsense.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {
        "latency_seconds": _FROM_ZERO,
        "bandwidth": POSITIVE,
        "overhead_seconds": _FROM_ZERO,
        "overlap": _SHARE,
    }

    latency_seconds: float
    bandwidth: float
    overhead_seconds: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Copies(_Part):
    """Copies between host and device: n bytes take latency + n/bandwidth.

    Raises
    ------
    UsageError
        If a figure is nonsense.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {"latency_seconds": _FROM_ZERO, "bandwidth": POSITIVE}

    latency_seconds: float
    bandwidth: float

    def seconds(self, nbytes: float) -> float:
        """Return the time of one copy; of nothing, none.

        >>> Copies(1e-5, 1e10).seconds(1e6)
        0.00011
        """
        return self.latency_seconds + nbytes / self.bandwidth if nbytes else 0.0


_AnyPart = TypeVar("_AnyPart", Processor, Node, Link, Copies)


def read_part(part: type[_AnyPart], table: Any) -> _AnyPart:
    """Make a part from a table of its figures: all of them, and no others.

    Raises
    ------
    UsageError
        Naming the figure that is missing, unknown, or nonsense.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"a table is needed, found {table!r}")
    known = [field.name for field in dataclasses.fields(part)]
    for name in table:
        if name not in known:
            raise UsageError(f"{name}: no such figure; there are {', '.join(known)}")
    for name in known:
        if name not in table:
            raise UsageError(f"{name}: {part.RULES[name].needed} is needed, it is missing")
    for name in known:
        check(name, table[name], part.RULES[name])
    # TOML's 3 is an int: figures are floats unless they are counts, so that what is saved is equal.
    figures: dict[str, Any] = {
        name: float(value) if isinstance(value, int) and part.RULES[name] is not COUNT else value
        for name, value in table.items()
    }
    return part(**figures)
