"""Files with pictures: what can be written, and how a figure gets there. Needs matplotlib.

Must not know: what is drawn.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sparsednn.atomic import atomic_file
from sparsednn.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_picture", "picture"]

SUFFIXES: Final = (".png", ".svg", ".pdf")
"""What can be written."""


def check_picture(path: str | os.PathLike[str]) -> None:
    """Raise what `picture` would, where that can be known beforehand.

    Raises
    ------
    UsageError
        If the suffix is none of `SUFFIXES`.
    MissingDependencyError
        If matplotlib is not installed.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{os.fspath(path)}: unknown suffix '{suffix}' for a picture: known are "
            f"{', '.join(SUFFIXES)}"
        )
    try:
        missing = importlib.util.find_spec("matplotlib") is None
    except ValueError:  # somebody has put a module without a spec, or None, in its place
        missing = True
    if missing:
        raise MissingDependencyError("pictures need matplotlib: pip install matplotlib")


@contextmanager
def picture(path: str | os.PathLike[str], size: tuple[float, float]) -> Iterator[Figure]:
    """Yield an empty figure of `size` (inches), and write it at the end, atomically.

    Parameters
    ----------
    path
        The file; its suffix, one of `SUFFIXES`, is the format.

    Raises
    ------
    UsageError, MissingDependencyError
        As `check_picture`.
    FormatError
        If the file cannot be written.
    """
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # The user's own settings stay out: a picture does not depend on them.
    with rc_context({"font.size": 9.0, "svg.hashsalt": "sparsednn"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)  # whatever display there is
        yield figure
        with atomic_file(path) as file:
            figure.savefig(file, format=Path(path).suffix.lower()[1:], dpi=150)
