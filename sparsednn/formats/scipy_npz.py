"""SciPy's own sparse files: a folder of ``layer-1.npz`` … (`scipy.sparse.save_npz`), or one file.

Each file is a matrix ``(n_out, n_in)`` in any of SciPy's formats. What the files cannot say
(activations, biases) stands in ``network.json``; see `sparsednn.formats._sidecar`. Nothing is
unpickled.
"""

from __future__ import annotations

import contextlib
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sparsednn.errors import FormatError
from sparsednn.formats._common import NOT_NUMPY, reading
from sparsednn.formats._sidecar import read_matrices, write_matrices
from sparsednn.network import SparseNetwork

__all__ = ["load_matrix", "opened", "read", "write"]


def read(
    path: str | os.PathLike[str], *, layers: int | None = None, bias: float | None = None
) -> SparseNetwork:
    """Read a folder of ``*.npz`` (natural order, or as ``network.json`` says), or one file.

    Raises
    ------
    FormatError
        If a file is missing or not what `scipy.sparse.save_npz` writes, naming it.
    ShapeError, InputError
        As for `SparseLayer` and `SparseNetwork`, with the file in front.
    UsageError
        If `bias` is given although ``network.json`` has the biases, or `layers` is below 1.
    """
    return read_matrices(Path(path), (".npz",), load_matrix, layers=layers, bias=bias)


def write(network: SparseNetwork, path: str | os.PathLike[str]) -> None:
    """Write a folder of uncompressed ``layer-N.npz`` and ``network.json``, or one file.

    Raises
    ------
    UsageError
        If `path` ends in ``.npz`` and the network is more than one layer's weights.
    FormatError
        If it cannot be written.
    """
    write_matrices(network, Path(path), ".npz", _save)


def load_matrix(path: Path) -> Any:
    """Read one file; indices are checked, as SciPy's compiled loops would not survive wrong ones.

    Raises
    ------
    FormatError
        If the file is missing or malformed.
    """
    import scipy.sparse

    with opened(path) as file:
        matrix = scipy.sparse.load_npz(file)
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
    return matrix


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open an archive (NumPy would not close a broken one); what its readers raise names it.

    Raises
    ------
    FormatError
        For all errors of a body that reads what is no archive of SciPy's.
    """
    with reading(path), open(path, "rb") as file:
        try:
            yield file
        except (
            *NOT_NUMPY, KeyError, IndexError, AttributeError, NotImplementedError,
            zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            reason = " ".join(str(error).split())
            raise FormatError(
                f"{path}: not a matrix as scipy.sparse.save_npz writes it: {reason}"
            ) from error


def _save(file: BinaryIO, matrix: Any) -> None:
    import scipy.sparse

    scipy.sparse.save_npz(file, matrix, compressed=False)
