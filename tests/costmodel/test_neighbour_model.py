"""Neighbour exchanges against numbers worked out by hand, and against a slow loop over messages."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.costmodel.neighbours import (
    exchange_seconds,
    message_seconds,
    messages_seconds,
    packing_seconds,
)
from sparsednn.costmodel.platform import Link, Node, Platform, Processor
from sparsednn.errors import FormatError, UsageError

#: α = 1 µs, 1 GB/s, o = 0.5 µs within a node; 2 µs, 4 GB/s, 1 µs between.
NEAR, FAR = Link(1e-6, 1e9, 5e-7, 0.0), Link(2e-6, 4e9, 1e-6, 0.5)
CORE = Processor("cpu", 1e11, 1e10, 1e6, 1e11, 1, 1, 0, 2e9)
TABLE = {"bytes": [1000, 100000], "seconds": [1e-5, 1e-3]}  # 10 ns/byte


def cluster(
    ranks: int = 2, nodes: int = 2, processors: int = 2, measured: dict[str, Any] | None = None
) -> Platform:
    node = Node(processors, ranks, 8e9, 2e10)
    return Platform("toy", "made up", CORE, node, nodes, NEAR, FAR, measured=measured or {})


def test_messages_within_a_node_by_hand() -> None:
    platform = cluster(ranks=4, processors=4)
    # 0 → 1: 1000 bytes, 0 → 2: 3000, 2 → 0: 2000; rank 3 has nothing.
    found = messages_seconds(platform, 4, [0, 0, 2], [1, 2, 0], [1000, 3000, 2000])
    # o·messages + α + max(out, in)/B in µs: 3·0.5 + 1 + 4; 0.5 + 1 + 1; 2·0.5 + 1 + 3; none.
    assert found == pytest.approx([6.5e-6, 2.5e-6, 5e-6, 0.0])


def test_messages_between_nodes_share_the_card() -> None:
    # Ranks 0, 1 | 2, 3. 0 → 2: 4000, 1 → 3: 8000 and 0 → 1: 1000.
    found = messages_seconds(cluster(), 4, [0, 1, 0], [2, 3, 1], [4000, 8000, 1000])
    # Between nodes all have the card for 2 + 12000/4e9 = 5 µs. Within, ranks 0 and 1 take 1 + 1 µs,
    # behind it. Overheads: 1 for each message between, 0.5 within.
    assert found == pytest.approx([6.5e-6, 6.5e-6, 6e-6, 6e-6])


def test_a_long_message_within_a_node_takes_longer_than_the_card() -> None:
    found = messages_seconds(cluster(), 4, [0, 0], [2, 1], [4000, 50000])
    # Within: 1 + 50 µs, between: 2 + 1 µs; the longer one, and 1.5 µs of overheads.
    assert found[0] == pytest.approx(52.5e-6)
    assert found[1] == pytest.approx(51.5e-6)
    assert found[2] == pytest.approx(4e-6)


def test_crowded_processors_copy_slower() -> None:
    platform = cluster(ranks=4, processors=2)
    found = messages_seconds(platform, 4, [0, 1, 2, 3], [1, 2, 3, 0], [1000] * 4)
    assert found == pytest.approx([2 * 2 * 0.5e-6 + 1e-6 + 2 * 1e-6] * 4)


def test_measured_exchanges_within_a_node_add_up() -> None:
    platform = cluster(ranks=4, processors=4, measured={"exchange": TABLE})
    found = messages_seconds(platform, 4, [0, 0, 2], [1, 2, 0], [1000, 3000, 2000])
    # 10 + 30 µs sent, 20 received; 10 received; 20 sent, 30 received.
    assert found == pytest.approx([40e-6, 10e-6, 30e-6, 0.0])


def test_measured_exchanges_are_scaled_and_crowded() -> None:
    platform = cluster(ranks=4, processors=2, measured={"exchange": TABLE})
    ring = ([0, 1, 2, 3], [1, 2, 3, 0], [2000] * 4)
    assert messages_seconds(platform, 4, *ring) == pytest.approx([2 * 20e-6] * 4)
    # 10 µs of latency, three times; 10 µs of bytes at half the speed.
    other = platform.scaled(link_latency=3.0, link_bandwidth=0.5)
    assert messages_seconds(other, 4, *ring) == pytest.approx([2 * 50e-6] * 4)
    measured = {"exchange": TABLE, "exchange_crowded": {**TABLE, "seconds": [3e-5, 3e-3]}}
    crowded = dataclasses.replace(platform, measured=measured)
    assert messages_seconds(crowded, 4, *ring) == pytest.approx([60e-6] * 4)
    assert messages_seconds(crowded, 2, [0, 1], [1, 0], [2000, 2000]) == pytest.approx([20e-6] * 2)


def test_measured_exchanges_hide_behind_the_card() -> None:
    platform = cluster(measured={"exchange": TABLE})
    found = messages_seconds(platform, 4, [0, 1, 0], [2, 3, 1], [4_000_000, 8_000_000, 1000])
    # Rank 0: 10 µs within, 2 + 3000 µs of the card, 1 µs of overhead.
    assert found[0] == pytest.approx(3003e-6)


def test_one_message() -> None:
    platform = cluster()
    # 2o + α + n/B
    assert message_seconds(platform, 1000) == pytest.approx(1e-6 + 1e-6 + 1e-6)
    assert message_seconds(platform, 4000, FAR) == pytest.approx(2e-6 + 2e-6 + 1e-6)
    assert message_seconds(platform, [0, 1000], NEAR) == pytest.approx([2e-6, 3e-6])
    measured = cluster(measured={"exchange": TABLE})
    assert message_seconds(measured, [10, 1000, 2000, 200000]) == pytest.approx(
        [10e-6, 10e-6, 20e-6, 2e-3]
    )
    assert message_seconds(measured, 4000, FAR) == message_seconds(platform, 4000, FAR)


def test_packing() -> None:
    assert packing_seconds(cluster(), 1e6) == pytest.approx(2e6 / 1e11)
    rates = {"pack_seconds_per_byte": 1e-10, "pack_seconds_per_row": 1e-8}
    measured = cluster(measured={"exchange": {**TABLE, **rates}})
    assert packing_seconds(measured, 1e6, 100) == pytest.approx(1e-4 + 1e-6)
    assert packing_seconds(measured.scaled(flops=2.0), 1e6, 100) == pytest.approx(101e-6 / 2)
    assert packing_seconds(cluster(measured={"exchange": TABLE}), 1e6) == pytest.approx(2e-5)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (3, "a table is needed, found 3"),
        ({"bytes": [8]}, "seconds: a list of numbers is needed, it is missing"),
        ({"bytes": [8, 4], "seconds": [1.0, 1.0]}, "bytes: ascending sizes are needed"),
        ({**TABLE, "pack_seconds_per_row": -1.0}, "pack_seconds_per_row: a positive number is"),
        ({**TABLE, "pack_seconds_per_byte": "x"}, "pack_seconds_per_byte: a positive number is"),
    ],
)
def test_a_table_that_is_none_is_refused(table: Any, message: str) -> None:
    with pytest.raises(FormatError, match=rf"platform toy: \[measured.exchange\] {message}"):
        message_seconds(cluster(measured={"exchange": table}), 8)


# Totals


def test_totals_on_one_node_equal_messages() -> None:
    platform = cluster(ranks=4, processors=4)
    found = exchange_seconds(
        platform, [4000, 0, 2000, 0], [2000, 1000, 3000, 0], [2, 0, 1, 0], [1, 1, 1, 0]
    )
    assert found == pytest.approx([6.5e-6, 2.5e-6, 5e-6, 0.0])


def test_totals_on_several_nodes_are_spread_evenly() -> None:
    # Everybody sends 1200 bytes to each of three others: on nodes of two, two of them are far.
    every = [(a, b) for a in range(4) for b in range(4) if a != b]
    exact = messages_seconds(
        cluster(), 4, [a for a, _ in every], [b for _, b in every], [1200] * 12
    )
    totals = ([3600] * 4, [3600] * 4, [3] * 4, [3] * 4)
    assert exchange_seconds(cluster(), *totals) == pytest.approx(exact)
    measured = cluster(measured={"exchange": TABLE})
    exact = messages_seconds(measured, 4, [a for a, _ in every], [b for _, b in every], [1200] * 12)
    assert exchange_seconds(measured, *totals) == pytest.approx(exact)


def test_totals_with_a_given_remote_part() -> None:
    totals = ([3600] * 4, [3600] * 4, [3] * 4, [3] * 4)
    # All far: 6 messages of 1 µs, 2 + 7200/4e9 µs of the card. None: 6·0.5 + 1 + 3.6.
    assert exchange_seconds(cluster(), *totals, remote=1) == pytest.approx([6e-6 + 3.8e-6] * 4)
    assert exchange_seconds(cluster(), *totals, remote=0) == pytest.approx([3e-6 + 4.6e-6] * 4)
    with pytest.raises(UsageError, match="a remote part from 0 to 1 is needed, found 2"):
        exchange_seconds(cluster(), *totals, remote=2)


# Properties


def _slow(platform: Platform, ranks: int, messages: list[tuple[int, int, int]]) -> list[float]:
    """The formula of the module, rank by rank."""
    per, crowding = platform.node.ranks, platform.crowding(ranks)
    node = [rank // per for rank in range(ranks)]
    seconds = []
    for rank in range(ranks):
        mine = [m for m in messages if rank in m[:2] and m[0] != m[1]]
        near = [m for m in mine if node[m[0]] == node[m[1]]]
        far = [m for m in mine if node[m[0]] != node[m[1]]]
        total = crowding * (NEAR.overhead_seconds * len(near) + FAR.overhead_seconds * len(far))
        parts = [0.0]
        if near:
            busiest = max(sum(m[2] for m in near if m[end] == rank) for end in (0, 1))
            parts.append(NEAR.latency_seconds + crowding * busiest / NEAR.bandwidth)
        if far:
            here = node[rank]
            out = sum(n for a, b, n in messages if node[a] == here != node[b])
            into = sum(n for a, b, n in messages if node[a] != here == node[b])
            parts.append(FAR.latency_seconds + max(out, into) / FAR.bandwidth)
        seconds.append(total + max(parts))
    return seconds


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Platform, int, list[tuple[int, int, int]]]:
    platform = cluster(draw(st.integers(1, 4)), 8, draw(st.integers(1, 4)))
    ranks = draw(st.integers(2, platform.max_ranks + 1))
    rank = st.integers(0, ranks - 1)
    message = st.tuples(rank, rank, st.integers(0, 10**6)).filter(lambda m: m[0] != m[1])
    return platform, ranks, draw(st.lists(message, max_size=30))


def _columns(messages: list[tuple[int, int, int]]) -> tuple[list[int], list[int], list[int]]:
    return ([m[0] for m in messages], [m[1] for m in messages], [m[2] for m in messages])


@given(exchanges())
@settings(deadline=None)
def test_it_equals_a_loop_over_ranks(
    exchange: tuple[Platform, int, list[tuple[int, int, int]]],
) -> None:
    platform, ranks, messages = exchange
    found = messages_seconds(platform, ranks, *_columns(messages))
    assert found == pytest.approx(_slow(platform, ranks, messages))


@given(exchanges(), st.booleans())
@settings(deadline=None)
def test_one_more_message_is_never_quicker_for_anybody(
    exchange: tuple[Platform, int, list[tuple[int, int, int]]], measured: bool
) -> None:
    platform, ranks, messages = exchange
    if measured:
        platform = dataclasses.replace(platform, measured={"exchange": TABLE})
    all_of_them = messages_seconds(platform, ranks, *_columns(messages))
    fewer = messages_seconds(platform, ranks, *_columns(messages[:-1]))
    assert (all_of_them >= fewer * (1 - 1e-12)).all()


@given(exchanges(), st.booleans())
@settings(deadline=None)
def test_backwards_it_takes_as_long(
    exchange: tuple[Platform, int, list[tuple[int, int, int]]], measured: bool
) -> None:
    # The fold of training sends the expand's messages back.
    platform, ranks, messages = exchange
    if measured:
        platform = dataclasses.replace(platform, measured={"exchange": TABLE})
    source, target, nbytes = _columns(messages)
    forward = messages_seconds(platform, ranks, source, target, nbytes)
    assert messages_seconds(platform, ranks, target, source, nbytes) == pytest.approx(forward)


def test_nobody_sends_anything() -> None:
    assert messages_seconds(cluster(), 4, [], [], []).tolist() == [0.0] * 4
    assert exchange_seconds(cluster(), *np.zeros((4, 4))).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (([0], [1, 2], [8]), "as many sources, targets and bytes"),
        (([0], [4], [8]), "ranks from 0 to 3"),
        (([-1], [1], [8]), "ranks from 0 to 3"),
        (([0], [1], [-8]), "bytes from 0"),
        (([0], [1], [np.nan]), "bytes from 0"),
    ],
)
def test_messages_that_are_none_are_refused(messages: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        messages_seconds(cluster(), 4, *messages)


def test_totals_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="one figure for each rank"):
        exchange_seconds(cluster(), [1, 2], [1, 2], [1, 2], [1])
    with pytest.raises(UsageError, match="bytes and messages from 0"):
        exchange_seconds(cluster(), [-1], [1], [1], [1])


def test_two_nodes_need_a_network() -> None:
    platform = dataclasses.replace(cluster(nodes=1), between=None)
    with pytest.raises(UsageError, match=r"without \[links.between\]"):
        messages_seconds(platform, 4, [0], [3], [8])
