"""Collectives' formulas against numbers worked out by hand, their limits, and the choice by size.

With α = 1 µs, β = 1 ns/byte, γ = 0.5 ns/byte throughout the hand-computed values.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.costmodel.collectives import (
    ALGORITHMS,
    VERBS,
    allgather,
    allreduce,
    alltoall,
    barrier,
    broadcast,
    choose,
    reduce,
    reduce_scatter,
)
from sparsednn.costmodel.collectives.folding import gathering
from sparsednn.costmodel.collectives.measured import MEASURED, collective_seconds
from sparsednn.costmodel.collectives.wire import Wire
from sparsednn.costmodel.platform import Link, Node, Platform, Processor, load_platform
from sparsednn.errors import FormatError, UsageError

A, B, G = 1e-6, 1e-9, 5e-10
WIRE = Wire(A, B, G)
N = 6000.0  # bytes; nβ = 6 µs, nγ = 3 µs

EVERY = [(verb, name) for verb in VERBS for name in ALGORITHMS[verb]]
MOVING = [(verb, name) for verb, name in EVERY if verb != "barrier"]
#: Algorithms without a fold, whose time only grows with more ranks.
GROWING = [
    ("broadcast", "binomial"),
    ("broadcast", "scatter-allgather"),
    ("broadcast", "pipelined"),
    ("reduce", "binomial"),
    ("reduce", "pipelined"),
    ("allreduce", "ring"),
    ("allgather", "ring"),
    ("allgather", "bruck"),
    ("reduce_scatter", "ring"),
    ("reduce_scatter", "pairwise"),
    ("all_to_all", "pairwise"),
    ("barrier", "dissemination"),
]

RANKS = st.integers(1, 300)
BYTES = st.floats(0, 1e9)
WIRES = st.builds(
    Wire,
    st.floats(1e-8, 1e-3),
    st.floats(1e-12, 1e-6),
    st.floats(0, 1e-8),
    st.just(1),
)


HAND = [
    # p = 4: 6·1 + 6/4·6 + 3/4·3 = 6 + 9 + 2.25 µs
    (allreduce.ring, 4, 17.25e-6),
    # p = 3: 4·1 + 4/3·6 + 2/3·3 = 4 + 8 + 2
    (allreduce.ring, 3, 14e-6),
    # p = 4: 2(1 + 6 + 3)
    (allreduce.recursive_doubling, 4, 20e-6),
    # p = 5: q = 4; 20, a fold of 1 + 6 + 3, an unfold of 1 + 6
    (allreduce.recursive_doubling, 5, 37e-6),
    # p = 4: 4·1 + 2·3/4·6 + 3/4·3 = 4 + 9 + 2.25
    (allreduce.rabenseifner, 4, 15.25e-6),
    # p = 6: q = 4; 15.25 + (1 + 6 + 3) + (1 + 6)
    (allreduce.rabenseifner, 6, 32.25e-6),
    # p = 5: 3 steps of 1 + 6
    (broadcast.binomial, 5, 21e-6),
    # p = 4: (2 + 3)·1 + 2·3/4·6 = 5 + 9
    (broadcast.scatter_allgather, 4, 14e-6),
    # p = 3: S = √(1·6/1) = 2.45: S = 2 gives 3(1 + 3) = 12, S = 3 gives 4(1 + 2) = 12
    (broadcast.pipelined, 3, 12e-6),
    # p = 2: one segment, 1 + 6
    (broadcast.pipelined, 2, 7e-6),
    # p = 4: 2(1 + 6 + 3)
    (reduce.binomial, 4, 20e-6),
    # p = 4: 4·1 + 2·3/4·6 + 3/4·3
    (reduce.reduce_scatter_gather, 4, 15.25e-6),
    # p = 3: q = 2; 2·1 + 2·1/2·6 + 1/2·3 = 9.5, and a fold of 1 + 6 + 3
    (reduce.reduce_scatter_gather, 3, 19.5e-6),
    # p = 3: S = √(9/1) = 3: 4(1 + 3)
    (reduce.pipelined, 3, 16e-6),
    # p = 4: 3·1 + 3/4·6
    (allgather.ring, 4, 7.5e-6),
    # p = 4: 2·1 + 3/4·6
    (allgather.recursive_doubling, 4, 6.5e-6),
    # p = 3: q = 2; 1 + 1/2·6 = 4, a part in: 1 + 2, all back: 1 + 6
    (allgather.recursive_doubling, 3, 14e-6),
    # p = 5: 3·1 + 4/5·6
    (allgather.bruck, 5, 7.8e-6),
    # p = 4: 3·1 + 3/4·(6 + 3)
    (reduce_scatter.ring, 4, 9.75e-6),
    (reduce_scatter.pairwise, 4, 9.75e-6),
    # p = 4: 2·1 + 3/4·(6 + 3)
    (reduce_scatter.recursive_halving, 4, 8.75e-6),
    # p = 3: q = 2; 1 + 1/2·9 = 5.5, a fold of 1 + 6 + 3, a part back: 1 + 2
    (reduce_scatter.recursive_halving, 3, 18.5e-6),
    # p = 3: 2·1 + 2/3·6
    (alltoall.pairwise, 3, 6e-6),
    # p = 5: 3 steps
    (barrier.dissemination, 5, 3e-6),
]


@pytest.mark.parametrize(("cost", "ranks", "seconds"), HAND)
def test_against_values_worked_out_by_hand(cost: Any, ranks: int, seconds: float) -> None:
    assert cost(ranks, N, WIRE) == pytest.approx(seconds)


@pytest.mark.parametrize("ranks", [2, 4, 8, 64, 1024])
def test_closed_forms_at_powers_of_two(ranks: int) -> None:
    steps, part = math.log2(ranks), (ranks - 1) / ranks
    forms = {
        allreduce.ring: 2 * (ranks - 1) * A + 2 * part * N * B + part * N * G,
        allreduce.recursive_doubling: steps * (A + N * B + N * G),
        allreduce.rabenseifner: 2 * steps * A + 2 * part * N * B + part * N * G,
        broadcast.binomial: steps * (A + N * B),
        broadcast.scatter_allgather: (steps + ranks - 1) * A + 2 * part * N * B,
        reduce.binomial: steps * (A + N * B + N * G),
        reduce.reduce_scatter_gather: 2 * steps * A + 2 * part * N * B + part * N * G,
        allgather.ring: (ranks - 1) * A + part * N * B,
        allgather.recursive_doubling: steps * A + part * N * B,
        allgather.bruck: steps * A + part * N * B,
        reduce_scatter.ring: (ranks - 1) * A + part * N * (B + G),
        reduce_scatter.pairwise: (ranks - 1) * A + part * N * (B + G),
        reduce_scatter.recursive_halving: steps * A + part * N * (B + G),
        alltoall.pairwise: (ranks - 1) * A + part * N * B,
        barrier.dissemination: steps * A,
    }
    for cost, seconds in forms.items():
        assert cost(ranks, N, WIRE) == pytest.approx(seconds), cost


@given(RANKS.filter(lambda ranks: ranks > 1), st.floats(1, 1e9))
def test_the_ring_moves_twice_the_array_but_a_part(ranks: int, nbytes: float) -> None:
    # Bytes that leave a rank, as `comm.communicator` counts them: with β alone it is seconds.
    assert allreduce.ring(ranks, nbytes, Wire(0, 1)) == pytest.approx(
        2 * (ranks - 1) / ranks * nbytes
    )
    assert allgather.ring(ranks, nbytes, Wire(0, 1)) == pytest.approx((ranks - 1) / ranks * nbytes)


@given(st.integers(2, 5000), st.floats(1, 1e9))
def test_a_binomial_gather_moves_all_parts_but_the_roots(ranks: int, nbytes: float) -> None:
    assert gathering(ranks, nbytes, Wire(0, 1)) == pytest.approx((ranks - 1) / ranks * nbytes)
    assert gathering(ranks, nbytes, Wire(1, 0)) == math.ceil(math.log2(ranks))


@pytest.mark.parametrize(("verb", "name"), EVERY)
@given(nbytes=BYTES, wire=WIRES)
def test_one_rank_needs_no_time(verb: str, name: str, nbytes: float, wire: Wire) -> None:
    assert ALGORITHMS[verb][name](1, nbytes, wire) == 0


@pytest.mark.parametrize(("verb", "name"), MOVING)
@given(ranks=RANKS, wire=WIRES)
def test_no_bytes_need_no_time(verb: str, name: str, ranks: int, wire: Wire) -> None:
    assert ALGORITHMS[verb][name](ranks, 0, wire) == 0


@given(st.integers(2, 300), BYTES, WIRES)
def test_a_barrier_takes_time_without_bytes(ranks: int, nbytes: float, wire: Wire) -> None:
    assert barrier.dissemination(ranks, 0, wire) == barrier.dissemination(ranks, nbytes, wire) > 0


def _not_less(larger: float, smaller: float) -> bool:
    return larger >= smaller * (1 - 1e-12)


@pytest.mark.parametrize(("verb", "name"), EVERY)
@given(ranks=RANKS, nbytes=BYTES, wire=WIRES, factor=st.floats(1, 10))
def test_more_bytes_and_slower_wires_take_no_less(
    verb: str, name: str, ranks: int, nbytes: float, wire: Wire, factor: float
) -> None:
    cost = ALGORITHMS[verb][name]
    seconds = cost(ranks, nbytes, wire)
    assert _not_less(cost(ranks, nbytes * factor, wire), seconds)
    for name_of_figure in ("latency", "per_byte", "reduction"):
        slower = dataclasses.replace(
            wire, **{name_of_figure: getattr(wire, name_of_figure) * factor}
        )
        assert _not_less(cost(ranks, nbytes, slower), seconds)


@pytest.mark.parametrize(("verb", "name"), GROWING)
@given(ranks=RANKS, nbytes=st.floats(1, 1e9), wire=WIRES)
def test_more_ranks_take_no_less_where_nothing_folds(
    verb: str, name: str, ranks: int, nbytes: float, wire: Wire
) -> None:
    cost = ALGORITHMS[verb][name]
    assert _not_less(cost(ranks + 1, nbytes, wire), cost(ranks, nbytes, wire))


@pytest.mark.parametrize(("verb", "name"), EVERY)
@given(steps=st.integers(0, 11), nbytes=st.floats(1, 1e9), wire=WIRES)
def test_twice_the_ranks_take_no_less_at_powers_of_two(
    verb: str, name: str, steps: int, nbytes: float, wire: Wire
) -> None:
    cost = ALGORITHMS[verb][name]
    assert _not_less(cost(2 << steps, nbytes, wire), cost(1 << steps, nbytes, wire))


@given(st.integers(2, 40), st.floats(1, 1e8), WIRES)
def test_no_number_of_segments_beats_the_one_that_is_taken(
    ranks: int, nbytes: float, wire: Wire
) -> None:
    for cost in (broadcast.pipelined, reduce.pipelined):
        best = cost(ranks, nbytes, wire)
        for segments in (1, 2, 3, 5, 8, 30, 100, 1000, 10**5):
            assert _not_less(cost(ranks, nbytes, wire, segments), best)


def test_a_pipeline_of_given_segments() -> None:
    # p = 5, S = 10: (5 - 2 + 10)(1 + 0.6) µs
    assert broadcast.pipelined(5, N, WIRE, 10) == pytest.approx(13 * 1.6e-6)
    assert broadcast.pipelined(5, N, Wire(0, B)) == pytest.approx(N * B, rel=1e-3)
    for cost in (broadcast.pipelined, reduce.pipelined):
        with pytest.raises(UsageError, match="at least 1 segment, found 0"):
            cost(5, N, WIRE, 0)


@pytest.mark.parametrize(("verb", "name"), EVERY)
def test_what_is_no_call_is_refused(verb: str, name: str) -> None:
    cost = ALGORITHMS[verb][name]
    with pytest.raises(UsageError, match="at least 1 rank, found 0"):
        cost(0, N, WIRE)
    for nbytes in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError, match="a number of bytes from 0"):
            cost(4, nbytes, WIRE)


# The choice


@pytest.mark.parametrize("verb", VERBS)
@given(ranks=RANKS, nbytes=BYTES, wire=WIRES)
def test_no_algorithm_beats_the_choice(verb: str, ranks: int, nbytes: float, wire: Wire) -> None:
    choice = choose(verb, ranks, nbytes, wire)
    costs = {name: cost(ranks, nbytes, wire) for name, cost in ALGORITHMS[verb].items()}
    assert choice.seconds == min(costs.values()) == costs[choice.algorithm]


def test_an_unknown_verb_lists_them() -> None:
    with pytest.raises(UsageError, match="no collective 'scan'; there are broadcast, reduce,"):
        choose("scan", 4, 8, WIRE)


@pytest.mark.parametrize(
    ("verb", "small", "large"),
    [
        ("allreduce", {"recursive doubling"}, {"rabenseifner", "ring"}),
        ("broadcast", {"binomial"}, {"scatter-allgather", "pipelined"}),
        ("reduce", {"binomial"}, {"reduce-scatter-gather", "pipelined"}),
    ],
)
@pytest.mark.parametrize("ranks", [8, 16, 128])
def test_short_arrays_go_in_few_steps_and_long_ones_in_few_bytes(
    verb: str, small: set[str], large: set[str], ranks: int
) -> None:
    assert choose(verb, ranks, 8, WIRE).algorithm in small
    assert choose(verb, ranks, 1e9, WIRE).algorithm in large


def test_where_the_ring_takes_over_from_folds() -> None:
    # With p = 6 the others fold. Ring: 10α + (10/6 β + 5/6 γ)n; doubling: 4α + 4nβ + 3nγ.
    # Equal at n = 6α/(14/6 β + 13/6 γ) = 6000/(2.333 + 1.083) = 1756 bytes.
    equal = 6 * A / (14 / 6 * B + 13 / 6 * G)
    assert equal == pytest.approx(1756, abs=1)
    assert choose("allreduce", 6, equal * 0.99, WIRE).algorithm == "recursive doubling"
    assert choose("allreduce", 6, equal * 1.01, WIRE).algorithm == "ring"


# Several nodes


def test_far_steps_of_all_ranks_share_the_card() -> None:
    near = Wire(A, B, G)
    wire = Wire(3e-6, 2e-9, G, members=4, near=near)
    # 8 ranks on 2 nodes. Two steps within nodes of 1 + 6 + 3, and one between of 3 + 4·12 + 3 µs.
    assert allreduce.recursive_doubling(8, N, wire) == pytest.approx(20e-6 + 54e-6)
    # Halving, near first: (1 + 3 + 1.5) + (1 + 1.5 + 0.75) + (3 + 4·1.5 + 0.375); then the same
    # without sums: (1 + 3) + (1 + 1.5) + (3 + 6).
    assert allreduce.rabenseifner(8, N, wire) == pytest.approx(18.125e-6 + 15.5e-6)
    # A ring has one message from node to node in each step: 14·3 + 14/8·12 + 7/8·3.
    assert allreduce.ring(8, N, wire) == pytest.approx(42e-6 + 21e-6 + 2.625e-6)
    # Pairwise: 3 steps of 1 + 0.75, and 4 of 3 + 4·1.5.
    assert alltoall.pairwise(8, N, wire) == pytest.approx(5.25e-6 + 36e-6)
    # A tree has one message: 2 steps of 1 + 6, one of 3 + 12.
    assert broadcast.binomial(8, N, wire) == pytest.approx(14e-6 + 15e-6)


@pytest.mark.parametrize(("verb", "name"), EVERY)
@given(ranks=RANKS, nbytes=BYTES, wire=WIRES, members=st.integers(1, 64))
def test_sharing_a_card_is_never_quicker(
    verb: str, name: str, ranks: int, nbytes: float, wire: Wire, members: int
) -> None:
    cost = ALGORITHMS[verb][name]
    shared = dataclasses.replace(wire, members=members)
    assert _not_less(cost(ranks, nbytes, shared), cost(ranks, nbytes, wire))


# Measured tables


def table(verb: str, ranks: int, **more: Any) -> dict[str, Any]:
    return {"verb": verb, "ranks": ranks, "bytes": [100, 10000], "seconds": [1e-5, 1e-3], **more}


def server(measured: dict[str, Any], ranks: int = 4, processors: int = 2) -> Platform:
    return Platform(
        "toy", "made up", Processor("cpu", 1e11, 1e10, 1e6, 1e11, 1, 1, 0, 2e9),
        Node(processors, ranks, 8e9, 2e10), 4, Link(1e-6, 1e9, 0, 0), Link(2e-6, 1e9, 0, 0),
        measured=measured,
    )  # fmt: skip


def test_a_measured_collective_is_taken_where_it_was_measured() -> None:
    platform = server({"collectives": [table("allreduce", 2), table("barrier", 2)]})
    found = collective_seconds(platform, "allreduce", 2, 1000)
    assert found.algorithm == MEASURED
    assert found.seconds == pytest.approx(1e-4)
    assert collective_seconds(platform, "barrier", 2, 0).seconds == pytest.approx(1e-5)
    assert collective_seconds(platform, "allreduce", 2, 0).seconds == 0
    for verb, ranks, stride in (("allreduce", 3, 1), ("allreduce", 2, 4), ("broadcast", 2, 1)):
        other = collective_seconds(platform, verb, ranks, 1000, stride)
        assert other == choose(verb, ranks, 1000, platform.wire(ranks, stride))


def test_a_measured_collective_of_another_machine_is_scaled() -> None:
    platform = server({"collectives": [table("allreduce", 2)]})
    other = platform.scaled(link_latency=3.0, link_bandwidth=2.0)
    # Of 100 µs, 10 are latency: 3·10 + 90/2.
    assert collective_seconds(other, "allreduce", 2, 1000).seconds == pytest.approx(75e-6)


def test_groups_are_taken_from_groups_if_there_are_any() -> None:
    measured = {
        "collectives": [table("allreduce", 2)],
        "collectives_started": [table("allreduce", 2, seconds=[2e-5, 2e-3])],
        "collectives_groups": [
            table("allreduce", 2, job=4, seconds=[4e-5, 4e-3]),
            table("start_allreduce", 2, job=4, seconds=[8e-5, 8e-3]),
        ],
    }
    platform = server(measured)

    def seconds(**more: Any) -> float:
        return collective_seconds(platform, "allreduce", 2, 1000, **more).seconds

    assert seconds() == pytest.approx(1e-4)
    assert seconds(started=True) == pytest.approx(2e-4)
    assert seconds(job=4) == pytest.approx(4e-4)
    assert seconds(job=4, started=True) == pytest.approx(8e-4)
    # Three busy ranks on two processors, not measured: half as long again.
    assert seconds(job=3) == pytest.approx(1.5e-4)
    assert collective_seconds(server({}), "allreduce", 2, 1000, started=True) == choose(
        "allreduce", 2, 1000, platform.wire(2)
    )


@pytest.mark.parametrize(
    ("model", "tables", "message"),
    [
        ("collectives", 3, "a list of tables is needed"),
        ("collectives", [3], "table 1: needs bytes, ranks, seconds, verb, and nothing else"),
        ("collectives", [table("allreduce", 2, job=2)], "table 1: needs bytes, ranks,"),
        ("collectives", [table("scan", 2)], "table 1: verb: one of broadcast"),
        ("collectives", [table("start_allreduce", 2)], "table 1: verb: one of broadcast"),
        ("collectives", [table("reduce", 2), table("allreduce", 1)], "table 2: ranks: a whole"),
        ("collectives", [table("allreduce", 2, bytes=[8])], r"table 1 \(allreduce, 2 ranks\): byt"),
        ("collectives_groups", [table("allreduce", 2)], "table 1: needs bytes, job, ranks,"),
        ("collectives_groups", [table("allreduce", 2, job=1)], "table 1: job: at least its 2"),
    ],
)
def test_a_table_that_is_none_is_refused(model: str, tables: Any, message: str) -> None:
    platform = server({model: tables})
    with pytest.raises(FormatError, match=rf"platform toy: \[measured.{model}\] {message}"):
        collective_seconds(platform, "allreduce", 2, 1000, job=4)


def test_documented_platforms_answer_for_every_verb() -> None:
    for name, verb in itertools.product(("two-core-server", "infiniband-128"), VERBS):
        platform = load_platform(name)
        ranks = platform.max_ranks
        assert collective_seconds(platform, verb, ranks, 1e6).seconds > 0
        assert collective_seconds(platform, verb, 2, 1e6, ranks // 2).seconds > 0
