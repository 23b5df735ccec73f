"""Operations of dense networks on ranks: one class each, made of a `flow.Step`."""

from sparsednn.dense.layers.base import ParameterTile, PlacedOperation, Setting
from sparsednn.dense.layers.loss import SoftmaxCrossEntropy
from sparsednn.dense.layers.make import make_placed

__all__ = ["ParameterTile", "PlacedOperation", "Setting", "SoftmaxCrossEntropy", "make_placed"]
