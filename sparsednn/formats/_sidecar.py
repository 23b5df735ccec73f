"""Folders of one matrix file per layer, and ``network.json``, which says the rest about them.

Shared by the SciPy and the Matrix Market format, whose files hold a matrix and nothing else::

    {"format": "sparsednn-network", "version": 1, "name": "lenet-300-100",
     "layers": [{"file": "layer-1.npz", "activation": "relu", "bias": -0.25},
                {"file": "layer-2.npz", "activation": "identity", "bias": "bias-2.npy"}]}

A bias is one number or the name of a ``.npy`` file ``(n_out,)``. "file" may be left out: then
the folder's files are taken in natural order. Without ``network.json`` all files are, with relu
behind all layers but the last, identity behind the last, and one bias for all (0 by default).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.atomic import atomic_file, atomic_folder
from sparsednn.errors import FormatError, UsageError
from sparsednn.formats._common import (
    FLOAT32_MAX,
    NOT_NUMPY,
    first_layers,
    located,
    natural_key,
    of_another_format,
    reading,
)
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["SIDECAR", "layer_from_matrix", "read_matrices", "write_matrices"]

SIDECAR: Final = "network.json"
_FORMAT: Final = "sparsednn-network"


@dataclass(frozen=True, slots=True)
class _Entry:
    file: Path
    activation: Activation
    bias: float | Path


def read_matrices(
    path: Path,
    suffixes: Sequence[str],
    load: Callable[[Path], Any],
    *,
    layers: int | None,
    bias: float | None,
) -> SparseNetwork:
    """Read a folder, or a single file as a network of one layer.

    Parameters
    ----------
    path
        The folder or file.
    suffixes
        What the names of the matrix files end in.
    load
        Reads one file as a SciPy sparse ``(n_out, n_in)`` matrix, or raises FormatError.
    layers
        Read only so many layers from the first on; None for all.
    bias
        One bias for all neurons, where there is no ``network.json``; None for 0.

    Raises
    ------
    FormatError, ShapeError, InputError, UsageError
        As the public readers say.
    """
    if bias is not None and not abs(bias) <= FLOAT32_MAX:
        raise UsageError(f"{path}: bias {bias}: it must be finite, in float32")
    if path.is_dir():
        name, entries = _entries(path, suffixes, bias)
    else:
        name = path.name.removesuffix(".gz").rpartition(".")[0] or path.name
        entries = [_Entry(path, Activation("identity"), bias or 0.0)]
    count = first_layers(path, len(entries), layers)
    made = [_layer(entry, load) for entry in entries[:count]]
    with located(path):
        return SparseNetwork(made, name=name)


def write_matrices(
    network: SparseNetwork, path: Path, suffix: str, save: Callable[[BinaryIO, Any], None]
) -> None:
    """Write a folder of ``layer-1{suffix}`` … with ``network.json``, or one file.

    A `path` that ends in `suffix` (and is no folder) is one file: it holds one layer with
    identity and no bias, since there is no place to say anything else.
    """
    if path.suffix == suffix and not path.is_dir():
        _check_single(network, path, suffix)
        with atomic_file(path) as file:
            save(file, network[0].weight)
        return
    entries = []
    own = {".npz": "npz", ".mtx": "matrix-market"}[suffix]
    with atomic_folder(path, belongs=of_another_format(own)) as folder:
        for number, layer in enumerate(network, 1):
            file_name = f"layer-{number}{suffix}"
            with atomic_file(folder / file_name) as file:
                save(file, layer.weight)
            bias: float | str = float(layer.bias[0])
            if not np.all(layer.bias.view(np.int32) == layer.bias.view(np.int32)[0]):
                bias = f"bias-{number}.npy"
                with atomic_file(folder / bias) as file:
                    np.save(file, layer.bias, allow_pickle=False)
            entries.append({"file": file_name, "activation": str(layer.activation), "bias": bias})
        content = {"format": _FORMAT, "version": 1, "name": network.name, "layers": entries}
        with atomic_file(folder / SIDECAR) as file:
            text = json.dumps(content, indent=1, ensure_ascii=False)
            file.write(text.encode(errors="replace") + b"\n")


def layer_from_matrix(
    matrix: Any, where: object, bias: float | NDArray[np.float32], activation: Activation
) -> SparseLayer:
    """Make a layer of a SciPy matrix from a file; `where` stands in front of every error."""
    if matrix.dtype.kind not in "biuf":
        raise FormatError(f"{where}: weights are {matrix.dtype}, expected real numbers")
    if len(matrix.shape) != 2 or min(matrix.shape) < 1:
        raise FormatError(f"{where}: a matrix of shape {matrix.shape}")
    csr = matrix.tocsr()
    if matrix.format == "coo" and csr.nnz != matrix.nnz:
        # SciPy has added them up: find one pair to name.
        keys = matrix.row.astype(np.int64) * matrix.shape[1] + matrix.col
        keys.sort()
        row, col = divmod(int(keys[:-1][keys[1:] == keys[:-1]][0]), matrix.shape[1])
        raise FormatError(f"{where}: entry ({row + 1}, {col + 1}) is there twice")
    # SciPy's astype would add up duplicates, so the layer converts the values itself; what is too
    # large for float32 becomes infinite, which its check names.
    with np.errstate(over="ignore"), located(where):
        return SparseLayer.from_scipy(csr, bias=bias, activation=activation)


def _layer(entry: _Entry, load: Callable[[Path], Any]) -> SparseLayer:
    bias: float | NDArray[np.float32]
    if isinstance(entry.bias, Path):
        with reading(entry.bias):
            try:
                bias = np.load(entry.bias, allow_pickle=False)
            except NOT_NUMPY as error:
                raise FormatError(f"{entry.bias}: not a NumPy array file") from error
        if not isinstance(bias, np.ndarray) or bias.dtype.kind not in "biuf" or bias.ndim != 1:
            raise FormatError(f"{entry.bias}: not a list of real numbers (n_out,)")
    else:
        bias = entry.bias
    return layer_from_matrix(load(entry.file), entry.file, bias, entry.activation)


def _entries(folder: Path, suffixes: Sequence[str], bias: float | None) -> tuple[str, list[_Entry]]:
    """Name and layers of a folder, from its ``network.json`` if it has one."""
    with reading(folder):
        names = sorted(os.listdir(folder), key=natural_key)
    files = [folder / name for name in names if name.endswith(tuple(suffixes))]
    sidecar = folder / SIDECAR
    if SIDECAR in names:
        if bias is not None:
            raise UsageError(f"{sidecar} says what the biases are: no other can be given")
        return _from_sidecar(sidecar, files)
    if not files:
        raise FormatError(f"{folder}: no files *{' or *'.join(suffixes)}")
    activations = ["relu"] * (len(files) - 1) + ["identity"]
    entries = [
        _Entry(file, Activation(kind), bias or 0.0)
        for file, kind in zip(files, activations, strict=True)
    ]
    return folder.absolute().name, entries


def _from_sidecar(sidecar: Path, files: Sequence[Path]) -> tuple[str, list[_Entry]]:
    with reading(sidecar):
        text = sidecar.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{sidecar}: not JSON: {error}") from error
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not layers:
        raise FormatError(f"{sidecar}: no list 'layers' of at least one layer")
    if content.get("format") != _FORMAT or content.get("version") != 1:
        raise FormatError(
            f"{sidecar}: format {content.get('format')!r} version {content.get('version')!r}, "
            f"expected '{_FORMAT}' 1"
        )
    names = [file.name for file in files]
    entries = [_entry(sidecar, number, layer, names) for number, layer in enumerate(layers, 1)]
    return str(content.get("name", sidecar.absolute().parent.name)), entries


def _entry(sidecar: Path, number: int, layer: Any, names: Sequence[str]) -> _Entry:
    where = f"{sidecar}: layer {number}"
    if not isinstance(layer, dict) or not isinstance(layer.get("activation"), str):
        raise FormatError(f"{where}: expected an object with 'activation', 'bias', 'file'")
    with located(where):
        activation = Activation.parse(layer["activation"])
    bias = layer.get("bias", 0.0)
    if isinstance(bias, str):
        bias = _inside(where, sidecar, bias)
    elif type(bias) not in (int, float) or not abs(bias) <= FLOAT32_MAX:
        shown = repr(bias)[:40]
        raise FormatError(f"{where}: bias {shown} is neither a float32 number nor a file name")
    if "file" not in layer and number > len(names):
        raise FormatError(f"{where}: names no file, and the folder has only {len(names)}")
    file = layer["file"] if "file" in layer else names[number - 1]
    return _Entry(_inside(where, sidecar, file), activation, bias)


def _inside(where: str, sidecar: Path, name: Any) -> Path:
    """Return the path of a file of this folder; a description must not point elsewhere."""
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise FormatError(f"{where}: {name!r} is not the name of a file in this folder")
    return sidecar.parent / name


def _check_single(network: SparseNetwork, path: Path, suffix: str) -> None:
    layer = network[0]
    # The bits, as a bias of -0.0 is one, too: it would not come back.
    plain = layer.activation.kind == "identity" and not layer.bias.view(np.int32).any()
    if len(network) > 1 or not plain:
        what = f"{len(network)} layers" if len(network) > 1 else f"{layer.activation} or a bias"
        raise UsageError(
            f"{path}: one {suffix} file holds one layer, with identity and no bias; this network "
            f"has {what}: write a folder, or .safetensors"
        )
