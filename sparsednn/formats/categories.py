"""Category files: the 1-based ids of the images that are still alive at the end, one per line."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError, InputError
from sparsednn.formats._common import reading

__all__ = ["read_categories", "write_categories"]


def read_categories(path: str | os.PathLike[str]) -> NDArray[np.int64]:
    """Read ids ``(categories,)``, 1-based and ascending; an empty file has none.

    Raises
    ------
    FormatError
        If the file is missing, or a line is not one id above the one before, naming the line.
    """
    path = Path(path)
    with reading(path):
        lines = path.read_bytes().rstrip().split(b"\n")
    if lines == [b""]:
        return np.empty(0, np.int64)
    ids = np.empty(len(lines), np.int64)
    last = 0
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if not (word.isdigit() and len(word) <= 18 and int(word) > 0):
            shown = ascii(line.decode("latin-1")[:40])
            raise FormatError(f"{path}: line {number}: {shown} is not an image id (1 or above)")
        here = int(word)
        if here <= last:
            raise FormatError(f"{path}: line {number}: id {here} after {last}: ids must ascend")
        ids[number - 1] = last = here
    return ids


def write_categories(ids_1based: ArrayLike, path: str | os.PathLike[str]) -> None:
    """Write ids, one per line.

    Raises
    ------
    InputError
        If they are not whole numbers, 1 or above and ascending.
    FormatError
        If the file cannot be written.
    """
    ids = np.asarray(ids_1based)
    if ids.size == 0:
        ids = ids.astype(np.int64)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise InputError(f"{path}: image ids must be whole numbers, found {ids.dtype} {ids.shape}")
    if ids.size and (ids[0] < 1 or np.any(ids[1:] <= ids[:-1])):
        raise InputError(f"{path}: image ids must be 1 or above and ascend")
    with atomic_file(path) as file:
        file.write("".join(f"{i}\n" for i in ids.tolist()).encode())
