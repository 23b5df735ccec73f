"""`check_schedule`: whether a schedule does all tasks, in an order and in memory that are safe.

It looks at the result alone: lanes, waits, offsets. It must not know: how a schedule was made,
predicted times beyond their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from sparsednn.amounts import bytes_text
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.order import Order
from sparsednn.dense.concurrency.scheduling.problem import (
    ALIGNMENT,
    users_of_roots,
)
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import InputError

__all__ = ["check_schedule"]


def check_schedule(tasks: TaskGraph, schedule: Schedule, limit: int | None = None) -> None:
    """Make sure that a schedule can be run, whatever time its tasks take in the end.

    Each part of each task is there once and on a lane that there is; waits point to other lanes and
    forwards, so nothing hangs; all that a task needs has ended before it starts; nothing in the
    arena is overwritten while somebody needs it, the output included; workspaces stay below
    `limit`.

    Raises
    ------
    InputError
        If it is not so, or it is a schedule for something else.
    """
    _check_purpose(tasks, schedule)
    _check_items(tasks, schedule)
    order = Order([item.lane for item in schedule.items], [item.waits for item in schedule.items])
    items: dict[str, list[int]] = {name: [] for name in tasks.tasks}
    for number, item in enumerate(schedule.items):
        items[item.task].append(number)
    for first, later in tasks.waits.edges:
        for one in items[first]:
            for other in items[later]:
                if not order.is_before(one, other):
                    raise _error(schedule, f"task {later} does not wait for {first}")
    _check_memory(tasks, schedule, order, items)
    used = _check_workspaces(schedule)
    if limit is not None and max(used, schedule.workspace_bytes) > limit:
        raise _error(
            schedule,
            f"it takes {bytes_text(max(used, schedule.workspace_bytes), up=True)} of workspace, "
            f"more than {bytes_text(limit, up=True)}",
        )


def _error(schedule: Schedule, what: str) -> InputError:
    return InputError(f"schedule '{schedule.name}': {what}")


def _check_purpose(tasks: TaskGraph, schedule: Schedule) -> None:
    wanted = {
        "network": tasks.graph.identity,
        "images": tasks.images,
        "training": tasks.training,
        "itemsize": tasks.itemsize,
    }
    for name, value in wanted.items():
        if getattr(schedule, name) != value:
            raise _error(
                schedule, f"its {name} is {getattr(schedule, name)!s:.12}, not {value!s:.12}"
            )


def _check_items(tasks: TaskGraph, schedule: Schedule) -> None:
    parts: dict[str, set[int]] = {name: set() for name in tasks.tasks}
    algorithms: dict[str, Algorithm] = {}
    before = 0.0
    for number, item in enumerate(schedule.items):
        if item.task not in parts:
            raise _error(schedule, f"there is no task {item.task}")
        what = f"part {item.part} of task {item.task}"
        if algorithms.setdefault(item.task, item.algorithm) != item.algorithm:
            raise _error(schedule, f"parts of task {item.task} have several algorithms")
        if not 0 <= item.part < item.algorithm.parts or item.part in parts[item.task]:
            raise _error(schedule, f"{what}, of {item.algorithm.parts}, is too much")
        parts[item.task].add(item.part)
        if not 0 <= item.lane < schedule.lanes:
            raise _error(schedule, f"{what} is on lane {item.lane} of {schedule.lanes}")
        if not before <= item.start <= item.end < inf:
            raise _error(schedule, f"{what} starts or ends too early")
        before = item.start
        for other in item.waits:
            if not 0 <= other < number or schedule.items[other].lane == item.lane:
                raise _error(schedule, f"{what} waits for item {other}, not one of another lane")
    for name, found in parts.items():
        if not found or len(found) != algorithms[name].parts:
            raise _error(schedule, f"task {name} is not there, or not all of it")


def _check_memory(
    tasks: TaskGraph, schedule: Schedule, order: Order, items: dict[str, list[int]]
) -> None:
    """Check that what shares memory is used one after the other."""
    users = users_of_roots(tasks)
    if set(schedule.offsets) != set(users):
        odd = sorted(set(schedule.offsets) ^ set(users))[0]
        raise _error(schedule, f"tensor {odd} should have a place if it has memory of its own")
    # What it is, its bytes in the arena, and its users as bits; who asked for the pass is the last.
    blocks = []
    for root, names in users.items():
        mask = sum(1 << item for name in names for item in items[name])
        if not tasks.training and root == tasks.root(tasks.output)[0]:
            mask |= 1 << len(order)
        offset = schedule.offsets[root]
        blocks.append((offset, offset + tasks.tensors[root].bytes, mask, f"tensor {root}"))
    for number, item in enumerate(schedule.items):
        size = item.algorithm.workspace
        if (size > 0) != (item.workspace >= 0):
            raise _error(schedule, f"task {item.task} wants a workspace of {size} bytes")
        if size:
            what = f"workspace of {item.task}"
            blocks.append((item.workspace, item.workspace + size, 1 << number, what))
    for offset, end, _, what in blocks:
        if offset % ALIGNMENT or not 0 <= offset <= end <= schedule.arena_bytes:
            raise _error(
                schedule,
                f"{what} is at bytes {offset} to {end} of an arena of {schedule.arena_bytes}: it "
                f"must be inside, and begin at a multiple of {ALIGNMENT}",
            )
    blocks.sort()
    for number, (_, end, mask, what) in enumerate(blocks):
        for start, _, other, beside in blocks[number + 1 :]:
            if start >= end:
                break
            if not _one_after_the_other(mask, other, order):
                raise _error(schedule, f"{what} and {beside} share memory, at one time")


def _one_after_the_other(first: int, second: int, order: Order) -> bool:
    for one, other in ((first, second), (second, first)):
        if all(one & ~order.before[item] == 0 for item in _bits(other)):
            return True
    return False


def _bits(mask: int) -> Iterator[int]:
    while mask:
        lowest = mask & -mask
        yield lowest.bit_length() - 1
        mask ^= lowest


def _check_workspaces(schedule: Schedule) -> int:
    """Return how many bytes all workspaces lie in: what shares none of them fits in there."""
    found = [item for item in schedule.items if item.workspace >= 0]
    if not found:
        return 0
    first = min(item.workspace for item in found)
    used = max(item.workspace + item.algorithm.workspace for item in found) - first
    if used > schedule.workspace_bytes:
        raise _error(
            schedule,
            f"workspaces lie in {used} bytes, it should be {schedule.workspace_bytes} at most",
        )
    return used
