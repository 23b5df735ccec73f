"""Max-pooling and average pooling: windows over each channel, and the padding that they take.

Use it through `sparsednn.dense.operations`. Must not know: arrays of activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense._operation import Operation, Pads, Shape, shape_text, window_text
from sparsednn.dense.convolution import Window, output_size
from sparsednn.errors import ShapeError

__all__ = ["AveragePool", "MaxPool", "Pool"]


@dataclass(frozen=True, slots=True)
class Pool(Operation):
    """What both poolings share: a window that moves over each channel by itself."""

    taps: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        """Check the sizes, and that no window lies in the padding alone."""
        Operation.__post_init__(self)
        if any(2 * pad > taps for pad, taps in zip(self.padding, self.taps, strict=True)):
            raise ShapeError(
                f"{self}: padding must be at most half the window of {shape_text(self.taps)}, "
                f"found {shape_text(self.padding)}"
            )

    @property
    def rounds_up(self) -> bool:
        """Whether a last window that is not full counts (PyTorch's ``ceil_mode``)."""
        return False

    def window(self, axis: int) -> Window:
        """Return the window along the height (0) or the width (1)."""
        return Window(self.taps[axis], self.stride[axis], self.padding[axis])

    def pads(self, shape: Shape) -> Pads:
        """Return the padding, at the bottom and on the right with what a last window lacks."""
        sizes = [self._axis(axis, shape) for axis in (0, 1)]
        return (self.padding[0], self.padding[1], sizes[0][1], sizes[1][1])

    def _axis(self, axis: int, shape: Shape) -> tuple[int, int]:
        """Outputs along an axis, and the padding behind it."""
        size, window = shape[1 + axis], self.window(axis)
        before = after = window.before
        outputs = output_size(size, before, after, window)
        if self.rounds_up:
            reach = outputs * window.stride - before  # where one more window would start
            lacking = reach + window.taps - size
            # The last window must start in the image or in front of it, as in PyTorch.
            if lacking - after < window.stride and reach < size:
                return outputs + 1, lacking
        return outputs, after

    def _output_shape(self, *shapes: Shape) -> Shape:
        height, width = (self._axis(axis, shapes[0])[0] for axis in (0, 1))
        if min(height, width) < 1:
            raise ShapeError(
                f"{self}: a window of {shape_text(self.taps)} is larger than its input of "
                f"{shape_text(shapes[0])} with padding {shape_text(self.padding)}"
            )
        return shapes[0][0], height, width

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Return one for each value of each window."""
        return self.output_words(images, *shapes) * prod(self.taps)

    def details(self) -> str:
        """Return the window."""
        return window_text(
            self.taps, self.stride, self.padding, "rounded up" if self.rounds_up else ""
        )


@dataclass(frozen=True, slots=True)
class MaxPool(Pool):
    """The largest value of each window; padding is never the largest."""

    kind: ClassVar[str] = "max_pool"

    ceil_mode: bool = False

    @property
    def rounds_up(self) -> bool:
        """Whether a last window that is not full counts (PyTorch's ``ceil_mode``)."""
        return self.ceil_mode

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Return one addition for each output."""
        return self.output_words(images, *shapes) * input_gradient


@dataclass(frozen=True, slots=True)
class AveragePool(Pool):
    """The mean of each window; a global one has its input's image as taps."""

    kind: ClassVar[str] = "average_pool"

    count_include_pad: bool = True

    def divisors(self, shape: Shape) -> NDArray[np.float64]:
        """Return by what each window's sum is divided: ``(height, width)`` of the output."""
        height, width = self.output_shape(shape)[1:]
        rows, columns = (
            self._divisors(axis, outputs, shape[1 + axis])
            for axis, outputs in enumerate((height, width))
        )
        return np.outer(rows, columns)

    def _divisors(self, axis: int, outputs: int, size: int) -> NDArray[np.float64]:
        window = self.window(axis)
        if self.count_include_pad:
            return np.full(outputs, float(window.taps))
        starts = np.arange(outputs) * window.stride - window.before
        inside = np.minimum(starts + window.taps, size) - np.maximum(starts, 0)
        return inside.astype(np.float64)

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Return a division for each output, and an addition for each value of its window."""
        return self.output_words(images, *shapes) * (1 + prod(self.taps)) * input_gradient
