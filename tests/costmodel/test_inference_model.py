"""The closed form of inference: its parts, its tiles and memory as the engine has them."""

from __future__ import annotations

from dataclasses import replace as changed
from types import SimpleNamespace

import numpy as np
import pytest

from networks import random_layer
from row_wise import by_hand, make_network
from sparsednn import SparseNetwork
from sparsednn.costmodel.platform import Link, Node, Platform, Processor
from sparsednn.costmodel.prediction import BOUNDS
from sparsednn.costmodel.sparse.exchanges import transfers_of
from sparsednn.costmodel.sparse.inference import predict_inference
from sparsednn.costmodel.sparse.kernels import SparseRates
from sparsednn.costmodel.sparse.memory import inference_bytes, packed_bytes, tile_bytes
from sparsednn.costmodel.sparse.terms import run_terms
from sparsednn.costmodel.sparse.tiles import machine_of, tiles_of, training_columns
from sparsednn.costmodel.sparse.work import HEIGHTS, Messages, SparseWork
from sparsednn.distributed.compiled import CompiledPlan
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import shard_network
from sparsednn.errors import FormatError, UsageError
from sparsednn.kernels.cpu import NumbaPlan, make_workspace
from sparsednn.kernels.packing import pack
from sparsednn.machine import machine as this_machine
from sparsednn.training.compiled import CompiledEngine


def platform_of(*, per_node=4, nodes=4, overlap=0.5, processors=None, **more) -> Platform:
    near, far = Link(1e-6, 4e9, 1e-7, overlap), Link(3e-6, 1e9, 2e-7, overlap)
    cpu = this_machine()
    table = {"l3_bytes": cpu.l3, "l3_shared_by": cpu.l3_shared_by}
    return Platform(
        name="made up",
        source="this test",
        processor=Processor("cpu", 1e11, 2e10, cpu.l2, 1e11, 0.8, 0.6, 1e-5, 1e10),
        node=Node(processors or per_node, per_node, 1e12, 1e13),
        nodes=nodes,
        within=near,
        between=far,
        measured={"machine": table, **more},
    )


class PlainRates:
    """A second for each weight and column; small things as told."""

    def __init__(self, **small: float) -> None:
        self.small = small

    def layer_seconds(self, blocks, lengths, columns, working_set, kind="forward", again=0.0):
        return columns * (lengths * np.array(HEIGHTS)).sum(axis=-1).astype(float)

    def seconds(self, name):
        return self.small.get(name, 0.0)

    def slowdown(self, busy):
        return 1.0 if busy <= 4 else busy / 4

    def stream_seconds(self, passed, total):
        return np.zeros(np.shape(passed))

    def streamed(self, passed, total):
        return 0.0 * passed, 0.0 * passed


@pytest.fixture
def network() -> SparseNetwork:
    rng = np.random.default_rng(5)
    return SparseNetwork([random_layer(rng, 40, 40, density=0.2) for _ in range(4)])


def test_one_rank_multiplies_every_weight_with_every_column(network) -> None:
    work = SparseWork.whole(network)
    small = {"run": 7.0, "tile_layer": 0.5, "input_nonzero": 0.25}
    images, columns = 100, 48
    found = predict_inference(
        platform_of(), work, images, tile=columns, nonzeros_per_image=8, rates=PlainRates(**small)
    )
    layers_of_tiles = 4 * 3
    expected = 7.0 + 0.5 * layers_of_tiles + 0.25 * 8 * images + network.edges * images
    assert found.seconds == pytest.approx(expected, rel=1e-12)
    assert found.edges == network.edges * images
    assert (found.words, found.details["tiles_per_rank"]) == (0, 3)


@pytest.mark.parametrize("images", [1, 30, 48, 500])
def test_one_rank_has_the_terms_that_are_calibrated(network, images) -> None:
    work, platform = SparseWork.whole(network), platform_of()
    rates = SparseRates.of(platform)
    seconds, counts = run_terms(rates, work, images, columns=48, nonzeros=7.0 * images)
    expected = seconds + sum(n * rates.seconds(name) for name, n in counts.items())
    found = predict_inference(platform, work, images, tile=48, nonzeros_per_image=7)
    assert found.seconds == pytest.approx(expected)


def test_threads_and_groups_share_tiles_and_images(network) -> None:
    work = SparseWork.whole(network)
    one = predict_inference(platform_of(), work, 4 * 48, tile=48, rates=PlainRates())
    two = predict_inference(platform_of(), work, 4 * 48, tile=48, threads=2, rates=PlainRates())
    assert two.seconds == pytest.approx(one.seconds / 2)
    halves = predict_inference(platform_of(), work, 4 * 48, tile=48, groups=2, rates=PlainRates())
    end = halves.parts["end"]
    assert end > 0
    assert halves.seconds - end == pytest.approx(one.seconds / 2)
    crowded = predict_inference(platform_of(), work, 8 * 48, tile=48, threads=8, rates=PlainRates())
    assert crowded.seconds == pytest.approx(2 * one.seconds / 4)


def test_a_layer_takes_as_long_as_its_slowest_rank() -> None:
    # Two ranks, two rows each: rank 0 has four weights, rank 1 two, of which one is received.
    layer = SparseNetwork(
        [
            random_layer(np.random.default_rng(0), 4, 4, density=0.0),
        ]
    )[0]
    indptr, indices = np.array([0, 2, 4, 5, 6]), np.array([0, 1, 0, 1, 2, 0])
    layer.indptr, layer.indices = indptr.astype(np.int64), indices.astype(np.int32)
    layer.values = np.ones(6, np.float32)
    work = SparseWork.of(SparseNetwork([layer]), [[0, 0, 1, 1]] * 2, 2)
    assert work.edges.tolist() == [[4, 2]]
    assert work.words_sent.tolist() == [[1, 0]]
    link = Link(latency_seconds=32.0, bandwidth=0.25, overhead_seconds=0.5, overlap=0.5)
    platform = changed(platform_of(), within=link)
    found = predict_inference(
        platform, work, 2, tile=2, nonzeros_per_image=0, rates=PlainRates(linked_layer=1.0)
    )
    # Rank 0: 0.5 to send, 4 · 2 + 1 of computing; its message leaves in 8 bytes / 0.25 + 32 = 64 s,
    # of which half of the 9 s are hidden. Rank 1: 3 s computed, 62.5 s left, 2 s behind.
    rank0, rank1 = 0.5 + 9 + (64 - 4.5), 0.5 + 3 + (64 - 1.5) + 2
    assert found.seconds - found.parts["end"] == pytest.approx(max(rank0, rank1))
    assert found.parts["imbalance"] == pytest.approx(abs(rank0 - rank1) / 2)
    assert found.words == 2


@pytest.mark.parametrize("images", [1, 300])
@pytest.mark.parametrize("parts", [1, 3, 6])
def test_parts_add_up(images, parts) -> None:
    network = make_network(8, most=90)
    work = SparseWork.of(network, by_hand(network, parts, 1), parts)
    found = predict_inference(platform_of(), work, images)
    assert sum(found.parts.values()) == pytest.approx(found.seconds)
    assert sum(found.charged.values()) == pytest.approx(found.seconds)
    assert set(found.charged) <= set(BOUNDS)
    assert min(found.parts.values()) >= 0
    assert found.bound in BOUNDS
    assert found.words == work.words_sent.sum() * images


def test_more_images_and_slower_machines_take_longer() -> None:
    network = make_network(8, most=90)
    work = SparseWork.of(network, by_hand(network, 6, 1))
    platform = platform_of()
    times = [predict_inference(platform, work, n, tile=16).seconds for n in (1, 16, 17, 160)]
    assert times == sorted(times)
    usual = predict_inference(platform, work, 64).seconds
    for axis, slower in (("flops", 0.5), ("link_bandwidth", 0.5), ("link_latency", 2.0)):
        assert predict_inference(platform.scaled(**{axis: slower}), work, 64).seconds > usual


# Tiles and memory, as the engine has them ------------------------------------------------------


def test_a_rank_alone_has_the_tiles_of_the_ordinary_kernel() -> None:
    rng = np.random.default_rng(2)
    for width in (3, 700, 5000):
        network = SparseNetwork([random_layer(rng, width, width, density=0.001, shared=0.0)])
        plan = NumbaPlan(network, threads=2)
        tiles = tiles_of(platform_of(), SparseWork.whole(network), 10**5, 2)
        assert tiles.columns == plan.tiling.columns
        workspace = make_workspace(pack(network), plan.tiling)
        held = workspace.scratch.nbytes + workspace.entry.nbytes
        assert tile_bytes(SparseWork.whole(network), tiles.columns).tolist() == [held]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("images", [1, 50, 5000])
@pytest.mark.parametrize("threads", [1, 3])
def test_ranks_have_the_tiles_of_the_compiled_engine(seed, images, threads) -> None:
    network = make_network(seed, most=300)
    partition = by_hand(network, 3, seed)
    work = SparseWork.of(network, partition)
    shards = [shard_network(network, partition, part) for part in range(3)]
    group = SimpleNamespace(limit=2**31 - 1, size=3, allreduce=lambda array, how: None)
    chosen, trained = [], []
    for shard, plans in zip(shards, plans_of_all(shards), strict=True):
        width = [int((owners == shard.part).sum()) for owners in shard.owners]
        stub = SimpleNamespace(_width=width, threads=threads, group=group, droppable_from=99)
        chosen.append(CompiledPlan._choose_tiling(stub, plans, images).columns)
        trained.append(CompiledEngine._choose_tile(stub, plans, images, threads))
    assert tiles_of(platform_of(), work, images, threads).columns == min(chosen)
    assert training_columns(platform_of(), work, images, threads) == min(trained)


def test_tiles_are_dealt_to_streams_one_by_one() -> None:
    work = SparseWork.whole(SparseNetwork([random_layer(np.random.default_rng(1), 8, 8)]))
    for images in range(1, 60):
        for threads in (1, 2, 3):
            tiles = tiles_of(platform_of(), work, images, threads, tile=5)
            every = [min(5, images - first) for first in range(0, images, 5)]
            streams = [every[stream::threads] for stream in range(min(threads, len(every)))]
            longest = max(streams, key=sum)
            assert list(tiles.widths) == longest
            assert (tiles.total, tiles.threads) == (len(every), len(streams))


def test_the_platforms_caches_are_the_machines() -> None:
    cpu, ours = this_machine(), machine_of(platform_of())
    assert (ours.l2, ours.l3, ours.l3_shared_by) == (cpu.l2, cpu.l3, cpu.l3_shared_by)


def test_memory_is_that_of_the_rank_with_the_most() -> None:
    network = make_network(8, most=90)
    work = SparseWork.of(network, by_hand(network, 4, 1))
    found = predict_inference(platform_of(), work, 200, tile=48, threads=2, nonzeros_per_image=9)
    memory = inference_bytes(work, 200, 48, 2, 9)
    assert found.memory_bytes == memory.max()
    assert (memory > packed_bytes(work) + 2 * tile_bytes(work, 48)).all()


# Exchanges -------------------------------------------------------------------------------------


def messages_between(*triples, ranks=8) -> SparseWork:
    work = SparseWork.of(
        SparseNetwork([random_layer(np.random.default_rng(1), ranks, ranks, density=0.0)]),
        [np.arange(ranks)] * 2,
        ranks,
    )
    return changed(work, sends=(Messages.of(*np.array(triples).T),))


def test_transfers_by_hand() -> None:
    platform = platform_of(overlap=0.25)  # ranks 0–3, 4–7 are on one node each
    work = messages_between((0, 1, 10), (0, 2, 30), (1, 5, 100), (2, 6, 60), (7, 0, 20))
    found = transfers_of(platform, work, 5)
    word = 4 * 5
    within = [1e-6 + word * n / 4e9 if n else 0.0 for n in (40, 10, 30, 0, 0, 0, 0, 0)]
    np.testing.assert_allclose(found.within[0], within)
    # The cards: 160 words leave the first node, 20 the second.
    far = 3e-6 + word * 160 / 1e9
    np.testing.assert_allclose(found.between[0], [far, far, far, 0, 0, far, far, far])
    out, into = [2, 1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 0, 0, 1, 1, 0]
    near = np.array([2, 1, 1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(found.processor[0], (np.add(out, into) - near) * 2e-7 + near * 1e-7)
    computing = np.full((1, 8), 1e-6)
    shown = np.maximum(found.within, found.between) - 0.25e-6
    np.testing.assert_allclose(found.exposed(computing), np.maximum(shown, 0))


def test_crowded_ranks_copy_and_start_more_slowly() -> None:
    work = messages_between((0, 1, 10), (1, 2, 10))
    usual = transfers_of(platform_of(per_node=8), work, 1)
    crowded = transfers_of(platform_of(per_node=8, processors=4), work, 1)
    np.testing.assert_allclose(crowded.processor, 2 * usual.processor)
    np.testing.assert_allclose(
        (crowded.within - usual.within)[0, :3], [10 * 4 / 4e9] * 3, rtol=1e-9
    )


def test_measured_exchanges_take_the_place_of_the_formula() -> None:
    table = {"bytes": [8, 800], "seconds": [2e-6, 4e-6]}
    many = [{"ranks": 8, "messages": 2, "bytes": [8, 800], "seconds": [3e-6, 7e-6]}]
    platform = platform_of(per_node=8, exchange=table, exchange_many=many)
    work = messages_between((0, 1, 100), (0, 2, 100), (3, 4, 200))
    found = transfers_of(platform, work, 2)
    assert found.within[0, :5] == pytest.approx([7e-6, 4e-6, 4e-6, 8e-6, 8e-6])
    assert not found.processor.any()
    bad = platform_of(per_node=8, exchange=table, exchange_many=[{"ranks": 8}])
    with pytest.raises(FormatError, match="exchange_many"):
        transfers_of(bad, work, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "cannot be divided"),
        ({"images": 2, "groups": 3}, "cannot be divided"),
        ({"images": 2, "groups": 0}, "groups must be at least 1"),
        ({"images": 2, "threads": 0}, "threads must be at least 1"),
        ({"images": 2, "tile": -1}, "tile must be at least 1"),
        ({"images": 99, "groups": 17}, "too many"),
    ],
)
def test_nonsense_is_refused(network, change, message) -> None:
    with pytest.raises(UsageError, match=message):
        predict_inference(platform_of(), SparseWork.whole(network), **change)
