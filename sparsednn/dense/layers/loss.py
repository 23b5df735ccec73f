"""Softmax cross-entropy of logits that lie anywhere: each rank looks at its share of the images.

The logits come to where images are divided over all ranks, and their gradient goes back. The sum
over ranks of loss and right answers is the caller's affair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.flow import Flow
from sparsednn.dense.layers.base import Array, Setting
from sparsednn.dense.moves import Move
from sparsednn.training.losses import Score

__all__ = ["SoftmaxCrossEntropy"]


class SoftmaxCrossEntropy:
    """Loss ``-log softmax(logits)[label]``.

    Parameters
    ----------
    setting
        Ranks and dtype.
    flow
        Where the logits lie.
    number
        What messages are counted under.

    Attributes
    ----------
    images
        ``[first, last)`` of the batch's images that this rank looks at.
    """

    def __init__(self, setting: Setting, flow: Flow, number: int) -> None:
        world, self._local = setting.pool.world, setting.local
        last = next(reversed(flow.steps.values()))
        self._move = Move(
            world,
            last.output.layout,
            flow.logits,
            setting.dtype,
            layer=number,
            tag=0,
            copies=setting.pool.copies,
        )
        first, stop = flow.logits.intervals[0][world.rank, 0].tolist()
        self.images: tuple[int, int] = (first, stop)

    def logits(self, tile: Array) -> Array:
        """Return ``(images of this rank, classes)``, on the host; collective."""
        brought = self._local.to_host(self._move.forward(tile))
        return brought.reshape(brought.shape[:2])

    def score(self, logits: Array, labels: NDArray[np.int64]) -> tuple[Score, Array]:
        """Return the sum of the losses, the right answers, and the gradient of that sum.

        Parameters
        ----------
        logits
            Of `logits`.
        labels
            ``(images of this rank,)``, each below the number of classes.
        """
        if not labels.size:
            return Score(0.0, 0, 0), np.zeros_like(logits)
        rows = np.arange(labels.size)
        shifted = logits - logits.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        losses = np.log(sums[:, 0]) - shifted[rows, labels]
        gradient = exponentials / sums
        gradient[rows, labels] -= 1
        correct = int(np.count_nonzero(logits.argmax(axis=1) == labels))
        return Score(float(losses.sum(dtype=np.float64)), correct, int(labels.size)), gradient

    def gradient(self, gradient: Array) -> Array:
        """Bring the gradient of the logits to where these lie; collective."""
        shape: Any = (*gradient.shape, 1, 1)
        there = np.ascontiguousarray(gradient).reshape(shape)
        return self._move.backward(self._local.from_host(there))

    def free(self) -> None:
        """Free the messages."""
        self._move.free()
