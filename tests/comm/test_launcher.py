"""Finding launchers (faked programs), and starting, failing and stopping ranks (real ones)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sparsednn.comm import launcher
from sparsednn.comm.installed import InstalledMpi, installed_mpi
from sparsednn.comm.launcher import Launcher, Outcome, find_launcher, run_command, run_ranks
from sparsednn.comm.probe import try_ranks
from sparsednn.errors import LaunchError, MissingDependencyError, UsageError

OPEN_MPI = "mpirun (Open MPI) {}\n\nReport bugs to https://www.open-mpi.org/community/help/"
HYDRA = "HYDRA build details:\n    Version:         {}\n    Release Date:    today"
INTEL = "Intel(R) MPI Library for Linux* OS, Version {} Build 20240101\nCopyright"

#: A rank that does what its argument says, on rank 1; the others wait for it in C, for ever.
RANK = """
import os, signal, sys, time
import numpy as np
from sparsednn.comm import mpi
what = sys.argv[1]
signal.signal(signal.SIGTERM, lambda *_: None)  # as cli.main has one
if what != "deaf":
    from sparsednn.comm.launcher import default_signals
    default_signals()
world = mpi.world()
world.barrier()
sys.stdout.write(f"up {world.rank} of {world.size}\\n")
sys.stdout.flush()
if what == "end":
    sys.exit(0)
if what == "codes":
    sys.exit(5 if world.rank else 6)
if world.rank == 1:
    if what == "abort":
        world.raw.Abort(3)
    if what == "leave":
        os._exit(4)
    if what.isdigit():
        os.kill(os.getpid(), int(what))
world.raw.Recv(np.zeros(1), source=(world.rank + 1) % world.size)
"""


# --- finding ------------------------------------------------------------------------------------


def fake(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{version}\nEND\n")
    path.chmod(0o755)
    return path


def library(name: str, version: str, path: Path | None) -> InstalledMpi:
    return InstalledMpi(name, version, "4.1", path, "4.1.2")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """No launcher beside this Python; the PATH is the folder ``path``."""
    monkeypatch.setattr(launcher.sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(launcher.sys, "executable", str(tmp_path / "prefix" / "bin" / "python"))
    return {"PATH": f"{tmp_path / 'path'}{os.pathsep}/usr/bin{os.pathsep}/bin"}


@pytest.mark.parametrize("lib", ["lib", "lib64", "lib/release", "lib/x86_64-linux-gnu/openmpi/lib"])
@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("Open MPI", OPEN_MPI, "openmpi"),
        ("MPICH", HYDRA, "mpich"),
        ("MVAPICH", HYDRA, "mpich"),
        ("Intel MPI", INTEL, "other"),
    ],
)
def test_beside_the_library(tmp_path, elsewhere, lib, name, text, kind):
    mine = fake(tmp_path / "mpi" / "bin" / "mpirun", text.format("4.1.6"))
    fake(tmp_path / "path" / "mpirun", text.format("4.1.9"))
    path = tmp_path / "mpi" / lib / "libmpi.so.12"
    found = find_launcher(elsewhere, installed=library(name, "4.1.6", path))
    assert found == Launcher(mine, kind, "4.1.6")


def test_on_the_path_only_of_the_same_implementation(tmp_path, elsewhere):
    mpich = fake(tmp_path / "path" / "mpirun", HYDRA.format("4.2"))
    openmpi = fake(tmp_path / "path" / "mpirun.openmpi", OPEN_MPI.format("4.1.4"))
    nowhere = tmp_path / "lib" / "libmpi.so.40"
    found = find_launcher(elsewhere, installed=library("Open MPI", "4.1.4", nowhere))
    assert found.path == openmpi
    assert find_launcher(elsewhere, installed=library("MPICH", "4.2", None)).path == mpich


def test_beside_python(tmp_path, elsewhere):
    mine = fake(tmp_path / "prefix" / "bin" / "mpirun", OPEN_MPI.format("5.0.11"))
    assert find_launcher(elsewhere, installed=library("Open MPI", "5.0.11", None)).path == mine


def test_none_that_fits(tmp_path, elsewhere):
    fake(tmp_path / "path" / "mpirun", HYDRA.format("4.2"))
    fake(tmp_path / "path" / "mpiexec", OPEN_MPI.format("4.1.4"))
    with pytest.raises(MissingDependencyError) as caught:
        find_launcher(elsewhere, installed=library("Open MPI", "5.0.11", None))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("no mpirun was found for Open MPI 5.0.11, which mpi4py loads (")
    assert f"{tmp_path / 'path' / 'mpirun'} is of MPICH 4.2" in text
    assert f"{tmp_path / 'path' / 'mpiexec'} is of Open MPI 4.1.4" in text
    assert "install" in text


def test_programs_that_are_no_launchers(tmp_path, elsewhere):
    broken = fake(tmp_path / "path" / "mpirun", "")
    broken.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(MissingDependencyError, match="is no launcher that we know"):
        find_launcher(elsewhere, installed=library("MPICH", "5.0", None))


def test_unknown_library_takes_an_unknown_launcher(tmp_path, elsewhere):
    mine = fake(tmp_path / "path" / "mpirun", "Some launcher 1.0")
    found = find_launcher(elsewhere, installed=library("Fast MPI", "1.0", None))
    assert found == Launcher(mine, "other", "?")


def test_installed(mpi):
    environ = mpi.environ()
    found = installed_mpi(environ)
    assert found.name == {"openmpi": "Open MPI", "mpich": "MPICH"}[mpi.name]
    assert found.path is not None
    assert found.path.exists()
    mine = find_launcher(environ, installed=found)
    assert mine == find_launcher(environ)
    assert mine.path.parent == mpi.mpirun.parent
    assert (mine.kind, mine.version) == (mpi.name, found.version)


def test_no_library(tmp_path):
    environ = {**os.environ, "MPI4PY_LIBMPI": str(tmp_path / "libmpi.so")}
    with pytest.raises(MissingDependencyError, match=r"finds no MPI: .*install"):
        find_launcher(environ)


def test_library_that_ends_python(tmp_path, monkeypatch):
    python = fake(tmp_path / "python", "")
    python.write_text("#!/bin/sh\necho first >&2\necho out of luck >&2\nexit 7\n")
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(MissingDependencyError, match=r"ends Python \(exit code 7: out of luck\)"):
        installed_mpi()


# --- judging ------------------------------------------------------------------------------------


def failure(rank: int, code: int, at: int, told: bool = False) -> launcher._Failure:
    return launcher._Failure(rank, 100 + rank, code, at, told)


@pytest.mark.parametrize(
    ("code", "failures", "asked", "expected"),
    [
        (0, [], None, Outcome(0)),
        (7, [], None, Outcome(7)),
        (-9, [], None, Outcome(137, "the launcher was killed by signal 9")),
        (7, [failure(0, 5, 3), failure(1, 2, 2), failure(2, -15, 1, told=True)], None, Outcome(2)),
        (3, [failure(0, -15, 1, told=True)], None, Outcome(3)),
        (1, [failure(0, -15, 1, told=True)], signal.SIGTERM, Outcome(143, "terminated")),
        (1, [failure(0, 1, 1)], signal.SIGINT, Outcome(130, "interrupted")),
        (9, [failure(0, -64, 1)], None, Outcome(192, "rank 0 was killed by signal 64 (")),
        (6, [failure(0, -6, 1)], None, Outcome(134, "rank 0 was killed by signal 6 (Aborted)")),
    ],
)
def test_outcome(code, failures, asked, expected):
    found = launcher._outcome(code, failures, asked)
    assert found.code == expected.code
    assert found.failure.startswith(expected.failure)


def test_users_variables_win():
    own = {"PRTE_MCA_hwloc_default_binding_policy": "core", "A": "b"}
    found = launcher._environment(own)
    assert own.items() <= found.items()
    assert found["PRTE_MCA_rmaps_default_mapping_policy"] == ":oversubscribe"
    assert ("OMPI_ALLOW_RUN_AS_ROOT" in found) == (os.geteuid() == 0)


def test_refusals():
    with pytest.raises(UsageError, match="--ranks 0: at least 1"):
        run_ranks(0, ["doctor"])
    rank = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
    with pytest.raises(UsageError, match="not under mpirun"):
        run_ranks(2, ["doctor"], environ={**os.environ, **rank})


# --- real ranks ---------------------------------------------------------------------------------


@pytest.fixture
def job(mpi, tmp_path, monkeypatch):
    """Run the program above on three ranks, and return the outcome and what was printed."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    program = tmp_path / "rank.py"
    program.write_text(RANK)

    def run(what: str, ranks: int = 3) -> tuple[Outcome, str]:
        output = tmp_path / "output"
        with output.open("wb") as file:
            outcome = run_command(
                ranks,
                [sys.executable, str(program), what],
                environ=mpi.environ(),
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=60,
            )
        assert list((tmp_path / "temporary").iterdir()) == []
        return outcome, output.read_text(errors="replace")

    return run


def test_more_ranks_than_cores(job):
    ranks = (os.cpu_count() or 1) + 3
    outcome, printed = job("end", ranks)
    assert outcome == Outcome(0)
    assert sorted(printed.split("\n")[:-1]) == sorted(f"up {r} of {ranks}" for r in range(ranks))


@pytest.mark.parametrize(("what", "code"), [("abort", 3), ("leave", 4)])
def test_code_of_the_rank_that_failed(job, what, code):
    outcome, printed = job(what)
    assert outcome == Outcome(code), printed


def test_codes_are_not_mixed(job):
    outcome, printed = job("codes")
    assert outcome in (Outcome(5), Outcome(6)), printed


@pytest.mark.parametrize(
    ("number", "name"),
    [(9, "Killed, perhaps because memory ran out"), (11, "Segmentation fault: a crash in")],
)
def test_killed_rank_is_named(job, number, name):
    outcome, printed = job(str(number))
    assert outcome.code == 128 + number, printed
    assert outcome.failure.startswith(f"rank 1 was killed by signal {number} ({name}")


def test_program_that_is_not_there(mpi, tmp_path):
    with (tmp_path / "errors").open("wb") as errors:
        outcome = run_command(
            2, [str(tmp_path / "none")], environ=mpi.environ(), stderr=errors, timeout=60
        )
    assert outcome == Outcome(127)
    assert f"sparsednn: error: {tmp_path / 'none'}: No such file" in (errors_of(tmp_path))


def errors_of(folder: Path) -> str:
    return (folder / "errors").read_text(errors="replace")


def test_time_limit(mpi, tmp_path):
    program = tmp_path / "sleep.py"
    program.write_text("import time\ntime.sleep(600)\n")
    with (tmp_path / "errors").open("wb") as errors, pytest.raises(LaunchError, match="1 seconds"):
        run_command(
            2,
            [sys.executable, str(program)],
            environ=mpi.environ(),
            stdout=errors,
            stderr=errors,
            timeout=1,
        )
    assert processes(program) == []


def test_this_program_on_ranks(mpi, capfd):
    assert run_ranks(2, ["--version"], environ=mpi.environ()) == 0
    out, err = capfd.readouterr()
    assert out.count("sparsednn ") == 2
    assert err == ""
    assert run_ranks(2, ["inspect", "no-such-network"], environ=mpi.environ()) == 3
    assert "sparsednn: error: " in capfd.readouterr().err


def test_two_ranks_on_trial(mpi, tmp_path):
    mine = find_launcher(mpi.environ())
    trial = try_ranks(mine, environ=mpi.environ())
    assert trial.ok, trial.found
    assert trial.library is not None
    assert trial.library.thread_level == "multiple"
    broken = fake(tmp_path / "mpirun", "")
    broken.write_text("#!/bin/sh\necho ------ >&2\necho no slots >&2\nexit 9\n")
    trial = try_ranks(Launcher(broken, "other", "?"), environ=mpi.environ())
    assert (trial.ok, trial.library) == (False, None)
    assert trial.found == "2 ranks do not run: exit code 9: no slots"


# --- signals ------------------------------------------------------------------------------------


def processes(program: Path) -> list[int]:
    """Those that have a file among their arguments, and have not ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(program).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def waiting(mpi, tmp_path):
    """Start two ranks below a parent that calls `run_command`; they wait in MPI for ever."""
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    parents = []

    def start(what: str, grace: float = 10.0) -> subprocess.Popen[str]:
        code = (
            "import sys\n"
            "from sparsednn.comm import launcher\n"
            f"launcher._GRACE = {grace}\n"
            "judge = launcher._outcome\n"
            "def outcome(code, failures, asked):\n"
            "    print('codes', [one.code for one in failures], flush=True)\n"
            "    return judge(code, failures, asked)\n"
            "launcher._outcome = outcome\n"
            f"command = [sys.executable, {str(program)!r}, {what!r}]\n"
            "print(launcher.run_command(2, command, timeout=60), flush=True)\n"
        )
        # pytest may have been started with SIGINT ignored, as a shell's "&" does.
        parent = subprocess.Popen(
            [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler)\n"
             + code],
            env=mpi.environ({"TMPDIR": str(tmp_path)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )  # fmt: skip
        parents.append(parent)
        assert parent.stdout is not None
        for _ in range(2):
            assert "up" in parent.stdout.readline()
        return parent

    yield start
    for parent in parents:
        parent.kill()
        parent.wait()
        parent.stdout.close()  # may be held open by what was left behind
    deadline = time.monotonic() + 20
    while processes(program) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes(program) == [], "ranks were left behind"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ranks_that_wait_in_mpi_end_when_the_parent_is_told(waiting, number, tmp_path):
    parent = waiting("wait", grace=1000.0)  # so it is the signal that ends them
    parent.send_signal(number)
    printed, _ = parent.communicate(timeout=20)
    word = {signal.SIGTERM: "terminated", signal.SIGINT: "interrupted"}[number]
    assert f"Outcome(code={128 + number}, failure='{word}')" in printed
    # By the signal itself (Open MPI's launcher always sends SIGTERM), not by SIGKILL, which comes
    # when patience is lost. A rank's record may be missing, its supervisor ending with it.
    (codes,) = re.findall(r"^codes \[(.*)\]$", printed, flags=re.MULTILINE)
    assert set(codes.split(", ")) <= {"", "-15", str(-number)}
    assert [one.name for one in tmp_path.iterdir() if "ranks" in one.name] == []


def test_ranks_that_wait_in_mpi_end_when_the_launcher_is_told(waiting):
    parent = waiting("wait", grace=1000.0)
    (started,) = children(parent.pid)
    os.kill(started, signal.SIGTERM)
    printed, _ = parent.communicate(timeout=20)
    assert "Outcome(code=" in printed
    assert "code=0" not in printed


@pytest.mark.parametrize("grace", [2.0, 1000.0])  # by the parent, or by their supervisors
def test_ranks_that_ignore_the_signal_are_killed(waiting, grace):
    parent = waiting("deaf", grace)
    parent.terminate()
    printed, _ = parent.communicate(timeout=20)
    assert "Outcome(code=143, failure='terminated')" in printed


@pytest.mark.parametrize("what", ["wait", "deaf"])
@pytest.mark.parametrize("killed", ["parent", "launcher"])
def test_nothing_is_left_behind_after_a_kill(waiting, killed, what):
    parent = waiting(what)
    (started,) = children(parent.pid)
    if killed == "launcher":
        os.kill(started, signal.SIGKILL)
        printed, _ = parent.communicate(timeout=20)
        assert "Outcome(code=137, failure='the launcher was killed by signal 9')" in printed
    else:
        parent.kill()
        parent.wait(20)
