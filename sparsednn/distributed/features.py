"""`Features`: which part owns which input neuron, and an input set's entries dealt to the parts.

A part knows an input neuron by its place among those that it owns. Must not know: ranks, files.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import read_only
from sparsednn.distributed import _input_loops as loops
from sparsednn.inputs import InputSet

__all__ = ["Features"]


class Features:
    """Which part owns which input neuron, and what the neuron is called there.

    Parameters
    ----------
    owners
        ``(n_features,)`` int32: the part of each feature, below `parts`.
    parts
        Number of parts.

    Attributes
    ----------
    owners
        As given.
    number
        ``(n_features,)`` int32: each feature's place among those of its part.
    counts
        ``(parts,)`` int64: features of each part.
    dtype
        Of numbers: uint16 where every part's fit, else int32.
    """

    __slots__ = ("counts", "dtype", "number", "owners")

    dtype: type[np.uint16] | type[np.int32]

    def __init__(self, owners: NDArray[np.int32], parts: int) -> None:
        self.owners = owners
        self.counts = np.bincount(owners, minlength=parts)
        order = np.argsort(owners, kind="stable")
        first = np.cumsum(self.counts) - self.counts
        self.number = np.empty(owners.size, np.int32)
        self.number[order] = np.arange(owners.size) - np.repeat(first, self.counts)
        self.dtype = np.uint16 if self.counts.max() <= 65536 else np.int32

    def count(self, inputs: InputSet, images: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count what each part owns of some images of a set: ``(images, parts)`` int64.

        The set must have these features; this goes for all methods.
        """
        counts = np.zeros((images.size, self.counts.size), np.int64)
        loops.count(
            read_only(inputs.indptr),
            read_only(inputs.indices),
            read_only(images),
            read_only(self.owners),
            counts,
        )
        return counts

    def deal(
        self, inputs: InputSet, images: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32] | None]:
        """Divide the entries of some images among the parts.

        Returns
        -------
        counts, indices, values
            As of `count`; numbers of features, part after part, in each part image after image;
            their values, None if all are one.
        """
        counts = self.count(inputs, images)
        totals = counts.sum(axis=0)
        indices, values = self._room(inputs, int(totals.sum()))
        loops.deal(
            read_only(inputs.indptr),
            read_only(inputs.indices),
            _values(inputs),
            read_only(images),
            read_only(self.owners),
            read_only(self.number),
            np.cumsum(totals) - totals,
            indices,
            values,
        )
        return counts, indices, None if inputs.values is None else values

    def keep(
        self, inputs: InputSet, images: NDArray[np.int64], part: int
    ) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[np.float32] | None]:
        """Take one part's entries of some images: as `deal`, with counts of ``(images,)``."""
        entries = int((inputs.indptr[images + 1] - inputs.indptr[images]).sum())
        indices, values = self._room(inputs, entries + 1)
        counts = np.empty(images.size, np.int64)
        loops.keep(
            read_only(inputs.indptr),
            read_only(inputs.indices),
            _values(inputs),
            read_only(images),
            read_only(self.owners),
            part,
            read_only(self.number),
            counts,
            indices,
            values,
        )
        total = int(counts.sum())  # copies: what is cut off would be held, too
        kept = None if inputs.values is None else values[:total].copy()
        return counts, indices[:total].copy(), kept

    def _room(self, inputs: InputSet, entries: int) -> tuple[NDArray[Any], NDArray[np.float32]]:
        values = 0 if inputs.values is None else entries
        return np.empty(entries, self.dtype), np.empty(values, np.float32)


def _values(inputs: InputSet) -> NDArray[np.float32]:
    """The values for a loop, which takes an empty array for ones."""
    return read_only(np.empty(0, np.float32) if inputs.values is None else inputs.values)
