"""`EpochLoop`: the order of a training — steps, epochs, tests, checkpoints — whatever is trained.

Called by all ranks alike. The images of an epoch come in an order that depends on the seed and the
epoch only (`order`), so a training that is resumed in the middle of an epoch goes on with the
images that come next. Must not know: networks, files.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.training.order import epoch_order
from sparsednn.training.settings import Settings
from sparsednn.training.standing import Moment, Standing

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["EpochLoop"]


class EpochLoop(abc.ABC):
    """What a run does in which order; those who inherit do it.

    Attributes
    ----------
    world, settings
        All ranks; what determines the numbers.
    progress
        Where the run stands.
    n_images
        Images of an epoch.
    every
        Steps from one checkpoint to the next within an epoch; None: only behind each epoch.
    """

    world: Communicator
    settings: Settings
    n_images: int
    every: int | None

    @property
    @abc.abstractmethod
    def standing(self) -> Standing:
        """Where the run stands."""

    @property
    def labelled(self) -> bool:
        """Whether images have labels, so that right answers can be counted."""
        return True

    @property
    def steps_per_epoch(self) -> int:
        """The last one may have fewer images."""
        return -(-self.n_images // self.settings.batch_size)

    @property
    def steps_total(self) -> int:
        """Steps of all epochs."""
        return self.steps_per_epoch * self.settings.epochs

    def run_until(
        self,
        step: int,
        progress: Callable[[Moment], None] | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Train until so many steps are done in all.

        Parameters
        ----------
        step
            Steps, those before resuming included.
        progress, on_epoch
            Called on rank 0: behind every step; behind every epoch with its line of metrics.

        Raises
        ------
        DivergenceError
            If the loss is no number any more; the last checkpoint stays.
        FormatError
            If a checkpoint or the metrics cannot be written, on all ranks.
        """
        at, settings = self.standing, self.settings
        at.start()
        while at.epoch < settings.epochs and at.step < step:
            order = epoch_order(self.n_images, at.epoch, settings.seed, shuffle=settings.shuffle)
            while at.done < self.n_images and at.step < step:
                rate = settings.schedule.rate(
                    settings.rate, at.step, self.steps_per_epoch, self.steps_total
                )
                self._step(order[at.done : at.done + settings.batch_size], rate)
                if progress is not None and self.world.rank == 0:
                    progress(
                        at.moment(
                            settings.epochs, self.steps_total, self.n_images,
                            labelled=self.labelled,
                        )
                    )  # fmt: skip
                if self.every and at.step % self.every == 0 and at.done < self.n_images:
                    self._save()
            if at.done == self.n_images:
                self._end_epoch()
                if on_epoch is not None and self.world.rank == 0:
                    on_epoch(at.records[-1])
                self._save()

    @abc.abstractmethod
    def _step(self, batch: NDArray[np.int64], rate: float) -> None:
        """Train with these images of an epoch, at this learning rate."""

    @abc.abstractmethod
    def _end_epoch(self) -> None:
        """Test, and write the metrics; `standing.records` has a line more then."""

    @abc.abstractmethod
    def _save(self) -> None:
        """Write a checkpoint, if there are any."""
