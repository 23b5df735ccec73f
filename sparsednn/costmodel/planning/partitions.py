"""Partitions for planning: made once for each method and number of parts, kept if wished.

Must not know: platforms, seconds of runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sparsednn.errors import FormatError, InputError, UsageError

if TYPE_CHECKING:
    from sparsednn.network import SparseNetwork
    from sparsednn.partitioners import Options, Partition

__all__ = [
    "DEFAULT_METHODS",
    "METHODS",
    "PartitionMaker",
    "is_file",
    "most_parts",
    "parse_methods",
]

METHODS: Final = ("cyclic", "block", "random", "joint", "kahypar", "mtkahypar")
"""Rules of ownership, all layers together, and layer after layer with a library."""

DEFAULT_METHODS: Final = METHODS[:4]

Report = Callable[[str, float], None]


def parse_methods(text: str | None, option: str = "--partition") -> tuple[str, ...]:
    """Read methods with commas between them: names, or files; None: `DEFAULT_METHODS`.

    >>> parse_methods("joint,random")
    ('joint', 'random')

    Raises
    ------
    UsageError
        If there is no such method.
    """
    if text is None:
        return DEFAULT_METHODS
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in METHODS and not is_file(name):
            raise UsageError(f"{option} '{name}': known are {', '.join(METHODS)}, or a file (.npz)")
    return names


def is_file(name: str) -> bool:
    """Whether a method is a partition's file.

    >>> is_file("joint"), is_file("own.npz")
    (False, True)
    """
    return name not in METHODS and (name.endswith(".npz") or os.path.isfile(name))


@dataclass(slots=True)
class PartitionMaker:
    """Makes the partitions of one network, each once.

    Attributes
    ----------
    network
        What is divided.
    effort, seed
        See `partitioners.Options`.
    given
        Partitions that are there, by name; for other numbers of parts they are none.
    cache
        A folder that partitions are read from, and written to; it must exist.
    report
        Progress: a stage, and the share of it that is done.
    warn
        Called with one line for what cannot be had.
    seconds
        That making took, by method and parts.
    """

    network: SparseNetwork
    effort: str = "quick"
    seed: int = 1
    given: Mapping[str, Partition] = field(default_factory=dict)
    cache: Path | None = None
    report: Report | None = None
    warn: Callable[[str], None] | None = None
    seconds: dict[tuple[str, int], float] = field(default_factory=dict)
    _made: dict[tuple[str, int], Partition | None] = field(default_factory=dict)

    def get(self, method: str, parts: int) -> Partition | None:
        """Return the partition; None (and a warning) where the method cannot make it.

        Parameters
        ----------
        method
            One of `METHODS`, or a name of `given`.
        parts
            At least 1.

        Raises
        ------
        UsageError
            If the effort is unknown.
        MissingDependencyError
            If the library is not installed.
        """
        key = method, parts
        if method in self.given:
            one = self.given[method]
            return one if one.parts == parts else None
        if key not in self._made:
            self._made[key] = self._read(method, parts) or self._make(method, parts)
        return self._made[key]

    def _file(self, method: str, parts: int) -> Path | None:
        if self.cache is None:
            return None
        effort = f"-{self.effort}" if method == "joint" else ""
        name = f"{self.network.pattern_hash[:16]}-{method}{effort}-{parts}-{self.seed}.npz"
        return self.cache / name

    def _read(self, method: str, parts: int) -> Partition | None:
        from sparsednn.partitioners import read_partition

        file = self._file(method, parts)
        if file is None or not file.exists():
            return None
        found = read_partition(file)
        found.check(self.network, file=file)
        if found.parts != parts:
            raise FormatError(f"{file}: has {found.parts} parts, its name says {parts}")
        return found

    def _make(self, method: str, parts: int) -> Partition | None:
        from sparsednn.partitioners import make_partition

        start = time.perf_counter()
        try:
            if method == "joint":
                found = make_partition(self.network, self._options(method, parts))
            else:
                found = make_partition(
                    self.network, self._options(method, parts),
                    method="multiphase", partitioner=method,
                )  # fmt: skip
        except InputError as error:
            if self.warn is not None:
                self.warn(f"{method} for {parts} parts is left out: {error}")
            return None
        self.seconds[method, parts] = time.perf_counter() - start
        file = self._file(method, parts)
        if file is not None:
            found.save(file)
        return found

    def _options(self, method: str, parts: int) -> Options:
        from sparsednn.partitioners import Options

        options = Options(parts, seed=self.seed, effort=self.effort)
        told = self.report
        if told is None:
            return options

        def report(stage: str, share: float) -> None:
            told(f"{method} for {parts} parts, {stage}", share)

        return replace(options, report=report)


def most_parts(widths: Sequence[int]) -> int:
    """How many parts a network can have: as many as its widest layer has neurons."""
    from sparsednn.partitioners.methods import LARGEST_PARTS

    return min(max(widths), LARGEST_PARTS)
