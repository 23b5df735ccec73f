"""Batch normalisation with statistics over all ranks that hold a part of a channel.

Those are the ranks along (b, h, w) of the activation's grid: they have the same channels. Forward,
in training: sums of the tile → allreduce → mean; sums of squared distances from the mean →
allreduce → variance; two passes, since the difference of two large sums is no variance. Backward:
the sums of dy and of dy·x̂, allreduced together, are the gradients of beta and gamma, and all that
the input's gradient needs of other ranks. Words: ``2 ⌈2c(p - 1)/p⌉`` forward, ``⌈4c(p - 1)/p⌉``
backward, c channels of the rank, p ranks along (b, h, w); counted as "statistics". (Ioffe and
Szegedy, ICML 2015.)

Running statistics move by `momentum` towards the batch's, the variance the unbiased one, as in
PyTorch.
"""

from __future__ import annotations

import numpy as np

from sparsednn.dense.flow import Step
from sparsednn.dense.grids import B, H, W
from sparsednn.dense.layers.base import Array, PlacedOperation, Setting
from sparsednn.dense.operations import BatchNorm

__all__ = ["BatchNormalization"]


class BatchNormalization(PlacedOperation):
    """Parameters are gamma then beta, buffers the running mean then the running variance."""

    def __init__(self, setting: Setting, step: Step, number: int) -> None:
        super().__init__(setting, step, number)
        operation = step.operation
        assert isinstance(operation, BatchNorm)
        self._epsilon, self._momentum = operation.epsilon, operation.momentum
        layout = step.output.layout
        self._channels = int(layout.lengths(1)[setting.pool.world.rank])
        self._count = layout.shape[0] * layout.shape[2] * layout.shape[3]
        self._peers = setting.pool.along(step.output.grid, B, H, W)
        self._kept: tuple[Array, Array, Array] | None = None

    @property
    def parameter_size(self) -> int:
        """Gamma and beta."""
        return 2 * self._channels

    @property
    def buffer_size(self) -> int:
        """Running mean and variance."""
        return 2 * self._channels

    def _summed(self, sums: Array) -> Array:
        self._peers.allreduce(sums, layer=self.number, verb="statistics")
        return sums

    def _forward(
        self, inputs: list[Array], parameters: Array, buffers: Array, training: bool
    ) -> Array:
        (x,) = inputs
        running_mean, running_variance = buffers.reshape(2, -1)
        if training:
            mean = self._summed(self.local.channel_sums(x)) / self._count
            variance = self._summed(self.local.channel_squares(x, mean)) / self._count
            unbiased = variance * (self._count / max(1, self._count - 1))
            running_mean += self._momentum * (mean - running_mean)
            running_variance += self._momentum * (unbiased - running_variance)
        else:
            mean = running_mean.astype(np.float64)
            variance = running_variance.astype(np.float64)
        inverse = 1.0 / np.sqrt(variance + self._epsilon)
        gamma, beta = parameters.reshape(2, -1)
        if training:
            self._kept = (x, mean, inverse)
        y: Array = self.local.normalize(x, mean, inverse, gamma, beta)
        return y

    def _backward(self, dy: Array, parameters: Array, gradient: Array) -> list[Array | None]:
        assert self._kept is not None  # a forward pass with training=True came before
        x, mean, inverse = self._kept
        self._kept = None
        sums = np.stack(self.local.normalize_gradient_sums(dy, x, mean, inverse))
        self._summed(sums)
        d_gamma, d_beta = gradient.reshape(2, -1)
        d_beta[...], d_gamma[...] = sums
        if not self.step.input_gradient:
            return [None]
        gamma = parameters.reshape(2, -1)[0]
        mean_dy, mean_dy_xhat = sums / self._count
        return [self.local.normalize_gradient(dy, x, mean, inverse, gamma, mean_dy, mean_dy_xhat)]

    def forget(self) -> None:
        """Drop the input."""
        self._kept = None
