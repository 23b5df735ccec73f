"""Activation functions: their names, their exact values, and whether they keep zero at zero.

The NumPy definition here is the truth that every kernel is held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError

__all__ = ["Activation"]

Floating = TypeVar("Floating", bound=np.floating[Any])

_KINDS: Final = ("identity", "relu", "clamped_relu", "sigmoid", "tanh", "softmax")


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation function, written ``relu``, ``clamped_relu:32``, ``softmax`` and so on.

    Parameters
    ----------
    kind
        One of identity, relu, clamped_relu, sigmoid, tanh, softmax.
    limit
        The upper bound of ``clamped_relu`` (finite, positive); None for every other kind.

    Raises
    ------
    InputError
        If the kind is unknown, or the limit is missing, superfluous or not positive and finite.
    """

    kind: str
    limit: float | None = None

    def __post_init__(self) -> None:
        """Reject an unknown kind and a limit that does not belong to the kind."""
        if self.kind not in _KINDS:
            raise InputError(f"unknown activation '{self.kind}': known are {', '.join(_KINDS)}")
        if self.kind == "clamped_relu":
            if self.limit is None or not (0.0 < self.limit < float("inf")):
                raise InputError(
                    f"activation clamped_relu needs a positive finite limit, found {self.limit}"
                )
        elif self.limit is not None:
            raise InputError(f"activation {self.kind} takes no limit, found {self.limit}")

    @classmethod
    def parse(cls, text: str) -> Activation:
        """Read the written form.

        >>> Activation.parse("clamped_relu:32").limit
        32.0
        """
        kind, colon, limit = text.partition(":")
        if not colon:
            return cls(kind)
        try:
            return cls(kind, float(limit))
        except ValueError:
            raise InputError(f"activation '{text}': '{limit}' is not a number") from None

    def __str__(self) -> str:
        """Return the written form, which `parse` reads back exactly."""
        return self.kind if self.limit is None else f"{self.kind}:{self.limit!r}"

    def apply(self, z: NDArray[Floating]) -> NDArray[Floating]:
        """Apply to pre-activations ``(neurons, batch)``; returns a new array of the same dtype."""
        match self.kind:
            case "identity":
                return z.copy()
            case "relu":
                return np.asarray(np.maximum(z, z.dtype.type(0)))
            case "clamped_relu":
                return np.asarray(np.clip(z, z.dtype.type(0), z.dtype.type(self.limit or 0.0)))
            case "tanh":
                return np.asarray(np.tanh(z))
            case "sigmoid":
                # exp of a non-positive number only: no overflow for large |z|.
                e = np.exp(-np.abs(z))
                return np.asarray(np.where(z >= 0, z.dtype.type(1), e) / (1 + e), dtype=z.dtype)
            case _:  # softmax over the neurons of each column
                if not z.size:
                    return z.copy()
                e = np.exp(z - z.max(axis=0, keepdims=True))
                return np.asarray(e / e.sum(axis=0, keepdims=True), dtype=z.dtype)

    def keeps_zero(self, bias: NDArray[np.float32]) -> bool:
        """Whether a column that is zero before the layer is zero behind it, given its bias.

        For such a layer a dead column (all zeros) may be dropped without changing any result.
        """
        if self.kind in ("relu", "clamped_relu"):
            return bool(np.all(bias <= 0))
        if self.kind in ("identity", "tanh"):
            return not np.any(bias)
        return False
