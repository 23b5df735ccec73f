"""Inference on many ranks: load, plan, run, gather. Every function is called by all ranks.

Ranks form a grid D × M: the images are divided among D groups, the neurons among the M ranks of
each group, as a partition says. ``D × 1`` is pure data parallelism: every rank holds the network
and runs the ordinary kernel on its images. ``1 × M`` is pure model parallelism.

Who owns what: rank (d, m) owns part m of every layer, and group d's images. Collectives of a run:
the exchanges of every layer and agreements on dead columns within a group (`compiled`), one
allreduce of the images' flags within a group, one gather of them (and of outputs, where they are
wanted, block by block) on rank 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.comm.grid import ProcessGrid
from sparsednn.comm.mpi import load_mpi
from sparsednn.distributed.gathering import Gathering, finish_softmax
from sparsednn.distributed.inputs import distribute_inputs
from sparsednn.distributed.loading import load_shard, load_whole
from sparsednn.distributed.partitions import grid_shape, share_partition
from sparsednn.distributed.plan import exchange_plans
from sparsednn.distributed.rank_plan import RankPlan, WholePlan, plan_shard, plan_whole
from sparsednn.distributed.shard import NetworkShard
from sparsednn.distributed.timing import gather_trace, slowest
from sparsednn.distributed.transports import check_transport
from sparsednn.errors import UsageError
from sparsednn.inference import OutputSink
from sparsednn.kernels import get_kernel
from sparsednn.machine import give_back_memory

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.formats import ReadOptions
    from sparsednn.gpu.device import Device
    from sparsednn.network import SparseNetwork

__all__ = ["DistributedResult", "DistributedRun"]

_OUTPUT_BYTES = 128 << 20  # of the dense outputs of all ranks that are held at a time
_SAMPLE = 256  # images that GPUs run before they are timed
_EVENTS = 1 << 18  # of a rank's trace: 8 MiB


@dataclass(frozen=True)
class DistributedResult:
    """What a run gave; the same on all ranks, but for `categories` and `trace`.

    Attributes
    ----------
    categories
        On rank 0 as `InferenceResult.categories`; empty on the others.
    infer_seconds
        From the sparse inputs in the ranks' memories to the categories on rank 0; gathering and
        writing outputs is not in it.
    words_sent, messages_sent
        Words (activations) and messages between ranks of a group, counted as they were sent.
    words_predicted, messages_predicted
        What the partition promises for this run when no column is dropped: the words that each
        rank's rows need and others own, times its images; a message for each neighbour, layer and
        tile.
    seconds
        ``(layers, 4)`` by `kernels.linked.PHASES`, the largest of all ranks; zeros where M = 1.
    device_seconds, copy_seconds
        On GPUs, the largest of all ranks: seconds of kernels; of copies, where M = 1.
    trace
        Chrome trace on rank 0, if it was asked for.
    """

    categories: NDArray[np.int64] = field(repr=False)
    infer_seconds: float
    words_sent: int
    messages_sent: int
    words_predicted: int
    messages_predicted: int
    seconds: NDArray[np.float64] = field(repr=False)
    device_seconds: float
    copy_seconds: float
    trace: dict[str, Any] | None = field(repr=False)


class DistributedRun:
    """A network and inputs that are spread over ranks, ready to be run (more than once).

    Parameters
    ----------
    world
        All ranks.
    model, inputs, mnist, images, layers, bias, options
        As for `sources.load_network` and `sources.load_inputs`.
    partition
        File; or None for pure data parallelism.
    grid
        ``(D, M)``; by default M is the number of parts, and D what follows.
    kernel
        ``numba`` or ``reference``.
    threads
        Of each rank; the smallest that a rank gives, and 1 where MPI may be called by one thread
        only.
    drop, overlap
        See `compiled.CompiledPlan`. Where M = 1 there is nothing to send: columns are dropped, and
        neither matters. The reference engine knows `drop` only.
    outputs
        Whether `run` will be given a sink.
    trace
        Whether to record one; with a device it has no events.
    device
        This rank's GPU, on all ranks or on none; `kernel` and `threads` do not matter then.
    precision
        How a GPU stores weights and activations, see `gpu.storage`.
    transport
        How lines are to travel between GPUs, one of `transports.TRANSPORTS`; matters where M > 1.

    merge
        Whether a GPU that has the whole network (M = 1) computes columns that have become equal
        once.

    Attributes
    ----------
    name, neurons, depth, edges, n_out, n_images
        Of the network (`neurons`: of its widest layer) and of the inputs.
    shape
        The grid, ``(D, M)``.
    threads, columns
        Threads of each rank; columns of a tile, or of a GPU's chunk (0 for the reference, and where
        M = 1).
    transport
        How messages travel between GPUs; "" without.
    read_seconds, prepare_seconds
        The longest of all ranks: loading network and inputs; planning, packing, compiling.

    Raises
    ------
    UsageError
        If ranks, grid and parts do not fit, some ranks have a device and others have none, or the
        transport is none for these devices.
    SparseDNNError
        As the loading functions do; on all ranks alike.
    """

    def __init__(
        self,
        world: Communicator,
        model: str,
        inputs: str,
        *,
        partition: str | os.PathLike[str] | None = None,
        grid: tuple[int, ...] | None = None,
        kernel: str = "numba",
        threads: int = 1,
        drop: bool = True,
        overlap: bool = True,
        outputs: bool = False,
        trace: bool = False,
        mnist: Path | None = None,
        images: int | None = None,
        layers: int | None = None,
        bias: float | None = None,
        options: ReadOptions | None = None,
        device: Device | None = None,
        precision: str = "fp32",
        transport: str = "auto",
        merge: bool = True,
    ) -> None:
        self.world, self.outputs, self.traced = world, outputs, trace
        self.kernel = kernel if device is None else "cupy"
        self.threads = self._agreed_threads(kernel, threads)
        self.read_seconds = self.prepare_seconds = 0.0
        self.words_per_image = self.messages_per_tile = self.columns = 0
        self.device, self.precision, self.merge, self.transport = device, precision, merge, ""
        mixed = world.any_rank(device is None) and world.any_rank(device is not None)
        clock = _Clock(world)
        parts = None if partition is None else share_partition(world, partition)
        with together(world, "arranging the ranks"):
            if mixed:
                raise UsageError("some ranks have a GPU and others have none")
            if device is None and precision != "fp32":
                raise UsageError(f"precision {precision} is for GPUs: the CPU computes in fp32")
            self.shape = grid_shape(
                world.size, 1 if parts is None else parts.parts, grid, partition=partition
            )
            if device is not None and self.shape[1] > 1:
                check_transport(transport, device)
        self.grid = ProcessGrid(world, self.shape)
        self.group = self.grid.along(1)
        loading: dict[str, Any] = {"layers": layers, "bias": bias, "options": options}
        network = shard = None
        if self.group.size == 1:
            network = load_whole(model, world, **loading)
            if parts is not None and partition is not None:
                with together(world, f"checking {partition}"):
                    parts.check(network, file=partition)
            widths = [network.n_in, *(layer.n_out for layer in network)]
            owners = None
        else:
            assert parts is not None  # grid_shape has seen to that
            shard = load_shard(
                model, parts, self.group.rank, self.group,
                world=world, file=partition or "", **loading,
            )  # fmt: skip
            widths = [vector.size for vector in shard.owners]
            owners = shard.owners
        self._softmax = shard is not None and shard.layers[-1].activation.kind == "softmax"
        known = network if shard is None else shard
        assert known is not None
        self.name, self.edges, self.depth = known.name, known.edges, len(widths) - 1
        self.neurons, self.n_out = max(widths[1:]), widths[-1]
        self.read_seconds += clock.lap()

        # The weights are packed, and forgotten, before the inputs come: both at once are the peak.
        make_plan = (
            self._for_whole(network)
            if shard is None
            else self._for_shard(shard, drop=drop, overlap=overlap, transport=transport)
        )
        del network, shard, known
        give_back_memory()
        self.prepare_seconds += clock.lap()

        local = distribute_inputs(
            inputs,
            world,
            self.grid,
            None if owners is None else owners[0],
            self.group.rank,
            n_features=widths[0],
            mnist=mnist,
            images=images,
            step=max(1, _OUTPUT_BYTES // (4 * self.n_out)) if outputs else None,
        )
        self.inputs, self.n_images, self.ranges = local.inputs, local.n_images, local.ranges
        give_back_memory()
        self._gathering = Gathering(
            world, self.grid, None if owners is None else owners[-1], self.n_out, self.n_images
        )
        self.read_seconds += clock.lap()
        self._plan = make_plan()
        self._warm_up()
        self.prepare_seconds += clock.lap()

    def _agreed_threads(self, kernel: str, threads: int) -> int:
        """Threads of a rank: the same on all, as streams of different ranks meet."""
        from sparsednn.comm.mpi import library

        several = kernel != "reference" and library().thread_level == "multiple"
        agreed = np.array([threads if several else 1], np.int64)
        self.world.allreduce(agreed, "min")
        return int(agreed[0])

    def _for_whole(self, network: SparseNetwork | None) -> Callable[[], RankPlan]:
        """Every rank has the whole network: the ordinary kernel."""
        assert network is not None
        if self.device is not None:
            return plan_whole(self.device, network, self)
        plan = WholePlan(get_kernel(self.kernel).plan(network, threads=self.threads), self.depth)
        return lambda: plan

    def _for_shard(
        self, shard: NetworkShard, *, drop: bool, overlap: bool, transport: str
    ) -> Callable[[], RankPlan]:
        """Work out the messages and pack the rows; returns what makes the plan for the inputs."""
        plans = exchange_plans(shard, self.group)
        self.words_per_image = sum(plan.words_received for plan in plans)
        self.messages_per_tile = sum(plan.receive_ranks.size for plan in plans)
        if self.device is not None:
            how: dict[str, Any] = {"drop": drop, "overlap": overlap, "transport": transport}
            return plan_shard(self.device, shard, plans, self, **how)
        if self.kernel == "reference":
            from sparsednn.distributed.reference import ReferencePlan

            readable = ReferencePlan(shard, plans, self.group, drop=drop)
            return lambda: readable
        from sparsednn.distributed.compiled import CompiledPlan, PackedShard

        rows = PackedShard.of(shard, plans)

        def make() -> RankPlan:
            plan = CompiledPlan(
                rows,
                plans,
                self.group,
                threads=self.threads,
                columns=self.most_columns,
                drop=drop,
                overlap=overlap,
                events=_EVENTS if self.traced else 0,
            )
            self.columns = plan.tiling.columns
            return plan

        return make

    @property
    def most_columns(self) -> int:
        """Columns of the plan's largest call."""
        return max((last - first for first, last in self.ranges), default=0)

    def _warm_up(self) -> None:
        """Compile, or load from the cache on disk: one rank of each node first, for the others."""
        if self.device is not None:  # all at once: CuPy's cache can do that
            self._plan.run(self.inputs.columns(0, min(_SAMPLE, self.most_columns)))
            return
        MPI = load_mpi()
        node = self.world.raw.Split_type(MPI.COMM_TYPE_SHARED)
        nothing = self.inputs.columns(0, 0)
        if node.rank == 0:
            self._plan.run(nothing)
        node.Barrier()
        if node.rank:
            self._plan.run(nothing)
        node.Free()

    def run(self, sink: OutputSink | None = None) -> DistributedResult:
        """Run all images.

        Parameters
        ----------
        sink
            On rank 0, if outputs are wanted: takes them in the order of the images. What it raises
            there is raised there only: the caller has to end the other ranks.
        """
        MPI = load_mpi()
        traffic = self.world.traffic
        words, messages = traffic.words("exchange"), traffic.messages("exchange")
        self._plan.reset()
        self.world.barrier()
        clock = MPI.Wtime()
        spent = 0.0
        flags = np.zeros(self.inputs.n_images, np.uint8)
        predicted = np.zeros(2, np.int64)
        first = 0
        for begin, end in self.ranges:
            last = first + end - begin
            chunk = self.inputs.columns(first, last)
            outputs = None
            if self.outputs:
                outputs = np.zeros((self._gathering.mine.size, last - first), np.float32)
            self.world.barrier()
            start = MPI.Wtime()
            found = self._plan.run(chunk, outputs)
            if self._softmax:
                found[:] = True
            flags[first:last] = found
            spent += MPI.Wtime() - start
            predicted += (
                self.words_per_image * (last - first),
                self.messages_per_tile * self._plan.tiles(last - first),
            )
            if outputs is not None:
                if self._softmax:
                    finish_softmax(outputs, self.group)
                self._gathering.outputs(outputs, begin, sink)
            first = last
        start = MPI.Wtime()
        categories = self._gathering.categories(flags, self.ranges)
        spent += MPI.Wtime() - start
        sent = np.array(
            [traffic.words("exchange") - words, traffic.messages("exchange") - messages], np.int64
        )
        self.world.allreduce(sent)
        self.world.allreduce(predicted)
        timing = self._plan.timing
        return DistributedResult(
            categories=categories,
            infer_seconds=_longest(self.world, spent),
            words_sent=int(sent[0]),
            messages_sent=int(sent[1]),
            words_predicted=int(predicted[0]),
            messages_predicted=int(predicted[1]),
            seconds=slowest(timing, self.world),
            device_seconds=_longest(self.world, timing.device),
            copy_seconds=_longest(self.world, timing.copies),
            trace=gather_trace(timing, self.world, clock) if self.traced else None,
        )

    def free(self) -> None:
        """Give everything back to MPI; collective."""
        self._plan.free()
        self.grid.free()


class _Clock:
    """Seconds between laps, the longest of all ranks; collective."""

    def __init__(self, world: Communicator) -> None:
        self._world, self._now = world, load_mpi().Wtime()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._now = self._now, load_mpi().Wtime()
        return _longest(self._world, self._now - before)


def _longest(world: Communicator, seconds: float) -> float:
    longest = np.array([seconds])
    world.allreduce(longest, "max")
    return float(longest[0])
