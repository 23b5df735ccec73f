"""`Partition`: who owns which neuron, how that was found, and its file.

The file is an .npz: one int32 array per neuron layer, ``layer_0`` (the inputs) to ``layer_L``, and
``meta``, a JSON text. It belongs to one network, told by its hash.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsednn.atomic import atomic_file
from sparsednn.errors import FormatError, InputError, ShapeError

__all__ = ["Partition", "PartitionMeta", "read_partition"]

_BROKEN: Final = (
    ValueError, TypeError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile,
    zlib.error,
)  # fmt: skip
"""What NumPy, zipfile (compression or encryption that it does not know) and json (too deep) raise
for an .npz that is none."""

_MOST_PARTS: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class PartitionMeta:
    """How a partition was made.

    Attributes
    ----------
    method
        ``joint``, ``multiphase`` or ``rule``.
    partitioner
        What divided single layers; for ``joint``, its candidates. ``version`` and ``preset`` are
        those of the library, None where there is none; for ``joint``, ``preset`` is the effort.
    seed, threads, imbalance
        As asked for.
    network, hash, pattern
        Name, content hash and pattern hash of the network that it was made for. It belongs to
        every network of that pattern: training changes weights, which no partition depends on.
        None in files of older versions: then it belongs to that network only.
    """

    method: str
    partitioner: str
    version: str | None
    preset: str | None
    seed: int
    threads: int
    imbalance: float
    network: str
    hash: str
    pattern: str | None = None


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "parts": (int,),
    "seed": (int,),
    "threads": (int,),
    "imbalance": (int, float),
    "version": (str, type(None)),
    "preset": (str, type(None)),
    "pattern": (str, type(None)),
}
"""What the values of ``meta`` are in JSON; the others are text."""


class Identified(Protocol):
    """What is known of a network without its weights; a `SparseNetwork` is one."""

    @property
    def name(self) -> str:
        """Its name, for messages."""

    @property
    def hash(self) -> str:
        """Content hash, see `SparseNetwork.hash`."""

    @property
    def pattern_hash(self) -> str | None:
        """Hash of the pattern, see `SparseNetwork.pattern_hash`; None where it is not known."""

    @property
    def n_in(self) -> int:
        """Input neurons."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the layers, which have an ``n_out``."""


class Partition:
    """One part per neuron.

    Parameters
    ----------
    owners
        One vector per neuron layer, the inputs included: ``(n_k,)`` with values 0 to ``parts - 1``
        (int32; converted if need be, otherwise shared). A part may own nothing in a layer.
    parts
        Number of parts, K.
    meta
        How it was made.

    Raises
    ------
    ShapeError
        If a vector is not one-dimensional, or there are fewer than two.
    InputError
        If a part is out of range, or `parts` is below 1 or does not fit into int32.
    """

    __slots__ = ("meta", "owners", "parts")

    owners: tuple[NDArray[np.int32], ...]
    parts: int
    meta: PartitionMeta

    def __init__(self, owners: Sequence[ArrayLike], parts: int, meta: PartitionMeta) -> None:
        if parts < 1:
            raise InputError(f"a partition has at least 1 part, found {parts}")
        if parts > _MOST_PARTS:
            raise InputError(f"a partition has at most {_MOST_PARTS} parts, found {parts}")
        vectors = []
        for k, given in enumerate(owners):
            vector = np.asarray(given)
            if vector.ndim != 1 or vector.dtype.kind not in "iu":
                raise ShapeError(
                    f"partition: layer_{k} must be a vector of whole numbers, found "
                    f"{vector.dtype} of shape {vector.shape}"
                )
            if vector.size and not 0 <= int(vector.min()) <= int(vector.max()) < parts:
                wrong = int(np.argmax((vector < 0) | (vector >= parts)))
                raise InputError(
                    f"partition: layer_{k} gives neuron {wrong} to part {int(vector[wrong])}; "
                    f"parts are 0 to {parts - 1}"
                )
            vectors.append(np.ascontiguousarray(vector, dtype=np.int32))
        if len(vectors) < 2:
            raise ShapeError(
                f"partition: at least 2 neuron layers are needed, found {len(vectors)}"
            )
        self.owners, self.parts, self.meta = tuple(vectors), parts, meta

    def __repr__(self) -> str:
        """Return method, parts and network."""
        return (
            f"Partition({self.meta.method}, {self.parts} parts, {len(self.owners) - 1} layers, "
            f"network='{self.meta.network}')"
        )

    @property
    def identity(self) -> str:
        """SHA-256 of who owns what, whatever it was made for, and however."""
        digest = hashlib.sha256(f"{self.parts}".encode())
        for owners in self.owners:
            digest.update(f"|{owners.size}|".encode())
            digest.update(np.ascontiguousarray(owners, "<i4").data)
        return digest.hexdigest()

    def check(self, network: Identified, *, file: str | os.PathLike[str] = "partition") -> None:
        """Refuse a network (or what is known of one) that this partition was not made for.

        Raises
        ------
        InputError
            If the network's content hash and its pattern's are others; `file` names the partition.
        ShapeError
            If sizes do not fit although the hash does (a file that was changed by hand).
        """
        same = self.meta.hash == network.hash
        if not same and self.meta.pattern is not None:
            same = self.meta.pattern == network.pattern_hash
        if not same:
            raise InputError(
                f"{file}: made for network '{self.meta.network}' (hash {self.meta.hash[:16]}…), "
                f"not for '{network.name}' (hash {network.hash[:16]}…)"
            )
        sizes = [network.n_in, *(layer.n_out for layer in network)]
        found = [vector.size for vector in self.owners]
        if found != sizes:
            at = next((k for k, (a, b) in enumerate(zip(found, sizes, strict=False)) if a != b), -1)
            what = (
                f"{len(found)} neuron layers for a network of {len(sizes)}"
                if at < 0
                else f"layer_{at} has {found[at]} neurons, the network's has {sizes[at]}"
            )
            raise ShapeError(f"{file}: {what}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the partition as an .npz file, atomically.

        Raises
        ------
        FormatError
            If it cannot be written; what was there before stays.
        """
        arrays: dict[str, Any] = {f"layer_{k}": vector for k, vector in enumerate(self.owners)}
        meta = json.dumps({"parts": self.parts, **asdict(self.meta)}, indent=1)
        with atomic_file(path) as file:
            np.savez_compressed(file, allow_pickle=False, meta=np.array(meta), **arrays)


def read_partition(path: str | os.PathLike[str]) -> Partition:
    """Read a partition file.

    Raises
    ------
    FormatError
        If there is no such file, or it is no partition; the path is named.
    ShapeError, InputError
        If its vectors are wrong.
    """
    try:
        # Opened here: NumPy leaves its own file open if the .npz is none.
        with open(path, "rb") as file:
            box = np.load(file, allow_pickle=False)
            if not isinstance(box, np.lib.npyio.NpzFile) or "meta" not in box.files:
                raise FormatError(f"{path}: is no partition file (an .npz with 'meta')")
            with box:
                owners = [box[f"layer_{k}"] for k in range(len(box.files) - 1)]
                text = str(box["meta"])
    except FileNotFoundError as error:
        raise FormatError(f"{path}: no such file") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot read: {error.strerror or error}") from error
    except _BROKEN as error:
        raise FormatError(f"{path}: is no partition file: {_first_line(error)}") from error
    try:
        values = json.loads(text)
        parts = values.pop("parts")
        # Keys that a later version may have added are no reason to refuse the file.
        values.setdefault("pattern", None)
        meta = PartitionMeta(**{field.name: values[field.name] for field in fields(PartitionMeta)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"{path}: 'meta' is not understood: {_first_line(error)}") from error
    for name, value in (("parts", parts), *asdict(meta).items()):
        if type(value) not in _TYPES.get(name, (str,)):
            raise FormatError(f"{path}: 'meta' has {name} = {value!r}")
    try:
        return Partition(owners, parts, meta)
    except InputError as error:
        raise type(error)(f"{Path(path)}: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
