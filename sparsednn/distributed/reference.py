"""The readable engine: SciPy products and the communicator's verbs, layer by layer.

The truth for the compiled one, and what `--kernel reference` runs on several ranks. Every rank
calls everything in the same order; all ranks have the same columns.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.distributed.layer import DistributedLayer
from sparsednn.distributed.plan import ExchangePlan
from sparsednn.distributed.shard import NetworkShard
from sparsednn.distributed.timing import Timing
from sparsednn.inputs import InputSet
from sparsednn.kernels.linked import AGREE, COMPUTE, PACK, PHASES, WAIT

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["ReferencePlan"]

_CHUNK_BYTES = 64 << 20  # of the widest layer's activations (of all ranks) in one chunk of columns


class ReferencePlan:
    """A rank's layers for SciPy; the interface of `compiled.CompiledPlan`."""

    def __init__(
        self,
        shard: NetworkShard,
        plans: Sequence[ExchangePlan],
        group: Communicator,
        *,
        drop: bool = True,
    ) -> None:
        self.group = group
        self.layers = [
            DistributedLayer.make(layer, plan, shard.owners[k], shard.part)
            for k, (layer, plan) in enumerate(zip(shard.layers, plans, strict=True))
        ]
        self.droppable_from = shard.droppable_from if drop else len(self.layers) + 1
        self.n_in = int(np.count_nonzero(shard.owners[0] == shard.part))
        self.chunk = max(1, _CHUNK_BYTES // (4 * max(vector.size for vector in shard.owners)))
        self._seconds = np.zeros((len(self.layers), len(PHASES)))

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """As `compiled.CompiledPlan.run`."""
        nonzero = np.zeros(inputs.n_images, np.bool_)
        for first in range(0, inputs.n_images, self.chunk):
            last = min(first + self.chunk, inputs.n_images)
            # A rank without inputs has one feature, which is nobody's and always zero.
            x = inputs.columns(first, last).to_dense()[: self.n_in]
            ids = np.arange(first, last)
            for index, layer in enumerate(self.layers):
                x = self._forward(index, layer, x)
                if index + 1 >= self.droppable_from:
                    start = time.perf_counter()
                    alive = x.any(axis=0).astype(np.uint8)
                    self.group.allreduce(alive, "or", layer=index)
                    kept = alive != 0
                    self._seconds[index, AGREE] += time.perf_counter() - start
                    if not kept.all():
                        x, ids = np.ascontiguousarray(x[:, kept]), ids[kept]
                    if not ids.size:
                        break
            else:
                nonzero[ids] = x.any(axis=0)
                if outputs is not None:
                    outputs[:, ids] = x
        return nonzero

    def _forward(
        self, index: int, layer: DistributedLayer, x: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        plan = layer.plan
        clock = [time.perf_counter()]
        sent = np.ascontiguousarray(x[plan.send_rows])
        received = np.empty((plan.words_received, x.shape[1]), np.float32)
        with self.group.neighbour_exchange(
            _messages(sent, plan.send_ranks, plan.send_first),
            _messages(received, plan.receive_ranks, plan.receive_first),
            layer=index,
        ) as exchange:
            exchange.start()
            clock.append(time.perf_counter())
            z = layer.multiply_owned(x)
            clock.append(time.perf_counter())
            exchange.finish()
            clock.append(time.perf_counter())
        layer.add_received(z, received)
        # Softmax needs all rows of a column: `inference` finishes it.
        last = layer.activation.kind == "softmax"
        y = (Activation("identity") if last else layer.activation).apply(z)
        clock.append(time.perf_counter())
        for phase, seconds in zip((PACK, COMPUTE, WAIT, COMPUTE), np.diff(clock), strict=True):
            self._seconds[index, phase] += seconds
        return y

    @property
    def timing(self) -> Timing:
        """Seconds by layer and phase since the last `reset`; no events."""
        return Timing(self._seconds)

    def reset(self) -> None:
        """Forget the seconds."""
        self._seconds[:] = 0

    def tiles(self, images: int) -> int:
        """How many exchanges a layer has for so many images when nothing is dropped."""
        return -(-images // self.chunk)

    def free(self) -> None:
        """Nothing is kept."""


def _messages(
    rows: NDArray[np.float32], ranks: NDArray[np.int64], first: NDArray[np.int64]
) -> dict[int, NDArray[np.float32]]:
    return {int(rank): rows[first[i] : first[i + 1]] for i, rank in enumerate(ranks)}
