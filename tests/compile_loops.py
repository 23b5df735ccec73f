"""Compile the loops once, so that workers and ranks that start together do not all do it.

From a clean checkout compiling takes minutes, and numba's cache helps only those that come later.
This runs check programs on one rank, and a simulation: what they call is what tests need first.
``.ci/run`` does it beside the linters. It proves nothing, and nothing depends on it but time.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from mpi_runs import TESTS, find_mpi

_PROGRAMS = [
    "distributed/check_engine.py",
    "training/check_engines.py",
    "training/check_trainer.py",
    "distributed/check_run.py",
    "distributed/check_inputs.py",
    "dense/check_convolution.py",
    "dense/check_model.py",
]
_SIMULATION = [
    "-m", "sparsednn", "simulate", "graph-challenge:1024-6", "--platform", "infiniband-128",
    "--partition", "random", "--ranks", "1,4", "--quiet",
]  # fmt: skip

_CONCURRENCY = [
    "-m", "sparsednn", "cnn", "concurrency", "lenet5", "--image", "1x8x8", "--training",
    "--threads", "2", "--effort", "quick", "--json",
]  # fmt: skip


def main() -> int:
    """Run them, two at a time; the exit code tells how many did not end well."""
    mpi = find_mpi("openmpi")
    if isinstance(mpi, str):
        print(mpi)
        return 0
    checks = [[str(TESTS / "mpi_runs.py"), str(TESTS / program)] for program in _PROGRAMS]

    def failed(arguments: list[str]) -> bool:
        done = subprocess.run(
            [sys.executable, *arguments], env=mpi.environ(), stdout=subprocess.DEVNULL,
            timeout=300, check=False,
        )  # fmt: skip
        return done.returncode != 0

    with ThreadPoolExecutor(2) as pool:
        return sum(pool.map(failed, [*checks, _SIMULATION, _CONCURRENCY]))


if __name__ == "__main__":
    sys.exit(main())
