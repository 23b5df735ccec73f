"""Compiled: the events of a program, in the order of time.

What happens is told in `simulation`; here is how. Events are few kinds of things:

* a rank has packed: its messages are ready, all at once;
* a sending port (of a rank, for messages within its node) or card (of a node) starts its next
  message. Of each port, card and rank at most one event is due, so the heap has 2 ranks + nodes
  entries, however many messages there are;
* a message's head arrives, one latency after its start. Starts come in the order of time and all
  messages on a kind of link have the same latency, so arrivals are two queues, sorted as they are.

The earliest of all is taken next, so every port serves in the order in which messages get to it.
Equal times: arrivals first, then the lower number; the result is always the same.

Must not know: platforms, networks, layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.costmodel.simulation.plan import Plan

__all__ = ["run"]

_NEAR, _FAR = 0, 1  # kinds of links: within a node, between nodes
_ROOM = 1 << 12  # of a queue of arrivals, at first


@jit
def _push(time: NDArray[np.float64], what: NDArray[np.int64], size: int, t: float, w: int) -> int:
    """Put an event into the heap; returns its new size."""
    at = size
    while at > 0:
        up = (at - 1) // 2
        if time[up] < t or (time[up] == t and what[up] <= w):
            break
        time[at], what[at] = time[up], what[up]
        at = up
    time[at], what[at] = t, w
    return size + 1


@jit
def _pop(time: NDArray[np.float64], what: NDArray[np.int64], size: int) -> int:
    """Remove the first event; returns the new size."""
    size -= 1
    t, w = time[size], what[size]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        other = down + 1
        if other < size and (
            time[other] < time[down] or (time[other] == time[down] and what[other] < what[down])
        ):
            down = other
        if t < time[down] or (t == time[down] and w <= what[down]):
            break
        time[at], what[at] = time[down], what[down]
        at = down
    time[at], what[at] = t, w
    return size


@jit
def _next_message(
    target: NDArray[np.int32], nodes: NDArray[np.int64], at: int, end: int, node: int, link: int
) -> int:
    """The first message from `at` on that takes this kind of link from `node`; `end`: none."""
    while at < end and (nodes[target[at]] != node) != (link == _FAR):
        at += 1
    return at


@jit
def run(
    plan: Plan,
    finish: NDArray[np.float64],
    waited: NDArray[np.float64],
    step_sum: NDArray[np.float64],
    step_last: NDArray[np.float64],
    moments: NDArray[np.float64],
) -> int:
    """Replay a program; returns the number of messages, -1 if ranks wait for ever.

    Parameters
    ----------
    plan
        The program.
    finish, waited
        ``(ranks,)``: filled with the end of each rank's last step, and its seconds of waiting.
    step_sum, step_last
        ``(steps,)`` zeros: filled with the sum and the latest of all ranks' ends of each step.
    moments
        ``(steps, ranks, 5)``: filled with when each step began, its messages were ready, it began
        to wait, it had all, it ended. ``(0, 0, 5)``: not wanted.
    """
    node, target, words = plan.node, plan.target, plan.words
    latency, per_byte = plan.latency, plan.per_byte
    ranks, steps = node.size, plan.kind.size
    nodes = node[-1] + 1
    width = 0
    for r in range(ranks):
        width = max(width, r - np.searchsorted(node, node[r]) + 1)
    noted = moments.shape[0] > 0
    # The heap: 0 … ranks - 1 are ranks, then their ports, then the nodes' cards.
    time = np.empty(2 * ranks + nodes + 1, np.float64)
    what = np.empty(2 * ranks + nodes + 1, np.int64)
    size = 0
    # Of each rank: its step, when it began, had packed, waits; what it still has to send.
    step = np.zeros(ranks, np.int64)
    began, ready, waits = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    unsent, departed = np.zeros(ranks, np.int64), np.zeros(ranks)
    near_at, far_at = np.zeros(ranks, np.int64), np.zeros(ranks, np.int64)
    # Of each step and rank: messages that are to come; by kind of link when the first was started,
    # when the last is there, and the seconds that all of them take alone.
    missing = np.zeros((steps, ranks), np.int32)
    for s in range(steps):
        if plan.chosen[plan.kind[s]] >= 0:
            for r in range(ranks):
                missing[s, r] = plan.incoming[plan.chosen[plan.kind[s]], r]
    started = np.full((steps, ranks, 2), np.inf)
    arrived = np.zeros((steps, ranks, 2))
    taken = np.zeros((steps, ranks, 2))
    # Ports and cards: when they are free again; ranks that wait for their node's card.
    near_in, far_out, far_in = np.zeros(ranks), np.zeros(nodes), np.zeros(nodes)
    line = np.zeros((nodes, width), np.int64)
    line_head, line_size = np.zeros(nodes, np.int64), np.zeros(nodes, np.int64)
    # Heads on their way, by kind of link: when they arrive; to whom, of which step; seconds, start.
    room = np.full(2, _ROOM, np.int64)
    queue0, queue1 = np.empty((_ROOM, 3)), np.empty((_ROOM, 3))
    where0, where1 = np.empty((_ROOM, 2), np.int64), np.empty((_ROOM, 2), np.int64)
    head, held = np.zeros(2, np.int64), np.zeros(2, np.int64)
    # Ranks whose step may be over, one after another: the first is `turn`.
    messages = 0
    for first_rank in range(ranks):
        began[first_rank] = 0.0
        turn, fresh = first_rank, True
        while turn >= 0:
            turn, fresh, size, messages = _advance(
                plan, turn, fresh, step, began, ready, waits, unsent, departed, near_at, far_at,
                missing, started, arrived, taken, finish, waited, step_sum, step_last, moments,
                noted, time, what, size, messages,
            )  # fmt: skip
    while size > 0 or held[0] > 0 or held[1] > 0:
        near_time = queue0[head[0], 0] if held[0] > 0 else np.inf
        far_time = queue1[head[1], 0] if held[1] > 0 else np.inf
        turn = -1
        if min(near_time, far_time) <= (time[0] if size > 0 else np.inf):
            if near_time <= far_time:
                link, at = _NEAR, head[0]
                h, seconds, start = queue0[at, 0], queue0[at, 1], queue0[at, 2]
                r, s = where0[at, 0], where0[at, 1]
                near_in[r] = max(h, near_in[r]) + seconds
                there = near_in[r]
            else:
                link, at = _FAR, head[1]
                h, seconds, start = queue1[at, 0], queue1[at, 1], queue1[at, 2]
                r, s = where1[at, 0], where1[at, 1]
                n = node[r]
                far_in[n] = max(h, far_in[n]) + seconds
                there = far_in[n]
            head[link] = (head[link] + 1) % room[link]
            held[link] -= 1
            missing[s, r] -= 1
            started[s, r, link] = min(started[s, r, link], start)
            arrived[s, r, link] = max(arrived[s, r, link], there)
            taken[s, r, link] += seconds
            if missing[s, r] == 0 and step[r] == s:
                turn = r
        else:
            now, w = time[0], what[0]
            size = _pop(time, what, size)
            if w < ranks:  # its messages are ready
                k = plan.kind[step[w]]
                chosen = plan.chosen[k]
                begin, end = plan.first[chosen, w], plan.first[chosen, w + 1]
                n = node[w]
                near_at[w] = _next_message(target, node, begin, end, n, _NEAR)
                far_at[w] = _next_message(target, node, begin, end, n, _FAR)
                unsent[w] = 0
                if near_at[w] < end:
                    unsent[w] += 1
                    size = _push(time, what, size, now, ranks + w)
                if far_at[w] < end:
                    unsent[w] += 1
                    line[n, (line_head[n] + line_size[n]) % width] = w
                    line_size[n] += 1
                    if line_size[n] == 1:
                        size = _push(time, what, size, max(now, far_out[n]), 2 * ranks + n)
                continue
            if w < 2 * ranks:
                link, r = _NEAR, w - ranks
                at = near_at[r]
            else:
                link, n = _FAR, w - 2 * ranks
                r = line[n, line_head[n]]
                at = far_at[r]
            s = step[r]
            k = plan.kind[s]
            end = plan.first[plan.chosen[k], r + 1]
            seconds = words[at] * plan.word_bytes[k] * per_byte[link]
            done = now + seconds
            departed[r] = max(departed[r], done)
            messages += 1
            if held[link] == room[link]:  # twice the room, the oldest first
                if link == _NEAR:
                    queue0 = np.concatenate((queue0[head[0] :], queue0[: head[0]], queue0))
                    where0 = np.concatenate((where0[head[0] :], where0[: head[0]], where0))
                else:
                    queue1 = np.concatenate((queue1[head[1] :], queue1[: head[1]], queue1))
                    where1 = np.concatenate((where1[head[1] :], where1[: head[1]], where1))
                head[link] = 0
                room[link] *= 2
            place = (head[link] + held[link]) % room[link]
            held[link] += 1
            if link == _NEAR:
                queue0[place, 0], queue0[place, 1] = now + latency[link], seconds
                queue0[place, 2] = now
                where0[place, 0], where0[place, 1] = target[at], s
            else:
                queue1[place, 0], queue1[place, 1] = now + latency[link], seconds
                queue1[place, 2] = now
                where1[place, 0], where1[place, 1] = target[at], s
            at = _next_message(target, node, at + 1, end, node[r], link)
            if link == _NEAR:
                near_at[r] = at
                if at < end:
                    size = _push(time, what, size, done, w)
            else:
                far_at[r] = at
                far_out[n] = done
                if at == end:
                    line_head[n] = (line_head[n] + 1) % width
                    line_size[n] -= 1
                if line_size[n] > 0:
                    size = _push(time, what, size, done, w)
            if at == end:
                unsent[r] -= 1
                if unsent[r] == 0 and missing[s, r] == 0:
                    turn = r
        fresh = False
        while turn >= 0:
            turn, fresh, size, messages = _advance(
                plan, turn, fresh, step, began, ready, waits, unsent, departed, near_at, far_at,
                missing, started, arrived, taken, finish, waited, step_sum, step_last, moments,
                noted, time, what, size, messages,
            )  # fmt: skip
    for r in range(ranks):
        if step[r] < steps:
            return -1
    return messages


@jit
def _advance(
    plan: Plan,
    r: int,
    fresh: bool,
    step: NDArray[np.int64],
    began: NDArray[np.float64],
    ready: NDArray[np.float64],
    waits: NDArray[np.float64],
    unsent: NDArray[np.int64],
    departed: NDArray[np.float64],
    near_at: NDArray[np.int64],
    far_at: NDArray[np.int64],
    missing: NDArray[np.int32],
    started: NDArray[np.float64],
    arrived: NDArray[np.float64],
    taken: NDArray[np.float64],
    finish: NDArray[np.float64],
    waited: NDArray[np.float64],
    step_sum: NDArray[np.float64],
    step_last: NDArray[np.float64],
    moments: NDArray[np.float64],
    noted: bool,
    time: NDArray[np.float64],
    what: NDArray[np.int64],
    size: int,
    messages: int,
) -> tuple[int, bool, int, int]:
    """Begin rank r's step (`fresh`), or end it if nothing is missing and begin the next one.

    Returns the rank if it has something to do at once, else -1; whether it begins a step; the
    heap's size; messages.
    """
    steps = plan.kind.size
    s = step[r]
    if fresh:
        if s == steps:
            finish[r] = began[r]
            return -1, False, size, messages
        k = plan.kind[s]
        chosen = plan.chosen[k]
        ready[r] = began[r] + plan.before[k, r]
        waits[r] = ready[r] + plan.owned[k, r]
        departed[r] = 0.0
        sends = 0
        if chosen >= 0:
            sends = plan.first[chosen, r + 1] - plan.first[chosen, r]
        if sends > 0:
            unsent[r] = 1  # until it is known on which links
            size = _push(time, what, size, ready[r], r)
            return -1, False, size, messages
        unsent[r] = 0
        return (r, False, size, messages) if missing[s, r] == 0 else (-1, False, size, messages)
    if unsent[r] > 0 or missing[s, r] > 0:
        return -1, False, size, messages
    k = plan.kind[s]
    end = max(waits[r], departed[r])
    for link in range(2):
        last = arrived[s, r, link]
        if last > 0:
            begin = max(started[s, r, link], ready[r])
            if begin < waits[r]:
                lost = (1.0 - plan.overlap[link]) * (waits[r] - begin)
                alone = plan.latency[link] + taken[s, r, link]
                last = max(last, min(last + lost, waits[r] + alone))
            end = max(end, last)
    over = end + plan.after[k, r]
    waited[r] += end - waits[r]
    step_sum[s] += over
    step_last[s] = max(step_last[s], over)
    if noted:
        moments[s, r, 0], moments[s, r, 1], moments[s, r, 2] = began[r], ready[r], waits[r]
        moments[s, r, 3], moments[s, r, 4] = end, over
    step[r] = s + 1
    began[r] = over
    return r, True, size, messages
