"""Some images of an input file that can be read in parts: ``.safetensors`` and ``.npy``.

Every rank opens the file and takes its own, block by block, so no rank holds (or has mapped) more
than its own and one block. Only what is read is checked; messages have the file's own numbers of
images and features. Must not know: ranks, and who owns what.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError, ShapeError
from sparsednn.formats._common import NOT_NUMPY, reading
from sparsednn.formats._container import read_header
from sparsednn.formats._positioned import PositionedFile
from sparsednn.inputs import InputSet

__all__ = ["InputFile", "open_inputs", "readable_in_parts", "slices"]

_BLOCK_BYTES: Final = 64 << 20
_FORMAT_NAME: Final = "sparsednn-inputs"


class InputFile(Protocol):
    """An open file of input columns; `close` it."""

    n_features: int
    n_images: int

    def blocks(
        self, images: NDArray[np.int64], features: NDArray[np.int32]
    ) -> Iterator[tuple[NDArray[np.int64], InputSet]]:
        """Read some images (ascending), in blocks of bounded memory.

        Yields
        ------
        images, inputs
            The next of the images; and a checked set with the file's numbers of features and
            images, in which these images have their entries (at least those of `features`) and
            all others have none.
        """

    def close(self) -> None:
        """Close the file."""


def readable_in_parts(path: str) -> bool:
    """Whether the name is one that `open_inputs` reads."""
    return Path(path).suffix in (".safetensors", ".npy")


def open_inputs(path: str) -> InputFile:
    """Open a ``.safetensors`` or ``.npy`` file of inputs.

    Raises
    ------
    FormatError
        If it is missing or malformed; what only reading shows is raised by `InputFile.blocks`,
        a ShapeError or InputError, too.
    """
    return _Native(Path(path)) if path.endswith(".safetensors") else _Dense(Path(path))


def slices(sizes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Cut items of these sizes (bytes) into slices of about 64 MiB: (first, last + 1).

    >>> list(slices(np.array([1, 64 << 20, 5, 5])))
    [(0, 2), (2, 4)]
    """
    if sizes.size:
        block = (np.cumsum(sizes) - sizes) // _BLOCK_BYTES
        cuts = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), sizes.size]
        yield from itertools.pairwise(cuts)


def _block(
    path: Path,
    shape: tuple[int, int],
    images: NDArray[np.int64],
    counts: NDArray[np.int64],
    indices: NDArray[Any],
    values: NDArray[np.float32] | None,
) -> InputSet:
    n_features, n_images = shape
    indptr = np.zeros(n_images + 1, np.int64)
    indptr[images + 1] = counts
    return InputSet(np.cumsum(indptr), indices, values, n_features, name=str(path))


class _Native:
    def __init__(self, path: Path) -> None:
        header = read_header(path)
        if header.metadata.get("format") != _FORMAT_NAME:
            raise FormatError(
                f"{path}: not a native input set: its metadata lacks '{_FORMAT_NAME}'"
            )
        tensors = header.tensors
        try:
            self.n_features = int(header.metadata["n_features"])
            (n,), (nnz,) = tensors["indptr"].shape, tensors["indices"].shape
        except (KeyError, ValueError) as error:
            raise FormatError(f"{path}: lacks n_features, indptr or indices") from error
        for name, dtypes, size in (
            ("indptr", ("I64",), n),
            ("indices", ("U16", "I32"), nnz),
            ("values", ("F32",), nnz),
        ):
            found = tensors.get(name)
            if found is not None and (found.dtype not in dtypes or found.shape != (size,)):
                raise FormatError(
                    f"{path}: tensor '{name}' is {found.dtype} {list(found.shape)}, "
                    f"expected {' or '.join(dtypes)} [{size}]"
                )
        if self.n_features < 1 or n < 1:
            raise ShapeError(f"{path}: {self.n_features} features, indptr of shape ({n},)")
        self.n_images = n - 1
        self._has_values = "values" in tensors
        self._dtype: type[np.uint16] | type[np.int32] = (
            np.uint16 if tensors["indices"].dtype == "U16" else np.int32
        )
        self._path = path
        self._file = PositionedFile(header)
        try:
            self._indptr = self._file.runs("indptr", np.int64, np.array([0]), np.array([n]))
            ends = (int(self._indptr[0]), int(self._indptr[-1]))
            if ends != (0, nnz) or np.any(np.diff(self._indptr) < 0):
                raise ShapeError(f"{path}: indptr must ascend from 0 to {nnz}, the nonzeros")
        except BaseException:
            self._file.close()
            raise

    def blocks(
        self, images: NDArray[np.int64], features: NDArray[np.int32]
    ) -> Iterator[tuple[NDArray[np.int64], InputSet]]:
        counts = np.diff(self._indptr)[images]
        for first, last in slices(counts * 8):
            these = images[first:last]
            starts, ends = self._indptr[these], self._indptr[these + 1]
            yield (
                these,
                _block(
                    self._path,
                    (self.n_features, self.n_images),
                    these,
                    counts[first:last],
                    self._file.runs("indices", self._dtype, starts, ends),
                    self._file.runs("values", np.float32, starts, ends)
                    if self._has_values
                    else None,
                ),
            )

    def close(self) -> None:
        self._file.close()


class _Dense:
    def __init__(self, path: Path) -> None:
        self._path = path
        dense = self._map()
        if dense.ndim != 2 or dense.dtype.kind not in "biuf":
            raise FormatError(
                f"{path}: {dense.dtype} array of shape {dense.shape}, expected real numbers "
                "(features, images)"
            )
        self.n_features, self.n_images = dense.shape

    def _map(self) -> NDArray[Any]:
        with reading(self._path):
            try:
                dense = np.load(self._path, mmap_mode="r", allow_pickle=False)
            except NOT_NUMPY as error:
                raise FormatError(f"{self._path}: not a NumPy array file") from error
        if not isinstance(dense, np.ndarray):
            dense.close()
            raise FormatError(f"{self._path}: an .npz archive, its name must end so")
        return dense

    def blocks(
        self, images: NDArray[np.int64], features: NDArray[np.int32]
    ) -> Iterator[tuple[NDArray[np.int64], InputSet]]:
        for first, last in slices(np.full(images.size, 8 * self.n_features)):
            these = images[first:last]
            dense = self._map()  # anew for each block: pages that were read count as memory
            if dense.flags.f_contiguous:
                block = dense.T[these][:, features]
            else:
                block = np.ascontiguousarray(dense[np.ix_(features, these)].T)
            del dense
            with np.errstate(over="ignore"):  # becomes infinite, which InputSet refuses
                block = block.astype(np.float32, copy=False)
            kept = block != 0
            yield (
                these,
                _block(
                    self._path,
                    (self.n_features, self.n_images),
                    these,
                    np.count_nonzero(kept, axis=1),
                    features[np.nonzero(kept)[1]],
                    block[kept],
                ),
            )

    def close(self) -> None:
        """Nothing stays open."""
