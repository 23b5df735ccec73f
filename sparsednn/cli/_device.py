"""``--device`` of the commands that compute, and what goes with it: kernel and transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from sparsednn.cli._common import note
from sparsednn.cli._ranks import RANKS_PANEL
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.comm import Communicator
    from sparsednn.gpu.device import Device

__all__ = [
    "DeviceOption",
    "KernelOption",
    "TransportOption",
    "check_device",
    "cpu_kernel",
    "device_of",
]

DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        help="cpu, gpu (NVIDIA), or auto: a GPU if there is a usable one, else the CPU.",
    ),
]
KernelOption = Annotated[
    str | None,
    typer.Option(
        "--kernel",
        help="Of the CPU: numba or reference (default: numba).",
        show_default=False,
    ),
]
TransportOption = Annotated[
    str,
    typer.Option(
        "--transport",
        help="How lines travel between the GPUs of ranks that share the neurons: staged (through "
        "the hosts), gpu-aware (MPI on GPU memory), nccl, or auto: gpu-aware if MPI says that it "
        "can, else staged.",
        rich_help_panel=RANKS_PANEL,
    ),
]


def check_device(choice: str, kernel: str | None, transport: str) -> None:
    """Tell what is wrong with ``--device`` and what goes with it; looks for no device.

    Raises
    ------
    UsageError
        If one of them is not known, or they exclude each other.
    """
    from sparsednn.gpu import CHOICES
    from sparsednn.kernels import get_kernel

    if choice not in CHOICES:
        raise UsageError(f"--device is one of {', '.join(CHOICES)}: '{choice}'")
    if kernel == "cupy":
        if choice != "gpu":
            raise UsageError("--kernel cupy is the GPU's: give --device gpu")
    elif kernel is not None:
        get_kernel(kernel)
        if choice != "cpu":
            raise UsageError(f"--kernel {kernel} is the CPU's: leave out --device {choice}")
    if transport != "auto":
        _check_transport(choice, transport)


def _check_transport(choice: str, transport: str) -> None:
    from sparsednn.distributed.transports import TRANSPORTS

    if transport not in TRANSPORTS:
        raise UsageError(f"--transport is one of {', '.join(TRANSPORTS)}: '{transport}'")
    if choice == "cpu":
        raise UsageError(f"--transport {transport} is for GPUs: give --device gpu, or auto")


def cpu_kernel(kernel: str | None) -> str:
    """Return the kernel that the CPU runs."""
    return "numba" if kernel is None else kernel


def device_of(choice: str, world: Communicator | None = None) -> Device | None:
    """Find the device; with `world`, one for each rank. A choice that is ours is told on stderr."""

    def tell(reason: str) -> None:
        note(f"--device auto: {reason}: the CPU is used")

    if world is None:
        from sparsednn.gpu import find_device

        return find_device(choice, tell=tell)
    if choice == "cpu":
        return None
    from sparsednn.gpu.ranks import find_devices

    return find_devices(choice, world, tell)
