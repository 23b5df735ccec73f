"""`ProfileStore`: times that were measured on a device, kept in a file.

Files lie in ``$XDG_CACHE_HOME/sparsednn/concurrency`` (``~/.cache`` where that is not set), one for
each device; another version of a library is another device. Two processes may write: the last one
wins, and nothing is ever half-written.

Must not know: what was measured.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from sparsednn.atomic import atomic_file
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice
from sparsednn.errors import SparseDNNError

__all__ = ["ProfileStore", "cache_folder"]

_FORMAT: Final = "sparsednn concurrency profile"
_VERSION: Final = 1
_LOG: Final = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Where profiles are kept."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sparsednn" / "concurrency"


class ProfileStore:
    """Times of a device.

    Parameters
    ----------
    device
        Identity: `Kernels.device`.
    folder
        Where its file is; None: nothing is read or written.

    Attributes
    ----------
    pairs
        Slow-downs, as `Profile.pairs`.
    """

    def __init__(self, device: str, folder: Path | None = None) -> None:
        self.device = device
        self._folder = folder
        self._seconds: dict[str, float] = {}
        self._shares: dict[str, float] = {}
        self.pairs: dict[tuple[str, str], float] = {}
        self._changed = False
        if folder is not None:
            self._read(self._file(folder))

    def _file(self, folder: Path) -> Path:
        return folder / f"{hashlib.sha256(self.device.encode()).hexdigest()[:16]}.json"

    def _read(self, file: Path) -> None:
        """Take what is there; a file that cannot be used is as none: it is only a cache."""
        try:
            content: Any = json.loads(file.read_text())
            if (content["format"], content["version"]) != (_FORMAT, _VERSION):
                return
            if content["device"] != self.device:
                return
            seconds = {str(key): float(value) for key, value in content["seconds"].items()}
            shares = {str(key): float(value) for key, value in content["shares"].items()}
            pairs = {(str(a), str(b)): float(value) for a, b, value in content["pairs"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
            return
        self._seconds, self._shares, self.pairs = seconds, shares, pairs

    def seconds(self, key: str) -> float | None:
        """Return what was measured; None: nothing."""
        return self._seconds.get(key)

    def put(self, key: str, seconds: float) -> None:
        """Keep a time."""
        self._seconds[key], self._changed = seconds, True

    def has_share(self, key: str) -> bool:
        """Whether the memory's share is known."""
        return key in self._shares

    def memory_share(self, key: str) -> float:
        """Return the memory's share, 0 where it is not known."""
        return self._shares.get(key, 0.0)

    def choice(self, algorithm: Algorithm, key: str) -> Choice:
        """Return what was measured of a way to do a task."""
        return Choice(algorithm, self._seconds[key], self.memory_share(key))

    def put_share(self, key: str, share: float) -> None:
        """Keep a share."""
        self._shares[key], self._changed = share, True

    def put_pair(self, pair: tuple[str, str], slowdown: float) -> None:
        """Keep a slow-down."""
        self.pairs[pair], self._changed = slowdown, True

    def save(self) -> None:
        """Write the file, if there is something new.

        A folder that cannot be written (a home that is read-only on compute nodes) is told in a
        line of the log, which goes to stderr: what was measured is good all the same.
        """
        if self._folder is None or not self._changed:
            return
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "device": self.device,
            "seconds": self._seconds,
            "shares": self._shares,
            "pairs": [[a, b, value] for (a, b), value in self.pairs.items()],
        }
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self._file(self._folder)) as file:
                file.write(json.dumps(content).encode())
        except (OSError, SparseDNNError) as error:
            _LOG.warning("%s: what was measured could not be kept: %s", self._folder, error)
            return
        self._changed = False
