"""Pictures of a training run: loss and accuracy over its epochs. Needs matplotlib."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sparsednn.errors import InputError
from sparsednn.pictures import check_picture, picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_curves"]

_LOSSES: Final = {"loss": "training", "test_loss": "test"}
_ACCURACIES: Final = {"train_accuracy": "training", "test_accuracy": "test"}

# Two of Okabe & Ito's colours, which the colour-blind can tell apart too.
_COLOURS: Final = {"training": "#0072B2", "test": "#D55E00"}

_LOG_RANGE: Final = 30.0
"""The scale of losses is logarithmic where the largest is so many times the smallest."""

_MARKED_POINTS: Final = 30


class _Curve(NamedTuple):
    """Numbers of one name, in the order of the records."""

    label: str
    epochs: list[float]
    steps: list[float]
    values: list[float]


def plot_curves(
    records: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str = ""
) -> None:
    """Draw loss and accuracy, of training and of test, over the run; atomically.

    Parameters
    ----------
    records
        As from `sparsednn.training.metrics.read_metrics`: each with a ``step`` and whichever it has
        of ``epoch``, ``loss``, ``test_loss``, ``train_accuracy``, ``test_accuracy`` (of 1). What
        is missing or null is not drawn. The axis is in epochs where each point of a curve has an
        epoch of its own, else in steps.
    path
        The file; its suffix, one of `pictures.SUFFIXES`, is the format.
    title
        Stands above the picture.

    Raises
    ------
    UsageError, MissingDependencyError
        As `pictures.check_picture`.
    InputError
        If there is nothing to draw.
    FormatError
        If the file cannot be written.
    """
    check_picture(path)
    panels = [
        (name, curves)
        for name, keys in (("loss", _LOSSES), ("accuracy", _ACCURACIES))
        if (curves := _curves(records, keys))
    ]
    if not panels:
        raise InputError(f"{os.fspath(path)}: nothing to draw: no loss and no accuracy yet")
    in_epochs = all(_ascends(curve.epochs) for _, curves in panels for curve in curves)

    with picture(path, (5.2 * len(panels), 4.0)) as figure:
        for axes, (name, curves) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            _draw(axes, name, curves, in_epochs)
        if title:
            figure.suptitle(title, fontsize=12)


def _curves(records: Sequence[Mapping[str, Any]], keys: Mapping[str, str]) -> list[_Curve]:
    """Return one curve per key of which there is any number."""
    curves = []
    for key, label in keys.items():
        points = [record for record in records if _number(record, key) is not None]
        if points:
            curves.append(
                _Curve(
                    label,
                    [_number(point, "epoch", math.nan) for point in points],
                    [_number(point, "step", math.nan) for point in points],
                    [float(point[key]) for point in points],
                )
            )
    return curves


def _number(record: Mapping[str, Any], key: str, default: Any = None) -> Any:
    value = record.get(key)
    return value if isinstance(value, (int, float)) and math.isfinite(value) else default


def _ascends(numbers: Sequence[float]) -> bool:
    # Comparisons with NaN are false; a single number has none.
    ascend = all(before < after for before, after in itertools.pairwise(numbers))
    return ascend and not math.isnan(numbers[0])


def _draw(axes: Axes, name: str, curves: Sequence[_Curve], in_epochs: bool) -> None:
    """Draw one panel; with accuracies the legend tells the last and the best one."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    for curve in curves:
        axes.plot(
            curve.epochs if in_epochs else curve.steps,
            curve.values,
            label=_legend(name, curve),
            color=_COLOURS[curve.label],
            linewidth=1.6,
            marker="o" if len(curve.values) <= _MARKED_POINTS else None,
            markersize=4,
        )
    axes.set_xlabel("epoch" if in_epochs else "step")
    axes.set_ylabel(name)
    axes.set_title(name.capitalize())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    values = [value for curve in curves for value in curve.values]
    if name == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    elif min(values) > 0 and max(values) > _LOG_RANGE * min(values):
        axes.set_yscale("log")
        axes.set_ylabel("loss (logarithmic)")
    axes.legend(frameon=False)


def _legend(name: str, curve: _Curve) -> str:
    if name == "accuracy":
        return f"{curve.label}: {curve.values[-1]:.2%} (best {max(curve.values):.2%})"
    return f"{curve.label}: {curve.values[-1]:.4g}"
