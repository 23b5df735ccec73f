"""Seconds of a collective on a platform: as measured where it was, else by the formulas.

Tables ``{verb, ranks, bytes = […], seconds = […]}``, with bytes of the whole array as the verb's
module says, in three lists of ``platform.measured``:

``collectives``
    Calls that block, of all ranks of a job.
``collectives_started``
    Calls that are started (`Communicator.start_broadcast`, …) and waited for at once.
``collectives_groups``
    Both in groups of ranks that all call at the same time: with the `job`'s ranks, and verbs
    ``start_…`` for those that are started.

Must not know: how they are measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from sparsednn.costmodel.collectives import VERBS, Choice, choose
from sparsednn.costmodel.tables import SizeTable
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["MEASURED", "collective_seconds"]

#: `Choice.algorithm` of what was measured.
MEASURED: Final = "measured"

_START: Final = "start_"
_NEEDED: Final = {"verb", "ranks", "bytes", "seconds"}

#: Verb, ranks, ranks of the job.
_Tables = Mapping[tuple[str, int, int], SizeTable]


def collective_seconds(
    platform: Platform,
    verb: str,
    ranks: int,
    nbytes: float,
    stride: int = 1,
    *,
    job: int | None = None,
    started: bool = False,
) -> Choice:
    """Return what a collective takes.

    Parameters
    ----------
    platform
        With measured tables or without.
    verb
        One of `collectives.VERBS`.
    ranks, nbytes, stride
        p ranks that are `stride` apart, n bytes of the whole array; see the verb's module.
    job
        Ranks that are busy in all, in such groups; None: these alone. Where no groups were
        measured, measured times of all ranks are taken, times how much more crowded it is.
    started
        Whether the call is one that is started and waited for; such calls have algorithms of their
        own in MPI libraries. Where none was measured, those that block count.

    Returns
    -------
    Choice
        ``"measured"`` where the platform has a table of this verb and exactly so many ranks, which
        are on one node; else the cheapest algorithm on `Platform.wire`.

    Raises
    ------
    UsageError
        If there is no such verb, no rank, negative bytes, or no network where one is needed.
    FormatError
        If a table of the platform cannot be used.
    """
    anything = ranks > 1 and (nbytes > 0 or verb == "barrier")
    if anything and (ranks - 1) * stride < platform.node.ranks:
        busy = ranks if job is None else max(job, ranks)
        found = _find(platform, verb, ranks, busy, started)
        if found is not None:
            table, crowding = found
            speed = platform.speed
            seconds = table.at(
                nbytes, latency=speed["link_latency"], bandwidth=speed["link_bandwidth"]
            )
            return Choice(MEASURED, float(seconds) * crowding)
    return choose(verb, ranks, nbytes, platform.wire(ranks, stride, job=job))


def _find(
    platform: Platform, verb: str, ranks: int, job: int, started: bool
) -> tuple[SizeTable, float] | None:
    """The table that comes nearest, and by how much its times grow; None: there is none."""
    if job > ranks:
        groups = platform.parsed("collectives_groups", _parse_groups) or {}
        for name in (f"{_START}{verb}", verb) if started else (verb,):
            if (name, ranks, job) in groups:
                return groups[name, ranks, job], 1.0
    crowding = platform.crowding(job) / platform.crowding(ranks)
    for model in ("collectives_started", "collectives") if started else ("collectives",):
        tables = platform.parsed(model, _parse) or {}
        if (verb, ranks, ranks) in tables:
            return tables[verb, ranks, ranks], crowding
    return None


def _parse(tables: Any) -> _Tables:
    return _tables(tables, groups=False)


def _parse_groups(tables: Any) -> _Tables:
    return _tables(tables, groups=True)


def _tables(tables: Any, *, groups: bool) -> _Tables:
    needed = _NEEDED | {"job"} if groups else _NEEDED
    if not isinstance(tables, list | tuple):
        raise UsageError("a list of tables is needed")
    found: dict[tuple[str, int, int], SizeTable] = {}
    for number, table in enumerate(tables, 1):
        if not isinstance(table, Mapping) or set(table) != needed:
            raise UsageError(f"table {number}: needs {', '.join(sorted(needed))}, and nothing else")
        verb, ranks, job = table["verb"], table["ranks"], table.get("job", table["ranks"])
        if not isinstance(verb, str) or verb.removeprefix(_START if groups else "") not in VERBS:
            raise UsageError(f"table {number}: verb: one of {', '.join(VERBS)}, found {verb!r}")
        if not isinstance(ranks, int) or isinstance(ranks, bool) or ranks < 2:
            raise UsageError(f"table {number}: ranks: a whole number from 2, found {ranks!r}")
        if not isinstance(job, int) or isinstance(job, bool) or job < ranks:
            raise UsageError(f"table {number}: job: at least its {ranks} ranks, found {job!r}")
        try:
            found[verb, ranks, job] = SizeTable.of(table["bytes"], table["seconds"])
        except UsageError as error:
            raise UsageError(f"table {number} ({verb}, {ranks} ranks): {error}") from error
    return found
