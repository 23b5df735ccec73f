"""Dense pruned models: a ``.safetensors`` checkpoint of fully connected layers, zeros dropped.

Each 2-D float tensor ``X.weight`` ``(n_out, n_in)`` is a layer, in natural order of the names
(``fc2`` before ``fc10``), with ``X.bias`` if it is there. PyTorch's own pruning is understood:
``X.weight_orig`` times ``X.weight_mask``. F16, BF16 and F64 become float32. A file says nothing
about activations, so they are relu, and identity for the last layer of the file. Any other
tensor is an error: a network that silently lacks its convolutions is a wrong one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError
from sparsednn.formats._common import first_layers, located, natural_key
from sparsednn.formats._container import Container
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["read"]

_FLOATS: Final = ("F16", "BF16", "F32", "F64")


def read(path: str | os.PathLike[str], *, layers: int | None = None) -> SparseNetwork:
    """Read a dense checkpoint as a sparse network, holding one dense layer at a time.

    Raises
    ------
    FormatError
        If there is no 2-D ``*.weight``, or a tensor that is not a part of such a layer.
    ShapeError, InputError
        As for `SparseLayer` and `SparseNetwork`, with the file in front.
    """
    box = Container(Path(path))
    tensors = box.header.tensors
    stems = [n.removesuffix("_orig") for n in tensors if n.endswith((".weight", ".weight_orig"))]
    names = sorted({stem.removesuffix(".weight") for stem in stems}, key=natural_key)
    used: set[str] = set()
    for name in names:
        pruned = f"{name}.weight_orig" in tensors
        parts = [f"{name}.weight_orig", f"{name}.weight_mask"] if pruned else [f"{name}.weight"]
        for part in parts:
            tensor = tensors.get(part)
            if tensor is None:
                raise FormatError(f"{path}: no tensor '{part}' beside '{name}.weight_orig'")
            if len(tensor.shape) != 2 or tensor.dtype not in _FLOATS:
                raise FormatError(
                    f"{path}: tensor '{part}' is {tensor.dtype} {list(tensor.shape)}; only fully "
                    "connected layers are read: a 2-D float tensor (n_out, n_in)"
                )
        used.update(parts, [f"{name}.bias"])
    if not names:
        raise FormatError(
            f"{path}: neither a native network nor a dense model: no 2-D tensor '*.weight'"
        )
    for name in tensors:
        if name not in used:
            raise FormatError(
                f"{path}: tensor '{name}' belongs to no fully connected layer '*.weight', '*.bias'"
            )
    count = first_layers(box.path, len(names), layers)
    made = [
        _layer(box, name, "identity" if k == len(names) - 1 else "relu", k + 1)
        for k, name in enumerate(names[:count])
    ]
    with located(path):
        return SparseNetwork(made, name=box.path.stem)


def _layer(box: Container, name: str, activation: str, number: int) -> SparseLayer:
    where = f"{box.path}: layer {number} ('{name}')"
    with np.errstate(over="ignore"):  # too large for float32: the layer's own check names it
        weight = _weight(box, name).astype(np.float32, copy=False)
        bias: NDArray[np.float32] | float = 0.0
        if f"{name}.bias" in box.header.tensors:
            bias = box.typed(f"{name}.bias", _FLOATS, weight.shape[:1]).astype(np.float32)
    kept = weight != 0
    indptr = np.concatenate(([0], np.cumsum(np.count_nonzero(kept, axis=1))))
    with located(where):
        return SparseLayer(
            indptr,
            np.nonzero(kept)[1],
            weight[kept],
            weight.shape[1],
            bias=bias,
            activation=activation,
        )


def _weight(box: Container, name: str) -> NDArray[Any]:
    if f"{name}.weight_orig" not in box.header.tensors:
        return box.get(f"{name}.weight")
    weight, mask = box.get(f"{name}.weight_orig"), box.get(f"{name}.weight_mask")
    if weight.shape != mask.shape:
        raise FormatError(
            f"{box.path}: '{name}.weight_mask' has shape {mask.shape}, the weight {weight.shape}"
        )
    product: NDArray[Any] = weight * mask
    return product
