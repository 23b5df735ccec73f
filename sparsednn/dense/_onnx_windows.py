"""What an ONNX node says of its window — strides, dilations, padding — and the operation it makes.

ONNX pads each side of an image as it likes; operations here pad both sides of an axis alike. A
window fits where that reads the same values: the padding in front is the same, and there are as
many outputs. Use it through `sparsednn.dense.onnx_file`; must not know: files, nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sparsednn.dense.convolution import Window, output_size
from sparsednn.dense.operations import AveragePool, Convolution, MaxPool, Shape
from sparsednn.errors import ShapeError

__all__ = ["OnnxWindow"]

_Pair = tuple[int, int]
_Kind = TypeVar("_Kind", Convolution, MaxPool, AveragePool)


@dataclass(frozen=True, slots=True)
class OnnxWindow:
    """A window over images of a size, as ONNX describes it; see `of`."""

    size: _Pair
    taps: _Pair
    stride: _Pair
    dilation: _Pair
    before: _Pair = (0, 0)
    after: _Pair = (0, 0)
    rounds_up: bool = False

    @classmethod
    def of(
        cls, attributes: Mapping[str, Any], size: Sequence[int], taps: Sequence[int]
    ) -> OnnxWindow:
        """Read the attributes of a convolution or a pool.

        Parameters
        ----------
        attributes
            Of the node.
        size
            Height and width of the image.
        taps
            Of the kernel.

        Raises
        ------
        ShapeError
            If they are not those of a window over images.
        """
        own = _pair("taps", taps)
        if _pair("kernel_shape", attributes.get("kernel_shape", own)) != own:
            raise ShapeError(
                f"its kernel_shape is {list(attributes['kernel_shape'])}, its kernel is {list(own)}"
            )
        window = cls(
            _pair("image's sizes", size),
            own,
            _pair("strides", attributes.get("strides", (1, 1))),
            _pair("dilations", attributes.get("dilations", (1, 1))),
            rounds_up=bool(attributes.get("ceil_mode", 0)),
        )
        before, after = window._padding(attributes)
        return replace(window, before=before, after=after)

    def _padding(self, attributes: Mapping[str, Any]) -> tuple[_Pair, _Pair]:
        """Rows and columns in front of the image, and behind it."""
        kind = attributes.get("auto_pad", "NOTSET")
        if kind == "VALID":
            return (0, 0), (0, 0)
        if kind in ("SAME_UPPER", "SAME_LOWER"):
            first, second = (
                max(0, (-(-size // window.stride) - 1) * window.stride + reach - size)
                for size, window, reach in self._axes()
            )
            small = (first // 2, second // 2)
            large = (first - small[0], second - small[1])
            return (small, large) if kind == "SAME_UPPER" else (large, small)
        pads = attributes.get("pads", (0, 0, 0, 0))
        if kind != "NOTSET" or len(pads) != 4:
            raise ShapeError(f"its auto_pad is {kind} and its pads are {list(pads)}")
        top, left, bottom, right = pads
        return (top, left), (bottom, right)

    def _axes(self) -> Iterable[tuple[int, Window, int]]:
        """Size, window, and how far it reaches, of rows and columns."""
        for axis in (0, 1):
            window = Window(
                self.taps[axis], self.stride[axis], self.before[axis], self.dilation[axis]
            )
            yield self.size[axis], window, window.dilation * (window.taps - 1) + 1

    def _outputs(self, *, rounds_up: bool) -> list[int]:
        outputs = []
        for (size, window, reach), after in zip(self._axes(), self.after, strict=True):
            count = output_size(size, window.before, after, window)
            rest = (size + window.before + after - reach) % window.stride
            # As in PyTorch, the last window must not start behind the image.
            if rounds_up and rest and count * window.stride < size + window.before:
                count += 1
            outputs.append(count)
        return outputs

    def convolution(
        self, name: str, shape: Shape, *, filters: int, groups: int, bias: bool
    ) -> Convolution:
        """Return the convolution of these windows.

        Raises
        ------
        ShapeError
            If there is none here, or it does not fit the shape.
        """
        operation = Convolution(
            name, filters, self.taps, self.stride, self.before, self.dilation, groups, bias
        )
        return self._fitting([operation], shape, rounds_up=False)

    def max_pool(self, name: str, shape: Shape) -> MaxPool:
        """Return the max-pooling of these windows; raises as `convolution`."""
        self._no_dilation()
        # Padding is never the largest: what is behind the image alone is as good as a last window
        # that is not full.
        ways = (True, False) if self.rounds_up or self.before != self.after else (False,)
        return self._fitting(
            [MaxPool(name, self.taps, self.stride, self.before, each) for each in ways],
            shape, rounds_up=self.rounds_up,
        )  # fmt: skip

    def average_pool(self, name: str, shape: Shape, *, count_include_pad: bool) -> AveragePool:
        """Return the average pooling of these windows; raises as `convolution`."""
        self._no_dilation()
        if self.rounds_up and self._outputs(rounds_up=True) != self._outputs(rounds_up=False):
            raise ShapeError("its last windows are not full (ceil_mode): only max-pools have such")
        operation = AveragePool(name, self.taps, self.stride, self.before, count_include_pad)
        return self._fitting([operation], shape, rounds_up=False)

    def _no_dilation(self) -> None:
        if self.dilation != (1, 1):
            raise ShapeError(f"its dilations are {list(self.dilation)}: pools have none here")

    def _fitting(self, candidates: Sequence[_Kind], shape: Shape, *, rounds_up: bool) -> _Kind:
        """Return the first operation that has as many outputs as ONNX says."""
        outputs = self._outputs(rounds_up=rounds_up)
        for operation in candidates:
            if list(operation.output_shape(shape)[1:]) == outputs:
                return operation
        raise ShapeError(
            f"its pads are {[*self.before, *self.after]} (top, left, bottom, right): only the same "
            "on both sides are supported"
        )


def _pair(name: str, values: Sequence[int]) -> _Pair:
    if len(values) != 2 or min(values) < 1:
        raise ShapeError(f"its {name} are {list(values)}: only two positive numbers are read")
    first, second = values
    return int(first), int(second)
