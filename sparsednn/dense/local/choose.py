"""Backends by name. Must not know what they compute; loads a library only when it is asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from sparsednn.dense.local.base import LocalBackend
from sparsednn.errors import MissingDependencyError, UnknownNameError, UsageError

__all__ = ["BACKENDS", "make_backend"]

#: Name to (module below this package, class, package that it needs beyond ours, how to install it).
BACKENDS: dict[str, tuple[str, str, str | None, str]] = {
    "torch": ("torch_backend", "TorchBackend", "torch", "pip install 'sparsednn[torch]'"),
    "im2col": ("im2col", "Im2colBackend", None, ""),
    "reference": ("reference", "ReferenceBackend", None, ""),
    "cupy": ("cupy_backend", "CupyBackend", "cupy", "pip install 'sparsednn[gpu]'"),
}


def make_backend(name: str = "auto", threads: int = 1) -> LocalBackend:
    """Return a new backend.

    Parameters
    ----------
    name
        ``"torch"``, ``"im2col"``, ``"reference"``, ``"cupy"``; or ``"auto"``: PyTorch where it is
        installed, otherwise ``"im2col"``.
    threads
        Threads on the CPU, 1 or more. PyTorch and BLAS are told in this process, for good.

    Raises
    ------
    UnknownNameError, UsageError
        No such backend; no such number of threads.
    MissingDependencyError
        The library of the backend is not installed, or there is no device for it.
    """
    if threads < 1:
        raise UsageError(f"threads: found {threads}, expected 1 or more")
    if name == "auto":
        name = "torch" if find_spec("torch") is not None else "im2col"
    if name not in BACKENDS:
        known = ", ".join(["auto", *BACKENDS])
        raise UnknownNameError(f"no backend is called {name!r}; there are {known}")
    module, cls, needs, install = BACKENDS[name]
    if needs is not None and find_spec(needs) is None:
        raise MissingDependencyError(f"backend {name!r} needs {needs}: {install}")
    loaded = import_module(f"sparsednn.dense.local.{module}")
    backend: LocalBackend = getattr(loaded, cls)(threads=threads)
    return backend
