"""PyTorch state dicts: what ``torch.save(model.state_dict(), "model.pt")`` leaves.

The file is opened with ``weights_only=True``, mapped into memory where its format allows that,
so nothing in it is executed. Versions before 2.10 are refused: there a prepared file gets around
this (CVE-2025-32434, CVE-2026-24747). What makes a layer is told in
`sparsednn.formats.state_dict`; a checkpoint that holds a state dict under ``state_dict``,
``model_state_dict`` or ``model`` will do, and the prefixes of DataParallel and torch.compile are
taken off. PyTorch is imported when a file is read, not before.
"""

from __future__ import annotations

import importlib
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, MissingDependencyError
from sparsednn.formats import _csr
from sparsednn.formats._common import reading
from sparsednn.formats._csr import CsrArrays
from sparsednn.formats.options import ReadOptions
from sparsednn.formats.state_dict import TensorInfo, TensorSource, read_state_dict
from sparsednn.network import SparseNetwork

__all__ = ["open_state_dict", "read"]

_OLDEST: Final = (2, 10)
_HOLDERS: Final = ("state_dict", "model_state_dict", "model")
_PREFIXES: Final = ("module.", "_orig_mod.")  # of DataParallel, of torch.compile
_ADVICE: Final = "in PyTorch: torch.save(model.state_dict(), 'model.pt')"
_DTYPES: Final = {
    "float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "bool": "BOOL",
    "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
}  # fmt: skip


def read(
    path: str | os.PathLike[str],
    *,
    layers: int | None = None,
    options: ReadOptions | None = None,
) -> SparseNetwork:
    """Read a state dict as a sparse network, holding one dense layer at a time.

    Parameters
    ----------
    path
        What ``torch.save`` wrote.
    layers
        Read only so many (of the chosen) layers from the first on; None for all.
    options
        Which tensors are layers, and what the file does not say.

    Raises
    ------
    MissingDependencyError
        If PyTorch is not installed, or too old to open a file safely.
    FormatError
        If the file is damaged or holds something else than a state dict.
    FormatError, ShapeError, InputError, UsageError
        As for `read_state_dict`.
    """
    return read_state_dict(open_state_dict(path), options or ReadOptions(), layers=layers)


def open_state_dict(path: str | os.PathLike[str]) -> TensorSource:
    """Open a state dict; its tensors are read when they are asked for, where it can be mapped.

    Raises
    ------
    MissingDependencyError, FormatError
        As for `read`.
    """
    path = Path(path)
    with reading(path), open(path, "rb") as file:
        # Only the zip container can be mapped; torch raises for its older one.
        mapped = file.read(4) == b"PK\x03\x04"
    torch = _torch(path)
    return _Source(torch, path, _state_dict(torch, path, _load(torch, path, mapped)))


def _torch(path: Path) -> Any:
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError as error:
        raise MissingDependencyError(
            f"{path}: reading it needs PyTorch: pip install torch"
        ) from error
    found = tuple(int(n) for n in re.findall("[0-9]+", torch.__version__)[:2])
    if found < _OLDEST:
        raise MissingDependencyError(
            f"{path}: PyTorch {torch.__version__} may execute code of the file while reading it: "
            "pip install 'torch>=2.10'"
        )
    return torch


def _load(torch: Any, path: Path, mapped: bool) -> Any:
    """Unpickle; every failure is one line."""
    try:
        # What torch warns of (its own beta features, the pickle's age) is nothing to the user.
        with warnings.catch_warnings(), reading(path):
            warnings.simplefilter("ignore")
            with torch.sparse.check_sparse_tensor_invariants():
                return torch.load(
                    os.fspath(path),
                    weights_only=True,
                    map_location="cpu",
                    mmap=True if mapped else None,
                )
    except (FormatError, MemoryError):
        raise
    # A damaged pickle can make Python and torch raise nearly anything.
    except Exception as error:
        text = str(error)
        found = re.search(r"GLOBAL ([\w.]+)", text)
        if found:
            raise FormatError(
                f"{path}: not a state dict: it holds Python objects ({found[1]}), which are not "
                f"opened because they could execute code; {_ADVICE}"
            ) from error
        if "TorchScript" in text:
            raise FormatError(
                f"{path}: a TorchScript archive, not a state dict; {_ADVICE}"
            ) from error
        reason = text.partition(". ")[0].partition("\n")[0]
        if not isinstance(error, RuntimeError) or not reason:
            reason = type(error).__name__
        raise FormatError(f"{path}: not a PyTorch file, or truncated: {reason[:150]}") from error


def _state_dict(torch: Any, path: Path, loaded: Any) -> dict[str, Any]:
    """Find the state dict in what was loaded; its names without a common prefix."""
    if isinstance(loaded, Mapping):
        held = [key for key in _HOLDERS if isinstance(loaded.get(key), Mapping)]
        if len(held) > 1:
            raise FormatError(f"{path}: holds several state dicts: {', '.join(held)}; {_ADVICE}")
        state = loaded[held[0]] if held else loaded
        if any(isinstance(value, torch.Tensor) for value in state.values()):
            odd = {type(key).__name__ for key in state if not isinstance(key, str)}
            if odd:
                raise FormatError(f"{path}: no state dict: a name is of type {odd.pop()}, not str")
            named = dict(state)
            for prefix in _PREFIXES * 2:
                if all(key.startswith(prefix) for key in named):
                    named = {key.removeprefix(prefix): value for key, value in named.items()}
            return named
        keys = ", ".join(f"'{key}'" for key in list(state)[:4]) or "nothing"
        raise FormatError(f"{path}: no state dict: a dict without tensors ({keys}); {_ADVICE}")
    raise FormatError(f"{path}: no state dict: it holds a {type(loaded).__name__}; {_ADVICE}")


class _Source:
    """The tensors of a state dict."""

    unlike = "a state dict without layers"

    def __init__(self, torch: Any, path: Path, state: Mapping[str, Any]) -> None:
        self.path = path
        self.name = path.name.removesuffix(".tar").rpartition(".")[0]
        self._torch = torch
        self._state = state
        self._tensors = {name: self._info(value) for name, value in state.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """All tensors, without reading them."""
        return self._tensors

    def _info(self, value: Any) -> TensorInfo:
        if not isinstance(value, self._torch.Tensor):  # "_extra_state", say: part of no layer
            return TensorInfo(type(value).__name__, ())
        dtype = str(value.dtype).removeprefix("torch.")
        sparse = value.layout != self._torch.strided
        return TensorInfo(_DTYPES.get(dtype, dtype), tuple(value.shape), sparse)

    def _array(self, tensor: Any) -> NDArray[Any]:
        if tensor.device.type != "cpu":
            raise FormatError(f"{self.path}: a tensor without values (on '{tensor.device}')")
        if tensor.dtype == self._torch.bfloat16:
            tensor = tensor.float()
        array: NDArray[Any] = tensor.detach().resolve_neg().numpy()
        return array

    def dense(self, name: str) -> NDArray[Any]:
        """Read a dense tensor; BF16 as float32."""
        return self._array(self._state[name])

    def sparse(self, name: str) -> CsrArrays:
        """Read a sparse matrix: COO (entries of the same place are added up), CSR or CSC."""
        tensor = self._state[name].detach()
        n_out, n_in = tensor.shape
        if tensor.layout == self._torch.sparse_coo and tensor.dense_dim() == 0:
            tensor = tensor.coalesce()
            indices = self._array(tensor.indices())
            return _csr.from_coordinates(
                indices[0], indices[1], self._array(tensor.values()), int(n_out)
            )
        if tensor.layout == self._torch.sparse_csr and tensor.values().ndim == 1:
            parts = (tensor.crow_indices(), tensor.col_indices(), tensor.values())
            pointers, columns, values = map(self._array, parts)
            return CsrArrays(pointers.astype(np.int64), columns, values)
        if tensor.layout == self._torch.sparse_csc and tensor.values().ndim == 1:
            parts = (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
            return _csr.transpose(CsrArrays(*map(self._array, parts)), int(n_out))
        raise FormatError(
            f"{self.path}: tensor '{name}' has layout {tensor.layout}; sparse weights are read "
            f"as COO, CSR or CSC [{n_out}, {n_in}]"
        )
