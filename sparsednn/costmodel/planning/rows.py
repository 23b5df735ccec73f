"""Configurations of a model on ranks, and which is best: the quickest that fits the memory.

Must not know: what kind of model it is, how anything is predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sparsednn.amounts import bytes_text
from sparsednn.costmodel.platform import Platform
from sparsednn.costmodel.prediction import Prediction
from sparsednn.errors import UsageError

__all__ = [
    "Candidate",
    "Configuration",
    "Model",
    "PlanRow",
    "compared",
    "memory_limit",
    "plan_ranks",
    "plan_row",
    "predicted",
]

Report = Callable[[str, float], None]


@dataclass(frozen=True, slots=True)
class Configuration:
    """How a model is put on ranks.

    Attributes
    ----------
    ranks
        How many.
    strategy
        Of a sparse network the method that made its partition (``data`` where no layer is divided,
        ``alone`` on one rank); of a dense one the algorithm.
    grid
        Of a sparse network groups × parts; of a dense one what its strategy says, perhaps nothing.
    threads
        Of each rank.
    """

    ranks: int
    strategy: str
    grid: str
    threads: int = 1

    def __str__(self) -> str:
        """Return all but the ranks, for tables."""
        words = [self.strategy, self.grid]
        if self.threads > 1:
            words.append(f"{self.threads} threads")
        return " ".join(word for word in words if word)


class Model(Protocol):
    """A network that can be put on ranks in several ways."""

    @property
    def name(self) -> str:
        """Of the network."""

    @property
    def notes(self) -> Sequence[str]:
        """What was left out, or taken for granted: a line each."""

    @property
    def training(self) -> bool:
        """Whether a step of training is predicted, or a run of inference."""

    def configurations(
        self, platform: Platform, ranks: int, images: int, limit: float
    ) -> Sequence[Configuration]:
        """Return all that are worth a prediction if a rank may use `limit` bytes."""

    def predict(
        self, platform: Platform, configuration: Configuration, images: int
    ) -> Prediction | None:
        """Return what a model says of one of these; None if it cannot be made."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration and its prediction."""

    configuration: Configuration
    prediction: Prediction

    @property
    def order(self) -> tuple[float, float, int]:
        """What comes first: quick; among equals little memory, then few threads."""
        prediction = self.prediction
        return prediction.seconds, prediction.memory_bytes, self.configuration.threads


@dataclass(frozen=True, slots=True)
class PlanRow:
    """The best configuration for a number of ranks.

    Attributes
    ----------
    ranks, nodes
        Nodes of the platform that the ranks fill, the last one perhaps in part.
    images
        Of a run, or of a step of training.
    limit
        Bytes that a rank may use.
    candidates
        All that were predicted, the quickest first, whether they fit or not.
    best
        The quickest that fits; None if none does.
    speedup
        Against the first row that fits; None where this one does not.
    efficiency
        The speed-up by how many times as many processors are busy (ranks × threads).
    """

    ranks: int
    nodes: int
    images: int
    limit: float
    candidates: tuple[Candidate, ...]
    best: Candidate | None
    speedup: float | None = None
    efficiency: float | None = None

    @property
    def least(self) -> Candidate:
        """The candidate that needs the least memory."""
        return min(self.candidates, key=lambda one: (one.prediction.memory_bytes, one.order))

    def by_strategy(self) -> dict[str, Candidate]:
        """The quickest that fits, for each strategy."""
        found: dict[str, Candidate] = {}
        for one in self.candidates:
            if one.prediction.memory_bytes <= self.limit:
                found.setdefault(one.configuration.strategy, one)
        return found

    def as_json(self) -> dict[str, Any]:
        """Return numbers, texts, lists and dictionaries."""
        best = self.best
        row: dict[str, Any] = {
            "ranks": self.ranks,
            "nodes": self.nodes,
            "images": self.images,
            "fits": best is not None,
            "memory_limit": self.limit,
            "least_memory_bytes": self.least.prediction.memory_bytes,
            "candidates": len(self.candidates),
            **dict.fromkeys(("strategy", "grid", "threads", "configuration")),
            "speedup": self.speedup,
            "efficiency": self.efficiency,
            **dict.fromkeys(("seconds", "words", "memory_bytes", "bound", "parts", "charged")),
        }
        if best is not None:
            one, found = best.configuration, best.prediction
            row |= {
                "strategy": one.strategy, "grid": one.grid, "threads": one.threads,
                "configuration": str(one), "seconds": found.seconds, "words": found.words,
                "memory_bytes": found.memory_bytes, "bound": found.bound,
                "parts": dict(found.parts), "charged": dict(found.charged),
            }  # fmt: skip
        row["by_strategy"] = {
            name: {"configuration": str(one.configuration), "seconds": one.prediction.seconds}
            for name, one in self.by_strategy().items()
        }
        return row


def memory_limit(platform: Platform, ranks: int, given: float | None) -> float:
    """Return bytes that a rank may use: what is asked for, else its share of the fullest node."""
    return platform.memory_per_rank(ranks) if given is None else given


def predicted(
    model: Model, platform: Platform, configurations: Sequence[Configuration], images: int
) -> list[Candidate]:
    """Return configurations with their predictions, as far as there are any; the quickest first."""
    found = []
    for one in configurations:
        prediction = model.predict(platform, one, images)
        if prediction is not None:
            found.append(Candidate(one, prediction))
    return sorted(found, key=lambda each: each.order)


def plan_ranks(
    model: Model,
    platform: Platform,
    ranks: Sequence[int],
    images: int,
    *,
    memory_per_rank: float | None = None,
    report: Report | None = None,
) -> list[PlanRow]:
    """Find the best configuration for each number of ranks.

    Parameters
    ----------
    model, platform
        What runs, and where.
    ranks
        Numbers of ranks, ascending.
    images
        Of a run, or of a step of training, of all ranks together.
    memory_per_rank
        Bytes that a rank may use; None: its share of the platform's memory.
    report
        Progress.

    Returns
    -------
    A row for each number, also for those at which nothing fits.

    Raises
    ------
    UsageError
        If there are more ranks than the platform has, or nothing fits at any number: then with the
        least memory that is needed.
    """
    for number in ranks:
        platform.check_ranks(number)
    rows: list[PlanRow] = []
    for done, number in enumerate(ranks):
        if report is not None:
            report(f"{number:,} ranks", done / len(ranks))
        rows.append(plan_row(model, platform, number, images, memory_per_rank=memory_per_rank))
    return compared(model, rows)


def plan_row(
    model: Model,
    platform: Platform,
    ranks: int,
    images: int,
    *,
    memory_per_rank: float | None = None,
) -> PlanRow:
    """Find the best configuration for one number of ranks; without speed-up.

    Raises
    ------
    UsageError
        If the platform has fewer ranks, or there are no images.
    """
    if images < 1:
        raise UsageError(f"--batch must be at least 1, found {images}")
    platform.check_ranks(ranks)
    limit = memory_limit(platform, ranks, memory_per_rank)
    offered = model.configurations(platform, ranks, images, limit)
    every = tuple(predicted(model, platform, offered, images))
    if not every:
        raise UsageError(f"{model.name}: there is no configuration for {ranks:,} ranks")
    best = next((one for one in every if one.prediction.memory_bytes <= limit), None)
    return PlanRow(ranks, platform.nodes_of(ranks), images, limit, every, best)


def compared(model: Model, rows: Sequence[PlanRow]) -> list[PlanRow]:
    """Return the rows with speed-up and efficiency against the first that fits.

    Raises
    ------
    UsageError
        If none does: with the least memory that is needed.
    """
    first = next((row.best for row in rows if row.best is not None), None)
    if first is None:
        raise _too_large(model, rows)
    found = []
    for row in rows:
        if row.best is not None:
            speedup = first.prediction.seconds / row.best.prediction.seconds
            efficiency = speedup * _processors(first) / _processors(row.best)
            row = replace(row, speedup=speedup, efficiency=efficiency)
        found.append(row)
    return found


def _processors(one: Candidate) -> int:
    return one.configuration.ranks * one.configuration.threads


def _too_large(model: Model, rows: Sequence[PlanRow]) -> UsageError:
    """What to say if nothing fits: how much it needs where it needs least."""
    row = min(rows, key=lambda one: one.least.prediction.memory_bytes)
    least = row.least
    numbers = ", ".join(f"{number:,}" for number in dict.fromkeys(one.ranks for one in rows))
    most = max(one.limit for one in rows)
    return UsageError(
        f"{model.name} does not fit {bytes_text(most)} a rank on {numbers} "
        f"rank{'s' * (len(rows) > 1 or row.ranks > 1)}: it needs at least "
        f"{bytes_text(least.prediction.memory_bytes, up=True)} a rank, on {row.ranks:,} "
        f"({least.configuration})"
    )
