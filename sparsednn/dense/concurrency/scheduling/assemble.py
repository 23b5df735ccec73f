"""From lanes with their queues to a `Schedule`: memory, the waits that make it safe, final times.

Must not know: how queues were found, how a schedule is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.concurrency.schedule import Placed, Schedule
from sparsednn.dense.concurrency.scheduling.arena import Block, place
from sparsednn.dense.concurrency.scheduling.order import Order
from sparsednn.dense.concurrency.scheduling.problem import (
    Problem,
    Slot,
    aligned,
    users_of_roots,
)
from sparsednn.dense.concurrency.scheduling.simulate import Run, work_off

__all__ = ["assemble"]

_Waits = dict[Slot, set[Slot]]


class _Ordered(NamedTuple):
    """A simulated pass and what is certain in it; `slots` are its items in order."""

    run: Run
    slots: list[Slot]
    order: Order


def assemble(
    problem: Problem,
    chosen: NDArray[np.int64],
    queues: Sequence[Sequence[Slot]],
    name: str,
    waits: Mapping[Slot, Iterable[Slot]] | None = None,
) -> Schedule:
    """Make the schedule of given choices and queues.

    Parameters
    ----------
    chosen
        ``(tasks,)``.
    queues
        Slots of each lane, in order.
    name
        What to call it.
    waits
        What slots shall await beyond dependencies and memory.
    """
    more: _Waits = {slot: set(others) for slot, others in (waits or {}).items()}
    found = _ordered(problem, work_off(problem, chosen, queues, more), more)
    workspaces, workspace_bytes = _place_workspaces(problem, found)
    more = _waits_of(found)
    found = _ordered(problem, work_off(problem, chosen, queues, more, limited=False), more)
    offsets, tensor_bytes = _place_tensors(problem, found)
    more = _waits_of(found)
    found = _ordered(problem, work_off(problem, chosen, queues, more, limited=False), more)
    region = aligned(tensor_bytes)
    run, slots, order = found
    items = []
    for item, slot in enumerate(slots):
        task = int(problem.arrays.task_of[slot])
        place_of = workspaces.get(slot, -1)
        items.append(
            Placed(
                task=problem.names[task],
                part=slot - int(problem.arrays.slot_of[task]),
                algorithm=problem.choices[chosen[task]].algorithm,
                lane=int(run.lane[slot]),
                start=float(run.start[slot]),
                end=float(run.end[slot]),
                workspace=place_of if place_of < 0 else region + place_of,
                waits=order.waits(item),
            )
        )
    tasks = problem.tasks
    return Schedule(
        items=tuple(items),
        lanes=problem.profile.lanes,
        offsets=offsets,
        arena_bytes=region + aligned(workspace_bytes),
        workspace_bytes=workspace_bytes,
        device=problem.profile.device,
        network=tasks.graph.identity,
        images=tasks.images,
        training=tasks.training,
        itemsize=tasks.itemsize,
        name=name,
    )


def _ordered(problem: Problem, run: Run, more: _Waits) -> _Ordered:
    """Number the items of a pass by their start."""
    assert run.seconds < np.inf
    arrays, slots = problem.arrays, run.slots()
    number = {slot: item for item, slot in enumerate(slots)}
    waits = []
    for slot in slots:
        task = int(arrays.task_of[slot])
        needed = {number[other] for other in more.get(slot, ())}
        for before in arrays.before[arrays.before_ptr[task] : arrays.before_ptr[task + 1]]:
            needed |= {number[other] for other in problem.slots(int(before), run.chosen[before])}
        waits.append(needed)
    return _Ordered(run, slots, Order([int(run.lane[slot]) for slot in slots], waits))


def _waits_of(found: _Ordered) -> _Waits:
    """All waits that are in an order, between slots."""
    slots = found.slots
    return {
        slot: {slots[other] for other in found.order.waits(item)} for item, slot in enumerate(slots)
    }


def _place_workspaces(problem: Problem, found: _Ordered) -> tuple[dict[Slot, int], int]:
    """Offsets in a region of their own, and its size."""
    run, blocks = found.run, {}
    for item, slot in enumerate(found.slots):
        choice = problem.choices[run.chosen[problem.arrays.task_of[slot]]]
        if choice.algorithm.workspace:
            blocks[slot] = Block(
                choice.algorithm.workspace, (item,), float(run.start[slot]), float(run.end[slot])
            )
    size = place(
        list(blocks.values()),
        found.order,
        seconds=run.seconds,
        wait=problem.profile.wait_seconds,
        limit=problem.limit,
    )
    return {slot: block.offset for slot, block in blocks.items()}, size


def _place_tensors(problem: Problem, found: _Ordered) -> tuple[dict[str, int], int]:
    """Offsets of all tensors with memory of their own, and the bytes that they need."""
    tasks, run = problem.tasks, found.run
    items: dict[str, list[int]] = {task: [] for task in tasks.tasks}
    for item, slot in enumerate(found.slots):
        items[problem.names[problem.arrays.task_of[slot]]].append(item)
    # Who wanted the pass reads its output afterwards; in training, the loss has done so.
    output = None if tasks.training else tasks.root(tasks.output)[0]
    blocks, idle = {}, 0
    for root, names in users_of_roots(tasks).items():
        users = sorted(item for name in names for item in items[name])
        size = tasks.tensors[root].bytes
        if not users:  # nobody looks at it, but a view of it must be possible
            idle = max(idle, size)
            continue
        times = [found.slots[item] for item in users]
        end = max(float(run.end[slot]) for slot in times)
        if root == output:
            users.append(len(found.order))
            end = np.inf
        start = min(float(run.start[slot]) for slot in times)
        blocks[root] = Block(size, tuple(users), start, end)
    size = place(
        list(blocks.values()),
        found.order,
        seconds=run.seconds,
        wait=problem.profile.wait_seconds,
    )
    offsets = {root: blocks[root].offset if root in blocks else 0 for root in users_of_roots(tasks)}
    return offsets, max(size, idle)
