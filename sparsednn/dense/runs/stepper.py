"""`CnnStepper`: one step of SGD of a dense network on ranks, and tests between steps.

Each rank takes of a batch of pictures what its tile of the first layer needs, and the labels of the
images whose loss it looks at. Sums of losses are under way during the backward pass. Collective:
all ranks call everything in step. Knows nothing of epochs and files.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.pending import Pending
from sparsednn.dense.layout import Block
from sparsednn.dense.model import DenseModel
from sparsednn.dense.stopwatch import Stopwatch
from sparsednn.training.divergence import clip_scale, divergence
from sparsednn.training.losses import Score
from sparsednn.training.optimizers import Optimizer

if TYPE_CHECKING:
    from sparsednn.datasets.pictures import Pictures

__all__ = ["PHASES", "CnnStepper", "picture_block"]

#: Where the time of a step goes; ``gradients`` is the wait until sums over ranks are complete.
PHASES = ("data", "forward", "backward", "gradients", "update")


class CnnStepper:
    """What changes a model's parameters, step by step.

    Parameters
    ----------
    model
        The network on ranks; stays the caller's.
    optimizer, clip, threads
        See `training.settings.Settings`; threads of the update.

    Attributes
    ----------
    slots
        The optimizer's arrays by name, each like the parameters of this rank; zero at first.
    """

    def __init__(
        self,
        model: DenseModel,
        optimizer: Optimizer,
        *,
        clip: float | None = None,
        threads: int = 1,
    ) -> None:
        self._model, self._optimizer, self._clip, self._threads = model, optimizer, clip, threads
        theta = model.parameters.theta
        self.slots: dict[str, NDArray[Any]] = {
            name: model.setting.local.zeros(theta.shape, theta.dtype) for name in optimizer.slots
        }
        self._words: dict[tuple[int, bool], int] = {}

    def words(self, images: int, *, training: bool = True) -> int:
        """Return what this rank sends for so many images, by the formulas of `flow`."""
        key = images, training
        if key not in self._words:
            total = self._model.batch(images).flow.total_words(training=training)
            self._words[key] = int(total[self._model.world.rank])
        return self._words[key]

    def train(self, pictures: Pictures, ids: NDArray[np.int64], *, rate: float, step: int) -> Score:
        """Do one step.

        Parameters
        ----------
        pictures, ids
            All images, and which of them are the batch; the same on all ranks.
        rate
            Learning rate of this step.
        step
            Its number, from 1 on.

        Returns
        -------
        The score of the batch, before the update; the same on all ranks.

        Raises
        ------
        DivergenceError
            If the loss or the norm of the gradient is NaN or infinite; parameters stay.
        """
        model = self._model
        watch, store = model.watch, model.parameters
        batch = model.batch(int(ids.size))
        watch.start()
        x = picture_block(pictures, ids, batch.input, model.setting.dtype)
        labels = pictures.labels[ids[slice(*batch.labels)]]
        watch.lap("data")
        # What is no number shows in the loss, and training stops there with a reason.
        with np.errstate(all="ignore"):
            logits = batch.forward(x, training=True)
            own, gradient = batch.score(logits, labels)
            sums, pending = self._start_sums(own)
            gradient /= gradient.dtype.type(ids.size)
            watch.lap("forward", "loss")
            batch.backward(gradient)
            pending.wait()
            watch.lap("gradients")
            score = _score(sums)
            self._check("the loss", score.loss, step, rate)
            scale = 1.0
            if self._clip is not None:
                norm = store.norm(store.gradient)
                self._check("the norm of the gradient", norm, step, rate)
                scale = clip_scale(norm, self._clip)
            self._optimizer.update(
                store.theta, store.gradient, self.slots, rate=rate, step=step, scale=scale,
                threads=self._threads,
            )  # fmt: skip
        watch.lap("update")
        return score

    def evaluate(self, pictures: Pictures, images: int) -> Score:
        """Return the score of all pictures, `images` at a time; the same on all ranks."""
        return self.classify(pictures, images)[0]

    def classify(
        self, pictures: Pictures, images: int
    ) -> tuple[Score, NDArray[np.int64], NDArray[np.int64]]:
        """Return the score of all pictures, and the classes of some.

        Parameters
        ----------
        pictures
            What to look at.
        images
            So many at a time.

        Returns
        -------
        score
            Of all; the same on all ranks.
        ids, classes
            ``(own,)``: whose logits came to this rank, and which of them is the largest. Every
            image is on one rank.
        """
        model = self._model
        training, model.watch = model.watch, Stopwatch()
        own = Score()
        found: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
        for first in range(0, pictures.n_images, images):
            ids = np.arange(first, min(first + images, pictures.n_images))
            batch = model.batch(int(ids.size))
            x = picture_block(pictures, ids, batch.input, model.setting.dtype)
            mine = ids[slice(*batch.labels)]
            with np.errstate(all="ignore"):
                logits = batch.forward(x, training=False)
                own += batch.score(logits, pictures.labels[mine])[0]
            found.append((mine, logits.argmax(axis=1) if mine.size else mine))
        model.watch = training
        sums, pending = self._start_sums(own)
        pending.wait()
        return (
            _score(sums),
            np.concatenate([ids for ids, _ in found]),
            np.concatenate([classes for _, classes in found]),
        )

    def _start_sums(self, own: Score) -> tuple[NDArray[np.float64], Pending]:
        sums = np.array([own.loss, own.correct, own.images], np.float64)
        return sums, self._model.world.start_allreduce(sums, verb="score")

    def _check(self, what: str, value: float, step: int, rate: float) -> None:
        if not math.isfinite(value):
            raise divergence(step, what, value, "", rate, clipped=self._clip is not None)


def _score(sums: NDArray[np.float64]) -> Score:
    return Score(float(sums[0]), int(sums[1]), int(sums[2]))


def picture_block(
    pictures: Pictures, ids: NDArray[np.int64], block: Block, dtype: np.dtype[Any]
) -> NDArray[Any]:
    """Return a rank's block of a batch of pictures, as numbers.

    Parameters
    ----------
    pictures, ids
        All images; which of them are the batch.
    block
        Of ``(images of the batch, channels, rows, columns)``.
    dtype
        float32 or float64.

    Returns
    -------
    array
        C-contiguous.
    """
    images, channels, rows, columns = block.intervals
    x = np.empty(block.shape, dtype)
    if not x.size:
        return x
    chosen = np.concatenate([ids[first:last] for first, last in images])
    height, width = (slice(*interval) for (interval,) in (rows, columns))
    at = 0
    for first, last in channels:  # several, where groups are divided
        there = x[:, at : at + last - first]
        pictures.block(chosen, slice(first, last), height, width, out=there)
        at += last - first
    return x
