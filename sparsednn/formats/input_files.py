"""Input sets on disk: triplets (``.tsv``), SciPy (``.npz``), dense (``.npy``), ``.safetensors``.

All hold a ``(features, images)`` matrix. Values that are all 1 are not kept (`values` is None),
and features are uint16 where they fit (at most 65536), as with the official sets. The ``.npz``
is `scipy.sparse.save_npz`'s CSC layout with indices and ones kept small; SciPy reads it, too.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError, ShapeError, UsageError
from sparsednn.formats._common import NOT_NUMPY, reading
from sparsednn.formats._container import Container, write_container
from sparsednn.inputs import InputSet

__all__ = ["INPUT_FORMATS", "read_inputs", "write_inputs"]

INPUT_FORMATS: Final = {
    "tsv": "triplets 'image TAB feature TAB value', 1-based, as the Graph Challenge has (.tsv)",
    "npz": "SciPy sparse matrix (features, images) (.npz)",
    "npy": "dense NumPy array (features, images) (.npy)",
    "native": "safetensors, mapped into memory (.safetensors)",
}
"""Input formats by name, with one line for ``--help``."""

_FORMAT_NAME: Final = "sparsednn-inputs"
_BY_SUFFIX: Final = {".tsv": "tsv", ".npz": "npz", ".npy": "npy", ".safetensors": "native"}
_OFFICIAL_NAME: Final = re.compile(r"sparse-images-([1-9][0-9]{0,8})\.tsv(\.gz)?")
_BLOCK_BYTES: Final = 64 << 20


def read_inputs(
    path: str | os.PathLike[str],
    *,
    n_features: int | None = None,
    n_images: int | None = None,
) -> InputSet:
    """Read an input set; the format follows from the suffix.

    Parameters
    ----------
    path
        A ``.tsv`` (or ``.tsv.gz``), ``.npz``, ``.npy`` or ``.safetensors`` file.
    n_features
        What the network takes. Triplets do not say: None takes it from a name like
        ``sparse-images-1024.tsv``, else the largest feature there is.
    n_images
        Number of images of a triplet file, whose last ones may be empty; None for the largest
        image id there is. The other formats know, and are only checked.

    Raises
    ------
    FormatError
        If the file is missing or malformed, naming it (and the line).
    ShapeError
        If the file has other numbers of features or images than are asked for.
    InputError
        If a value is NaN or infinite.
    UsageError
        If a number asked for is below 1.
    """
    path = Path(path)
    for what, number in (("n_features", n_features), ("n_images", n_images)):
        if number is not None and number < 1:
            raise UsageError(f"{what} must be at least 1, found {number}")
    with reading(path):
        path.stat()
        if path.is_dir():
            raise IsADirectoryError(path)
    match _format_of(path):
        case "tsv":
            return _read_tsv(path, n_features, n_images)
        case "npz":
            inputs = _read_npz(path)
        case "npy":
            inputs = _read_npy(path)
        case _:
            inputs = _read_native(path)
    for what, found, wanted in (
        ("features", inputs.n_features, n_features),
        ("images", inputs.n_images, n_images),
    ):
        if wanted is not None and found != wanted:
            raise ShapeError(f"{path}: has {found} {what}, expected {wanted}")
    return inputs


def write_inputs(
    inputs: InputSet, path: str | os.PathLike[str], *, format: str | None = None
) -> None:
    """Write an input set, atomically.

    Triplets lose the number of features and of empty last images (`read_inputs` can be told);
    a dense array loses which zeros were stored.

    Parameters
    ----------
    inputs
        What to write.
    path
        The file; its suffix decides the format.
    format
        One of `INPUT_FORMATS`: checked against the suffix.

    Raises
    ------
    UsageError
        If the suffix is unknown or is not the one of `format`.
    FormatError
        If the file cannot be written.
    """
    path = Path(path)
    if format is not None and format not in INPUT_FORMATS:
        raise UsageError(f"unknown input format '{format}': known are {', '.join(INPUT_FORMATS)}")
    found = _BY_SUFFIX.get(path.suffix)
    if found is None or format not in (None, found):
        known = ", ".join(f"{suffix} ({name})" for suffix, name in _BY_SUFFIX.items())
        asked = f" does not fit format '{format}'" if format else " is unknown"
        raise UsageError(f"{path}: the suffix '{path.suffix}'{asked}: known are {known}")
    match found:
        case "tsv":
            _write_tsv(inputs, path)
        case "npz":
            _write_npz(inputs, path)
        case "npy":
            _write_npy(inputs, path)
        case _:
            tensors: dict[str, NDArray[Any]] = {"indptr": inputs.indptr, "indices": inputs.indices}
            if inputs.values is not None:
                tensors["values"] = inputs.values
            metadata = {"format": _FORMAT_NAME, "format_version": "1", "name": inputs.name}
            write_container(path, tensors, metadata | {"n_features": str(inputs.n_features)})


def _format_of(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    found = _BY_SUFFIX.get(suffix)
    if found is None or (path.suffix == ".gz" and found != "tsv"):
        raise FormatError(
            f"{path}: unknown suffix '{path.suffix}' for inputs: known are .tsv, .tsv.gz, .npz, "
            ".npy, .safetensors"
        )
    return found


def _made(
    path: Path,
    indptr: NDArray[Any],
    indices: NDArray[Any],
    values: NDArray[Any] | None,
    n_features: int,
    *,
    check: bool = True,
) -> InputSet:
    """Make the set in its smallest form; InputSet puts the path in front of every error."""
    if values is not None and bool(np.all(values == 1)):
        values = None
    if n_features <= 65536 and indices.dtype != np.uint16:
        # Out of range must not wrap around into the range before it has been looked at.
        if indices.size and not 0 <= int(indices.min()) <= int(indices.max()) < n_features:
            raise ShapeError(f"{path}: a feature is out of range for {n_features} features")
        indices = indices.astype(np.uint16)
    return InputSet(indptr, indices, values, n_features, name=str(path), check=check)


def _read_tsv(path: Path, n_features: int | None, n_images: int | None) -> InputSet:
    from sparsednn.formats.tsv import MAX_ID, compress, read_triplets

    named = _OFFICIAL_NAME.fullmatch(path.name)
    if named:
        found = int(named[1])
        if n_features not in (None, found):
            raise ShapeError(f"{path}: has {found} features by its name, expected {n_features}")
        n_features = found
    triplets = read_triplets(
        path,
        max_row=n_images or MAX_ID,
        max_col=n_features or MAX_ID,
        labels=("image", "feature"),
        narrow=True,
    )
    images, features = n_images or triplets.n_rows, n_features or triplets.n_cols
    if not features:
        raise FormatError(f"{path}: empty, and nothing tells the number of features")
    indptr, indices, values = compress(triplets, images, features)
    # Range, order, duplicates and finite values have been checked with line numbers.
    return _made(path, indptr, indices, values, features, check=False)


def _write_tsv(inputs: InputSet, path: Path) -> None:
    from sparsednn.formats.tsv import slices, write_triplets

    write_triplets(
        path,
        (
            (rows, inputs.indices[a:b], None if inputs.values is None else inputs.values[a:b])
            for a, b, rows in slices(inputs.indptr)
        ),
    )


def _read_npz(path: Path) -> InputSet:
    from sparsednn.formats.scipy_npz import load_matrix, opened

    with opened(path) as file, np.load(file, allow_pickle=False) as parts:
        if "format" in parts and parts["format"].item() in (b"csc", "csc"):
            # Taken as it is: SciPy would widen the indices, and copy the ones.
            n_features, n_images = (int(n) for n in parts["shape"])
            indptr, indices, data = parts["indptr"], parts["indices"], parts["data"]
            _check_kinds(path, indptr, indices, data)
            if _ascend(indptr, indices):
                return _from_csc(path, indptr, indices, data, n_features, n_images)
    matrix = load_matrix(path)
    csc = matrix.tocsc()
    if matrix.format == "coo" and csc.nnz != matrix.nnz:
        raise FormatError(f"{path}: {matrix.nnz - csc.nnz} entries are there twice")
    csc.sort_indices()
    return _from_csc(path, csc.indptr, csc.indices, csc.data, *csc.shape)


def _from_csc(
    path: Path,
    indptr: NDArray[Any],
    indices: NDArray[Any],
    data: NDArray[Any],
    n_features: int,
    n_images: int,
) -> InputSet:
    _check_kinds(path, indptr, indices, data)
    if indptr.size != n_images + 1:
        raise FormatError(f"{path}: {n_images} images, but indptr has {indptr.size} entries")
    return _made(path, indptr, indices, _as_float32(data), n_features)


def _check_kinds(
    path: Path, indptr: NDArray[Any], indices: NDArray[Any], data: NDArray[Any]
) -> None:
    for what, array, kinds in (
        ("indptr", indptr, "iu"),
        ("indices", indices, "iu"),
        ("data", data, "biuf"),
    ):
        if array.dtype.kind not in kinds or array.ndim != 1:
            raise FormatError(f"{path}: {what} is {array.dtype} of shape {array.shape}")


def _ascend(indptr: NDArray[Any], indices: NDArray[Any]) -> bool:
    """Whether no column needs sorting (duplicates are InputSet's to find)."""
    down = indices[1:] < indices[:-1]
    starts = indptr[1:-1]
    down[starts[(starts > 0) & (starts < indices.size)] - 1] = False
    return not down.any()


def _as_float32(data: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # becomes infinite, which InputSet names and refuses
        return data.astype(np.float32, copy=False)


def _write_npz(inputs: InputSet, path: Path) -> None:
    data = np.ones(inputs.nnz, np.int8) if inputs.values is None else inputs.values
    with atomic_file(path) as file:
        np.savez(
            file,
            allow_pickle=False,
            format=np.array(b"csc"),
            shape=np.array([inputs.n_features, inputs.n_images]),
            data=data,
            indices=inputs.indices,
            indptr=inputs.indptr,
            _is_array=np.array(True),
        )


def _read_npy(path: Path) -> InputSet:
    with reading(path):
        try:
            dense = np.load(path, mmap_mode="r", allow_pickle=False)
        except NOT_NUMPY as error:
            raise FormatError(f"{path}: not a NumPy array file") from error
    if not isinstance(dense, np.ndarray):
        dense.close()
        raise FormatError(f"{path}: an .npz archive, its name must end so")
    if dense.ndim != 2 or dense.dtype.kind not in "biuf":
        raise FormatError(
            f"{path}: {dense.dtype} array of shape {dense.shape}, expected real numbers "
            "(features, images)"
        )
    n_features, n_images = dense.shape
    step = max(1, _BLOCK_BYTES // (4 * max(n_features, 1)))
    counts, features, values = [np.zeros(1, np.int64)], [], []
    for first in range(0, n_images, step):
        block = _as_float32(np.ascontiguousarray(dense[:, first : first + step].T))
        kept = block != 0
        counts.append(np.count_nonzero(kept, axis=1))
        features.append(np.nonzero(kept)[1].astype(np.int32))
        values.append(block[kept])
    return _made(
        path,
        np.cumsum(np.concatenate(counts)),
        np.concatenate(features) if features else np.empty(0, np.int32),
        np.concatenate(values) if values else None,
        n_features,
    )


def _write_npy(inputs: InputSet, path: Path) -> None:
    # Filled on disk, block by block: a dense set may not fit into memory.
    dtype = np.dtype(np.uint8 if inputs.values is None else np.float32)
    with atomic_file(path) as file:
        shape = (inputs.n_features, inputs.n_images)
        np.lib.format.write_array_header_1_0(
            file,
            {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": True, "shape": shape},
        )
        step = max(1, _BLOCK_BYTES // (4 * inputs.n_features))
        for first in range(0, inputs.n_images, step):
            part = inputs.columns(first, min(first + step, inputs.n_images))
            block = np.zeros((part.n_images, part.n_features), dtype)
            images = np.repeat(np.arange(part.n_images), np.diff(part.indptr))
            block[images, part.indices] = 1 if part.values is None else part.values
            file.write(block.data)


def _read_native(path: Path) -> InputSet:
    box = Container(path)
    header = box.header
    if header.metadata.get("format") != _FORMAT_NAME:
        raise FormatError(f"{path}: not a native input set: its metadata lacks '{_FORMAT_NAME}'")
    try:
        n_features = int(header.metadata["n_features"])
        shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
        (n,), (nnz,) = shapes["indptr"], shapes["indices"]
    except (KeyError, ValueError) as error:
        raise FormatError(f"{path}: lacks n_features, indptr or indices") from error
    return InputSet(
        box.typed("indptr", ("I64",), (n,)),
        box.typed("indices", ("U16", "I32"), (nnz,)),
        box.typed("values", ("F32",), (nnz,)) if "values" in shapes else None,
        n_features,
        name=str(path),
    )
