"""Schedules: what is predicted, that they are safe, and that none is worse than simpler ones."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branching import random_networks, random_profile, random_profiles, random_tasks
from sparsednn.dense.concurrency.checking import check_schedule
from sparsednn.dense.concurrency.kernels import Algorithm
from sparsednn.dense.concurrency.profile import Choice, Profile
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.engine import slowdown
from sparsednn.dense.concurrency.scheduling.listing import list_schedule, ranks
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.scheduling.problem import Problem
from sparsednn.dense.concurrency.scheduling.search import Budget, search
from sparsednn.dense.concurrency.scheduling.serial import serial_schedule
from sparsednn.dense.concurrency.scheduling.simulate import simulate
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.operations import Add, Convolution, FullyConnected, Input, Relu
from sparsednn.dense.runs.source import network_for
from sparsednn.errors import InputError, ShapeError, UsageError

QUICK = Budget(120, 5.0)


def wide(branches: int) -> TaskGraph:
    """Branches of one convolution each between the images and a sum: no fusing, no way back."""
    graph = OperationGraph("wide")
    graph.add(Input("image", (2, 4, 4)))
    for branch in range(branches):
        graph.add(Convolution(f"branch{branch}", 2, (1, 1)), "image")
    graph.add(Add("sum"), *(f"branch{branch}" for branch in range(branches)))
    graph.add(FullyConnected("fc", 2), "sum")
    return TaskGraph(graph.finish(), 1)


def profile_of(tasks: TaskGraph, lanes: int, **given_choices: Sequence[Choice]) -> Profile:
    """Tasks without choices take no time."""
    nothing = [Choice(Algorithm("none"), 0.0)]
    choices = {task.name: list(given_choices.get(task.name, nothing)) for task in tasks}
    return Profile("test", lanes, choices)


def choices_of(profile: Profile, schedule: Schedule) -> dict[str, Choice]:
    return {
        item.task: next(
            each for each in profile.choices[item.task] if each.algorithm == item.algorithm
        )
        for item in schedule.items
    }


def resimulated(tasks: TaskGraph, profile: Profile, schedule: Schedule) -> float:
    """The seconds of a schedule, from its lanes and waits alone."""
    part = [(item.task, item.part) for item in schedule.items]
    sequences = [
        [part[number] for number, item in enumerate(schedule.items) if item.lane == lane]
        for lane in range(schedule.lanes)
    ]
    waits = {
        part[number]: [part[other] for other in item.waits]
        for number, item in enumerate(schedule.items)
    }
    times = simulate(tasks, profile, choices_of(profile, schedule), sequences, waits)
    for item in schedule.items:
        assert times.start[item.task, item.part] == item.start
        assert times.end[item.task, item.part] == item.end
    return times.seconds


# -- what is predicted -------------------------------------------------------------------------


def test_slow_downs_last_while_others_run():
    # b is bound by memory throughout, a to one half: together a takes 1.5 times, b 1.5 times.
    tasks = wide(2)
    profile = profile_of(
        tasks, 2,
        branch0=[Choice(Algorithm("a"), 2.0, 0.5)], branch1=[Choice(Algorithm("b"), 4.0, 1.0)],
    )  # fmt: skip
    lanes = [[("image", 0), ("branch0", 0), ("sum", 0), ("fc", 0)], [("branch1", 0)]]
    choices = {name: rows[0] for name, rows in profile.choices.items()}
    times = simulate(tasks, profile, choices, lanes)
    assert times.end["branch0", 0] == 3.0
    assert times.end["branch1", 0] == 5.0  # 2 of its 4 seconds are done after 3, then 2 more
    profile.pairs = {("branch0|a|1", "branch1|b|1"): 2.0, ("branch1|b|1", "branch0|a|1"): 1.0}
    times = simulate(tasks, profile, choices, lanes)
    assert (times.end["branch0", 0], times.end["branch1", 0], times.seconds) == (4.0, 4.0, 4.0)


def test_three_that_are_bound_by_memory_share_it():
    tasks = wide(3)
    bound = [Choice(Algorithm("a"), 1.0, 1.0)]
    profile = profile_of(tasks, 3, branch0=bound, branch1=bound, branch2=bound)
    lanes = [
        [("image", 0), ("branch0", 0)],
        [("branch1", 0)],
        [("branch2", 0), ("sum", 0), ("fc", 0)],
    ]
    times = simulate(tasks, profile, {k: v[0] for k, v in profile.choices.items()}, lanes)
    assert times.seconds == 3.0


def test_launches_and_waits_take_time():
    tasks = wide(2)
    one = [Choice(Algorithm("a"), 1.0)]
    profile = profile_of(tasks, 2, image=one, branch0=one, branch1=one)
    profile.launch_seconds, profile.wait_seconds = 0.25, 0.5
    choices = {name: rows[0] for name, rows in profile.choices.items()}
    lanes = [[("image", 0), ("branch0", 0), ("sum", 0), ("fc", 0)], [("branch1", 0)]]
    times = simulate(tasks, profile, choices, lanes)
    assert times.start["branch0", 0] == 1.25
    assert times.start["branch1", 0] == 1.5
    assert times.start["sum", 0] == 3.0
    late = {("branch1", 0): [("branch0", 0)]}
    assert simulate(tasks, profile, choices, lanes, late).start["branch1", 0] == 2.75


def test_what_cannot_run_is_refused():
    tasks = wide(2)
    profile = profile_of(tasks, 2)
    choices = {name: rows[0] for name, rows in profile.choices.items()}
    everything = [(name, 0) for name in tasks.tasks]
    with pytest.raises(UsageError, match="wait for each other"):
        simulate(tasks, profile, choices, [everything[::-1]])
    with pytest.raises(UsageError, match="each part once: see part 0 of task fc"):
        simulate(tasks, profile, choices, [everything[:-1]])
    with pytest.raises(UsageError, match="each part once: see part 0 of task fc"):
        simulate(tasks, profile, choices, [everything, everything[-1:]])
    with pytest.raises(UsageError, match="3 lanes: there are 2"):
        simulate(tasks, profile, choices, [everything, [], []])
    del choices["fc"]
    with pytest.raises(UsageError, match="without a choice for task fc"):
        simulate(tasks, profile, choices, [everything])


@settings(max_examples=20, deadline=None)
@given(random_tasks(most=5), st.data())
def test_slow_downs_are_those_of_the_profile(tasks: TaskGraph, data: st.DataObject):
    profile = data.draw(random_profiles(tasks))
    problem = Problem(tasks, profile)
    names = [name for name, rows in profile.choices.items() for _ in rows]
    for first, choice in enumerate(problem.choices):
        for second, other in enumerate(problem.choices):
            wanted = profile.slowdown(names[first], choice, names[second], other)
            assert slowdown(problem.arrays, first, second) == max(wanted, 1.0)


# -- schedules -----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(random_tasks(), st.data())
def test_every_schedule_is_safe_and_as_long_as_predicted(tasks: TaskGraph, data: st.DataObject):
    profile = data.draw(random_profiles(tasks))
    least = max(min(each.algorithm.workspace for each in rows) for rows in profile.choices.values())
    limit = data.draw(st.none() | st.integers(least, least + 3000))
    found = plan(tasks, profile, workspace_limit=limit, effort="quick")
    assert {schedule.name for schedule in found} == {
        "serial", "serial-one", "serial-all", "list", "search",
    }  # fmt: skip
    for schedule in found:
        check_schedule(tasks, schedule, limit)
        assert resimulated(tasks, profile, schedule) == schedule.seconds
        # No shorter than the longest way, nor than the work divided among the lanes.
        chosen = choices_of(profile, schedule)
        ways = networkx.DiGraph(tasks.waits)
        for first, later in ways.edges:
            ways.edges[first, later]["weight"] = chosen[first].seconds
        longest = networkx.dag_longest_path_length(ways)
        work = sum(each.seconds * each.algorithm.parts for each in chosen.values())
        assert schedule.seconds >= max(longest, work / profile.lanes) * (1 - 1e-12)
    seconds = [schedule.seconds for schedule in found]
    assert seconds == sorted(seconds)
    assert next(each for each in found if each.name == "search").seconds == seconds[0]


def optimum(tasks: TaskGraph, profile: Profile) -> float:
    """The shortest pass of tasks with one choice of one part each, by looking at all."""
    seconds = {name: rows[0].seconds for name, rows in profile.choices.items()}
    best = sum(seconds.values())

    def extend(ends: dict[str, float], lanes: tuple[float, ...]) -> None:
        nonlocal best
        if max(lanes) >= best:
            return
        if len(ends) == len(seconds):
            best = max(lanes)
            return
        for name in seconds:
            before = list(tasks.waits.predecessors(name))
            if name in ends or not all(each in ends for each in before):
                continue
            ready = max((ends[each] for each in before), default=0.0)
            for lane in range(len(lanes)):
                if lanes[lane] in lanes[:lane]:
                    continue
                end = max(ready, lanes[lane]) + seconds[name]
                extend(ends | {name: end}, (*lanes[:lane], end, *lanes[lane + 1 :]))

    extend({}, (0.0,) * profile.lanes)
    return best


@settings(max_examples=40, deadline=None)
@given(random_networks(most=5), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_list_schedules_keep_grahams_bound(graph: OperationGraph, lanes: int, seed: int):
    tasks = TaskGraph(graph, 1)
    profile = random_profile(random.Random(seed), tasks, lanes, plain=True)
    found = list_schedule(tasks, profile).seconds
    best = optimum(tasks, profile) if len(tasks) < 8 else None
    if best is not None:
        assert best * (1 - 1e-12) <= found <= (2 - 1 / lanes) * best * (1 + 1e-12)
        assert search(tasks, profile, budget=QUICK).seconds >= best * (1 - 1e-12)
    # Never a lane idle while there is something to do: no longer than one after the other.
    assert found <= serial_schedule(tasks, profile, "one").seconds * (1 + 1e-12)


def test_the_search_pairs_what_suits_each_other():
    # Two bound by memory and two by arithmetic: beside their like they take twice as long.
    tasks = wide(4)
    kinds = {
        f"branch{branch}": [
            Choice(Algorithm("cut", 2), 0.7, float(branch < 2)),
            Choice(Algorithm("whole"), 1.0, float(branch < 2)),
        ]
        for branch in range(4)
    }
    found = search(tasks, profile_of(tasks, 2, **kinds), budget=Budget(600, 20.0))
    assert found.seconds == pytest.approx(2.0)
    assert {item.algorithm.name for item in found.items} == {"none", "whole"}


def test_serial_schedules_cut_as_asked():
    tasks = wide(2)
    cut = [
        Choice(Algorithm("whole"), 1.0),
        Choice(Algorithm("half", 2), 0.6),
        Choice(Algorithm("third", 3), 0.2),
    ]
    profile = profile_of(tasks, 2, branch0=cut, branch1=cut[:1])
    for parts, seconds, name in (
        ("one", 2.0, "whole"),
        ("all", 1.6, "half"),
        ("best", 1.4, "third"),
    ):
        found = serial_schedule(tasks, profile, parts)
        assert found.seconds == pytest.approx(seconds)
        assert {item.algorithm.name for item in found.items if item.task == "branch0"} == {name}
    # Waits for all lanes, which cost more than cutting gains.
    profile.wait_seconds = 0.5
    assert serial_schedule(tasks, profile).seconds == pytest.approx(2.0)
    assert serial_schedule(tasks, profile, "all").seconds == pytest.approx(1.6 + 2 * 0.5)
    with pytest.raises(UsageError, match="parts are one of best, one, all, found 'two'"):
        serial_schedule(tasks, profile, "two")


def test_nothing_runs_beside_a_task_of_a_serial_schedule():
    tasks = wide(5)
    profile = random_profile(random.Random(5), tasks, 3)
    found = serial_schedule(tasks, profile).items
    for number, item in enumerate(found):
        for other in found[:number]:
            assert other.task == item.task or other.end <= item.start


def test_seeds_decide():
    tasks = TaskGraph(wide(6).graph, 2, training=True)
    profile = random_profile(random.Random(1), tasks, 2)
    budget = Budget(300, 60.0)
    first, again = (search(tasks, profile, seed=7, budget=budget) for _ in range(2))
    assert first == again


def test_ranks_respect_dependencies():
    tasks = wide(3)
    rank = ranks(Problem(tasks, profile_of(tasks, 2)))
    names = list(tasks.tasks)
    assert len(set(rank)) == len(names)
    for first, later in tasks.waits.edges:
        assert rank[names.index(first)] > rank[names.index(later)]


# -- limits and errors ---------------------------------------------------------------------------


def test_a_limit_decides_which_algorithm():
    tasks = wide(2)
    both = [Choice(Algorithm("quick", 1, 96 << 10), 1.0), Choice(Algorithm("slow"), 1.9)]
    profile = profile_of(tasks, 2, branch0=both, branch1=both)
    for limit, seconds in ((None, 1.0), (2 * 96 << 10, 1.0), (96 << 10, 1.9), (10, 1.9)):
        found = search(tasks, profile, workspace_limit=limit, budget=QUICK)
        assert found.seconds == pytest.approx(seconds)
        check_schedule(tasks, found, limit)


def test_a_limit_that_nothing_fits_is_told():
    tasks = wide(2)
    large = [Choice(Algorithm(f"{size}", 1, size << 10), 1.0) for size in (200, 96)]
    profile = profile_of(tasks, 2, branch1=large)
    message = r"^workspace limit 1.0 KiB: branch1 needs at least 96.0 KiB$"
    for make in (plan, list_schedule, search, serial_schedule):
        with pytest.raises(UsageError, match=message):
            make(tasks, profile, workspace_limit=1024)
    with pytest.raises(UsageError, match="must not be negative, found -1"):
        plan(tasks, profile, workspace_limit=-1)
    with pytest.raises(UsageError, match="effort is one of quick, normal, thorough, found 'much'"):
        plan(tasks, profile, effort="much")


def test_profiles_that_make_no_sense_are_refused():
    tasks = wide(1 + 1)
    profile = profile_of(tasks, 2)
    del profile.choices["fc"]
    with pytest.raises(InputError, match="profile of test: there is nothing on task fc"):
        plan(tasks, profile)
    for choice in (
        Choice(Algorithm("a"), float("nan")),
        Choice(Algorithm("a"), -1.0),
        Choice(Algorithm("a", 0), 1.0),
        Choice(Algorithm("a", 1, -1), 1.0),
        Choice(Algorithm("a"), 1.0, 1.1),
    ):
        with pytest.raises(InputError, match="task branch0 cannot take"):
            plan(tasks, profile_of(tasks, 2, branch0=[choice]))
    with pytest.raises(InputError, match="0 lanes"):
        plan(tasks, profile_of(tasks, 0))


def test_one_line_for_a_network_that_is_none(tmp_path: Path):
    rows = wide(2).graph.as_json()
    relu = Relu("relu").as_json()
    broken = {
        # The sum reads what reads the sum.
        "cycle": [
            {**row, "inputs": [*row["inputs"], "relu"]} if row["name"] == "sum" else row
            for row in rows["operations"]
        ] + [relu | {"inputs": ["sum"]}],
        "apart": [*rows["operations"], relu | {"inputs": ["image"]}],
        "source": [*rows["operations"], Input("other", (1, 1, 1)).as_json() | {"inputs": []}],
        "nowhere": [*rows["operations"], relu | {"inputs": ["nobody"]}],
    }  # fmt: skip
    told = {
        "cycle": "operations read each other in a cycle: sum → relu → sum",
        "apart": "one output must have no reader, found 'fc', 'relu'",
        "source": "it must have one input, found 'image', 'other'",
        "nowhere": "operation 'relu' (relu) reads 'nobody', which is not there",
    }
    for name, operations in broken.items():
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(rows | {"operations": operations}))
        with pytest.raises(ShapeError) as error:
            network_for(str(path))
        assert str(error.value) == f"{path}: network wide: {told[name]}"
        with pytest.raises(ShapeError) as error:
            OperationGraph.from_json(rows | {"operations": operations})
        assert str(error.value) == f"network wide: {told[name]}"


def test_one_lane_is_one_task_after_the_other():
    tasks = wide(3)
    profile = random_profile(random.Random(3), tasks, 1)
    for schedule in plan(tasks, profile, effort="quick"):
        assert {item.lane for item in schedule.items} == {0}
        assert not any(item.waits for item in schedule.items)
        work = sum(
            each.seconds * each.algorithm.parts for each in choices_of(profile, schedule).values()
        )
        launches = (len(schedule.items) - 1) * profile.launch_seconds
        assert np.isclose(schedule.seconds, work + launches)
