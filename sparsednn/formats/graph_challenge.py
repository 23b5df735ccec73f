"""Networks of the Sparse DNN Graph Challenge: a folder of triplet files, one per layer.

``neuron1024/n1024-l1.tsv`` … ``n1024-l120.tsv``: A(i, j) is the connection from neuron i to
neuron j, so a layer here is the transpose; the lines are sorted by column, then row, which is
this layer's row order. The format has neither biases nor activations: the activation is
always ``clamped_relu:32``, the bias is one number for all layers, the official one of that
width or the one that is given when reading. The challenge adds it to nonzero sums only, which
equals adding it everywhere as long as it is not positive, so a positive one is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import numpy as np

from sparsednn.atomic import atomic_folder
from sparsednn.challenge import ACTIVATION, OFFICIAL_BIAS
from sparsednn.errors import FormatError, InputError, UsageError
from sparsednn.formats._common import (
    FLOAT32_MAX,
    first_layers,
    located,
    of_another_format,
    reading,
    thread_map,
)
from sparsednn.formats._text import load, newlines, stripped
from sparsednn.network import LayerSummary, NetworkSummary, SparseLayer, SparseNetwork

__all__ = ["read", "summarize", "write", "write_layers"]

_LAYER_FILE: Final = re.compile(r"n([1-9][0-9]{0,8})-l([1-9][0-9]{0,8})\.tsv(\.gz)?")
_EMPTY: Final = "no connections: the file was cut off"
_FOLDER: Final = re.compile(r"neuron[0-9]+")


def read(
    path: str | os.PathLike[str],
    *,
    layers: int | None = None,
    bias: float | None = None,
    threads: int | None = None,
) -> SparseNetwork:
    """Read a Graph Challenge network, its files in parallel.

    Parameters
    ----------
    path
        The folder with the layer files, or a folder with exactly one ``neuron*`` folder.
    layers
        Read only the first so many; None for all.
    bias
        One bias for all neurons, at most 0; None for the official one of that width.
    threads
        At most so many files at a time; None for the cores of this process.

    Raises
    ------
    FormatError
        If a file is missing or malformed, naming file and line.
    UsageError
        If `bias` is positive or not finite, or needed and not given, or `layers` is below 1.
    """
    from sparsednn.formats.tsv import compress, read_triplets

    folder, neurons, files, used = _found(Path(path), layers, bias)

    def read_layer(file: Path) -> SparseLayer:
        # Few large files (or one) leave threads over: these then read parts of a file.
        triplets = read_triplets(
            file, max_row=neurons, max_col=neurons, threads=1 if len(files) > 1 else threads
        )
        if not triplets.rows.size:
            raise FormatError(f"{file}: {_EMPTY}")
        indptr, indices, values = compress(triplets, neurons, neurons, by_column=True)
        if values is None:
            values = np.ones(indices.size, np.float32)
        # Range, order, duplicates and finite values have been checked with line numbers.
        return SparseLayer(
            indptr, indices, values, neurons, bias=used, activation=ACTIVATION, check=False
        )

    made = thread_map(read_layer, files, threads)
    with located(folder):
        return SparseNetwork(made, name=f"neuron{neurons}")


def summarize(
    path: str | os.PathLike[str], *, layers: int | None = None, bias: float | None = None
) -> NetworkSummary:
    """Count the connections of each layer, without reading what they are; there is no hash then.

    Raises
    ------
    FormatError, UsageError
        As `read` does, but the lines themselves are not looked at.
    """
    _, neurons, files, used = _found(Path(path), layers, bias)
    counts = thread_map(_count_lines, files)
    exact = float(np.float32(used))
    made = tuple(
        LayerSummary(neurons, neurons, count, str(ACTIVATION), exact, exact) for count in counts
    )
    # As `read` would have them: row pointers and biases of each layer, indices and weights.
    size = len(files) * (8 * (neurons + 1) + 4 * neurons) + 8 * sum(counts)
    return NetworkSummary(f"neuron{neurons}", made, size, None)


def _count_lines(file: Path) -> int:
    text = load(file)
    end = stripped(text)
    if not end:
        raise FormatError(f"{file}: {_EMPTY}")
    return newlines(text, 0, end) + 1


def _found(
    path: Path, layers: int | None, bias: float | None
) -> tuple[Path, int, list[Path], float]:
    """Folder, width, the files of the layers that are wanted, in order, and the bias."""
    folder = _folder(path)
    neurons, files = _layer_files(folder)
    count = first_layers(folder, max(files), layers)
    for number in range(1, count + 1):
        if number not in files:
            missing = folder / f"n{neurons}-l{number}.tsv"
            raise FormatError(f"{missing}: no such file, but there is {files[max(files)].name}")
    wanted = [files[number] for number in range(1, count + 1)]
    return folder, neurons, wanted, _bias(folder, neurons, bias)


def write(network: SparseNetwork, folder: str | os.PathLike[str]) -> None:
    """Write a network as a Graph Challenge folder.

    Only what reading gives back is written: every layer is square and of the same width, has
    the activation ``clamped_relu:32``, and one constant bias (at most 0) serves all. If that is
    not the official one, it has to be given again when reading (``bias=``, ``--bias``).

    Raises
    ------
    InputError
        If the format cannot hold the network, naming the layer.
    FormatError
        As for `write_layers`.
    """
    for number, layer in enumerate(network, 1):
        with located(f"{folder}: layer {number}"):
            _check(layer, network.n_in, network[0].bias[0])
    write_layers(network, folder, network.n_in)


def write_layers(
    layers: Iterable[SparseLayer], folder: str | os.PathLike[str], neurons: int
) -> None:
    """Write layers as they come, holding one at a time; the folder appears at the end.

    Parameters
    ----------
    layers
        At least one; all ``(neurons, neurons)`` and of the kind that `write` describes.
    folder
        The folder for the ``n{neurons}-l*.tsv`` files itself. If it is there, files are moved
        into it one by one (see `sparsednn.atomic.atomic_folder`).
    neurons
        The width.

    Raises
    ------
    InputError
        If a layer cannot be held by the format, or there is none.
    FormatError
        If a file cannot be written, or the folder has further layers that would mix in.
    """
    from sparsednn.formats.tsv import slices, write_triplets

    shown = Path(folder)
    bias: np.float32 | None = None
    number = 0
    with atomic_folder(shown, belongs=_would_mix) as temporary:
        for number, layer in enumerate(layers, 1):
            bias = layer.bias[0] if bias is None else bias
            with located(f"{shown}: layer {number}"):
                _check(layer, neurons, bias)
            write_triplets(
                temporary / f"n{neurons}-l{number}.tsv",
                (
                    (layer.indices[a:b], rows, layer.values[a:b])
                    for a, b, rows in slices(layer.indptr)
                ),
            )
        if not number:
            raise InputError(f"{shown}: no layers to write")


def _would_mix(name: str) -> bool:
    return _LAYER_FILE.fullmatch(name) is not None or of_another_format("graph-challenge")(name)


def _check(layer: SparseLayer, neurons: int, bias: np.float32) -> None:
    """Raise if the format would lose something of this layer."""
    fix = "; write it as .safetensors instead"
    if layer.shape != (neurons, neurons):
        raise InputError(
            f"shape {layer.shape}: a Graph Challenge layer is square, here "
            f"({neurons}, {neurons}){fix}"
        )
    if not layer.nnz:
        raise InputError(f"no connections: reading takes an empty file for one cut off{fix}")
    if layer.activation != ACTIVATION:
        raise InputError(
            f"activation {layer.activation}: a Graph Challenge layer has {ACTIVATION}{fix}"
        )
    if bias > 0 or not np.all(layer.bias == bias):
        raise InputError(
            f"bias {layer.bias.min()} to {layer.bias.max()}: a Graph Challenge network has one "
            f"bias for all layers, at most 0{fix}"
        )


def _folder(path: Path) -> Path:
    """Return the folder with the layer files: `path`, or the one ``neuron*`` folder in it."""
    with reading(path):
        names = os.listdir(path)
    if any(_LAYER_FILE.fullmatch(name) for name in names):
        return path
    inner = sorted(n for n in names if _FOLDER.fullmatch(n) and (path / n).is_dir())
    if len(inner) > 1:
        raise FormatError(f"{path}: has {', '.join(inner)}: name the one to read")
    if not inner:
        raise FormatError(f"{path}: no Graph Challenge layer (nN-l1.tsv, such as n1024-l1.tsv)")
    return path / inner[0]


def _layer_files(folder: Path) -> tuple[int, dict[int, Path]]:
    """Width and files by layer number; a plain file is taken before its ``.gz`` twin."""
    widths: set[int] = set()
    files: dict[int, Path] = {}
    with reading(folder):
        names = sorted(os.listdir(folder), reverse=True)
    for name in names:
        match = _LAYER_FILE.fullmatch(name)
        if match:
            widths.add(int(match[1]))
            files[int(match[2])] = folder / name
    if len(widths) > 1:
        found = ", ".join(map(str, sorted(widths)))
        raise FormatError(f"{folder}: layers of several widths ({found}): one network per folder")
    if not files:
        raise FormatError(f"{folder}: no Graph Challenge layer (nN-l1.tsv, such as n1024-l1.tsv)")
    return widths.pop(), files


def _bias(folder: Path, neurons: int, bias: float | None) -> float:
    if bias is None:
        if neurons not in OFFICIAL_BIAS:
            raise UsageError(
                f"{folder}: there is no official bias for {neurons} neurons: give one with --bias"
            )
        return OFFICIAL_BIAS[neurons]
    if not -FLOAT32_MAX <= bias <= 0:
        raise UsageError(
            f"{folder}: bias {bias}: it must not be positive, as the challenge adds it to nonzero "
            "sums only, which equals adding it everywhere only then; and finite in float32"
        )
    return bias
