"""What ranks that wait for each other take more than their parts, where that was measured.

`calibration.linked` fits, for inference and training on each number of ranks of one node,

    run = g · others + f · blocks + e · exchanges + c · layers + b · bytes

The models multiply what a rank computes in its layers with f, what its exchanges take with e,
everything else with g, and add c for each layer and b for each byte sent. Beside other busy
threads, and where cores are crowded, the ranks of the fit were so, too. For other numbers of ranks
the nearest is taken; ranks on several nodes, and machines that are not here, have f = e = g = 1,
b = c = 0.

Must not know: layers, links.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["Linked", "linked_costs"]

_NAMES: Final = ("others", "blocks", "exchanges", "layer_seconds", "seconds_per_byte")


@dataclass(frozen=True, slots=True)
class Linked:
    """The coefficients g, f, e, c and b."""

    others: float = 1.0
    blocks: float = 1.0
    exchanges: float = 1.0
    layer_seconds: float = 0.0
    seconds_per_byte: float = 0.0


def linked_costs(platform: Platform, kind: str, ranks: int, parts: int) -> Linked:
    """Return the coefficients of a run.

    Parameters
    ----------
    platform
        Whose ``measured["linked"]`` counts.
    kind
        inference or training.
    ranks, parts
        Of the whole run, which share the cores; and of a data group, which exchange.
    """
    if parts < 2 or ranks > platform.node.ranks:
        return Linked()
    tables = platform.parsed("linked", _parse) or {}
    known = [count for name, count in tables if name == kind]
    if not known:
        return Linked()
    nearest = min(known, key=lambda count: (abs(count - ranks), count))
    return tables[kind, nearest]


def _parse(tables: Any) -> dict[tuple[str, int], Linked]:
    found = {}
    try:
        for table in tables:
            figures = [float(table[name]) for name in _NAMES]
            if not all(0 <= figure < float("inf") for figure in figures):
                raise UsageError(f"{', '.join(_NAMES)}: numbers from 0 are needed")
            found[str(table["kind"]), int(table["ranks"])] = Linked(*figures)
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"kind, ranks, {', '.join(_NAMES)}: {type(error).__name__} {error}"
        ) from error
    return found
