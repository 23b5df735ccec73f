"""`PlacedNetwork`: a rank's rows, its engine and its stepper, for one pattern and one partition.

When the pattern changes (dynamic sparsity) or the partition does, there is a new one; what is kept
is in the order of the shard's rows: parameters, and the optimizer's arrays.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.comm.alone import Alone
from sparsednn.distributed.plan import exchange_plans, plans_of_all
from sparsednn.distributed.shard import NetworkShard, whole_shard
from sparsednn.errors import UsageError
from sparsednn.inputs import InputSet
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.training.data import LocalExamples
from sparsednn.training.engine import Engine, Layer
from sparsednn.training.settings import Settings
from sparsednn.training.stepper import Stepper

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.gpu.device import Device
    from sparsednn.training.device_data import DeviceExamples

__all__ = ["KERNELS", "PlacedNetwork", "warm_up"]

KERNELS = ("numba", "reference")

#: Images of a piece on a device, at least: smaller batches are trained in one all the same, and the
#: examples to test with go through in fewer pieces.
_DEVICE_COLUMNS = 256


class PlacedNetwork:
    """What a rank trains with; collective over `group` and `across`, as are its methods.

    Parameters
    ----------
    shard
        The rank's rows with the weights to begin with.
    slots
        The optimizer's arrays by name, per layer in the order of the rows; None: all zero.
    group, across
        The ranks that share the neurons; the ranks of all data groups that have this part.
    settings, kernel, threads
        How to train.
    columns
        Images of a step in this data group, at most.
    device
        Train on this one, whatever `kernel` says; None: on the CPU.
    resident
        Examples that are on the device already.
    transport
        How lines are to travel between devices, one of `distributed.transports.TRANSPORTS`.

    Attributes
    ----------
    plans
        The messages of all layers.
    forward_words, backward_words
        Words that one image makes other ranks send to this one in a forward pass, and this one to
        them in a backward pass.
    transport
        How lines travel between the devices of the group; "" without.
    """

    def __init__(
        self,
        shard: NetworkShard,
        slots: dict[str, list[Layer]] | None,
        group: Communicator,
        across: Communicator,
        settings: Settings,
        *,
        kernel: str,
        threads: int,
        columns: int,
        device: Device | None = None,
        resident: DeviceExamples | None = None,
        transport: str = "auto",
    ) -> None:
        self._shard, self._group, self._across = shard, group, across
        alone = group.size == 1
        self.plans = plans_of_all([shard])[0] if alone else exchange_plans(shard, group)
        self._input_gradient = settings.input_gradient and not alone
        self.engine: Engine
        self.stepper: Stepper
        self.transport = ""
        if device is None:
            self.engine = self._make_engine(kernel, threads, columns)
            self.stepper = Stepper(
                self.engine, group, across, threads=threads, **self._given(settings)
            )
        else:
            self._place_on(device, resident, settings, columns, transport)
        for name, layers in (slots or {}).items():
            self.stepper.restore(name, self.engine.flat(layers))
        received = [plan.words_received for plan in self.plans]
        self.forward_words = sum(received)
        self.backward_words = sum(received if self._input_gradient else received[1:])

    def _given(self, settings: Settings) -> dict[str, Any]:
        """What all steppers are told."""
        last = self._shard.layers[-1]
        return {
            "rows": last.rows, "n_out": last.n_out, "loss": settings.loss,
            "optimizer": settings.optimizer, "clip": settings.clip,
        }  # fmt: skip

    def _place_on(
        self,
        device: Device,
        resident: DeviceExamples | None,
        settings: Settings,
        columns: int,
        transport: str,
    ) -> None:
        from sparsednn.training.device_engine import DeviceEngine
        from sparsednn.training.device_stepper import DeviceStepper

        engine = DeviceEngine(
            device, self._shard, self.plans, self._group, self._across,
            columns=max(columns, _DEVICE_COLUMNS), input_gradient=self._input_gradient,
            slots=settings.optimizer.slots, examples=resident, transport=transport,
        )  # fmt: skip
        self.engine, self.transport = engine, engine.transport
        self.stepper = DeviceStepper(engine, self._group, self._across, **self._given(settings))

    def _make_engine(self, kernel: str, threads: int, columns: int) -> Engine:
        shared: dict[str, Any] = {"columns": columns, "input_gradient": self._input_gradient}
        if kernel == "reference":
            from sparsednn.training.reference import ReferenceEngine

            return ReferenceEngine(self._shard, self.plans, self._group, self._across, **shared)
        if kernel != "numba":
            raise UsageError(f"--kernel is one of {', '.join(KERNELS)}: '{kernel}'")
        from sparsednn.training.compiled import CompiledEngine

        return CompiledEngine(
            self._shard, self.plans, self._group, self._across, threads=threads, **shared
        )

    @property
    def shard(self) -> NetworkShard:
        """The rank's rows with the weights of now."""
        layers = tuple(
            replace(layer, values=values, bias=bias)
            for layer, (values, bias) in zip(
                self._shard.layers, self.engine.layers_of(self.engine.theta), strict=True
            )
        )
        return replace(self._shard, layers=layers)

    @property
    def slots(self) -> dict[str, list[Layer]]:
        """The optimizer's arrays of now, in the order of the rows."""
        return {name: self.engine.layers_of(array) for name, array in self.stepper.slots.items()}

    def words_per_image(self) -> int:
        """Words that one image costs the group in a forward pass; collective."""
        words = np.array([self.forward_words], np.int64)
        self._group.allreduce(words)
        return int(words[0])

    def free(self) -> None:
        """Give everything back."""
        self.engine.free()


def warm_up(settings: Settings) -> None:
    """Compile what a step needs, or load it from the cache on disk, by training one neuron."""
    shard = whole_shard(SparseNetwork([SparseLayer([0, 1], [0], [1.0], 1)], name="warm-up"))
    alone = Alone()
    placed = PlacedNetwork(
        shard, None, alone, alone, settings, kernel="numba", threads=1, columns=1
    )
    image = np.zeros(1, np.int64)
    examples = LocalExamples(InputSet.from_dense([[1.0]]), image, None, "warm-up")
    placed.stepper.train(examples, image, 1, rate=0.0, step=1)
    placed.free()
