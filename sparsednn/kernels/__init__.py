"""Compute kernels behind one interface: `reference` (SciPy) and `numba` (CPU).

`get_kernel` imports a kernel only when it is asked for.
"""

from __future__ import annotations

from sparsednn.errors import UsageError
from sparsednn.kernels.base import Kernel, NetworkPlan

__all__ = ["KERNELS", "Kernel", "NetworkPlan", "get_kernel"]

#: Names that `get_kernel` knows, the default first.
KERNELS = ("numba", "reference")


def get_kernel(name: str) -> Kernel:
    """Return the kernel of this name.

    Raises
    ------
    UsageError
        If there is none.
    """
    if name == "reference":
        from sparsednn.kernels.reference import ReferenceKernel

        return ReferenceKernel()
    if name == "numba":
        from sparsednn.kernels.cpu import NumbaKernel

        return NumbaKernel()
    raise UsageError(f"unknown kernel '{name}': known are {', '.join(KERNELS)}")
