"""Files that a command is to write, checked before the work that makes them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsednn.errors import UsageError

__all__ = ["check_targets"]


def check_targets(
    model: str, targets: Mapping[str, Path | None], read: Sequence[Path | None] = ()
) -> None:
    """Refuse files that cannot be written, and those that are read: they would be lost.

    Parameters
    ----------
    model
        MODEL, as typed.
    targets
        Option and file.
    read
        What the command reads beside the model.

    Raises
    ------
    UsageError
        If a file is read, or named twice.
    FormatError
        If it cannot be written.
    """
    from sparsednn.atomic import check_target

    sources = {os.path.realpath(path): "read by this command" for path in read if path is not None}
    if os.path.exists(model):
        sources[os.path.realpath(model)] = "the model itself"
    taken: dict[str, str] = {}
    for option, path in targets.items():
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in sources:
            raise UsageError(f"{path}: is {sources[place]}, and would be lost: choose another")
        if place in taken:
            raise UsageError(f"{path}: is both {taken[place]} and {option}")
        taken[place] = option
        check_target(path)
