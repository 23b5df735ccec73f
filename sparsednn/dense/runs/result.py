"""`CnnResult`: what a training of a dense network gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["CnnResult"]


@dataclass(frozen=True)
class CnnResult:
    """What a training gave; the same on all ranks but for times.

    Attributes
    ----------
    epochs, steps
        Done in all, those before resuming included; so for seconds and words.
    loss, train_accuracy
        Means over the images of the last epoch, each before the step that it was part of.
    test_loss, test_accuracy
        Of the test pictures behind the last epoch; None without.
    images_per_second
        Trained images over seconds of steps, in this session.
    seconds
        Of steps.
    words_sent, messages_sent
        Of all ranks in steps, as they were counted; sums of losses and norms are not in it.
    words_predicted
        What the formulas of `flow` say of the same steps.
    evaluation_words
        Sent in tests.
    phase_seconds
        Where this rank's time went in this session's steps, by `stepper.PHASES`.
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
    evaluation_words: int
    phase_seconds: dict[str, float] = field(default_factory=dict, repr=False)
    records: list[dict[str, Any]] = field(default_factory=list, repr=False)
