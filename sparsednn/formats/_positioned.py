"""Runs of items out of the tensors of a safetensors file, by positioned reads.

For ranks that need a part of a file only. A memory map would count every page it touches as the
process's own, and a file that shrinks below it kills the process; reads do neither. Runs that lie
close together are read in one go, far ones are skipped. Knows nothing about networks.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import FormatError
from sparsednn.formats._common import reading
from sparsednn.formats._container import Header

__all__ = ["PositionedFile"]

Scalar = TypeVar("Scalar", bound=np.generic)

_GAP: Final = 64 << 10
"""Bytes between two runs that are read and thrown away: cheaper than one more request."""

_BLOCK: Final = 4 << 20
"""Bytes that are read in one go, when not all of them are wanted."""


class PositionedFile:
    """A safetensors file that is open for positioned reads, until `close`.

    Parameters
    ----------
    header
        What `read_header` has found in it.

    Raises
    ------
    FormatError
        If it cannot be opened.
    """

    def __init__(self, header: Header) -> None:
        self.header = header
        with reading(header.path):
            # No buffer: what is read goes straight to where it belongs.
            self._file = io.FileIO(header.path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def runs(
        self,
        name: str,
        dtype: type[Scalar],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
    ) -> NDArray[Scalar]:
        """Read the items ``[starts[i], ends[i])`` of a tensor, one run after the other.

        Parameters
        ----------
        name, dtype
            The tensor, and what it is (the caller has compared that with the header).
        starts, ends
            Positions of items in the flat tensor, within it; runs ascend and do not overlap.

        Returns
        -------
        NDArray
            ``(sum of the runs' lengths,)``, a new array. Besides it about 4 MiB and one run are
            held at a time.

        Raises
        ------
        FormatError
            If the file cannot be read, or has become shorter.
        """
        little = np.dtype(dtype).newbyteorder("<")
        lengths = ends - starts
        filled = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        out = np.empty(int(filled[-1]), little)
        base = self.header.tensors[name].begin
        for first, last in _spans(starts, ends, little.itemsize):
            begin, end = int(starts[first]), int(ends[last - 1])
            piece = out[filled[first] : filled[last]]
            offset = base + begin * little.itemsize
            if piece.size == end - begin:
                self._read(offset, piece)
                continue
            scratch = np.empty(end - begin, little)
            self._read(offset, scratch)
            # Run, gap, run, gap, …, run.
            sizes = np.empty(2 * (last - first) - 1, np.int64)
            sizes[::2] = lengths[first:last]
            sizes[1::2] = starts[first + 1 : last] - ends[first : last - 1]
            piece[:] = scratch[np.repeat(np.arange(sizes.size) % 2 == 0, sizes)]
        return out.astype(dtype, copy=False)

    def _read(self, offset: int, into: NDArray[np.generic]) -> None:
        with reading(self.header.path):
            self._file.seek(offset)
            left = into.view(np.uint8).data
            while left:
                count = self._file.readinto(left)
                if not count:
                    raise FormatError(f"{self.header.path}: truncated: it ended while it was read")
                left = left[count:]


def _spans(
    starts: NDArray[np.int64], ends: NDArray[np.int64], itemsize: int
) -> Iterator[tuple[int, int]]:
    """Group runs (first, last + 1) that are read in one go: near, and not too much together."""
    if not starts.size:
        return
    far = (starts[1:] - ends[:-1]) * itemsize > _GAP
    block = starts * itemsize // _BLOCK
    cuts = np.flatnonzero(far | (block[1:] != block[:-1])) + 1
    bounds = [0, *cuts.tolist(), starts.size]
    yield from itertools.pairwise(bounds)
