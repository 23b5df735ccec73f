"""Kill a rank of one training again and again, resume it, and see that nothing is lost.

``python tests/training/kill_runs.py --times 20 --ranks 2`` trains a network on the digits, under
``mpirun``, with a checkpoint every few steps. Half of the times a rank, any, is killed (SIGKILL) at
a random moment of an epoch; the other half in the middle of a save: from outside, as soon as the
new file is seen to be open, or by itself at a place that no one could hit from outside (after so
many bytes of the file, before its fsync, before and after its renaming, between an epoch's metrics
and its checkpoint, while arrays are gathered). After each kill: the launcher has ended with an
error and nothing of it is left, the checkpoint can be read and is the last one that was written,
the metrics are those of the undisturbed training. At the end network, optimizer and metrics must
have the same bits as those of a training that nobody has disturbed. Options behind ``--`` go to
``sparsednn train``, instead of those of the optimizer. Exit code 0 if all is well, else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
if str(TESTS) not in sys.path:
    sys.path.insert(0, str(TESTS))

from distributed.samples import partition  # noqa: E402

from mpi_runs import IMPLEMENTATIONS, MpiRuns, _kill_session, _session, find_mpi  # noqa: E402
from sparsednn import atomic  # noqa: E402
from sparsednn.errors import SparseDNNError  # noqa: E402
from sparsednn.formats import write_inputs  # noqa: E402
from sparsednn.sources import load_network  # noqa: E402
from sparsednn.training.beginning import PARTITION  # noqa: E402
from sparsednn.training.checkpoints import read_checkpoint  # noqa: E402
from sparsednn.training.examples import load_examples  # noqa: E402
from sparsednn.training.metrics import read_metrics  # noqa: E402
from sparsednn.training.trainer import CHECKPOINT, METRICS  # noqa: E402

PROGRAM = Path(__file__).with_name("training_fault_program.py")
MODEL = "mlp:64-256-128-10@0.2"
OPTIONS = ("--momentum", "0.9", "--schedule", "cosine", "--warm-up", "1", "--clip", "5")
PER_EPOCH = -(-1437 // 64)  # steps: the digits to train with, in batches
EVERY = 3  # steps between checkpoints
STEPS_OF_A_KILL = 24  # that a training is made longer for each kill
LIMIT = 120.0  # seconds for a session, and to end after a kill; far more than it takes
TRIES = 10  # sessions for one kill: a busy machine may look too late, when the training is over

#: Ways to be killed in a save, in turn from that of the seed on: "seen" from outside.
SAVES = (
    "written", "seen", "line", "replace", "gather", "fsync", "seen", "replaced", "link", "written",
)  # fmt: skip
TIMES = ("seconds", "images_per_second", "seconds_read", "seconds_prepare", "pass_seconds")


class WrongError(Exception):
    """What must not be."""


@dataclass(frozen=True)
class Kill:
    """When to kill whom: `after` steps of a session, bytes or calls; `wait` seconds more."""

    place: str  # "epoch", one of `SAVES`
    rank: int
    after: int
    wait: float

    @property
    def fault(self) -> str:
        outside = self.place in ("epoch", "seen")
        return "none" if outside else f"{self.place}:KILL:{self.rank}:{self.after}"

    def __str__(self) -> str:
        if self.place == "epoch":
            when = f"in an epoch, {1e3 * self.wait:.0f} ms after step {self.after} of its session"
        elif self.place == "seen":
            when = f"in a save, seen after step {self.after} of its session"
        else:
            unit = "bytes" if self.place == "written" else "calls"
            when = f"in a save, '{self.place}' after {self.after:,} {unit}"
        return f"rank {self.rank} {when}"


@dataclass
class Log:
    """What the ranks have told, see `training_fault_program`."""

    pids: dict[int, int]
    steps: list[int]
    saved: list[int]
    saving: int | None  # not yet saved

    @classmethod
    def read(cls, path: Path) -> Log:
        log = cls({}, [], [], None)
        with contextlib.suppress(FileNotFoundError):
            for line in path.read_text().splitlines(keepends=True):
                if line.endswith("\n"):
                    log._add(*line.split())
        return log

    def _add(self, what: str, number: str, pid: str = "") -> None:
        match what:
            case "rank":
                self.pids[int(number)] = int(pid)
            case "step":
                self.steps.append(int(number))
            case "saving":
                self.saving = int(number)
            case "saved":
                self.saved.append(int(number))
                self.saving = None


class KillRuns:
    """One training in `folder`, and the undisturbed one that it is compared with."""

    def __init__(
        self, folder: Path, mpi: MpiRuns, ranks: int, times: int, seed: int, options: Sequence[str]
    ) -> None:
        self.folder, self.mpi, self.ranks, self.times = folder, mpi, ranks, times
        self.run, self.whole = folder / "run", folder / "whole"
        self.random, self.seed = random.Random(seed), seed
        self.epochs = -(-(times * STEPS_OF_A_KILL + 2 * PER_EPOCH) // PER_EPOCH)
        self.options = options or OPTIONS
        self.step = 0  # of the checkpoint
        self.left: set[str] = set()  # temporary files that kills have left
        self.log = folder / "log"

    # Sessions -------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Write what all sessions read: to load the digits by name takes seconds each time."""
        partition(load_network(MODEL), self.ranks, "cyclic").save(self.folder / "p.npz")
        for split in ("train", "test"):
            examples = load_examples("digits", split)
            write_inputs(examples.inputs, self.folder / f"{split}.safetensors")
            assert examples.labels is not None
            np.save(self.folder / f"{split}.npy", examples.labels)

    def command(self, program: Sequence[str | Path], run: Path) -> list[str]:
        arguments: list[object] = [
            self.mpi.mpirun, *self.mpi.options, "-n", self.ranks, sys.executable, *program,
            "train", MODEL, "--inputs", "train.safetensors", "--labels", "train.npy",
            "--validate", "test.safetensors", "--validate-labels", "test.npy",
            "--partition", "p.npz", "--threads", 1, "--epochs", self.epochs, *self.options,
            "--checkpoint", run.name, "--every", EVERY, "--resume", "--json",
        ]  # fmt: skip
        return [str(argument) for argument in arguments]

    @contextlib.contextmanager
    def session(self, program: Sequence[str | Path], run: Path) -> Iterator[subprocess.Popen[str]]:
        """Start a training; whatever happens, nothing of it is left."""
        with open(self.folder / "out", "w") as out, open(self.folder / "err", "w") as err:
            process = subprocess.Popen(
                self.command(program, run), env=self.mpi.environ(), cwd=self.folder, text=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
            )  # fmt: skip
        try:
            yield process
        finally:
            _kill_session(process)
            process.wait()

    def finish(self, run: Path) -> dict[str, Any]:
        """Train to the end with nothing but ``sparsednn``; return its summary."""
        with self.session(["-m", "sparsednn"], run) as process:
            code = _ended(process)
        if code:
            raise WrongError(f"{run.name}: exit code {code}: {self.told('err')}")
        return dict(json.loads(self.told("out")))

    def told(self, name: str) -> str:
        return (self.folder / name).read_text(errors="replace").replace("\0", "")

    # Kills ----------------------------------------------------------------------------------

    def plan(self, number: int) -> Kill:
        """Choose a moment that leaves enough steps for the kills to come."""
        left = self.epochs * PER_EPOCH - self.step
        steps = self.random.randint(1, max(1, left // (self.times - number + 1) - 1))
        rank = self.random.randrange(self.ranks)
        if number % 2 == 0:
            return Kill("epoch", rank, steps, self.random.uniform(0, 0.02))
        place = SAVES[(number // 2 + self.seed) % len(SAVES)]
        saves = 1 + steps // EVERY
        match place:
            case "seen":
                return Kill(place, rank, steps, 0)
            case "gather":  # any of all layers' arrays
                return Kill(place, rank, self.random.randrange(saves * 15), 0)
            case "written":  # by rank 0, as all that follows
                size = (self.whole / CHECKPOINT).stat().st_size
                return Kill(place, 0, self.random.randrange(saves * size), 0)
            case "line":
                return Kill(place, 0, 0, 0)
            case _:  # the metrics, too, are forced to the disk, and renamed at the beginning
                return Kill(place, 0, self.random.randrange(saves), 0)

    def killed(self, number: int) -> str:
        """Train until the rank is killed, and check what is left; returns what to print."""
        before = self.folder / "before"
        shutil.rmtree(before, ignore_errors=True)
        if self.run.exists():
            shutil.copytree(self.run, before)
        for _ in range(TRIES):
            kill = self.plan(number)
            self.log.unlink(missing_ok=True)
            with self.session([PROGRAM, kill.fault, self.log], self.run) as process:
                hit = self.strike(kill, process)
                code = _ended(process)
                if code or hit:
                    self.check_end(process, code)
                    return f"{kill}: {self.check_files(kill)}"
            # The training was over before: once more, from where it was.
            shutil.rmtree(self.run)
            if before.exists():
                shutil.copytree(before, self.run)
        raise WrongError(f"no kill in {TRIES} sessions: the machine is too busy")

    def strike(self, kill: Kill, process: subprocess.Popen[str]) -> bool:
        """Kill the rank from outside, where it does not do so itself; whether it was there."""
        if kill.fault != "none":
            return False
        deadline = time.monotonic() + LIMIT
        while process.poll() is None and time.monotonic() < deadline:
            log = Log.read(self.log)
            if len(log.pids) < self.ranks or len(log.steps) < kill.after:
                time.sleep(0.001 if log.steps else 0.02)
                continue
            if kill.place == "seen":
                if self.kill_in_save(log.pids, kill.rank):
                    return True
                continue
            time.sleep(kill.wait)
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(log.pids[kill.rank], signal.SIGKILL)
                    return True
        return False

    def kill_in_save(self, pids: dict[int, int], rank: int) -> bool:
        """Kill the rank if rank 0 is writing; held meanwhile, or its save would be done by then."""
        if not self.writes(pids[0]):
            return False
        try:
            os.kill(pids[0], signal.SIGSTOP)
            while _state(pids[0]) not in "TZ":
                pass
            found = self.writes(pids[0])
            if found:
                os.kill(pids[rank], signal.SIGKILL)
            os.kill(pids[0], signal.SIGCONT)
        except OSError:  # it has ended
            return False
        return found

    def writes(self, pid: int) -> bool:
        """Whether a process has a file open in the folder that has no name yet, or a temporary."""
        start = str(self.run.resolve())
        try:
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = os.readlink(entry.path)
                    if path.startswith(start) and path.endswith((" (deleted)", ".tmp")):
                        return True
        except OSError:
            pass
        return False

    # Checks ---------------------------------------------------------------------------------

    def check_end(self, process: subprocess.Popen[str], code: int) -> None:
        if code == 0:
            raise WrongError("the launcher ended with exit code 0")
        deadline = time.monotonic() + 10
        while (alive := list(_session(process.pid))) and time.monotonic() < deadline:
            time.sleep(0.02)
        if alive:
            raise WrongError(f"processes of the launcher are left: {alive}")
        # A rank may see that its partner has gone before the launcher ends it: that is the truth.
        told = [
            line for line in self.told("err").splitlines() if "MPI reports an error" not in line
        ]
        if any("Traceback" in line or "sparsednn: error:" in line for line in told):
            raise WrongError(f"a rank has something to tell: {self.told('err')}")

    def check_files(self, kill: Kill) -> str:
        """See that the last checkpoint is there, and fits to what the ranks have told."""
        log = Log.read(self.log)
        if log.steps and log.steps[0] != self.step + 1:
            raise WrongError(f"resumed after step {log.steps[0] - 1}, not {self.step}")
        resumed = f"resumed after {self.step}" if log.steps else "ended before its first step"
        last = log.saved[-1] if log.saved else self.step
        done = log.steps[-1] if log.steps else self.step
        path = self.run / CHECKPOINT
        step = 0
        if path.exists():
            step = int(read_checkpoint(path).progress["step"])
        if step not in ({last} if log.saving is None else {last, log.saving}):
            raise WrongError(f"the checkpoint is of step {step}, the last written is {last}")
        if kill.place in ("written", "line", "gather", "link") and step != last:
            raise WrongError(f"the checkpoint of step {step} was not yet written")
        if done - step > EVERY:
            raise WrongError(f"lost {done - step} of {done} steps, checkpoints are every {EVERY}")
        self.step = step
        self.check_metrics(self.run, step)
        self.check_names(log)
        moment = f"saving {log.saving}" if log.saving else f"{done} steps done"
        return f"{resumed}, {moment}, checkpoint {step}, lost {done - step}"

    def check_metrics(self, run: Path, step: int) -> None:
        """Metrics must be those of the undisturbed training, at least up to the step."""
        truth = [_timeless(record) for record in read_metrics(self.whole / METRICS)]
        path = run / METRICS
        found = [_timeless(record) for record in read_metrics(path)] if path.exists() else []
        if found != truth[: len(found)]:
            raise WrongError(f"{path.name} differs: {found}, not {truth[: len(found)]}")
        epochs = step // PER_EPOCH
        if not epochs <= len(found) <= epochs + 1:
            raise WrongError(f"{path.name} has {len(found)} lines at step {step}")

    def check_names(self, log: Log) -> None:
        """Only a kill between linking and renaming may leave a file: one, and a whole one."""
        if not self.run.exists():
            return
        names = {entry.name for entry in self.run.iterdir()} - {CHECKPOINT, METRICS, PARTITION}
        new = names - self.left
        # On a file system where all files have names there is nothing that could be done.
        good = all(re.fullmatch(r"\..+\.tmp", name) for name in new)
        if len(new) > 1 or not good or (log.saving is None and log.steps and new):
            raise WrongError(f"files are left: {sorted(new)}")
        if self.nameless():
            for name in new:
                if name.startswith(f".{CHECKPOINT}"):
                    read_checkpoint(self.run / name)
        self.left = names

    def nameless(self) -> bool:
        found = atomic._nameless(self.folder)
        if found is not None:
            os.close(found)
        return found is not None

    def check_same(self, summary: dict[str, Any], truth: dict[str, Any]) -> None:
        """Compare the finished training with the undisturbed one, to the bit."""
        if summary["resumed_step"] != self.step:
            raise WrongError(f"resumed after step {summary['resumed_step']}, not {self.step}")
        for name, value in truth.items():
            if name not in (*TIMES, "resumed_step", "checkpoint") and summary[name] != value:
                raise WrongError(f"{name} is {summary[name]}, without kills {value}")
        self.check_metrics(self.run, self.epochs * PER_EPOCH)
        found, expected = (read_checkpoint(path / CHECKPOINT) for path in (self.run, self.whole))
        if found.network.hash != expected.network.hash:
            raise WrongError("the network is another one than without kills")
        if list(found.slots) != list(expected.slots):
            raise WrongError(f"optimizer: {list(found.slots)}, not {list(expected.slots)}")
        for name, slot in expected.slots.items():
            for ours, theirs in zip(found.slots[name], slot, strict=True):
                for one, other in zip(ours, theirs, strict=True):
                    if one.tobytes() != other.tobytes():
                        raise WrongError(f"the optimizer's '{name}' differs")

    # All of it ------------------------------------------------------------------------------

    def all(self) -> None:
        start = time.monotonic()
        self.prepare()
        truth = self.finish(self.whole)
        print(
            f"{self.mpi.name}, {self.ranks} ranks: {truth['steps']} steps without a kill, "
            f"accuracy {truth['test_accuracy']:.2%}",
            flush=True,
        )
        for number in range(self.times):
            print(f"kill {number + 1}: {self.killed(number)}", flush=True)
        self.check_same(self.finish(self.run), truth)
        print(
            f"{self.times} kills, each resumed; network, optimizer and metrics have the same bits "
            f"as without; temporary files left: {len(self.left)}; "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )


def _ended(process: subprocess.Popen[str]) -> int:
    try:
        return process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        raise WrongError(f"the launcher has not ended after {LIMIT:g} seconds") from None


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in TIMES}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20, help="kills")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--mpi", choices=IMPLEMENTATIONS, default="openmpi")
    parser.add_argument("options", nargs="*", help="behind --: of sparsednn train")
    given = parser.parse_args()
    mpi = find_mpi(given.mpi)
    if isinstance(mpi, str):
        parser.error(mpi)
    folder = Path(tempfile.mkdtemp(prefix="kill-runs-"))
    runs = KillRuns(folder, mpi, given.ranks, given.times, given.seed, given.options)
    try:
        runs.all()
    except (WrongError, SparseDNNError) as error:
        print(f"wrong: {error}\nseed {given.seed}; files are in {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
