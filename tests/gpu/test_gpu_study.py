"""`cnn concurrency --device cuda` on NumPy in a GPU's place: profile, plans, trial."""

from __future__ import annotations

import pytest

from sparsednn.dense.concurrency.gpu.kernels import CupyKernels
from sparsednn.dense.concurrency.gpu.study import gpu_trial
from sparsednn.dense.concurrency.gpu.twin import TwinCupy, TwinProducts
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.networks import make_network


@pytest.mark.parametrize("training", [False, True])
def test_a_study_on_the_twin(training: bool) -> None:
    graph = make_network("lenet5", image=(1, 8, 8), classes=3)
    twin = TwinCupy()
    kernels = CupyKernels(graph, initial_parameters(graph), 2, xp=twin, products=TwinProducts(twin))
    tasks, profile, trial = gpu_trial(
        graph, images=2, training=training, lanes=2, workspace_limit=None, dtype="float32", seed=0,
        effort="quick", kernels=kernels, calls=1, copied_bytes=1 << 16,
    )  # fmt: skip
    assert set(profile.choices) == set(tasks.tasks)
    assert {one.name for one in trial.schedules} >= {"serial", "list", "search"}
    assert all(seconds > 0 for seconds in trial.seconds)
    assert trial.chosen in trial.schedules
    for schedule, runs in zip(trial.schedules, trial.runs, strict=True):
        assert sorted(run.item for run in runs) == list(range(len(schedule.items)))
