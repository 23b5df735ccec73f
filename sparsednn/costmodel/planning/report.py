"""Plans, sweeps and simulations as a person reads them: lines of tables.

Knows rows; neither files nor terminals.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from sparsednn.amounts import bytes_text
from sparsednn.costmodel.planning.rows import PlanRow
from sparsednn.costmodel.planning.sweep import AXES, SweepRow

if TYPE_CHECKING:
    from sparsednn.costmodel.planning.simulated import SimulatedRow

__all__ = [
    "aligned",
    "digits",
    "markdown",
    "plan_table",
    "seconds_text",
    "short_count",
    "simulated_table",
    "sweep_table",
]


def seconds_text(seconds: float) -> str:
    """A time with three digits, in the unit that suits it.

    >>> seconds_text(0.00123), seconds_text(12.345), seconds_text(2.5e-7)
    ('1.23 ms', '12.3 s', '0.25 µs')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            return f"{digits(seconds / size)} {unit}"
    raise AssertionError("µs takes all")


def digits(value: float) -> str:
    """Three digits, without an exponent."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def short_count(count: float) -> str:
    """A number of words or messages with three digits.

    >>> short_count(999), short_count(12345), short_count(3.2e9)
    ('999', '12.3 k', '3.2 G')
    """
    for unit in ("", " k", " M", " G", " T"):
        if count < 999.5 or unit == " T":
            break
        count /= 1000
    return f"{count:,.0f}" if not unit else f"{digits(count)}{unit}"


def aligned(rows: Iterable[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Columns with two blanks between them: those of `left` to the left, numbers to the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "| " + " | ".join("---" for _ in rows[0]) + " |")
    return lines


def plan_rows(rows: Sequence[PlanRow]) -> list[list[str]]:
    """Cells of a plan's table, the head first."""
    head = ["ranks", "nodes", "configuration", "seconds", "speed-up", "efficiency", "words",
            "memory a rank", "bound"]  # fmt: skip
    return [head, *([f"{row.ranks:,}", f"{row.nodes:,}", *_best(row)] for row in rows)]


def plan_table(rows: Sequence[PlanRow]) -> list[str]:
    """Lines of a plan's table."""
    return aligned(plan_rows(rows), left=(2, 8))


def _best(row: PlanRow) -> list[str]:
    best = row.best
    if best is None:
        least = row.least
        return ["does not fit", "", "", "", "",
                f"≥ {bytes_text(least.prediction.memory_bytes, up=True)}", ""]  # fmt: skip
    found = best.prediction
    return [
        str(best.configuration),
        seconds_text(found.seconds),
        "" if row.speedup is None else digits(row.speedup),
        "" if row.efficiency is None else f"{row.efficiency:.1%}",
        short_count(found.words),
        bytes_text(found.memory_bytes),
        found.bound,
    ]


def sweep_table(rows: Sequence[SweepRow], axis: str) -> list[str]:
    """Lines of a sweep's table: the best at each value, and the seconds of every strategy."""
    strategies = list(dict.fromkeys(name for one in rows for name in one.row.by_strategy()))
    head = [f"{axis} ({AXES[axis]})", "best", "seconds", "bound", *strategies]
    cells = [head]
    for one in rows:
        best, by = one.row.best, one.row.by_strategy()
        cells.append(
            [
                f"{one.value:g}" if one.value < 1e6 else f"{one.value:,.0f}",
                "does not fit" if best is None else str(best.configuration),
                "" if best is None else seconds_text(best.prediction.seconds),
                "" if best is None else best.prediction.bound,
                *(
                    seconds_text(by[name].prediction.seconds) if name in by else "–"
                    for name in strategies
                ),
            ]
        )
    return aligned(cells, left=(1, 3))


def simulated_table_rows(rows: Sequence[SimulatedRow]) -> list[list[str]]:
    """Cells of a simulation's table, the head first."""
    head = ["ranks", "nodes", "partition", "simulated", "formula", "critical path", "speed-up",
            "efficiency", "waiting", "words", "messages", "imbalance"]  # fmt: skip
    return [
        head,
        *(
            [
                f"{row.ranks:,}", f"{row.nodes:,}", row.method, seconds_text(row.seconds),
                seconds_text(row.formula_seconds), seconds_text(row.path_seconds),
                digits(row.speedup), f"{row.efficiency:.1%}", f"{row.waiting:.0%}",
                short_count(row.words), short_count(row.messages), f"{row.imbalance:.2f}",
            ]
            for row in rows
        ),
    ]  # fmt: skip


def simulated_table(rows: Sequence[SimulatedRow]) -> list[str]:
    """Lines of a simulation's table."""
    return aligned(simulated_table_rows(rows), left=(2,))
