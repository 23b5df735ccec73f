"""Which MPI mpi4py would load here, found out in a child process.

A process that loads MPI has chosen its MPI for good, and one that starts it without a launcher is a
rank 0 of 1 that no launcher knows. Whoever only wants to start ranks, or to report, asks a child.
Must not know: launchers, and what ranks do.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from sparsednn.comm import mpi
from sparsednn.errors import MissingDependencyError

__all__ = ["InstalledMpi", "installed_mpi"]

#: Seconds; loading takes a tenth of one, and a file system of a cluster can be slow.
_PATIENCE = 120


@dataclass(frozen=True, slots=True)
class InstalledMpi:
    """The MPI that a process of this Python would load.

    Attributes
    ----------
    name, version, standard
        As in `sparsednn.comm.mpi.MpiLibrary`.
    path
        The library's file, links followed; None where the system cannot say.
    mpi4py
        Version of mpi4py.
    """

    name: str
    version: str
    standard: str
    path: Path | None
    mpi4py: str


def installed_mpi(environ: Mapping[str, str] | None = None) -> InstalledMpi:
    """Ask a child process, with this environment (default: ours), which MPI it loads.

    Raises
    ------
    MissingDependencyError
        If mpi4py or an MPI library is missing or broken; the message says what to install.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-m", __name__],
            env=None if environ is None else dict(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise MissingDependencyError(
            f"'from mpi4py import MPI' takes more than {_PATIENCE} seconds: is MPI's library on a "
            "file system that does not answer?"
        ) from None
    try:
        told = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):  # MPI's library has ended the process
        lines = done.stderr.split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "no message")
        raise MissingDependencyError(
            f"'from mpi4py import MPI' ends Python (exit code {done.returncode}: {last}): install "
            "mpi4py again, beside the MPI that you have"
        ) from None
    if "error" in told:
        raise MissingDependencyError(told["error"])
    path = told.pop("path")
    return InstalledMpi(path=Path(path) if path else None, **told)


def _describe() -> InstalledMpi:
    """Load MPI here without starting it, and say what it is."""
    loaded = mpi.import_mpi()
    name, version = mpi.parse_version(loaded.Get_library_version())
    major, minor = loaded.Get_version()
    return InstalledMpi(
        name,
        version,
        f"{major}.{minor}",
        _file_of("MPI_Init", str(loaded.__file__)),
        importlib.metadata.version("mpi4py"),
    )


class _Symbol(ctypes.Structure):
    """``Dl_info`` of dladdr(3)."""

    _fields_ = (
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    )


def _file_of(symbol: str, extension: str) -> Path | None:
    """The file in which a function lies that an extension module is linked with."""
    found = _Symbol()
    try:
        dladdr = ctypes.CDLL(None).dladdr
        address = ctypes.cast(getattr(ctypes.CDLL(extension), symbol), ctypes.c_void_p)
    except (OSError, AttributeError):
        return None
    if not dladdr(address, ctypes.byref(found)) or not found.file:
        return None
    return Path(os.fsdecode(found.file)).resolve()


def _main() -> None:
    try:
        told = asdict(_describe())
    except MissingDependencyError as error:
        told = {"error": str(error)}
    print(json.dumps(told, default=str))


if __name__ == "__main__":
    _main()
