"""`Plan`: a program as the compiled loops take it, in flat arrays.

Must not know: what the steps are, what is done with them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Plan"]


class Plan(NamedTuple):
    """A program as flat arrays.

    Step s of every rank is of kind ``kind[s]``: rank r takes ``before[kind, r]`` seconds until its
    messages are ready, ``owned[kind, r]`` until it waits, ``after[kind, r]`` behind that. Its
    messages are those of the set ``chosen[kind]`` (-1: none):
    ``first[set, r]:first[set, r + 1]``, each to ``target`` with ``words``, of ``word_bytes[kind]``
    bytes each; ``incoming[set, r]`` come in.

    ``node`` is that of each rank; ``latency``, ``per_byte``, ``overlap`` ``(2,)`` are those of
    links within and between nodes.
    """

    kind: NDArray[np.int64]
    before: NDArray[np.float64]
    owned: NDArray[np.float64]
    after: NDArray[np.float64]
    chosen: NDArray[np.int64]
    word_bytes: NDArray[np.float64]
    first: NDArray[np.int64]
    incoming: NDArray[np.int64]
    target: NDArray[np.int32]
    words: NDArray[np.int32]
    node: NDArray[np.int64]
    latency: NDArray[np.float64]
    per_byte: NDArray[np.float64]
    overlap: NDArray[np.float64]
