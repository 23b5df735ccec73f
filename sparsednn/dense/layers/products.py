"""Convolutions and fully connected layers in a network: redistribution, then the product."""

from __future__ import annotations

from sparsednn.dense.distributed import DistributedConvolution
from sparsednn.dense.flow import Step
from sparsednn.dense.layers.base import Array, PlacedOperation, Setting

__all__ = ["Product"]


class Product(PlacedOperation):
    """A convolution on its grid; see `distributed.DistributedConvolution`."""

    def __init__(self, setting: Setting, step: Step, number: int) -> None:
        super().__init__(setting, step, number)
        assert step.distribution is not None  # every product has one
        self._product = DistributedConvolution(
            setting.pool, step.distribution, setting.local, setting.dtype, layer=number,
            has_bias=bool(getattr(step.operation, "bias", False)),
            input_gradient=step.input_gradient,
        )  # fmt: skip

    @property
    def parameter_size(self) -> int:
        """Kernel and bias."""
        return self._product.parameter_size

    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array:
        y = self._product.forward(inputs[0], parameters)
        if not training:
            self._product.forget()
        return y

    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        return [self._product.backward(dy, parameters, gradient)]

    def finish(self) -> None:
        """Wait for the sums over ranks."""
        self._product.finish()

    def forget(self) -> None:
        """Drop the input."""
        self._product.forget()

    def free(self) -> None:
        """Free messages and buffers."""
        super().free()
        self._product.free()
