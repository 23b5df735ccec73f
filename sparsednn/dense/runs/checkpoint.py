"""Checkpoints of dense networks: all that a training needs to go on, in one safetensors file.

The network's arrays have the names and shapes of a state dict of PyTorch (running statistics
included), so ``torch.nn.Module.load_state_dict(safetensors.torch.load_file(path), strict=False)``
takes it, and so does `state_dict`. The optimizer's arrays are ``optimizer.SLOT.NAME``. The metadata
has the network, settings, progress, and a checksum over all of it; grids and ranks leave no trace
in the arrays, so a run goes on with any others.

Knows files and arrays, nothing of ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import Block, block_indices
from sparsednn.dense.state_dict import stored_network, to_torch
from sparsednn.errors import FormatError, InputError
from sparsednn.formats._common import reading
from sparsednn.formats._container import Container, read_header, write_container
from sparsednn.training.checkpoints import (
    DIGEST,
    TRAINING,
    content_digest,
    read_training,
    training_text,
)

__all__ = ["OPTIMIZER", "CnnCheckpoint", "CnnState", "is_checkpoint", "write_cnn_checkpoint"]

#: What names of the optimizer's arrays begin with.
OPTIMIZER: Final = "optimizer."
_NETWORK: Final = "sparsednn_network"  # where `state_dict.stored_network` looks

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False, slots=True)
class CnnState:
    """A training between two steps.

    Attributes
    ----------
    graph
        The network.
    arrays
        All its parameters and buffers by full name.
    slots
        The optimizer's arrays: slot → name of a trained parameter → array of its shape.
    settings, progress
        As of `training.checkpoints.TrainingState`.
    """

    graph: OperationGraph
    arrays: Arrays
    slots: Mapping[str, Arrays]
    settings: dict[str, Any]
    progress: dict[str, Any]


def write_cnn_checkpoint(path: str | os.PathLike[str], state: CnnState) -> None:
    """Write a checkpoint; until it is on the disk as a whole, `path` stays what it was.

    Raises
    ------
    FormatError
        If the file cannot be written.
    InputError
        If a number is NaN or infinite: such a state cannot go on, and must not replace one that
        can.
    ShapeError
        If arrays do not fit the network.
    """
    tensors = to_torch(state.graph, state.arrays)
    parameters = state.graph.parameters
    for slot, arrays in state.slots.items():
        for name, array in arrays.items():
            shape = parameters[name].torch_shape
            tensors[f"{OPTIMIZER}{slot}.{name}"] = array.reshape(shape)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"{os.fspath(path)}: not written: '{name}' has numbers that are NaN or infinite"
            )
    metadata = {
        "format": "pt",  # what loaders of PyTorch people look at
        _NETWORK: json.dumps(state.graph.as_json(), separators=(",", ":")),
        TRAINING: training_text(
            state.graph.identity, list(state.slots), state.settings, state.progress
        ),
    }
    metadata[DIGEST] = content_digest(metadata, tensors)
    write_container(Path(path), tensors, metadata, sync=True)


def is_checkpoint(path: Path) -> bool:
    """Whether a file is a checkpoint of a training, and not only a network."""
    return path.suffix == ".safetensors" and TRAINING in read_header(path).metadata


class CnnCheckpoint:
    """A checkpoint to read, block by block; arrays are views on one memory map of the file.

    Parameters
    ----------
    path
        The file.
    check
        Read all of it, and compare the checksum.

    Attributes
    ----------
    graph, settings, progress
        As of `CnnState`.

    Raises
    ------
    FormatError
        If there is no such file, or it is truncated, damaged, no checkpoint of a dense network, or
        of a version that this program does not know.
    """

    def __init__(self, path: str | os.PathLike[str], *, check: bool = True) -> None:
        self.path = path = Path(path)
        with reading(path):
            if not path.exists():
                raise FormatError(f"{path}: no checkpoint there")
        self._box = Container(path)
        metadata = self._box.header.metadata
        graph = stored_network(path)
        if graph is None or TRAINING not in metadata:
            raise FormatError(f"{path}: not a checkpoint of a training run of a dense network")
        training = read_training(path, metadata[TRAINING])
        self.graph = graph
        self._parameters = graph.parameters
        self.settings: dict[str, Any] = training["settings"]
        self.progress: dict[str, Any] = training["progress"]
        self._slots: Sequence[str] = training["slots"]
        trained = [name for name, one in self._parameters.items() if one.trained]
        found = {name: self._array(name, name) for name in self._parameters}
        for slot in self._slots:
            for name in trained:
                stored = f"{OPTIMIZER}{slot}.{name}"
                found[stored] = self._array(stored, name)
        if check and content_digest(metadata, found) != metadata.get(DIGEST):
            raise FormatError(
                f"{path}: this checkpoint is damaged: its content has another checksum"
            )

    def _array(self, stored: str, name: str) -> NDArray[Any]:
        shape = self._parameters[name].torch_shape
        return self._box.typed(stored, ("F32", "F64"), shape)

    def block(
        self,
        name: str,
        block: Block | None = None,
        dtype: DTypeLike = np.float32,
        *,
        slot: str | None = None,
    ) -> NDArray[Any]:
        """Return a copy of a block of a parameter, or of what an optimizer keeps beside it.

        Parameters
        ----------
        name
            Of the parameter.
        block
            As for `state_dict.StateFile.array`; None for all.
        dtype
            Of the copy.
        slot
            Name of the optimizer's array; None for the parameter itself.
        """
        parameter = self._parameters[name]
        stored = name if slot is None else f"{OPTIMIZER}{slot}.{name}"
        whole = self._array(stored, name).reshape(parameter.shape)
        return whole[np.ix_(*block_indices(parameter, block))].astype(dtype)
