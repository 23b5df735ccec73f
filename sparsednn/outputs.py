"""Writing the outputs of a run: a sink for the engine, one per file type.

``.npy`` is the dense ``(n_out, images)`` array, written through a memory map; ``.npz`` (SciPy
sparse, CSC) and ``.tsv`` (``image neuron value``, 1-based) keep the nonzero entries only.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sparsednn.atomic import atomic_file, check_target
from sparsednn.errors import UsageError
from sparsednn.inference import OutputSink

__all__ = ["OUTPUT_SUFFIXES", "check_outputs", "output_sink"]

OUTPUT_SUFFIXES = (".npy", ".npz", ".tsv")


def check_outputs(
    categories: Path | None, outputs: Path | None, read: Iterable[str | Path | None]
) -> None:
    """Raise now what would otherwise be found out after the run, and its result lost.

    Parameters
    ----------
    categories, outputs
        Files to write; None for one that is not wanted.
    read
        Files that the run reads (or None, or names that are no files): they stay as they are.

    Raises
    ------
    UsageError
        If two of the files are the same, or `outputs` has no known suffix.
    FormatError
        If one of them cannot be written.
    """
    taken = {os.path.realpath(path) for path in read if path is not None}
    if outputs is not None:
        _check_suffix(outputs)
    for path in (categories, outputs):
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            raise UsageError(f"{path}: given twice: this would overwrite what is in it")
        taken.add(os.path.realpath(path))
        check_target(path)


def _check_suffix(path: Path) -> None:
    if path.suffix not in OUTPUT_SUFFIXES:
        raise UsageError(f"{path}: outputs are written as {', '.join(OUTPUT_SUFFIXES)}")


@contextmanager
def output_sink(path: Path, n_out: int, images: int) -> Iterator[OutputSink]:
    """Open a sink that writes ``(n_out, images)`` outputs to `path`, which appears when complete.

    Raises
    ------
    UsageError
        If the suffix is none of `OUTPUT_SUFFIXES`.
    FormatError
        If the file cannot be written; nothing is left behind then.
    """
    _check_suffix(path)
    if path.suffix == ".npy":
        with atomic_file(path) as file:
            shape = (n_out, images)
            dense = np.lib.format.open_memmap(file.name, "w+", dtype=np.float32, shape=shape)
            if hasattr(os, "posix_fallocate"):
                # A disk that is full is told now; a write into the map would end the program.
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)

            def fill(first: int, outputs: NDArray[np.float32]) -> None:
                dense[:, first : first + outputs.shape[1]] = outputs

            yield fill
            dense.flush()
        return
    gathered = _Nonzeros(images)
    yield gathered.add
    gathered.write(path, n_out)


class _Nonzeros:
    """Collects the nonzero outputs, image by image."""

    def __init__(self, images: int) -> None:
        self.indptr = np.zeros(images + 1, np.int64)
        self.neurons: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        self.values: list[NDArray[np.float32]] = [np.empty(0, np.float32)]

    def add(self, first: int, outputs: NDArray[np.float32]) -> None:
        image, neuron = np.nonzero(outputs.T)
        last = first + outputs.shape[1]
        counts = np.bincount(image, minlength=outputs.shape[1])
        self.indptr[first + 1 : last + 1] = self.indptr[first] + np.cumsum(counts)
        self.neurons.append(neuron.astype(np.int32))
        self.values.append(outputs[neuron, image])

    def write(self, path: Path, n_out: int) -> None:
        indices, values = np.concatenate(self.neurons), np.concatenate(self.values)
        if path.suffix == ".tsv":
            from sparsednn.formats.tsv import write_triplets

            images = np.arange(self.indptr.size - 1, dtype=np.int32)
            write_triplets(path, [(np.repeat(images, np.diff(self.indptr)), indices, values)])
            return
        from scipy.sparse import csc_array, save_npz

        shape = (n_out, self.indptr.size - 1)
        with atomic_file(path) as file:
            save_npz(file, csc_array((values, indices, self.indptr), shape=shape))
