"""Local search over all layers at once: moves and swaps of units, with the exact change in words.

A unit is at once a row of its own layer and an owner of columns of the next one; the search sees
both, which is what partitioning layer after layer cannot. Between a neuron layer and the next but
one there is nothing in common, so even layers are searched at the same time, then odd ones, each
with its own random numbers: the result does not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.partitioners.joint.units import Arrays

__all__ = ["State", "anneal", "make_state", "words"]


_ROUNDS = 50
"""Steps of temperature of one annealing run."""


_PARTNERS = 4
"""Units that are looked at for a swap."""


class State(NamedTuple):
    """A partition of the units and what follows from it.

    ``labels`` ``(n_units,)``; ``rows[net, part]``: units of a net in a part; ``owned[net, part]``:
    columns of a net that a part owns; ``loads[layer, part]``: weight.

    ``members`` has the units of each layer part by part, those of a part from ``starts[layer,
    part]`` on, and ``places`` says where each unit stands there: so a unit of a part is drawn at
    once, however many parts there are.
    """

    labels: NDArray[np.int32]
    rows: NDArray[np.int32]
    owned: NDArray[np.int32]
    loads: NDArray[np.int64]
    members: NDArray[np.int32]
    starts: NDArray[np.int64]
    places: NDArray[np.int32]


@jit
def _fill(arrays: Arrays, state: State) -> None:
    labels, rows, owned, loads = state.labels, state.rows, state.owned, state.loads
    parts = loads.shape[1]
    for k in range(arrays.first_unit.size - 1):
        low, high = arrays.first_unit[k], arrays.first_unit[k + 1]
        starts = state.starts[k]
        starts[0] = low
        for u in range(low, high):
            starts[labels[u] + 1] += 1
        for part in range(parts):
            starts[part + 1] += starts[part]
        taken = np.zeros(parts, np.int64)
        for u in range(low, high):
            part = labels[u]
            state.places[u] = starts[part] + taken[part]
            state.members[state.places[u]] = u
            taken[part] += 1
            loads[k, part] += arrays.unit_weight[u]
            for e in range(arrays.unit_ptr[u], arrays.unit_ptr[u + 1]):
                rows[arrays.unit_net[e], part] += 1
            for e in range(arrays.link_ptr[u], arrays.link_ptr[u + 1]):
                owned[arrays.link_net[e], part] += arrays.link_columns[e]


@jit
def _words(arrays: Arrays, state: State) -> np.int64:
    total = np.int64(0)
    for net in range(arrays.net_size.size):
        for part in range(state.rows.shape[1]):
            if state.rows[net, part] > 0:
                total += arrays.net_size[net] - state.owned[net, part]
    return total


def make_state(arrays: Arrays, labels: NDArray[np.int32], parts: int) -> State:
    """Count what follows from `labels` (which the state then owns and changes)."""
    n_nets = arrays.net_size.size
    state = State(
        labels,
        np.zeros((n_nets, parts), dtype=np.int32),
        np.zeros((n_nets, parts), dtype=np.int32),
        np.zeros((arrays.first_unit.size - 1, parts), dtype=np.int64),
        np.zeros(labels.size, dtype=np.int32),
        np.zeros((arrays.first_unit.size - 1, parts + 1), dtype=np.int64),
        np.zeros(labels.size, dtype=np.int32),
    )
    _fill(arrays, state)
    return state


def words(arrays: Arrays, state: State) -> int:
    """The words of a state, before free columns are taken off."""
    return int(_words(arrays, state))


@jit
def _change(arrays: Arrays, state: State, u: np.int64, a: np.int32, b: np.int32) -> np.int64:
    """The change in words if unit `u` moves from part `a` to part `b`."""
    rows, owned = state.rows, state.owned
    change = np.int64(0)
    for e in range(arrays.unit_ptr[u], arrays.unit_ptr[u + 1]):
        net = arrays.unit_net[e]
        if rows[net, a] == 1:
            change -= arrays.net_size[net] - owned[net, a]
        if rows[net, b] == 0:
            change += arrays.net_size[net] - owned[net, b]
    for e in range(arrays.link_ptr[u], arrays.link_ptr[u + 1]):
        net = arrays.link_net[e]
        if rows[net, a] > 0:
            change += arrays.link_columns[e]
        if rows[net, b] > 0:
            change -= arrays.link_columns[e]
    return change


@jit
def _move(arrays: Arrays, state: State, u: np.int64, a: np.int32, b: np.int32) -> None:
    for e in range(arrays.unit_ptr[u], arrays.unit_ptr[u + 1]):
        net = arrays.unit_net[e]
        state.rows[net, a] -= 1
        state.rows[net, b] += 1
    for e in range(arrays.link_ptr[u], arrays.link_ptr[u + 1]):
        net = arrays.link_net[e]
        state.owned[net, a] -= arrays.link_columns[e]
        state.owned[net, b] += arrays.link_columns[e]
    state.labels[u] = b


@jit
def _exchange(state: State, u: np.int64, v: np.int64) -> None:
    """Let two units take each other's place among the members."""
    at, other = state.places[u], state.places[v]
    state.members[at], state.members[other] = v, u
    state.places[u], state.places[v] = other, at


@jit
def _resettle(state: State, k: int, u: np.int64, a: np.int32, b: np.int32) -> None:
    """Take unit `u` from part `a`'s members to part `b`'s: past the parts between them, by
    moving their borders over it."""
    starts = state.starts[k]
    part = a
    while part < b:
        last = starts[part + 1] - 1
        _exchange(state, u, state.members[last])
        starts[part + 1] = last
        part += 1
    while part > b:
        _exchange(state, u, state.members[starts[part]])
        starts[part] += 1
        part -= 1


@jit
def _random(seeds: NDArray[np.uint64], k: int) -> np.uint64:
    """xorshift64*: one stream per layer."""
    x = seeds[k]
    x ^= x >> np.uint64(12)
    x ^= x << np.uint64(25)
    x ^= x >> np.uint64(27)
    seeds[k] = x
    return np.uint64(x * np.uint64(0x2545F4914F6CDD1D))


@jit
def _below(seeds: NDArray[np.uint64], k: int, n: int) -> np.int64:
    """A random number from 0 to n - 1 (n < 2**32)."""
    # np.int64, not int: numba adds an unsigned and a signed integer as floating-point numbers.
    return np.int64(((_random(seeds, k) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@jit
def _candidate(
    arrays: Arrays, state: State, seeds: NDArray[np.uint64], k: int, u: np.int64, parts: int
) -> np.int32:
    """A part that unit `u` might be better in: one that a neighbour is in, sometimes any."""
    kind = _below(seeds, k, 16)
    if kind == 0:
        return np.int32(_below(seeds, k, parts))
    n_rows = arrays.unit_ptr[u + 1] - arrays.unit_ptr[u]
    n_links = arrays.link_ptr[u + 1] - arrays.link_ptr[u]
    e = _below(seeds, k, n_rows + n_links)
    if e >= n_rows:
        net = arrays.link_net[arrays.link_ptr[u] + e - n_rows]
    else:
        net = arrays.unit_net[arrays.unit_ptr[u] + e]
        first = arrays.owner_ptr[net]
        n_owners = arrays.owner_ptr[net + 1] - first
        if kind & 1 and n_owners > 0:
            return np.int32(state.labels[arrays.owner_unit[first + _below(seeds, k, n_owners)]])
    first = arrays.net_ptr[net]
    at = first + _below(seeds, k, arrays.net_ptr[net + 1] - first)
    return np.int32(state.labels[arrays.net_unit[at]])


@jit
def _partner(
    arrays: Arrays,
    state: State,
    caps: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    k: int,
    u: np.int64,
    b: np.int32,
) -> tuple[np.int64, np.int64]:
    """Find a unit of part `b` to come for `u`: of a few that the caps allow, the one that gains
    most. Returns it, or -1, and the change in words if it moves alone."""
    loads = state.loads
    a = state.labels[u]
    first = state.starts[k, b]
    count = state.starts[k, b + 1] - first
    found, least = np.int64(-1), np.int64(0)
    if count == 0:
        return found, least
    for _ in range(_PARTNERS):
        v = np.int64(state.members[first + _below(seeds, k, count)])
        more = arrays.unit_weight[u] - arrays.unit_weight[v]
        if loads[k, b] + more <= caps[k] and loads[k, a] - more <= caps[k]:
            change = _change(arrays, state, v, b, a)
            if found < 0 or change < least:
                found, least = v, change
    return found, least


@jit
def _search_layer(
    arrays: Arrays,
    state: State,
    caps: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    k: int,
    temperature: float,
    tries: int,
    tally: NDArray[np.int64],
) -> None:
    """Propose `tries` moves and swaps in layer `k`; ``tally[k]``: words changed, accepted."""
    labels, loads = state.labels, state.loads
    parts = loads.shape[1]
    low, high = arrays.first_unit[k], arrays.first_unit[k + 1]
    n = high - low
    if n == 0:
        return
    for _ in range(tries):
        u = low + _below(seeds, k, n)
        a = labels[u]
        b = _candidate(arrays, state, seeds, k, u, parts)
        if a == b:
            continue
        # Accepting a change d with probability exp(-d / T) is accepting it below this threshold.
        threshold = 0.0
        if temperature > 0.0:
            uniform = (np.float64(_random(seeds, k) >> np.uint64(11)) + 0.5) * 2.0**-53
            threshold = -temperature * np.log(uniform)
        change = _change(arrays, state, u, a, b)
        weight = arrays.unit_weight[u]
        if loads[k, b] + weight <= caps[k]:
            if change <= threshold:
                _move(arrays, state, u, a, b)
                _resettle(state, k, u, a, b)
                loads[k, a] -= weight
                loads[k, b] += weight
                tally[k, 0] += change
                tally[k, 1] += 1
            continue
        v, gain = _partner(arrays, state, caps, seeds, k, u, b)
        # Two units that share a net gain less together than each alone, never more: so what
        # fails here fails altogether, and nothing has been written yet.
        if v < 0 or change + gain > threshold:
            continue
        more = weight - arrays.unit_weight[v]
        _move(arrays, state, u, a, b)
        change += _change(arrays, state, v, b, a)
        if change > threshold:
            _move(arrays, state, u, b, a)
            continue
        _move(arrays, state, v, b, a)
        _exchange(state, u, v)
        loads[k, a] -= more
        loads[k, b] += more
        tally[k, 0] += change
        tally[k, 1] += 1


@jit
def _search(
    arrays: Arrays,
    state: State,
    caps: NDArray[np.int64],
    seeds: NDArray[np.uint64],
    first: int,
    step: int,
    temperature: float,
    sweeps: int,
    tally: NDArray[np.int64],
) -> None:
    for k in range(first, arrays.first_unit.size - 1, step):
        n = arrays.first_unit[k + 1] - arrays.first_unit[k]
        _search_layer(arrays, state, caps, seeds, k, temperature, n * sweeps, tally)


def anneal(
    arrays: Arrays,
    labels: NDArray[np.int32],
    caps: NDArray[np.int64],
    parts: int,
    *,
    hot: float,
    cold: float,
    sweeps: int,
    seed: int,
    threads: int = 1,
    progress: Callable[[float], None] | None = None,
) -> tuple[NDArray[np.int32], int]:
    """Search by simulated annealing, then downhill.

    Parameters
    ----------
    arrays
        The problem.
    labels
        ``(n_units,)`` int32: where to start; not changed.
    caps
        ``(n_layers,)`` int64: the largest weight of a part in each layer. A part that starts
        above its cap is left, never entered.
    parts
        Number of parts, K.
    hot, cold
        First and last temperature, in words.
    sweeps
        Proposals per unit.
    seed
        The same seed gives the same labels, whatever `threads` is.
    threads
        Threads.
    progress
        Called with the share of the sweeps that is done.

    Returns
    -------
    labels, words
        The best labels that were seen, and their words (as `words` counts them).
    """
    state = make_state(arrays, labels.copy(), parts)
    n_layers = arrays.first_unit.size - 1
    generator = np.random.default_rng(seed)
    seeds = generator.integers(1, 2**63, size=n_layers, dtype=np.uint64)
    current = words(arrays, state)
    best, best_words = labels.copy(), current
    # Several sweeps of a layer while it is in the cache; the temperature falls between rounds.
    inner = max(1, sweeps // _ROUNDS)
    rounds = max(1, sweeps // inner)
    tally = np.zeros((n_layers, 2), dtype=np.int64)
    with ThreadPoolExecutor(threads) as pool:

        def sweep(temperature: float) -> int:
            tally[:] = 0
            for parity in (0, 1):
                work = [
                    pool.submit(
                        _search, arrays, state, caps, seeds, parity + 2 * t, 2 * threads,
                        temperature, inner, tally,
                    )
                    for t in range(threads)
                ]  # fmt: skip
                for one in work:
                    one.result()
            return int(tally[:, 0].sum())

        for at in range(rounds):
            current += sweep(hot * (cold / hot) ** (at / max(rounds - 1, 1)))
            if current < best_words:
                best_words = current
                best[:] = state.labels
            if progress is not None:
                progress((at + 1) / rounds)
        if current > best_words:
            state = make_state(arrays, best.copy(), parts)
            current = best_words
        for _ in range(_ROUNDS // 5):
            change = sweep(0.0)
            current += change
            if change == 0:
                break
        best[:] = state.labels
    return best, current
