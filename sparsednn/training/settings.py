"""`Settings`: everything that determines the numbers of a training, in one object.

Two runs with the same settings, network, examples and ranks compute the same; so it is what a
checkpoint keeps, and what resuming compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sparsednn.errors import UsageError
from sparsednn.training.losses import LOSSES
from sparsednn.training.optimizers import SGD, Optimizer, check_rate
from sparsednn.training.schedules import Schedule
from sparsednn.training.sparsity import DynamicSparsity

__all__ = ["INITIALS", "Settings"]

#: How weights begin: those of the network, drawn anew, or (auto) kept for files, new for names.
INITIALS = ("auto", "keep", "new")


@dataclass(frozen=True)
class Settings:
    """Settings of a training.

    Parameters
    ----------
    epochs
        How often all images are seen.
    batch_size
        Images of a step, of all data groups together; the last step of an epoch may have fewer. 1
        is the single-sample SGD of the paper.
    rate
        The learning rate, before the schedule.
    loss
        One of `losses.LOSSES`.
    optimizer, schedule, sparsity
        See `optimizers`, `schedules`, `sparsity`; no `sparsity`: the pattern is fixed.
    clip
        The gradient is shortened to this Euclidean norm, over all parameters, where it is longer.
    initial
        One of `INITIALS`.
    seed
        Of new weights, of the order of the images, and of what dynamic sparsity draws.
    shuffle
        Whether the images come in another order in each epoch.
    input_gradient
        Whether the backward pass goes through the first layer of ranks that share the neurons. The
        volume of a step is then twice the forward pass's, as in the paper; without it, the words of
        the first layer are sent once only. The numbers are the same.

    Raises
    ------
    UsageError
        If a value is out of range.
    """

    epochs: int
    batch_size: int = 64
    rate: float = 0.1
    loss: str = "cross-entropy"
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=lambda: Schedule.parse("constant"))
    clip: float | None = None
    sparsity: DynamicSparsity | None = None
    initial: str = "auto"
    seed: int = 0
    shuffle: bool = True
    input_gradient: bool = True

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in (("--epochs", self.epochs), ("--batch-size", self.batch_size)):
            if value < 1:
                raise UsageError(f"{name} must be at least 1, found {value}")
        if self.seed < 0:
            raise UsageError(f"--seed must not be negative, found {self.seed}")
        if self.loss not in LOSSES:
            raise UsageError(f"--loss is one of {', '.join(LOSSES)}: '{self.loss}'")
        if self.initial not in INITIALS:
            raise UsageError(f"--init is one of {', '.join(INITIALS)}: '{self.initial}'")
        if self.clip is not None and not 0 < self.clip < float("inf"):
            raise UsageError(f"--clip must be positive and finite, found {self.clip}")
        check_rate(self.rate)

    def as_json(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "lr": self.rate,
            "loss": self.loss,
            "optimizer": self.optimizer.as_json(),
            "schedule": str(self.schedule),
            "clip": self.clip,
            "sparsity": None if self.sparsity is None else str(self.sparsity),
            "init": self.initial,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "input_gradient": self.input_gradient,
        }
