"""`LaneExecution`: a schedule on threads, one for each lane; the caller's is the first.

Each lane goes through its items in order. Where an item waits for others of other lanes, it looks
at their cells until these have the number of this pass: awake for a moment, since a sleeping thread
takes longer to wake than most tasks to run, then letting others have the core. All memory is one
arena, and all calls are made beforehand: a pass allocates nothing of its own.

Must not know: what the calls do, how the schedule was found.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sparsednn.dense.concurrency.cpu.spinning import address_of, spin_until
from sparsednn.dense.concurrency.kernels import Kernels
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.tasks import IMAGE, LOSS, TaskGraph
from sparsednn.errors import UsageError

__all__ = ["LaneExecution"]

#: Looks at a cell before a waiting lane lets another thread have its core: some 60 µs.
_TURNS = 2000
#: Seconds of waiting behind which a lane sleeps between looks.
_PATIENCE = 0.05

#: An item of a lane: its call, its number, and the cells that it waits for.
_Item = tuple[Callable[[], None], int, tuple[int, ...]]


class LaneExecution:
    """A schedule, bound to memory and threads.

    Parameters
    ----------
    tasks, schedule, kernels
        What to run, in what order and where, and how.

    Attributes
    ----------
    tensors
        All tensors by name, in the arena.
    arena_bytes
        Size of the arena.

    Raises
    ------
    UsageError
        If the schedule is for another number of lanes.
    """

    def __init__(self, tasks: TaskGraph, schedule: Schedule, kernels: Kernels) -> None:
        if schedule.lanes != kernels.lanes:
            raise UsageError(
                f"the plan is for {schedule.lanes} lanes, there are {kernels.lanes} here"
            )
        self.tasks, self.schedule, self.kernels = tasks, schedule, kernels
        self.arena_bytes = schedule.arena_bytes
        self._arena = kernels.arena(max(schedule.arena_bytes, 64))
        self.tensors: dict[str, Any] = {}
        for name in tasks.tensors:
            offset = schedule.offsets[tasks.root(name)[0]]
            self.tensors[name] = kernels.view(tasks, name, self._arena, offset)
        self._cells = np.zeros(len(schedule.items), np.int64)
        self._pass = 0
        self._programs = {way: self._bind(backward=way) for way in (False, True)}
        self._failure: BaseException | None = None
        self._moments: list[list[tuple[int, float, float]]] | None = None
        self._lanes = [_Lane(self, lane) for lane in range(1, schedule.lanes)]
        self._enter: Callable[[], int] = getattr(kernels, "enter_lane", _one)
        self._leave: Callable[[int], None] = getattr(kernels, "leave_lane", _ignore)

    def _bind(self, *, backward: bool) -> list[list[_Item]]:
        """The items of one direction, by lane."""
        programs: list[list[_Item]] = [[] for _ in range(self.schedule.lanes)]
        mine = [self.tasks.tasks[item.task].backward == backward for item in self.schedule.items]
        for index, item in enumerate(self.schedule.items):
            task = self.tasks.tasks[item.task]
            if not mine[index]:
                continue
            workspace = np.empty(0, np.uint8)
            if item.workspace >= 0:
                workspace = self._arena[item.workspace : item.workspace + item.algorithm.workspace]
            if task.action in (IMAGE, LOSS):
                call: Callable[[], None] = _nothing
            else:
                involved = {name: self.tensors[name] for name in (*task.reads, *task.writes)}
                call = self.kernels.bind(
                    self.tasks, task, item.algorithm, item.part, involved, workspace
                )
            # What is of the other direction is done before this one begins.
            waits = tuple(each for each in item.waits if mine[each])
            programs[item.lane].append((call, index, waits))
        return programs

    # -- running ---------------------------------------------------------------------------------

    def forward(self) -> None:
        """Do all that is in front of the loss; what is to be read must be in the arena."""
        self._pass += 1
        self._run(backward=False)

    def backward(self) -> None:
        """Do all that is behind it; the gradient of the logits must be in the arena."""
        self._run(backward=True)

    def traced(self, *, backward: bool) -> list[tuple[int, float, float]]:
        """Do one direction, and return when each item of it ran, by `time.perf_counter`."""
        self._moments = [[] for _ in range(self.schedule.lanes)]
        try:
            self.backward() if backward else self.forward()
            return sorted(
                (found for lane in self._moments for found in lane), key=lambda row: row[1]
            )
        finally:
            self._moments = None

    def _run(self, *, backward: bool) -> None:
        before = self._enter()
        for lane in self._lanes:
            lane.begin(self._programs[backward][lane.number])
        try:
            # Numbers that are none are told of by the loss, not by each product.
            with np.errstate(all="ignore"):
                self.go_through(self._programs[backward][0], 0)
        except BaseException as error:
            self.fail(error)
        for lane in self._lanes:
            lane.finish()
        self._leave(before)
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def go_through(self, program: list[_Item], lane: int) -> None:
        """Do the items of a lane; called in its own thread."""
        cells, number = self._cells, self._pass
        moments = None if self._moments is None else self._moments[lane]
        for call, index, waits in program:
            for each in waits:
                if cells[each] < number and not self._await(each):
                    return
            if moments is None:
                call()
            else:
                start = time.perf_counter()
                call()
                moments.append((index, start, time.perf_counter()))
            cells[index] = number

    def _await(self, item: int) -> bool:
        """Wait until an item is done; False if a lane has failed."""
        address = address_of(self._cells, item)
        since = 0.0
        while not spin_until(address, self._pass, _TURNS):
            if self._failure is not None:
                return False
            now = time.perf_counter()
            since = since or now
            if now - since < _PATIENCE:
                os.sched_yield()
            else:
                time.sleep(0.001)
        return True

    def fail(self, error: BaseException) -> None:
        """Remember what a lane has raised: the others stop at what they wait for next."""
        if self._failure is None:
            self._failure = error

    def close(self) -> None:
        """End the threads; a second time does nothing."""
        while self._lanes:
            self._lanes.pop().end()


class _Lane:
    """A thread that sleeps between passes, until `end`."""

    def __init__(self, execution: LaneExecution, number: int) -> None:
        self.number = number
        self._execution = execution
        self._program: list[_Item] | None = None
        self._begin, self._finished = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(
            target=self._live, name=f"sparsednn lane {number}", daemon=True
        )
        self._thread.start()

    def begin(self, program: list[_Item]) -> None:
        """Let it go through a program."""
        self._program = program
        self._begin.release()

    def finish(self) -> None:
        """Wait until it has done so."""
        self._finished.acquire()

    def end(self) -> None:
        """End the thread."""
        self._program = None
        self._begin.release()
        self._thread.join()

    def _live(self) -> None:
        execution = self._execution
        with np.errstate(all="ignore"):
            entered = False
            while True:
                self._begin.acquire()
                if self._program is None:
                    return
                try:
                    if not entered:
                        getattr(execution.kernels, "enter_lane", _one)()
                        entered = True
                    execution.go_through(self._program, self.number)
                except BaseException as error:  # to be raised in the caller's thread
                    execution.fail(error)
                self._finished.release()


def _nothing() -> None:
    return


def _one() -> int:
    return 1


def _ignore(before: int) -> None:
    return
