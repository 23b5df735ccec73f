"""The replay against the closed form, the longest path, and a readable replay of few events."""

from __future__ import annotations

import heapq
import json
from collections import defaultdict
from dataclasses import replace as changed

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from row_wise import by_hand, make_network
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.costmodel.platform import Link, Node, Platform, Processor
from sparsednn.costmodel.simulation import (
    Program,
    Step,
    critical_path,
    replay,
    simulate_inference,
    simulate_training,
)
from sparsednn.costmodel.sparse.inference import predict_inference
from sparsednn.costmodel.sparse.work import Messages, SparseWork
from sparsednn.errors import UsageError


def machine(
    *, per_node=64, nodes=64, latency=2e-6, bandwidth=1e9, overhead=1e-7, overlap=1.0, far=None
) -> Platform:
    link = Link(latency, bandwidth, overhead, overlap)
    return Platform(
        name="made up",
        source="this test",
        processor=Processor("cpu", 1e11, 2e10, 2**20, 1e11, 0.8, 0.6, 1e-5, 1e10),
        node=Node(per_node, per_node, 1e12, 1e13),
        nodes=nodes,
        within=link,
        between=link if far is None else far,
    )


def ring(ranks: int, layers: int, *, both: bool, per_rank: int = 6) -> SparseWork:
    """Ranks that are all alike: each row reads its own neuron and those of the next ranks."""
    neurons = ranks * per_rank
    shifts = [0, 1, per_rank] + ([neurons - per_rank] if both else [])
    columns = np.sort((np.arange(neurons)[:, None] + np.array(shifts)) % neurons, axis=1)
    # What follows the own neuron is the next rank's for the last row only: leave it out there.
    last = np.arange(neurons) % per_rank == per_rank - 1
    rows = [
        np.array([c for c in line if not (end and c == (row + 1) % neurons)])
        for row, (line, end) in enumerate(zip(columns, last, strict=True))
    ]
    indptr = np.cumsum([0, *(len(row) for row in rows)])
    indices = np.concatenate(rows)
    layer = SparseLayer(indptr, indices, np.ones(indices.size), neurons, activation="relu")
    owners = np.arange(neurons) // per_rank
    work = SparseWork.of(
        SparseNetwork([layer] * layers), [owners] * (layers + 1), ranks, training=True
    )
    # All send to the next rank first: in the order of ranks, the first and last would differ.
    one = work.sends[0]
    first = np.argsort((one.target - one.source) % ranks, kind="stable")
    one = Messages.of(one.source[first], one.target[first], one.words[first])
    return changed(work, sends=(one,) * layers)


@pytest.mark.parametrize("per_node", [64, 1])
@pytest.mark.parametrize("overlap", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("images", [1, 48, 3 * 48, 2 * 48 + 7])
def test_alike_ranks_take_what_the_closed_form_says(per_node, overlap, both, images) -> None:
    platform = machine(per_node=per_node, overlap=overlap)
    work = ring(6, 5, both=both)
    expected = predict_inference(platform, work, images, tile=48)
    found = simulate_inference(platform, work, images, tile=48)
    assert found.seconds == pytest.approx(expected.seconds, rel=1e-12)
    assert found.words == expected.words
    assert found.messages == len(work.sends[0]) * 5 * found.tiles
    assert np.ptp(found.finish) <= 1e-12 * found.seconds


@pytest.mark.parametrize("latency", [0.0, 1e-4])
@pytest.mark.parametrize("bandwidth", [1e7, 1e12])
def test_alike_whether_transfers_or_computing_is_longer(latency, bandwidth) -> None:
    platform = machine(latency=latency, bandwidth=bandwidth, overlap=0.5)
    work = ring(4, 3, both=True)
    expected = predict_inference(platform, work, 96, tile=48)
    found = simulate_inference(platform, work, 96, tile=48)
    assert found.seconds == pytest.approx(expected.seconds, rel=1e-12)


def test_one_rank_computes_and_nothing_else() -> None:
    work = SparseWork.whole(make_network(3))
    platform = machine()
    expected = predict_inference(platform, work, 100)
    found = simulate_inference(platform, work, 100)
    assert found.seconds == pytest.approx(expected.seconds, rel=1e-12)
    assert found.messages == 0
    assert found.waited.tolist() == found.handling.tolist() == [0.0]
    assert found.replay_seconds == pytest.approx(found.critical_seconds)


def test_tiles_that_are_left_out_take_as_long_as_the_last() -> None:
    platform = machine(overlap=0.3)
    work = ring(6, 4, both=True)
    every = simulate_inference(platform, work, 20 * 16 + 3, tile=16, most_tiles=50)
    some = simulate_inference(platform, work, 20 * 16 + 3, tile=16, most_tiles=3)
    assert (every.replayed, some.replayed, some.tiles) == (21, 4, 21)
    assert some.seconds == pytest.approx(every.seconds, rel=1e-9)


# Programs made by hand, and at random ----------------------------------------------------------


def step(ranks, messages, *, before=0.0, owned=0.0, after=0.0, word_bytes=4.0) -> Step:
    full = [np.broadcast_to(np.asarray(x, float), ranks).copy() for x in (before, owned, after)]
    sent = None if messages is None else Messages.of(*np.array(messages).reshape(-1, 3).T)
    return Step("forward", 1, *full, np.zeros(ranks), sent, word_bytes)


def program(steps, times=1) -> Program:
    order = np.tile(np.arange(len(steps)), times)
    return Program(steps[0].before.size, tuple(steps), order, len(steps))


def readable(platform: Platform, given: Program):
    """Finish times by a plain list of events; the same rules, none of the queues.

    What happens at exactly the same time may come in another order.
    """
    ranks, steps = given.ranks, [given.steps[k] for k in given.order]
    node = np.arange(ranks) // platform.node.ranks
    links = (platform.within, platform.between)
    events, now, at = [], np.zeros(ranks), np.zeros(ranks, int)
    ready, waits, left = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    sent_port, got_port = defaultdict(float), defaultdict(float)
    came = defaultdict(list)
    due = [np.zeros(ranks, int) for _ in steps]
    for s, one in enumerate(steps):
        for target in () if one.messages is None else one.messages.target:
            due[s][target] += 1
    sending = [False] * ranks

    def outgoing(r, s):
        m = steps[s].messages
        if m is None:
            return []
        mine = np.flatnonzero(m.source == r)
        return [(int(m.target[i]), float(m.words[i])) for i in mine]

    def begin(r):
        if at[r] == len(steps):
            return
        one = steps[at[r]]
        ready[r] = now[r] + one.before[r]
        waits[r] = left[r] = ready[r] + one.owned[r]
        sending[r] = bool(outgoing(r, at[r]))
        if sending[r]:
            heapq.heappush(events, (ready[r], 1, r, None))
        else:
            end(r)

    def end(r):
        s = at[r]
        if sending[r] or len(came[s, r]) < due[s][r]:
            return
        over = left[r]
        for kind, link in enumerate(links):
            mine = [(start, there, took) for k, start, there, took in came[s, r] if k == kind]
            if mine:
                last = max(there for _, there, _ in mine)
                start = max(ready[r], min(start for start, _, _ in mine))
                if start < waits[r]:
                    alone = link.latency_seconds + sum(took for _, _, took in mine)
                    lost = (1 - link.overlap) * (waits[r] - start)
                    last = max(last, min(last + lost, waits[r] + alone))
                over = max(over, last)
        now[r] = over + steps[s].after[r]
        at[r] += 1
        begin(r)

    for r in range(ranks):
        begin(r)
    while events:
        time, _, r, head = heapq.heappop(events)
        if head is None:
            for target, words in outgoing(r, at[r]):
                kind = int(node[r] != node[target])
                port = ("card", node[r]) if kind else r
                took = words * steps[at[r]].word_bytes / links[kind].bandwidth
                start = max(time, sent_port[port])
                sent_port[port] = start + took
                left[r] = max(left[r], start + took)
                told = (at[r], kind, start, took)
                heapq.heappush(events, (start + links[kind].latency_seconds, 0, target, told))
            sending[r] = False
            end(r)
        else:
            s, kind, start, took = head
            port = ("card", node[r]) if kind else r
            got_port[port] = max(time, got_port[port]) + took
            came[s, r].append((kind, start, got_port[port], took))
            if at[r] == s:
                end(r)
    return now


@st.composite
def programs(draw: st.DrawFn) -> tuple[Platform, Program]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ranks = draw(st.integers(1, 7))
    far = Link(float(rng.random()), float(1 + rng.random()), 0.0, float(rng.random()))
    platform = machine(
        per_node=draw(st.integers(1, 4)), latency=float(rng.random()), bandwidth=1.0,
        overlap=draw(st.sampled_from([0.0, 0.3, 1.0])), far=far,
    )  # fmt: skip
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        pairs = [(a, b) for a in range(ranks) for b in range(ranks) if a != b]
        chosen = [p for p in pairs if rng.random() < rng.choice([0.1, 0.5, 1.0])]
        rng.shuffle(chosen)
        messages = [(a, b, int(rng.integers(1, 4))) for a, b in chosen]
        times = [rng.random(ranks) * draw(st.sampled_from([1e-3, 1.0, 5.0])) for _ in range(3)]
        steps.append(
            step(
                ranks, messages, before=times[0], owned=times[1], after=times[2],
                word_bytes=float(rng.random()),
            )
        )  # fmt: skip
    return platform, program(steps, draw(st.integers(1, 3)))


@settings(max_examples=150, deadline=None)
@given(made=programs())
def test_equals_a_readable_replay_and_never_beats_the_longest_path(made) -> None:
    platform, given_program = made
    found = replay(platform, given_program, timeline=True)
    np.testing.assert_allclose(found.finish, readable(platform, given_program), rtol=1e-9)
    earliest = critical_path(platform, given_program)
    assert (found.finish >= earliest * (1 - 1e-12)).all()
    assert found.critical_seconds == earliest.max()
    assert found.replay_seconds == found.finish.max()
    # Every moment of a rank is accounted for.
    times = np.array([given_program.steps[k].before for k in given_program.order])
    assert (np.diff(found.moments, axis=2) >= -1e-12).all()
    np.testing.assert_allclose(found.moments[1:, :, 0], found.moments[:-1, :, 4])
    np.testing.assert_allclose(found.moments[:, :, 1] - found.moments[:, :, 0], times, atol=1e-9)
    waits = (found.moments[:, :, 3] - found.moments[:, :, 2]).sum(axis=0)
    np.testing.assert_allclose(found.waited, waits, atol=1e-9)
    np.testing.assert_allclose(found.step_last, found.moments[:, :, 4].max(axis=1))
    np.testing.assert_allclose(found.step_mean, found.moments[:, :, 4].mean(axis=1))
    again = replay(platform, given_program)
    assert (again.finish == found.finish).all()


def test_a_late_rank_makes_others_late_one_layer_after_the_other() -> None:
    ranks, late = 8, 3.0
    platform = machine(latency=0.25, bandwidth=8.0, overlap=1.0)
    around = [(r, (r + 1) % ranks, 1) for r in range(ranks)]
    # Computing takes as long as a message: nobody has time to spare.
    usual = [step(ranks, around, before=0.5, owned=0.75) for _ in range(6)]
    slow = changed(usual[0], before=usual[0].before + late * (np.arange(ranks) == 0))
    before = replay(platform, program(usual), timeline=True).moments[:, :, 4]
    behind = replay(platform, program([slow, *usual[1:]]), timeline=True).moments[:, :, 4]
    for layer in range(6):
        # What rank 0 sends late in its first layer is late for rank 1, which sends late in the
        # second to rank 2, and so on.
        reached = np.arange(ranks) <= layer + 1
        assert (behind - before)[layer].tolist() == (late * reached).tolist()


def test_ranks_of_a_node_share_its_card_in_the_order_of_time() -> None:
    platform = machine(per_node=2, latency=1.0, bandwidth=4.0)
    messages = [(0, 2, 8), (1, 3, 8)]  # 8 s each
    together = replay(platform, program([step(4, messages)]))
    assert together.finish.tolist() == [8.0, 16.0, 9.0, 17.0]
    first = step(4, messages, before=[2.0, 0.0, 0.0, 0.0])
    assert replay(platform, program([first])).finish.tolist() == [16.0, 8.0, 17.0, 9.0]
    alone = changed(platform, node=Node(1, 1, 1e9, 1e9), nodes=4)
    assert replay(alone, program([first])).finish.tolist() == [10.0, 8.0, 11.0, 9.0]


def test_what_comes_early_is_kept() -> None:
    platform = machine(latency=1.0, bandwidth=4.0)
    to_one = [(0, 1, 4)]
    steps = [step(2, to_one, before=[0.0, 100.0]) for _ in range(3)]
    found = replay(platform, program(steps))
    # Rank 0 does not wait for anybody; rank 1 finds everything there.
    assert found.finish.tolist() == [12.0, 300.0]
    assert found.waited[1] == 0.0


def test_without_overlap_messages_wait_for_the_receiver() -> None:
    messages = [(0, 1, 4), (1, 0, 4)]
    for overlap, expected in ((0.0, 10.0 + 5.0), (0.25, 10.0 + 2.5), (1.0, 10.0)):
        platform = machine(latency=1.0, bandwidth=4.0, overlap=overlap)
        found = replay(platform, program([step(2, messages, owned=10.0)]))
        assert found.finish.tolist() == [expected] * 2


def test_slower_links_never_help_a_real_partition() -> None:
    network = make_network(11, most=120)
    work = SparseWork.of(network, by_hand(network, 12, 11))
    platform = machine(per_node=4, overlap=0.5)
    for columns in (1, 48):
        times = [
            simulate_inference(one, work, 2 * columns, tile=columns).seconds
            for one in (
                platform.scaled(link_latency=0.5), platform, platform.scaled(link_latency=3.0),
                platform.scaled(link_latency=3.0, link_bandwidth=0.2),
            )
        ]  # fmt: skip
        assert times == sorted(times)


# Training --------------------------------------------------------------------------------------


def test_training_sends_everything_back_but_the_first_layers_words() -> None:
    network = make_network(5, most=60)
    work = SparseWork.of(network, by_hand(network, 5, 3), training=True)
    platform = machine(per_node=2)
    found = simulate_training(platform, work, 10, 3, tile=4)
    sent = work.messages_sent.sum(axis=1)
    pieces = 3
    assert found.messages == 3 * pieces * (2 * sent.sum() - sent[0])
    words = work.words_sent.sum(axis=1)
    assert found.words == 30 * (2 * words.sum() - words[0])
    assert found.step_last.size == 3 * pieces * 2 * work.layers
    assert found.replay_seconds >= found.critical_seconds
    names = found.names[: 2 * work.layers]
    assert names == ("forward",) * work.layers + ("backward",) * work.layers
    down = list(range(work.layers, 0, -1))
    assert found.layers[: 2 * work.layers].tolist() == [*down[::-1], *down]


def test_training_steps_of_alike_ranks_follow_each_other() -> None:
    work = ring(6, 4, both=False)
    platform = machine(overlap=0.5)
    one = simulate_training(platform, work, 32)
    three = simulate_training(platform, work, 32, 3)
    assert three.seconds == pytest.approx(3 * one.seconds, rel=1e-12)
    total = three.computed + three.handling + three.waited
    np.testing.assert_allclose(total, three.finish, rtol=1e-12)


def test_training_on_one_rank_waits_for_nobody() -> None:
    found = simulate_training(machine(), SparseWork.whole(make_network(2), training=True), 16)
    assert found.waited.tolist() == [0.0]
    assert found.seconds == pytest.approx(found.critical_seconds)


# Results ---------------------------------------------------------------------------------------


def test_trace_and_json() -> None:
    work = ring(4, 2, both=False)
    found = simulate_inference(machine(), work, 16, tile=16, timeline=True)
    trace = json.loads(json.dumps(found.trace(most_ranks=3)))
    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert {event["pid"] for event in events} == {0, 1, 2}
    assert {event["name"] for event in events} <= {"pack", "compute", "wait", "finish"}
    assert {event["args"]["layer"] for event in events} == {1, 2}
    assert trace["otherData"]["events_lost"] == 2 * 4
    last = max(event["ts"] + event["dur"] for event in events) * 1e-6
    assert last == pytest.approx(found.replay_seconds, abs=2e-9)
    told = json.loads(json.dumps(found.as_json()))
    assert told["ranks"] == 4
    assert told["waited"]["max"] == found.waited.max()
    assert not simulate_inference(machine(), work, 16).trace()["traceEvents"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": 0}, "cannot be divided"),
        ({"images": 3, "groups": 4}, "cannot be divided"),
        ({"images": 3, "groups": 0}, "at least 1"),
        ({"images": 3, "threads": 0}, "threads must be at least 1"),
        ({"images": 5000, "groups": 2000}, "too many"),
    ],
)
def test_nonsense_is_refused(change, message) -> None:
    work = ring(4, 2, both=False)
    with pytest.raises(UsageError, match=message):
        simulate_inference(machine(), work, **change)
    untrained = changed(work, back_blocks=work.back_blocks[:0])
    with pytest.raises(UsageError, match="training=True"):
        simulate_training(machine(), untrained, 4)
