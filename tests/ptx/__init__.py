"""A PTX interpreter, so that our CUDA kernels can be tested where there is no GPU.

NVRTC compiles the real sources to PTX; the PTX is run on the CPU, all threads of a grid as lanes of
NumPy arrays, and every access to memory is checked: bounds, alignment, contents, races.

- `nvrtc`: the compiler; `parser`: its output as data
- `flow`, `emit` and the handlers in `integer`, `floating`, `convert`, `memory_ops`, `warp_ops`:
  PTX to Python functions; `helpers`: arithmetic that NumPy lacks
- `kernel`, `machine`, `access`, `warps`, `atomics`: running a grid
- `memory`, `races`, `traffic`: allocations and their marks, order of accesses, counts
- `device`: `EmulatedDevice`, with the interface of `sparsednn.gpu.device.Device`
"""

from ptx.device import EmulatedDevice, Statistics
from ptx.machine import KernelError
from ptx.nvrtc import CompileError, NvrtcMissingError, available, compile_program, why_not

__all__ = [
    "CompileError",
    "EmulatedDevice",
    "KernelError",
    "NvrtcMissingError",
    "Statistics",
    "available",
    "compile_program",
    "why_not",
]
