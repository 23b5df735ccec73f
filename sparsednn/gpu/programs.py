"""Our CUDA sources: where they are, and how they are compiled.

One place for CuPy's compiler, for the tests' own NVRTC, and for the tests' PTX interpreter, so that
all of them see the same text and the same options. Knows no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

__all__ = ["PROGRAMS", "SOURCES", "options", "source"]

#: The folder of the ``.cu`` files, and of the ``.cuh`` that they include.
SOURCES = Path(__file__).parent / "sources"

#: Names of all programs: ``sources/<name>.cu``.
PROGRAMS = tuple(sorted(path.stem for path in SOURCES.glob("*.cu")))


@cache
def source(program: str) -> str:
    """Text of a program, its own ``#include "…"`` lines replaced by the files they name."""
    return _text(SOURCES / f"{program}.cu", set())


def _text(path: Path, seen: set[Path]) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith('#include "'):
            included = path.parent / line.split('"')[1]
            if included not in seen:  # each file once
                seen.add(included)
                lines.append(_text(included, seen))
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def options(defines: Mapping[str, int | str]) -> tuple[str, ...]:
    """Compiler options: the dialect, and the macros in alphabetical order."""
    return (
        "--std=c++17",
        # Sums are ordered by us; contraction to fused multiply-adds is wanted, all else is not.
        "--fmad=true",
        "--prec-div=true",
        "--prec-sqrt=true",
        "--ftz=false",
        *(f"-D{name}={defines[name]}" for name in sorted(defines)),
    )
