"""What all operations have in common: names, checks, parameters, and how shapes are written.

Use it through `sparsednn.dense.operations`. Must not know: any kind of operation.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import Any, ClassVar, Final

from sparsednn.errors import ShapeError

__all__ = ["Operation", "Pads", "Parameter", "Shape", "shape_text", "window_text"]

Shape = tuple[int, int, int]
"""Of one image: channels, height, width."""

Pads = tuple[int, int, int, int]
"""Padding on top, on the left, at the bottom, on the right."""

_MAY_BE_ZERO: Final = ("padding",)


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape as messages have it.

    >>> shape_text((3, 32, 32))
    '3×32×32'
    """
    return "×".join(map(str, shape))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One array that belongs to an operation.

    Parameters
    ----------
    name
        As PyTorch has it: ``weight``, ``bias``, ``running_mean``, ``running_var``; in a graph
        (`OperationGraph.parameters`) with the operation's name in front: ``layer1.0.bn1.weight``.
    shape
        Kernels are ``(filters, channels / groups, rows, columns)``, all else ``(channels,)``.
    trained
        False for the running statistics of batch normalisation, which a forward pass updates.
    initial
        "normal" (mean 0; see `sparsednn.dense.initial`), "zeros" or "ones".
    flat
        Whether PyTorch has it as a matrix: ``(filters, channels · rows · columns)``.
    """

    name: str
    shape: tuple[int, ...]
    trained: bool = True
    initial: str = "normal"
    flat: bool = False

    @property
    def words(self) -> int:
        """Numbers in it."""
        return prod(self.shape)

    @property
    def fan_in(self) -> int:
        """Inputs of one output: all of a kernel but its filters."""
        return prod(self.shape[1:])

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape that it has in a state dict of PyTorch."""
        return (self.shape[0], self.fan_in) if self.flat else self.shape


@dataclass(frozen=True, slots=True)
class Operation:
    """Base of all operations: name, checks, and what most of them have in common.

    The sizes that methods take are those of the inputs, one image each, in order.

    Raises
    ------
    ShapeError
        When made, if a size is not positive (padding: negative).
    """

    kind: ClassVar[str] = ""
    inputs: ClassVar[tuple[int, int]] = (1, 1)
    """How few and how many inputs there may be."""

    name: str

    def __post_init__(self) -> None:
        """Check the sizes among the attributes."""
        if not self.name or any(letter.isspace() for letter in self.name):
            raise ShapeError(f"an operation's name must be a word, found '{self.name}'")
        for field in fields(self):
            value = getattr(self, field.name)
            sizes = value if isinstance(value, tuple) else (value,)
            least = 0 if field.name in _MAY_BE_ZERO else 1
            for size in sizes:
                if isinstance(size, int) and not isinstance(size, bool) and size < least:
                    wanted = "positive" if least else "not negative"
                    raise ShapeError(
                        f"{self}: {field.name} must be {wanted}, found {shape_text(sizes)}"
                    )

    def output_shape(self, *shapes: Shape) -> Shape:
        """Shape of what comes out.

        Raises
        ------
        ShapeError
            If the number or the shapes of the inputs are not what this operation takes.
        """
        few, many = self.inputs
        if not few <= len(shapes) <= many:
            wanted = f"{few}" if few == many else f"at least {few}"
            raise ShapeError(
                f"{self}: it takes {wanted} input{'s' * (few != 1)}, not {len(shapes)}"
            )
        return self._output_shape(*shapes)

    def _output_shape(self, *shapes: Shape) -> Shape:
        return shapes[0]

    def parameters(self, *shapes: Shape) -> tuple[Parameter, ...]:
        """Return the arrays that belong to it, in PyTorch's order."""
        return ()

    def output_words(self, images: int, *shapes: Shape) -> int:
        """Numbers that come out."""
        return images * prod(self.output_shape(*shapes))

    def forward_flops(self, images: int, *shapes: Shape) -> int:
        """Flops of a forward pass: none, where nothing is said."""
        return 0

    def backward_flops(self, images: int, *shapes: Shape, input_gradient: bool = True) -> int:
        """Flops of a backward pass, with or without the gradient of the input."""
        return 0

    def details(self) -> str:
        """Return its attributes as a table shows them."""
        return ""

    def as_json(self) -> dict[str, Any]:
        """Return what `operation_from_json` takes: numbers, texts and lists only."""
        attributes = {field.name: getattr(self, field.name) for field in fields(self)}
        return {"kind": self.kind} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in attributes.items()
        }

    def __str__(self) -> str:
        """Return what messages call it: ``operation 'conv1' (convolution)``."""
        return f"operation '{self.name}' ({self.kind.replace('_', ' ')})"


def window_text(
    taps: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], *more: str
) -> str:
    """Return taps, stride and padding as tables show them, unusual ones only."""
    parts = [shape_text(taps)]
    if stride != (1, 1):
        parts.append(f"stride {shape_text(stride)}")
    if padding != (0, 0):
        parts.append(f"padding {shape_text(padding)}")
    return ", ".join([*parts, *filter(None, more)])
