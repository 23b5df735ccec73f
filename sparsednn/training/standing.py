"""`Standing`: how far a run is, how well it goes, how long it took; `Moment`: what is told of it.

What any training counts, whatever it trains. A checkpoint keeps it. Must not know: networks.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.training.losses import Score

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["Moment", "Standing"]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a progress line tells.

    Attributes
    ----------
    epoch, epochs, step, steps
        Epochs done of all; steps done of all.
    loss, accuracy
        Means of this epoch's images so far; `accuracy` is None without labels.
    images_per_second
        Of this session's steps.
    seconds_left
        Until all steps are done, without what comes between them.
    rate
        Learning rate of the last step.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float | None
    images_per_second: float
    seconds_left: float
    rate: float


class Standing:
    """Counters of a run.

    Parameters
    ----------
    world
        All ranks.
    counts
        Names of what each rank counts, to be added up over all.
    kept
        What `as_json` gave for the checkpoint that is resumed; None at the start.

    Attributes
    ----------
    epoch, done, step
        Epochs done; images done in this one; steps done in all.
    running
        Scores of this epoch's images.
    last
        Means of the last epoch.
    seconds
        Of all steps.
    own
        Counts of this rank, in this session.
    records
        What the metrics file has of the epochs of this session.
    """

    def __init__(
        self, world: Communicator, counts: Sequence[str], kept: Mapping[str, Any] | None
    ) -> None:
        self._world = world
        kept = kept or {}
        self.epoch, self.done = int(kept.get("epoch", 0)), int(kept.get("done", 0))
        self.step = int(kept.get("step", 0))
        self.running = Score(*kept.get("running", (0.0, 0, 0)))
        self.last: dict[str, Any] = dict(kept.get("last", {}))
        self.seconds = float(kept.get("seconds", 0.0))
        self._before = {name: int(kept.get("counts", {}).get(name, 0)) for name in counts}
        self.own = dict.fromkeys(counts, 0)
        self._images = 0
        self._session = 0.0
        self._rate = 0.0
        self.records: list[dict[str, Any]] = []
        self._clock = time.perf_counter()

    def start(self) -> None:
        """Begin, or go on: what happened until now was no step."""
        self.restart_clock()

    def restart_clock(self) -> None:
        """Forget the time since the last step: it belonged to something else."""
        self._clock = time.perf_counter()

    def note_step(self, score: Score, rate: float) -> None:
        """Note a step: the batch's score, the learning rate."""
        now = time.perf_counter()
        self._session += now - self._clock
        self.seconds += now - self._clock
        self._clock = now
        self.step += 1
        self.done += score.images
        self._images += score.images
        self.running += score
        self._rate = rate

    def note_epoch(self, tested: Score | None, *, labelled: bool) -> dict[str, Any]:
        """Note the end of an epoch, and return its means: losses and accuracies."""
        self.epoch += 1
        images = max(1, self.running.images)
        self.last = {
            "loss": self.running.loss / images,
            "train_accuracy": self.running.correct / images if labelled else None,
            "test_loss": None if tested is None else tested.loss / max(1, tested.images),
            "test_accuracy": (
                None if tested is None or not labelled else tested.correct / max(1, tested.images)
            ),
        }
        self.running = Score()
        self.done = 0
        return dict(self.last)

    def record(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the metrics file keeps of an epoch: its means, counts, time; collective."""
        counts = self.totals()
        record = {
            "epoch": self.epoch,
            "step": self.step,
            **means,
            "lr": self._rate,
            "seconds": self.seconds,
            "images_per_second": self.speed,
            "words_sent": counts["words"],
            "words_predicted": counts["predicted"],
        }
        self.records.append(record)
        return record

    @property
    def speed(self) -> float:
        """Images per second of this session's steps."""
        return self._images / self._session if self._session else 0.0

    def moment(self, epochs: int, steps: int, images: int, *, labelled: bool) -> Moment:
        """Return what a progress line tells."""
        seen = max(1, self.running.images)
        left = (epochs - self.epoch) * images - self.done
        return Moment(
            epoch=self.epoch,
            epochs=epochs,
            step=self.step,
            steps=steps,
            loss=self.running.loss / seen,
            accuracy=self.running.correct / seen if labelled else None,
            images_per_second=self.speed,
            seconds_left=left / self.speed if self.speed else 0.0,
            rate=self._rate,
        )

    def totals(self) -> dict[str, int]:
        """Counts of all ranks, from the start of the training; collective."""
        own = np.array(list(self.own.values()), np.int64)
        self._world.allreduce(own)
        return {
            name: self._before[name] + int(count) for name, count in zip(self.own, own, strict=True)
        }

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; collective."""
        return {
            "epoch": self.epoch,
            "done": self.done,
            "step": self.step,
            "running": [self.running.loss, self.running.correct, self.running.images],
            "last": self.last,
            "seconds": self.seconds,
            "counts": self.totals(),
        }
