"""A network's layers as hypergraph files for other tools, and the parts that these write.

``layer-1.hgr``, ``layer-1.fix``, ``layer-2.hgr``, … go out (`sparsednn.partitioners.hmetis` has the
formats); ``layer-1.part``, … come back.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.atomic import atomic_folder
from sparsednn.errors import FormatError, InputError, ShapeError
from sparsednn.network import SparseNetwork
from sparsednn.partitioners.compaction import drop_small_nets
from sparsednn.partitioners.hmetis import layer_part_file, read_parts, write_fix, write_hgr
from sparsednn.partitioners.hypergraph import Hypergraph, layer_hypergraph
from sparsednn.partitioners.partition import Partition

__all__ = ["exported_hypergraph", "read_layer_parts", "write_hypergraphs"]

_EXPORTED: Final = re.compile(r"layer-[1-9][0-9]*\.(hgr|fix)")


def exported_hypergraph(
    network: SparseNetwork, layer: int, parts: int, partition: Partition | None = None
) -> Hypergraph:
    """The hypergraph of a layer (from 1) without the nets that no partition can cut.

    With a partition, fixed vertices stand for the parts that own the layer's inputs, and
    connectivity-1 is the words of this layer. Without one there are no fixed vertices.
    """
    owners = None if partition is None else partition.owners[layer - 1]
    return drop_small_nets(layer_hypergraph(network[layer - 1], parts, owners=owners))


def write_hypergraphs(
    network: SparseNetwork,
    parts: int,
    folder: str | os.PathLike[str],
    *,
    partition: Partition | None = None,
    layer: int | None = None,
) -> list[Hypergraph]:
    """Write ``layer-k.hgr`` and ``layer-k.fix`` of all layers, atomically.

    Parameters
    ----------
    network
        The network.
    parts
        Number of parts, K.
    folder
        Made if it is not there; its parent must exist.
    partition
        Who owns the inputs of each layer (`exported_hypergraph`). It must be one of this network
        (`Partition.check`).
    layer
        Only this layer, from 1.

    Returns
    -------
    What was written, in the order of the layers.

    Raises
    ------
    InputError
        If there is no such layer, no part, or the partition has another number of parts.
    FormatError
        If files cannot be written, or the folder has files of further layers.
    """
    if parts < 1:
        raise InputError(f"parts must be at least 1, found {parts}")
    if partition is not None and partition.parts != parts:
        raise InputError(f"the partition has {partition.parts} parts, {parts} were asked for")
    if layer is not None and not 1 <= layer <= len(network):
        raise InputError(f"no layer {layer}: the network has {len(network)}")
    numbers = range(1, len(network) + 1) if layer is None else [layer]
    written = []
    # Files of single layers are collected in one folder: only a whole export must be alone.
    belongs = None if layer is not None else _is_exported
    with atomic_folder(folder, belongs=belongs) as temporary:
        for number in numbers:
            hypergraph = exported_hypergraph(network, number, parts, partition)
            write_hgr(hypergraph, temporary / f"layer-{number}.hgr")
            write_fix(hypergraph.fixed, temporary / f"layer-{number}.fix")
            written.append(hypergraph)
    return written


def _is_exported(name: str) -> bool:
    return _EXPORTED.fullmatch(name) is not None


def read_layer_parts(
    folder: str | os.PathLike[str], network: SparseNetwork, parts: int
) -> list[NDArray[np.int32]]:
    """Read what another tool has made of `write_hypergraphs`: ``layer-1.part``, ….

    A file has a line per row or, as tools write it, also one per fixed vertex after these.

    Returns
    -------
    One ``(n_out,)`` int32 vector per layer.

    Raises
    ------
    FormatError
        If the folder or a file is missing, a line is wrong, or there are files of further layers.
    InputError
        If a fixed vertex is elsewhere: the tool has named the parts anew, and what it minimized
        were not the words of this network.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FormatError(f"{folder}: no such folder")
    further = folder / layer_part_file(len(network) + 1)
    if further.exists():
        raise FormatError(f"{further}: the network has only {len(network)} layers")
    owners = []
    for number, layer in enumerate(network, 1):
        path = folder / layer_part_file(number)
        found = read_parts(path, None, parts)
        rows, fixed = found[: layer.n_out], found[layer.n_out :]
        if rows.size < layer.n_out or fixed.size not in (0, parts):
            raise ShapeError(
                f"{path}: has {found.size} lines, layer {number} has {layer.n_out} rows (or "
                f"{layer.n_out + parts} lines, with the fixed vertices)"
            )
        moved = np.flatnonzero(fixed != np.arange(fixed.size))
        if moved.size:
            at = int(moved[0])
            raise InputError(
                f"{path}: line {layer.n_out + at + 1}: the vertex fixed to part {at} is in part "
                f"{fixed[at]}"
            )
        owners.append(rows)
    return owners
