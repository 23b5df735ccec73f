"""One axis varied, all else as it is: batch, flop/s, memory, links, nodes.

Must not know: what kind of model it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sparsednn.costmodel.planning.ranks import parse_values
from sparsednn.costmodel.planning.rows import Model, PlanRow, compared, plan_row
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["AXES", "WHOLE", "SweepRow", "check_axis", "sweep_axis"]

AXES: Final[dict[str, str]] = {
    "batch": "images",
    "flops": "times the flop/s",
    "memory-bandwidth": "times the memory bandwidth",
    "link-bandwidth": "times the bandwidth of the links",
    "link-latency": "times the seconds per message",
    "nodes": "nodes",
}
"""Axis and what its values are: factors, but for images and nodes, which are numbers."""

WHOLE: Final = ("batch", "nodes")
"""Axes whose values are numbers of something."""


@dataclass(frozen=True, slots=True)
class SweepRow:
    """A value of the axis, and what is best there."""

    value: float
    row: PlanRow

    def as_json(self) -> dict[str, Any]:
        """Return numbers, texts, lists and dictionaries."""
        return {"value": self.value, **self.row.as_json()}


def check_axis(axis: str, values: str, ranks: int | None) -> tuple[float, ...]:
    """Read the values of an axis as a person types them.

    Raises
    ------
    UsageError
        If there is no such axis, a value is none of it, or ranks are given, or missing, where they
        should not be.
    """
    if axis not in AXES:
        raise UsageError(f"--axis '{axis}': known are {', '.join(AXES)}")
    if axis == "nodes" and ranks is not None:
        raise UsageError("--axis nodes: all ranks of the nodes are busy, it takes no --ranks")
    if axis != "nodes" and ranks is None:
        raise UsageError(f"--axis {axis} needs --ranks")
    return parse_values(values, whole=axis in WHOLE)


def sweep_axis(
    model: Model,
    platform: Platform,
    axis: str,
    values: Sequence[float],
    ranks: int | None,
    images: int,
    *,
    memory_per_rank: float | None = None,
    report: Callable[[str, float], None] | None = None,
) -> list[SweepRow]:
    """Predict a model for each value of an axis: the best configuration, and each strategy's.

    Parameters
    ----------
    model, platform, memory_per_rank, report
        As for `rows.plan_ranks`.
    axis, values, ranks
        See `check_axis`; with the axis ``nodes`` all their ranks are busy.
    images
        Of a run, or a step; does not matter for the axis ``batch``.

    Raises
    ------
    UsageError
        If the platform has fewer ranks, or nothing fits at any value.
    """
    rows = []
    for done, value in enumerate(values):
        if report is not None:
            report(f"{axis} {value:g}", done / len(values))
        machine, number, batch = platform, ranks or 0, images
        match axis:
            case "batch":
                batch = int(value)
            case "nodes":
                machine = replace(platform, nodes=max(platform.nodes, int(value)))
                number = int(value) * platform.node.ranks
            case _:
                machine = platform.scaled(**{axis.replace("-", "_"): value})
        rows.append(plan_row(model, machine, number, batch, memory_per_rank=memory_per_rank))
    return [SweepRow(value, row) for value, row in zip(values, compared(model, rows), strict=True)]
