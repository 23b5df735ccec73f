"""One operation of a network: its kind and attributes, what goes in and out, and what it costs.

Shapes are those of one image, ``(channels, height, width)``; a fully connected layer gives
``(filters, 1, 1)`` and is a convolution whose kernel covers its input's image, so nothing is ever
flattened. Parameters have PyTorch's names. There is no dropout (it is the identity wherever answers
are compared), and no loss: a network ends in logits.

Flops are counted as the field does: a convolution is two for each product, its bias none;
everything else is counted by the value, as each class says. A backward pass is both gradients.

Must not know: the graph around an operation, arrays of activations, ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final

from sparsednn.dense._operation import (
    Operation,
    Pads,
    Parameter,
    Shape,
    shape_text,
    window_text,
)
from sparsednn.dense._pooling import AveragePool, MaxPool, Pool
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.errors import FormatError, ShapeError

__all__ = [
    "KINDS",
    "Add",
    "AveragePool",
    "BatchNorm",
    "Concatenate",
    "Convolution",
    "FullyConnected",
    "Input",
    "MaxPool",
    "Operation",
    "Pads",
    "Parameter",
    "Pool",
    "Relu",
    "Shape",
    "operation_from_json",
    "shape_text",
]


@dataclass(frozen=True, slots=True)
class Input(Operation):
    """Where the images come in; `image` is ``(channels, height, width)``."""

    kind: ClassVar[str] = "input"
    inputs: ClassVar[tuple[int, int]] = (0, 0)

    image: Shape

    def _output_shape(self, *shapes: Shape) -> Shape:
        return self.image


@dataclass(frozen=True, slots=True)
class Convolution(Operation):
    """A convolution (cross-correlation) with a kernel ``(filters, channels / groups, *taps)``."""

    kind: ClassVar[str] = "convolution"

    filters: int
    taps: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    bias: bool = True

    def geometry(self, images: int, shape: Shape) -> ConvolutionShape:
        """Return the geometry of this convolution for so many images of a shape."""
        try:
            return ConvolutionShape(
                images, *shape, filters=self.filters, taps=self.taps, stride=self.stride,
                padding=self.padding, dilation=self.dilation, groups=self.groups,
            )  # fmt: skip
        except ShapeError as error:
            reason = str(error).removeprefix("convolution: ")
            raise ShapeError(
                f"{self}: {self.filters} filters of {shape_text(self.taps)} do not fit an input of "
                f"{shape_text(shape)}: {reason}"
            ) from error

    def _output_shape(self, *shapes: Shape) -> Shape:
        geometry = self.geometry(1, shapes[0])
        return geometry.filters, geometry.output_height, geometry.output_width

    def parameters(self, *shapes: Shape) -> tuple[Parameter, ...]:
        """Return ``weight`` and, if there is one, ``bias``."""
        return _products(self.geometry(1, shapes[0]), self.bias, flat=False)

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Return two for each product; the bias is not counted."""
        return self.geometry(images, shapes[0]).flops

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Return as much as forward for each of the two gradients."""
        return self.forward_flops(images, *shapes) * (1 + input_gradient)

    def details(self) -> str:
        """Return filters and taps, and what is not usual."""
        return f"{self.filters} filters of " + window_text(
            self.taps, self.stride, self.padding,
            (f"dilation {shape_text(self.dilation)}" if self.dilation != (1, 1) else ""),
            (f"{self.groups} groups" if self.groups != 1 else ""),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class FullyConnected(Operation):
    """A product with a matrix: a convolution whose taps are its input's image."""

    kind: ClassVar[str] = "fully_connected"

    filters: int
    bias: bool = True

    def geometry(self, images: int, shape: Shape) -> ConvolutionShape:
        """Return the geometry as a convolution."""
        return ConvolutionShape(images, *shape, filters=self.filters, taps=shape[1:])

    def _output_shape(self, *shapes: Shape) -> Shape:
        return self.filters, 1, 1

    def parameters(self, *shapes: Shape) -> tuple[Parameter, ...]:
        """Return ``weight`` ``(filters, *input)`` and, if there is one, ``bias``."""
        return _products(self.geometry(1, shapes[0]), self.bias, flat=True)

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Return two for each product; the bias is not counted."""
        return self.geometry(images, shapes[0]).flops

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Return as much as forward for each of the two gradients."""
        return self.forward_flops(images, *shapes) * (1 + input_gradient)

    def details(self) -> str:
        """Return the filters."""
        return f"{self.filters} filters"


@dataclass(frozen=True, slots=True)
class Relu(Operation):
    """``max(x, 0)``."""

    kind: ClassVar[str] = "relu"

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Return one for each value."""
        return self.output_words(images, *shapes)

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Return one for each value."""
        return self.output_words(images, *shapes) * input_gradient


@dataclass(frozen=True, slots=True)
class BatchNorm(Operation):
    """Batch normalisation (Ioffe and Szegedy, ICML 2015), with scale, shift and running statistics.

    ``running = (1 - momentum) · running + momentum · batch``, as PyTorch.
    """

    kind: ClassVar[str] = "batch_norm"

    epsilon: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        """Check the attributes."""
        Operation.__post_init__(self)
        if not (self.epsilon > 0 and 0 <= self.momentum <= 1):
            raise ShapeError(
                f"{self}: epsilon must be positive and momentum from 0 to 1, found {self.epsilon} "
                f"and {self.momentum}"
            )

    def parameters(self, *shapes: Shape) -> tuple[Parameter, ...]:
        """Return ``weight`` (scale), ``bias`` (shift), ``running_mean`` and ``running_var``."""
        channels = (shapes[0][0],)
        return (
            Parameter("weight", channels, initial="ones"),
            Parameter("bias", channels, initial="zeros"),
            Parameter("running_mean", channels, trained=False, initial="zeros"),
            Parameter("running_var", channels, trained=False, initial="ones"),
        )

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Return 7 for each value, in training: mean 1, variance 3, normalising 3."""
        return 7 * self.output_words(images, *shapes)

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Return 5 for each value for the two sums, 4 for the gradient of the input."""
        return (5 + 4 * input_gradient) * self.output_words(images, *shapes)


@dataclass(frozen=True, slots=True)
class Add(Operation):
    """The sum of inputs of the same shape; their gradients are copies."""

    kind: ClassVar[str] = "add"
    inputs: ClassVar[tuple[int, int]] = (2, 1 << 16)

    def _output_shape(self, *shapes: Shape) -> Shape:
        for shape in shapes:
            if shape != shapes[0]:
                raise ShapeError(
                    f"{self}: its inputs must have the same shape, found {shape_text(shapes[0])} "
                    f"and {shape_text(shape)}"
                )
        return shapes[0]

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Return one addition for each value of each input but the first."""
        return (len(shapes) - 1) * self.output_words(images, *shapes)


@dataclass(frozen=True, slots=True)
class Concatenate(Operation):
    """The channels of all inputs, one input after the other."""

    kind: ClassVar[str] = "concatenate"
    inputs: ClassVar[tuple[int, int]] = (2, 1 << 16)

    def _output_shape(self, *shapes: Shape) -> Shape:
        for shape in shapes:
            if shape[1:] != shapes[0][1:]:
                raise ShapeError(
                    f"{self}: its inputs must have the same height and width, found "
                    f"{shape_text(shapes[0])} and {shape_text(shape)}"
                )
        return sum(shape[0] for shape in shapes), *shapes[0][1:]


_CLASSES: Final[tuple[type[Operation], ...]] = (
    Input, Convolution, FullyConnected, MaxPool, AveragePool, Relu, BatchNorm, Add, Concatenate,
)  # fmt: skip

KINDS: Final = {cls.kind: cls for cls in _CLASSES}
"""The class of each kind."""


def operation_from_json(content: Any) -> Operation:
    """Make the operation that `Operation.as_json` described.

    Raises
    ------
    FormatError
        If the kind is unknown, or attributes are missing, unknown or of the wrong type.
    ShapeError
        As for the operation itself.
    """
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise FormatError(
            f"an operation's kind is one of {', '.join(KINDS)}, found {str(content)[:80]}"
        )
    attributes = {key: value for key, value in content.items() if key != "kind"}
    cls = KINDS[kind]
    for field in fields(cls):
        if field.name in attributes:
            attributes[field.name] = _typed(
                cls, field.name, str(field.type), attributes[field.name]
            )
    try:
        return cls(**attributes)
    except TypeError as error:
        text = str(error).partition(") ")[2] or str(error)
        raise FormatError(f"{cls.kind} '{content.get('name')}': {text}") from error


_LENGTHS: Final = {"Shape": 3, "tuple[int, int]": 2}


def _typed(cls: type[Operation], name: str, wanted: str, value: Any) -> Any:
    """Return an attribute as the class has it, from JSON's types."""
    if wanted in _LENGTHS:
        fits = isinstance(value, list) and len(value) == _LENGTHS[wanted]
        if fits and all(type(size) is int for size in value):
            return tuple(value)
    elif wanted == "float" and type(value) in (int, float):
        return float(value)
    elif wanted == type(value).__name__:
        return value
    raise FormatError(f"{cls.kind}: its {name} should be {wanted}, found {value!r:.80}")


def _products(geometry: ConvolutionShape, bias: bool, *, flat: bool) -> tuple[Parameter, ...]:
    weight = Parameter("weight", geometry.kernel_shape, flat=flat)
    if not bias:
        return (weight,)
    return weight, Parameter("bias", (geometry.filters,), initial="zeros")
