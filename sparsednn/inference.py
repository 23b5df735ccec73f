"""The engine: run a network over any number of input columns, in bounded memory, and time it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import ShapeError, UsageError
from sparsednn.inputs import InputSet
from sparsednn.kernels import NetworkPlan, get_kernel
from sparsednn.machine import available_cores
from sparsednn.network import SparseNetwork

if TYPE_CHECKING:
    from sparsednn.gpu.device import Device

__all__ = ["InferenceResult", "OutputSink", "compare_categories", "infer"]

#: Takes the outputs ``(n_out, n)`` float32 of images ``first``, ``first + 1`` …; called in order.
OutputSink = Callable[[int, NDArray[np.float32]], None]

_OUTPUT_BYTES = 256 << 20  # of the dense outputs that are held at a time
_SAMPLE = 256  # images that a GPU runs before it is timed, and that its precision is tried on


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
    device
        Name of the GPU, or ``cpu``.
    device_seconds, copy_seconds
        On a GPU: seconds in which its kernels ran, and seconds of copies to and from it, some of
        which run beside kernels. Both are part of `infer_seconds`.
    precision, precision_error
        How activations and weights were stored there; and, where that is not fp32, what
        `kernels.gpu.precision_error` found on a sample of the images.
    merged
        Images whose column became equal to another one's on the way, and was not computed twice.
    """

    categories: NDArray[np.int64] = field(repr=False)
    prepare_seconds: float
    infer_seconds: float
    edges: int
    images: int
    threads: int
    kernel: str
    device: str = "cpu"
    device_seconds: float = 0.0
    copy_seconds: float = 0.0
    precision: str = "fp32"
    precision_error: float | None = None
    merged: int = 0

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
    device: Device | None = None,
    precision: str = "fp32",
    merge: bool = True,
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
    device
        A GPU (`sparsednn.gpu.find_device`); the kernel is ``cupy`` then, whatever `kernel` says.
    precision
        Of what is stored on the GPU: ``fp32``, ``fp16`` or ``bf16``; sums are float32.
    merge
        On the GPU: compute columns that have become equal once. Does not change a result.

    Raises
    ------
    ShapeError
        If the inputs have another width than the network.
    UsageError
        If `threads` is below 1, the kernel or the precision is unknown, or the CPU is asked for
        another precision than fp32.
    DeviceMemoryError
        If the GPU has no room for 32 columns and two layers.
    """
    if inputs.n_features != network.n_in:
        raise ShapeError(
            f"inputs '{inputs.name}' have {inputs.n_features} features, "
            f"network '{network.name}' takes {network.n_in}"
        )
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, found {threads}")
    if device is not None or kernel == "cupy":
        return _infer_on_gpu(network, inputs, device, precision, merge, sink)
    if precision != "fp32":
        raise UsageError(f"precision {precision} is for GPUs: the CPU's kernels compute in fp32")
    threads = 1 if kernel == "reference" else threads or available_cores()
    start = time.perf_counter()
    plan = get_kernel(kernel).plan(network, threads=threads)
    plan.run(inputs.columns(0, 0))  # compiles, or loads from the cache on disk
    prepared = time.perf_counter() - start

    nonzero, spent = _run(plan, network, inputs, sink)
    return InferenceResult(
        categories=np.flatnonzero(nonzero).astype(np.int64),
        prepare_seconds=prepared,
        infer_seconds=spent,
        edges=network.edges,
        images=inputs.n_images,
        threads=threads,
        kernel=kernel,
    )


def _run(
    plan: NetworkPlan, network: SparseNetwork, inputs: InputSet, sink: OutputSink | None
) -> tuple[NDArray[np.bool_], float]:
    """Run all images, in pieces if outputs are wanted; flags, and seconds without the sink's."""
    spent = 0.0
    nonzero = np.zeros(inputs.n_images, np.bool_)
    step = _output_step(network, inputs.n_images, sink)
    for first in range(0, inputs.n_images, step):
        last = min(first + step, inputs.n_images)
        chunk = inputs if step == inputs.n_images else inputs.columns(first, last)
        outputs = None if sink is None else np.zeros((network.n_out, last - first), np.float32)
        start = time.perf_counter()
        nonzero[first:last] = plan.run(chunk, outputs)
        spent += time.perf_counter() - start
        if sink is not None and outputs is not None:
            sink(first, outputs)
    return nonzero, spent


def _output_step(network: SparseNetwork, images: int, sink: OutputSink | None) -> int:
    """Images of a piece: all, or as many as there may be dense outputs of."""
    step = max(1, images)
    return step if sink is None else max(1, min(step, _OUTPUT_BYTES // (4 * network.n_out)))


def _infer_on_gpu(
    network: SparseNetwork,
    inputs: InputSet,
    device: Device | None,
    precision: str,
    merge: bool,
    sink: OutputSink | None,
) -> InferenceResult:
    """`infer` on a GPU."""
    from sparsednn.gpu import find_device
    from sparsednn.gpu.storage import store_of
    from sparsednn.kernels.gpu import GpuPlan, precision_error

    store_of(precision)
    device = device or find_device("gpu")
    assert device is not None  # or it has raised
    start = time.perf_counter()
    # From all over the set: neighbours may be alike, and may all die.
    chosen = np.linspace(0, max(0, inputs.n_images - 1), min(_SAMPLE, inputs.n_images))
    sample = inputs.pick(np.unique(chosen.astype(np.int64)))
    error = None
    if precision != "fp32" and sample.n_images:
        error = precision_error(device, network, sample, precision)
    plan = GpuPlan(device, network, precision=precision, merge=merge)
    step = _output_step(network, inputs.n_images, sink)
    plan.reserve(inputs.columns(0, min(step, inputs.n_images)), sink is not None)
    plan.run(sample)  # compiles, captures the graph, and touches all memory once
    plan.forget_times()
    prepared = time.perf_counter() - start
    nonzero, spent = _run(plan, network, inputs, sink)
    return InferenceResult(
        categories=np.flatnonzero(nonzero).astype(np.int64),
        prepare_seconds=prepared,
        infer_seconds=spent,
        edges=network.edges,
        images=inputs.n_images,
        threads=1,
        kernel="cupy",
        device=device.name,
        device_seconds=plan.device_seconds,
        copy_seconds=plan.copy_seconds,
        precision=precision,
        precision_error=error,
        merged=plan.merged_columns,
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
