"""Collectives, timed on the ranks as our `Communicator` calls them; and the formulas' figures.

A call's time is the slowest rank's mean in a loop behind a barrier: what a program sees that calls
them one after another. Bytes are those of the whole array: the concatenation for allgather and
reduce_scatter, what one rank hands in for all_to_all. Must not know: who waits for the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.costmodel.calibration.exchange import slowest
from sparsednn.costmodel.calibration.fit import Fit, fit_positive
from sparsednn.costmodel.calibration.timing import Action, Effort, in_rounds

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["VERBS", "fit_wire", "measure_collectives"]

_WORD = 4


def _pieces(size: int, ranks: int) -> tuple[int, list[int]]:
    """Words of an array that all ranks have equal pieces of, and the pieces."""
    each = max(1, round(size / (_WORD * ranks)))
    return each * ranks, [each] * ranks


def _broadcast(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    data = np.zeros(max(1, size // _WORD), np.float32)
    return data.nbytes, lambda: comm.broadcast(data)


def _reduce(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    data = np.zeros(max(1, size // _WORD), np.float32)
    return data.nbytes, lambda: comm.reduce(data)


def _allreduce(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    data = np.zeros(max(1, size // _WORD), np.float32)
    return data.nbytes, lambda: comm.allreduce(data)


def _allgather(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    words, counts = _pieces(size, comm.size)
    data = np.zeros(counts[0], np.float32)
    return words * _WORD, lambda: comm.allgather(data, counts)


def _reduce_scatter(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    words, counts = _pieces(size, comm.size)
    data = np.zeros(words, np.float32)
    return data.nbytes, lambda: comm.reduce_scatter(data, counts)


def _all_to_all(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    words, counts = _pieces(size, comm.size)
    data = np.zeros(words, np.float32)
    return data.nbytes, lambda: comm.all_to_all(data, counts)


def _start_broadcast(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    data = np.zeros(max(1, size // _WORD), np.float32)
    return data.nbytes, lambda: comm.start_broadcast(data).wait()


def _start_reduce(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    data = np.zeros(max(1, size // _WORD), np.float32)
    return data.nbytes, lambda: comm.start_reduce(data).wait()


def _start_allreduce(comm: Communicator, size: int) -> tuple[int, Callable[[], object]]:
    data = np.zeros(max(1, size // _WORD), np.float32)
    return data.nbytes, lambda: comm.start_allreduce(data).wait()


#: For each verb what makes a call of it for a size: the bytes it really has, and the call.
#: "start_…" is started and waited for at once.
VERBS: dict[str, Callable[[Communicator, int], tuple[int, Callable[[], object]]]] = {
    "broadcast": _broadcast,
    "reduce": _reduce,
    "allreduce": _allreduce,
    "allgather": _allgather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "start_broadcast": _start_broadcast,
    "start_reduce": _start_reduce,
    "start_allreduce": _start_allreduce,
}


def measure_collectives(
    comm: Communicator,
    sizes: Sequence[int],
    effort: Effort,
    *,
    within: Communicator | None = None,
) -> list[dict[str, Any]]:
    """Return a table ``{verb, ranks, bytes, seconds}`` for each verb, and one for the barrier.

    The barrier has one size, one byte, which means nothing.

    Parameters
    ----------
    comm
        Whose verbs are called.
    sizes
        Bytes; rounded to what a verb can have. Ascending.
    within
        All ranks, where `comm` has some of them: all groups call their verbs at the same time, and
        the slowest group counts. Default: `comm`.
    """
    everyone = comm if within is None else within
    tables: list[dict[str, Any]] = []
    actions: list[Action] = []
    for verb, make in VERBS.items():
        table: dict[str, Any] = {"verb": verb, "ranks": comm.size, "bytes": []}
        for size in sizes:
            nbytes, call = make(comm, size)
            if nbytes in table["bytes"]:
                continue  # several sizes are less than a word for each rank
            table["bytes"].append(nbytes)
            actions.append(slowest(everyone, _loop(call)))
        tables.append(table)
    actions.append(slowest(everyone, _loop(comm.barrier)))
    tables.append({"verb": "barrier", "ranks": comm.size, "bytes": [1]})
    seconds = iter(in_rounds(actions, effort).tolist())
    for table in tables:
        table["seconds"] = [next(seconds) for _ in table["bytes"]]
    return tables


def _loop(call: Callable[[], object]) -> Callable[[int], None]:
    def run(repeats: int) -> None:
        for _ in range(repeats):
            call()

    return run


def fit_wire(tables: Sequence[dict[str, Any]], begin: tuple[float, float, float]) -> Fit:
    """Fit latency (s), seconds per byte and reduction (s/byte) to the formulas of collectives.

    Parameters
    ----------
    tables
        Of `measure_collectives`, of one number of ranks or several. Those of "start_…" are left
        out, being the same algorithms with a start and an end, and barriers, around which there is
        none of the Python that makes half of the latency.
    begin
        Figures of about the right size.
    """
    from sparsednn.costmodel.collectives import VERBS as FORMULAS
    from sparsednn.costmodel.collectives import Wire, choose

    points = [
        (table["verb"], int(table["ranks"]), float(nbytes), float(seconds))
        for table in tables
        if table["verb"] in FORMULAS and table["verb"] != "barrier"
        for nbytes, seconds in zip(table["bytes"], table["seconds"], strict=True)
    ]

    def formula(figures: Any) -> list[float]:
        latency, per_byte, reduction = (float(figure) for figure in figures)
        wire = Wire(latency, per_byte, reduction)
        return [choose(verb, ranks, nbytes, wire).seconds for verb, ranks, nbytes, _ in points]

    return fit_positive(formula, begin, [seconds for *_, seconds in points])
