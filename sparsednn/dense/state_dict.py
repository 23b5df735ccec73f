"""State dicts of PyTorch in and out of a network's arrays, whole or block by block.

Read are ``.safetensors``, what ``torch.save(model.state_dict(), path)`` wrote (``.pt``, ``.pth``;
see `sparsednn.formats.torch_checkpoint`, which executes nothing) and ``.onnx``; written is
``.safetensors``, which PyTorch people load with ``safetensors.torch.load_file``. A file is compared
with the network before any number is read. The weights of fully connected layers are matrices in
files, ``(filters, channels · rows · columns)``: the same numbers in the same order.

Must not know: ranks, optimizers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import Block, block_indices
from sparsednn.dense.onnx_file import read_onnx
from sparsednn.dense.operations import Parameter
from sparsednn.errors import FormatError, ShapeError
from sparsednn.formats import torch_checkpoint
from sparsednn.formats._container import read_header, write_container
from sparsednn.formats._positioned import PositionedFile
from sparsednn.formats.state_dict import FLOATS, TensorInfo, TensorSource

__all__ = [
    "AUXILIARY",
    "StateFile",
    "network_in",
    "read_state_dict",
    "stored_logits",
    "stored_network",
    "to_torch",
    "write_state_dict",
]

AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")
"""Modules that only help in training (GoogLeNet, Inception) and are in no network here."""

_NETWORK: Final = "sparsednn_network"
_COUNTER: Final = ".num_batches_tracked"  # of no use where the momentum is a number
_NUMPY: Final = {"F16": np.float16, "BF16": np.uint16, "F32": np.float32, "F64": np.float64}
_Indices = list[NDArray[np.int64]]


class StateFile:
    """The arrays of a network in a file, read when they are asked for.

    To be used in a ``with`` statement, or closed.

    Parameters
    ----------
    path
        A state dict: ``.safetensors``, ``.onnx``, or what ``torch.save`` wrote.
    graph
        The network that it should be of.
    ignore
        Prefixes of names that the file may have and the network has not.

    Raises
    ------
    MissingDependencyError
        If PyTorch or ONNX is needed and not installed.
    FormatError
        If the file is damaged, lacks parameters, or has others than the network's.
    ShapeError
        If a parameter has another shape.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        graph: OperationGraph,
        *,
        ignore: Sequence[str] = AUXILIARY,
    ) -> None:
        self.path = Path(path)
        self._parameters = graph.parameters
        self._file = _opened(self.path)
        try:
            _compare(self.path, graph.name, self._file.tensors, self._parameters, ignore)
        except BaseException:
            self.close()
            raise

    def array(
        self, name: str, block: Block | None = None, dtype: DTypeLike = np.float32
    ) -> NDArray[Any]:
        """Read an array or a block of it; other parts of the file are not read.

        Parameters
        ----------
        name
            Full name of the parameter.
        block
            Which part, in the network's axes (four, for a fully connected layer's weight, too);
            None for all.
        dtype
            float32 or float64.

        Returns
        -------
        array
            The caller's own, C-contiguous.

        Raises
        ------
        FormatError
            If the file cannot be read, or a number is too large for the dtype.
        ShapeError
            If the block does not lie in the array.
        """
        parameter = self._parameters[name]
        read = self._file.read(parameter, block_indices(parameter, block))
        with np.errstate(over="ignore"):
            values = read.astype(dtype, order="C", copy=False)  # it is new already
        if values.itemsize < read.itemsize and np.any(np.isinf(values) & np.isfinite(read)):
            raise FormatError(
                f"{self.path}: parameter '{name}': a number is too large for {values.dtype}"
            )
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> StateFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_state_dict(
    path: str | os.PathLike[str],
    graph: OperationGraph,
    dtype: DTypeLike = np.float32,
    *,
    ignore: Sequence[str] = AUXILIARY,
) -> dict[str, NDArray[Any]]:
    """Read all arrays of a network; see `StateFile`.

    Returns
    -------
    dict
        Arrays by full name, in the network's order and shapes.

    Raises
    ------
    MissingDependencyError, FormatError, ShapeError
        As for `StateFile`.
    """
    with StateFile(path, graph, ignore=ignore) as file:
        return {name: file.array(name, dtype=dtype) for name in graph.parameters}


def write_state_dict(
    path: str | os.PathLike[str],
    graph: OperationGraph,
    arrays: Mapping[str, NDArray[Any]],
    *,
    sync: bool = False,
) -> None:
    """Write all arrays of a network, and the network itself, to a ``.safetensors`` file.

    Parameters
    ----------
    path
        The file; it appears whole or not at all.
    graph, arrays
        The network, and its arrays by full name.
    sync
        As for `sparsednn.atomic.atomic_file`.

    Raises
    ------
    FormatError
        If the name does not end in .safetensors, or the file cannot be written.
    ShapeError
        As for `to_torch`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise FormatError(f"{path}: the name of a state dict that is written ends in .safetensors")
    # "format" is what loaders of PyTorch people look at.
    metadata = {"format": "pt", _NETWORK: json.dumps(graph.as_json(), separators=(",", ":"))}
    write_container(path, to_torch(graph, arrays), metadata, sync=sync)


def to_torch(graph: OperationGraph, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the arrays as a state dict of PyTorch has them: views, matrices where it has such.

    Raises
    ------
    ShapeError
        If arrays are missing, or have other shapes or types than float32 and float64.
    """
    result = {}
    for name, parameter in graph.parameters.items():
        array = arrays.get(name)
        if array is None:
            raise ShapeError(f"network {graph.name}: no array for parameter '{name}'")
        if array.shape != parameter.shape or array.dtype not in (np.float32, np.float64):
            raise ShapeError(
                f"network {graph.name}: parameter '{name}' is {array.dtype} {list(array.shape)}, "
                f"expected float32 or float64 {list(parameter.shape)}"
            )
        result[name] = array.reshape(parameter.torch_shape)
    for name in arrays:
        if name not in result:
            raise ShapeError(f"network {graph.name}: there is no parameter '{name}'")
    return result


def stored_network(path: str | os.PathLike[str]) -> OperationGraph | None:
    """Return the network that `write_state_dict` put into a file; None if there is none.

    Raises
    ------
    FormatError, ShapeError
        If the file is damaged.
    """
    text = read_header(Path(path)).metadata.get(_NETWORK)
    return None if text is None else network_in(text, path, "the network in its header")


def network_in(text: str | bytes, path: str | os.PathLike[str], what: str) -> OperationGraph:
    """Return the network that a JSON text describes; see `OperationGraph.from_json`.

    Parameters
    ----------
    text
        JSON, in UTF-8.
    path, what
        The file it comes from, and what it is there: for messages.

    Raises
    ------
    FormatError, ShapeError
        If it is something else.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: {what} is not JSON") from error
    try:
        return OperationGraph.from_json(content)
    except (FormatError, ShapeError) as error:
        raise type(error)(f"{path}: {error}") from error


def stored_logits(path: Path, graph: OperationGraph) -> int | None:
    """Return how many logits the last layer has in a state dict; None if it has no such layer.

    Raises
    ------
    MissingDependencyError, FormatError
        If the file cannot be read.
    """
    file = _opened(path)
    try:
        last = file.tensors.get(f"{graph.output}.weight")
    finally:
        file.close()
    return last.shape[0] if last is not None and last.shape else None


def _compare(
    path: Path,
    network: str,
    tensors: Mapping[str, TensorInfo],
    parameters: Mapping[str, Parameter],
    ignore: Sequence[str],
) -> None:
    """Raise what `StateFile` says if a file's tensors are not the network's parameters."""
    missing = [name for name in parameters if name not in tensors]
    others = [
        name
        for name in tensors
        if name not in parameters
        and not name.endswith(_COUNTER)
        and not name.startswith(tuple(ignore))
    ]
    for names, what in ((missing, "lacks"), (others, "has no place for")):
        if names:
            who = "the file" if names is missing else f"network {network}"
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            of = f" of network {network}" if names is missing else " of the file"
            raise FormatError(f"{path}: {who} {what} parameter '{names[0]}'{more}{of}")
    for name, parameter in parameters.items():
        found = tensors[name]
        if found.shape not in (parameter.torch_shape, parameter.shape):
            raise ShapeError(
                f"{path}: parameter '{name}' is {list(found.shape)}, network {network} has "
                f"{list(parameter.torch_shape)}"
            )
        if found.dtype not in FLOATS or found.sparse:
            raise FormatError(
                f"{path}: parameter '{name}' is {found}, expected dense {', '.join(FLOATS)}"
            )


class _File(Protocol):
    """What all kinds of files have to offer."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, without reading them."""

    def read(self, parameter: Parameter, indices: _Indices) -> NDArray[Any]:
        """Read a block of a parameter, in the parameter's axes."""

    def close(self) -> None:
        """Close the file."""


def _opened(path: Path) -> _File:
    if path.suffix == ".safetensors":
        return _SafetensorsFile(path)
    if path.suffix == ".onnx":
        return _OnnxArrays(path)
    return _TorchFile(torch_checkpoint.open_state_dict(path))


class _TorchFile:
    """A mapped checkpoint of PyTorch."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._source.tensors

    def read(self, parameter: Parameter, indices: _Indices) -> NDArray[Any]:
        whole = self._source.dense(parameter.name).reshape(parameter.shape)
        every = (
            np.array_equal(each, np.arange(size))
            for each, size in zip(indices, parameter.shape, strict=True)
        )
        return whole.copy() if all(every) else whole[np.ix_(*indices)]

    def close(self) -> None:
        """Do nothing: the map goes with the last of its arrays."""


class _OnnxArrays:
    """The arrays of a network in an ONNX file, all of which are in memory."""

    def __init__(self, path: Path) -> None:
        self._arrays = read_onnx(path).arrays

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(f"F{8 * each.itemsize}", each.shape)
            for name, each in self._arrays.items()
        }

    def read(self, parameter: Parameter, indices: _Indices) -> NDArray[Any]:
        found: NDArray[Any] = self._arrays[parameter.name][np.ix_(*indices)]
        return found

    def close(self) -> None:
        self._arrays = {}


class _SafetensorsFile:
    """A safetensors file, of which only the wanted bytes are read."""

    def __init__(self, path: Path) -> None:
        self._file = PositionedFile(read_header(path))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        found = self._file.header.tensors
        return {name: TensorInfo(each.dtype, each.shape) for name, each in found.items()}

    def read(self, parameter: Parameter, indices: _Indices) -> NDArray[Any]:
        # Reads go forward: each index once and in order, then to where it is wanted.
        unique, places = zip(
            *(np.unique(each, return_inverse=True) for each in indices), strict=True
        )
        dtype = self._file.header.tensors[parameter.name].dtype
        starts, ends = _runs(parameter.shape, unique)
        read: NDArray[Any] = self._file.runs(parameter.name, _NUMPY[dtype], starts, ends)
        if dtype == "BF16":  # the upper half of a float32
            read = (read.astype(np.uint32) << np.uint32(16)).view(np.float32)
        found = read.reshape([each.size for each in unique])
        if all(map(np.array_equal, unique, indices)):
            return found
        return found[np.ix_(*places)]

    def close(self) -> None:
        self._file.close()


def _runs(
    shape: tuple[int, ...], indices: Sequence[NDArray[np.int64]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Items ``[start, end)`` of the flat array that make up a block of ascending indices."""
    starts, ends = np.zeros(1, np.int64), np.ones(1, np.int64)
    stride = 1
    # From the last axis to the first, what follows is one run for as long as all of it is wanted.
    for size, wanted in zip(reversed(shape), reversed(indices), strict=True):
        if starts.size == 1 and ends[0] - starts[0] == stride:
            first = np.flatnonzero(np.diff(wanted, prepend=-2) != 1)
            last = np.append(first[1:], wanted.size) - 1 if wanted.size else first
            starts, ends = wanted[first] * stride, (wanted[last] + 1) * stride
        else:
            starts = (wanted[:, None] * stride + starts).ravel()
            ends = (wanted[:, None] * stride + ends).ravel()
        stride *= size
    return starts, ends
