"""Magnitude pruning of the kernels of a dense network, before anything is lowered.

A kernel weight is one number that all output pixels share, and is pruned as such. Pruning after
lowering (`sparsednn.pruning` on what `sparsednn.dense.lowering` made) is something else: there a
weight is there once for each pixel whose window has it inside the image, so it weighs more the less
it meets the border, of equal magnitudes some copies go and others stay, and batch norm has scaled
the filters already.

Must not know: files, ranks, sparse matrices.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import Convolution, FullyConnected
from sparsednn.errors import InputError, ShapeError, UsageError
from sparsednn.pruning import check_pruning, largest_magnitudes

__all__ = ["prune_kernels"]


def prune_kernels(
    arrays: Mapping[str, NDArray[Any]],
    sparsity: float,
    graph: OperationGraph,
    *,
    scope: str = "global",
    keep: Collection[str] = (),
) -> dict[str, NDArray[Any]]:
    """Set the smallest weights of convolutions and fully connected layers to zero.

    Of ``N`` weights at least ``round(sparsity · N)`` are zero then, exactly so many if there were
    not more before. Of equal magnitudes the earlier one stays (operation, then place in the
    kernel). Biases and batch norm stay.

    Parameters
    ----------
    arrays
        All arrays of the network by full name, float32 or float64. Not changed; the result shares
        those that lose nothing.
    sparsity
        The fraction of these weights that are to be zero, ``0 <= sparsity < 1``.
    graph
        The network.
    scope
        ``"global"``: one threshold for all kernels together; ``"layer"``: each kernel to the same
        sparsity.
    keep
        Names of operations whose kernels stay as they are and do not count, often the first and the
        last.

    Returns
    -------
    dict
        As `arrays`, in its order.

    Raises
    ------
    UsageError
        If `sparsity` or `scope` is none of these, or a name in `keep` is not that of a kernel.
    ShapeError
        If a kernel is missing, or has another shape than the network's.
    InputError
        If a weight is NaN or infinite.
    """
    check_pruning(sparsity, scope)
    kernels = _kernels(arrays, graph)
    for name in keep:
        if name not in kernels:
            raise UsageError(
                f"no kernel '{name}' to keep: network {graph.name} has {', '.join(kernels)}"
            )
    chosen = [name for name in kernels if name not in keep]
    groups = [[name] for name in chosen] if scope == "layer" else [chosen]
    result = dict(arrays)
    for group in groups:
        flat = [kernels[name].reshape(-1) for name in group]
        size = sum(each.size for each in flat)
        marked = largest_magnitudes(flat, size - round(sparsity * size))
        for name, kept in zip(group, marked, strict=True):
            if not kept.all():
                kernel = kernels[name]
                result[f"{name}.weight"] = np.where(
                    kept.reshape(kernel.shape), kernel, kernel.dtype.type(0)
                )
    return result


def _kernels(arrays: Mapping[str, NDArray[Any]], graph: OperationGraph) -> dict[str, NDArray[Any]]:
    """Kernels by the operation's name, in topological order."""
    found = {}
    for operation in graph:
        if not isinstance(operation, (Convolution, FullyConnected)):
            continue
        parameter = graph.parameter(f"{operation.name}.weight")
        kernel = arrays.get(parameter.name)
        if kernel is None or kernel.shape != parameter.shape:
            what = "is missing" if kernel is None else f"is {list(kernel.shape)}"
            raise ShapeError(
                f"network {graph.name}: parameter '{parameter.name}' {what}, expected "
                f"{list(parameter.shape)}"
            )
        if not np.isfinite(kernel).all():
            raise InputError(
                f"network {graph.name}: parameter '{parameter.name}' has numbers that are NaN or "
                "infinite"
            )
        found[operation.name] = kernel
    return found
