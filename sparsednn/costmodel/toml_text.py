"""TOML: read a file, and write tables of numbers, texts, lists and tables (the library only reads).

Must not know: what the tables are.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError, UsageError

__all__ = ["plain", "read_toml", "toml_text", "write_toml"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the tables of a file.

    Raises
    ------
    FormatError
        If it cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not TOML: byte {error.start} is not UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise FormatError(f"{path}: not TOML: {error}") from error
    except RecursionError as error:
        raise FormatError(f"{path}: not TOML that can be read: nested too deeply") from error


def write_toml(tables: Mapping[str, Any], path: Path) -> None:
    """Write tables to a file, whole or not at all; `read_toml` gives back `plain(tables)`.

    Raises
    ------
    FormatError
        If the file cannot be written.
    UsageError
        If there is something that TOML does not have.
    """
    text = toml_text(tables)
    with atomic_file(path) as file:
        file.write(text.encode("utf-8"))


def plain(value: Any, name: str = "") -> Any:
    """Return a value as TOML has it: NumPy's arrays and numbers, and tuples, become Python's.

    >>> plain({"bytes": np.array([1, 2]), "seconds": (np.float64(0.5),)})
    {'bytes': [1, 2], 'seconds': [0.5]}

    Raises
    ------
    UsageError
        If TOML has no such thing (None, an object).
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise UsageError(f"{name or 'a table'}: TOML has keys that are texts, no others")
        return {key: plain(inner, f"{name}.{key}" if name else key) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner, name) for inner in value]
    if isinstance(value, bool | int | float | str):
        return value
    raise UsageError(f"{name}: TOML has no {type(value).__name__}")


def toml_text(tables: Mapping[str, Any]) -> str:
    """Return TOML: in each table first its values, then the tables in it.

    >>> print(toml_text({"a": 1.5, "b": {"c": [1, 2]}}), end="")
    a = 1.5
    <BLANKLINE>
    [b]
    c = [1, 2]
    """
    return "\n".join(_lines(plain(tables), ())).strip("\n") + "\n"


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, dict)}
    arrays = {key: value for key, value in table.items() if _is_array_of_tables(value)}
    for key, value in table.items():
        if key not in inner and key not in arrays:
            yield f"{_key(key)} = {_value(value)}"
    for key, value in inner.items():
        yield f"\n[{_dotted((*path, key))}]"
        yield from _lines(value, (*path, key))
    for key, values in arrays.items():
        for value in values:
            yield f"\n[[{_dotted((*path, key))}]]"
            yield from _lines(value, (*path, key))


def _is_array_of_tables(value: Any) -> bool:
    return (
        isinstance(value, list) and bool(value) and all(isinstance(inner, dict) for inner in value)
    )


def _dotted(path: tuple[str, ...]) -> str:
    return ".".join(_key(key) for key in path)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _text(key)


def _text(text: str) -> str:
    # JSON's escapes are TOML's too; TOML also wants DEL escaped, which JSON leaves.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # Python's shortest text that reads back the same; inf and nan have TOML's own names.
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(inner) for inner in value)}]"
    # A table among other values of a list.
    return "{" + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
