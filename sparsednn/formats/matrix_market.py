"""Matrix Market: a folder of ``layer-1.mtx`` … (or ``.mtx.gz``), or one file.

Each file is a real, integer or pattern (all ones) matrix ``(n_out, n_in)``; symmetric ones are
expanded, of dense ones (array) the zeros are dropped. What the files cannot say (activations,
biases) stands in ``network.json``; see `sparsednn.formats._sidecar`.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from sparsednn.errors import FormatError
from sparsednn.formats._common import reading
from sparsednn.formats._sidecar import read_matrices, write_matrices
from sparsednn.network import SparseNetwork

__all__ = ["load_matrix", "read", "write"]


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
        If the file is missing or malformed, naming the line where SciPy does.
    """
    import scipy.io
    import scipy.sparse

    with reading(path):
        path.stat()  # SciPy would look for NAME.mtx, too, and report that as missing
        if path.is_dir():
            raise IsADirectoryError(path)
        try:
            matrix = scipy.io.mmread(str(path))
        except (ValueError, TypeError, OverflowError, EOFError, zlib.error) as error:
            reason = " ".join(str(error).split())
            raise FormatError(f"{path}: not a Matrix Market file: {reason}") from error
    if not scipy.sparse.issparse(matrix):
        matrix = scipy.sparse.coo_array(matrix)
    return matrix


def _save(file: BinaryIO, matrix: Any) -> None:
    import scipy.io

    # Saying 'general' spares SciPy the search for a symmetry, and keeps stored zeros.
    scipy.io.mmwrite(file, matrix, symmetry="general")
