"""One door to all network formats: by suffix, by what is in a folder, or by name.

Formats are imported when one is needed, so that summarizing a native file loads neither numba
nor SciPy.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sparsednn.errors import FormatError, UsageError
from sparsednn.formats._common import FOLDER_FILES, first_layers, reading
from sparsednn.network import NetworkSummary, SparseNetwork

__all__ = ["FORMATS", "detect_format", "read_network", "summarize_network", "write_network"]

FORMATS: Final = {
    "native": "one safetensors file, mapped into memory (.safetensors)",
    "graph-challenge": "folder of triplet files neuron1024/n1024-l1.tsv … (no biases inside)",
    "npz": "folder of SciPy sparse matrices layer-1.npz … with network.json, or one .npz file",
    "matrix-market": "folder of layer-1.mtx … with network.json, or one .mtx file",
}
"""Network formats by name, with one line for ``--help``."""

_KNOWN: Final = (
    "known are .safetensors, .npz, .mtx, .mtx.gz, and folders of nN-lL.tsv, *.npz or *.mtx"
)
_BY_SUFFIX: Final = {".safetensors": "native", ".npz": "npz", ".mtx": "matrix-market"}


def detect_format(path: str | os.PathLike[str]) -> str:
    """Tell the format (a key of `FORMATS`) of a network that is there, from names only.

    Raises
    ------
    FormatError
        If there is nothing at `path`, or it is of no known format, or of several.
    """
    path = Path(path)
    with reading(path):
        path.stat()
        if not path.is_dir():
            suffix = ".mtx" if path.name.endswith(".mtx.gz") else path.suffix
            if suffix in _BY_SUFFIX:
                return _BY_SUFFIX[suffix]
            raise FormatError(f"{path}: unknown suffix '{path.suffix}' for a network: {_KNOWN}")
        names = os.listdir(path)
    found = [key for key, name in FOLDER_FILES.items() if any(map(name.fullmatch, names))]
    if not found:
        raise FormatError(f"{path}: no network in this folder: {_KNOWN}")
    if len(found) > 1:
        raise FormatError(f"{path}: holds files of several formats: {', '.join(found)}")
    return found[0]


def read_network(
    path: str | os.PathLike[str], *, layers: int | None = None, bias: float | None = None
) -> SparseNetwork:
    """Read a network of any known format.

    Parameters
    ----------
    path
        A file or folder; `detect_format` tells the format.
    layers
        Read only so many layers from the first on; None for all.
    bias
        One bias for all neurons, for a format that has none inside: Graph Challenge folders
        (None: the official one), ``.npz`` and ``.mtx`` without ``network.json`` (None: 0).

    Raises
    ------
    FormatError
        If there is nothing, or it is malformed, naming the file (and the line or layer).
    ShapeError, InputError
        If what is in the file is no network, with the file in front.
    UsageError
        If `bias` is given for a format that has biases, or `layers` is below 1.
    """
    path = Path(path)
    match detect_format(path):
        case "native":
            return _read_safetensors(path, layers, bias)
        case "graph-challenge":
            from sparsednn.formats import graph_challenge

            return graph_challenge.read(path, layers=layers, bias=bias)
        case "npz":
            from sparsednn.formats import scipy_npz

            return scipy_npz.read(path, layers=layers, bias=bias)
        case _:
            from sparsednn.formats import matrix_market

            return matrix_market.read(path, layers=layers, bias=bias)


def summarize_network(
    path: str | os.PathLike[str],
    *,
    layers: int | None = None,
    bias: float | None = None,
    check: bool = False,
) -> NetworkSummary:
    """Summarize a network, as quickly as its format allows.

    Of a native file only the header is read, of a Graph Challenge folder the lines are counted
    (its hash is not known then); other formats are read.

    Parameters
    ----------
    path, layers, bias
        As for `read_network`.
    check
        Read and check everything all the same, and compute the hash. A native file whose content
        has another hash than its header says is an error.

    Raises
    ------
    SparseDNNError
        As `read_network` does.
    """
    path = Path(path)
    stored = None
    format = detect_format(path)
    if format == "native" and bias is None:
        from sparsednn.formats import _container, native

        if native.is_native(_container.read_header(path)):
            summary = native.summarize(path)
            # The stored hash is that of all layers.
            if first_layers(path, len(summary.layers), layers) == len(summary.layers):
                if not check:
                    return summary
                stored = summary.hash or None
    if format == "graph-challenge" and not check:
        from sparsednn.formats import graph_challenge

        return graph_challenge.summarize(path, layers=layers, bias=bias)
    found = read_network(path, layers=layers, bias=bias).summary
    if stored not in (None, found.hash):
        raise FormatError(
            f"{path}: its content has the hash {found.hash}, its header says {stored}"
        )
    return found


def write_network(
    network: SparseNetwork, path: str | os.PathLike[str], *, format: str | None = None
) -> None:
    """Write a network, atomically.

    Parameters
    ----------
    network
        What to write.
    path
        ``.safetensors`` is native; ``.npz`` and ``.mtx`` are single files for a network that is
        one layer's weights; everything else is a folder.
    format
        One of `FORMATS`; needed for a folder, otherwise checked against the suffix.

    Raises
    ------
    UsageError
        If the format is unknown, missing for a folder, or does not fit the suffix.
    InputError
        If the format cannot hold the network without losing something.
    FormatError
        If it cannot be written; what was there before stays.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format '{format}': known are {', '.join(FORMATS)}")
    by_suffix = None if path.is_dir() else _BY_SUFFIX.get(path.suffix)
    if by_suffix is None and format is None:
        raise UsageError(
            f"{path}: writing a folder needs a format: graph-challenge, npz or matrix-market "
            "(one file: a name that ends in .safetensors)"
        )
    if by_suffix is None and format == "native":
        raise UsageError(f"{path}: the name of a native file must end in .safetensors")
    if by_suffix and format not in (None, by_suffix):
        raise UsageError(f"{path}: the suffix '{path.suffix}' does not fit format '{format}'")
    match by_suffix or format:
        case "native":
            from sparsednn.formats import native

            native.write(network, path)
        case "graph-challenge":
            from sparsednn.formats import graph_challenge

            graph_challenge.write(network, path)
        case "npz":
            from sparsednn.formats import scipy_npz

            scipy_npz.write(network, path)
        case _:
            from sparsednn.formats import matrix_market

            matrix_market.write(network, path)


def _read_safetensors(path: Path, layers: int | None, bias: float | None) -> SparseNetwork:
    from sparsednn.formats import _container, dense_checkpoint, native

    if bias is not None:
        raise UsageError(f"{path}: the file has its biases inside: no other can be given")
    if native.is_native(_container.read_header(path)):
        return native.read(path, layers=layers)
    return dense_checkpoint.read(path, layers=layers)
