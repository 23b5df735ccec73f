"""Pictures of plans, sweeps and simulations: lines over ranks, or over an axis. Needs matplotlib.

Must not know: how anything was predicted.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sparsednn.costmodel.planning.rows import PlanRow
from sparsednn.costmodel.planning.sweep import AXES, WHOLE, SweepRow
from sparsednn.pictures import check_picture, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sparsednn.costmodel.planning.simulated import SimulatedRow

__all__ = ["Line", "Panel", "ideal", "plot_panels", "plot_plan", "plot_simulated", "plot_sweep"]

# Okabe & Ito's colours, which the colour-blind can tell apart too.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
_MARKS: Final = "os^Dvx+"
_GREY: Final = "#999999"

ALONE: Final = "alone"
"""The strategy of a single rank."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel: points, a label, and what of `Axes.plot` is special."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram; both scales are logarithmic unless `linear` says that the upward one is not."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    linear: bool = False


def plot_panels(
    panels: Sequence[Panel], path: str | os.PathLike[str], *, title: str = "", columns: int = 2
) -> None:
    """Draw diagrams beside each other; atomically.

    Parameters
    ----------
    panels
        At least one.
    path
        The file; its suffix, one of `pictures.SUFFIXES`, is the format.
    title
        Stands above all.
    columns
        Diagrams beside each other, at most.

    Raises
    ------
    UsageError, MissingDependencyError
        As `pictures.check_picture`.
    FormatError
        If the file cannot be written.
    """
    across = min(columns, len(panels))
    down = -(-len(panels) // across)
    check_picture(path)
    from matplotlib import rc_context

    # Letters as letters: as outlines they would be most of an .svg file.
    with (
        rc_context({"svg.fonttype": "none"}),
        picture(path, (4.6 * across, 3.9 * down + 0.3)) as figure,
    ):
        places = figure.subplots(down, across, squeeze=False).ravel()
        for axes, panel in zip(places, panels, strict=False):
            _draw(axes, panel)
        for axes in places[len(panels) :]:
            axes.set_axis_off()
        if title:
            figure.suptitle(title, fontsize=11)


def _draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    for at, line in enumerate(panel.lines):
        style = {
            "color": COLOURS[at % len(COLOURS)],
            "marker": _MARKS[at % len(_MARKS)],
            "markersize": 4,
            "linewidth": 1.4,
        } | line.style
        axes.plot(list(line.x), list(line.y), label=line.label, **style)
    axes.set_xscale("log", base=2)
    values = sorted({x for line in panel.lines for x in line.x})
    if len(values) <= 12:
        axes.set_xticks(values, [_number(value) for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.linear:
        axes.set_ylim(bottom=0)
    else:
        axes.set_yscale("log")
    axes.set_title(panel.title, fontsize=10)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, frameon=False)


def _number(value: float) -> str:
    return f"{value:g}" if value < 1e5 else f"{value / 1000:g}k"


def ideal(x: Sequence[float], first: float, *, falls: bool) -> Line:
    """What perfect scaling would be: time that falls with the ranks, or speed-up that grows."""
    y = [first * x[0] / one if falls else first * one / x[0] for one in x]
    return Line("ideal", x, y, {"color": _GREY, "linestyle": ":", "marker": ""})


def plot_plan(rows: Sequence[PlanRow], path: str | os.PathLike[str], *, title: str) -> None:
    """Draw the best time and each strategy's over the ranks, and the speed-up.

    Parameters
    ----------
    rows
        Of a plan; one of them fits at least.
    path, title
        As for `plot_panels`; errors, too.
    """
    fits = [row for row in rows if row.best is not None]
    ranks = [row.ranks for row in fits]
    seconds = [row.best.prediction.seconds for row in fits if row.best is not None]
    lines = strategy_lines([(row.ranks, row) for row in fits])
    best = Line("best", ranks, seconds, {"color": "black", "linewidth": 2.4, "alpha": 0.35,
                                         "marker": "", "zorder": 1})  # fmt: skip
    speedup = [row.speedup or 0.0 for row in fits]
    plot_panels(
        [
            Panel("time", "ranks", "seconds", [*lines, best, ideal(ranks, seconds[0], falls=True)]),
            Panel(
                "speed-up of the best",
                "ranks",
                f"against {ranks[0]:,} rank{'s' * (ranks[0] > 1)}",
                [Line("best", ranks, speedup), ideal(ranks, 1.0, falls=False)],
            ),
        ],
        path,
        title=title,
    )


def strategy_lines(rows: Sequence[tuple[float, PlanRow]]) -> list[Line]:
    """A line for each strategy's quickest configuration that fits."""
    found: dict[str, list[tuple[float, float]]] = {}
    for x, row in rows:
        for name, one in row.by_strategy().items():
            found.setdefault(name, []).append((x, one.prediction.seconds))
    return _lines(found)


def _lines(points: Mapping[str, Sequence[tuple[float, float]]]) -> list[Line]:
    """Lines by name; a rank alone is where all others begin."""
    alone = list(points.get(ALONE, ()))
    names = [name for name in points if name != ALONE] or list(points)
    found = []
    for name in names:
        own = sorted({*alone, *points[name]})
        found.append(Line(name, [x for x, _ in own], [y for _, y in own]))
    return found


def plot_sweep(
    rows: Sequence[SweepRow], axis: str, path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw each strategy's time over the axis, and what the best one's time is charged to.

    Parameters
    ----------
    rows, axis
        Of `sweep`.
    path, title
        As for `plot_panels`; errors, too.
    """
    rows = sorted(rows, key=lambda one: one.value)
    label = f"{axis} ({AXES[axis]})" if axis not in WHOLE else AXES[axis]
    lines = strategy_lines([(one.value, one.row) for one in rows])
    charged: dict[str, list[tuple[float, float]]] = {}
    for one in rows:
        if one.row.best is not None:
            for name, seconds in one.row.best.prediction.charged.items():
                charged.setdefault(name, []).append((one.value, seconds))
    shares = _lines(
        {name: some for name, some in charged.items() if any(seconds > 0 for _, seconds in some)}
    )
    plot_panels(
        [
            Panel("time", label, "seconds", lines),
            Panel("what the best one's time is for", label, "seconds", shares, linear=True),
        ],
        path,
        title=title,
    )


def simulated_lines(rows: Sequence[SimulatedRow], what: str) -> list[Line]:
    """A line for each method: an attribute of its rows over the ranks."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        found.setdefault(row.method, []).append((row.ranks, getattr(row, what)))
    return _lines(found)


def plot_simulated(
    rows: Sequence[SimulatedRow], path: str | os.PathLike[str], *, title: str
) -> None:
    """Draw simulated times (formulas dashed) and speed-ups over the ranks.

    Parameters
    ----------
    rows
        Of `simulated.simulated_rows`.
    path, title
        As for `plot_panels`; errors, too.
    """
    times = simulated_lines(rows, "seconds")
    formulas = [
        Line(f"{line.label}, formula", line.x, line.y,
             {"color": COLOURS[at % len(COLOURS)], "linestyle": "--", "marker": ""})
        for at, line in enumerate(simulated_lines(rows, "formula_seconds"))
    ]  # fmt: skip
    speedups = simulated_lines(rows, "speedup")
    widest = max(speedups, key=lambda line: len(line.x))
    plot_panels(
        [
            Panel("time", "ranks", "seconds", [*times, *formulas]),
            Panel(
                "speed-up", "ranks", "against one rank",
                [*speedups, ideal(widest.x, widest.x[0], falls=False)],
            ),
        ],
        path,
        title=title,
    )  # fmt: skip
