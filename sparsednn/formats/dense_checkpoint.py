"""Checkpoints in safetensors files that other programs wrote: one file, or Hugging Face's shards.

What makes a layer is told in `sparsednn.formats.state_dict`; here are the tensors. Safetensors
knows dense tensors only. A sparse weight is a group of them: ``X.weight.values`` ``(nnz,)``,
``X.weight.shape`` ``[n_out, n_in]``, and either ``X.weight.crow_indices`` and
``X.weight.col_indices`` (CSR, by PyTorch's names) or ``X.weight.indices`` ``(2, nnz)`` (COO).
Shards are named by their index file, ``model.safetensors.index.json``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError
from sparsednn.formats import _csr
from sparsednn.formats._common import reading
from sparsednn.formats._container import Container
from sparsednn.formats._csr import CsrArrays
from sparsednn.formats.options import ReadOptions
from sparsednn.formats.state_dict import TensorInfo, read_state_dict
from sparsednn.network import SparseNetwork

__all__ = ["INDEX_SUFFIX", "read"]

INDEX_SUFFIX: Final = ".safetensors.index.json"
"""How the name of an index of shards ends."""

_CSR: Final = ("crow_indices", "col_indices", "values", "shape")
_COO: Final = ("indices", "values", "shape")


def read(
    path: str | os.PathLike[str],
    *,
    layers: int | None = None,
    options: ReadOptions | None = None,
) -> SparseNetwork:
    """Read a checkpoint as a sparse network, holding one dense layer at a time.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or the index of several.
    layers
        Read only so many (of the chosen) layers from the first on; None for all.
    options
        Which tensors are layers, and what the file does not say.

    Raises
    ------
    FormatError, ShapeError, InputError, UsageError
        As for `read_state_dict`; also if a file is missing or damaged.
    """
    path = Path(path)
    if path.name.endswith(INDEX_SUFFIX):
        boxes = _shards(path)
    else:
        box = Container(path)
        boxes = dict.fromkeys(box.header.tensors, box)
    return read_state_dict(_Source(path, boxes), options or ReadOptions(), layers=layers)


class _Source:
    """The tensors of one or several files; those of a sparse matrix appear as one."""

    unlike = "neither a native network nor a dense model"

    def __init__(self, path: Path, boxes: Mapping[str, Container]) -> None:
        self.path = path
        self.name = path.name.removesuffix(".index.json").removesuffix(".safetensors")
        self._boxes = boxes
        self._tensors: dict[str, TensorInfo] = {}
        for name, box in boxes.items():
            tensor = box.header.tensors[name]
            self._tensors[name] = TensorInfo(tensor.dtype, tensor.shape)
        for name in [n for n in boxes if n.endswith(".weight.values")]:
            self._fold(name.removesuffix(".values"))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, without reading them."""
        return self._tensors

    def _fold(self, weight: str) -> None:
        """Replace the tensors of one sparse matrix by one."""
        kind = _CSR if f"{weight}.crow_indices" in self._boxes else _COO
        for part in kind:
            if f"{weight}.{part}" not in self._boxes:
                raise FormatError(
                    f"{self.path}: no tensor '{weight}.{part}' beside '{weight}.values': a sparse "
                    f"weight has {', '.join(_CSR)}, or {', '.join(_COO)}"
                )
        infos = [self._tensors.pop(f"{weight}.{part}") for part in kind]
        integers = [info.dtype in ("I32", "I64") for info in infos]
        integers[-2] = True  # the values
        if not all(integers) or infos[-1].shape != (2,):
            named = ", ".join(f"{part} {info}" for part, info in zip(kind, infos, strict=True))
            raise FormatError(
                f"{self.path}: '{weight}': indices must be I32 or I64 and its shape be two "
                f"numbers, found {named}"
            )
        n_out, n_in = (int(size) for size in self._get(f"{weight}.shape"))
        if min(n_out, n_in) < 1:
            raise FormatError(f"{self.path}: '{weight}': its shape is [{n_out}, {n_in}]")
        self._tensors[weight] = TensorInfo(infos[-2].dtype, (n_out, n_in), sparse=True)

    def _get(self, name: str) -> NDArray[Any]:
        return self._boxes[name].get(name)

    def dense(self, name: str) -> NDArray[Any]:
        """Read a dense tensor; BF16 as float32."""
        return self._get(name)

    def sparse(self, name: str) -> CsrArrays:
        """Read a sparse matrix."""
        values = self._get(f"{name}.values")
        if f"{name}.crow_indices" in self._boxes:
            pointers = self._get(f"{name}.crow_indices").astype(np.int64)
            return CsrArrays(pointers, self._get(f"{name}.col_indices"), values)
        indices = self._get(f"{name}.indices")
        if indices.ndim != 2 or indices.shape[0] != 2:
            raise FormatError(
                f"{self.path}: tensor '{name}.indices' has shape {indices.shape}, expected (2, nnz)"
            )
        return _csr.from_coordinates(indices[0], indices[1], values, self._tensors[name].shape[0])


def _shards(path: Path) -> dict[str, Container]:
    """Open all files that an index names; returns the file of each tensor."""
    with reading(path):
        text = path.read_bytes()
    try:
        files = json.loads(text)["weight_map"]
        named = {str(name): str(file) for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(
            f"{path}: not an index of shards: it has no 'weight_map' of tensors and files"
        ) from error
    opened: dict[str, Container] = {}
    for name, file in named.items():
        if Path(file).name != file or "\0" in file:
            raise FormatError(f"{path}: '{file}' is not the name of a file beside it")
        if file not in opened:
            opened[file] = Container(path.with_name(file))
        if name not in opened[file].header.tensors:
            raise FormatError(f"{path}: tensor '{name}' is not in {file}")
    return {name: opened[file] for name, file in named.items()}
