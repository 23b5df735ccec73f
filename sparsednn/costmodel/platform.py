"""Platforms as TOML files: the documented ones in ``platforms/``, and those of ``calibrate``.

A file::

    format = "sparsednn platform"
    version = 1
    name = "…"
    source = "…"          # where the figures are from
    nodes = 1             # how many there are
    [processor]           # figures: see `Processor`
    [node]                # see `Node`
    [links.within]        # see `Link`; between the ranks of a node
    [links.between]       # between nodes; with more than one node
    [copies]              # see `Copies`; GPUs only
    [measured.…]          # tables of `calibrate`; each belongs to the model that reads it
    [speed]               # factors of `Platform.scaled`, if there are any

Everything but `measured` and `speed` must be there, and nothing else. Must not know: what the
figures are used for.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from sparsednn.costmodel._platform import SPEEDS, Platform
from sparsednn.costmodel.collectives.wire import Wire
from sparsednn.costmodel.platform_parts import COUNT, TEXT, Copies, Link, Node, Processor, read_part
from sparsednn.costmodel.toml_text import plain, read_toml, write_toml
from sparsednn.errors import FormatError, UnknownNameError, UsageError

__all__ = [
    "SPEEDS",
    "Copies",
    "Link",
    "Node",
    "Platform",
    "Processor",
    "Wire",
    "load_platform",
    "platform_names",
    "save_platform",
]

_FORMAT: Final = "sparsednn platform"
_VERSION: Final = 1
_KEYS: Final = (
    *("format", "version", "name", "source", "nodes", "processor", "node", "links", "copies"),
    *("measured", "speed"),
)
_UNSCALED: Final = dict.fromkeys(SPEEDS, 1.0)
_FOLDER: Final = Path(__file__).with_name("platforms")


def platform_names() -> tuple[str, ...]:
    """Return the names of the documented platforms."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.toml")))


def load_platform(name_or_file: str | os.PathLike[str]) -> Platform:
    """Return a documented platform by its name, or one from a file.

    Parameters
    ----------
    name_or_file
        One of `platform_names`, else a TOML file. (``./node-64`` is a file of that name.)

    Raises
    ------
    UnknownNameError
        If it is neither.
    FormatError
        If the file is not TOML, or something in it is missing, unknown or nonsense: one line that
        names file, table and key.
    """
    text = os.fspath(name_or_file)
    names = platform_names()
    path = _FOLDER / f"{text}.toml" if text in names else Path(text)
    if not path.exists():
        raise UnknownNameError(
            f"{text}: neither a file nor a documented platform; there are {', '.join(names)}"
        )
    tables = read_toml(path)
    try:
        return _from_tables(tables)
    except UsageError as error:
        raise FormatError(f"{path}: {error}") from error


def save_platform(platform: Platform, path: str | os.PathLike[str]) -> None:
    """Write a platform as TOML, whole or not at all; `load_platform` gives back an equal one.

    Raises
    ------
    FormatError
        If the file cannot be written.
    UsageError
        If a measured table holds something that TOML does not have.
    """
    write_toml(_as_tables(platform), Path(path))


def _as_tables(platform: Platform) -> dict[str, Any]:
    links = {"within": dataclasses.asdict(platform.within)}
    if platform.between is not None:
        links["between"] = dataclasses.asdict(platform.between)
    tables: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "name": platform.name,
        "source": platform.source,
        "nodes": platform.nodes,
        "processor": dataclasses.asdict(platform.processor),
        "node": dataclasses.asdict(platform.node),
        "links": links,
    }
    if platform.copies is not None:
        tables["copies"] = dataclasses.asdict(platform.copies)
    if platform.speed != _UNSCALED:
        tables["speed"] = dict(platform.speed)
    if platform.measured:
        tables["measured"] = plain(platform.measured, "measured")
    return tables


def _from_tables(tables: Mapping[str, Any]) -> Platform:
    if tables.get("format") != _FORMAT:
        raise UsageError(f'format: "{_FORMAT}" is needed, found {tables.get("format")!r}')
    if tables.get("version") != _VERSION:
        raise UsageError(f"version: {_VERSION} is needed, found {tables.get('version')!r}")
    for key in tables:
        if key not in _KEYS:
            raise UsageError(f"{key}: no such key; there are {', '.join(_KEYS)}")
    for key in ("name", "source", "nodes"):
        rule = COUNT if key == "nodes" else TEXT
        if key not in tables:
            raise UsageError(f"{key}: {rule.needed} is needed, it is missing")
    links = _table(tables, "links")
    for key in links:
        if key not in ("within", "between"):
            raise UsageError(f"[links] {key}: no such link; there are within and between")
    return Platform(
        name=tables["name"],
        source=tables["source"],
        processor=_part(Processor, tables, "processor"),
        node=_part(Node, tables, "node"),
        nodes=tables["nodes"],
        within=_part(Link, links, "within", "links."),
        between=_part(Link, links, "between", "links.") if "between" in links else None,
        copies=_part(Copies, tables, "copies") if "copies" in tables else None,
        measured=_table(tables, "measured", {}),
        speed=_table(tables, "speed", dict(_UNSCALED)),
    )


_AnyPart = TypeVar("_AnyPart", Processor, Node, Link, Copies)


def _part(part: type[_AnyPart], tables: Mapping[str, Any], key: str, above: str = "") -> _AnyPart:
    if key not in tables:
        raise UsageError(f"[{above}{key}]: this table is missing")
    try:
        return read_part(part, tables[key])
    except UsageError as error:
        raise UsageError(f"[{above}{key}] {error}") from error


def _table(
    tables: Mapping[str, Any], key: str, default: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    if key not in tables and default is not None:
        return default
    if key not in tables:
        raise UsageError(f"[{key}]: this table is missing")
    if not isinstance(tables[key], Mapping):
        raise UsageError(f"{key}: a table is needed, found {tables[key]!r}")
    value: Mapping[str, Any] = tables[key]
    return value
