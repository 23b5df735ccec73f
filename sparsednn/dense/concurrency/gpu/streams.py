"""`StreamExecution`: a schedule on streams, one for each lane, and a pass as one CUDA graph.

The host queues items in the order of the schedule. Behind an item that others wait for, an event is
recorded; those wait for it on the device, and the host never waits within a pass. Waits that follow
from others are left out. The first pass of each direction is queued item by item; then the same is
captured, once, and later passes launch the graph: what the host does for a pass no longer depends
on its length. Streams and graphs can be switched off one by one, to see what each is worth.

What is captured keeps its addresses, so nothing it uses may be given to others. Tensors and
workspace lie in the arena; should a library allocate within the capture all the same, it is given
memory that the execution keeps (`held_bytes`).

Must not know: what the calls do, how the schedule was found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sparsednn.dense.concurrency.gpu.kernels import CupyKernels
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.tasks import IMAGE, LOSS, TaskGraph
from sparsednn.errors import UsageError

__all__ = ["StreamExecution", "needed_waits"]


@dataclass(frozen=True, slots=True)
class _Item:
    """An item of a pass: its call, its number and lane, and the items that it waits for."""

    call: Callable[[], None]
    index: int
    lane: int
    waits: tuple[int, ...]


class StreamExecution:
    """A schedule, bound to memory and streams.

    Parameters
    ----------
    tasks, schedule, kernels
        What to run, in what order and where, and how.
    streams
        Whether lanes are streams of their own; otherwise one stream does all items in their order.
    graphs
        Whether passes behind the first are launched as a graph.

    Attributes
    ----------
    tensors
        All tensors by name, in the arena, ``(images, channels, height, width)``.
    arena_bytes
        Size of the arena.
    events
        How many events a pass records for other lanes, forward and backward.

    Raises
    ------
    UsageError
        If the schedule is for something else, or an item waits for one behind it.

    Notes
    -----
    As in `cpu.lanes`: the images must be in ``tensors[graph.input]`` before `forward`, the gradient
    of the logits in its tensor before `backward`; IMAGE and LOSS do nothing. What the caller has
    queued on the current stream is waited for.
    """

    def __init__(
        self,
        tasks: TaskGraph,
        schedule: Schedule,
        kernels: CupyKernels,
        *,
        streams: bool = True,
        graphs: bool = True,
    ) -> None:
        _check(tasks, schedule, kernels)
        self.tasks, self.schedule, self.kernels = tasks, schedule, kernels
        self.graphs = graphs
        self._cuda = kernels.xp.cuda
        self.arena_bytes = schedule.arena_bytes
        self._arena = kernels.arena(max(schedule.arena_bytes, 64))
        self.tensors: dict[str, Any] = {}
        for name in tasks.tensors:
            offset = schedule.offsets[tasks.root(name)[0]]
            self.tensors[name] = kernels.view(tasks, name, self._arena, offset)
        self._lanes = [kernels.stream(lane) for lane in range(schedule.lanes if streams else 1)]
        self._programs = {way: self._bind(backward=way) for way in (False, True)}
        self.events = tuple(len(_awaited(self._programs[way])) for way in (False, True))
        self._captured: dict[bool, Any] = {}
        self._passes = {False: 0, True: 0}
        self._held: list[Any] = []
        self._pool = self._cuda.MemoryPool()
        self._ready = self._event()

    @property
    def held_bytes(self) -> int:
        """Bytes that libraries have allocated within captures."""
        return sum(int(memory.mem.size) for memory in self._held)

    def _event(self, *, timing: bool = False) -> Any:
        return self._cuda.Event(disable_timing=not timing)

    def _bind(self, *, backward: bool) -> list[_Item]:
        """The items of one direction."""
        schedule, tasks = self.schedule, self.tasks
        mine = [tasks.tasks[item.task].backward == backward for item in schedule.items]
        program: list[_Item] = []
        for index, item in enumerate(schedule.items):
            task = tasks.tasks[item.task]
            if not mine[index]:
                continue
            size = item.algorithm.workspace if item.workspace >= 0 else 0
            at = max(item.workspace, 0)
            involved = {name: self.tensors[name] for name in (*task.reads, *task.writes)}
            call = self.kernels.bind(
                tasks, task, item.algorithm, item.part, involved, self._arena[at : at + size]
            )
            if task.action in (IMAGE, LOSS):
                call = _nothing
            # What is of the other direction is done before this one begins.
            waits = tuple(each for each in item.waits if mine[each])
            lane = item.lane if len(self._lanes) > 1 else 0
            program.append(_Item(call, index, lane, waits if len(self._lanes) > 1 else ()))
        waits_of = needed_waits([(item.index, item.lane, item.waits) for item in program])
        return [_Item(item.call, item.index, item.lane, waits_of[item.index]) for item in program]

    # -- running ---------------------------------------------------------------------------------

    def forward(self) -> None:
        """Do all that is in front of the loss, and wait for it."""
        self.start(backward=False)
        self.synchronize()

    def backward(self) -> None:
        """Do all that is behind it, and wait for it."""
        self.start(backward=True)
        self.synchronize()

    def start(self, *, backward: bool = False) -> None:
        """Queue one direction behind the current stream's work and the pass before."""
        first = self._lanes[0]
        self._ready.record(self._cuda.get_current_stream())
        first.wait_event(self._ready)
        self._passes[backward] += 1
        if not self.graphs or self._passes[backward] == 1:
            # In the first pass libraries make handles and load kernels, which no capture allows.
            self._queue(self._programs[backward])
            return
        if backward not in self._captured:
            self._captured[backward] = self._capture(self._programs[backward])
        self._captured[backward].launch(first)

    def synchronize(self) -> None:
        """Wait for all that was started: the first lane ends behind the others."""
        self._lanes[0].synchronize()

    def seconds(self, *, backward: bool = False, passes: int = 1) -> float:
        """Return the device's time of a pass, the mean of some that follow each other."""
        start, end = self._event(timing=True), self._event(timing=True)
        start.record(self._lanes[0])
        for _ in range(passes):
            self.start(backward=backward)
        end.record(self._lanes[0])
        end.synchronize()
        return float(self._cuda.get_elapsed_time(start, end)) / 1e3 / passes

    def traced(self, *, backward: bool) -> list[tuple[int, float, float]]:
        """Do one direction item by item, and return when each ran, seconds since the beginning."""
        start, times = self._event(timing=True), []
        start.record(self._lanes[0])

        def begun(item: _Item) -> None:
            times.append((item.index, self._event(timing=True), self._event(timing=True)))
            times[-1][1].record(self._lanes[item.lane])

        self._passes[backward] += 1
        self._queue(
            self._programs[backward],
            begun,
            lambda item: times[-1][2].record(self._lanes[item.lane]),
        )
        self.synchronize()
        since = self._cuda.get_elapsed_time
        found = [
            (index, since(start, one) / 1e3, since(start, other) / 1e3)
            for index, one, other in times
        ]
        return sorted(found, key=lambda row: row[1])

    def _queue(
        self,
        program: list[_Item],
        begun: Callable[[_Item], None] | None = None,
        done: Callable[[_Item], None] | None = None,
    ) -> None:
        """Queue all items: others begin behind the first lane's work, which ends behind theirs."""
        first, *others = self._lanes
        fork = self._event()
        fork.record(first)
        for lane in others:
            lane.wait_event(fork)
        awaited = _awaited(program)
        events: dict[int, Any] = {}
        for item in program:
            lane = self._lanes[item.lane]
            for each in item.waits:
                lane.wait_event(events[each])
            with lane:
                if begun is not None:
                    begun(item)
                item.call()
                if done is not None:
                    done(item)
            if item.index in awaited:
                events[item.index] = self._event()
                events[item.index].record(lane)
        for lane in others:
            join = self._event()
            join.record(lane)
            first.wait_event(join)

    def _capture(self, program: list[_Item]) -> Any:
        first = self._lanes[0]
        with self._allocator():
            first.begin_capture()
            try:
                self._queue(program)
            except BaseException:
                with suppress(Exception):  # what went wrong first is what matters
                    first.end_capture()
                raise
            return first.end_capture()

    @contextmanager
    def _allocator(self) -> Iterator[None]:
        """Let what is allocated meanwhile belong to nobody else."""

        def allocate(size: int) -> Any:
            memory = self._pool.malloc(size)
            self._held.append(memory)
            return memory

        with self._cuda.using_allocator(allocate):
            yield

    def close(self) -> None:
        """Wait, and let graphs and memory go; a second time does nothing."""
        self.synchronize()
        self._captured.clear()
        self._programs = {False: [], True: []}
        self._held.clear()
        self.tensors.clear()
        self._arena = None


def needed_waits(
    program: list[tuple[int, int, tuple[int, ...]]],
) -> dict[int, tuple[int, ...]]:
    """Return the waits of each item that do not follow from its lane's order and other waits.

    Parameters
    ----------
    program
        Number, lane and waits of each item, in an order in which all waits go backwards.

    Notes
    -----
    Each item has a clock: of every lane, how many of its items are known to be done before (Lamport
    1978, Mattern 1989).

    >>> needed_waits([(0, 0, ()), (1, 0, ()), (2, 1, (0, 1)), (3, 1, (0,))])
    {0: (), 1: (), 2: (1,), 3: ()}
    """
    clocks: dict[int, dict[int, int]] = {}
    place: dict[int, tuple[int, int]] = {}
    last: dict[int, int] = {}
    length: dict[int, int] = {}
    found: dict[int, tuple[int, ...]] = {}
    for index, lane, waits in program:
        clock = dict(clocks[last[lane]]) if lane in last else {}
        needed = []
        for each in sorted(waits, reverse=True):
            other, position = place[each]
            if clock.get(other, 0) < position:
                needed.append(each)
                for known, count in clocks[each].items():
                    clock[known] = max(clock.get(known, 0), count)
        length[lane] = length.get(lane, 0) + 1
        clock[lane] = length[lane]
        place[index], clocks[index], last[lane] = (lane, length[lane]), clock, index
        found[index] = tuple(sorted(needed))
    return found


def _awaited(program: list[_Item]) -> set[int]:
    return {each for item in program for each in item.waits}


def _check(tasks: TaskGraph, schedule: Schedule, kernels: CupyKernels) -> None:
    """Refuse a schedule of something else, and waits that the host could not queue."""
    for what, planned, found in (
        ("lanes", schedule.lanes, kernels.lanes),
        ("device", schedule.device, kernels.device),
        ("network", schedule.network, tasks.graph.identity),
        ("images", schedule.images, tasks.images),
        ("training", schedule.training, tasks.training),
        ("itemsize", schedule.itemsize, tasks.itemsize),
    ):
        if planned != found:
            raise UsageError(f"the plan is for {what} {planned}, here it is {found}")
    for index, item in enumerate(schedule.items):
        late = [each for each in item.waits if not 0 <= each < index]
        if late:
            raise UsageError(
                f"the plan's item {index} ({item.task}) waits for item {late[0]}, which is not in "
                "front of it"
            )


def _nothing() -> None:
    return
