"""Contenders over numbers of ranks: who wins, where that changes, simulated rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsednn.costmodel.planning.request import ModelRequest
from sparsednn.costmodel.planning.rows import Configuration
from sparsednn.costmodel.planning.simulated import (
    simulated_methods,
    simulated_ranks,
    simulated_rows,
)
from sparsednn.costmodel.planning.sparse import SparseModel
from sparsednn.costmodel.platform import Platform, load_platform
from sparsednn.costmodel.prediction import Prediction
from sparsednn.costmodel.scaling import (
    changes,
    scaling_rows,
    sparse_contenders,
    winners_text,
)
from sparsednn.costmodel.sparse.inference import predict_inference
from sparsednn.errors import UsageError

CLUSTER = load_platform("infiniband-128")


@dataclass
class Race:
    """One way pays for every rank and is quick on few, the other has a fixed price."""

    name: str = "race"
    notes: Sequence[str] = ()
    training: bool = False

    def configurations(
        self, platform: Platform, ranks: int, images: int, limit: float
    ) -> Sequence[Configuration]:
        if ranks == 1:
            return [Configuration(1, "alone", "1x1")]
        return [
            Configuration(ranks, "data", f"{ranks}x1"),
            Configuration(ranks, "joint", f"1x{ranks}"),
            Configuration(ranks, "joint", f"{ranks // 2}x2"),
        ]

    def predict(self, platform: Platform, one: Configuration, images: int) -> Prediction | None:
        price = {"alone": 0.0, "data": 0.01 * one.ranks, "joint": 0.1}[one.strategy]
        if one.grid.endswith("x2") and one.ranks > 2:
            price = 0.05 * one.ranks
        charged = {"flops": images / one.ranks, "latency": price}
        seconds = sum(charged.values())
        memory = 1e6 if one.strategy == "joint" else 1e9
        return Prediction(seconds, {"all": seconds}, charged, 0, memory)


def test_the_winner_changes_where_its_price_is_higher() -> None:
    contenders = sparse_contenders(["random", "joint"], "joint")
    rows = list(scaling_rows(Race(), CLUSTER, (1, 2, 4, 8, 16, 32), lambda ranks: 4, contenders))
    assert [row.ranks for row in rows] == [1, 2, 4, 8, 16, 32]
    assert set(rows[0].entries) == {"data", "random", "joint", "mixed"}
    assert set(rows[1].entries) == {"data", "joint"}  # nobody offers random
    assert [row.winner for row in rows[1:]] == ["data", "data", "data", "joint", "joint"]
    (change,) = changes(rows)
    assert (change.old, change.new, change.row.ranks) == ("data", "joint", 16)
    first, second = winners_text(rows)
    assert first.startswith("data")
    assert first.endswith("is the quickest from 2 to 8 ranks")
    assert second.startswith("from 16 ranks on joint")
    # 4 images on 16 ranks, and what each pays.
    assert "350 ms against 410 ms of data, of which 61% flops, 39% latency" in second


def test_weak_scaling_has_images_for_every_rank() -> None:
    contenders = sparse_contenders(["joint"], "joint")
    rows = list(scaling_rows(Race(), CLUSTER, (1, 4, 16), lambda ranks: 2 * ranks, contenders))
    assert [row.images for row in rows] == [2, 8, 32]
    assert rows[0].seconds("data") == 2.0
    assert [row.entries["data"].prediction.charged["flops"] for row in rows] == [2.0] * 3
    json.dumps([row.as_json() for row in rows])
    assert rows[1].seconds("random") is None


def test_one_winner_is_one_sentence() -> None:
    contenders = {"joint": sparse_contenders(["joint"], "joint")["joint"]}
    rows = list(scaling_rows(Race(), CLUSTER, (1, 2, 4), lambda ranks: 4, contenders))
    (line,) = winners_text(rows)
    assert line.endswith("is the quickest from 2 to 4 ranks")
    assert winners_text(rows[:1]) == []


# --- simulated ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> SparseModel:
    return ModelRequest(model="graph-challenge:1024-3", partition="cyclic,random").sparse()


def test_simulated_rows_stand_beside_the_closed_form(tiny: SparseModel) -> None:
    rows = simulated_rows(tiny, CLUSTER, (1, 4), 1)
    assert [(row.ranks, row.method) for row in rows] == [
        (1, "alone"), (4, "cyclic"), (4, "random"),
    ]  # fmt: skip
    alone, cyclic, random = rows
    assert (alone.speedup, alone.words, alone.messages, alone.waiting) == (1.0, 0, 0, 0.0)
    for row in rows:
        work = tiny.work(row.method, row.ranks)
        assert work is not None
        assert row.formula_seconds == predict_inference(CLUSTER, work, 1).seconds
        assert row.words == work.words_sent.sum()
        assert row.messages == work.messages_sent.sum()
        assert row.path_seconds <= row.seconds * (1 + 1e-9)
        assert row.speedup == alone.seconds / row.seconds
        assert 0.0 <= row.waiting < 1.0
        assert row.imbalance >= 1.0
    assert cyclic.words < random.words
    json.dumps([row.as_json() for row in rows])


def test_a_trace_of_one_simulation(tiny: SparseModel, tmp_path: Path) -> None:
    model = ModelRequest(model="graph-challenge:1024-3", partition="cyclic").sparse()
    file = tmp_path / "trace.json"
    simulated_rows(model, CLUSTER, (4,), 1, trace=file)
    events = json.loads(file.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0, 1, 2, 3}


def test_which_ranks_and_methods(tmp_path: Path) -> None:
    request = ModelRequest(model="graph-challenge:1024-3", partition="cyclic")
    assert simulated_ranks(None, request, CLUSTER, traced=False) == tuple(2**e for e in range(10))
    assert simulated_ranks("4", request, CLUSTER, traced=True) == (4,)
    with pytest.raises(UsageError, match="--trace is for one number of ranks and one method"):
        simulated_ranks("1..4", request, CLUSTER, traced=True)
    made = request.sparse().maker.get("cyclic", 6)
    assert made is not None
    file = tmp_path / "own.npz"
    made.save(file)
    given = ModelRequest(model="graph-challenge:1024-3", partition=f"{file},random")
    assert simulated_ranks(None, given, CLUSTER, traced=False) == (6,)
    assert simulated_ranks("1..8,6", given, CLUSTER, traced=False) == (1, 2, 4, 6, 8)
    with pytest.raises(UsageError, match="the partition's file has 6 parts"):
        simulated_ranks("1..4", given, CLUSTER, traced=False)
    rows = simulated_rows(given.sparse(), CLUSTER, (1, 6), 1)
    assert [row.method for row in rows] == ["alone", str(file), "random"]
    assert simulated_methods("a.npz", "random") == "a.npz,random"
    assert simulated_methods(None, None) == "random,joint"


def test_no_partition_at_all(tmp_path: Path) -> None:
    model = ModelRequest(model="graph-challenge:1024-3", partition="cyclic").sparse()
    with pytest.raises(UsageError, match="two-core-server has 4 ranks"):
        simulated_rows(model, load_platform("two-core-server"), (8,), 1)
    several = ModelRequest(model="graph-challenge:1024-3", training=True, threads=2).sparse()
    with pytest.raises(UsageError, match="--threads: a step of training"):
        simulated_rows(several, CLUSTER, (1,), 1)
