"""Really start two ranks, let them exchange something, and say how it went; for ``doctor``.

An MPI can be installed and still start nothing: no shared memory in a container, a host name that
does not resolve, a launcher of another MPI. Must not know: how findings are shown.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import IO

from sparsednn.comm.launcher import Launcher, run_command
from sparsednn.comm.mpi import MpiLibrary, launched
from sparsednn.errors import LaunchError, SparseDNNError

__all__ = ["Trial", "try_ranks"]

_RANKS = 2
_MARK = "sparsednn-trial "


@dataclass(frozen=True, slots=True)
class Trial:
    """How it went.

    Attributes
    ----------
    ok
        None if it could not be tried.
    found
        In words, one line.
    library
        What rank 0 said of the MPI that it loaded; None if it came to nothing.
    """

    ok: bool | None
    found: str
    library: MpiLibrary | None = None


def try_ranks(
    launcher: Launcher, *, environ: Mapping[str, str] | None = None, timeout: float = 60.0
) -> Trial:
    """Start two ranks under a launcher, with a limit in seconds."""
    if launched() is not None:
        return Trial(None, "not tried: this is a rank itself, start doctor without mpirun")
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        try:
            outcome = run_command(
                _RANKS,
                [sys.executable, "-m", __name__],
                environ=environ,
                launcher=launcher,
                stdout=output,
                stderr=errors,
                timeout=timeout,
            )
        except LaunchError as error:
            return Trial(False, f"{error}{_told(errors)}")
        if outcome.code:
            reason = outcome.failure or f"exit code {outcome.code}"
            return Trial(False, f"{_RANKS} ranks do not run: {reason}{_told(errors)}")
        lines = _text(output).splitlines()
    told = next((line.partition(_MARK)[2] for line in lines if _MARK in line), None)
    if told is None:
        return Trial(False, f"{_RANKS} ranks ran and said nothing")
    return Trial(True, f"{_RANKS} were started and exchanged data", MpiLibrary(**json.loads(told)))


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").replace("\0", "")


def _told(errors: IO[bytes]) -> str:
    """What was said on stderr, in one line: our ranks' own words, or the launcher's first ones."""
    lines = [line.strip() for line in _text(errors).splitlines()]
    ours = [line for line in lines if line.startswith("sparsednn: ")]
    words = ours[:1] or [line for line in lines if line.strip("-=* ")]
    told = " ".join(words).removeprefix("sparsednn: error: ")
    short = told if len(told) <= 300 else f"{told[:300]}…"
    return f": {short}" if short else ""


def _main() -> None:
    """Be one of the ranks."""
    import numpy as np

    from sparsednn.comm import mpi
    from sparsednn.comm.launcher import default_signals

    default_signals()
    try:
        world = mpi.world()
        total = np.array([world.rank + 1], np.int64)
        world.allreduce(total)
        if total[0] != world.size * (world.size + 1) // 2:
            raise LaunchError(f"{world.size} ranks summed their numbers to {total[0]}")
    except SparseDNNError as error:
        sys.stderr.write(f"sparsednn: error: {error}\n")
        sys.exit(error.exit_code)
    if world.rank == 0:
        sys.stdout.write(f"{_MARK}{json.dumps(asdict(mpi.library()))}\n")


if __name__ == "__main__":
    _main()
