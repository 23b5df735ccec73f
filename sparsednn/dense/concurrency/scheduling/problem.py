"""`Problem`: the tasks of a pass, and all ways to do them, as arrays that compiled code walks.

A *slot* is one part of a task; each task has as many as its choice with the most parts wants, and
those of other choices use the first ones. Choices are numbered through, task by task; those whose
workspace no limit allows are left out.

Must not know: an order, lanes' contents.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.amounts import bytes_text
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import InputError, UsageError

__all__ = [
    "ALIGNMENT",
    "UNLIMITED",
    "Arrays",
    "Problem",
    "Slot",
    "aligned",
    "users_of_roots",
]

ALIGNMENT: Final = 64
"""Bytes: a line of the cache; what `Kernels.arena` and `Kernels.bind` are promised."""

Slot = int
"""Number of a part of a task."""

UNLIMITED: Final = 1 << 60
"""Capacity where there is no limit; sums of it with workspaces stay inside int64."""


def aligned(size: int) -> int:
    """Return a number of bytes rounded up to whole lines.

    >>> aligned(1), aligned(64), aligned(0)
    (64, 64, 0)
    """
    return -(-size // ALIGNMENT) * ALIGNMENT


class Arrays(NamedTuple):
    """What compiled code sees of a problem.

    Attributes
    ----------
    before_ptr, before, after_ptr, after
        Tasks that each task waits for, and those that wait for it (CSR).
    slot_of
        First slot of each task, and the number of slots.
    task_of
        Task of each slot.
    choice_ptr
        First choice of each task, and the number of choices.
    parts, seconds, workspace, share
        Of each choice; workspace in bytes of whole lines.
    measured
        Of each choice: its row in `pairs`; -1 where nothing was measured with it.
    pairs
        Measured slow-downs, nan where there is none.
    lanes, launch, wait
        As `Profile`.
    capacity
        Bytes of workspace at one time.
    """

    before_ptr: NDArray[np.int64]
    before: NDArray[np.int64]
    after_ptr: NDArray[np.int64]
    after: NDArray[np.int64]
    slot_of: NDArray[np.int64]
    task_of: NDArray[np.int64]
    choice_ptr: NDArray[np.int64]
    parts: NDArray[np.int64]
    seconds: NDArray[np.float64]
    workspace: NDArray[np.int64]
    share: NDArray[np.float64]
    measured: NDArray[np.int64]
    pairs: NDArray[np.float64]
    lanes: int
    launch: float
    wait: float
    capacity: int


class Problem:
    """What there is to schedule.

    Parameters
    ----------
    tasks, profile
        What must be done, and what it takes.
    limit
        Bytes of workspace in use at one time; None: any number.

    Raises
    ------
    InputError
        If the profile lacks a task, or a number in it makes no sense.
    UsageError
        If no choice of a task fits the limit.
    """

    def __init__(self, tasks: TaskGraph, profile: Profile, limit: int | None = None) -> None:
        self.tasks, self.profile, self.limit = tasks, profile, limit
        self.names = list(tasks.tasks)
        self.index = {name: number for number, name in enumerate(self.names)}
        self.choices: list[Choice] = []
        _check(profile, self.names)
        if limit is not None and limit < 0:
            raise UsageError(f"workspace limit: it must not be negative, found {limit}")
        starts = [0]
        for name in self.names:
            self.choices += self._fitting(name)
            starts.append(len(self.choices))
        most = [
            max(each.algorithm.parts for each in self.choices[first:last])
            for first, last in pairwise(starts)
        ]
        slots = np.concatenate(([0], np.cumsum(most))).astype(np.int64)
        waits = tasks.waits
        before = [sorted(self.index[each] for each in waits.predecessors(n)) for n in self.names]
        after = [sorted(self.index[each] for each in waits.successors(n)) for n in self.names]
        measured, pairs = self._measured(starts)
        self.arrays = Arrays(
            *_csr(before),
            *_csr(after),
            slots,
            np.repeat(np.arange(len(self.names)), most).astype(np.int64),
            np.array(starts, np.int64),
            np.array([each.algorithm.parts for each in self.choices], np.int64),
            np.array([each.seconds for each in self.choices], np.float64),
            np.array([aligned(each.algorithm.workspace) for each in self.choices], np.int64),
            np.array([each.memory_share for each in self.choices], np.float64),
            measured,
            pairs,
            profile.lanes,
            float(profile.launch_seconds),  # one type, so that it is compiled once
            float(profile.wait_seconds),
            UNLIMITED if limit is None else aligned(limit),
        )

    def choices_of(self, task: int) -> range:
        """Numbers of the choices of a task."""
        starts = self.arrays.choice_ptr
        return range(int(starts[task]), int(starts[task + 1]))

    def slots(self, task: int, choice: int) -> range:
        """Slots that a task uses with a choice."""
        first = int(self.arrays.slot_of[task])
        return range(first, first + self.choices[choice].algorithm.parts)

    def _fitting(self, name: str) -> list[Choice]:
        choices = self.profile.choices[name]
        if self.limit is None:
            return choices
        found = [each for each in choices if each.algorithm.workspace <= self.limit]
        if not found:
            least = min(each.algorithm.workspace for each in choices)
            raise UsageError(
                f"workspace limit {bytes_text(self.limit, up=True)}: {name} needs at least "
                f"{bytes_text(least, up=True)}"
            )
        return found

    def _measured(self, starts: list[int]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of choices in the table of measured pairs, and the table."""
        pairs = self.profile.pairs
        rows = {
            key: row for row, key in enumerate(sorted({each for pair in pairs for each in pair}))
        }
        measured = np.full(len(self.choices), -1, np.int64)
        if rows:
            for task, name in enumerate(self.names):
                for choice in range(starts[task], starts[task + 1]):
                    key = self.profile.key(name, self.choices[choice].algorithm)
                    measured[choice] = rows.get(key, -1)
        table = np.full((max(len(rows), 1),) * 2, np.nan)
        for (first, second), factor in pairs.items():
            table[rows[first], rows[second]] = factor
        return measured, table


def users_of_roots(tasks: TaskGraph) -> dict[str, list[str]]:
    """Tensors with memory of their own → the tasks that read or write them, or a part of them."""
    users: dict[str, dict[str, None]] = {tensor.name: {} for tensor in tasks.roots}
    for task in tasks:
        for tensor in (*task.reads, *task.writes):
            users[tasks.root(tensor)[0]][task.name] = None
    return {root: list(names) for root, names in users.items()}


def _check(profile: Profile, names: list[str]) -> None:
    if profile.lanes < 1:
        raise InputError(f"profile of {profile.device}: it has {profile.lanes} lanes")
    times = (profile.launch_seconds, profile.wait_seconds)
    if not all(0 <= each < np.inf for each in times):
        raise InputError(f"profile of {profile.device}: launching and waiting take {times} seconds")
    for name in names:
        if not profile.choices.get(name):
            raise InputError(f"profile of {profile.device}: there is nothing on task {name}")
        for choice in profile.choices[name]:
            algorithm = choice.algorithm
            if not (
                algorithm.parts >= 1
                and algorithm.workspace >= 0
                and 0 <= choice.seconds < np.inf
                and 0 <= choice.memory_share <= 1
            ):
                raise InputError(
                    f"profile of {profile.device}: task {name} cannot take {choice.seconds} "
                    f"seconds in {algorithm.parts} parts with {algorithm.workspace} bytes of "
                    f"workspace each and a memory share of {choice.memory_share}"
                )
    for pair, factor in profile.pairs.items():
        if not 0 < factor < np.inf:
            raise InputError(
                f"profile of {profile.device}: {pair[0]} beside {pair[1]} takes {factor} times as "
                "long"
            )


def _csr(rows: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = [len(row) for row in rows]
    pointer = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return pointer, np.array([each for row in rows for each in row], np.int64)
