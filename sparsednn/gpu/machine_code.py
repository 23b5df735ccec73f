"""Machine code of our programs, made by CuPy's compiler with our options alone, kept on disk.

`cupy.RawModule` compiles, too, but adds ``-ftz=true`` behind the options that it is given. Of two
such options the last one counts: numbers below 1.2e-38 would become zero, on the device only. So
we compile by ourselves, and `RawModule` loads the file.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["machine_code"]


def machine_code(cupy: Any, text: str, options: Sequence[str], capability: tuple[int, int]) -> Path:
    """Return a file with a program's machine code; compiled, unless a process has done it before.

    Parameters
    ----------
    cupy
        The module.
    text, options
        The program, and what else counts.
    capability
        Of the thread's current device, for which it is made.
    """
    version = cupy.cuda.nvrtc.getVersion()
    what = repr((text, tuple(options), capability, version)).encode()
    file = _folder() / f"sparsednn-{hashlib.sha256(what).hexdigest()}.cubin"
    if not file.exists():
        code, _ = cupy.cuda.compiler.compile_using_nvrtc(text, tuple(options))
        _write(file, code)
    return file


def _write(file: Path, code: bytes) -> None:
    """All at once: ranks compile the same programs at the same time."""
    number, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(number, "wb") as part:
            part.write(code)
        Path(name).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise


def _folder() -> Path:
    """CuPy's own folder for such files; one of this process where that cannot be written."""
    named = os.environ.get("CUPY_CACHE_DIR")
    folder = Path(named) if named else Path.home() / ".cupy" / "kernel_cache"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    return folder if os.access(folder, os.W_OK) else Path(_temporary().name)


@cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    """Goes with the process."""
    return tempfile.TemporaryDirectory(prefix="sparsednn-")
