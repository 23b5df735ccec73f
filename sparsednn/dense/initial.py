"""Initial parameters of a network, of which every rank can make any block.

An entry depends on the seed, the parameter's full name and its place in the whole array: on nothing
else, so neither ranks nor grids change it. The random sequence is that of `sparsednn.initial`, one
for each name; an entry's counter is its place in the flat array.

Kernels are normal with mean 0 and variance ``2 / fan_in`` (He et al., ICCV 2015, eq. 10) where a
ReLU follows before the next product, ``1 / fan_in`` where none does, as for the logits. Entries are
rounded to float32 first, so that a network in float64 starts at the same place.

Must not know: which rank wants which block.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import reduce
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import Convolution, FullyConnected, Parameter, Relu
from sparsednn.errors import ShapeError
from sparsednn.initial import normal_numbers, sequence_key

__all__ = ["Block", "block_indices", "initial_block", "initial_parameters", "normal_block"]

Block = Sequence[slice | NDArray[np.integer[Any]]]
"""Part of an array: for each axis a slice or an array of indices; what lies where they meet."""

_PIECE: Final = 1 << 13  # entries at a time: the temporary arrays stay in the cache


def initial_parameters(
    graph: OperationGraph, seed: int = 0, dtype: DTypeLike = np.float32
) -> dict[str, NDArray[Any]]:
    """Make all arrays of a network, by full name: `initial_block` for each."""
    return {name: initial_block(graph, name, seed=seed, dtype=dtype) for name in graph.parameters}


def initial_block(
    graph: OperationGraph,
    name: str,
    block: Block | None = None,
    *,
    seed: int = 0,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Make a block of one array of a network.

    Parameters
    ----------
    graph
        The network.
    name
        Full name of the parameter: ``layer1.0.conv1.weight``.
    block
        Which part; None for all.
    seed
        0 to 2**64 - 1.
    dtype
        float32 or float64.

    Returns
    -------
    array
        The caller's own.

    Raises
    ------
    InputError
        If there is no such parameter.
    ShapeError
        If the block does not lie in the array.
    UsageError
        If the seed is out of range.
    """
    parameter = graph.parameter(name)
    if parameter.initial == "normal":
        deviation = math.sqrt(_gain(graph, name.rpartition(".")[0]) / parameter.fan_in)
        return normal_block(seed, name, parameter.shape, block, deviation, dtype)
    sizes = [each.size for each in block_indices(parameter, block)]
    return np.full(sizes, 1.0 if parameter.initial == "ones" else 0.0, dtype)


def normal_block(
    seed: int,
    name: str,
    shape: tuple[int, ...],
    block: Block | None,
    deviation: float,
    dtype: DTypeLike = np.float32,
) -> NDArray[Any]:
    """Make a block of an array of normal numbers of mean 0.

    Raises
    ------
    ShapeError, UsageError
        As for `initial_block`.
    """
    digest = hashlib.sha256(name.encode()).digest()
    key = sequence_key(seed, int.from_bytes(digest[:8], "little"))
    axes = block_indices(Parameter(name, shape), block)
    places = [
        indices.astype(np.uint64) * np.uint64(prod(shape[axis + 1 :]))
        for axis, indices in enumerate(axes)
    ]
    outer = places[0]
    inner = reduce(
        lambda before, here: (before[:, None] + here).ravel(), places[1:], np.zeros(1, np.uint64)
    )
    values = np.empty((outer.size, inner.size), dtype)
    columns = min(max(inner.size, 1), _PIECE)
    rows = _PIECE // columns
    for first in range(0, outer.size, rows):
        here = slice(first, first + rows)
        for start in range(0, inner.size, columns):
            there = slice(start, start + columns)
            drawn = normal_numbers(key, outer[here, None] + inner[there]) * deviation
            values[here, there] = drawn.astype(np.float32)
    return values.reshape([indices.size for indices in axes])


def block_indices(parameter: Parameter, block: Block | None) -> list[NDArray[np.int64]]:
    """Indices along each axis of a block.

    Raises
    ------
    ShapeError
        If the axes are too many or too few, or an index is outside of the array.
    """
    shape = parameter.shape
    given: Block = (slice(None),) * len(shape) if block is None else block
    if len(given) != len(shape):
        raise ShapeError(
            f"parameter '{parameter.name}': a block of {len(given)} axes, it has {len(shape)}"
        )
    found = []
    for axis, (part, size) in enumerate(zip(given, shape, strict=True)):
        if isinstance(part, slice):
            if max(part.start or 0, part.stop or 0) > size:
                raise ShapeError(
                    f"parameter '{parameter.name}': a block to {part.stop}, axis {axis} ends at "
                    f"{size}"
                )
            found.append(np.arange(*part.indices(size), dtype=np.int64))
            continue
        indices = np.asarray(part)
        if indices.ndim != 1 or (indices.size and not np.issubdtype(indices.dtype, np.integer)):
            raise ShapeError(
                f"parameter '{parameter.name}': indices along axis {axis} should be a list of "
                f"whole numbers, found {indices.dtype} of shape {indices.shape}"
            )
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise ShapeError(
                f"parameter '{parameter.name}': an index along axis {axis} is out of range for "
                f"{size}"
            )
        found.append(indices.astype(np.int64))
    return found


def _gain(graph: OperationGraph, name: str) -> float:
    """2 where a ReLU reads what the operation gives, before the next product does; otherwise 1."""
    seen: set[str] = set()
    front = [name]
    while front:
        for reader in graph.successors(front.pop()):
            operation = graph.operation(reader)
            if isinstance(operation, Relu):
                return 2.0
            if reader not in seen and not isinstance(operation, Convolution | FullyConnected):
                seen.add(reader)
                front.append(reader)
    return 1.0
