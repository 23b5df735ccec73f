"""`InputSet`: the input columns (images) that a network is run on, stored sparse.

The official inputs have 10 to 14 % nonzeros, all of value one, so they are kept as one list of
features per image (CSC of the ``(features, images)`` matrix) and expanded into dense columns
only tile by tile, inside the cache, by the kernel that runs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn._compressed import as_int32, check_compressed
from sparsednn.errors import InputError, ShapeError

if TYPE_CHECKING:
    from scipy.sparse import csc_array

__all__ = ["InputSet"]


class InputSet:
    """Input columns in CSC form: ``indices[indptr[i]:indptr[i+1]]`` are the features of image i.

    Parameters
    ----------
    indptr, indices
        ``(images + 1,)`` and ``(nnz,)``; features ascend within an image, with no duplicates.
        Converted to int64 and int32 (or kept as uint16, which halves the memory of the large
        official sets), shared where no conversion is needed.
    values
        ``(nnz,)`` float32, or None when every stored entry is 1.
    n_features
        Number of input neurons.
    name
        Where the inputs come from, for messages.
    check
        Walk through the arrays and reject what a kernel could not survive.

    Raises
    ------
    ShapeError, InputError
        As for `SparseLayer`.
    """

    __slots__ = ("indices", "indptr", "n_features", "name", "values")

    indptr: NDArray[np.int64]
    indices: NDArray[np.int32] | NDArray[np.uint16]
    values: NDArray[np.float32] | None
    n_features: int
    name: str

    def __init__(
        self,
        indptr: ArrayLike,
        indices: ArrayLike,
        values: ArrayLike | None,
        n_features: int,
        *,
        name: str = "inputs",
        check: bool = True,
    ) -> None:
        self.indptr = np.ascontiguousarray(indptr, dtype=np.int64)
        raw = np.asarray(indices)
        if raw.dtype == np.uint16:
            self.indices = np.ascontiguousarray(raw, dtype=np.uint16)
        else:
            self.indices = as_int32(raw, n_features, f"{name}: feature")
        self.values = None if values is None else np.ascontiguousarray(values, dtype=np.float32)
        self.n_features = int(n_features)
        self.name = name
        if check:
            self._check()

    def _check(self) -> None:
        if self.indptr.ndim != 1 or self.indptr.size < 1 or self.n_features < 1:
            raise ShapeError(
                f"{self.name}: {self.n_features} features, indptr of shape {self.indptr.shape}"
            )
        try:
            check_compressed(
                self.indptr,
                self.indices,
                self.values,
                self.n_features,
                major="image",
                minor="feature",
                value=lambda image, feature: f"image {image}, feature {feature}",
            )
        except InputError as error:
            raise type(error)(f"{self.name}: {error}") from None

    @classmethod
    def from_dense(cls, columns: ArrayLike, *, name: str = "inputs") -> InputSet:
        """Make an input set of a dense ``(features, images)`` array; zeros are not stored."""
        from scipy.sparse import csc_array

        dense = np.asarray(columns, dtype=np.float32)
        if dense.ndim != 2:
            raise ShapeError(f"{name}: inputs must be (features, images), found {dense.shape}")
        return cls.from_scipy(csc_array(dense), name=name)

    @classmethod
    def from_scipy(cls, matrix: Any, *, name: str = "inputs") -> InputSet:
        """Make an input set of a SciPy sparse ``(features, images)`` matrix or array."""
        csc = matrix.tocsc()
        if not csc.has_sorted_indices:
            csc = csc.sorted_indices()
        if csc.nnz != matrix.nnz:  # a COO matrix: SciPy has added up entries of the same place
            raise InputError(f"{name}: {matrix.nnz - csc.nnz} entries are there twice")
        return cls(csc.indptr, csc.indices, csc.data, csc.shape[0], name=name)

    @property
    def n_images(self) -> int:
        """Number of columns."""
        return self.indptr.size - 1

    @property
    def nnz(self) -> int:
        """Number of stored entries."""
        return self.indices.size

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        values = 0 if self.values is None else self.values.nbytes
        return self.indptr.nbytes + self.indices.nbytes + values

    def columns(self, first: int, last: int) -> InputSet:
        """Images ``first`` to ``last`` (exclusive) as an input set; the arrays are views."""
        begin, end = int(self.indptr[first]), int(self.indptr[last])
        return InputSet(
            self.indptr[first : last + 1] - begin,
            self.indices[begin:end],
            None if self.values is None else self.values[begin:end],
            self.n_features,
            name=self.name,
            check=False,
        )

    def pick(self, ids: NDArray[np.int64]) -> InputSet:
        """Copy images by number, ``(m,)``, in any order; the caller has checked the range."""
        counts = np.diff(self.indptr)[ids]
        indptr = np.zeros(ids.size + 1, np.int64)
        np.cumsum(counts, out=indptr[1:])
        places = np.arange(indptr[-1]) + np.repeat(self.indptr[ids] - indptr[:-1], counts)
        return InputSet(
            indptr,
            self.indices[places],
            None if self.values is None else self.values[places],
            self.n_features,
            name=self.name,
            check=False,
        )

    def to_scipy(self) -> csc_array:
        """Return the ``(features, images)`` matrix as a SciPy CSC array (float32)."""
        from scipy.sparse import csc_array

        values = np.ones(self.nnz, np.float32) if self.values is None else self.values
        indices = self.indices.astype(np.int32, copy=False)
        return csc_array((values, indices, self.indptr), shape=(self.n_features, self.n_images))

    def to_dense(self) -> NDArray[np.float32]:
        """Return the ``(features, images)`` matrix as a dense C-contiguous float32 array."""
        dense = np.zeros((self.n_features, self.n_images), np.float32)
        images = np.repeat(np.arange(self.n_images), np.diff(self.indptr))
        dense[self.indices, images] = 1.0 if self.values is None else self.values
        return dense

    def __repr__(self) -> str:
        """Return name, features, images and nonzeros."""
        return f"InputSet('{self.name}', {self.n_features}×{self.n_images}, nnz={self.nnz})"
