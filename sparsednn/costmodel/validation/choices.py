"""`Choice`: one task, all the ways to do it that are tried here, and which the models would take.

A planner is as good as its first choice: the way with the least predicted time. Its *ratio* is the
measured time of that way over the measured time of the best, 1 if they are the same.

Must not know: how anything is measured or predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sparsednn.costmodel.validation.cases import Case

__all__ = ["GOOD", "Choice", "judge_choice", "options_of", "validation_choices", "within"]

#: Up to this ratio a choice counts as good: measured times differ so much from run to run.
GOOD: Final = 1.10


@dataclass(frozen=True, slots=True)
class Choice:
    """A task.

    Attributes
    ----------
    name
        What is to be done.
    options
        The ways to do it; cases that differ in `Case.how` only.
    """

    name: str
    options: tuple[Case, ...]


def _task(options: Sequence[Case]) -> Choice:
    """Name a task by what its options have in common."""
    return Choice(options[0].name.rpartition(": ")[0], tuple(options))


def _sparse(kind: str, network: str, batch: int, methods: str, optimizer: str = "sgd") -> Choice:
    """On two cores: one rank on one thread or two, two ranks that share images or neurons."""

    def case(**how: Any) -> Case:
        return Case(kind=kind, network=network, batch=batch, optimizer=optimizer, **how)

    ways = [case(), case(threads=2)]
    if batch > 1:
        ways.append(case(ranks=2))
    return _task([*ways, *(case(ranks=2, parts=2, method=method) for method in methods.split())])


def _cnn(network: str, batch: int, **how: Any) -> Choice:
    """On two cores: one rank on one thread or two, two ranks by every algorithm."""

    def case(**more: Any) -> Case:
        return Case(
            kind="cnn", network=network, batch=batch, optimizer="momentum", **how, **more
        )  # fmt: skip

    algorithms = ("data", "spatial", "filter", "channel", "2d", "3d")
    return _task([case(), case(threads=2), *(case(ranks=2, algorithm=one) for one in algorithms)])


def validation_choices(*, quick: bool = False) -> list[Choice]:
    """Return all tasks; or those of the quick run."""
    found = [
        _sparse("inference", "graph-challenge:1024-24", 5000, "random cyclic joint"),
        _sparse("inference", "mlp:1024x9@0.05", 500, "random cyclic joint"),
        _sparse("inference", "mlp:4096x7@0.1", 1, "random cyclic block"),
        _sparse("inference", "mlp:2048x9@0.1", 64, "random cyclic block"),
        _sparse("inference", "radixnet:4096x7", 500, "random cyclic joint"),
        _sparse("training", "mlp:2048x4-10@0.1", 64, "random joint", "momentum"),
        _sparse("training", "radixnet:1024x13", 256, "random joint"),
        _sparse("training", "mlp:2048x7@0.05", 16, "random cyclic", "adam"),
        _cnn("lenet5", 128),
        _cnn("resnet20", 16),
        _cnn("smallcnn", 128),
        _cnn("alexnet", 16, image=(3, 32, 32)),
    ]
    return [found[1], found[8]] if quick else found


def options_of(choices: Sequence[Choice]) -> list[Case]:
    """Return the options of all, each once."""
    return list({case.name: case for choice in choices for case in choice.options}.values())


def judge_choice(
    choice: Choice,
    measured: Callable[[Case], float | None],
    predicted: Mapping[str, float],
) -> dict[str, Any] | None:
    """Compare the models' choice with the best.

    Parameters
    ----------
    choice
        The task.
    measured
        Seconds of an option, None if it was not measured.
    predicted
        Name of an option → seconds.

    Returns
    -------
    ``name``, ``options`` (each with ``name``, ``measured_seconds`` and ``predicted_seconds``),
    ``chosen`` and ``best`` (names), ``ratio``; None if fewer than two options were measured.
    """
    rows: list[dict[str, Any]] = []
    for case in choice.options:
        seconds = measured(case)
        if seconds is not None and case.name in predicted:
            rows.append(
                {
                    "name": case.how,
                    "measured_seconds": seconds,
                    "predicted_seconds": predicted[case.name],
                }
            )
    if len(rows) < 2:
        return None
    chosen = min(rows, key=lambda row: row["predicted_seconds"])
    best = min(rows, key=lambda row: row["measured_seconds"])
    return {
        "name": choice.name,
        "options": rows,
        "chosen": chosen["name"],
        "best": best["name"],
        "ratio": chosen["measured_seconds"] / best["measured_seconds"],
    }


def within(judged: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of choices with a ratio up to `GOOD`; 0 of none."""
    return sum(one["ratio"] <= GOOD for one in judged) / len(judged) if judged else 0.0
