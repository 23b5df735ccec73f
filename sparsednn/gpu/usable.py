"""Whether there is a GPU that can be used, and in one line what is missing if not.

A package that imports says little, and a driver that answers not much more: a device counts as
usable when a kernel has been compiled and run on it.
"""

from __future__ import annotations

from functools import cache

from sparsednn.errors import MissingDependencyError
from sparsednn.gpu.cuda import INSTALL, CudaDevice, dotted, line_of, load_cupy, versions

__all__ = ["find_count", "usable_device"]


def find_count() -> int:
    """Count the GPUs that the driver shows; at least 1.

    Raises
    ------
    MissingDependencyError
        If there is none; the message says whether CuPy, driver or GPU is missing.
    """
    cupy = load_cupy()
    try:
        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:
        code, _, what = line_of(error).partition(": ")
        reason = f"no usable NVIDIA GPU was found ({code}): {_reason(code, what, *versions(cupy))}"
        raise MissingDependencyError(reason) from error
    if not count:
        raise MissingDependencyError("no usable NVIDIA GPU was found: the driver shows none")
    return count


def _reason(code: str, what: str, driver: int, runtime: int) -> str:
    """Say what the runtime's error means, and what to do.

    >>> _reason("cudaErrorInsufficientDriver", "…", 11080, 13020)
    "NVIDIA's driver is for CUDA 11.8, CuPy for CUDA 13.2: renew the driver"
    """
    if not driver:
        return "NVIDIA's driver is not installed, or not visible here"
    if code == "cudaErrorInsufficientDriver":
        reason = f"NVIDIA's driver is for CUDA {dotted(driver)}, CuPy for CUDA {dotted(runtime)}: "
        if driver // 1000 == 12 < runtime // 1000:
            other = ", or install 'sparsednn[gpu12]' instead of 'sparsednn[gpu]'"
        else:
            other = ""
        return f"{reason}renew the driver{other}"
    return what or "the driver says no more"


@cache
def usable_device(ordinal: int = 0) -> CudaDevice:
    """Return a device after a kernel has been compiled and run on it, once per process.

    Raises
    ------
    MissingDependencyError
        If one of these does not work.
    """
    count = find_count()
    if not 0 <= ordinal < count:
        raise MissingDependencyError(f"GPU {ordinal} was asked for, the driver shows {count}")
    try:
        device = CudaDevice(ordinal)
        device.try_kernel()
    except Exception as error:
        raise MissingDependencyError(
            f"no kernel could be compiled and run on GPU {ordinal} ({line_of(error)}): {INSTALL} "
            "brings CUDA's compiler"
        ) from error
    return device
