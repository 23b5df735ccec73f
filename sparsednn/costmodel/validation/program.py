"""What every rank runs: ``python -m sparsednn.costmodel.validation.program JOB``.

JOB is a JSON file: a folder with the cases' files, the cases (all of as many ranks), rounds, the
machine's usual pace, and where rank 0 writes what was found. Cases are prepared in blocks, so that
memory stays bounded; the cases of a block take turns: each runs for a moment, then the next one,
and again, so that a slow moment of the machine meets all of them. Between runs a probe says how
slow the machine is, and times are divided by that, as those of the calibration are
(`calibration.pace`). One rank is this process alone, without MPI.

Must not know: platforms, predictions.
"""

from __future__ import annotations

import json
import sys
from operator import truediv
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.atomic import atomic_file
from sparsednn.comm.alone import Alone
from sparsednn.costmodel.calibration.pace import rank_pace
from sparsednn.costmodel.calibration.timing import Slowness
from sparsednn.costmodel.validation.cases import KINDS, Case
from sparsednn.costmodel.validation.networks import Files
from sparsednn.costmodel.validation.subjects import Subject, make_subject

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["blocks_of", "main", "measure_cases"]

#: Cases that are in memory at a time.
BLOCK: Final = 16
#: Runs of a turn: at least, at most, besides the first, which fills the caches again.
LEAST: Final = 3
MOST: Final = 200
#: Seconds between two probes, about.
CHUNK: Final = 0.004


def blocks_of(cases: list[Case], size: int = BLOCK) -> list[list[Case]]:
    """Cut cases into blocks of one kind each, of about equal length, in the order of `KINDS`."""
    found = []
    for kind in KINDS:
        chosen = [case for case in cases if case.kind == kind]
        count = -(-len(chosen) // size)
        for i in range(count):
            first, last = len(chosen) * i // count, len(chosen) * (i + 1) // count
            found.append(chosen[first:last])
    return found


def measure_cases(
    world: Communicator,
    cases: list[Case],
    files: Files,
    *,
    rounds: int,
    seconds: float,
    slowness: Slowness = lambda: 1.0,
) -> dict[str, Any]:
    """Measure cases in turns.

    Parameters
    ----------
    world
        As many ranks as each case needs; collective.
    cases, files
        What to run, and where its files are.
    rounds
        How many turns each has.
    seconds
        How long a turn is, about.
    slowness
        How many times slower than usual the machine is now; collective, the same on all ranks.

    Returns
    -------
    ``{"rounds": {name: [seconds of one run, …]}, "wall": {name: […]}, "failed": {name: why}}``;
    `wall` are the same as the clock showed them.
    """
    found: dict[str, list[float]] = {}
    wall: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    blocks = blocks_of(cases)
    for number, block in enumerate(blocks, 1):
        subjects: dict[str, Subject] = {}
        for case in block:
            subject = subjects[case.name] = make_subject(case, world, files)
            subject.wake()
            if why := subject.trouble():
                failed[case.name] = why
                subjects.pop(case.name).free()
        for turn in range(rounds):
            if world.rank == 0:
                _note(world.size, f"block {number} of {len(blocks)}, round {turn + 1} of {rounds}")
            for name, subject in subjects.items():
                paced, shown = _turn(world, subject, seconds, slowness)
                found.setdefault(name, []).append(paced)
                wall.setdefault(name, []).append(shown)
        for subject in subjects.values():
            subject.free()
    return {"rounds": found, "wall": wall, "failed": failed}


def _note(ranks: int, text: str) -> None:
    print(f"{ranks} rank{'s' if ranks > 1 else ''}: {text}", file=sys.stderr, flush=True)


def _turn(
    world: Communicator, subject: Subject, seconds: float, slowness: Slowness
) -> tuple[float, float]:
    """Medians of some runs, each as long as its slowest rank's: at the usual pace, by the clock."""
    subject.wake()
    subject.once()
    first = _longest(world, [subject.once()])[0]
    count = max(LEAST, min(MOST, int(seconds / max(first, 1e-9))))
    chunk = max(1, min(count, int(CHUNK / max(first, 1e-9))))
    taken: list[float] = []
    slow: list[float] = []
    before = slowness()
    while len(taken) < count:
        # Ranks compare their clocks behind all runs: between them it would be a part of the next.
        taken += [subject.once() for _ in range(chunk)]
        after = slowness()
        slow += [(before + after) / 2] * chunk
        before = after
    shown = _longest(world, taken)
    return median(map(truediv, shown, slow)), median(shown)


def _longest(world: Communicator, seconds: list[float]) -> list[float]:
    longest = np.array(seconds)
    world.allreduce(longest, "max")
    return [float(one) for one in longest]


def main(path: str) -> None:
    """Do the job that a file describes, alone or as one of the ranks that a launcher has started.

    What fails on ranks ends all of them, told in one line by the first that fails.
    """
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    if job["ranks"] == 1:
        _work(Alone(), job)
        return
    from sparsednn.comm.failure import abort
    from sparsednn.comm.launcher import default_signals
    from sparsednn.comm.mpi import world
    from sparsednn.comm.threads import limit_threads

    default_signals()
    comm = world()
    limit_threads(max(case["threads"] for case in job["cases"]))
    try:
        _work(comm, job)
    except Exception as error:
        abort(comm, error, getattr(error, "exit_code", 1))


def _work(world: Communicator, job: dict[str, Any]) -> None:
    cases = [Case.from_json(told) for told in job["cases"]]
    found = measure_cases(
        world, cases, Files(Path(job["folder"])), rounds=job["rounds"], seconds=job["seconds"],
        slowness=rank_pace(world, job["pace_seconds"]).slowness,
    )  # fmt: skip
    if world.rank == 0:
        with atomic_file(job["out"]) as file:
            file.write(json.dumps(found).encode())


if __name__ == "__main__":
    main(sys.argv[1])
