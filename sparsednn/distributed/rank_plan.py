"""`RankPlan`: what runs a rank's share of a network, and how one is made on a GPU.

On the CPU it is `compiled.CompiledPlan` or `reference.ReferencePlan`, or `WholePlan` around an
ordinary kernel; on a GPU `device_plan.DevicePlan`, or `WholePlan` around the GPU's kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import NetworkShard
from sparsednn.distributed.timing import Timing
from sparsednn.inputs import InputSet

if TYPE_CHECKING:
    from sparsednn.distributed.inference import DistributedRun
    from sparsednn.gpu.device import Device
    from sparsednn.kernels import NetworkPlan
    from sparsednn.kernels.gpu import GpuPlan
    from sparsednn.network import SparseNetwork

__all__ = ["RankPlan", "WholePlan", "plan_shard", "plan_whole"]


class RankPlan(Protocol):
    """See the module."""

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on this rank's part of all columns; see `CompiledPlan.run`."""

    def reset(self) -> None:
        """Forget the seconds (a warm-up's)."""

    def tiles(self, images: int) -> int:
        """How many exchanges a layer has for so many images when nothing is dropped."""

    def free(self) -> None:
        """Give everything back; collective."""

    @property
    def timing(self) -> Timing:
        """Seconds by layer and phase since the last `reset`."""


class WholePlan:
    """A rank that holds the whole network: the ordinary kernel, no exchange."""

    def __init__(self, plan: NetworkPlan, depth: int, gpu: GpuPlan | None = None) -> None:
        self._plan, self._depth, self._gpu = plan, depth, gpu

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run the kernel."""
        return self._plan.run(inputs, outputs)

    def reset(self) -> None:
        """Forget a GPU's seconds."""
        if self._gpu is not None:
            self._gpu.forget_times()

    def tiles(self, images: int) -> int:
        """Nothing is exchanged."""
        return 0

    def free(self) -> None:
        """Nothing is MPI's."""

    @property
    def timing(self) -> Timing:
        """Zeros, as nothing is timed by layer, and a GPU's seconds."""
        from sparsednn.kernels.linked import PHASES

        by_layer = np.zeros((self._depth, len(PHASES)))
        if self._gpu is None:
            return Timing(by_layer)
        return Timing(by_layer, device=self._gpu.device_seconds, copies=self._gpu.copy_seconds)


def plan_whole(
    device: Device, network: SparseNetwork, run: DistributedRun
) -> Callable[[], RankPlan]:
    """Copy a whole network to every rank's GPU; what is returned makes the plan for the inputs.

    Collective: what fails on one rank is raised on all. `run` says how, and has the inputs by then.
    """
    from sparsednn.kernels.gpu import GpuKernel

    with together(run.world, "copying the network to the GPUs"):
        plan = GpuKernel(device, precision=run.precision, merge=run.merge).plan(network)

    def make() -> RankPlan:
        with together(run.world, "reserving memory on the GPUs"):
            plan.reserve(run.inputs.columns(0, run.most_columns), run.outputs)
        return WholePlan(plan, run.depth, plan)

    return make


def plan_shard(
    device: Device,
    shard: NetworkShard,
    plans: list[ExchangePlan],
    run: DistributedRun,
    *,
    drop: bool,
    overlap: bool,
    transport: str,
) -> Callable[[], RankPlan]:
    """Copy each rank's rows to its GPU; as `plan_whole`."""
    from sparsednn.distributed.device_plan import DevicePlan
    from sparsednn.distributed.device_shard import DeviceShard
    from sparsednn.errors import DeviceMemoryError
    from sparsednn.gpu.storage import store_of

    with together(run.world, "copying the network to the GPUs"):
        rows = DeviceShard(device, shard, plans, store_of(run.precision))

    def make() -> RankPlan:
        plan = shortage = None
        try:
            plan = DevicePlan(
                device,
                rows,
                plans,
                run.group,
                columns=run.most_columns,
                drop=drop,
                overlap=overlap,
                outputs=run.outputs,
                transport=transport,
            )
        except DeviceMemoryError as error:  # on all ranks of the group; other groups may have room
            shortage = error
        with together(run.world, "reserving memory on the GPUs"):
            if shortage is not None:
                raise shortage
        assert plan is not None
        run.columns, run.transport = plan.chunk, plan.transport
        return plan

    return make
