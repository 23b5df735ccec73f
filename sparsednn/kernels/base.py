"""The kernel interface: plan once for a network, then run it on any number of columns.

An algorithm (engine, distributed layer) takes a `Kernel` and never asks which one it is.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.inputs import InputSet
from sparsednn.network import SparseNetwork

__all__ = ["Kernel", "NetworkPlan"]


class NetworkPlan(Protocol):
    """What a kernel has worked out for one network and a number of threads."""

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on all columns of `inputs`.

        Parameters
        ----------
        inputs
            ``(n_in, images)``; the caller has checked the width.
        outputs
            ``(n_out, images)`` float32, zeroed by the caller, to be filled; None if only the
            categories are wanted.

        Returns
        -------
        ``(images,)`` bool: which images end with at least one nonzero output.
        """

    def forward_layer(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One layer on dense columns: ``f(W x + b)``, ``(n_in, batch)`` to ``(n_out, batch)``."""


class Kernel(Protocol):
    """A way to compute: reference (SciPy), numba (CPU), cupy (GPU)."""

    name: str

    def plan(self, network: SparseNetwork, *, threads: int = 1) -> NetworkPlan:
        """Work out everything that depends on the network and the machine only."""
