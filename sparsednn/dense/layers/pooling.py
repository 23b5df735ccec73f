"""Max and average pooling on tiles; where windows overlap, rows of neighbours come first."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparsednn.dense.flow import Step
from sparsednn.dense.layers.base import Array, PlacedOperation, Setting
from sparsednn.dense.operations import AveragePool, Pool

__all__ = ["Pooling"]


class Pooling(PlacedOperation):
    """Pooling of this rank's images, channels, rows and columns."""

    def __init__(self, setting: Setting, step: Step, number: int) -> None:
        super().__init__(setting, step, number)
        operation = step.operation
        assert isinstance(operation, Pool)
        rank = setting.pool.world.rank
        self._shape: tuple[int, ...] = step.output.layout.block(rank).shape
        rows, columns = (step.output.layout.intervals[axis][rank, 0].tolist() for axis in (2, 3))
        needed = [step.needs[0].intervals[axis][rank, 0].tolist() for axis in (2, 3)]
        pads = []
        for axis, (outputs, inputs) in enumerate(zip((rows, columns), needed, strict=True)):
            low, high = operation.window(axis).needed(*outputs)
            # Without a halo the tile may end behind what is needed: those rows take no part, as the
            # last window is followed by less than one stride.
            before = max(0, min(inputs[0], high) - low) if low < high else 0
            pads.append((before, max(0, high - max(inputs[1], low))))
        self._how: dict[str, Any] = {
            "taps": operation.taps,
            "stride": operation.stride,
            "pads": (pads[0][0], pads[1][0], pads[0][1], pads[1][1]),
        }
        self._average = isinstance(operation, AveragePool)
        if isinstance(operation, AveragePool):
            image: Any = step.sources[0].layout.shape[1:]
            divisors = operation.divisors(image)[slice(*rows), slice(*columns)]
            count = np.ascontiguousarray(divisors.astype(setting.dtype))
            self._how["count"] = setting.local.from_host(count)
        self._kept: Any = None
        self._input_shape: tuple[int, ...] = ()

    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array:
        (x,) = inputs
        self._input_shape = x.shape
        if not x.size or not all(self._shape):  # an empty tile; windows of padding alone are none
            self._kept = None
            return self.local.zeros(self._shape, self.dtype)
        if self._average:
            means: Array = self.local.average_pool(x, **self._how)
            return means
        y: Array
        y, where = self.local.max_pool(x, **self._how)
        if training:
            self._kept = where
        return y

    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        shape: Any = self._input_shape
        if not self.step.input_gradient:
            dx = None
        elif not dy.size or not all(shape):
            dx = self.local.zeros(shape, self.dtype)
        elif self._average:
            dx = self.local.average_pool_gradient(dy, shape, **self._how)
        else:
            dx = self.local.max_pool_gradient(dy, self._kept, shape, **self._how)
        self.forget()
        return [dx]

    def forget(self) -> None:
        """Drop where the largest were."""
        self._kept = None
