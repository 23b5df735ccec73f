"""Schedules in files: what is written is read, and nothing else is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from branching import random_network, random_profile
from sparsednn.dense.concurrency.kernels import Algorithm, Occupancy
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.schedule_file import load_schedule, save_schedule
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.errors import FormatError


def example() -> tuple[TaskGraph, Schedule]:
    dice = random.Random(4)
    tasks = TaskGraph(random_network(dice), 2, training=True)
    return tasks, plan(tasks, random_profile(dice, tasks, 2), effort="quick")[0]


TASKS, SCHEDULE = example()


def test_what_is_written_is_read(tmp_path: Path):
    path = tmp_path / "plan.json"
    with_occupancy = {
        item.algorithm: replace(item.algorithm, occupancy=Occupancy(32, 4096, 256, 100))
        for item in SCHEDULE.items
    }
    schedule = replace(
        SCHEDULE,
        items=tuple(
            replace(item, algorithm=with_occupancy[item.algorithm]) for item in SCHEDULE.items
        ),
    )
    for each in (SCHEDULE, schedule):
        save_schedule(each, path)
        assert load_schedule(path, TASKS, "random", 1 << 20) == each
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_what_is_for_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "plan.json"
    save_schedule(SCHEDULE, path)
    graph = TASKS.graph
    other = random_network(random.Random(5))
    for tasks, told in (
        (TaskGraph(graph, 3, training=True), "its images is 2, not 3"),
        (TaskGraph(graph, 2), "its training is True, not False"),
        (TaskGraph(graph, 2, training=True, itemsize=8), "its itemsize is 4, not 8"),
        (TaskGraph(other, 2, training=True), "its network is"),
    ):
        with pytest.raises(FormatError, match=rf"plan.json: schedule '\w+': {told}"):
            load_schedule(path, tasks)
    with pytest.raises(FormatError, match=r"plan.json: a schedule for random, this is better"):
        load_schedule(path, TASKS, "better")
    if SCHEDULE.workspace_bytes:
        with pytest.raises(FormatError, match=r"plan.json: .* of workspace, more than 0 B"):
            load_schedule(path, TASKS, limit=0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda c: c.update(format="x"), "not a schedule"),
        (lambda c: c.update(version=2), "format version 2, expected 1"),
        (lambda c: c.pop("items"), "cannot be read: 'items'"),
        (lambda c: c.update(lanes="2"), "'2' should be of type int"),
        (lambda c: c.update(training=1), "1 should be of type bool"),
        (lambda c: c["items"].pop(), "not all of it"),
        (lambda c: c["items"][0].pop(), "cannot be read"),
        (lambda c: c["items"][0].__setitem__(2, 1 << 20), "cannot be read"),
        (lambda c: c["items"][0].__setitem__(2, -1), "there is no algorithm -1"),
        (lambda c: c["items"][0].__setitem__(4, "nan"), "starts or ends too early"),
        (lambda c: c["items"][0].__setitem__(5, None), "cannot be read"),
        (lambda c: c["algorithms"][0].pop("name"), "cannot be read: 'name'"),
        (lambda c: c["algorithms"][0].update(size=3), "cannot be read"),
        (lambda c: c["algorithms"][0].update(occupancy={}), "cannot be read"),
        (lambda c: c["algorithms"][0].update(occupancy=3), "cannot be read"),
        (lambda c: c["offsets"].popitem(), "should have a place"),
    ],
)
def test_damage_is_told(change: Callable[[Any], object], told: str, tmp_path: Path):
    path = tmp_path / "plan.json"
    save_schedule(SCHEDULE, path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match=rf"plan.json: .*{told}"):
        load_schedule(path, TASKS)


def test_what_is_no_file_of_ours_is_told(tmp_path: Path):
    path = tmp_path / "plan.json"
    with pytest.raises(FormatError, match=r"plan.json: no such file"):
        load_schedule(path, TASKS)
    for text in (b"", b"\xff\xfe", b"[" * 100_000, b"{"):
        path.write_bytes(text)
        with pytest.raises(FormatError, match=r"plan.json: it is not JSON"):
            load_schedule(path, TASKS)
    path.write_text("[]")
    with pytest.raises(FormatError, match=r"plan.json: not a schedule"):
        load_schedule(path, TASKS)
    with pytest.raises(FormatError, match=r"cannot write: no folder"):
        save_schedule(SCHEDULE, tmp_path / "nowhere" / "plan.json")


def _inside(value: Any, dice: random.Random) -> Any:
    """Change one value somewhere inside, in place."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = dice.choice(keys)
    if isinstance(value[key], (dict, list)) and value[key] and dice.random() < 0.9:
        return _inside(value[key], dice)
    value[key] = dice.choice((None, -1, 3, 1 << 70, 0.5, "x", [], {}, [[]], True))
    return None


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_damage_is_one_kind_of_error(tmp_path_factory: pytest.TempPathFactory, seed: int):
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    save_schedule(SCHEDULE, path)
    content = json.loads(path.read_text())
    _inside(content, random.Random(seed))
    path.write_text(json.dumps(content))
    told = f"{path}: "
    try:
        found = load_schedule(path, TASKS)
    except FormatError as error:
        told = str(error)
    else:  # what does no harm: times, names
        assert len(found.items) == len(SCHEDULE.items)
    assert told.startswith(f"{path}: ")
    assert "\n" not in told


def test_algorithms_are_written_once(tmp_path: Path):
    path = tmp_path / "plan.json"
    save_schedule(SCHEDULE, path)
    rows = json.loads(path.read_text())["algorithms"]
    found = [Algorithm(row["name"], row["parts"], row["workspace"]) for row in rows]
    assert len(found) == len(set(found)) == len({item.algorithm for item in SCHEDULE.items})
