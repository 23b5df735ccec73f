"""What is measured, what is kept of it, and which plan is taken."""

from __future__ import annotations

import json
import random
import stat
from pathlib import Path

import pytest

from branching import random_profile
from concurrent_runs import initial_parameters
from sparsednn.dense.concurrency.cpu.kernels import CpuKernels
from sparsednn.dense.concurrency.planning import in_place, make_profile, try_schedules
from sparsednn.dense.concurrency.profile_store import ProfileStore
from sparsednn.dense.concurrency.profiling import measure_profile, task_key
from sparsednn.dense.concurrency.schedule import Schedule
from sparsednn.dense.concurrency.scheduling.planner import plan
from sparsednn.dense.concurrency.tasks import TaskGraph
from sparsednn.dense.concurrency.trial import Trial, pairs_beside
from sparsednn.dense.networks import make_network
from sparsednn.dense.runs.concurrency import measured_bounds


def tasks_and_kernels(lanes: int = 2) -> tuple[TaskGraph, CpuKernels]:
    graph = make_network("pathnet", image=(3, 8, 8), classes=4)
    kernels = CpuKernels(lanes, initial_parameters(graph, "float32"), torch=False)
    return TaskGraph(graph, 2), kernels


def named(name: str) -> Schedule:
    return Schedule((), 2, {}, 0, 0, "", "", 1, False, 4, name)


def trial(**seconds: float) -> Trial:
    schedules = tuple(named(name.replace("_", "-")) for name in seconds)
    return Trial(schedules, tuple(seconds.values()), 1, tuple([] for _ in seconds))


def test_the_serial_plan_is_taken_where_nothing_is_gained() -> None:
    assert trial(search=1.0, serial=1.025, serial_all=2.0).chosen.name == "serial"
    assert trial(search=1.0, serial=1.5, serial_all=1.2).chosen.name == "search"
    assert trial(search=1.0, serial=1.5, serial_all=1.02).chosen.name == "serial-all"
    assert trial(list=1.0, search=0.9, serial=1.5).chosen.name == "search"
    assert trial(list=1.0).chosen.name == "list"
    assert trial(serial_one=1.0, search=2.0).chosen.name == "serial-one"


def test_keys_are_of_shapes() -> None:
    """Modules of a layer are alike; layers, numbers of images and directions are not."""
    graph = make_network("pathnet", image=(3, 8, 8), classes=4)
    tasks = TaskGraph(graph, 2)
    keys = {task.name: task_key(tasks, task) for task in tasks}
    assert keys["layer2.module1.conv"] == keys["layer2.module2.conv"]
    assert keys["layer1.module1.conv"] != keys["layer2.module1.conv"]
    more = TaskGraph(graph, 3)
    assert task_key(more, more.tasks["layer2.module1.conv"]) != keys["layer2.module1.conv"]


def test_a_profile_is_measured_once(tmp_path: Path) -> None:
    """Alike tasks have the same times; a second study measures nothing."""
    tasks, kernels = tasks_and_kernels()
    store = ProfileStore(kernels.device, tmp_path)
    counted: list[tuple[int, int]] = []
    profile = measure_profile(tasks, kernels, store, progress=lambda *row: counted.append(row))
    assert counted[-1][0] == counted[-1][1] == len(counted) > 5
    assert profile.choices["layer2.module1.conv"] == profile.choices["layer2.module2.conv"]
    for name, some in profile.choices.items():
        assert [one.algorithm for one in some] == list(kernels.algorithms(tasks, tasks.tasks[name]))
        assert all(one.seconds > 0 for one in some) or name in ("image",)
        assert all(0 <= one.memory_share <= 1 for one in some)
    store.save()
    counted.clear()
    again = measure_profile(
        tasks, kernels, ProfileStore(kernels.device, tmp_path),
        progress=lambda *row: counted.append(row),
    )  # fmt: skip
    assert counted == []
    assert again.choices == profile.choices
    scaled = in_place(tasks, kernels, profile)
    assert scaled.choices.keys() == profile.choices.keys()
    assert all(one.seconds > 0 for one in scaled.choices["layer2.module1.conv"])


def test_a_store_that_cannot_be_used_is_as_none(tmp_path: Path) -> None:
    """It is only a cache: damage, another device or version are no errors."""
    store = ProfileStore("here", tmp_path)
    store.put("a|x|1", 1.5)
    store.put_share("a|x|1", 0.25)
    store.put_pair(("a|x|1", "b|y|1"), 1.75)
    store.save()
    (file,) = tmp_path.iterdir()
    found = ProfileStore("here", tmp_path)
    assert found.seconds("a|x|1") == 1.5
    assert found.memory_share("a|x|1") == 0.25
    assert found.pairs == {("a|x|1", "b|y|1"): 1.75}
    assert ProfileStore("there", tmp_path).seconds("a|x|1") is None
    content = json.loads(file.read_text())
    for damage in (
        "{", "[]", json.dumps(content | {"version": 99}), json.dumps(content | {"device": "x"}),
        json.dumps(content | {"seconds": {"a": "much"}}), json.dumps(content | {"pairs": [[1]]}),
    ):  # fmt: skip
        file.write_text(damage)
        assert ProfileStore("here", tmp_path).seconds("a|x|1") is None
    assert not file.stat().st_mode & stat.S_IWOTH
    before = file.read_text()
    ProfileStore("here", tmp_path).save()  # nothing new
    assert file.read_text() == before


def test_a_store_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line; what was measured is there all the same."""
    (tmp_path / "file").touch()
    store = ProfileStore("here", tmp_path / "file" / "below")
    store.put("a|x|1", 1.5)
    store.save()
    (line,) = caplog.messages
    assert "what was measured could not be kept" in line
    assert store.seconds("a|x|1") == 1.5


def test_pairs_are_those_beside_each_other() -> None:
    """Only tasks of different lanes at one time; longest first."""
    tasks, _ = tasks_and_kernels()
    profile = random_profile(random.Random(3), tasks, 2)
    schedules = plan(tasks, profile, effort="quick")
    found = pairs_beside(profile, schedules)
    assert found
    for (one, _), (other, _) in found:
        assert any(
            mine.lane != its.lane and mine.start < its.end and its.start < mine.end
            for schedule in schedules
            for mine in schedule.items
            for its in schedule.items
            if (mine.task, its.task) == (one, other)
        )


def test_from_a_profile_to_a_trial(tmp_path: Path) -> None:
    """All plans run, and the limit is kept by each."""
    tasks, kernels = tasks_and_kernels()
    store = ProfileStore(kernels.device, tmp_path)
    profile, schedules = make_profile(
        tasks, kernels, store, workspace_limit=100_000, effort="quick"
    )
    assert profile.pairs == store.pairs
    assert profile.wait_seconds > profile.launch_seconds > 0
    found = try_schedules(tasks, kernels, schedules, rounds=3, seconds=0)
    assert found.rounds == 3
    assert all(seconds > 0 for seconds in found.seconds)
    for schedule, runs in zip(found.schedules, found.runs, strict=True):
        assert schedule.workspace_bytes <= 100_000
        assert len(runs) == len(schedule.items)


def test_measured_bounds(tmp_path: Path) -> None:
    """Modules side by side: much to gain, forward and backward."""
    graph = make_network("pathnet", image=(3, 8, 8), classes=4)
    found = measured_bounds(graph, folder=tmp_path)
    assert set(found) == {"forward", "backward", "all"}
    for bounds in found.values():
        assert bounds.work >= bounds.critical_path > 0
    assert found["forward"].bound > 2
    assert found["all"].work == pytest.approx(found["forward"].work + found["backward"].work)
