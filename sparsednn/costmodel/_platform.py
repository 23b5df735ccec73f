"""`Platform`: the figures of a machine put together, and what follows from them alone.

Ranks fill the nodes in order: rank r is on node ``r // node.ranks``. Must not know: files, what is
predicted with it, nor how the measured tables are made.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sparsednn.costmodel.collectives.wire import Wire
from sparsednn.costmodel.platform_parts import (
    COUNT,
    POSITIVE,
    TEXT,
    Copies,
    Link,
    Node,
    Processor,
    check,
)
from sparsednn.errors import FormatError, UsageError

__all__ = ["SPEEDS", "Platform"]

#: Axes along which `Platform.scaled` makes another machine of this one.
SPEEDS: Final = ("flops", "memory_bandwidth", "link_bandwidth", "link_latency")

_Parsed = TypeVar("_Parsed")


def _ones() -> dict[str, float]:
    return dict.fromkeys(SPEEDS, 1.0)


@dataclass(frozen=True)
class Platform:
    """A machine, or many of them with a network.

    Parameters
    ----------
    name, source
        Of the platform; where its figures are from, in words.
    processor, node, nodes
        What a rank computes with; one machine; how many there are.
    within, between
        The link between ranks of a node, and between nodes (None: there is only one node).
    copies
        Between host and device; None on CPUs.
    measured
        Tables of ``calibrate``: model → what that model reads and checks.
    speed
        Factors of `scaled`, one for each of `SPEEDS`. Figures here have them already; models that
        read measured tables apply them: compute seconds are divided by ``speed["flops"]``,
        streaming seconds by ``speed["memory_bandwidth"]``, seconds per byte of messages by
        ``speed["link_bandwidth"]``; seconds per message are multiplied by
        ``speed["link_latency"]``.

    Raises
    ------
    UsageError
        If the parts do not go together.
    """

    name: str
    source: str
    processor: Processor
    node: Node
    nodes: int
    within: Link
    between: Link | None = None
    copies: Copies | None = None
    measured: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, float] = field(default_factory=_ones)
    _parsed: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check what no part can see alone."""
        check("name", self.name, TEXT)
        check("source", self.source, TEXT)
        check("nodes", self.nodes, COUNT)
        if self.nodes > 1 and self.between is None:
            raise UsageError(f"[links.between]: needed between {self.nodes} nodes, it is missing")
        if self.processor.kind == "gpu" and self.copies is None:
            raise UsageError("[copies]: needed for GPUs, it is missing")
        if self.processor.kind == "cpu" and self.copies is not None:
            raise UsageError("[copies]: only for GPUs, but [processor] kind is 'cpu'")
        if set(self.speed) != set(SPEEDS):
            raise UsageError(f"[speed]: needs {', '.join(SPEEDS)}, found {', '.join(self.speed)}")
        for name, factor in self.speed.items():
            check(f"[speed] {name}", factor, POSITIVE)

    @property
    def max_ranks(self) -> int:
        """Ranks that all nodes together get."""
        return self.node.ranks * self.nodes

    def check_ranks(self, ranks: int) -> None:
        """Raise `UsageError` unless there is room for so many ranks."""
        if ranks < 1:
            raise UsageError(f"a run needs at least 1 rank, found {ranks}")
        if ranks > self.max_ranks:
            raise UsageError(
                f"platform {self.name} has {self.max_ranks} ranks ({self.nodes} nodes of "
                f"{self.node.ranks}), {ranks} are too many: raise nodes, or [node] ranks"
            )

    def nodes_of(self, ranks: int) -> int:
        """Return how many nodes so many ranks fill; the last one perhaps in part."""
        return -(-ranks // self.node.ranks)

    def ranks_on_node(self, ranks: int) -> int:
        """Return how many of so many ranks are on the fullest node."""
        return max(1, min(ranks, self.node.ranks))

    @property
    def threads_per_rank(self) -> int:
        """Cores that each rank of a full node has for itself; 1 on GPUs."""
        if self.processor.kind == "gpu":
            return 1
        return max(1, self.node.processors // self.node.ranks)

    def crowding(self, ranks: int, threads: int = 1) -> float:
        """Return busy threads per processor of the fullest node, at least 1: the slow-down.

        A GPU is one thread.
        """
        busy = self.ranks_on_node(ranks) * (1 if self.processor.kind == "gpu" else threads)
        return max(1.0, busy / self.node.processors)

    def memory_per_rank(self, ranks: int | None = None) -> float:
        """Return bytes per rank on a full node, or on the fullest one of a run of `ranks`."""
        on_node = self.node.ranks if ranks is None else self.ranks_on_node(ranks)
        return self.node.memory_bytes / on_node

    def link(self, a: int, b: int) -> Link:
        """Return the link between two ranks.

        Raises
        ------
        UsageError
            If they are on two nodes, and nothing is known of a network.
        """
        if a // self.node.ranks == b // self.node.ranks:
            return self.within
        return self._network(max(a, b) + 1)

    def wire(self, ranks: int, stride: int = 1, *, job: int | None = None) -> Wire:
        """Return α, β, γ of a collective over `ranks` ranks that are `stride` apart.

        The other ranks of the job are taken to do the same at the same time in groups of their own.

        Parameters
        ----------
        ranks, stride
            Ranks r, r + stride, … The group begins at the start of a node.
        job
            Ranks that are busy in all; with more than there are processors, processor time (o and
            γ) grows. None: ``ranks * stride``, as far as there is room.

        Returns
        -------
        Wire
            Within a node: its link. Else α and β are those of the slower link, since some message
            of every step goes over it; groups that share a network card share its bandwidth.

        Raises
        ------
        UsageError
            If they are on two nodes, and nothing is known of a network.
        """
        check("ranks", ranks, COUNT)
        check("stride", stride, COUNT)
        busy = job if job is not None else min(ranks * stride, max(ranks, self.max_ranks))
        crowding = self.crowding(busy)
        near = self._wire(self.within, crowding)
        last = (ranks - 1) * stride
        if last < self.node.ranks:
            return near
        far = self._wire(self._network(last + 1), crowding)
        # Groups that have a rank on a node, and ranks of one group there.
        groups = min(stride, self.node.ranks)
        return Wire(
            latency=max(near.latency, far.latency),
            per_byte=max(near.per_byte, far.per_byte * groups),
            reduction=far.reduction,
            members=max(1, self.node.ranks // stride),
            near=near,
        )

    def scaled(self, **factors: float) -> Platform:
        """Return another machine: some of `SPEEDS` multiplied.

        Parameters
        ----------
        **factors
            ``flops``: of the core: arithmetic and caches. ``memory_bandwidth``: main memory, of a
            processor and of the node, and adding up what arrives. ``link_bandwidth``: within and
            between nodes, and of copies. ``link_latency``: seconds per message (α, o, and of a
            copy), so that 2 is a slower network.

        Raises
        ------
        UsageError
            If there is no such axis, or a factor is not positive.
        """
        for name, factor in factors.items():
            if name not in SPEEDS:
                raise UsageError(f"no axis '{name}'; there are {', '.join(SPEEDS)}")
            check(name, factor, POSITIVE)
        by = _ones() | factors
        processor = dataclasses.replace(
            self.processor,
            flops=self.processor.flops * by["flops"],
            cache_bandwidth=self.processor.cache_bandwidth * by["flops"],
            memory_bandwidth=self.processor.memory_bandwidth * by["memory_bandwidth"],
            reduction_bandwidth=self.processor.reduction_bandwidth * by["memory_bandwidth"],
        )
        node = dataclasses.replace(
            self.node, memory_bandwidth=self.node.memory_bandwidth * by["memory_bandwidth"]
        )
        copies = self.copies and Copies(
            self.copies.latency_seconds * by["link_latency"],
            self.copies.bandwidth * by["link_bandwidth"],
        )
        return dataclasses.replace(
            self,
            processor=processor,
            node=node,
            within=_scaled_link(self.within, by),
            between=self.between and _scaled_link(self.between, by),
            copies=copies,
            speed={name: self.speed[name] * by[name] for name in SPEEDS},
        )

    def parsed(self, model: str, parse: Callable[[Any], _Parsed]) -> _Parsed | None:
        """Return what `parse` makes of ``measured[model]``, asked once; None without that table.

        For models whose tables take a while to check. `parse` raises `UsageError` for a table that
        it cannot use.

        Raises
        ------
        FormatError
            From `parse`, naming the platform and the table.
        """
        if model not in self.measured:
            return None
        if model not in self._parsed:
            try:
                self._parsed[model] = parse(self.measured[model])
            except UsageError as error:
                raise FormatError(f"platform {self.name}: [measured.{model}] {error}") from error
        return self._parsed[model]  # type: ignore[no-any-return]

    def _wire(self, link: Link, crowding: float) -> Wire:
        return Wire(
            latency=link.latency_seconds + 2 * link.overhead_seconds * crowding,
            per_byte=1 / link.bandwidth,
            reduction=crowding / self.processor.reduction_bandwidth,
        )

    def _network(self, ranks: int) -> Link:
        if self.between is None:
            raise UsageError(
                f"platform {self.name} is one node of {self.node.ranks} ranks, without "
                f"[links.between]: {ranks} ranks need more"
            )
        return self.between


def _scaled_link(link: Link, by: Mapping[str, float]) -> Link:
    return dataclasses.replace(
        link,
        latency_seconds=link.latency_seconds * by["link_latency"],
        overhead_seconds=link.overhead_seconds * by["link_latency"],
        bandwidth=link.bandwidth * by["link_bandwidth"],
    )
