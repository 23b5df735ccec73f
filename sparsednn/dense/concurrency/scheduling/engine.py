"""The one simulation that all predicted times come from: compiled, on the arrays of a `Problem`.

Time goes from event to event: a part starts, or ends. A part starts on a lane when the one before
it there has ended and `launch` seconds have passed, and `wait` seconds after the end of all that it
waits for on other lanes. While several run, each takes ``1 + Σ (slowdown - 1)`` times as long, over
those beside it. Adding up what each of them costs, instead of multiplying, is what sharing memory
bandwidth does: of three that are bound by memory alone, each takes three times as long. A measured
slow-down below 1 counts as 1: nothing gets quicker by company, and predictions stay above the
bounds of the network.

Either each lane has its queue, or a lane that is free takes the part with the highest priority of
all that may run (list scheduling: Graham, SIAM J. Appl. Math. 17(2), 1969), and tasks without a
choice get the one that would end first.

Must not know: where numbers come from, memory beyond a count of workspace.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.dense.concurrency.scheduling.problem import Arrays

__all__ = ["by_priority", "by_queues", "slowdown"]

_IDLE, _COMMITTED, _RUNNING = 0, 1, 2

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@jit
def slowdown(p: Arrays, choice: int, other: int) -> float:
    """How many times longer a choice takes beside another one, at least 1."""
    first, second = p.measured[choice], p.measured[other]
    if first >= 0 and second >= 0:
        found: float = p.pairs[first, second]
        if found == found:
            return max(found, 1.0)
    shared: float = p.share[choice] * p.share[other]
    return 1.0 + shared


@jit
def _may_start(p: Arrays, task: int, lane: int, free: float, lane_of: _Ints, end: _Floats) -> float:
    """When a task, all that it waits for having ended, may start on a lane."""
    at = free + p.launch
    for k in range(p.before_ptr[task], p.before_ptr[task + 1]):
        first = p.slot_of[p.before[k]]
        last = p.slot_of[p.before[k] + 1]
        for slot in range(first, last):
            if lane_of[slot] >= 0:
                ended = end[slot]
                if lane_of[slot] != lane:
                    ended += p.wait
                at = max(at, ended)
    return at


@jit
def _choose(
    p: Arrays, task: int, now: float, room: int, weight: float, state: _Ints, free: _Floats,
    begin: _Floats, finish: _Floats, running: _Ints, lane_of: _Ints, end: _Floats,
) -> int:  # fmt: skip
    """The choice of a task that ends first; -1 where none has room for its workspace.

    `weight` adds what share of its work it would take from the others.
    """
    lanes = p.lanes
    ready = np.empty(lanes)
    for lane in range(lanes):
        at = free[lane]
        if state[lane] == _RUNNING:
            at = finish[lane]
        elif state[lane] == _COMMITTED:
            at = begin[lane] + p.seconds[running[lane]]
        ready[lane] = max(_may_start(p, task, lane, at, lane_of, end), now)
    best, best_score = -1, np.inf
    for choice in range(p.choice_ptr[task], p.choice_ptr[task + 1]):
        side = min(lanes, p.parts[choice])
        if p.workspace[choice] > 0:
            side = min(side, room // p.workspace[choice])
        if side == 0:
            continue
        seconds = p.seconds[choice] * (1.0 + (side - 1) * (slowdown(p, choice, choice) - 1.0))
        at = ready.copy()
        used = np.zeros(lanes, np.bool_)
        ends = 0.0
        for _ in range(p.parts[choice]):
            lane = -1
            for other in range(lanes):
                if (side > 0 or used[other]) and (lane < 0 or at[other] < at[lane]):
                    lane = other
            if not used[lane]:
                used[lane] = True
                side -= 1
            ends = max(ends, at[lane] + seconds)
            at[lane] += seconds + p.launch
        score = ends + weight * p.parts[choice] * seconds / lanes
        if score < best_score:
            best, best_score = choice, score
    return best


@jit
def _walk(
    p: Arrays, queued: bool, chosen: _Ints, priority: _Floats, weight: float, queue_ptr: _Ints,
    queue: _Ints, wait_ptr: _Ints, wait_for: _Ints, lane_of: _Ints, start: _Floats, end: _Floats,
    order: _Ints,
) -> float:  # fmt: skip
    tasks, lanes = len(p.slot_of) - 1, p.lanes
    lane_of[:] = -1
    end[:] = np.inf
    # Of tasks: how many they wait for, parts that have been given to a lane, and that have ended.
    waiting = np.empty(tasks, np.int64)
    given = np.zeros(tasks, np.int64)
    ended = np.zeros(tasks, np.int64)
    ready = np.empty(tasks, np.int64)
    n_ready = 0
    for task in range(tasks):
        waiting[task] = p.before_ptr[task + 1] - p.before_ptr[task]
        if waiting[task] == 0:
            ready[n_ready] = task
            n_ready += 1
    # Of lanes: what is there, since when, until when, what is left of it at `since`.
    state = np.full(lanes, _IDLE)
    slot = np.full(lanes, -1)
    running = np.full(lanes, -1)
    free = np.full(lanes, -p.launch)
    begin, finish, since, left = np.zeros(lanes), np.zeros(lanes), np.zeros(lanes), np.zeros(lanes)
    factor = np.ones(lanes)
    head = queue_ptr[:lanes].copy()
    passed = np.full(tasks, -1)
    now, room, started, event, done = 0.0, p.capacity, 0, 0, 0
    while True:
        # Give work to lanes without.
        event += 1
        idle = 0
        for lane in range(lanes):
            idle += state[lane] == _IDLE
        if queued:
            for lane in range(lanes):
                if state[lane] != _IDLE or head[lane] == queue_ptr[lane + 1]:
                    continue
                item = queue[head[lane]]
                task = p.task_of[item]
                choice = chosen[task]
                if waiting[task] > 0 or p.workspace[choice] > room:
                    continue
                at = max(_may_start(p, task, lane, free[lane], lane_of, end), now)
                for k in range(wait_ptr[item], wait_ptr[item + 1]):
                    other = wait_for[k]
                    at = max(at, end[other] + (p.wait if lane_of[other] != lane else 0.0))
                if at == np.inf:
                    continue
                head[lane] += 1
                room -= p.workspace[choice]
                state[lane], slot[lane], running[lane], begin[lane] = _COMMITTED, item, choice, at
        else:
            while idle > 0:
                task = -1
                for k in range(n_ready):
                    other = ready[k]
                    if passed[other] != event and (task < 0 or priority[other] > priority[task]):
                        task = other
                if task < 0:
                    break
                choice = chosen[task]
                if choice < 0:
                    choice = _choose(
                        p, task, now, room, weight, state, free, begin, finish, running,
                        lane_of, end,
                    )  # fmt: skip
                if choice < 0 or p.workspace[choice] > room:
                    passed[task] = event
                    continue
                chosen[task] = choice
                best, best_at = -1, np.inf
                for lane in range(lanes):
                    if state[lane] == _IDLE:
                        at = _may_start(p, task, lane, free[lane], lane_of, end)
                        if at < best_at:
                            best, best_at = lane, at
                room -= p.workspace[choice]
                state[best], running[best], begin[best] = _COMMITTED, choice, max(best_at, now)
                slot[best] = p.slot_of[task] + given[task]
                idle -= 1
                given[task] += 1
                if given[task] == p.parts[choice]:
                    for k in range(n_ready):
                        if ready[k] == task:
                            ready[k] = ready[n_ready - 1]
                            break
                    n_ready -= 1
        # Go to the next event.
        soonest = np.inf
        for lane in range(lanes):
            if state[lane] == _COMMITTED:
                soonest = min(soonest, begin[lane])
            elif state[lane] == _RUNNING:
                soonest = min(soonest, finish[lane])
        if soonest == np.inf:
            break
        now = soonest
        for lane in range(lanes):
            if state[lane] == _RUNNING and finish[lane] <= now:
                item = slot[lane]
                task = p.task_of[item]
                end[item] = free[lane] = now
                state[lane] = _IDLE
                room += p.workspace[running[lane]]
                ended[task] += 1
                if ended[task] == p.parts[running[lane]]:
                    done += 1
                    for k in range(p.after_ptr[task], p.after_ptr[task + 1]):
                        waiting[p.after[k]] -= 1
                        if waiting[p.after[k]] == 0:
                            ready[n_ready] = p.after[k]
                            n_ready += 1
        for lane in range(lanes):
            if state[lane] == _COMMITTED and begin[lane] <= now:
                item = slot[lane]
                lane_of[item], start[item], order[item] = lane, now, started
                started += 1
                state[lane] = _RUNNING
                since[lane], left[lane], factor[lane] = now, p.seconds[running[lane]], 1.0
                finish[lane] = now + left[lane]
        for lane in range(lanes):
            if state[lane] != _RUNNING:
                continue
            beside = 1.0
            for other in range(lanes):
                if other != lane and state[other] == _RUNNING:
                    beside += slowdown(p, running[lane], running[other]) - 1.0
            if beside != factor[lane]:
                left[lane] = max(left[lane] - (now - since[lane]) / factor[lane], 0.0)
                since[lane], factor[lane] = now, beside
                finish[lane] = now + left[lane] * beside
    return now if done == tasks else np.inf


def by_priority(
    p: Arrays,
    chosen: _Ints,
    priority: _Floats,
    weight: float,
    lane_of: _Ints,
    start: _Floats,
    end: _Floats,
    order: _Ints,
) -> float:
    """Let free lanes take the part with the highest priority; the seconds of the pass.

    Parameters
    ----------
    chosen
        ``(tasks,)`` the choice of each; -1: the one that ends first, with `weight` of its work, is
        written here.
    priority
        ``(tasks,)``, no two alike.
    lane_of, start, end, order
        ``(slots,)`` results: lane (-1: slot not used), seconds, and which started as how manyth.
    """
    none = np.zeros(p.lanes + 1, np.int64)
    return _walk(
        p, False, chosen, priority, weight, none, none, none, none, lane_of, start, end, order
    )


def by_queues(
    p: Arrays,
    chosen: _Ints,
    queue_ptr: _Ints,
    queue: _Ints,
    wait_ptr: _Ints,
    wait_for: _Ints,
    lane_of: _Ints,
    start: _Floats,
    end: _Floats,
    order: _Ints,
) -> float:
    """Let each lane work off its queue; the seconds of the pass, infinity if it gets stuck.

    Parameters
    ----------
    queue_ptr, queue
        Slots in the order of each lane (CSR).
    wait_ptr, wait_for
        Slots whose end each slot must await beyond what its task waits for (CSR).
    chosen, lane_of, start, end, order
        As for `by_priority`; all choices given.
    """
    none = np.zeros(0)
    return _walk(
        p, True, chosen, none, 0.0, queue_ptr, queue, wait_ptr, wait_for,
        lane_of, start, end, order,
    )  # fmt: skip
