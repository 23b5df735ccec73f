"""What two ranks and more have measured, made into a link, fits and tables of a platform.

Must not know: how it was measured, and the rest of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from sparsednn.costmodel.calibration.fit import Fit, fit_linear
from sparsednn.costmodel.calibration.timing import Effort
from sparsednn.costmodel.platform_parts import Link

__all__ = ["collective_tables", "exchange_tables", "link_of", "pack_fit", "rank_request"]

_KIB: Final = 1 << 10
_EXCHANGE_BYTES: Final = tuple(8 << power for power in (0, 3, 5, 7, 9, 10, 11, 13, 15, 17, 18, 19))
_COLLECTIVE_BYTES: Final = (
    *(8, 64, 512), *(size * _KIB for size in (4, 16, 64, 256, 1024, 4096, 8192)),
)  # fmt: skip
_OVERLAP_BYTES: Final = (64 * _KIB, 256 * _KIB, 1024 * _KIB)
_PACK: Final = tuple(
    (rows, columns) for rows in (16, 64, 256) for columns in (16, 48, 96, 192, 384)
)


def rank_request(
    effort: Effort, *, quick: bool, pace_seconds: float | None = None
) -> dict[str, Any]:
    """Return what the ranks are asked for, see `rank_program.answer`."""
    step = 3 if quick else 1
    return {
        "effort": asdict(effort),
        "exchange_bytes": list(_EXCHANGE_BYTES[::step]),
        "collective_bytes": list(_COLLECTIVE_BYTES[::step]),
        "overlap_bytes": list(_OVERLAP_BYTES[::step]),
        "pack": [list(shape) for shape in _PACK],
        "groups": not quick,
        "pace_seconds": pace_seconds,
        "linked_step": linked_step(quick=quick),
    }


def linked_step(*, quick: bool) -> int:
    """Every how many of the runs of `linked` are timed."""
    return 2 if quick else 1


def link_of(sizes: Sequence[int], found: Mapping[str, Any]) -> tuple[Link, Fit]:
    """Return the link of two ranks, and how well a line in bytes fits their exchange.

    ``seconds = (2 o + α) + n / B``: the overhead o is measured by itself, and what is left of the
    constant is the latency.

    Parameters
    ----------
    sizes
        Bytes of a message.
    found
        Of `rank_program.answer`.
    """
    seconds = found["exchange"]["1"]
    fitted = fit_linear([1.0, np.asarray(sizes, np.float64)], seconds)
    constant, per_byte = fitted.coefficients.tolist()
    # Nothing is left of the slope only where noise is all there is: then the longest message says.
    slope = per_byte if per_byte > 0 else seconds[-1] / sizes[-1]
    overhead = min(float(found["overhead"]), seconds[0] / 2)
    link = Link(
        latency_seconds=max(0.0, constant - 2 * overhead),
        bandwidth=1 / slope,
        overhead_seconds=overhead,
        overlap=float(np.median(found["overlap"])),
    )
    return link, fitted


def pack_fit(shapes: Sequence[Sequence[int]], seconds: Sequence[float]) -> Fit:
    """Fit ``constant + rows × per row + bytes × per byte`` to times of packing.

    The constant is in the times of exchanges, too, and belongs there.

    Parameters
    ----------
    shapes
        Rows and columns of float32.
    """
    rows, columns = np.asarray(shapes, np.float64).T
    return fit_linear([1.0, rows, 4 * rows * columns], seconds)


def exchange_tables(
    sizes: Sequence[int], found: Mapping[int, Mapping[str, Any]], per_byte: float, per_row: float
) -> dict[str, Any]:
    """Tables of `costmodel.neighbours`, and all exchanges that were measured.

    ``exchange``: two ranks, a message each way. ``exchange_crowded``: the largest number of ranks,
    each sending to all others; seconds of one of its messages. ``exchange_many``: for each number
    of ranks, and of messages that each sends, the seconds of the whole.
    """
    counts = list(found)
    first, last = found[counts[0]], found[counts[-1]]
    tables: dict[str, Any] = {
        "exchange": {
            "bytes": list(sizes),
            "seconds": first["exchange"]["1"],
            "pack_seconds_per_byte": per_byte,
            "pack_seconds_per_row": per_row,
            "layer_seconds": first["layer"],
        },
        "exchange_many": [
            {"ranks": count, "messages": int(messages), "bytes": list(sizes), "seconds": seconds}
            for count, one in found.items()
            for messages, seconds in one["exchange"].items()
        ],
        "exchange_immediate": {"bytes": list(sizes), "seconds": first["immediate"]},
        "ping_pong": {"bytes": list(sizes), "seconds": first["ping_pong"]},
    }
    if counts[-1] > counts[0]:
        messages = counts[-1] - 1
        every = last["exchange"][str(messages)]
        tables["exchange_crowded"] = {
            "bytes": list(sizes),
            "seconds": [seconds / messages for seconds in every],
            "ranks": counts[-1],
            "messages": messages,
        }
    return tables


def collective_tables(found: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Tables of `costmodel.collectives.measured`, and of starts and of groups.

    ``collectives`` has the verbs that block; ``collectives_started`` those that are started and
    waited for; ``collectives_groups`` both (under their own names) in pairs of ranks, all pairs of
    a job at the same time, with the job's ranks as ``job``.
    """
    blocking, started, groups = [], [], []
    for count, one in found.items():
        for table in one["collectives"]:
            verb = table["verb"]
            if verb.startswith("start_"):
                started.append(table | {"verb": verb.removeprefix("start_")})
            else:
                blocking.append(table)
        groups += [table | {"job": count} for table in one["pairs"]]
    tables: dict[str, Any] = {"collectives": blocking, "collectives_started": started}
    if groups:
        tables["collectives_groups"] = groups
    return tables
