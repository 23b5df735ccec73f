"""Strong and weak scaling: contenders over numbers of ranks, who wins, and why that changes.

*Strong*: the same images on more ranks. *Weak*: images grow with the ranks, so that the time of
perfect scaling is constant.

Must not know: which networks and platforms are of interest, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sparsednn.costmodel.planning.report import seconds_text
from sparsednn.costmodel.planning.rows import (
    Candidate,
    Configuration,
    Model,
    memory_limit,
    predicted,
)

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = [
    "EQUAL",
    "Change",
    "Contender",
    "ScalingRow",
    "changes",
    "divided_by",
    "scaling_rows",
    "sparse_contenders",
    "winners_text",
]

#: Whether a configuration is one of a contender's.
Contender = Callable[[Configuration], bool]

EQUAL: Final = 1.02
"""Up to so many times the least time counts as equal to it."""

#: Shares below this are not worth a word.
_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class ScalingRow:
    """A number of ranks: the quickest configuration of each contender that fits the memory.

    Attributes
    ----------
    ranks, images
        Images of the run or step, of all ranks together.
    entries
        By contender; those that have nothing that fits are missing.
    """

    ranks: int
    images: int
    entries: Mapping[str, Candidate]

    @property
    def winner(self) -> str:
        """The first contender that is `EQUAL` to the quickest: the plainest comes first."""
        least = min(one.prediction.seconds for one in self.entries.values())
        return next(
            name for name, one in self.entries.items() if one.prediction.seconds <= EQUAL * least
        )

    def seconds(self, contender: str) -> float | None:
        """Seconds of a contender, None if it does not fit."""
        one = self.entries.get(contender)
        return None if one is None else one.prediction.seconds

    def as_json(self) -> dict[str, Any]:
        """Return numbers, texts, lists and dictionaries."""
        return {
            "ranks": self.ranks,
            "images": self.images,
            "contenders": {
                name: {"configuration": str(one.configuration), **one.prediction.as_json()}
                for name, one in self.entries.items()
            },
        }


def divided_by(method: str, *, groups: bool) -> Contender:
    """Return the contender of a method of partitions.

    Parameters
    ----------
    method
        See `planning.partitions.METHODS`.
    groups
        Grids of several groups and several parts; otherwise all ranks share the neurons.
    """

    def belongs(one: Configuration) -> bool:
        if one.ranks == 1:
            return True
        return one.strategy == method and one.grid.startswith("1x") != groups

    return belongs


def sparse_contenders(methods: Sequence[str], mixed: str) -> dict[str, Contender]:
    """Return contenders for sparse networks, by name; no configuration belongs to two of them.

    ``data`` (every rank has the network), each method with all neurons divided among all ranks, and
    ``mixed``: several groups × several parts, which the method `mixed` has made.
    """
    found: dict[str, Contender] = {"data": lambda one: one.strategy in ("data", "alone")}
    found |= {method: divided_by(method, groups=False) for method in methods}
    return found | {"mixed": divided_by(mixed, groups=True)}


def scaling_rows(
    model: Model,
    platform: Platform,
    ranks: Sequence[int],
    images: Callable[[int], int],
    contenders: Mapping[str, Contender],
) -> Iterator[ScalingRow]:
    """Predict the contenders for each number of ranks.

    Parameters
    ----------
    model, platform, ranks
        As for `planning.rows.plan_ranks`.
    images
        Of all ranks together, by the number of ranks: constant, or growing.
    contenders
        By name, the plainest first: order decides among equals.
    """
    for number in ranks:
        batch = images(number)
        limit = memory_limit(platform, number, None)
        wanted = [
            one
            for one in model.configurations(platform, number, batch, limit)
            if any(belongs(one) for belongs in contenders.values())
        ]
        every = predicted(model, platform, wanted, batch)
        fits = [one for one in every if one.prediction.memory_bytes <= limit]
        entries = {}
        for name, belongs in contenders.items():
            first = next((one for one in fits if belongs(one.configuration)), None)
            if first is not None:
                entries[name] = first
        yield ScalingRow(number, batch, entries)


@dataclass(frozen=True, slots=True)
class Change:
    """At a number of ranks another contender wins than before.

    Attributes
    ----------
    old, new
        Contenders.
    row
        The first at which the new one is clearly quicker, or the old one does not fit.
    """

    old: str
    new: str
    row: ScalingRow

    def __str__(self) -> str:
        """Return where, what both take there, and what the loser's time is for."""
        won = self.row.entries[self.new]
        what = f"from {self.row.ranks:,} ranks on {named(self.new, won)}"
        lost = self.row.entries.get(self.old)
        if lost is None:
            return f"{what}: {self.old} has no work for all ranks, or does not fit"
        return (
            f"{what}: {seconds_text(won.prediction.seconds)} against "
            f"{seconds_text(lost.prediction.seconds)} of {self.old}, of which "
            f"{charged_text(lost)}; its own: {charged_text(won)}"
        )


def named(contender: str, one: Candidate) -> str:
    """A contender, and its configuration where that says more."""
    text = str(one.configuration)
    return contender if text.startswith(contender) else f"{contender} ({text})"


def charged_text(one: Candidate) -> str:
    """What a time is spent on, in descending order, without what is hardly anything."""
    prediction = one.prediction
    total = sum(prediction.charged.values()) or 1.0
    shares = sorted(prediction.charged.items(), key=lambda each: -each[1])
    return ", ".join(
        f"{seconds / total:.0%} {name}" for name, seconds in shares if seconds >= _SHARE * total
    )


def changes(rows: Sequence[ScalingRow]) -> list[Change]:
    """Return where the winner changes.

    One rank is left out, as all contenders are the same there. Who is `EQUAL` to the quickest goes
    on as the winner.

    Parameters
    ----------
    rows
        In ascending order of ranks.
    """
    found: list[Change] = []
    current = ""
    for row in _several(rows):
        seconds = row.seconds(current)
        least = min(one.prediction.seconds for one in row.entries.values())
        if current and (seconds is None or seconds > EQUAL * least):
            found.append(Change(current, row.winner, row))
        if not current or (found and found[-1].row is row):
            current = row.winner
    return found


def winners_text(rows: Sequence[ScalingRow]) -> list[str]:
    """Who wins first, and a line for each change."""
    several = _several(rows)
    if not several:
        return []
    found, first = changes(rows), several[0]
    start = f"{first.winner} is the quickest"
    if not found:
        return [f"{start} from {first.ranks:,} to {several[-1].ranks:,} ranks"]
    last = max(row.ranks for row in several if row.ranks < found[0].row.ranks)
    where = f"on {last:,}" if last == first.ranks else f"from {first.ranks:,} to {last:,}"
    return [f"{start} {where} ranks", *map(str, found)]


def _several(rows: Sequence[ScalingRow]) -> list[ScalingRow]:
    return [row for row in rows if row.ranks > 1 and row.entries]
