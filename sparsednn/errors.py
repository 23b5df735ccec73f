"""Every error that the toolkit raises on purpose, and the exit code that the CLI gives it.

::

    SparseDNNError                    1
    ├── UsageError                    2   the call itself is wrong (options that exclude each other)
    ├── InputError                    3   what was given cannot be used
    │   ├── FormatError                   a file is missing, truncated, or not what it should be
    │   ├── ShapeError                    layers, inputs or vectors do not fit together
    │   └── UnknownNameError              no file and no known network or data set has this name
    ├── AnswerMismatchError           4   the result differs from the given truth
    ├── DeviceMemoryError             3   a GPU has not enough memory
    ├── MissingDependencyError        5   an optional part is not installed
    └── LaunchError                   6   ranks could not be started as asked, or one of them failed

A message is one line: it names the file, line or layer, says what was found and what was
expected, and, where there is something to do, what to do.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AnswerMismatchError",
    "DeviceMemoryError",
    "FormatError",
    "InputError",
    "LaunchError",
    "MissingDependencyError",
    "ShapeError",
    "SparseDNNError",
    "UnknownNameError",
    "UsageError",
]


class SparseDNNError(Exception):
    """Base of all errors of this package; `exit_code` is what the CLI ends with.

    `everywhere` is set where all ranks of a program have raised the same error: one of them tells
    it, and none has to be stopped.
    """

    exit_code: ClassVar[int] = 1
    everywhere: bool = False


class UsageError(SparseDNNError):
    """The call itself is wrong: an option value out of range, options that exclude each other."""

    exit_code = 2


class InputError(SparseDNNError):
    """What was given cannot be used."""

    exit_code = 3


class FormatError(InputError):
    """A file is missing, truncated, or not what its name or its reader promises."""


class ShapeError(InputError):
    """Layers, inputs or vectors do not fit together."""


class UnknownNameError(InputError):
    """A name is neither a file nor a known network or data set."""


class AnswerMismatchError(SparseDNNError):
    """The computed answer differs from the given truth."""

    exit_code = 4


class DeviceMemoryError(SparseDNNError):
    """A GPU has not enough memory; `wanted` and `free` are bytes, 0 where nobody knows."""

    exit_code = 3

    def __init__(self, message: str = "", wanted: int = 0, free: int = 0) -> None:
        super().__init__(message)
        self.wanted, self.free = wanted, free


class MissingDependencyError(SparseDNNError):
    """An optional part is needed and not installed; the message says what to install."""

    exit_code = 5


class LaunchError(SparseDNNError):
    """Ranks could not be started as asked, or one of them failed."""

    exit_code = 6
