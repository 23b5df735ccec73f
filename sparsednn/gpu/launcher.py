"""`Launcher`: our kernels with the macros of a network, on grids that fill the device.

The sizes of grids and blocks that engines have in common stand here: the place to tune them.
"""

from __future__ import annotations

from typing import Any

from sparsednn.gpu.device import Device, Function, Stream

__all__ = ["MOVE_BLOCKS", "NEAR_BYTES", "PRODUCT_BLOCKS", "THREADS", "Launcher"]

#: Threads of a block.
THREADS = 256

#: Blocks of a grid for each multiprocessor: products (100 to 128 registers a thread, so two fit),
#: and kernels that move columns.
PRODUCT_BLOCKS, MOVE_BLOCKS = 2, 8

#: Bytes of a tile's input that fit into the first-level cache beside everything else.
NEAR_BYTES = 128 << 10


class Launcher:
    """Starts our kernels with the macros of a network, on grids that fill the device."""

    def __init__(self, device: Device, index_bits: int, store: int) -> None:
        self._device = device
        self._defines = {"INDEX_BITS": index_bits, "STORE": store}

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
