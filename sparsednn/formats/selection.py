"""Which layers of a checkpoint to read, and in which order, by patterns over their names.

A pattern is a glob (``classifier.*``, ``encoder.layer.[0-3].*``; a ``*`` crosses dots), or a
regular expression behind ``re:`` that has to fit the whole name. It is held against the name of a
layer (``classifier.0``) and against those of its tensors (``classifier.0.weight``). Behind ``!``
it takes layers out again. Knows names only: nothing about tensors.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence

from sparsednn.errors import FormatError, UsageError
from sparsednn.formats._common import natural_key

__all__ = ["choose"]


def choose(
    where: object, layers: Mapping[str, Sequence[str]], patterns: Sequence[str]
) -> list[str]:
    """Choose names of layers; a layer stands at the first pattern that it fits.

    Parameters
    ----------
    where
        The file, for messages.
    layers
        The name of each layer, and the full names of its tensors.
    patterns
        In the order wanted; within one pattern the order is natural (``fc2`` before ``fc10``).
        None, or only such that take out (``!``): of all layers.

    Raises
    ------
    UsageError
        If a pattern is empty, or no regular expression.
    FormatError
        If a pattern fits no layer, or nothing is left.

    Examples
    --------
    >>> choose("f", {"a.1": [], "a.10": [], "a.2": [], "b": []}, ["b", "a.*", "!a.1"])
    ['b', 'a.2', 'a.10']
    """
    ordered = sorted(layers, key=natural_key)

    def fitting(pattern: str) -> list[str]:
        fits = _test(pattern.removeprefix("!"))
        found = [name for name in ordered if any(map(fits, (name, *layers[name])))]
        if not found:
            shown = ", ".join(f"'{name}'" for name in ordered[:4])
            more = f" and {len(ordered) - 4} more" if len(ordered) > 4 else ""
            raise FormatError(f"{where}: --select '{pattern}' fits none of its {shown}{more}")
        return found

    inside = [fitting(pattern) for pattern in patterns if not pattern.startswith("!")]
    outside = {name for p in patterns if p.startswith("!") for name in fitting(p)}
    wanted = dict.fromkeys(name for found in inside or [ordered] for name in found)
    chosen = [name for name in wanted if name not in outside]
    if not chosen and patterns:
        raise FormatError(f"{where}: --select {' '.join(patterns)} leaves no layer")
    return chosen


def _test(pattern: str) -> Callable[[str], object]:
    if not pattern:
        raise UsageError("--select: an empty pattern")
    text = pattern.removeprefix("re:") if pattern.startswith("re:") else fnmatch.translate(pattern)
    try:
        return re.compile(text).fullmatch
    except re.error as error:
        raise UsageError(f"--select '{pattern}': not a regular expression: {error}") from error
