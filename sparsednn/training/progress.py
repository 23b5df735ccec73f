"""Where a training stands: epoch, steps, running scores, words, time; and what is told of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.training.losses import Score
from sparsednn.training.placed import PlacedNetwork

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["Moment", "Progress", "TrainingResult"]

#: Verbs whose words and messages are a step's exchange.
_VERBS = ("exchange", "fold")
#: What is counted for the whole run, over all ranks, in a checkpoint.
_COUNTS = ("words", "predicted", "messages", "allreduce", "evaluation", "pattern")


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


@dataclass(frozen=True)
class TrainingResult:
    """What a training gave; the same on all ranks but for times.

    Attributes
    ----------
    epochs, steps
        Done in all, those before resuming included; so for seconds and words.
    loss, train_accuracy
        Means over the images of the last epoch, each before the step that it was part of.
    test_loss, test_accuracy
        Of the validation examples behind the last epoch; None without.
    images_per_second
        Trained images over seconds of steps, in this session.
    seconds
        Of steps.
    words_sent, messages_sent
        Between ranks that share the neurons, in steps, counted as they were sent.
    words_predicted
        What the plans promise: for each image the words of a forward and of a backward pass.
    allreduce_words
        Words of gradients that were added up over data groups.
    evaluation_words, pattern_words
        Words that the same exchanges have sent for the validation, and for changes of the pattern.
    drift
        Words of an image now over those with the first pattern (or the last new partition).
    pass_seconds
        Where this rank's time went (`kernels.backprop.PASSES`); on a GPU "device" and "copies", by
        its own clock, evaluations included; empty for the reference kernel.
    records
        What the metrics file has of each epoch of this session.
    """

    epochs: int
    steps: int
    loss: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    images_per_second: float
    seconds: float
    words_sent: int
    words_predicted: int
    messages_sent: int
    allreduce_words: int
    evaluation_words: int
    pattern_words: int
    drift: float
    pass_seconds: dict[str, float] = field(default_factory=dict, repr=False)
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)


class Progress:
    """Counters of a run; a checkpoint keeps them.

    Parameters
    ----------
    world
        All ranks.
    placed
        What is trained at first.
    partition
        Identifies the owners of the neurons: what words are compared with belongs to it.
    examples
        Identifies what is trained with.
    kept
        What `as_json` gave for the checkpoint that is resumed; None at the start.

    Attributes
    ----------
    epoch, done, step
        Epochs done; images done in this one; steps done in all.
    running
        Scores of this epoch's images.
    words_at_start
        Words of an image in a forward pass, with the pattern that the partition was made for.
    records
        What `end_epoch` has returned so far.
    """

    def __init__(
        self,
        world: Communicator,
        placed: PlacedNetwork,
        kept: dict[str, Any] | None,
        partition: str,
        examples: str,
    ) -> None:
        self._world = world
        words = placed.words_per_image()
        kept = kept or {}
        self.epoch, self.done = int(kept.get("epoch", 0)), int(kept.get("done", 0))
        self.step = int(kept.get("step", 0))
        self.running = Score(*kept.get("running", (0.0, 0, 0)))
        self.partition, self._examples = partition, examples
        same = kept.get("partition") == partition
        self.words_at_start = int(kept["words_at_start"]) if same else words
        self._last: dict[str, Any] = dict(kept.get("last", {}))
        self._seconds = float(kept.get("seconds", 0.0))
        self._before = {name: int(kept.get("counts", {}).get(name, 0)) for name in _COUNTS}
        self._own = dict.fromkeys(_COUNTS, 0)
        self._images = 0
        self._session = 0.0
        self._passes: dict[str, float] = {}
        self.records: list[dict[str, Any]] = []
        self._rate = 0.0
        self._clock = time.perf_counter()
        self._seen = self._traffic()

    def start(self) -> None:
        """Start the clock."""
        self._clock = time.perf_counter()
        self._seen = self._traffic()

    def _traffic(self) -> tuple[int, int, int]:
        traffic = self._world.traffic
        return (
            sum(traffic.words(verb) for verb in _VERBS),
            sum(traffic.messages(verb) for verb in _VERBS),
            traffic.words("gradient"),
        )

    def _count(self, words: str, *, messages: bool) -> None:
        """Add what this rank has sent since the last time."""
        now = self._traffic()
        self._own[words] += now[0] - self._seen[0]
        if messages:
            self._own["messages"] += now[1] - self._seen[1]
            self._own["allreduce"] += now[2] - self._seen[2]
        self._seen = now

    def add(self, score: Score, own: int, rate: float, placed: PlacedNetwork) -> None:
        """Note a step: the batch's score, this group's images, the learning rate."""
        now = time.perf_counter()
        self._session += now - self._clock
        self._seconds += now - self._clock
        self._clock = now
        self.step += 1
        self.done += score.images
        self._images += score.images
        self.running += score
        self._rate = rate
        self._count("words", messages=True)
        self._own["predicted"] += own * (placed.forward_words + placed.backward_words)

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Do something that is no step: neither its time nor its words count as one's.

        `what` is "evaluation", "pattern" or "saving".
        """
        try:
            yield
        finally:
            self._count(what if what in _COUNTS else "pattern", messages=False)
            self._clock = time.perf_counter()

    def retire(self, placed: PlacedNetwork) -> None:
        """Keep what a network that is given up knows of time."""
        for name, seconds in getattr(placed.engine, "seconds", {}).items():
            self._passes[name] = self._passes.get(name, 0.0) + seconds

    def end_epoch(self, tested: Score | None, drift: float, *, labelled: bool) -> dict[str, Any]:
        """Note the end of an epoch, and return what the metrics file keeps of it; collective."""
        self.epoch += 1
        images = max(1, self.running.images)
        self._last = {
            "loss": self.running.loss / images,
            "train_accuracy": self.running.correct / images if labelled else None,
            "test_loss": None if tested is None else tested.loss / max(1, tested.images),
            "test_accuracy": (
                None if tested is None or not labelled else tested.correct / max(1, tested.images)
            ),
            "drift": drift,
        }
        self.running = Score()
        self.done = 0
        counts = self._totals()
        record = {
            "epoch": self.epoch,
            "step": self.step,
            **self._last,
            "lr": self._rate,
            "seconds": self._seconds,
            "images_per_second": self._speed,
            "words_sent": counts["words"],
            "words_predicted": counts["predicted"],
        }
        self.records.append(record)
        return record

    @property
    def _speed(self) -> float:
        return self._images / self._session if self._session else 0.0

    def moment(self, epochs: int, steps: int, images: int, *, labelled: bool) -> Moment:
        """Return what a progress line tells."""
        seen = max(1, self.running.images)
        speed = self._speed
        left = (epochs - self.epoch) * images - self.done
        return Moment(
            epoch=self.epoch,
            epochs=epochs,
            step=self.step,
            steps=steps,
            loss=self.running.loss / seen,
            accuracy=self.running.correct / seen if labelled else None,
            images_per_second=speed,
            seconds_left=left / speed if speed else 0.0,
            rate=self._rate,
        )

    def _totals(self) -> dict[str, int]:
        """Counts of all ranks, from the start of the training; collective."""
        own = np.array([self._own[name] for name in _COUNTS], np.int64)
        self._world.allreduce(own)
        return {
            name: self._before[name] + int(count) for name, count in zip(_COUNTS, own, strict=True)
        }

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; collective."""
        return {
            "epoch": self.epoch,
            "done": self.done,
            "step": self.step,
            "running": [self.running.loss, self.running.correct, self.running.images],
            "words_at_start": self.words_at_start,
            "partition": self.partition,
            "examples": self._examples,
            "last": self._last,
            "seconds": self._seconds,
            "counts": self._totals(),
        }

    def result(self, placed: PlacedNetwork) -> TrainingResult:
        """Return what the training gave; collective."""
        self.retire(placed)
        counts = self._totals()
        last = self._last
        return TrainingResult(
            epochs=self.epoch,
            steps=self.step,
            loss=float(last.get("loss", float("nan"))),
            train_accuracy=last.get("train_accuracy"),
            test_loss=last.get("test_loss"),
            test_accuracy=last.get("test_accuracy"),
            images_per_second=self._speed,
            seconds=self._seconds,
            words_sent=counts["words"],
            words_predicted=counts["predicted"],
            messages_sent=counts["messages"],
            allreduce_words=counts["allreduce"],
            evaluation_words=counts["evaluation"],
            pattern_words=counts["pattern"],
            drift=float(last.get("drift", 1.0)),
            pass_seconds=dict(self._passes),
            records=list(self.records),
        )
