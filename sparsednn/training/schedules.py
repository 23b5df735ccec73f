"""Learning-rate schedules: what the base rate is multiplied with, step after step.

A schedule is a function of the number of steps done, with no state: a resumed run goes on with the
same rates. It knows epochs and steps, nothing of optimizers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from sparsednn.errors import UsageError

__all__ = ["SCHEDULES", "Schedule"]

#: The written forms that `Schedule.parse` knows, the default first.
SCHEDULES: Final = ("constant", "step:EPOCHS,FACTOR", "cosine")

_WARM_UP: Final = "+warm-up:"


@dataclass(frozen=True, slots=True)
class Schedule:
    """A learning-rate schedule, written ``constant``, ``step:30,0.1`` or ``cosine``.

    Parameters
    ----------
    kind
        ``constant``; ``step``: times `factor` (above 0, at most 1) after every `epochs` epochs,
        counted from the start of the training; or ``cosine``: half a cosine from the base rate to
        0, over the steps that follow the warm-up (Loshchilov and Hutter, SGDR, ICLR 2017,
        equation 5, one period).
    epochs, factor
        Of ``step``; None for the others.
    warm_up
        Epochs, 0 or more, not necessarily whole: over their n steps (rounded) the rate grows from
        1/n of what it would be to all of it (Goyal et al., Accurate, large minibatch SGD, 2017).

    Raises
    ------
    UsageError
        If the kind is unknown, a number is out of range, or does not belong to the kind.
    """

    kind: str = "constant"
    epochs: int | None = None
    factor: float | None = None
    warm_up: float = 0.0

    def __post_init__(self) -> None:
        """Reject an unknown kind, and numbers that are out of range or do not belong to it."""
        if self.kind not in ("constant", "step", "cosine"):
            raise UsageError(
                f"--schedule: unknown schedule '{self.kind}': known are {', '.join(SCHEDULES)}"
            )
        if self.kind == "step":
            if self.epochs is None or self.epochs < 1:
                raise UsageError(
                    f"--schedule step:EPOCHS,FACTOR: EPOCHS must be at least 1, found {self.epochs}"
                )
            if self.factor is None or not 0 < self.factor <= 1:
                raise UsageError(
                    "--schedule step:EPOCHS,FACTOR: FACTOR must be above 0 and at most 1, "
                    f"found {self.factor}"
                )
        elif self.epochs is not None or self.factor is not None:
            raise UsageError(f"--schedule {self.kind} takes neither EPOCHS nor FACTOR")
        if not 0 <= self.warm_up < math.inf:
            raise UsageError(f"--warm-up must be 0 epochs or more, found {self.warm_up}")

    @classmethod
    def parse(cls, text: str, *, warm_up: float | None = None) -> Schedule:
        """Read the written form; the warm-up is given apart, or in the text as `str` writes it.

        >>> Schedule.parse("step:30,0.1").factor
        0.1
        >>> Schedule.parse("cosine", warm_up=2) == Schedule.parse("cosine+warm-up:2")
        True
        """
        if warm_up is not None:
            if _WARM_UP in text:
                raise UsageError(f"--schedule '{text}': the warm-up is given twice, see --warm-up")
            return replace(cls.parse(text), warm_up=float(warm_up))
        rest, _, epochs_of_warm_up = text.partition(_WARM_UP)
        kind, colon, numbers = rest.partition(":")
        try:
            warm_up = float(epochs_of_warm_up) if _WARM_UP in text else 0.0
            if kind != "step":
                if colon:
                    raise UsageError(f"--schedule '{text}': {kind} takes no numbers")
                return cls(kind, warm_up=warm_up)
            epochs, factor = numbers.split(",")
            return cls(kind, int(epochs), float(factor), warm_up)
        except ValueError:
            raise UsageError(
                f"--schedule '{text}': not understood, known are {', '.join(SCHEDULES)}"
            ) from None

    def __str__(self) -> str:
        """Return the written form, which `parse` reads back exactly."""
        text = self.kind if self.kind != "step" else f"step:{self.epochs},{self.factor!r}"
        return f"{text}{_WARM_UP}{self.warm_up!r}" if self.warm_up else text

    def rate(self, base: float, step: int, steps_per_epoch: int, steps_total: int) -> float:
        """Learning rate of the next step.

        Parameters
        ----------
        base
            The rate that everything is relative to.
        step
            Steps done before this one, 0 for the first.
        steps_per_epoch, steps_total
            At least 1. A warm-up may be longer than the training, which then ends below `base`.

        Notes
        -----
        The cosine reaches 0 after the last step, so no step is done in vain; it stays there if
        training goes on.
        """
        warm_up = round(self.warm_up * steps_per_epoch)
        ramp = (step + 1) / warm_up if step < warm_up else 1.0
        return base * ramp * self._decay(step, steps_per_epoch, warm_up, steps_total)

    def _decay(self, step: int, steps_per_epoch: int, warm_up: int, steps_total: int) -> float:
        if self.epochs is not None and self.factor is not None:
            return float(self.factor ** (step // steps_per_epoch // self.epochs))
        if self.kind == "cosine" and step >= warm_up:
            done = (step - warm_up) / max(1, steps_total - warm_up)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return 1.0
