"""Files that hypergraph partitioners understand: hMetis hypergraphs, fix files and part files.

``.hgr`` (hMetis manual 1.5.3, section 5.1; read by hMetis, PaToH's converters, KaHyPar, Mt-KaHyPar
and Zoltan)::

    % a comment; anywhere, but '%' starts the line
    4 7 11          nets, vertices, what has weights: none or 0, 1 nets, 10 vertices, 11 both
    2 1 2           one line per net: its weight (if nets have), its vertices from 1 on
    3 1 7 5 6
    8 5 6 4
    7 2 3 4
    5               one line per vertex: its weight (if vertices have)
    …

Vertices may weigh 0 (hMetis takes that, KaHyPar's program does not); a net has at least one
vertex and weighs at least 1. A **fix file** has a line per vertex: the part it is fixed to, from 0
on, or -1. A **part file** has a line per vertex: its part, from 0 on.

A file that does not end in a newline was cut off, perhaps in the middle of a number, and is
refused. All work on pins is array operations.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.atomic import atomic_file, atomic_folder
from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.partitioners._numbers import Numbers, format_numbers, read_numbers
from sparsednn.partitioners.hypergraph import FREE, Hypergraph

__all__ = [
    "layer_part_file",
    "read_fix",
    "read_hgr",
    "read_parts",
    "write_fix",
    "write_hgr",
    "write_parts",
    "write_parts_folder",
]

_LARGEST_INT32: Final = 2**31 - 1
_LAYER_FILE: Final = re.compile(r"layer-([1-9][0-9]*)\.part")
_HAS_WEIGHTS: Final = {0: (False, False), 1: (True, False), 10: (False, True), 11: (True, True)}


def read_hgr(path: str | os.PathLike[str]) -> Hypergraph:
    """Read a hypergraph; its vertices are free (`read_fix` says otherwise).

    Returns
    -------
    Hypergraph
        Pins in the order of the file; weights that the file does not have are 1.

    Raises
    ------
    FormatError
        If the file is missing, cut off or malformed, naming the line.
    """
    shown = Path(path)
    numbers = read_numbers(shown)
    if not numbers.lines.size:
        raise FormatError(f"{shown}: no header line")
    header = numbers.line(0)
    if header.size not in (2, 3):
        raise FormatError(
            f"{numbers.where(0)}: the header has {header.size} numbers, expected "
            "'nets vertices [0, 1, 10 or 11]'"
        )
    n_nets, n_vertices = int(header[0]), int(header[1])
    flag = int(header[2]) if header.size == 3 else 0
    if min(n_nets, n_vertices) < 0 or max(n_nets, n_vertices) > _LARGEST_INT32:
        raise FormatError(f"{numbers.where(0)}: {n_nets} nets and {n_vertices} vertices")
    if flag not in _HAS_WEIGHTS:
        raise FormatError(f"{numbers.where(0)}: weights {flag}, expected 0, 1, 10 or 11")
    net_weighted, vertex_weighted = _HAS_WEIGHTS[flag]
    numbers.expect_lines(1 + n_nets + (n_vertices if vertex_weighted else 0))

    sizes = numbers.counts[1 : 1 + n_nets].copy()
    start = int(numbers.starts[1])
    values = numbers.values[start : int(numbers.starts[1 + n_nets])]
    net_weights = np.ones(n_nets, dtype=np.int64)
    if net_weighted:
        firsts = numbers.starts[1 : 1 + n_nets] - start
        filled = sizes > 0
        net_weights[filled] = values[firsts[filled]]
        is_pin = np.ones(values.size, dtype=np.bool_)
        is_pin[firsts[filled]] = False
        values = values[is_pin]
        sizes[filled] -= 1
    _check_nets(numbers, sizes, values, net_weights, n_vertices)
    net_ptr = np.zeros(n_nets + 1, dtype=np.int64)
    np.cumsum(sizes, out=net_ptr[1:])

    vertex_weights = np.ones(n_vertices, dtype=np.int64)
    if vertex_weighted:
        vertex_weights = numbers.column(1 + n_nets, "vertex weight", 0, None)
    fixed = np.full(n_vertices, FREE, dtype=np.int32)
    return Hypergraph(net_ptr, (values - 1).astype(np.int32), vertex_weights, net_weights, fixed)


def _check_nets(
    numbers: Numbers,
    sizes: NDArray[np.int64],
    pins: NDArray[np.int64],
    weights: NDArray[np.int64],
    n_vertices: int,
) -> None:
    """Raise for the first net of a kind that is not legal; `pins` count from 1."""
    if (weights < 1).any():
        at = int((weights < 1).argmax())
        raise FormatError(f"{numbers.where(1 + at)}: net {at + 1} has weight {weights[at]}")
    if (sizes < 1).any():
        at = int((sizes < 1).argmax())
        raise FormatError(f"{numbers.where(1 + at)}: net {at + 1} has no vertices")
    nets = np.repeat(np.arange(sizes.size), sizes)
    outside = (pins < 1) | (pins > n_vertices)
    if outside.any():
        at = int(outside.argmax())
        raise FormatError(
            f"{numbers.where(1 + int(nets[at]))}: vertex {pins[at]} of net {nets[at] + 1} is "
            f"outside 1 to {n_vertices}"
        )
    # Most writers sort the vertices of a net; only where one has not, sorting is needed.
    same_net = nets[1:] == nets[:-1]
    if not (same_net & (pins[1:] <= pins[:-1])).any():
        return
    keys = np.sort(nets * (n_vertices + 1) + pins)
    twice = keys[1:] == keys[:-1]
    if twice.any():
        net, vertex = divmod(int(keys[int(twice.argmax())]), n_vertices + 1)
        raise FormatError(f"{numbers.where(1 + net)}: net {net + 1} has vertex {vertex} twice")


def write_hgr(hypergraph: Hypergraph, path: str | os.PathLike[str]) -> None:
    """Write a hypergraph, atomically; weights only where one is not 1.

    Where vertices are fixed is not part of the format: `write_fix`.

    Raises
    ------
    InputError
        If a net is empty: no line can say so. `compaction.drop_small_nets` leaves such nets out,
        which changes no partition's cost.
    FormatError
        If the file cannot be written.
    """
    sizes = np.diff(hypergraph.net_ptr)
    if (sizes == 0).any():
        raise InputError(
            f"{path}: net {int((sizes == 0).argmax())} (from 0) has no pins, which the format "
            "cannot hold: leave out empty nets first"
        )
    net_weighted = bool((hypergraph.net_weights != 1).any())
    vertex_weighted = bool((hypergraph.vertex_weights != 1).any())
    header = [hypergraph.n_nets, hypergraph.n_vertices]
    if net_weighted or vertex_weighted:
        header.append(net_weighted + 10 * vertex_weighted)
    numbers = hypergraph.pins.astype(np.int64) + 1
    ends = hypergraph.net_ptr[1:]
    if net_weighted:
        numbers = np.insert(numbers, hypergraph.net_ptr[:-1], hypergraph.net_weights)
        ends = ends + np.arange(1, hypergraph.n_nets + 1)
    with atomic_file(path) as file:
        file.write((" ".join(map(str, header)) + "\n").encode())
        file.writelines(format_numbers(numbers, ends))
        if vertex_weighted:
            file.writelines(format_numbers(hypergraph.vertex_weights))


def read_fix(path: str | os.PathLike[str], n_vertices: int, parts: int) -> NDArray[np.int32]:
    """Read a fix file.

    Returns
    -------
    ``(n_vertices,)`` int32: the part of a fixed vertex, `FREE` for the others.

    Raises
    ------
    FormatError
        If the file is missing, has another number of lines, or a part is not in -1 to
        ``parts - 1``, naming the line.
    """
    return _read_column(Path(path), n_vertices, FREE, parts)


def write_fix(fixed: NDArray[Any], path: str | os.PathLike[str]) -> None:
    """Write a fix file from ``(n_vertices,)`` parts, `FREE` where a vertex is free; atomically."""
    _write_column(fixed, path, FREE)


def read_parts(
    path: str | os.PathLike[str], n_vertices: int | None, parts: int
) -> NDArray[np.int32]:
    """Read a part file.

    Returns
    -------
    ``(n_vertices,)`` int32; for None as many as there are.

    Raises
    ------
    FormatError
        If the file is missing, has another number of lines, or a part is not in 0 to
        ``parts - 1``, naming the line.
    """
    return _read_column(Path(path), n_vertices, 0, parts)


def write_parts(labels: NDArray[Any], path: str | os.PathLike[str]) -> None:
    """Write a part file from ``(n_vertices,)`` parts; atomically."""
    _write_column(labels, path, 0)


def layer_part_file(layer: int) -> str:
    """Name of a layer's part file in a folder; layers count from 1.

    >>> layer_part_file(1)
    'layer-1.part'
    """
    return f"layer-{layer}.part"


def write_parts_folder(labels: Sequence[NDArray[Any]], folder: str | os.PathLike[str]) -> None:
    """Write the parts of all layers, as `export.read_layer_parts` reads them; atomically.

    Raises
    ------
    FormatError
        If a file cannot be written, or the folder has files of further layers.
    """
    with atomic_folder(folder, belongs=lambda name: bool(_LAYER_FILE.fullmatch(name))) as temporary:
        for layer, column in enumerate(labels, 1):
            write_parts(column, temporary / layer_part_file(layer))


def _read_column(path: Path, size: int | None, least: int, parts: int) -> NDArray[np.int32]:
    numbers = read_numbers(path)
    if size is not None:
        numbers.expect_lines(size)
    return numbers.column(0, "part", least, parts - 1).astype(np.int32)


def _write_column(values: NDArray[Any], path: str | os.PathLike[str], least: int) -> None:
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise ShapeError(f"{path}: parts must be a flat array of integers, found {values.shape}")
    if values.size and int(values.min()) < least:
        at = int((values < least).argmax())
        raise InputError(f"{path}: vertex {at} has part {values[at]}, expected at least {least}")
    with atomic_file(path) as file:
        file.writelines(format_numbers(values.astype(np.int64)))
