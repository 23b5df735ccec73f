"""NVRTC, NVIDIA's run-time compiler, through ctypes: CUDA text in, PTX or machine code out.

It needs neither a GPU nor a driver nor a CUDA toolkit. Knows nothing of our kernels or of the
interpreter.
"""

from __future__ import annotations

import ctypes
import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

__all__ = [
    "CompileError",
    "NvrtcMissingError",
    "Program",
    "available",
    "compile_program",
    "why_not",
]

#: Packages in which the wheels put the library: CUDA 13's layout, and CUDA 12's.
PACKAGES = ("nvidia.cu13", "nvidia.cuda_nvrtc", "nvidia.cu14")


class NvrtcMissingError(ImportError):
    """No NVRTC on this machine."""


class CompileError(Exception):
    """The compiler refused the program; `log` is what it said."""

    def __init__(self, name: str, log: str) -> None:
        super().__init__(f"{name} does not compile:\n{log}")
        self.log = log


@dataclass(frozen=True)
class Program:
    """A compiled program: PTX as text, or the bytes of a CUBIN; and the compiler's warnings."""

    ptx: str
    cubin: bytes
    log: str


def _candidates() -> list[Path]:
    """Return the library files that wheels have installed, newest first."""
    found: list[Path] = []
    for package in PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:  # not even the name space `nvidia`
            continue
        for place in (spec.submodule_search_locations or []) if spec else []:
            root = Path(place)
            for pattern in ("lib/libnvrtc.so.*", "lib64/libnvrtc.so.*", "bin/**/nvrtc64_*.dll"):
                names = (path for path in root.glob(pattern) if ".alt." not in path.name)
                found += sorted(names, reverse=True)
    return found


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    names = [str(path) for path in _candidates()]
    names += ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]  # a toolkit's own
    for name in names:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    raise NvrtcMissingError("NVRTC is not installed: pip install nvidia-cuda-nvrtc")


def why_not() -> str:
    """Return why there is no NVRTC here; empty if there is one."""
    try:
        _library()
    except NvrtcMissingError as error:
        return str(error)
    return ""


def available() -> bool:
    """Whether programs can be compiled here."""
    return not why_not()


def _check(library: ctypes.CDLL, code: int, call: str) -> None:
    if code:
        raise RuntimeError(f"{call}: {library.nvrtcGetErrorString(code).decode()}")


def _bytes(library: ctypes.CDLL, handle: ctypes.c_void_p, what: str) -> bytes:
    """Return what the program has of one kind: ``PTX``, ``CUBIN`` or ``ProgramLog``."""
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(handle, ctypes.byref(size)), what)
    text = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(handle, text), what)
    return text.raw


@lru_cache(maxsize=512)
def compile_program(
    text: str, name: str, options: tuple[str, ...] = (), arch: str = "compute_80"
) -> Program:
    """Compile CUDA C++ `text`; `name` appears in the messages.

    Parameters
    ----------
    arch
        ``compute_80`` gives PTX; ``sm_80``, ``sm_90``, ... give a CUBIN (and the PTX too).

    Raises
    ------
    CompileError
        If the text is not a correct program.
    NvrtcMissingError
        If there is no NVRTC.
    """
    library = _library()
    handle = ctypes.c_void_p()
    _check(
        library,
        library.nvrtcCreateProgram(
            ctypes.byref(handle), text.encode(), name.encode(), 0, None, None
        ),
        "nvrtcCreateProgram",
    )
    try:
        every = [f"--gpu-architecture={arch}", *options]
        array = (ctypes.c_char_p * len(every))(*(option.encode() for option in every))
        code = library.nvrtcCompileProgram(handle, len(every), array)
        log = _bytes(library, handle, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if code:
            raise CompileError(name, log)
        ptx = _bytes(library, handle, "PTX").rstrip(b"\0").decode()
        cubin = _bytes(library, handle, "CUBIN") if arch.startswith("sm_") else b""
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(handle))
    return Program(ptx, cubin, log)
