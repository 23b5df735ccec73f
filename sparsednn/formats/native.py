"""The native format: a network in one ``.safetensors`` file, mapped into memory when read.

Layer i (from 0) is four tensors: ``layers.i.indptr`` (I64, ``n_out + 1``), ``.indices`` (I32,
``nnz``), ``.values`` (F32, ``nnz``), ``.bias`` (F32, ``n_out``). ``__metadata__`` holds
``format`` and ``format_version``, the network's ``name`` and ``hash``, and in ``layers`` a JSON
list of each layer's n_out, n_in, nnz, activation, bias_min and bias_max: all that `summarize`
tells, without touching a weight. A file without that metadata is taken for a dense checkpoint.
Further tensors and metadata are left alone, so that a file can be a network and more; who writes
one takes `pack` and `unpack`.
Must not import numba or SciPy: ``sparsednn inspect`` has to be quick.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.formats._common import first_layers, located
from sparsednn.formats._container import Container, Header, read_header, write_container
from sparsednn.formats._positioned import PositionedFile
from sparsednn.network import LayerSummary, NetworkSummary, SparseLayer, SparseNetwork

__all__ = [
    "FORMAT_NAME",
    "RowReader",
    "is_native",
    "pack",
    "read",
    "read_rows",
    "summarize",
    "unpack",
    "write",
]

FORMAT_NAME: Final = "sparsednn-network"
_VERSION: Final = "1"


def is_native(header: Header) -> bool:
    """Whether the file was written by `write` (or re-saved with its metadata)."""
    return header.metadata.get("format") == FORMAT_NAME


def read(
    path: str | os.PathLike[str], *, layers: int | None = None, check: bool = True
) -> SparseNetwork:
    """Read a native file; the arrays are read-only views on one memory map.

    Parameters
    ----------
    path
        The file.
    layers
        Read only so many layers from the first on; None for all.
    check
        Walk through all arrays once. False skips this (and so reads nothing before it is
        used): only for a file that this program has just written.

    Raises
    ------
    FormatError
        If the file is missing, truncated or inconsistent.
    ShapeError, InputError
        As for `SparseLayer`, with the file and the layer in front.
    UsageError
        If `layers` is below 1.
    """
    return unpack(Container(Path(path)), layers=layers, check=check)


def unpack(box: Container, *, layers: int | None = None, check: bool = True) -> SparseNetwork:
    """Return the network of an open file; parameters and errors as for `read`."""
    described = _described(box.header)
    count = first_layers(box.path, len(described), layers)
    made = [_layer(box, i, described[i], check) for i in range(count)]
    with located(box.path):
        return SparseNetwork(made, name=_name(box.header))


def read_rows(path: str | os.PathLike[str], layer: int, start: int, stop: int) -> SparseLayer:
    """Read rows ``[start, stop)`` of one layer (counted from 0) without reading the others.

    Returns
    -------
    SparseLayer
        Shape ``(stop - start, n_in)``; indices, values and bias are views on the file's map.

    Raises
    ------
    UsageError
        If there is no such layer, or the rows are not ``0 <= start < stop <= n_out``.
    FormatError, ShapeError, InputError
        As for `read`.
    """
    box = Container(Path(path))
    described = _described(box.header)
    if not 0 <= layer < len(described):
        raise UsageError(f"{path}: no layer {layer}: it has layers 0 to {len(described) - 1}")
    this = described[layer]
    if not 0 <= start < stop <= this.n_out:
        raise UsageError(
            f"{path}: layer {layer + 1}: no rows {start} to {stop}: it has {this.n_out} rows"
        )
    indptr, indices, values, bias = _arrays(box, layer, this)
    ends = indptr[start : stop + 1]
    first, last = int(ends[0]), int(ends[-1])
    if not 0 <= first <= last <= this.nnz:
        raise FormatError(
            f"{path}: layer {layer + 1}: rows {start} to {stop} would be entries {first} to "
            f"{last} of {this.nnz}"
        )
    with located(f"{path}: layer {layer + 1}, rows from {start}"):
        return SparseLayer(
            ends - first,
            indices[first:last],
            values[first:last],
            this.n_in,
            bias=bias[start:stop],
            activation=this.activation,
        )


class RowReader:
    """Any rows of any layer by positioned reads, for ranks that need a part of a file only.

    Nothing of the file stays in memory, nothing is mapped. Use it in a ``with`` block.

    Parameters
    ----------
    path
        The file.
    layers
        Only so many layers from the first on; None for all.

    Attributes
    ----------
    name
        The network's.
    layers
        What is known of each layer.
    hash
        The network's stored content hash; None where the file has none, or where `layers` leaves
        some out (it is that of all layers).
    pattern_hash
        The same of the stored hash of the pattern.

    Raises
    ------
    FormatError
        If the file is missing, truncated, not native or inconsistent, or has too few layers.
    UsageError
        If `layers` is below 1.
    """

    def __init__(self, path: str | os.PathLike[str], *, layers: int | None = None) -> None:
        # Opened last: nothing is left open by an error before it.
        header = read_header(Path(path))
        described = _described(header)
        count = first_layers(header.path, len(described), layers)
        self.name = _name(header)
        self.layers = described[:count]
        whole = count == len(described)
        self.hash = (header.metadata.get("hash") or None) if whole else None
        self.pattern_hash = (header.metadata.get("pattern") or None) if whole else None
        self._file = PositionedFile(header)

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()

    def layer(self, index: int) -> SparseLayer:
        """Read and check a whole layer (counted from 0)."""
        return self.rows(index, np.arange(self.layers[index].n_out, dtype=np.int32))

    def rows(self, index: int, rows: NDArray[np.int32]) -> SparseLayer:
        """Read and check some rows of a layer.

        Parameters
        ----------
        index
            The layer, counted from 0.
        rows
            Which, ascending; perhaps none.

        Returns
        -------
        SparseLayer
            ``(n_out, n_in)``, in which all other rows are empty and have bias zero (so messages
            tell the true numbers of rows). Its arrays are its own.

        Raises
        ------
        FormatError, ShapeError, InputError
            As `read`, for these rows. Who reads each row somewhere has checked the layer.
        """
        this = self.layers[index]
        where = f"{self._file.header.path}: layer {index + 1}"
        starts, ends = self._entries(index, rows, where)
        indptr = np.zeros(this.n_out + 1, np.int64)
        indptr[rows + 1] = ends - starts
        np.cumsum(indptr, out=indptr)
        bias = np.zeros(this.n_out, np.float32)
        at = rows.astype(np.int64)
        bias[rows] = self._file.runs(f"layers.{index}.bias", np.float32, at, at + 1)
        with located(where):
            return SparseLayer(
                indptr,
                self._file.runs(f"layers.{index}.indices", np.int32, starts, ends),
                self._file.runs(f"layers.{index}.values", np.float32, starts, ends),
                this.n_in,
                bias=bias,
                activation=this.activation,
            )

    def _entries(
        self, index: int, rows: NDArray[np.int32], where: str
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the first entry of each row, and the one behind its last, as far as they can be.

        A row's end stands where the next row's begin does, so a run of m neighbouring rows has
        m + 1 numbers, and what holds for each row on its own holds for the layer.
        """
        n_out, nnz = self.layers[index].n_out, self.layers[index].nnz
        new_run = np.diff(rows, prepend=-2) != 1
        first = rows[new_run].astype(np.int64)
        last = rows[np.append(new_run[1:], True)[: rows.size]].astype(np.int64)
        numbers = self._file.runs(f"layers.{index}.indptr", np.int64, first, last + 2)
        at = np.arange(rows.size) + np.cumsum(new_run) - 1
        starts, ends = numbers[at], numbers[at + 1]
        wrong = (starts < 0) | (ends < starts) | (ends > nnz)
        wrong |= (rows == 0) & (starts != 0)
        wrong |= (rows == n_out - 1) & (ends != nnz)
        wrong[1:] |= starts[1:] < ends[:-1]
        if wrong.any():
            i = int(np.argmax(wrong))
            raise ShapeError(
                f"{where}: row {rows[i]} would be entries {starts[i]} to {ends[i]}, but indptr "
                f"must ascend from 0 to {nnz}"
            )
        return starts, ends


def summarize(path: str | os.PathLike[str]) -> NetworkSummary:
    """What `SparseNetwork.summary` says, from the header alone (the hash is the stored one).

    Raises
    ------
    FormatError
        If the file is missing, truncated, or not native.
    """
    header = read_header(Path(path))
    described = _described(header)
    nbytes = sum(8 * (d.n_out + 1) + 8 * d.nnz + 4 * d.n_out for d in described)
    return NetworkSummary(_name(header), described, nbytes, header.metadata.get("hash", ""))


def write(network: SparseNetwork, path: str | os.PathLike[str]) -> None:
    """Write a native file, atomically, without a second copy of the network in memory.

    Raises
    ------
    FormatError
        If the file cannot be written.
    """
    write_container(Path(path), *pack(network))


def pack(network: SparseNetwork) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Return the tensors (the network's own arrays) and the metadata that `write` writes."""
    tensors: dict[str, NDArray[Any]] = {}
    described = []
    for i, layer in enumerate(network):
        for part in ("indptr", "indices", "values", "bias"):
            tensors[f"layers.{i}.{part}"] = getattr(layer, part)
        summary = layer.summary
        described.append({key: getattr(summary, key) for key in LayerSummary.__slots__})
    metadata = {
        "format": FORMAT_NAME,
        "format_version": _VERSION,
        "name": network.name,
        "hash": network.hash,
        "pattern": network.pattern_hash,
        "layers": json.dumps(described, separators=(",", ":")),
    }
    return tensors, metadata


def _name(header: Header) -> str:
    return header.metadata.get("name", header.path.stem)


def _described(header: Header) -> tuple[LayerSummary, ...]:
    """Return the metadata's list of layers, after checking it against the tensors' shapes."""
    path = header.path
    if not is_native(header):
        raise FormatError(f"{path}: not a native network: its metadata lacks '{FORMAT_NAME}'")
    version = header.metadata.get("format_version")
    if version != _VERSION:
        raise FormatError(f"{path}: format version {version}, this program reads {_VERSION}")
    try:
        entries = json.loads(header.metadata["layers"])
        described = tuple(
            LayerSummary(
                int(e["n_out"]),
                int(e["n_in"]),
                int(e["nnz"]),
                str(Activation.parse(e["activation"])),
                float(e["bias_min"]),
                float(e["bias_max"]),
            )
            for e in entries
        )
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, InputError) as error:
        raise FormatError(f"{path}: its metadata has no usable list of layers: {error}") from error
    if not described:
        raise FormatError(f"{path}: a network of no layers")
    for i, this in enumerate(described):
        if this.n_out < 1 or this.n_in < 1:
            raise FormatError(f"{path}: layer {i + 1}: shape ({this.n_out}, {this.n_in})")
        for part, dtype, size in (
            ("indptr", "I64", this.n_out + 1),
            ("indices", "I32", this.nnz),
            ("values", "F32", this.nnz),
            ("bias", "F32", this.n_out),
        ):
            tensor = header.tensors.get(f"layers.{i}.{part}")
            if tensor is None or tensor.dtype != dtype or tensor.shape != (size,):
                found = "is missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                raise FormatError(
                    f"{path}: layer {i + 1}: tensor 'layers.{i}.{part}' {found}, "
                    f"expected {dtype} [{size}]"
                )
    return described


def _arrays(
    box: Container, i: int, this: LayerSummary
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]:
    """Return the tensors of layer i, whose dtypes and shapes `_described` has checked."""
    indptr, indices, values, bias = (
        box.get(f"layers.{i}.{part}") for part in ("indptr", "indices", "values", "bias")
    )
    return indptr, indices, values, bias


def _layer(box: Container, i: int, this: LayerSummary, check: bool) -> SparseLayer:
    indptr, indices, values, bias = _arrays(box, i, this)
    with located(f"{box.path}: layer {i + 1}"):
        return SparseLayer(
            indptr,
            indices,
            values,
            this.n_in,
            bias=bias,
            activation=this.activation,
            check=check,
        )
