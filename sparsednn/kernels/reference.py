"""The reference kernel: SciPy's sparse product and the NumPy activations, nothing clever.

It is the truth that every other kernel is compared with. Dead columns are dropped where the layers
that follow keep zero at zero; nothing else is left out.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.inputs import InputSet
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["ReferenceKernel", "ReferencePlan", "forward"]

_CHUNK_BYTES = 128 << 20  # of the widest layer's activations in one chunk of columns


def forward(layer: SparseLayer, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute one layer, ``f(W x + b)``, on dense columns ``(n_in, batch)``."""
    z = layer.weight @ x + layer.bias[:, None]
    return layer.activation.apply(z)


class ReferencePlan:
    """Runs a network chunk by chunk of columns; see `sparsednn.kernels.base.NetworkPlan`."""

    def __init__(self, network: SparseNetwork) -> None:
        self.network = network
        widest = max(network.n_in, *(layer.n_out for layer in network))
        self.chunk = max(1, _CHUNK_BYTES // (4 * widest))

    def forward_layer(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One layer on dense columns."""
        return forward(self.network[layer], x)

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on all columns."""
        nonzero = np.zeros(inputs.n_images, np.bool_)
        for first in range(0, inputs.n_images, self.chunk):
            last = min(first + self.chunk, inputs.n_images)
            x = inputs.columns(first, last).to_dense()
            ids = np.arange(first, last)
            for index, layer in enumerate(self.network):
                x = forward(layer, x)
                if index + 1 >= self.network.droppable_from:
                    alive = x.any(axis=0)
                    if not alive.all():
                        x, ids = np.ascontiguousarray(x[:, alive]), ids[alive]
                    if not ids.size:
                        break
            else:
                nonzero[ids] = x.any(axis=0)
                if outputs is not None:
                    outputs[:, ids] = x
        return nonzero


class ReferenceKernel:
    """SciPy on one thread."""

    name = "reference"

    def plan(self, network: SparseNetwork, *, threads: int = 1) -> ReferencePlan:
        """Nothing to work out; `threads` is not used (SciPy's product has one)."""
        return ReferencePlan(network)
