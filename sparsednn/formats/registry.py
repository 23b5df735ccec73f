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
from sparsednn.formats.options import ReadOptions
from sparsednn.network import NetworkSummary, SparseNetwork

__all__ = [
    "FORMATS",
    "check_target_format",
    "detect_format",
    "read_network",
    "summarize_network",
    "write_network",
]

FORMATS: Final = {
    "native": "one safetensors file, mapped into memory (.safetensors)",
    "graph-challenge": "folder of triplet files neuron1024/n1024-l1.tsv … (no biases inside)",
    "npz": "folder of SciPy sparse matrices layer-1.npz … with network.json, or one .npz file",
    "matrix-market": "folder of layer-1.mtx … with network.json, or one .mtx file",
    "shards": "index of a checkpoint in several files, model.safetensors.index.json (read only)",
    "torch": "PyTorch state dict: .pt, .pth, .bin, .ckpt, .pth.tar (read only)",
    "onnx": "chain of fully connected and convolutional layers in an .onnx file (read only)",
}
"""Network formats by name, with one line for ``--help``."""

_READ_ONLY: Final = ("shards", "torch", "onnx")
_KNOWN: Final = (
    "known are .safetensors, .npz, .mtx, .mtx.gz, .pt, .pth, .bin, .ckpt, .onnx, "
    ".safetensors.index.json, and folders of nN-lL.tsv, *.npz or *.mtx"
)
_BY_SUFFIX: Final = {
    ".safetensors": "native",
    ".npz": "npz",
    ".mtx": "matrix-market",
    ".mtx.gz": "matrix-market",
    ".safetensors.index.json": "shards",
    ".pt": "torch",
    ".pth": "torch",
    ".pth.tar": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
    ".onnx": "onnx",
}


def _by_suffix(path: Path) -> str | None:
    """Tell the format of a file by the longest suffix that is known."""
    found = [suffix for suffix in _BY_SUFFIX if path.name.endswith(suffix) and path.name != suffix]
    return _BY_SUFFIX[max(found, key=len)] if found else None


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
            format = _by_suffix(path)
            if format is not None:
                return format
            raise FormatError(f"{path}: unknown suffix '{path.suffix}' for a network: {_KNOWN}")
        names = os.listdir(path)
    found = [key for key, name in FOLDER_FILES.items() if any(map(name.fullmatch, names))]
    if not found:
        raise FormatError(f"{path}: no network in this folder: {_KNOWN}")
    if len(found) > 1:
        raise FormatError(f"{path}: holds files of several formats: {', '.join(found)}")
    return found[0]


def read_network(
    path: str | os.PathLike[str],
    *,
    layers: int | None = None,
    bias: float | None = None,
    options: ReadOptions | None = None,
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
    options
        For checkpoints (safetensors that are not native, shards, PyTorch): which tensors are
        layers, and what such a file does not say.

    Raises
    ------
    FormatError
        If there is nothing, or it is malformed, naming the file (and the line or layer).
    ShapeError, InputError
        If what is in the file is no network, with the file in front.
    UsageError
        If `bias` is given for a format that has biases, `options` for one that leaves nothing to
        choose, or `layers` is below 1.
    MissingDependencyError
        If the format needs a library that is not installed.
    """
    path = Path(path)
    options = options or ReadOptions()
    format = detect_format(path)
    if bias is not None and format in ("native", *_READ_ONLY):
        raise UsageError(f"{path}: the file has its biases inside: no other can be given")
    if format not in ("native", "shards", "torch"):
        options.refuse(path, "it is for checkpoints of tensors (.safetensors, .pt)")
    match format:
        case "native":
            return _read_safetensors(path, layers, options)
        case "shards":
            from sparsednn.formats import dense_checkpoint

            return dense_checkpoint.read(path, layers=layers, options=options)
        case "torch":
            from sparsednn.formats import torch_checkpoint

            return torch_checkpoint.read(path, layers=layers, options=options)
        case "onnx":
            from sparsednn.formats import onnx_model

            return onnx_model.read(path, layers=layers)
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
    options: ReadOptions | None = None,
    check: bool = False,
) -> NetworkSummary:
    """Summarize a network, as quickly as its format allows.

    Of a native file only the header is read, of a Graph Challenge folder the lines are counted
    (its hash is not known then); other formats are read.

    Parameters
    ----------
    path, layers, bias, options
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
    plain = options is None or not options.given
    if format == "native" and bias is None and plain:
        from sparsednn.formats import _container, native

        if native.is_native(_container.read_header(path)):
            summary = native.summarize(path)
            # The stored hash is that of all layers.
            if first_layers(path, len(summary.layers), layers) == len(summary.layers):
                if not check:
                    return summary
                stored = summary.hash or None
    if format == "graph-challenge" and plain and not check:
        from sparsednn.formats import graph_challenge

        return graph_challenge.summarize(path, layers=layers, bias=bias)
    found = read_network(path, layers=layers, bias=bias, options=options).summary
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
    match check_target_format(path, format):
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


def check_target_format(path: str | os.PathLike[str], format: str | None = None) -> str:
    """Tell the format that `write_network` would write, before there is anything to write.

    Raises
    ------
    UsageError
        If the format is unknown, only read, missing for a folder, or does not fit the suffix.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format '{format}': known are {', '.join(FORMATS)}")
    # Compressed files are read, never written.
    folder = path.is_dir() or path.suffix == ".gz"
    by_suffix = None if folder else _by_suffix(path)
    if by_suffix in _READ_ONLY or format in _READ_ONLY:
        what = f"format '{format}'" if format in _READ_ONLY else f"a file of format '{by_suffix}'"
        raise UsageError(
            f"{path}: {what} is only read; written are .safetensors, and folders of "
            "graph-challenge, npz or matrix-market"
        )
    if by_suffix is None and format is None:
        raise UsageError(
            f"{path}: writing a folder needs a format: graph-challenge, npz or matrix-market "
            "(one file: a name that ends in .safetensors)"
        )
    if by_suffix is None and format == "native":
        raise UsageError(f"{path}: the name of a native file must end in .safetensors")
    if by_suffix and format not in (None, by_suffix):
        raise UsageError(f"{path}: the suffix '{path.suffix}' does not fit format '{format}'")
    return by_suffix or format or ""  # one of the two is there: a folder without was refused


def _read_safetensors(path: Path, layers: int | None, options: ReadOptions) -> SparseNetwork:
    from sparsednn.formats import _container, native

    if native.is_native(_container.read_header(path)):
        options.refuse(path, "a native file says all that there is to say")
        return native.read(path, layers=layers)
    # Not before it is needed: this has to be quick for native files.
    from sparsednn.formats import dense_checkpoint

    return dense_checkpoint.read(path, layers=layers, options=options)
