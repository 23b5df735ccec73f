"""A rank's rows packed for the compiled cascade, and its links to the other ranks of the group.

Every thread is a *stream*: it has its own communicator, buffers and tiles, and meets the same
stream of the other ranks, so that no thread ever waits for another one of its rank. Which tiles
a stream takes, and how they are cut and packed, is the same on all ranks (`kernels.cascade`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.compiled import mpi_error
from sparsednn.distributed.layer import DistributedLayer
from sparsednn.distributed.links import make_link, persistent_everywhere
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import NetworkShard
from sparsednn.distributed.timing import Timing
from sparsednn.errors import LaunchError, ShapeError
from sparsednn.inputs import InputSet
from sparsednn.kernels.cascade import run_cascade
from sparsednn.kernels.cpu import in_threads, make_images, make_workspace
from sparsednn.kernels.linked import Link
from sparsednn.kernels.packing import PackedNetwork, pack_rows
from sparsednn.kernels.sizes import make_tiling, most_pools, tile_columns
from sparsednn.kernels.tiles import Tiling
from sparsednn.machine import machine

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["CompiledPlan", "PackedShard"]


@dataclass(frozen=True, slots=True)
class PackedShard:
    """A rank's rows of all layers as the compiled loops want them, without the shard.

    Attributes
    ----------
    packed
        Three parts per layer, see `kernels.linked`.
    width
        Neurons of each neuron layer that the rank owns, the inputs included.
    droppable_from
        Of the whole network.
    """

    packed: PackedNetwork
    width: list[int]
    droppable_from: int

    @classmethod
    def of(cls, shard: NetworkShard, plans: Sequence[ExchangePlan]) -> PackedShard:
        """Pack layer by layer, so that weights are never there more than twice."""
        parts = (
            part
            for k, (layer, plan) in enumerate(zip(shard.layers, plans, strict=True))
            for part in DistributedLayer.make(
                layer, plan, shard.owners[k], shard.part
            ).packed_parts()
        )
        width = [int(np.count_nonzero(owners == shard.part)) for owners in shard.owners]
        edges = sum(layer.nnz for layer in shard.layers)
        return cls(pack_rows(parts, width, edges), width, shard.droppable_from)


class CompiledPlan:
    """What a rank runs its part of the network with; made once, run on any number of columns.

    Parameters
    ----------
    rows
        The rank's rows of all layers.
    plans
        The messages of all layers.
    group
        The ranks that share the network; rank r has part r.
    threads
        Streams; the same on all ranks of the group.
    columns
        How many columns a call will have, at most: tiles are not made wider than that.
    drop
        Whether dead columns may be dropped.
    overlap
        Whether owned columns are multiplied while messages travel (False only to measure it).
    events
        Room for so many events for a trace, per stream.

    Collective over `group`, as are `run` and `free`.
    """

    def __init__(
        self,
        rows: PackedShard,
        plans: Sequence[ExchangePlan],
        group: Communicator,
        *,
        threads: int,
        columns: int,
        drop: bool = True,
        overlap: bool = True,
        events: int = 0,
    ) -> None:
        self.group, self.threads = group, threads
        self.packed, self._width = rows.packed, rows.width
        self.n_in, self.n_out = rows.width[0], rows.width[-1]
        # A layer that may not drop is as good as none that does: no agreement, no pools.
        self.droppable_from = rows.droppable_from if drop else len(plans) + 1
        self.tiling = self._choose_tiling(plans, columns)
        self._stack = ExitStack()
        persistent = persistent_everywhere(plans, group, threads)
        self.links = [
            self._link(plans, persistent, overlap, events, stream) for stream in range(threads)
        ]
        self._workspaces = [make_workspace(self.packed, self.tiling) for _ in range(threads)]
        self._counted = np.zeros((len(plans), 4), np.int64)

    def _choose_tiling(self, plans: Sequence[ExchangePlan], columns: int) -> Tiling:
        """Sizes that suit every rank of the group: the smallest of what each would choose."""
        cpu = machine()
        received = [plan.words_received for plan in plans]
        floats = max(
            before + after + more
            for before, after, more in zip(self._width, self._width[1:], received, strict=False)
        )
        suits, near = tile_columns(floats, cpu, self.threads)
        rows = max(1, *(max(plan.words_sent, plan.words_received) for plan in plans))
        wanted = min(suits, -(-max(1, columns) // self.threads), max(1, self.group.limit // rows))
        agreed = np.array([wanted, near], np.int64)
        self.group.allreduce(agreed, "min")
        common = int(agreed[0])
        # Ranks may share a node, and most do: each takes its part of the memory for pools.
        sharers = self.threads * self.group.size
        pools = np.array([most_pools(common, max(self._width), cpu, sharers)], np.int64)
        self.group.allreduce(pools, "min")
        return make_tiling(common, bool(agreed[1]), self.droppable_from, len(plans), int(pools[0]))

    def _link(
        self,
        plans: Sequence[ExchangePlan],
        persistent: bool,
        overlap: bool,
        events: int,
        stream: int,
    ) -> Link:
        """One stream's communicator, buffers and persistent requests."""
        comm = self.group.duplicate()
        self._stack.callback(comm.free)
        return make_link(
            plans,
            comm,
            self.tiling.columns,
            self._stack,
            persistent=persistent,
            words=self.tiling.stride,
            overlap=overlap,
            events=events,
            tag=stream,
        )

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on all columns.

        Parameters
        ----------
        inputs
            ``(owned inputs, images)``, the same number of images on all ranks of the group.
        outputs
            ``(owned outputs, images)`` float32, zeroed by the caller, to be filled; or None.

        Returns
        -------
        ``(images,)`` bool: which images have a nonzero among this rank's outputs.

        Raises
        ------
        LaunchError
            If MPI reports an error.
        """
        # The compiled loops write wherever they are told: what does not fit must not reach them.
        if self.n_in and inputs.n_features != self.n_in:
            raise ShapeError(
                f"inputs have {inputs.n_features} features, this rank owns {self.n_in}"
            )
        if outputs is not None and outputs.shape != (self.n_out, inputs.n_images):
            raise ShapeError(
                f"outputs have shape {outputs.shape}, expected {(self.n_out, inputs.n_images)}"
            )
        images = make_images(inputs, outputs)
        waiting = list(range(self.threads))
        codes: list[int] = []

        def work() -> None:
            stream = waiting.pop()
            codes.append(
                run_cascade(
                    self.packed,
                    self.tiling,
                    images,
                    self._workspaces[stream],
                    self.droppable_from,
                    np.array([stream], np.int64),
                    self.links[stream],
                    self.threads,
                )
            )

        in_threads(work, self.threads)
        self._count()
        for code in codes:
            if code:
                raise LaunchError(f"MPI reports an error in an exchange: {mpi_error(code)}")
        return images.nonzero.view(np.bool_)

    def _count(self) -> None:
        """Tell the group's traffic what the compiled loops have sent."""
        total = np.sum([link.counts for link in self.links], axis=0)
        new = total - self._counted
        self._counted = total
        self.group.traffic.count_layers("exchange", new[:, 0], new[:, 1], 4)
        steps = 2 * (self.group.size - 1)
        words = -(-new[:, 2] * steps // self.group.size)
        self.group.traffic.count_layers("allreduce", words, new[:, 3] * steps, 4)

    @property
    def timing(self) -> Timing:
        """Seconds by layer and phase, the largest of the streams, since the last `reset`."""
        seconds = np.max([link.seconds for link in self.links], axis=0)
        events = [link.events[: int(link.event_count[0])] for link in self.links]
        happened = sum(int(link.event_count[0]) for link in self.links)
        return Timing(seconds, events, happened - sum(len(one) for one in events))

    def reset(self) -> None:
        """Forget seconds and events (a warm-up's)."""
        for link in self.links:
            link.seconds[:] = 0
            link.event_count[:] = 0

    def tiles(self, images: int) -> int:
        """How many exchanges a layer has for so many images when nothing is dropped."""
        return -(-images // self.tiling.columns)

    def free(self) -> None:
        """Give requests and communicators back to MPI."""
        self._stack.close()
