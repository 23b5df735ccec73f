"""The safetensors container: views on one memory map out, arrays in.

An own reader because the library copies; an own writer because the library wants all bytes of
all tensors at once. A file is 8 bytes (length of the header, little-endian), the header in
JSON (name → dtype, shape, byte range; padded with spaces so that data starts at a multiple of
8), and the data. Knows nothing about networks.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError
from sparsednn.formats._common import reading

__all__ = ["Container", "Header", "Tensor", "read_header", "write_container"]

_ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_NUMPY: Final = {
    "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "F16": "<f2", "U32": "<u4", "I32": "<i4",
    "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8", "BOOL": "?",
}  # fmt: skip
_NAME: Final = {np.dtype(code): name for name, code in _NUMPY.items()}
_LARGEST_HEADER: Final = 100_000_000  # the library's limit


@dataclass(frozen=True, slots=True)
class Tensor:
    """Dtype, shape and byte range (from the start of the file) of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What is in a file: the tensors in file order, and the free texts beside them."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header only; nothing of the data is touched.

    Raises
    ------
    FormatError
        If the file is truncated, or the header is not JSON, or its byte ranges overlap, leave
        holes, do not fit the shapes, or do not end where the file does.
    """
    with reading(path), open(path, "rb") as file:
        prefix = file.read(8)
        size = path.stat().st_size
        if len(prefix) < 8:
            raise FormatError(f"{path}: truncated: {size} bytes, a safetensors file has 8 or more")
        length = int.from_bytes(prefix, "little")
        if length > _LARGEST_HEADER:
            raise FormatError(f"{path}: not a safetensors file: its header would be {length} bytes")
        if length > size - 8:
            raise FormatError(
                f"{path}: truncated: its header should be {length} bytes, {size - 8} are there"
            )
        text = file.read(length)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not a safetensors file: its header is not JSON") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path}: not a safetensors file: its header is not a JSON object")
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ in its header must map texts to texts")
    start = 8 + length
    tensors = {name: _tensor(path, name, entry, start) for name, entry in content.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    at = start
    for name, tensor in ordered.items():
        if tensor.begin != at:
            what = "overlaps" if tensor.begin < at else "leaves a hole behind"
            raise FormatError(f"{path}: tensor '{name}' {what} the tensor before it")
        at = tensor.end
    if at != size:
        what = "truncated" if size < at else "too long"
        raise FormatError(f"{path}: {what}: its header tells of {at} bytes, {size} are there")
    return Header(path, ordered, metadata)


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: tensor '{name}' lacks a dtype, a shape or two data_offsets"
        ) from error
    sizes = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not all(type(x) is int and x >= 0 for x in sizes):
        raise FormatError(f"{path}: tensor '{name}': shape and data_offsets must be whole numbers")
    if dtype not in _ITEM_BYTES:
        raise FormatError(f"{path}: tensor '{name}' has the unknown dtype '{dtype}'")
    expected = math.prod(shape) * _ITEM_BYTES[dtype]
    if end - begin != expected:
        raise FormatError(
            f"{path}: tensor '{name}' of {dtype} {shape} takes {expected} bytes, "
            f"its data_offsets say {end - begin}"
        )
    return Tensor(dtype, tuple(shape), start + begin, start + end)


class Container:
    """Tensors of one file as read-only views on one memory map, which lives as long as they do."""

    def __init__(self, path: Path) -> None:
        self.header = read_header(path)
        self.path = path
        with reading(path), open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bytes: NDArray[np.uint8] = np.frombuffer(mapped, np.uint8)

    def get(self, name: str) -> NDArray[Any]:
        """Return tensor `name`; BF16 as float32 (a copy), everything else as a view.

        A view is aligned; only in a file of another writer may that take a copy.
        """
        tensor = self.header.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path}: no tensor '{name}'")
        raw = self._bytes[tensor.begin : tensor.end]
        if tensor.dtype == "BF16":
            # A bfloat16 is the upper half of a float32.
            wide = np.frombuffer(raw.tobytes(), "<u2").astype("<u4") << np.uint32(16)
            return wide.view("<f4").reshape(tensor.shape)
        code = _NUMPY.get(tensor.dtype)
        if code is None:
            raise FormatError(
                f"{self.path}: tensor '{name}': dtype {tensor.dtype} is not supported"
            )
        array = raw.view(code).reshape(tensor.shape)
        return array if array.flags.aligned else array.copy()

    def typed(self, name: str, dtypes: Iterable[str], shape: tuple[int, ...]) -> NDArray[Any]:
        """Return tensor `name` after checking that it has one of `dtypes`, and `shape`."""
        array = self.get(name)
        tensor = self.header.tensors[name]
        wanted = tuple(dtypes)
        if tensor.dtype not in wanted or tensor.shape != shape:
            raise FormatError(
                f"{self.path}: tensor '{name}' is {tensor.dtype} {list(tensor.shape)}, "
                f"expected {' or '.join(wanted)} {list(shape)}"
            )
        return array


def write_container(
    path: Path,
    tensors: Mapping[str, NDArray[Any]],
    metadata: Mapping[str, str],
    *,
    sync: bool = False,
) -> None:
    """Write an atomic file; the arrays go to the disk one by one, without a copy of all.

    Larger items go first whatever the order of `tensors`, so every array is aligned when mapped.
    `sync` is that of `atomic_file`: not even a power cut can leave half a file.
    """
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)  # stable
    content: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name in order:
        array = tensors[name]
        end = at + array.nbytes
        content[name] = {
            "dtype": _NAME[array.dtype.newbyteorder("<")],
            "shape": list(array.shape),
            "data_offsets": [at, end],
        }
        at = end
    # A name may come from a folder whose name is no Unicode: such letters become '?'.
    header = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
    header += b" " * (-len(header) % 8)
    with atomic_file(path, sync=sync) as file:
        file.write(len(header).to_bytes(8, "little"))
        file.write(header)
        for name in order:
            array = tensors[name]
            little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
            file.write(little.reshape(-1).view(np.uint8).data)
