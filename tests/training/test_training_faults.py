"""One rank of a training fails: all end, one line says why, and the last checkpoint goes on.

The whole program on real ranks. Faults are put into it by training_fault_program.py. Each start
takes seconds, so every fault is put into a run that goes on with a checkpoint: that it can be read
by ranks is seen there, and that it can be gone on with after the fault, in this process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from distributed.samples import network, partition

from mpi_runs import MpiRuns, require_mpi, run_session
from sparsednn import InputSet, atomic
from sparsednn.comm.alone import Alone
from sparsednn.formats import write_inputs, write_network
from sparsednn.training.checkpoints import read_checkpoint
from sparsednn.training.metrics import read_metrics
from sparsednn.training.optimizers import SGD
from sparsednn.training.settings import Settings
from sparsednn.training.trainer import CHECKPOINT, METRICS, TrainingRun

PROGRAM = Path(__file__).with_name("training_fault_program.py")

#: Seconds for a whole run, start and end: many times what it takes, far less than "for ever".
LIMIT = 60

#: What all exceptions of the program say.
SAYS = "as the test wants it"

IMAGES, BATCH, EPOCHS, EVERY = 160, 16, 3, 4
BEGUN = 6  # steps that are done before; the checkpoint is of step 4
#: Calls of MPI_Waitall until a rank is in the middle of step 10: once in each layer and direction.
WAITS = 5 * 6 + 4


@dataclass(frozen=True)
class Case:
    """A folder with a network, examples, a partition, and in ``run`` a training that has begun."""

    folder: Path
    mpi: MpiRuns

    @property
    def run_folder(self) -> Path:
        return self.folder / "run"

    @property
    def step(self) -> int:
        """Of the checkpoint, which can be read."""
        return int(read_checkpoint(self.run_folder / CHECKPOINT).progress["step"])

    def arguments(self, *more: object) -> list[str]:
        given = [
            "train", "net.safetensors", "--inputs", "in.safetensors", "--labels", "labels.npy",
            "--validate", "in.safetensors", "--validate-labels", "labels.npy", "--partition",
            "p.npz", "--batch-size", BATCH, "--epochs", EPOCHS, "--momentum", 0.9, "--threads", 1,
            *more,
        ]  # fmt: skip
        return [str(argument) for argument in given]

    def with_fault(
        self, place: str, kind: str, rank: int, calls: int, *, resume: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Train on two ranks, of which one fails, and see that everything has ended and is gone."""
        folder = ("--checkpoint", "run", "--every", EVERY) if resume else ()
        arguments = self.arguments(*folder, *(("--resume",) if resume else ()))
        program = [PROGRAM, f"{place}:{kind}:{rank}:{calls}", "-", *arguments]
        done = self.mpi.run(2, program, check=False, timeout=LIMIT, cwd=self.folder)
        self.check_gone()
        return done

    def check_gone(self) -> None:
        deadline = time.monotonic() + 10
        while (alive := _processes(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive == []
        assert {file.name for file in self.run_folder.iterdir()} == {CHECKPOINT, METRICS}

    def check_goes_on(self) -> None:
        """The checkpoint is a good one, of a step that has one, and so are the metrics."""
        step = self.step
        per_epoch = IMAGES // BATCH
        assert step % EVERY == 0 or step % per_epoch == 0
        run = begin(self.folder, resume=True)
        assert run.resumed_step == step
        result = run.run()
        run.free()
        assert result.steps == EPOCHS * per_epoch
        lines = read_metrics(self.run_folder / METRICS)
        assert [line["step"] for line in lines] == [per_epoch * (k + 1) for k in range(EPOCHS)]


def begin(folder: Path, *, resume: bool) -> TrainingRun:
    """The training of the tests, in this process."""
    settings = Settings(
        epochs=EPOCHS, batch_size=BATCH, rate=0.1, optimizer=SGD(momentum=0.9), initial="auto"
    )
    given = str(folder / "in.safetensors")
    labels = folder / "labels.npy"
    return TrainingRun(
        Alone(), str(folder / "net.safetensors"), given, settings, labels=labels, validate=given,
        validate_labels=labels, folder=folder / "run", resume=resume, every=EVERY,
    )  # fmt: skip


def _processes(folder: Path) -> list[int]:
    """Those that were started in the folder, and have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(entry / "cwd").startswith(str(folder)):
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in a folder, stopped in its first epoch; to be copied."""
    folder = tmp_path_factory.mktemp("begun")
    net = network(3, (40, 50, 50, 10), bias="zero")
    write_network(net, folder / "net.safetensors")
    partition(net, 2, "cyclic").save(folder / "p.npz")
    rng = np.random.default_rng(0)
    write_inputs(InputSet.from_dense(rng.random((40, IMAGES)) < 0.3), folder / "in.safetensors")
    np.save(folder / "labels.npy", rng.integers(0, 10, IMAGES))
    run = begin(folder, resume=False)
    run.run_until(BEGUN)
    run.free()
    return folder


@pytest.fixture
def case(request: pytest.FixtureRequest, begun: Path, tmp_path: Path) -> Case:
    """A copy of it; the parameter is the MPI."""
    if (found := atomic._nameless(tmp_path)) is not None:
        os.close(found)
    elif request.param == "mpich":
        pytest.skip(f"a rank that MPICH kills leaves files in {tmp_path}: all have names there")
    folder = tmp_path / "case"
    shutil.copytree(begun, folder)
    return Case(folder, require_mpi(request.param))


on_openmpi = pytest.mark.parametrize("case", ["openmpi"], indirect=True)
on_mpich = pytest.mark.parametrize("case", ["mpich"], indirect=True)
on_both = pytest.mark.parametrize("case", ["openmpi", "mpich"], indirect=True)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("sparsednn: error: ")]


def check_told(done: subprocess.CompletedProcess[str], rank: int, says: str) -> None:
    assert done.returncode not in (0, 130, 143), done.stderr
    assert done.stdout == ""
    assert len(errors(done)) == 1, done.stderr
    assert errors(done)[0].startswith(f"sparsednn: error: rank {rank}: "), done.stderr
    assert says in errors(done)[0]


@on_openmpi
def test_loading(case: Case) -> None:
    """From the start, where each rank reads its rows; with a checkpoint rank 0 deals them out."""
    done = case.with_fault("load", "ValueError", 1, 1, resume=False)
    check_told(done, 1, f"ValueError: {SAYS}")
    assert case.step == 4


@on_both
def test_killed_in_a_step(case: Case) -> None:
    """Nobody but the launcher can tell."""
    done = case.with_fault("exchange", "KILL", 1, WAITS)
    assert done.returncode != 0
    assert errors(done) == []
    if case.mpi.name == "openmpi":
        assert "process rank 1 with PID" in done.stderr
        assert "signal 9" in done.stderr
    else:
        assert "Killed (signal 9)" in done.stdout
    assert case.step == 8
    case.check_goes_on()


@on_openmpi
def test_error_of_mpi_in_a_step(case: Case) -> None:
    done = case.with_fault("exchange", "MPI", 0, WAITS)
    check_told(done, 0, "MPI reports an error in an exchange: ")
    case.check_goes_on()


@on_mpich
def test_evaluation(case: Case) -> None:
    """Behind the second epoch, before its checkpoint."""
    done = case.with_fault("evaluation", "MemoryError", 0, 1)
    check_told(done, 0, f"MemoryError: {SAYS}")
    assert done.returncode == 3
    assert case.step == 16  # the one behind the epoch, 20, was still to come
    case.check_goes_on()


@on_openmpi
def test_gathering(case: Case) -> None:
    """In the second checkpoint, in the middle of its arrays: three layers with seven each."""
    done = case.with_fault("gather", "MemoryError", 1, 21 + 8)
    check_told(done, 1, f"MemoryError: {SAYS}")
    assert done.returncode == 3
    assert case.step == 8
    case.check_goes_on()


@on_openmpi
def test_full_disk(case: Case) -> None:
    """In the second checkpoint; the error is of rank 0 only, but the line names the file anyhow."""
    half = (case.run_folder / CHECKPOINT).stat().st_size // 2
    done = case.with_fault("write", str(half), 0, 1)
    check_told(done, 0, f"{CHECKPOINT}: cannot write: File too large")
    assert done.returncode == 3
    assert case.step == 8
    case.check_goes_on()


@on_both
def test_loss_that_is_no_number(case: Case) -> None:
    """All ranks know it alike, and one tells."""
    shutil.rmtree(case.run_folder)
    arguments = case.arguments("--lr", 1e30, "--ranks", 2, "--checkpoint", "run", "--every", 1)
    command = [sys.executable, "-m", "sparsednn", *arguments]
    done = run_session(command, case.mpi.environ(), LIMIT, case.folder)
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = errors(done)
    assert line.startswith("sparsednn: error: step ")
    assert "the outputs of layer " in line
    assert "try a lower --lr (now 1e+30)" in line
    # Open MPI's launcher has a note of its own on exit codes.
    others = [other for other in done.stderr.splitlines() if other != line]
    assert case.mpi.name == "openmpi" or others == []
    assert not any(word in other for word in ("sparsednn", "Traceback") for other in others)
    case.check_gone()
