"""Memory of schedules: nothing is overwritten while somebody needs it, whatever runs how fast."""

from __future__ import annotations

import random
from dataclasses import replace

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branching import random_network, random_profile, random_profiles, random_tasks
from sparsednn.dense.concurrency.checking import check_schedule
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.arena import Block, place
from sparsednn.dense.concurrency.scheduling.order import Order
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.scheduling.serial import serial_schedule
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.networks import make_network
from sparsednn.errors import InputError

LINE = 64


class OverwrittenError(Exception):
    """What a pass found in its memory is not what it had put there."""


def act_out(tasks: TaskGraph, schedule: Schedule, dice: random.Random) -> None:
    """Go through a pass with parts that take any time, and see whose each line of memory is.

    It knows lanes and waits alone, nothing of what is certain to be before what.
    """
    owner = np.full(-(-schedule.arena_bytes // LINE), -1)
    roots = list(schedule.offsets)
    written: set[str] = set()
    left = dict.fromkeys(tasks.tasks, -1) | {
        item.task: item.algorithm.parts for item in schedule.items
    }
    queues = [
        [number for number, item in enumerate(schedule.items) if item.lane == lane]
        for lane in range(schedule.lanes)
    ]
    running: dict[int, int] = {}
    done: set[int] = set()

    def lines(root: str) -> slice:
        begin = schedule.offsets[root]
        return slice(begin // LINE, -(-(begin + tasks.tensors[root].bytes) // LINE))

    def see(root: str) -> None:
        if root not in written or (owner[lines(root)] != roots.index(root)).any():
            raise OverwrittenError(root)

    def workspace(number: int) -> slice:
        item = schedule.items[number]
        if item.workspace < 0:
            return slice(0, 0)
        end = item.workspace + item.algorithm.workspace
        return slice(item.workspace // LINE, -(-end // LINE))

    while any(queues) or running:
        able = [
            lane for lane, queue in enumerate(queues)
            if lane in running or (queue and done.issuperset(schedule.items[queue[0]].waits))
        ]  # fmt: skip
        assert able, "lanes wait for each other"
        lane = dice.choice(able)
        if lane in running:
            number = running.pop(lane)
            task = tasks.tasks[schedule.items[number].task]
            for tensor in (*task.reads, *task.writes):
                see(tasks.root(tensor)[0])
            if (owner[workspace(number)] != len(roots) + number).any():
                raise OverwrittenError(f"workspace of {task.name}")
            left[task.name] -= 1
            done.add(number)
            continue
        number = running[lane] = queues[lane].pop(0)
        task = tasks.tasks[schedule.items[number].task]
        for before in tasks.waits.predecessors(task.name):
            if left[before] != 0:
                raise OverwrittenError(f"{task.name} before {before}")
        for tensor in task.reads:
            see(tasks.root(tensor)[0])
        for tensor in task.writes:
            root = tasks.root(tensor)[0]
            if root not in written:
                written.add(root)
                owner[lines(root)] = roots.index(root)
            see(root)
        owner[workspace(number)] = len(roots) + number
        used = sum(schedule.items[each].algorithm.workspace for each in running.values())
        assert used <= schedule.workspace_bytes
    if not tasks.training:
        see(tasks.root(tasks.output)[0])


@settings(max_examples=50, deadline=None)
@given(random_tasks(), st.data(), st.integers(0, 2**32 - 1))
def test_nothing_is_overwritten_whatever_takes_how_long(
    tasks: TaskGraph, data: st.DataObject, seed: int
):
    profile, dice = data.draw(random_profiles(tasks)), random.Random(seed)
    least = max(min(each.algorithm.workspace for each in rows) for rows in profile.choices.values())
    limit = dice.choice((None, least, least + dice.randint(0, 3000)))
    for schedule in plan(tasks, profile, workspace_limit=limit, effort="quick"):
        assert limit is None or schedule.workspace_bytes <= limit
        for _ in range(3):
            act_out(tasks, schedule, dice)


def mutated(tasks: TaskGraph, schedule: Schedule, dice: random.Random) -> Schedule:
    """One thing in a schedule changed."""
    items, offsets = list(schedule.items), dict(schedule.offsets)
    at = dice.randrange(len(items))
    item = items[at]
    kind = dice.choice(("wait", "waits", "lane", "swap", "offset", "offsets", "workspace", "part"))
    if kind == "wait":
        waiting = [number for number, each in enumerate(items) if each.waits] or [at]
        at = dice.choice(waiting)
        items[at] = replace(items[at], waits=items[at].waits[1:])
    elif kind == "waits":
        items[at] = replace(item, waits=())
    elif kind == "lane":
        items[at] = replace(item, lane=dice.randint(-1, schedule.lanes))
    elif kind == "swap" and at + 1 < len(items):
        items[at : at + 2] = items[at + 1], item
    elif kind == "offset":
        name = dice.choice(list(offsets))
        offsets[name] += dice.choice((-LINE, LINE, 1))
    elif kind == "offsets":
        one, other = dice.choice(list(offsets)), dice.choice(list(offsets))
        offsets[one], offsets[other] = offsets[other], offsets[one]
    elif kind == "workspace":
        items[at] = replace(item, workspace=item.workspace + dice.choice((-LINE, LINE)))
    elif kind == "part":
        items[at] = replace(item, part=item.part + dice.choice((-1, 1)))
    return replace(schedule, items=tuple(items), offsets=offsets)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_passes_the_check_is_safe(seed: int):
    dice = random.Random(seed)
    graph = random_network(dice, most=8)
    tasks = TaskGraph(graph, 1, training=dice.random() < 0.5)
    profile = random_profile(dice, tasks, dice.randint(1, 3))
    schedule = serial_schedule(tasks, profile, dice.choice(("one", "best")))
    if dice.random() < 0.7:
        schedule = plan(tasks, profile, effort="quick")[0]
    for _ in range(6):
        changed = mutated(tasks, schedule, dice)
        try:
            check_schedule(tasks, changed)
        except InputError:
            continue
        for _ in range(4):
            act_out(tasks, changed, dice)


def test_the_check_finds_what_is_wrong():
    dice = random.Random(0)
    tasks = TaskGraph(random_network(dice, most=12), 2)
    profile = random_profile(dice, tasks, 2)
    schedule = serial_schedule(tasks, profile)
    items = list(schedule.items)

    def refused(match: str, **changes: object) -> None:
        changes = {key: tuple(v) if key == "items" else v for key, v in changes.items()}
        with pytest.raises(InputError, match=match):
            check_schedule(tasks, replace(schedule, **changes))

    refused("is not there, or not all", items=items[:-1])
    refused("is too much", items=[*items, items[-1]])
    refused("starts or ends too early", items=items[::-1])
    refused("its images is 3, not 2", images=3)
    refused("its training is True, not False", training=True)
    refused("its network is", network="0" * 64)
    refused("its itemsize is 8, not 4", itemsize=8)
    refused("there is no task what", items=[replace(items[0], task="what"), *items[1:]])
    refused("lane 2 of 2", items=[replace(items[0], lane=2), *items[1:]])
    refused("waits for item 5", items=[replace(items[0], waits=(5,)), *items[1:]])
    refused("must be inside", arena_bytes=schedule.arena_bytes // 2)
    refused("should have a place", offsets={})
    refused("at one time", offsets=dict.fromkeys(schedule.offsets, 0))
    with pytest.raises(InputError, match="of workspace, more than 10 B"):
        check_schedule(tasks, schedule, limit=10)


# -- order and places ----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_order_is_reachability(seed: int):
    dice = random.Random(seed)
    count, lanes = dice.randint(1, 12), dice.randint(1, 3)
    lane = [dice.randrange(lanes) for _ in range(count)]
    waits = [dice.sample(range(item), min(item, dice.randint(0, 2))) for item in range(count)]
    more = [sorted(dice.sample(range(count), 2)) for _ in range(dice.randint(0, 5) * (count > 1))]
    order = Order(lane, waits)
    edges = [(other, item) for item, others in enumerate(waits) for other in others]
    for first, later in more:
        order.add(first, later)
        edges.append((first, later))
    on_lanes = [
        (first, later)
        for later in range(count)
        for first in range(later)
        if lane[first] == lane[later]
    ]

    def closure(edges: list[tuple[int, int]]) -> set[tuple[int, int]]:
        graph = networkx.DiGraph(edges)
        graph.add_nodes_from(range(count))
        return set(networkx.transitive_closure_dag(graph).edges)

    wanted = closure(edges + on_lanes)
    found = {(a, b) for a in range(count) for b in range(count) if order.is_before(a, b)}
    assert found == wanted
    reduced = [(other, item) for item in range(count) for other in order.waits(item)]
    assert all(lane[first] != lane[later] for first, later in reduced)
    assert closure(reduced + on_lanes) == wanted
    for edge in reduced:  # none of them for nothing
        assert closure([each for each in reduced if each != edge] + on_lanes) != wanted


def test_gaps_are_filled_before_memory_grows():
    order = Order([0] * 6, [()] * 6)
    sizes = {
        "a": (1000, 0, 1),
        "b": (500, 0, 3),
        "c": (600, 2, 3),
        "d": (300, 2, 3),
        "e": (900, 4, 5),
    }
    blocks = {
        name: Block(size, (first, last), first, last + 1)
        for name, (size, first, last) in sizes.items()
    }
    size = place(list(blocks.values()), order, seconds=6, wait=0)
    assert {name: block.offset for name, block in blocks.items()} == {
        "a": 0, "e": 0, "c": 0, "d": 640, "b": 1024,
    }  # fmt: skip
    assert size == 1524


def test_waits_are_added_only_for_memory_that_would_grow():
    def placed(size: int, gap: float, limit: int | None = None) -> tuple[int, int, Order]:
        order = Order([0, 1, 1], [(), (), ()])
        first, second = Block(100, (0,), 0.0, 1.0), Block(size, (2,), 1.0 + gap, 3.0)
        return (
            place([first, second], order, seconds=3.0, wait=0.1, limit=limit),
            second.offset,
            order,
        )

    # Long after the first: share memory, and wait.
    size, offset, order = placed(50, 1.0)
    assert (size, offset, order.waits(2)) == (100, 0, (0,))
    # The wait might be felt: take more memory.
    size, offset, order = placed(50, 0.1)
    assert (size, offset, order.waits(2)) == (178, 128, ())
    # Unless there is a limit.
    size, offset, order = placed(50, 0.1, limit=177)
    assert (size, offset, order.waits(2)) == (100, 0, (0,))
    size, offset, order = placed(50, 0.1, limit=178)
    assert (size, offset, order.waits(2)) == (178, 128, ())


@pytest.mark.parametrize("name", ["googlenet", "resnet18"])
@pytest.mark.parametrize("training", [False, True])
def test_memory_of_serial_schedules_is_near_what_lives_at_one_time(name: str, training: bool):
    tasks = TaskGraph(make_network(name), 1, training=training)
    none = {task.name: [Choice(Algorithm("a"), 1.0)] for task in tasks}
    schedule = serial_schedule(tasks, Profile("test", 1, none))
    check_schedule(tasks, schedule)
    place_of = {task: number for number, task in enumerate(tasks.tasks)}
    live = np.zeros(len(tasks) + 1)
    for root in tasks.roots:
        users = [
            place_of[task.name]
            for task in tasks
            if root.name in {tasks.root(each)[0] for each in (*task.reads, *task.writes)}
        ]
        wanted = not training and root.name == tasks.root(tasks.output)[0]
        last = len(tasks) if wanted else max(users)
        live[min(users) : last + 1] += root.bytes
    assert live.max() <= schedule.arena_bytes <= 1.05 * live.max()
