"""Where a training of a sparse network stands, its words, and what is told of it at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sparsednn.training.losses import Score
from sparsednn.training.placed import PlacedNetwork
from sparsednn.training.standing import Moment, Standing

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["Moment", "Progress", "TrainingResult"]

#: Verbs whose words and messages are a step's exchange.
_VERBS = ("exchange", "fold")
#: What is counted for the whole run, over all ranks, in a checkpoint.
_COUNTS = ("words", "predicted", "messages", "allreduce", "evaluation", "pattern")


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


class Progress(Standing):
    """Counters of a run of a sparse network; a checkpoint keeps them.

    Parameters
    ----------
    world
        All ranks.
    placed
        What is trained at first.
    kept
        What `as_json` gave for the checkpoint that is resumed; None at the start.
    partition
        Identifies the owners of the neurons: what words are compared with belongs to it.
    examples
        Identifies what is trained with.

    Attributes
    ----------
    words_at_start
        Words of an image in a forward pass, with the pattern that the partition was made for.
    """

    def __init__(
        self,
        world: Communicator,
        placed: PlacedNetwork,
        kept: dict[str, Any] | None,
        partition: str,
        examples: str,
    ) -> None:
        words = placed.words_per_image()
        super().__init__(world, _COUNTS, kept)
        self.partition, self._examples = partition, examples
        kept = kept or {}
        same = kept.get("partition") == partition
        self.words_at_start = int(kept["words_at_start"]) if same else words
        self._passes: dict[str, float] = {}
        self._seen = self._traffic()

    def start(self) -> None:
        """Start the clock."""
        self.restart_clock()
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
        self.own[words] += now[0] - self._seen[0]
        if messages:
            self.own["messages"] += now[1] - self._seen[1]
            self.own["allreduce"] += now[2] - self._seen[2]
        self._seen = now

    def add(self, score: Score, own: int, rate: float, placed: PlacedNetwork) -> None:
        """Note a step: the batch's score, this group's images, the learning rate."""
        self.note_step(score, rate)
        self._count("words", messages=True)
        self.own["predicted"] += own * (placed.forward_words + placed.backward_words)

    @contextmanager
    def aside(self, what: str) -> Iterator[None]:
        """Do something that is no step: neither its time nor its words count as one's.

        `what` is "evaluation", "pattern" or "saving".
        """
        try:
            yield
        finally:
            self._count(what if what in _COUNTS else "pattern", messages=False)
            self.restart_clock()

    def retire(self, placed: PlacedNetwork) -> None:
        """Keep what a network that is given up knows of time."""
        for name, seconds in getattr(placed.engine, "seconds", {}).items():
            self._passes[name] = self._passes.get(name, 0.0) + seconds

    def end_epoch(self, tested: Score | None, drift: float, *, labelled: bool) -> dict[str, Any]:
        """Note the end of an epoch, and return what the metrics file keeps of it; collective."""
        self.last = self.note_epoch(tested, labelled=labelled) | {"drift": drift}
        return self.record(self.last)

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps; collective."""
        return super().as_json() | {
            "words_at_start": self.words_at_start,
            "partition": self.partition,
            "examples": self._examples,
        }

    def result(self, placed: PlacedNetwork) -> TrainingResult:
        """Return what the training gave; collective."""
        self.retire(placed)
        counts = self.totals()
        last = self.last
        return TrainingResult(
            epochs=self.epoch,
            steps=self.step,
            loss=float(last.get("loss", float("nan"))),
            train_accuracy=last.get("train_accuracy"),
            test_loss=last.get("test_loss"),
            test_accuracy=last.get("test_accuracy"),
            images_per_second=self.speed,
            seconds=self.seconds,
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
