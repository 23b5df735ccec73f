"""`ReadOptions`: what a person has to say about a model file that does not say it itself.

A state dict names tensors; which of them are the layers, what stands between them, and how large
the images of a convolution are is not in the file. One object carries all such choices from the
command line to the readers. A format that knows better refuses it: nothing given is ignored.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Final

from sparsednn.activations import Activation
from sparsednn.errors import InputError, UsageError

__all__ = ["ReadOptions"]

_PADDING: Final = re.compile(r"[0-9]+|same")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Choices for reading checkpoints; every default means 'not given'.

    Parameters
    ----------
    select
        Patterns that choose layers, see `sparsednn.formats.selection`.
    activation, output_activation
        Of the hidden layers (not given: relu) and of the last one (not given: identity), in the
        written form of `Activation`.
    transposed
        Matrices are stored ``(n_in, n_out)``, as in Keras, JAX and GPT-2.
    conv
        ``matrix``: a convolution's kernel ``(k, c, r, s)`` becomes the matrix ``(k, c·r·s)``.
    input_size
        ``(h, w)`` or ``(c, h, w)`` of the images that enter the first convolution: kernels
        become the sparse matrix of the whole convolution (see `sparsednn.formats.lowering`).
    conv_stride, conv_padding
        One number for all convolutions, or one for each; padding may be ``"same"``. Not given:
        stride 1, padding 0. They need `input_size`.

    Raises
    ------
    UsageError
        If a value is out of range, or options exclude each other.
    """

    select: tuple[str, ...] = ()
    activation: str | None = None
    output_activation: str | None = None
    transposed: bool = False
    conv: str | None = None
    input_size: tuple[int, ...] | None = None
    conv_stride: tuple[int, ...] = ()
    conv_padding: tuple[int | str, ...] = ()

    def __post_init__(self) -> None:
        """Reject what is wrong whatever the file."""
        for option, text in (
            ("--activation", self.activation),
            ("--output-activation", self.output_activation),
        ):
            try:
                kind = None if text is None else Activation.parse(text).kind
            except InputError as error:
                raise UsageError(f"{option}: {error}") from error
            if kind == "softmax" and option == "--activation":
                raise UsageError("--activation: only the last layer may have softmax")
        if self.conv not in (None, "matrix"):
            raise UsageError(
                f"--conv {self.conv}: known is matrix; --input-size HxW makes the whole convolution"
            )
        size = self.input_size
        if size is not None and (len(size) not in (2, 3) or min(size) < 1):
            raise UsageError(f"--input-size: expected HxW or CxHxW, found {size}")
        if size is not None and self.conv is not None:
            raise UsageError("--conv matrix and --input-size exclude each other")
        if size is None and (self.conv_stride or self.conv_padding):
            name = "--conv-stride" if self.conv_stride else "--conv-padding"
            raise UsageError(f"{name} needs --input-size")
        if any(stride < 1 for stride in self.conv_stride):
            raise UsageError(f"--conv-stride must be at least 1, found {min(self.conv_stride)}")
        for padding in self.conv_padding:
            if not _PADDING.fullmatch(str(padding)):
                raise UsageError(f"--conv-padding: expected a number or 'same', found '{padding}'")

    @classmethod
    def parse(
        cls,
        *,
        select: tuple[str, ...] = (),
        activation: str | None = None,
        output_activation: str | None = None,
        transposed: bool = False,
        conv: str | None = None,
        input_size: str | None = None,
        conv_stride: str | None = None,
        conv_padding: str | None = None,
    ) -> ReadOptions:
        """Make options of texts as they are typed: ``28x28``, ``1,2``, ``1,same``.

        >>> ReadOptions.parse(input_size="3x32x32", conv_padding="1,same").conv_padding
        (1, 'same')
        """
        padding = () if conv_padding is None else tuple(conv_padding.split(","))
        return cls(
            select=select,
            activation=activation,
            output_activation=output_activation,
            transposed=transposed,
            conv=conv,
            input_size=_numbers("--input-size", input_size, "x", "HxW or CxHxW") or None,
            conv_stride=_numbers("--conv-stride", conv_stride, ",", "numbers"),
            conv_padding=tuple(int(p) if re.fullmatch("[0-9]+", p) else p for p in padding),
        )

    @property
    def given(self) -> tuple[str, ...]:
        """The options that were given, as they are typed: ``("--select",)``."""
        plain = ReadOptions.__dataclass_fields__
        return tuple(
            "--" + field.name.replace("_", "-")
            for field in fields(self)
            if getattr(self, field.name) != plain[field.name].default
        )

    def refuse(self, where: object, why: str) -> None:
        """Raise a `UsageError` if any option was given: `where` is of a kind that needs none."""
        if self.given:
            raise UsageError(f"{where}: {self.given[0]} does not apply: {why}")


def _numbers(option: str, text: str | None, between: str, form: str) -> tuple[int, ...]:
    if text is None:
        return ()
    parts = text.split(between)
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in parts):
        raise UsageError(f"{option}: expected {form}, found '{text}'")
    return tuple(int(part) for part in parts)
