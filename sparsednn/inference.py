"""The engine: run a network over any number of input columns, in bounded memory, and time it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import ShapeError, UsageError
from sparsednn.inputs import InputSet
from sparsednn.kernels import get_kernel
from sparsednn.machine import available_cores
from sparsednn.network import SparseNetwork

__all__ = ["InferenceResult", "OutputSink", "compare_categories", "infer"]

#: Takes the outputs ``(n_out, n)`` float32 of images ``first``, ``first + 1`` …; called in order.
OutputSink = Callable[[int, NDArray[np.float32]], None]

_OUTPUT_BYTES = 256 << 20  # of the dense outputs that are held at a time


@dataclass(frozen=True, slots=True)
class InferenceResult:
    """What a run gave.

    Attributes
    ----------
    categories
        0-based indices of the images whose outputs are not all zero, ascending, int64. (The
        challenge's files count from 1.)
    prepare_seconds
        Packing the weights and compiling (or loading) the kernel.
    infer_seconds
        From the sparse inputs in memory to the categories; writing outputs is not in it.
    edges
        Stored weights of the network.
    images, threads, kernel
        What was run, and how.
    """

    categories: NDArray[np.int64] = field(repr=False)
    prepare_seconds: float
    infer_seconds: float
    edges: int
    images: int
    threads: int
    kernel: str

    @property
    def edges_per_second(self) -> float:
        """The challenge's rate: images times edges over inference seconds."""
        return self.images * self.edges / self.infer_seconds if self.infer_seconds else 0.0


def infer(
    network: SparseNetwork,
    inputs: InputSet,
    *,
    kernel: str = "numba",
    threads: int | None = None,
    sink: OutputSink | None = None,
) -> InferenceResult:
    """Run all input columns through a network.

    Parameters
    ----------
    network, inputs
        ``inputs.n_features`` must be ``network.n_in``.
    kernel
        ``numba`` or ``reference``.
    threads
        Defaults to the cores that this process may use. The result does not depend on it, bit by
        bit. The reference kernel has one thread.
    sink
        Called with the outputs of consecutive images, if they are wanted. At most 256 MiB of dense
        outputs (or one image) exist at a time; without a sink none do.

    Raises
    ------
    ShapeError
        If the inputs have another width than the network.
    UsageError
        If `threads` is below 1 or the kernel is unknown.
    """
    if inputs.n_features != network.n_in:
        raise ShapeError(
            f"inputs '{inputs.name}' have {inputs.n_features} features, "
            f"network '{network.name}' takes {network.n_in}"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, found {threads}")
    threads = 1 if kernel == "reference" else threads or available_cores()
    start = time.perf_counter()
    plan = get_kernel(kernel).plan(network, threads=threads)
    plan.run(inputs.columns(0, 0))  # compiles, or loads from the cache on disk
    prepared = time.perf_counter() - start

    spent = 0.0
    nonzero = np.zeros(inputs.n_images, np.bool_)
    step = max(1, inputs.n_images)
    if sink is not None:
        step = max(1, min(step, _OUTPUT_BYTES // (4 * network.n_out)))
    for first in range(0, inputs.n_images, step):
        last = min(first + step, inputs.n_images)
        chunk = inputs if step == inputs.n_images else inputs.columns(first, last)
        outputs = None if sink is None else np.zeros((network.n_out, last - first), np.float32)
        start = time.perf_counter()
        nonzero[first:last] = plan.run(chunk, outputs)
        spent += time.perf_counter() - start
        if sink is not None and outputs is not None:
            sink(first, outputs)
    return InferenceResult(
        categories=np.flatnonzero(nonzero).astype(np.int64),
        prepare_seconds=prepared,
        infer_seconds=spent,
        edges=network.edges,
        images=inputs.n_images,
        threads=threads,
        kernel=kernel,
    )


def compare_categories(found: NDArray[np.int64], truth: NDArray[np.int64]) -> str | None:
    """Compare two sets of image ids; None if they are equal, otherwise one line that says how not.

    >>> compare_categories(np.array([1, 2]), np.array([2, 3]))
    '2 categories found, 2 in the truth; 1 missing (first: 3), 1 too many (first: 1)'
    """
    missing = np.setdiff1d(truth, found)
    extra = np.setdiff1d(found, truth)
    if not missing.size and not extra.size:
        return None
    parts = []
    if missing.size:
        parts.append(f"{missing.size} missing (first: {missing[0]})")
    if extra.size:
        parts.append(f"{extra.size} too many (first: {extra[0]})")
    return f"{found.size} categories found, {truth.size} in the truth; {', '.join(parts)}"
