"""From a step of the flow to the operation that does it."""

from __future__ import annotations

from sparsednn.dense.flow import Step
from sparsednn.dense.layers.base import PlacedOperation, Setting
from sparsednn.dense.layers.elementwise import Addition, Concatenation, Rectifier
from sparsednn.dense.layers.normalization import BatchNormalization
from sparsednn.dense.layers.pooling import Pooling
from sparsednn.dense.layers.products import Product

__all__ = ["make_placed"]

_CLASSES: dict[str, type[PlacedOperation]] = {
    "convolution": Product,
    "fully_connected": Product,
    "max_pool": Pooling,
    "average_pool": Pooling,
    "relu": Rectifier,
    "batch_norm": BatchNormalization,
    "add": Addition,
    "concatenate": Concatenation,
}


def make_placed(setting: Setting, step: Step, number: int) -> PlacedOperation:
    """Plan an operation on this rank; collective (communicators and messages are made)."""
    return _CLASSES[step.operation.kind](setting, step, number)
