"""What is fused behind a task's first operation: bias, batch normalisation, ReLU, in stages.

A stage is ``max(floor, (z - mean) · scale + shift)`` for each channel; one is enough for a bias, a
normalisation and a ReLU behind it. Must not know: how the first operation is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import BatchNorm, Relu

__all__ = ["Stage", "stages_of"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes
    ----------
    bias
        Full name of the parameter, or None.
    norm
        The normalisation, or None.
    relu
        Whether less than 0 becomes 0.
    """

    bias: str | None = None
    norm: BatchNorm | None = None
    relu: bool = False

    @property
    def affine(self) -> bool:
        """Whether anything but the floor is there."""
        return self.bias is not None or self.norm is not None

    def floor(self, dtype: Any) -> Any:
        """What is less becomes this."""
        return np.dtype(dtype).type(0 if self.relu else -np.inf)

    def fill(self, values: Array, parameters: Mapping[str, Array]) -> None:
        """Write mean, scale and shift to `values` ``(3, channels)``.

        One scale is rounded to the dtype, as by `CompiledBackend.normalize`.
        """
        values[0], values[1], values[2] = 0, 1, 0
        if self.norm is None:
            if self.bias is not None:
                values[2] = parameters[self.bias]
            return
        gamma, beta, mean, variance = (
            parameters[f"{self.norm.name}.{name}"].astype(np.float64)
            for name in ("weight", "bias", "running_mean", "running_var")
        )
        if self.bias is not None:
            mean -= parameters[self.bias]
        values[0] = mean
        values[1] = gamma / np.sqrt(variance + self.norm.epsilon)
        values[2] = beta


def stages_of(graph: OperationGraph, chain: tuple[str, ...], bias: str | None) -> list[Stage]:
    """Return the stages behind the first operation of a chain; at least one."""
    stages = [Stage(bias)]
    for name in chain:
        operation = graph.operation(name)
        last = stages[-1]
        if isinstance(operation, BatchNorm):
            if last.norm is None and not last.relu:
                stages[-1] = Stage(last.bias, operation)
            else:
                stages.append(Stage(None, operation))
        elif isinstance(operation, Relu):
            stages[-1] = Stage(last.bias, last.norm, True)
    return stages
