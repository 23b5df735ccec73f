"""Numbers of ranks, the planner's choice, memory limits, sweeps, samples of deep networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.costmodel.planning.dense import DenseModel, grid_text, parse_strategies
from sparsednn.costmodel.planning.partitions import PartitionMaker, parse_methods
from sparsednn.costmodel.planning.ranks import parse_ranks, parse_values
from sparsednn.costmodel.planning.report import plan_table, sweep_table
from sparsednn.costmodel.planning.request import ModelRequest, is_dense
from sparsednn.costmodel.planning.rows import Configuration, plan_ranks, plan_row
from sparsednn.costmodel.planning.sampling import extended, load_sample, order
from sparsednn.costmodel.planning.sparse import SparseModel, thread_counts
from sparsednn.costmodel.planning.sweep import AXES, check_axis, sweep_axis
from sparsednn.costmodel.platform import Platform, load_platform
from sparsednn.costmodel.prediction import Prediction
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.datasets import radix_net
from sparsednn.dense.grids import Grid, Placement
from sparsednn.errors import FormatError, InputError, UsageError
from sparsednn.formats import write_network

# --- numbers, as typed --------------------------------------------------------------------------


@given(st.integers(1, 10**9 - 1), st.integers(1, 10**9 - 1))
def test_a_range_has_its_ends_and_the_powers_of_two_between(a: int, b: int) -> None:
    if a > b:
        with pytest.raises(UsageError, match=r"ranks .* is empty"):
            parse_ranks(f"{a}..{b}")
        return
    found = parse_ranks(f"{a}..{b}")
    assert (found[0], found[-1]) == (a, b)
    assert list(found) == sorted({a, b} | {1 << e for e in range(31) if a <= 1 << e <= b})


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=8))
def test_numbers_are_sorted_and_different(numbers: list[int]) -> None:
    assert parse_ranks(", ".join(map(str, numbers))) == tuple(sorted(set(numbers)))


def test_ranges_and_numbers_go_together() -> None:
    assert parse_ranks("1..1024") == tuple(2**e for e in range(11))
    assert parse_ranks("1..4,6") == (1, 2, 4, 6)
    assert parse_ranks("5..5") == (5,)


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "a", "1..", "..4", "1...4", "-1", "1.5", "1..2..4"]
)
def test_what_is_no_number_of_ranks(text: str) -> None:
    with pytest.raises(UsageError, match=r"ranks .*neither a number nor a range"):
        parse_ranks(text)


@pytest.mark.parametrize("text", ["0", "0..4", "4,0"])
def test_no_ranks(text: str) -> None:
    with pytest.raises(UsageError, match="at least 1, found 0"):
        parse_ranks(text)


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "1,,2", "x"])
def test_what_is_no_factor(text: str) -> None:
    with pytest.raises(UsageError, match=r"--values .*positive numbers"):
        parse_values(text)


def test_values_keep_their_order() -> None:
    assert parse_values("4, 0.5,1,4") == (4.0, 0.5, 1.0)
    assert parse_values("1..8", whole=True) == (1.0, 2.0, 4.0, 8.0)
    with pytest.raises(UsageError, match="at most 64"):
        parse_values(",".join(map(str, range(1, 80))))


# --- a model that is a formula -------------------------------------------------------------------


@dataclass
class Formula:
    """Arithmetic that ranks share, and messages that grow with them: three ways with less and less
    memory that send more and more."""

    flops: float = 1e12
    weights: float = 8e9
    name: str = "formula"
    notes: Sequence[str] = ()
    training: bool = False

    def configurations(
        self, platform: Platform, ranks: int, images: int, limit: float
    ) -> Sequence[Configuration]:
        names = ("copies", "halves", "shares") if ranks > 1 else ("alone",)
        return [Configuration(ranks, name, f"{ranks}x1", t) for name in names for t in (1, 2)]

    def predict(self, platform: Platform, one: Configuration, images: int) -> Prediction | None:
        if one.strategy == "halves" and one.ranks == 2:
            return None
        sent = {"alone": 0, "copies": 1, "halves": 2, "shares": 3}[one.strategy]
        parts = {"alone": 1, "copies": 1, "halves": 2, "shares": one.ranks}[one.strategy]
        within = platform.within
        charged = {
            "flops": self.flops * images / one.ranks / one.threads / platform.processor.flops,
            "latency": sent * one.ranks * within.latency_seconds,
            "link bandwidth": sent * 1e6 / within.bandwidth,
            "memory bandwidth": 1e6 * images / platform.processor.memory_bandwidth,
        }
        seconds = sum(charged.values())
        return Prediction(seconds, {"all": seconds}, charged, sent, self.weights / parts)


CLUSTER = load_platform("infiniband-128")


def test_the_best_is_the_quickest_that_fits() -> None:
    rows = plan_ranks(Formula(), CLUSTER, (1, 2, 4, 8), 10, memory_per_rank=5e9)
    assert [row.ranks for row in rows] == [1, 2, 4, 8]
    assert rows[0].best is None  # 8 GB
    for row in rows:
        seconds = [one.prediction.seconds for one in row.candidates]
        assert seconds == sorted(seconds)
        fits = [one for one in row.candidates if one.prediction.memory_bytes <= 5e9]
        if fits:
            assert row.best is not None
            assert row.best.prediction.seconds == min(one.prediction.seconds for one in fits)
            assert row.best.configuration.threads == 2
            by = row.by_strategy()
            assert "copies" not in by
            assert by[row.best.configuration.strategy] == row.best
    assert len(rows[1].candidates) == 4  # one strategy cannot be made for two ranks


def test_speedups_are_against_the_first_that_fits() -> None:
    rows = plan_ranks(Formula(), CLUSTER, (1, 2, 4), 10, memory_per_rank=5e9)
    assert (rows[0].speedup, rows[0].efficiency) == (None, None)
    assert (rows[1].speedup, rows[1].efficiency) == (1.0, 1.0)
    first, second = rows[1].best, rows[2].best
    assert first is not None
    assert second is not None
    assert rows[2].speedup == first.prediction.seconds / second.prediction.seconds
    assert rows[2].efficiency == pytest.approx((rows[2].speedup or 0) / 2)
    table = plan_table(rows)
    assert "does not fit" in table[1]
    assert "≥ 7.5 GiB" in table[1]


def test_nothing_fits() -> None:
    """One line: what it would need, and where."""
    with pytest.raises(UsageError) as error:
        plan_ranks(Formula(), CLUSTER, (1, 2, 4), 10, memory_per_rank=1e9)
    assert str(error.value) == (
        "formula does not fit 953.7 MiB a rank on 1, 2, 4 ranks: it needs at least 1.9 GiB a rank, "
        "on 4 (shares 4x1 2 threads)"
    )


def test_the_platform_is_the_limit() -> None:
    """Of ranks, and of memory where nobody says."""
    with pytest.raises(UsageError, match="two-core-server has 4 ranks"):
        plan_ranks(Formula(), load_platform("two-core-server"), (1, 8), 10)
    small = load_platform("two-core-server")
    assert plan_row(Formula(), small, 1, 1).limit == small.node.memory_bytes
    assert plan_row(Formula(), small, 4, 1).limit == small.node.memory_bytes / 4
    with pytest.raises(UsageError, match="--batch must be at least 1, found 0"):
        plan_ranks(Formula(), small, (1,), 0)


@pytest.mark.parametrize("axis", ["flops", "memory-bandwidth", "link-bandwidth", "link-latency"])
def test_a_better_machine_is_no_slower(axis: str) -> None:
    values = (0.25, 0.5, 1.0, 2.0, 4.0)
    rows = sweep_axis(Formula(), CLUSTER, axis, values, 64, 10)
    assert [one.value for one in rows] == list(values)
    for name in ("copies", "halves", "shares"):
        seconds = [one.row.by_strategy()[name].prediction.seconds for one in rows]
        assert seconds == sorted(seconds, reverse=axis != "link-latency")
        assert seconds[0] != seconds[-1]
    (same,) = sweep_axis(Formula(), CLUSTER, axis, (1.0,), 64, 10)
    assert same.row.candidates == plan_row(Formula(), CLUSTER, 64, 10).candidates
    assert sweep_table(rows, axis)[0].startswith(f"{axis} (")


def test_sweeps_of_images_and_nodes() -> None:
    images = sweep_axis(Formula(), CLUSTER, "batch", (1, 8, 64), 4, 999)
    assert [one.row.images for one in images] == [1, 8, 64]
    seconds = [one.row.candidates[0].prediction.seconds for one in images]
    assert seconds == sorted(seconds)
    nodes = sweep_axis(Formula(), CLUSTER, "nodes", (1, 2, 256), None, 10)
    assert [one.row.ranks for one in nodes] == [64, 128, 256 * 64]  # more than the platform has
    assert [one.row.nodes for one in nodes] == [1, 2, 256]
    assert nodes[0].row.speedup == 1.0
    json.dumps([one.as_json() for one in nodes])


@pytest.mark.parametrize(
    ("axis", "values", "ranks", "says"),
    [
        ("speed", "1", 4, r"--axis 'speed': known are " + ", ".join(AXES)),
        ("flops", "1,2", None, "--axis flops needs"),
        ("nodes", "1,2", 4, "--axis nodes: .* takes no "),
        ("flops", "0,1", 4, "positive numbers .* found '0'"),
        ("batch", "0.5", 4, "neither a number nor a range"),
    ],
)
def test_what_is_no_axis(axis: str, values: str, ranks: int | None, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_axis(axis, values, ranks)


# --- samples of deep networks --------------------------------------------------------------------


@given(st.integers(1, 12), st.data())
def test_layers_behind_the_sample_repeat_it(layers: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, layers - 1))
    depth = data.draw(st.integers(1, 60))
    found = order(layers, start, depth)
    assert len(found) == depth
    assert found[:layers] == list(range(min(layers, depth)))
    assert all(start <= k < layers for k in found[layers:])
    assert all((b - a) % (layers - start) == 1 % (layers - start)
               for a, b in zip(found[layers:], found[layers + 1 :], strict=False))  # fmt: skip


def test_official_networks_are_sampled_by_blocks() -> None:
    sample = load_sample("graph-challenge:1024-120")
    assert (sample.depth, sample.layers % 6, sample.start) == (120, 0, 6)
    assert sample.layers < 30
    assert sample.name == "graph-challenge:1024-120"
    assert sample.edges == 120 * 32 * 1024
    assert "of 120 layers were partitioned" in sample.note
    assert load_sample("graph-challenge:1024-12").whole
    assert load_sample("graph-challenge:1024-120", sampled=0).whole
    assert load_sample("graph-challenge:1024-120", layers=30, sampled=12).depth == 30


def test_only_layers_that_are_alike_stand_for_each_other(tmp_path: Path) -> None:
    alike = radix_net([[4, 4]] * 20, name="alike")
    write_network(alike, tmp_path / "alike.safetensors")
    sample = load_sample(str(tmp_path / "alike.safetensors"))
    assert (sample.layers, sample.depth, sample.name) == (24, 40, "alike")
    different = radix_net([[4, 4]] * 20, widths=[1] * 39 + [2, 1])
    write_network(different, tmp_path / "different.safetensors")
    assert load_sample(str(tmp_path / "different.safetensors")).whole
    with pytest.raises(UsageError, match=r"--layers-sampled 8: .*not all alike"):
        load_sample(str(tmp_path / "different.safetensors"), sampled=8)
    with pytest.raises(UsageError, match="--layers-sampled must be at least 0"):
        load_sample("graph-challenge:1024-120", sampled=-1)


def test_repeated_work_is_the_work_of_the_repeated_layers() -> None:
    """A network whose layers really repeat: its sample, extended, is the whole."""
    network = radix_net([[4, 4]] * 4, widths=[2] * 9)
    owners = [np.arange(32, dtype=np.int32) % 4] * 9
    whole = SparseWork.of(network, owners, 4, training=True)
    sample = radix_net([[4, 4]] * 2, widths=[2] * 5)
    part = extended(SparseWork.of(sample, owners[:5], 4, training=True), 2, 8)
    for name in ("widths", "neurons", "blocks", "lengths", "back_blocks", "words_sent"):
        np.testing.assert_array_equal(getattr(part, name), getattr(whole, name))
    assert extended(whole, 4, 8) is whole


# --- sparse networks -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> SparseModel:
    return ModelRequest(model="graph-challenge:1024-2", partition="cyclic,random").sparse()


def test_grids_methods_and_threads_of_a_sparse_network(tiny: SparseModel) -> None:
    found = tiny.configurations(CLUSTER, 8, 64, 1e12)
    assert {one.grid for one in found} == {"8x1", "4x2", "2x4", "1x8"}
    assert {one.strategy for one in found if one.grid == "8x1"} == {"data"}
    assert {one.strategy for one in found if one.grid == "2x4"} == {"cyclic", "random"}
    assert {one.threads for one in found} == {1, 8}
    assert len(set(found)) == len(found)
    # One image is for one group; more parts than neurons are no use.
    assert {one.grid for one in tiny.configurations(CLUSTER, 8, 1, 1e12)} == {"1x8"}
    assert "1x2048" not in {one.grid for one in tiny.configurations(CLUSTER, 2048, 4096, 1e12)}
    assert [str(one) for one in tiny.configurations(CLUSTER, 1, 1, 1e12)] == [
        "alone 1x1", "alone 1x1 64 threads",
    ]  # fmt: skip


def test_threads_are_a_rank_s_share_of_its_node() -> None:
    assert thread_counts(CLUSTER, 1) == [1, 64]
    assert thread_counts(CLUSTER, 3) == [1, 21]
    assert thread_counts(CLUSTER, 1024) == [1]
    assert thread_counts(CLUSTER, 1, 4) == [4]
    assert thread_counts(load_platform("gpu-node-8"), 1) == [1]
    assert thread_counts(load_platform("two-core-server"), 4) == [1]


def test_the_choice_is_the_least_of_all_predictions(tiny: SparseModel) -> None:
    rows = plan_ranks(tiny, CLUSTER, (1, 4, 16), 64)
    for row in rows:
        predicted = [
            tiny.predict(CLUSTER, one, 64)
            for one in tiny.configurations(CLUSTER, row.ranks, 64, row.limit)
        ]
        assert row.best is not None
        assert row.best.prediction.seconds == min(one.seconds for one in predicted if one)
    assert rows[0].best is not None
    assert rows[0].best.prediction.words == 0


def test_less_memory_divides_the_neurons(tiny: SparseModel) -> None:
    """Data parallelism has the whole network on each rank: a limit below that forbids it."""
    free = plan_row(tiny, CLUSTER, 16, 1024)
    whole = min(one.prediction.memory_bytes for one in free.candidates
                if one.configuration.strategy == "data")  # fmt: skip
    least = free.least.prediction.memory_bytes
    assert least < whole
    row = plan_row(tiny, CLUSTER, 16, 1024, memory_per_rank=(least + whole) / 2)
    assert row.best is not None
    assert row.best.configuration.strategy != "data"
    assert row.best.prediction.memory_bytes <= row.limit
    with pytest.raises(UsageError, match=r"does not fit .* it needs at least .* a rank, on 16"):
        plan_ranks(tiny, CLUSTER, (1, 16), 1024, memory_per_rank=0.9 * least)


def test_partitions_are_made_once_and_kept(tmp_path: Path) -> None:
    sample = load_sample("graph-challenge:1024-2")
    first = PartitionMaker(sample.network, cache=tmp_path)
    made = first.get("cyclic", 4)
    assert made is not None
    assert first.get("cyclic", 4) is made
    (file,) = tmp_path.iterdir()
    again = PartitionMaker(sample.network, cache=tmp_path)
    read = again.get("cyclic", 4)
    assert read is not None
    assert read.identity == made.identity
    assert not again.seconds
    file.rename(file.with_name(file.name.replace("-4-", "-8-")))
    with pytest.raises(FormatError, match="has 4 parts, its name says 8"):
        again.get("cyclic", 8)
    other = load_sample("graph-challenge:1024-3")
    wrong = PartitionMaker(other.network, given={"own": made})
    assert wrong.get("own", 4) is made
    assert wrong.get("own", 8) is None


def test_a_method_that_cannot_is_a_warning() -> None:
    sample = load_sample("graph-challenge:1024-1")
    told: list[str] = []
    maker = PartitionMaker(sample.network, warn=told.append)
    assert maker.get("cyclic", 10**6) is None
    (line,) = told
    assert line.startswith("cyclic for 1000000 parts is left out: parts must be at most")


def test_methods_as_typed() -> None:
    assert parse_methods(None) == ("cyclic", "block", "random", "joint")
    assert parse_methods("own.npz, joint,joint") == ("own.npz", "joint")
    with pytest.raises(UsageError, match="--partition 'metis': known are cyclic"):
        parse_methods("joint,metis")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"threads": 0}, "--threads must be at least 1"),
        ({"optimizer": "lion"}, "--optimizer is one of sgd, momentum, adam"),
        ({"effort": "much"}, "--effort is one of quick"),
        ({"cache": Path("nowhere")}, "--cache nowhere: there is no such folder"),
        ({"partition": "metis"}, "--partition 'metis'"),
        ({"algorithm": "data"}, "--algorithm belongs to dense networks"),
        ({"image": (3, 32, 32)}, "--image belongs to dense networks"),
        ({"model": "vgg16", "partition": "joint"}, "--partition belongs to sparse networks"),
        ({"model": "vgg16", "sampled": 3}, "--layers-sampled belongs to sparse networks"),
        ({"model": "vgg16", "algorithm": "4d"}, "--algorithm '4d': known are data"),
    ],
)
def test_requests_that_are_wrong(wrong: dict[str, object], says: str) -> None:
    options: dict[str, object] = {"model": "graph-challenge:1024-2"} | wrong
    with pytest.raises(UsageError, match=says):
        ModelRequest(**options).check()  # type: ignore[arg-type]


def test_a_partition_of_another_network(tmp_path: Path) -> None:
    made = PartitionMaker(load_sample("graph-challenge:1024-2").network).get("cyclic", 4)
    assert made is not None
    file = tmp_path / "p.npz"
    made.save(file)
    request = ModelRequest(model="graph-challenge:1024-3", partition=f"{file},random")
    request.check()
    assert request.files == (str(file),)
    with pytest.raises(InputError, match="made for network"):
        request.sparse()
    model = ModelRequest(model="graph-challenge:1024-2", partition=str(file)).sparse()
    row = plan_row(model, CLUSTER, 8, 64)
    assert {one.configuration.grid for one in row.candidates} == {"8x1", "2x4"}


def test_which_models_are_dense(tmp_path: Path) -> None:
    assert is_dense("resnet50")
    assert is_dense("own.json")
    assert not is_dense("mlp:784-300-10@0.05")
    path = tmp_path / "net.safetensors"
    write_network(radix_net([[4, 4]]), path)
    assert not is_dense(str(path))
    path.write_bytes(b"nothing")
    assert not is_dense(str(path))


# --- dense networks ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet() -> DenseModel:
    return ModelRequest(model="lenet5", algorithm="data,3d,auto", optimizer="momentum").dense()


def test_algorithms_and_grids_of_a_dense_network(lenet: DenseModel) -> None:
    found = lenet.configurations(CLUSTER, 4, 64, 1e12)
    assert {one.strategy for one in found} == {"data", "3d", "auto"}
    assert {one.threads for one in found} == {1, 16}
    (data,) = {one.grid for one in found if one.strategy == "data"}
    assert data == "4x1x1x1x1"
    assert {one.strategy for one in lenet.configurations(CLUSTER, 1, 64, 1e12)} == {"alone"}
    row = plan_row(lenet, CLUSTER, 4, 64)
    assert row.best is not None
    assert row.best.prediction.seconds == min(one.prediction.seconds for one in row.candidates)
    assert len(row.candidates) == len(found)


def test_dense_grids_that_fit_less_memory_are_looked_for(lenet: DenseModel) -> None:
    free = plan_row(lenet, CLUSTER, 4, 64)
    data = next(one for one in free.candidates if one.configuration.strategy == "data")
    limit = (free.least.prediction.memory_bytes + data.prediction.memory_bytes) / 2
    row = plan_row(lenet, CLUSTER, 4, 64, memory_per_rank=limit)
    assert row.best is not None
    assert row.best.prediction.memory_bytes <= limit
    assert "data" not in row.by_strategy()
    with pytest.raises(UsageError, match=r"lenet5 does not fit 1\.0 KiB a rank on 1, 4 ranks"):
        plan_ranks(lenet, CLUSTER, (1, 4), 64, memory_per_rank=1024)


def test_a_dense_network_on_better_machines(lenet: DenseModel) -> None:
    for axis in ("flops", "link-bandwidth"):
        rows = sweep_axis(lenet, CLUSTER, axis, (0.5, 1.0, 2.0), 4, 64)
        seconds = [one.row.candidates[0].prediction.seconds for one in rows]
        assert seconds == sorted(seconds, reverse=True)


def test_grids_in_words() -> None:
    placements = {"a": Placement(Grid(b=4), "data"), "b": Placement(Grid(b=2, k=2), "3d"),
                  "c": Placement(Grid(b=4), "3d")}  # fmt: skip
    assert grid_text(placements, algorithms=True) == "2·3d+1·data"
    assert grid_text(placements, algorithms=False) == "4x1x1x1x1 and 1 more"
    assert parse_strategies(None)[-1] == "auto"


def test_hybrid_divides_fully_connected_layers_only() -> None:
    model = ModelRequest(model="lenet5", algorithm="data,hybrid").dense()
    row = plan_row(model, CLUSTER, 4, 64)
    offered = {one.configuration.strategy: one for one in row.candidates}
    hybrid, data = offered["hybrid"], offered["data"]
    assert hybrid.configuration.grid.startswith("3·")
    assert "2·data" in hybrid.configuration.grid
    assert hybrid.prediction.words < data.prediction.words
