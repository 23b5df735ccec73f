"""Matrix Market: a folder of ``layer-1.mtx`` … (or ``.mtx.gz``), or one file.

Each file is a real, integer or pattern (all ones) matrix ``(n_out, n_in)``; symmetric ones are
expanded, of dense ones (array) the zeros are dropped. What the files cannot say (activations,
biases) stands in ``network.json``; see `sparsednn.formats._sidecar`.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import IO, Any, BinaryIO, Final, cast

import numpy as np

from sparsednn.errors import FormatError
from sparsednn.formats._common import reading
from sparsednn.formats._sidecar import read_matrices, write_matrices
from sparsednn.network import SparseNetwork

__all__ = ["load_matrix", "read", "write"]

_CHUNK: Final = 4 << 20
_BANNER: Final = "%%MatrixMarket matrix coordinate|array real|integer|pattern …"


def read(
    path: str | os.PathLike[str], *, layers: int | None = None, bias: float | None = None
) -> SparseNetwork:
    """Read a folder of ``*.mtx`` (natural order, or as ``network.json`` says), or one file.

    Raises
    ------
    FormatError
        If a file is missing, not Matrix Market, or complex, naming it (and the line).
    ShapeError, InputError
        As for `SparseLayer` and `SparseNetwork`, with the file in front.
    UsageError
        If `bias` is given although ``network.json`` has the biases, or `layers` is below 1.
    """
    return read_matrices(Path(path), (".mtx", ".mtx.gz"), load_matrix, layers=layers, bias=bias)


def write(network: SparseNetwork, path: str | os.PathLike[str]) -> None:
    """Write a folder of ``layer-N.mtx`` and ``network.json``, or one file.

    Raises
    ------
    UsageError
        If `path` ends in ``.mtx`` and the network is more than one layer's weights.
    FormatError
        If it cannot be written.
    """
    write_matrices(network, Path(path), ".mtx", _save)


def load_matrix(path: Path) -> Any:
    """Read one file as a SciPy sparse matrix.

    Raises
    ------
    FormatError
        If the file is missing or malformed, naming the line.
    """
    import scipy.io
    import scipy.sparse

    with reading(path):
        path.stat()  # SciPy would look for NAME.mtx, too, and report that as missing
        if path.is_dir():
            raise IsADirectoryError(path)
        try:
            _check(path)
            matrix = scipy.io.mmread(str(path))
        except (ValueError, TypeError, OverflowError, EOFError, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise FormatError(f"{path}: not a Matrix Market file: {reason}") from error
    if not scipy.sparse.issparse(matrix):
        matrix = scipy.sparse.coo_array(matrix)
    return matrix


def _check(path: Path) -> None:
    """Reject what SciPy would not survive: lines that lack a number, and NUL bytes.

    (SciPy 1.17: a file that was cut off within a line ends Python with a segmentation fault. A
    last line without a newline does so, too, if there is anything wrong in it.)
    """
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as opened:
        file = cast(IO[bytes], opened)
        expected, number = _header(path, file)
        rest = b""
        while piece := file.read(_CHUNK):
            body, newline, rest = (rest + piece).rpartition(b"\n")
            number += _check_fields(path, body + newline, expected, number)
        _check_fields(path, rest + b"\n", expected, number)
        if rest.strip():
            raise FormatError(
                f"{path}: line {number + 1}: no newline at the end of the last line: the file was "
                "cut off (if it is whole, add one)"
            )


def _header(path: Path, file: IO[bytes]) -> tuple[int, int]:
    """Read up to the size line: numbers in each line behind it, and the lines until there."""
    banner = file.readline(1024).lower().split()
    if len(banner) != 5 or banner[0] != b"%%matrixmarket":
        raise FormatError(f"{path}: line 1: not a Matrix Market file, which begins '{_BANNER}'")
    number = 1
    while line := file.readline(_CHUNK):
        number += 1
        if b"\0" in line:
            raise FormatError(f"{path}: line {number}: binary content (a NUL byte)")
        if line.strip() and not line.lstrip().startswith(b"%"):
            break
    values = {b"pattern": 0, b"complex": 2}.get(banner[3], 1)
    return values + (2 if banner[2] == b"coordinate" else 0), number


def _check_fields(path: Path, text: bytes, expected: int, before: int) -> int:
    """Check whole lines, which come behind `before` others; returns how many there are."""
    if b"\0" in text:
        line = before + 1 + text.count(b"\n", 0, text.index(b"\0"))
        raise FormatError(f"{path}: line {line}: binary content (a NUL byte)")
    letters = np.frombuffer(text, np.uint8)
    blank = (letters == 32) | (letters == 9) | (letters == 13) | (letters == 10)
    starts = np.flatnonzero(~blank & np.concatenate(([True], blank[:-1])))
    counts = np.diff(np.searchsorted(starts, np.flatnonzero(letters == 10)), prepend=0)
    wrong = np.flatnonzero((counts != expected) & (counts != 0))
    if wrong.size:
        raise FormatError(
            f"{path}: line {before + 1 + int(wrong[0])}: found {int(counts[wrong[0]])} numbers, "
            f"expected {expected}"
        )
    return int(counts.size)


def _save(file: BinaryIO, matrix: Any) -> None:
    import scipy.io

    # Saying 'general' spares SciPy the search for a symmetry, and keeps stored zeros.
    scipy.io.mmwrite(file, matrix, symmetry="general")
