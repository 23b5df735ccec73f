"""Parts that another tool has made, read from files instead of computed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, UsageError
from sparsednn.partitioners.hmetis import layer_part_file, read_parts
from sparsednn.partitioners.hypergraph import FREE, Hypergraph
from sparsednn.partitioners.solvers._native import check_call, check_labels
from sparsednn.partitioners.solvers.base import SolverInfo

__all__ = ["FileSolver"]


class FileSolver:
    """Read the parts of a hypergraph's vertices from a part file.

    For all layers at once, `sparsednn.partitioners.export.read_layer_parts` needs no hypergraph.

    Parameters
    ----------
    path
        A part file, or a folder with ``layer-1.part``, ``layer-2.part``, …: then `for_layer` gives
        the solver of a layer.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    @property
    def info(self) -> SolverInfo:
        """Name only."""
        return SolverInfo("file")

    def for_layer(self, layer: int) -> FileSolver:
        """The solver of a layer, counted from 1, if the path is a folder."""
        return FileSolver(self._path / layer_part_file(layer))

    def solve(
        self, hypergraph: Hypergraph, parts: int, *, imbalance: float, seed: int
    ) -> NDArray[np.int32]:
        """Read the parts, and check that they are a partition of this hypergraph.

        The file has a line per vertex, or per free vertex only: fixed vertices stand for ranks,
        and a tool that has its own idea of these need not write them. `imbalance` and `seed`
        change nothing: the balance is that of the file.

        Raises
        ------
        UsageError
            If the path is a folder.
        FormatError
            If the file is missing, or has a wrong line.
        InputError
            If a fixed vertex is elsewhere in the file.
        """
        check_call(parts, imbalance, seed)
        if self._path.is_dir():
            raise UsageError(f"{self._path}: is a folder: name a layer's file in it")
        found = read_parts(self._path, None, parts)
        free = hypergraph.fixed == FREE
        n_free = int(np.count_nonzero(free))
        if found.size == n_free:
            labels = hypergraph.fixed.copy()
            labels[free] = found
        elif found.size == hypergraph.n_vertices:
            labels = found
        else:
            also = f" (or {hypergraph.n_vertices}, with the fixed ones)"
            raise FormatError(
                f"{self._path}: has {found.size} lines, there are {n_free} vertices to divide"
                f"{also if n_free < hypergraph.n_vertices else ''}"
            )
        check_labels(hypergraph, labels, parts, str(self._path))
        return labels
