"""Compute kernels behind one interface: `reference` (SciPy), `numba` (CPU) and `cupy` (GPU).

`get_kernel` imports a kernel only when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsednn.errors import UsageError
from sparsednn.kernels.base import Kernel, NetworkPlan

if TYPE_CHECKING:
    from sparsednn.gpu.device import Device

__all__ = ["CPU_KERNELS", "KERNELS", "Kernel", "NetworkPlan", "get_kernel"]

#: Kernels of the CPU, the default first.
CPU_KERNELS = ("numba", "reference")

#: Names that `get_kernel` knows.
KERNELS = (*CPU_KERNELS, "cupy")


def get_kernel(name: str, device: Device | None = None) -> Kernel:
    """Return the kernel of this name.

    Parameters
    ----------
    name
        One of `KERNELS`.
    device
        Of `cupy`; by default the first GPU.

    Raises
    ------
    UsageError
        If there is none.
    MissingDependencyError
        If it is `cupy`, and there is no usable GPU.
    """
    if name == "reference":
        from sparsednn.kernels.reference import ReferenceKernel

        return ReferenceKernel()
    if name == "numba":
        from sparsednn.kernels.cpu import NumbaKernel

        return NumbaKernel()
    if name == "cupy":
        from sparsednn.gpu import find_device
        from sparsednn.kernels.gpu import GpuKernel

        found = device or find_device("gpu")
        assert found is not None  # or it has raised
        return GpuKernel(found)
    raise UsageError(f"unknown kernel '{name}': known are {', '.join(KERNELS)}")
