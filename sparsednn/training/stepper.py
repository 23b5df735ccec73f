"""`Stepper`: one step of SGD on all ranks — forward, loss, backward, sums, clipping, update.

Collective: all ranks of all groups call everything in step. It knows engines and examples, not
where they come from, and nothing of epochs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.kernels.updates import squared_norm
from sparsednn.training.data import LocalExamples
from sparsednn.training.divergence import DivergenceError, clip_scale, divergence
from sparsednn.training.engine import Engine
from sparsednn.training.losses import Score, Targets, loss_gradient, score
from sparsednn.training.optimizers import SGD, Optimizer

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["DivergenceError", "Stepper"]


class Stepper:
    """What changes an engine's parameters, step by step.

    Parameters
    ----------
    engine
        This rank's layers; stays the caller's.
    group, across
        The ranks that share the neurons; the ranks that have the same part, of all data groups.
    rows, n_out
        ``(own outputs,)`` int32: the output neurons of this rank; how many there are in all.
    loss, optimizer, clip, threads
        See `settings.Settings`; threads of the update.

    Attributes
    ----------
    slots
        The optimizer's arrays by name, each like ``engine.theta``; zero at first. To be changed by
        `restore` only: they may be copies.
    """

    def __init__(
        self,
        engine: Engine,
        group: Communicator,
        across: Communicator,
        *,
        rows: NDArray[np.int32],
        n_out: int,
        loss: str,
        optimizer: Optimizer,
        clip: float | None = None,
        threads: int = 1,
    ) -> None:
        self.engine, self._group, self._across = engine, group, across
        self._rows, self._n_out = rows, n_out
        self._loss, self._optimizer, self._clip, self._threads = loss, optimizer, clip, threads
        self._slots: dict[str, NDArray[Any]] = self._make_slots()
        # Plain SGD on one data group needs no gradients that outlive their layer.
        self._at_once = clip is None and across.size == 1 and optimizer == SGD()

    def _make_slots(self) -> dict[str, NDArray[Any]]:
        return {name: np.zeros_like(self.engine.theta) for name in self._optimizer.slots}

    @property
    def slots(self) -> dict[str, NDArray[Any]]:
        """The optimizer's arrays."""
        return self._slots

    def restore(self, name: str, flat: NDArray[Any]) -> None:
        """Set one of the optimizer's arrays, such as to one that a checkpoint has kept."""
        self._slots[name][:] = flat

    def train(
        self,
        examples: LocalExamples,
        ids: NDArray[np.int64],
        batch: int,
        *,
        rate: float,
        step: int,
    ) -> Score:
        """Do one step.

        Parameters
        ----------
        examples, ids
            This data group's images of the batch; the same on all ranks of a group, perhaps none.
        batch
            Images of the batch in all groups.
        rate
            Learning rate of this step.
        step
            Its number, from 1 on.

        Returns
        -------
        The score of the whole batch, before the update; the same on all ranks.

        Raises
        ------
        DivergenceError
            If the loss or the norm of the gradient is NaN or infinite; nothing was changed then.
        """
        engine = self.engine
        pieces = self._pieces(ids)
        total = Score()
        for number, piece in enumerate(pieces):
            y = engine.forward(examples.inputs, piece)
            found, delta = loss_gradient(
                self._loss, engine.last_activation, y, self._targets(examples, piece), self._rows,
                self._n_out, batch, self._group,
            )  # fmt: skip
            total += found
            if self._across.size == 1:  # otherwise others would wait for this group's sums
                self._check_loss(total, step, rate)
            if self._at_once and len(pieces) == 1:
                engine.backward(delta, rate=rate)
                return total
            engine.backward(delta, add=number > 0, last=number == len(pieces) - 1)
        engine.finish_gradient()
        total = self._of_all_groups(total)
        self._check_loss(total, step, rate)
        self._optimizer.update(
            engine.theta, engine.gradient, self.slots, rate=rate, step=step,
            scale=self._scale(step, rate), threads=self._threads,
        )  # fmt: skip
        return total

    def evaluate(self, examples: LocalExamples, ids: NDArray[np.int64]) -> Score:
        """Score of images, added up over the data groups, which give each its own `ids`."""
        total = Score()
        for piece in self._pieces(ids):
            y = self.engine.forward(examples.inputs, piece)
            total += score(
                self._loss, self.engine.last_activation, y, self._targets(examples, piece),
                self._rows, self._n_out, self._group,
            )  # fmt: skip
        return self._of_all_groups(total)

    def _pieces(self, ids: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Cut images into tiles of about equal size: one, empty, if there are none."""
        count = max(1, -(-ids.size // self.engine.tile))
        return [ids[ids.size * i // count : ids.size * (i + 1) // count] for i in range(count)]

    def _targets(self, examples: LocalExamples, ids: NDArray[np.int64]) -> Targets:
        labels, values = examples.labels, examples.values
        return Targets(
            None if labels is None else labels[ids], None if values is None else values[:, ids]
        )

    def _of_all_groups(self, own: Score) -> Score:
        if self._across.size == 1:
            return own
        sums = np.array([own.loss, own.correct, own.images], np.float64)
        self._across.allreduce(sums)
        return Score(float(sums[0]), int(sums[1]), int(sums[2]))

    def _scale(self, step: int, rate: float) -> float:
        """What the gradient is multiplied with, so that it is not longer than `clip`."""
        if self._clip is None:
            return 1.0
        square = np.array([self._squared_norm()])
        self._group.allreduce(square)
        norm = math.sqrt(float(square[0]))
        if not math.isfinite(norm):
            self._diverged("the norm of the gradient", norm, step, rate)
        return clip_scale(norm, self._clip)

    def _squared_norm(self) -> float:
        """Of this rank's part of the gradient."""
        return squared_norm(self.engine.gradient, self._threads)

    def _check_loss(self, total: Score, step: int, rate: float) -> None:
        if not math.isfinite(total.loss):
            self._diverged("the loss", total.loss, step, rate)

    def _diverged(self, what: str, value: float, step: int, rate: float) -> None:
        """Raise, naming the first layer whose outputs are no numbers; collective."""
        depth = len(self.engine.layers_of(self.engine.theta))
        bad = next(
            (
                layer
                for layer in range(1, depth + 1)
                if not np.isfinite(self.engine.activations_of(layer)).all()
            ),
            depth + 1,
        )
        first = np.array([bad], np.int64)
        self._group.allreduce(first, "min")
        self._across.allreduce(first, "min")
        layer = int(first[0])
        where = (
            f"the outputs of layer {layer} of {depth} are the first that are not finite"
            if layer <= depth
            else f"the outputs of all {depth} layers are finite, but too large for it"
        )
        raise divergence(step, what, value, where, rate, clipped=self._clip is not None)
