"""The metrics of a run: a file of JSON lines, one object per line, that a resumed run continues.

Every line has a whole number ``step``. A line goes to the file in one piece as soon as it is
written, so one can watch the file grow, and after a kill at most its last line is half there. Knows
nothing of what the numbers mean.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError
from sparsednn.formats._common import reading

__all__ = ["METRICS", "MetricsFile", "metrics_in", "read_metrics"]

#: Name of the file in the folder of a run.
METRICS: Final = "metrics.jsonl"


class MetricsFile:
    """A metrics file to write to. Use it in a ``with`` block.

    A run that is to be resumable writes its lines, then calls `sync`, then writes its checkpoint:
    so all lines up to the checkpoint's step are there, and those behind it are cut off by whoever
    resumes.

    Parameters
    ----------
    path
        The file; its folder must exist.
    keep_until
        Of a file that is there, keep the lines up to this step and cut off the others (atomically,
        as the steps will be done again). None keeps all complete lines.
    fresh
        Begin with an empty file whatever is there. The caller decides whether what is there may be
        lost.

    Raises
    ------
    FormatError
        If the file cannot be made, or what is there and to be kept are no metrics.
    """

    def __init__(
        self, path: str | os.PathLike[str], keep_until: int | None = None, *, fresh: bool = False
    ) -> None:
        self._path = Path(path)
        with atomic_file(self._path, sync=True) as file:
            if not fresh and self._path.exists():
                for line, record in _lines(self._path):
                    if keep_until is None or record["step"] <= keep_until:
                        file.write(line)
        with _writing(self._path):
            # Without a buffer: a line is in the file when `write` returns.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self.close()

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line.

        Parameters
        ----------
        record
            What JSON can hold, and NumPy's numbers; ``step`` must be a whole number. NaN and
            infinite numbers, which JSON does not have, become null.

        Raises
        ------
        FormatError
            If it cannot be written (disk full); nothing of the line stays in the file.
        ValueError
            If there is no step.
        """
        plain = _plain(record)
        if not _has_step(plain):
            raise ValueError(f"a line of metrics needs a whole number 'step': {plain}")
        left = memoryview((json.dumps(plain, allow_nan=False) + "\n").encode())
        with _writing(self._path):
            end = os.fstat(self._file.fileno()).st_size
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    self._file.truncate(end)
                raise

    def sync(self) -> None:
        """Force all lines to the disk (``fsync``), so that not even a power cut takes them.

        Raises
        ------
        FormatError
            If that fails.
        """
        with _writing(self._path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; nothing happens if it is closed."""
        self._file.close()


def metrics_in(folder: Path, step: int, *, fresh: bool) -> MetricsFile:
    """Open the metrics of a run in its folder, which is made if it is not there.

    Parameters
    ----------
    folder
        Of the run.
    step, fresh
        As for `MetricsFile`: where the run goes on, and whether it begins anew.

    Raises
    ------
    FormatError
        If folder or file cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(f"{folder}: cannot make this folder: {error.strerror}") from error
    return MetricsFile(folder / METRICS, step, fresh=fresh)


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read all lines of a metrics file, also of one that is being written.

    A last line that is not complete (a run that was killed) is left out.

    Raises
    ------
    FormatError
        If there is no such file, or another line is no object with a ``step``.
    """
    return [record for _, record in _lines(Path(path))]


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield every complete line, ending in a newline, and what it says."""
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                # Strictly: given bytes, json.loads would guess at other encodings.
                record = json.loads(line.decode())
            except (ValueError, RecursionError):
                record = None
            if _has_step(record):
                yield line.rstrip(b"\n") + b"\n", record
            elif line.endswith(b"\n"):
                raise FormatError(f"{path}: line {number} is no line of metrics")


def _has_step(record: Any) -> bool:
    return isinstance(record, dict) and type(record.get("step")) is int


def _plain(value: Any) -> Any:
    """Return what JSON has for a value, and for all in it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` of the body into a `FormatError` that names the file."""
    try:
        yield
    except OSError as error:
        raise FormatError(f"{path}: cannot write: {error.strerror or error}") from error
