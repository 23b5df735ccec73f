"""What all format modules share: naming the place of an error, natural order, threads."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tokenize import TokenError
from typing import Final, TypeVar

from sparsednn.errors import FormatError, InputError, UsageError

__all__ = [
    "FLOAT32_MAX",
    "FOLDER_FILES",
    "NOT_NUMPY",
    "cpu_count",
    "first_layers",
    "located",
    "natural_key",
    "of_another_format",
    "reading",
    "thread_map",
]

T = TypeVar("T")
R = TypeVar("R")

FLOAT32_MAX: Final = (2.0 - 2.0**-23) * 2.0**127
"""The largest weight or bias."""

FOLDER_FILES: Final = {
    "graph-challenge": re.compile(r"neuron[0-9]+|n[0-9]+-l[0-9]+\.tsv(\.gz)?"),
    "npz": re.compile(r".*\.npz"),
    "matrix-market": re.compile(r".*\.mtx(\.gz)?"),
}
"""Names by which a folder is told to be of a format."""


NOT_NUMPY: Final = (ValueError, TypeError, OverflowError, EOFError, SyntaxError, TokenError)
"""What `numpy.load` raises for a broken .npy file, whose header goes through Python's parser."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn every `OSError` of the body into a `FormatError` that names `path`.

    A `MemoryError` stays one, and names it, too.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file or folder") from error
    except IsADirectoryError as error:
        raise FormatError(f"{path}: is a folder, a file was expected") from error
    except NotADirectoryError as error:
        raise FormatError(f"{path}: is a file, a folder was expected") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
    except MemoryError as error:  # of sizes that are garbage, mostly
        raise MemoryError(f"{path}: {error}") from error


@contextlib.contextmanager
def located(where: object) -> Iterator[None]:
    """Put `where` in front of a constructor's `ShapeError` or `InputError`, keeping its class.

    A `FormatError` passes unchanged: the readers, which raise these, name the file themselves.
    """
    try:
        yield
    except FormatError:
        raise
    except InputError as error:
        raise type(error)(f"{where}: {error}") from error


def natural_key(name: str) -> list[int | str]:
    """Sort key that counts: ``layer-2`` before ``layer-10``.

    >>> sorted(["layer-10.npz", "layer-2.npz"], key=natural_key)
    ['layer-2.npz', 'layer-10.npz']
    """
    # The pattern's group makes texts and numbers alternate, so only like is compared with like.
    return [int(part) if k % 2 else part for k, part in enumerate(re.split("([0-9]+)", name))]


def of_another_format(own: str) -> Callable[[str], bool]:
    """Return a test for names that would make a folder of format `own` ambiguous."""
    others = [pattern for key, pattern in FOLDER_FILES.items() if key != own]
    return lambda name: any(pattern.fullmatch(name) for pattern in others)


def first_layers(path: Path, found: int, wanted: int | None) -> int:
    """How many layers to read of `found`; an error that names `path` if there are too few."""
    if wanted is None:
        return found
    if wanted < 1:
        raise UsageError(f"layers must be at least 1, found {wanted}")
    if wanted > found:
        raise FormatError(f"{path}: has {found} layers, {wanted} were asked for")
    return wanted


def cpu_count() -> int:
    """Cores that this process may use (a launcher may have bound it to fewer than there are)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def thread_map(
    function: Callable[[T], R], items: Sequence[T], threads: int | None = None
) -> list[R]:
    """Apply `function` to all items in threads; the first item that fails decides the error."""
    threads = min(threads or cpu_count(), len(items))
    if threads <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
