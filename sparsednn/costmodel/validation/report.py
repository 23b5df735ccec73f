"""A validation for people, its file, and what has changed since an older one.

Must not know: how anything was measured or predicted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Final

from sparsednn.atomic import atomic_file
from sparsednn.costmodel.validation.choices import GOOD
from sparsednn.costmodel.validation.run import FORMAT, VERSION
from sparsednn.errors import FormatError

__all__ = ["changes", "changes_table", "read_result", "result_table", "write_result"]

#: What counts as much: a time by so much of itself, an error by so much (of 1).
_SLOWER: Final = 0.15
_WORSE: Final = 0.10
_ERRORS: Final = ("median_error", "max_error")


def write_result(result: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a result as JSON, whole or not at all.

    Raises
    ------
    FormatError
        If the file cannot be written.
    """
    with atomic_file(path) as file:
        file.write((json.dumps(result, indent=1) + "\n").encode())


def read_result(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_result` wrote.

    Raises
    ------
    FormatError
        If there is no such file, or it is something else.
    """
    shown = Path(path)
    try:
        found = json.loads(shown.read_bytes())
    except OSError as error:
        raise FormatError(f"{shown}: cannot read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{shown}: not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise FormatError(f"{shown}: not what 'sparsednn validate --out' writes")
    if found.get("version") != VERSION:
        raise FormatError(f"{shown}: version {VERSION} is needed, found {found.get('version')!r}")
    try:
        for row in found["cases"]:
            for name in ("measured_seconds", "predicted_seconds", "error"):
                if not isinstance(row[name], (int, float)) or not str(row["name"]):
                    raise TypeError(f"{name}: {row[name]!r}")
    except (KeyError, TypeError) as error:
        raise FormatError(f"{shown}: cases: {type(error).__name__} {error}") from error
    return found


def result_table(result: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell a result: cases, errors by kind, choices, summary."""
    rows = [("case", "measured", "predicted", "error", "spread", "held out")]
    for row in result["cases"]:
        rows.append(
            (
                row["name"],
                _time(row["measured_seconds"]),
                _time(row["predicted_seconds"]),
                f"{row['error']:+.1%}",
                f"{row['spread']:.2f}",
                "yes" if row["held_out"] else "no",
            )
        )
    lines = [*_aligned(rows, "lrrrrr"), ""]
    kinds = [("held out", "cases", "median error", "largest error")]
    for name, found in result["by_kind"].items():
        kinds.append((name, str(found["held_out"]), *_errors(found)))
    kinds.append(("all", str(result["held_out"]), *_errors(result)))
    lines += _aligned(kinds, "lrrr")
    if result["worst"] is not None:
        lines.append(f"largest error: {result['worst']}")
    if result["median_spread"] is not None:
        lines.append(f"spread (slowest round over quickest), median: {result['median_spread']:.2f}")
    if result["choices"]:
        lines += ["", *_choices(result)]
    for what in ("failed", "left_out"):
        for name, why in result[what].items():
            lines.append(f"{what.replace('_', ' ')}: {name}: {why}")
    return lines


def _choices(result: Mapping[str, Any]) -> list[str]:
    rows = [("task", "ways", "the models' choice", "best measured", "ratio")]
    for one in result["choices"]:
        rows.append(
            (
                one["name"],
                str(len(one["options"])),
                one["chosen"],
                one["best"],
                f"{one['ratio']:.2f}",
            )
        )
    good = sum(one["ratio"] <= GOOD for one in result["choices"])
    return [
        *_aligned(rows, "lrllr"),
        f"{good} of {len(result['choices'])} choices take at most {GOOD:.2f} times the best "
        f"({result['choices_within']:.0%})",
    ]


def _errors(found: Mapping[str, Any]) -> tuple[str, str]:
    shown = ["-" if found[key] is None else f"{found[key]:.1%}" for key in _ERRORS]
    return shown[0], shown[1]


def changes(new: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """Compare two results, case by case.

    Returns
    -------
    ``date`` of the old one; ``common`` (how many cases both have); ``median_measured`` and
    ``median_predicted`` (median over them of new over old seconds); ``median_error`` and
    ``max_error``, each ``[old, new]``; ``changed``: cases whose time changed by more than 15 % or
    whose ``|error|`` did by more than 10 points, each with ``name``, ``measured`` and ``predicted``
    (new over old) and ``error`` (``[old, new]``); ``added`` and ``removed``: names.
    """
    before = {row["name"]: row for row in old["cases"]}
    after = {row["name"]: row for row in new["cases"]}
    rows = [
        {
            "name": name,
            "measured": row["measured_seconds"] / before[name]["measured_seconds"],
            "predicted": row["predicted_seconds"] / before[name]["predicted_seconds"],
            "error": [before[name]["error"], row["error"]],
        }
        for name, row in after.items()
        if name in before
    ]
    return {
        "date": old.get("date"),
        "common": len(rows),
        "median_measured": median(row["measured"] for row in rows) if rows else None,
        "median_predicted": median(row["predicted"] for row in rows) if rows else None,
        **{key: [old.get(key), new.get(key)] for key in _ERRORS},
        "changed": [row for row in rows if _is_changed(row)],
        "added": [name for name in after if name not in before],
        "removed": [name for name in before if name not in after],
    }


def _is_changed(row: Mapping[str, Any]) -> bool:
    ratio: float = row["measured"]
    before, after = map(abs, row["error"])
    return bool(max(ratio, 1 / ratio) > 1 + _SLOWER or abs(after - before) > _WORSE)


def changes_table(found: Mapping[str, Any]) -> list[str]:
    """Return the lines that tell what `changes` found."""
    lines = [f"against {found['date']}: {found['common']} cases are in both"]
    if found["common"]:
        lines.append(
            f"median of new over old: measured {found['median_measured']:.2f}, predicted "
            f"{found['median_predicted']:.2f}"
        )
    for key, what in zip(_ERRORS, ("median error", "largest error"), strict=True):
        before, after = ("-" if one is None else f"{one:.1%}" for one in found[key])
        lines.append(f"{what}: {before} before, {after} now")
    if found["changed"]:
        rows = [("changed", "measured", "predicted", "error before", "now")]
        for row in found["changed"]:
            before, after = row["error"]
            rows.append(
                (
                    row["name"],
                    f"×{row['measured']:.2f}",
                    f"×{row['predicted']:.2f}",
                    f"{before:+.1%}",
                    f"{after:+.1%}",
                )
            )
        lines += _aligned(rows, "lrrrr")
    for what in ("added", "removed"):
        lines += [f"{what}: {name}" for name in found[what]]
    return lines


def _time(seconds: float) -> str:
    """Milliseconds, three digits.

    >>> _time(0.0123456)
    '12.3 ms'
    """
    milli = seconds * 1e3
    return f"{milli:.{2 if milli < 10 else 1 if milli < 100 else 0}f} ms"


def _aligned(rows: Sequence[tuple[str, ...]], sides: str) -> list[str]:
    """Columns as wide as they must be; `sides` has a letter for each, l or r.

    >>> _aligned([("case", "time"), ("a", "1 s")], "lr")
    ['case  time', 'a      1 s']
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(sides))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, sides, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
