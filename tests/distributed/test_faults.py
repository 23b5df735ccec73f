"""One rank fails: all end within seconds, the rank is named, and no half-written file is left.

The whole program on real ranks of every MPI. Faults are put into it by fault_program.py, or come
from outside: a bad file, a full disk, signals.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from distributed.samples import network, partition

from mpi_runs import MpiRuns, _kill_session, run_session
from sparsednn import InputSet, atomic
from sparsednn.formats import write_inputs, write_network

PROGRAM = Path(__file__).with_name("fault_program.py")

#: Seconds for a whole run, start and end: many times what it takes, far less than "for ever".
LIMIT = 30

#: What all exceptions of the program say.
SAYS = "as the test wants it"


@dataclass(frozen=True)
class Case:
    """A network, its inputs and its partitions in a folder; and the program on them.

    The results are also there, and whatever it leaves of them. Ranks of Open MPI write files with
    temporary names, as on a network file system: its launcher ends ranks by SIGTERM, and they have
    to clean up. MPICH's ends them by SIGKILL; its ranks write files that have no name yet.
    """

    folder: Path
    mpi: MpiRuns

    def arguments(
        self,
        *fault: object,
        more: tuple[object, ...] = (),
        model: str = "net.safetensors",
        inputs: str = "in.safetensors",
        parts: int = 3,
        results: tuple[str, ...] = ("outputs", "categories", "trace"),
        named: bool | None = None,
    ) -> list[str]:
        """Arguments of Python, started in the folder."""
        if named is None:
            named = self.mpi.name == "openmpi"
        program = [PROGRAM, *fault, "named" if named else "nameless", "infer", model]
        options = ["--inputs", inputs, "--partition", f"{parts}.npz", *more]
        for name in results:
            options += RESULTS[name]
        return [str(one) for one in program + options]

    def run(
        self, *fault: object, ranks: int = 3, **how: object
    ) -> subprocess.CompletedProcess[str]:
        """Run under mpiexec, and see that everything has ended and is gone."""
        arguments = self.arguments(*fault, **how)  # type: ignore[arg-type]
        done = self.mpi.run(ranks, arguments, check=False, timeout=LIMIT, cwd=self.folder)
        self.check_gone()
        return done

    def run_below_ours(self, *fault: object, **how: object) -> subprocess.CompletedProcess[str]:
        """Run with ``--ranks 3``."""
        arguments = self.arguments(*fault, more=("--ranks", 3), **how)  # type: ignore[arg-type]
        command = [sys.executable, *arguments]
        done = run_session(command, self.mpi.environ(), LIMIT, self.folder)
        self.check_gone()
        return done

    def made(self) -> set[str]:
        """Files that runs have made."""
        return {file.name for file in self.folder.iterdir()} - set(GIVEN)

    def processes(self) -> list[int]:
        """Those that were started in the folder, and have not ended."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "cwd").startswith(str(self.folder)):
                    found.append(int(entry.name))
        return found

    def check_gone(self) -> None:
        deadline = time.monotonic() + 10
        while (alive := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert alive == []
        assert self.made() == set()


RESULTS = {
    "outputs": ("--outputs-out", "o.npy"),
    "categories": ("--categories-out", "c.tsv"),
    "trace": ("--trace", "t.json"),
}
GIVEN = ("net.safetensors", "net", "in.safetensors", "in.tsv", "2.npz", "3.npz", "elsewhere")


@pytest.fixture
def case(mpi: MpiRuns, tmp_path: Path) -> Case:
    """What the other ranks see ``elsewhere``, too, where the network is cut off."""
    if (found := atomic._nameless(tmp_path)) is not None:
        os.close(found)
    elif mpi.name == "mpich":
        pytest.skip(f"a rank that MPICH kills leaves files in {tmp_path}: all have names there")
    net = network(3, (40, 50, 50, 50, 50, 30), bias="zero")
    write_network(net, tmp_path / "net.safetensors")
    write_network(net, tmp_path / "net", format="npz")
    for parts in (2, 3):
        partition(net, parts, "cyclic").save(tmp_path / f"{parts}.npz")
    rng = np.random.default_rng(0)
    inputs = InputSet.from_dense(rng.random((40, 60)) < 0.3)
    for name in ("in.safetensors", "in.tsv"):
        write_inputs(inputs, tmp_path / name)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    whole = (tmp_path / "net.safetensors").read_bytes()
    (elsewhere / "net.safetensors").write_bytes(whole[:-1])
    return Case(tmp_path, mpi)


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("sparsednn: error: ")]


def test_without_a_fault(case: Case) -> None:
    """So that it is the faults which the other tests see."""
    arguments = case.arguments("load", "KILL", 9, model="net", inputs="in.tsv")
    done = case.mpi.run(3, arguments, timeout=LIMIT, cwd=case.folder)
    assert errors(done) == []
    assert case.made() == {"o.npy", "c.tsv", "t.json"}


# --- exceptions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "kind", "rank"),
    [
        ("load", "ValueError", 0),
        ("load", "OSError", 2),
        ("scatter", "MemoryError", 1),
        ("deal", "ValueError", 2),
        ("layer", "MemoryError", 1),
        ("plan", "OSError", 2),
        ("outputs", "MemoryError", 0),
        ("categories", "ValueError", 1),
        ("trace", "OSError", 2),
    ],
)
def test_exception(case: Case, place: str, kind: str, rank: int) -> None:
    how: dict[str, object] = {}
    if place == "scatter":
        how["model"] = "net"
    if place == "deal":
        how["inputs"] = "in.tsv"
    if place == "layer":
        how |= {"more": ("--kernel", "reference"), "results": ("outputs", "categories")}
    done = case.run(place, kind, rank, **how)
    check_told(done, rank, f"{kind}: {SAYS}")


def check_told(done: subprocess.CompletedProcess[str], rank: int, says: str) -> None:
    assert done.returncode not in (0, 130, 143), done.stderr
    assert done.stdout == ""
    assert len(errors(done)) == 1, done.stderr
    assert errors(done)[0].startswith(f"sparsednn: error: rank {rank}: "), done.stderr
    assert says in errors(done)[0]


def test_error_of_mpi_in_a_compiled_loop(case: Case) -> None:
    done = case.run("exchange", "MPI", 0)
    check_told(done, 0, "MPI reports an error in an exchange: ")


@pytest.mark.parametrize(("place", "rank"), [("load", 3), ("outputs", 2)])
def test_in_a_grid(case: Case, place: str, rank: int) -> None:
    """The rank of the program is named, not that within its group."""
    done = case.run(place, "ValueError", rank, ranks=4, parts=2)
    check_told(done, rank, f"ValueError: {SAYS}")


# --- ranks that are killed ----------------------------------------------------------------------


@pytest.mark.parametrize(("place", "rank"), [("load", 1), ("exchange", 2)])
def test_killed(case: Case, place: str, rank: int) -> None:
    """Nobody but the launcher can tell; Hydra does on stdout, and knows only the process."""
    done = case.run(place, "KILL", rank)
    assert done.returncode != 0
    if case.mpi.name == "openmpi":
        assert f"process rank {rank} with PID" in done.stderr
        assert "signal 9" in done.stderr
    else:
        assert "Killed (signal 9)" in done.stdout


@pytest.mark.parametrize(("place", "rank"), [("exchange", 1), ("outputs", 0)])
def test_killed_below_our_launcher(case: Case, place: str, rank: int) -> None:
    done = case.run_below_ours(place, "KILL", rank, named=False)
    assert done.returncode == 137
    says = f"sparsednn: error: rank {rank} was killed by signal 9 (Killed, "
    assert [line.startswith(says) for line in errors(done)] == [True], done.stderr


def test_what_a_killed_rank_left_disturbs_nobody(case: Case) -> None:
    """Where files have temporary names; the next run writes its own."""
    arguments = case.arguments("categories", "KILL", 0, named=True)
    done = case.mpi.run(3, arguments, check=False, timeout=LIMIT, cwd=case.folder)
    assert done.returncode != 0
    (left,) = case.made()
    assert left.startswith(".o.npy.")
    assert left.endswith(".tmp")
    arguments = case.arguments("load", "KILL", 9, named=True)
    case.mpi.run(3, arguments, timeout=LIMIT, cwd=case.folder)
    assert case.made() == {left, "o.npy", "c.tsv", "t.json"}


# --- from outside -------------------------------------------------------------------------------


def test_file_that_is_bad_for_one_rank(case: Case) -> None:
    done = case.run("elsewhere", "elsewhere", 1)
    check_told(done, 1, "net.safetensors: truncated: ")
    assert done.returncode == 3


@pytest.mark.parametrize(("results", "file"), [(("outputs",), "o.npy"), (("categories",), "c.tsv")])
def test_full_disk(case: Case, results: tuple[str, ...], file: str) -> None:
    done = case.run("before_writing", "20", 0, results=results)
    check_told(done, 0, f"{file}: cannot write: File too large")
    assert done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ours", [False, True])
def test_signal_in_the_middle(case: Case, ours: bool, number: signal.Signals) -> None:
    """One rank sleeps, the others wait for it in compiled loops; files are being written."""
    if ours:
        command = [sys.executable]
        more: tuple[object, ...] = ("--ranks", 3)
    else:
        command = [str(case.mpi.mpirun), *case.mpi.options, "-n", "3", sys.executable]
        more = ()
    command += case.arguments("exchange", "SLEEP", 1, more=more)
    process = subprocess.Popen(
        # pytest may have been started with SIGINT ignored, as a shell's "&" does.
        ["/usr/bin/env", "--default-signal=INT", *command],
        env=case.mpi.environ(),
        cwd=case.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    clock = threading.Timer(LIMIT, _kill_session, [process])
    clock.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "asleep\n"
        if case.mpi.name == "openmpi":
            assert len(case.made()) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
    finally:
        clock.cancel()
        _kill_session(process)
        process.communicate()
    assert "network" not in out  # no summary; Hydra says things of its own
    assert process.returncode != 0
    if ours:
        assert process.returncode == 128 + number
        word = "interrupted" if number == signal.SIGINT else "terminated"
        assert f"sparsednn: error: {word}\n" in err
    case.check_gone()
