"""How fast memory and caches are: copy and triad over working sets of many sizes.

After J. D. McCalpin's STREAM (1995): ``copy`` is ``a = b``, ``triad`` is ``a = b + s c``. Bytes are
counted as the loops name them, two arrays for a copy and three for a triad; what the processor
reads in addition before it writes (write allocation) is not, and so is in the figures of the cost
models, which count in the same way. Must not know: what the bandwidths are used for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.costmodel.calibration.timing import Action, Effort, in_rounds, repeated
from sparsednn.kernels.cpu import aligned, in_threads
from sparsednn.machine import Machine

__all__ = ["Stream", "measure_reduction", "measure_stream", "working_sets"]

_WORD = 4
#: Working sets of arrays that are added up, in bytes of one of the two.
_REDUCED = tuple(1 << power for power in (14, 16, 18, 20, 22))


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes per second: triads of one core from its private cache and from memory, and of all.

    `table` has all that was measured: ``bytes`` of the working sets, and for each the bandwidth
    of ``copy`` and ``triad`` on one core and of ``triad_all`` on all cores together.
    """

    cache: float
    memory: float
    node: float
    table: dict[str, Any]


def working_sets(cpu: Machine, *, quick: bool) -> list[int]:
    """Bytes of the working sets of one core, ascending: in its private cache, …, far beyond all.

    The last is four times the last-level cache, so that hardly anything of it is still there when
    it comes round again, but never more than what all cores have room for.
    """
    most = max(8 * cpu.l2, min(4 * cpu.l3, (cpu.memory or 4 << 30) // (8 * cpu.cores)))
    between = [] if quick else [2 * cpu.l2, 4 * cpu.l2, cpu.l3 // 2, 2 * cpu.l3]
    sets = {cpu.l2 // 2, *(size for size in between if cpu.l2 < size < most), most}
    return sorted(sets)


@jit
def _copy(a: NDArray[np.float32], b: NDArray[np.float32], repeats: int) -> None:
    for round in range(repeats):
        # To and fro: a copy that is made twice could be made once.
        source, target = (a, b) if round % 2 else (b, a)
        for k in range(source.size):
            target[k] = source[k]


@jit
def _triad(
    a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32], repeats: int
) -> None:
    scale = np.float32(0.25)
    for _ in range(repeats):
        for k in range(a.size):
            a[k] = b[k] + scale * c[k]
        scale += np.float32(0.01)  # a triad that is made twice could be made once


def measure_stream(cpu: Machine, effort: Effort, *, quick: bool = False) -> Stream:
    """Measure all working sets, on one core and on all."""
    sets = working_sets(cpu, quick=quick)
    # All sizes are the beginnings of the largest: memory is touched once.
    arrays = [[_array(_floats(sets[-1])) for _ in range(3)] for _ in range(cpu.cores)]
    copies = [_copies(arrays[0], size) for size in sets]
    triads = [_triads(arrays[:1], size) for size in sets]
    together = [_triads(arrays, size) for size in sets]
    seconds = in_rounds([*copies, *triads, *together], effort).reshape(3, len(sets))
    moved = np.array([_floats(size) * _WORD for size in sets], np.float64)
    copy, triad = 2 * moved / seconds[0], 3 * moved / seconds[1]
    every = cpu.cores * 3 * moved / seconds[2]
    table = {
        "bytes": sets,
        "copy": copy.tolist(),
        "triad": triad.tolist(),
        "triad_all": every.tolist(),
    }
    return Stream(float(triad[0]), float(triad[-1]), float(every[-1]), table)


def measure_reduction(effort: Effort) -> tuple[float, dict[str, Any]]:
    """Return bytes per second at which an array is added to another one, and the table.

    ``a += b`` in NumPy; counted are the bytes of `b`, which have been received. The figure is the
    median over the sizes.
    """
    actions = []
    for size in _REDUCED:
        a, b = (np.full(size // _WORD, 0.5, np.float32) for _ in range(2))
        actions.append(repeated(partial(np.add, a, b, out=a)))
    seconds = in_rounds(actions, effort)
    table = {"bytes": list(_REDUCED), "seconds": seconds.tolist()}
    return float(np.median(np.array(_REDUCED) / seconds)), table


def _floats(size: int) -> int:
    """Elements of each of the three arrays of a working set."""
    return size // (3 * _WORD)


def _array(size: int) -> NDArray[np.float32]:
    array = aligned((size,), np.float32)
    array[:] = 0.5  # touched, and no denormal numbers
    return array


def _copies(arrays: Sequence[NDArray[np.float32]], size: int) -> Action:
    a, b = (array[: _floats(size)] for array in arrays[:2])
    return _timed(lambda repeats: _copy(a, b, repeats), 1)


def _triads(arrays: Sequence[Sequence[NDArray[np.float32]]], size: int) -> Action:
    """Triads of as many threads as there are triples of arrays."""
    triples = [[array[: _floats(size)] for array in three] for three in arrays]
    waiting: list[list[NDArray[np.float32]]] = []

    def run(repeats: int) -> None:
        a, b, c = waiting.pop()
        _triad(a, b, c, repeats)

    timed = _timed(run, len(triples))

    def action(repeats: int) -> float:
        waiting[:] = triples
        return timed(repeats)

    return action


def _timed(run: Callable[[int], None], threads: int) -> Action:
    def action(repeats: int) -> float:
        begin = time.perf_counter()
        in_threads(lambda: run(repeats), threads)
        return time.perf_counter() - begin

    return action
