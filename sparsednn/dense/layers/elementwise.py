"""Operations that look at one place at a time: ReLU and addition; and concatenation of channels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sparsednn.dense.flow import Step
from sparsednn.dense.layers.base import Array, PlacedOperation, Setting
from sparsednn.dense.moves import contiguous

__all__ = ["Addition", "Concatenation", "Rectifier"]


class Rectifier(PlacedOperation):
    """``max(x, 0)``; keeps its output."""

    _output: Array | None = None

    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array:
        y: Array = self.local.relu(inputs[0], in_place=self.overwrite_input)
        self._output = y if training else None
        return y

    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        dx = None
        if self.step.input_gradient:
            dx = self.local.relu_gradient(dy, self._output, in_place=self.overwrite_gradient)
        self._output = None
        return [dx]

    def forget(self) -> None:
        """Drop the output."""
        self._output = None


class Addition(PlacedOperation):
    """The sum of its inputs; each input's gradient is the sum's."""

    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array:
        first, second = inputs[0], inputs[1]
        if self.overwrite_input:
            first += second
            total = first
        else:
            total = first + second
        for other in inputs[2:]:
            total += other
        return total

    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        return [dy] * len(self.step.inputs)

    def forget(self) -> None:
        """Nothing is kept."""


class Concatenation(PlacedOperation):
    """Channels after each other; ranks keep what they have of each input."""

    def __init__(self, setting: Setting, step: Step, number: int) -> None:
        super().__init__(setting, step, number)
        rank = setting.pool.world.rank
        sizes = [need.lengths(1)[rank] for need in step.needs]
        self._cuts = np.cumsum([0, *sizes]).tolist()

    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array:
        return np.concatenate(inputs, axis=1)

    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        if not self.step.input_gradient:
            return [None] * len(self.step.inputs)
        return [contiguous(dy[:, first:last]) for first, last in pairwise(self._cuts)]

    def forget(self) -> None:
        """Nothing is kept."""
