"""Twins of ``ceilings.cu``: the same numbers, no measure of anything."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn.gpu.twins import Defines, Floats

__all__ = ["copy_vectors", "multiply_adds", "shared_loads"]


def multiply_adds(defines: Defines, out: Floats, rounds: np.int32, factor: np.float32) -> None:
    """Chains of multiply-adds."""
    threads = int(defines["THREADS"])
    total = np.zeros(out.size, np.float32)
    for i in range(8):
        chain = (np.arange(out.size) % threads + i).astype(np.float32)
        for _ in range(8 * int(rounds)):
            # One rounding: a product of two float32 is exact in float64.
            chain = (chain.astype(np.float64) * factor + 1).astype(np.float32)
        total += chain
    out[:] = total


def copy_vectors(defines: Defines, source: Floats, target: Floats, count: np.int64) -> None:
    """Copy `count` vectors of four."""
    target.reshape(-1)[: 4 * int(count)] = source.reshape(-1)[: 4 * int(count)]


def shared_loads(defines: Defines, out: NDArray[np.float32], rounds: np.int32) -> None:
    """Loads of lines that follow a generator."""
    thread = np.arange(out.size, dtype=np.uint32) % np.uint32(defines["THREADS"])
    line = thread // np.uint32(8) + np.uint32(1)
    total = np.zeros(out.size, np.float32)
    for _ in range(8 * int(rounds)):
        line = line * np.uint32(1664525) + np.uint32(1013904223)
        total += ((line >> np.uint32(24)) * np.uint32(8) + thread % np.uint32(8)).astype(np.float32)
    out[:] = total + total + total + total
