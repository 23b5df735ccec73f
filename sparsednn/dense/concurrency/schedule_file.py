"""Schedules as JSON files: saved whole or not at all, and checked when they are read.

Must not know: how schedules are made or run.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from sparsednn.atomic import atomic_file
from sparsednn.dense.concurrency.checking import check_schedule
from sparsednn.dense.concurrency.kernels import Algorithm, Occupancy
from sparsednn.dense.concurrency.schedule import Placed, Schedule
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import FormatError, InputError
from sparsednn.formats._common import reading

__all__ = ["load_schedule", "save_schedule"]

_FORMAT: Final = "sparsednn schedule"
_VERSION: Final = 1

_OWN: Final = {
    "lanes": int,
    "arena_bytes": int,
    "workspace_bytes": int,
    "device": str,
    "network": str,
    "images": int,
    "training": bool,
    "itemsize": int,
    "name": str,
}
"""Attributes of a schedule that are written as they are."""

_ROW: Final = [each.name for each in fields(Placed)]


def save_schedule(schedule: Schedule, path: str | os.PathLike[str]) -> None:
    """Write a schedule.

    Raises
    ------
    FormatError
        If it cannot be written there.
    """
    algorithms: dict[Algorithm, int] = {}
    rows = []
    for item in schedule.items:
        number = algorithms.setdefault(item.algorithm, len(algorithms))
        values = {name: getattr(item, name) for name in _ROW}
        rows.append(list((values | {"algorithm": number}).values()))
    content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    content |= {name: getattr(schedule, name) for name in _OWN}
    content["offsets"] = schedule.offsets
    content["algorithms"] = [asdict(algorithm) for algorithm in algorithms]
    content["items"] = rows
    with atomic_file(path) as file:
        file.write(json.dumps(content, separators=(",", ":")).encode())


def load_schedule(
    path: str | os.PathLike[str],
    tasks: TaskGraph,
    device: str | None = None,
    limit: int | None = None,
) -> Schedule:
    """Read a schedule, and check that it does these tasks safely.

    Parameters
    ----------
    tasks
        What it must be for.
    device
        `Kernels.device` that it must be for; None: any.
    limit
        Bytes of workspace that it must not exceed; None: any number.

    Raises
    ------
    FormatError
        If there is no such file, it is damaged, of another version, or for something else.
    """
    shown = Path(path)
    with reading(shown):
        text = shown.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{shown}: it is not JSON") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise FormatError(f"{shown}: not a schedule: its 'format' should be '{_FORMAT}'")
    if content.get("version") != _VERSION:
        raise FormatError(
            f"{shown}: a schedule of format version {content.get('version')}, expected {_VERSION}"
        )
    try:
        schedule = _schedule(content)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise FormatError(f"{shown}: a schedule that cannot be read: {error}") from error
    if device is not None and schedule.device != device:
        raise FormatError(f"{shown}: a schedule for {schedule.device}, this is {device}")
    try:
        check_schedule(tasks, schedule, limit)
    except InputError as error:
        raise FormatError(f"{shown}: {error}") from error
    return schedule


def _schedule(content: dict[str, Any]) -> Schedule:
    algorithms = [_algorithm(row) for row in _typed(content["algorithms"], list)]
    offsets = _typed(content["offsets"], dict)
    return Schedule(
        items=tuple(_placed(row, algorithms) for row in _typed(content["items"], list)),
        offsets={name: _typed(offset, int) for name, offset in offsets.items()},
        **{name: _typed(content[name], kind) for name, kind in _OWN.items()},
    )


def _algorithm(row: Any) -> Algorithm:
    values = dict(_typed(row, dict))
    occupancy = values.pop("occupancy")
    if occupancy is not None:
        found = _typed(occupancy, dict)
        occupancy = Occupancy(**{key: _typed(each, int) for key, each in found.items()})
    name = _typed(values.pop("name"), str)
    numbers = {key: _typed(each, int) for key, each in values.items()}
    return Algorithm(name, occupancy=occupancy, **numbers)


def _placed(row: Any, algorithms: list[Algorithm]) -> Placed:
    values = dict(zip(_ROW, _typed(row, list), strict=True))
    number = _typed(values["algorithm"], int)
    if number < 0:
        raise IndexError(f"there is no algorithm {number}")
    return Placed(
        task=_typed(values["task"], str),
        part=_typed(values["part"], int),
        algorithm=algorithms[number],
        lane=_typed(values["lane"], int),
        start=float(values["start"]),
        end=float(values["end"]),
        workspace=_typed(values["workspace"], int),
        waits=tuple(_typed(each, int) for each in _typed(values["waits"], list)),
    )


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{value!r:.40} should be of type {kind.__name__}")
    return value
