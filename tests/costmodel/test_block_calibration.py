"""Blocks and small costs are measured here, on few points: what comes out is what models read."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sparsednn.costmodel.calibration import engines, sparse
from sparsednn.costmodel.calibration.pace import Pace
from sparsednn.costmodel.calibration.timing import Effort, no_pace, paced, set_pace
from sparsednn.costmodel.platform import load_platform
from sparsednn.costmodel.sparse.kernels import KINDS, OPTIMIZERS, SMALL, SparseRates

LEAST = Effort(rounds=1, visit_seconds=1e-4)
PLATFORM = load_platform("two-core-server")


def test_blocks_and_small_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "_TILES", (64, 256))
    monkeypatch.setattr(sparse, "_LENGTHS", (8, 24))
    monkeypatch.setattr(sparse, "_WEIGHTS", 512)
    monkeypatch.setattr(
        engines, "_RUNS", ((32, 8, 8, 2, (1, 16, 48, 96, 200)), (64, 2, 8, 3, (1, 16, 48, 96, 200)))
    )
    monkeypatch.setattr(engines, "_STEPS", ((24, 8, 8, 2, (2, 8, 16)), (48, 1, 8, 3, (2, 8, 16))))
    monkeypatch.setattr(engines, "_TEAMS", slice(0, None))
    monkeypatch.setattr(engines, "_PARAMETERS", (256, 1024))
    told: list[str] = []
    table, residuals = sparse.measure_blocks(effort=LEAST, progress=told.append)
    assert set(table) == set(KINDS)
    assert [one["points"] for one in residuals] == [
        2 * 4 * 2 * len(panels) for panels in KINDS.values()
    ]
    platform = replace(PLATFORM, measured={"sparse": table})
    small, more = engines.measure_small(platform, effort=LEAST, progress=told.append)
    assert len(told) == len(KINDS) + 4
    assert {one["model"] for one in more} >= {"sparse inference", "sparse training"}
    rates = SparseRates.of(replace(PLATFORM, measured={"sparse": table | small}))
    assert set(small["small"]) <= set(SMALL)
    assert rates.last_cache > 0
    assert rates.busy >= 1
    assert set(rates.parameters) == {"sizes", *OPTIMIZERS}
    seconds = rates.layer_seconds(np.array([8, 0, 0, 0]), np.array([64, 0, 0, 0]), 48, 4096.0)
    assert 0 < seconds < 1e-3


def test_times_are_brought_to_the_usual_pace() -> None:
    slow = iter([2.0, 2.0, 4.0])  # in front of the first chunk, between, behind the second

    def action(times: int) -> float:
        return 3.0 * times

    try:
        set_pace(lambda: next(slow))
        # Two chunks of five take 15 s each; the machine is 2 and 3 times slower in them.
        assert paced(action, 5, 2) == pytest.approx(3.0 / 2.5)
    finally:
        set_pace(no_pace)
    assert paced(action, 5, 2) == pytest.approx(3.0)


def test_a_pace_is_relative_to_its_seconds() -> None:
    usual = Pace()
    assert usual.seconds > 0
    asked: list[float] = []

    def agree(slowness: float) -> float:
        asked.append(slowness)
        return 7.0

    assert Pace(usual.seconds / 2, agree=agree).slowness() == 7.0
    assert asked[0] > 0
