"""Seconds of blocks: measured tables, rooflines, limits, nonsense in platform files."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.costmodel.calibration.engines import random_network
from sparsednn.costmodel.calibration.linked import linked_network
from sparsednn.costmodel.calibration.sparse import block_matrix
from sparsednn.costmodel.platform import Platform, load_platform
from sparsednn.costmodel.sparse.kernels import (
    HEIGHTS,
    KINDS,
    SMALL,
    BlockCosts,
    SparseRates,
    panels_of,
)
from sparsednn.costmodel.sparse.linked import Linked, linked_costs
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.errors import FormatError
from sparsednn.kernels.microkernel import LANES

PLATFORM = load_platform("two-core-server")


def costs(kind: str) -> dict[str, Any]:
    """Two levels; base 10 and 20 ns, slope height x vectors ns, three times that far away."""
    panels = KINDS[kind]
    slope = np.multiply.outer(np.array(HEIGHTS, float), np.array(panels, float)) * 1e-9
    ones = np.ones((len(HEIGHTS), len(panels)))
    return BlockCosts(
        panels,
        np.array([[1e4] * len(panels), [1e6] * len(panels)]),
        np.stack([10e-9 * ones, 20e-9 * ones]),
        np.stack([slope, 3 * slope]),
    ).as_table()


def measured(**changes: Any) -> Platform:
    """A platform with these tables."""
    table = {kind: costs(kind) for kind in KINDS} | {"small": {"run": 5e-6}} | changes
    return replace(PLATFORM, measured={"sparse": table})


@given(st.integers(1, 4000), st.sampled_from(sorted(KINDS)))
def test_panels_cover_the_columns(columns: int, kind: str) -> None:
    panels = panels_of(columns, kind)
    vectors = sum(width * count for width, count in panels.items())
    assert vectors == -(-columns // 16)
    assert set(panels) <= set(KINDS[kind])


def test_panels_are_those_of_the_compiled_loop() -> None:
    if LANES != 16:
        pytest.skip("vectors of another length here")
    for columns in range(1, 400):
        left, found = -(-columns // LANES), {}
        while left:  # as in kernels.tiles.multiply_layer
            v = 2 if left == 4 else min(3, left)
            found[v] = found.get(v, 0) + 1
            left -= v
        assert panels_of(columns) == found


def test_a_layer_by_hand() -> None:
    rates = SparseRates.of(measured())
    # Two blocks of 8 rows with 32 columns each, one of 1 row with 5; 96 columns are 2 panels of 3.
    blocks, lengths = np.array([1, 0, 0, 2]), np.array([5, 0, 0, 64])
    near = rates.layer_seconds(blocks, lengths, 96, 1e4)
    assert near == pytest.approx(2 * (3 * 10e-9 + 5 * 3e-9 + 64 * 24e-9))
    far = rates.layer_seconds(blocks, lengths, 96, 1e6)
    assert far == pytest.approx(2 * (3 * 20e-9 + 3 * (5 * 3e-9 + 64 * 24e-9)))
    middle = rates.layer_seconds(blocks, lengths, 96, 1e5)  # half way in the logarithm
    assert middle == pytest.approx((near + far) / 2)
    # All blocks but the first of their group find their activations near.
    again = rates.layer_seconds(blocks, lengths, 96, 1e6, again=1.0)
    assert again == pytest.approx(near)


def test_limits_and_speed() -> None:
    platform = measured()
    rates = SparseRates.of(platform)
    blocks, lengths = np.array([[3, 0, 1, 2]]), np.array([[30, 0, 8, 64]])
    assert rates.layer_seconds(blocks, lengths, 0, 1e4).tolist() == [0.0]
    assert rates.layer_seconds(0 * blocks, 0 * lengths, 48, 1e4).tolist() == [0.0]
    twice = SparseRates.of(platform.scaled(flops=2.0))
    slow, quick = (one.layer_seconds(blocks, lengths, 48, 1e4) for one in (rates, twice))
    assert quick == pytest.approx(slow / 2)
    single = rates.layer_seconds(blocks, lengths, 1, 1e4, "sampled")
    assert single == pytest.approx(rates.layer_seconds(blocks, lengths, 1, 1e4, "outer"))


@given(
    st.lists(st.integers(0, 50), min_size=4, max_size=4),
    st.integers(1, 200),
    st.integers(1, 400),
    st.sampled_from(sorted(KINDS)),
    st.booleans(),
)
def test_more_work_takes_longer(
    blocks: list[int], length: int, columns: int, kind: str, tables: bool
) -> None:
    rates = SparseRates.of(measured() if tables else PLATFORM)
    some = np.array(blocks)
    one = rates.layer_seconds(some, some * length, columns, 2e5, kind)
    for more in (
        rates.layer_seconds(some + 1, (some + 1) * length, columns, 2e5, kind),
        rates.layer_seconds(some, some * (length + 1), columns, 2e5, kind),
        rates.layer_seconds(some, some * length, columns + 160, 2e5, kind),
        rates.layer_seconds(some, some * length, columns, 2e7, kind),
    ):
        assert more >= one * (1 - 1e-12)


def test_roofline_of_a_full_block() -> None:
    processor = PLATFORM.processor
    rates = SparseRates.of(PLATFORM)
    lengths = np.array([0, 0, 0, 10_000])
    found = rates.layer_seconds(np.zeros(4, int), lengths, 48, 1000.0)
    flops = 2 * 8 * 48 * 10_000 / (processor.flops * processor.sparse_efficiency)
    loads = 4 * (48 + 8) * 10_000 / processor.cache_bandwidth
    assert found == pytest.approx(max(flops, loads))


def test_weights_that_do_not_stay() -> None:
    rates = replace(SparseRates.of(PLATFORM), last_cache=32e6)
    cache = PLATFORM.processor.cache_bytes
    assert rates.stream_seconds(1e6, 0.4 * cache) == 0
    near, far = rates.streamed(1e6, 4e6)
    assert (near, far) == (1e6, 0)
    near, far = rates.streamed(1e6, 1e9)
    assert (near, far) == (0, 1e6)
    assert rates.crowded_out(0.3 * cache) == 0
    assert rates.crowded_out(3 * cache) == 1


def test_busy_neighbours_and_turns() -> None:
    rates = replace(SparseRates.of(PLATFORM), busy=1.2)
    assert rates.slowdown(1) == 1
    assert rates.slowdown(2) == pytest.approx(1.2)
    assert rates.slowdown(4) == pytest.approx(2.4)  # two cores


def test_parameters_by_size() -> None:
    table = {"sizes": [1e4, 1e6], **{name: [1e-10, 3e-10] for name in ("sgd", "momentum", "adam")}}
    rates = SparseRates.of(measured(parameters=table))
    assert rates.parameter_seconds("sgd", 1e4) == pytest.approx(1e-6)
    assert rates.parameter_seconds("adam", 1e5) == pytest.approx(1e5 * 2e-10)
    assert rates.parameter_seconds("momentum", 1e9) == pytest.approx(1e9 * 3e-10)
    plain = SparseRates.of(PLATFORM)
    assert plain.parameter_seconds("sgd", 10) == pytest.approx(10 * SMALL["sgd_parameter"][0])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"forward": None}, r"\[measured.sparse.forward\]"),
        ({"forward": {"panels": [1]}}, "working_set_bytes"),
        ({"small": {"run": -1.0}}, "run: seconds are needed, found -1.0"),
        ({"small": {"run": "long"}}, "run: seconds are needed, found 'long'"),
        ({"busy": 0.5}, "busy: a number from 1 on is needed, found 0.5"),
        ({"team_factor": float("nan")}, "team_factor"),
        ({"parameters": {"sizes": [2, 1]}}, "ascending sizes"),
    ],
)
def test_nonsense_is_told(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(FormatError, match=says):
        SparseRates.of(measured(**changes))


def test_a_missing_kind_is_told() -> None:
    with pytest.raises(FormatError, match="transposed is missing"):
        SparseRates.of(replace(PLATFORM, measured={"sparse": {"forward": costs("forward")}}))


def test_linked_costs() -> None:
    names = ("others", "blocks", "exchanges", "layer_seconds", "seconds_per_byte")
    figures = dict(zip(names, (1.5, 1.2, 2.0, 1e-6, 1e-10), strict=True))
    table = [{"kind": "training", "ranks": ranks, **figures} for ranks in (2, 4)]
    table[1]["blocks"] = 1.9
    platform = replace(PLATFORM, measured={"linked": table})
    assert linked_costs(platform, "training", 2, 2) == Linked(*figures.values())
    assert linked_costs(platform, "training", 3, 3).blocks == 1.2  # the nearest, the smaller
    assert linked_costs(platform, "training", 4, 2).blocks == 1.9
    for nothing in (("training", 2, 1), ("inference", 2, 2), ("training", 8, 8)):
        assert linked_costs(platform, *nothing) == Linked()
    assert linked_costs(PLATFORM, "training", 2, 2) == Linked()
    bad = replace(PLATFORM, measured={"linked": [{"kind": "training", "ranks": 2}]})
    with pytest.raises(FormatError, match="linked"):
        linked_costs(bad, "training", 2, 2)


@pytest.mark.parametrize("height", HEIGHTS)
def test_networks_of_the_calibration_share_patterns(height: int) -> None:
    layer = block_matrix(64, 128, height, 24, np.random.default_rng(0))
    assert layer.shape == (64, 128)
    network = random_network(64, height, 24, 2, 0)
    work = SparseWork.whole(network, training=True)
    for blocks in (work.blocks[:, 0, 0], work.back_blocks[:, 0, 1]):
        at = HEIGHTS.index(height)
        # Neighbours may have drawn the same pattern; most have not.
        assert blocks[:, at].sum() >= 0.8 * blocks.sum()


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_linked_networks_send_what_they_share(ranks: int) -> None:
    network, owners = linked_network(ranks, 64, 1, 16, 10, 2)
    work = SparseWork.of(network, [owners] * 3, ranks)
    assert work.words_sent.max() <= 10 * (ranks - 1)
    assert work.words_sent.min() >= 5 * (ranks - 1)
