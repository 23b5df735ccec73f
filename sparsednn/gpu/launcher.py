"""`Launcher`: our kernels with the macros of a network, on grids that fill the device.

For `cascade` and `kernels.gpu`. Ranks that share the neurons, and training, start their kernels by
themselves.
"""

from __future__ import annotations

from typing import Any

from sparsednn.gpu.device import Device, Function, Stream
from sparsednn.gpu.network import DeviceNetwork

__all__ = ["MOVE_BLOCKS", "THREADS", "Launcher"]

#: Threads of a block.
THREADS = 256

#: Blocks for each multiprocessor, of a grid that moves columns.
MOVE_BLOCKS = 8


class Launcher:
    """Starts our kernels with the macros of a network, on grids that fill the device."""

    def __init__(self, device: Device, network: DeviceNetwork) -> None:
        self._device = device
        self._defines = {"INDEX_BITS": network.index_bits, "STORE": network.store}

    def __call__(
        self,
        program: str,
        kernel: str,
        arguments: tuple[Any, ...],
        stream: Stream,
        *,
        blocks: int = 0,
    ) -> None:
        """Start a kernel; by default with blocks for one that moves columns."""
        function = self.function(program, kernel)
        blocks = blocks or MOVE_BLOCKS * self._device.multiprocessors
        self._device.launch(function, blocks, THREADS, arguments, stream=stream)

    def function(self, program: str, kernel: str, **more: int) -> Function:
        """Return a kernel, compiled with this network's macros and some more."""
        macros = {"THREADS": THREADS, **self._defines, **more}
        return self._device.function(program, kernel, **macros)
