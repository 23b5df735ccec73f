"""The GPU engine, and the choice of a device.

`find_device` loads CuPy only when a GPU is asked for. `device` is what engines ask of a GPU, `cuda`
is CuPy, `twin` NumPy; the kernels are in ``sources/``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sparsednn.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from sparsednn.gpu.device import Device

__all__ = ["CHOICES", "find_device"]

#: What `find_device` can be asked for.
CHOICES = ("cpu", "gpu", "auto")

_VARIABLE = "SPARSEDNN_DEVICE"


def find_device(
    choice: str, rank: int = 0, tell: Callable[[str], None] | None = None
) -> Device | None:
    """Find the device to compute on.

    A GPU counts as usable when a kernel has been compiled and run on it (once per process).

    Parameters
    ----------
    choice
        ``cpu``; ``gpu``; or ``auto``: a GPU if there is a usable one, else the CPU.
    rank
        Which process of this machine we are: the GPUs are dealt out in turn.
    tell
        Takes the reason, one line, when ``auto`` finds no usable GPU.

    Returns
    -------
    The GPU; None for the CPU.

    Raises
    ------
    UsageError
        If there is no such choice.
    MissingDependencyError
        If a GPU is asked for and none is usable: one line that says what is missing.

    Notes
    -----
    With ``SPARSEDNN_DEVICE=twin`` in the environment, ``gpu`` gives the NumPy twin, which computes
    the same, slowly, in host memory. It is for tests, and calls itself "NumPy twin".
    """
    if choice not in CHOICES:
        raise UsageError(f"--device is one of {', '.join(CHOICES)}: '{choice}'")
    if choice == "cpu":
        return None
    instead = os.environ.get(_VARIABLE)
    if instead and choice == "gpu":
        if instead != "twin":
            raise UsageError(f"{_VARIABLE} is 'twin' or nothing: '{instead}'")
        from sparsednn.gpu.twin import TwinDevice

        return TwinDevice()
    from sparsednn.gpu.usable import find_count, usable_device

    try:
        return usable_device(rank % find_count())
    except MissingDependencyError as error:
        if choice == "auto":
            if tell is not None:
                tell(str(error))
            return None
        raise MissingDependencyError(f"--device gpu: {error}; or use --device cpu") from error
