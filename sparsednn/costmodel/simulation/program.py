"""`Program`: what each rank does step by step, in seconds and messages, ready to be replayed.

A step is a layer of a tile: some work until its messages are ready, some while they travel, some
behind. Programs of inference and of training are made here from a `SparseWork` and a platform, with
the same seconds as the closed forms (`sparse.layers`, `sparse.terms`).

Must not know: in which order events happen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.simulation.plan import Plan
from sparsednn.costmodel.sparse.layers import (
    busy_threads,
    forward_times,
    input_seconds,
    rates_of,
)
from sparsednn.costmodel.sparse.tiles import Tiles
from sparsednn.costmodel.sparse.work import Messages, SparseWork

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["Program", "Step", "inference_program", "make_plan", "training_program"]

_Floats = NDArray[np.float64]
_WORD = 4  # bytes


@dataclass(frozen=True, eq=False)
class Step:
    """One step of all ranks.

    Attributes
    ----------
    name, layer
        What it is, for traces; the layer, from 1 on.
    before, owned, after
        ``(ranks,)`` seconds: until the messages are ready, until the rank waits for those that
        come, and behind that.
    handling
        ``(ranks,)`` seconds of `before` and `after` together that messages cost the processor.
    messages
        None: there are none.
    word_bytes
        Of each word of theirs.
    """

    name: str
    layer: int
    before: _Floats
    owned: _Floats
    after: _Floats
    handling: _Floats
    messages: Messages | None
    word_bytes: float


@dataclass(frozen=True, eq=False)
class Program:
    """Steps in order, one after another.

    Attributes
    ----------
    ranks
        How many.
    steps
        Kinds of steps.
    order
        Which of them are done, in order; steps that are done again are there once.
    each
        Of `order` that make one tile, or one step of training.
    crowding
        Busy threads per processor: within a node processors copy, so much slower.
    """

    ranks: int
    steps: tuple[Step, ...]
    order: NDArray[np.int64]
    each: int
    crowding: float = 1.0

    @property
    def handling(self) -> _Floats:
        """``(ranks,)`` seconds of the processors for messages, in the whole program."""
        times = np.bincount(self.order, minlength=len(self.steps))
        return np.asarray(sum(n * s.handling for n, s in zip(times, self.steps, strict=True)))


def make_plan(platform: Platform, program: Program) -> Plan:
    """Arrange a program in flat arrays for `replay`; messages that steps share are there once."""
    chosen: list[int] = []
    sets: dict[int, tuple[int, Messages]] = {}
    for step in program.steps:
        if step.messages is None or not len(step.messages):
            chosen.append(-1)
            continue
        number = sets.setdefault(id(step.messages), (len(sets), step.messages))[0]
        chosen.append(number)
    found: Sequence[Messages] = [messages for _, messages in sets.values()]
    ranks = program.ranks
    counts = [np.bincount(one.source, minlength=ranks) for one in found]
    sizes = np.cumsum([0, *(len(one) for one in found)])
    first = [
        base + np.concatenate([[0], np.cumsum(count)])
        for base, count in zip(sizes[:-1], counts, strict=True)
    ]
    none = np.empty(0, np.int32)
    links = (platform.within, platform.between or platform.within)
    return Plan(
        kind=np.ascontiguousarray(program.order, np.int64),
        before=np.stack([step.before for step in program.steps]).astype(np.float64),
        owned=np.stack([step.owned for step in program.steps]).astype(np.float64),
        after=np.stack([step.after for step in program.steps]).astype(np.float64),
        chosen=np.array(chosen, np.int64),
        word_bytes=np.array([step.word_bytes for step in program.steps], np.float64),
        first=np.array(first, np.int64).reshape(len(found), ranks + 1),
        incoming=np.array(
            [np.bincount(one.target, minlength=ranks) for one in found], np.int64
        ).reshape(len(found), ranks),
        target=np.concatenate([none, *(one.target for one in found)]),
        words=np.concatenate([none, *(one.words for one in found)]),
        node=np.arange(ranks, dtype=np.int64) // platform.node.ranks,
        latency=np.array([link.latency_seconds for link in links]),
        per_byte=np.array([program.crowding, 1.0]) / [link.bandwidth for link in links],
        overlap=np.array([link.overlap for link in links], np.float64),
    )


def inference_program(
    platform: Platform,
    work: SparseWork,
    tiles: Tiles,
    *,
    full: int,
    groups: int,
    nonzeros_per_image: float,
    rates: Any = None,
) -> Program:
    """Make the program of one stream of tiles.

    Parameters
    ----------
    platform, work, tiles
        The machine, what the ranks of a data group do, the tiles of a run.
    full
        How many full tiles are done; the narrower one behind them comes if there is one.
    groups
        Data groups, which are busy, too.
    nonzeros_per_image
        Of the inputs.
    rates
        In place of the platform's, for tests.
    """
    busy = busy_threads(platform, groups * work.ranks, tiles.threads)
    rates = rates_of(platform, busy) if rates is None else rates
    steps: list[Step] = []
    order: list[int] = []
    for columns, count in ((tiles.columns, full), (tiles.rest, 1)):
        if not columns or not count:
            continue
        times = forward_times(platform, rates, work, columns, busy=busy)
        sending, receiving = _overheads(platform, work, groups, tiles.threads)
        inputs = input_seconds(
            rates, work, columns, nonzeros_per_image, images=tiles.images, busy=busy
        )
        order += list(range(len(steps), len(steps) + work.layers)) * count
        for layer in range(work.layers):
            pack, out, into = times.pack[layer], sending[layer], receiving[layer]
            steps.append(
                Step(
                    name="forward",
                    layer=layer + 1,
                    before=pack + out + (inputs if layer == 0 else 0.0),
                    owned=times.owned[layer],
                    after=times.received[layer] + into,
                    handling=pack + out + into,
                    messages=work.sends[layer],
                    word_bytes=float(_WORD * columns * tiles.threads),
                )
            )
    crowding = platform.crowding(groups * work.ranks, tiles.threads)
    return Program(work.ranks, tuple(steps), np.array(order, np.int64), work.layers, crowding)


def training_program(
    platform: Platform,
    work: SparseWork,
    batch: int,
    tile: int,
    steps: int,
    *,
    optimizer: str = "sgd",
    rates: Any = None,
) -> Program:
    """Make the program of some steps of training on one data group.

    A step takes its pieces of at most `tile` images one after another, each forward and backward
    (`kernels.backprop`): backward the messages of a layer go the other way round, those of the
    first layer not at all. What belongs to no layer (the loss, biases, the optimizer's loop) is
    done between the two.
    """
    from sparsednn.costmodel.sparse.terms import step_costs

    busy = busy_threads(platform, work.ranks, 1)
    rates = rates_of(platform, busy) if rates is None else rates
    slower = rates.slowdown(busy)
    pieces, terms, rest = step_costs(rates, work, batch, tile=tile, optimizer=optimizer)
    small = rest + sum(count * rates.seconds(name) for name, count in terms.items())
    number = sum(count for count, _ in pieces)
    between = slower * np.asarray(small, float) / number
    known: dict[int, Messages] = {}
    for one in work.sends:
        if id(one) not in known:
            known[id(one)] = one.reversed
    sending, receiving = _overheads(platform, work, 1, 1)
    kinds: list[Step] = []
    once: list[int] = []
    sizes = _piece_sizes(batch, tile)
    for (count, costs), columns in zip(pieces, sizes, strict=True):
        begin = len(kinds)
        bytes_each = float(_WORD * columns)
        row, byte = (rates.seconds(f"pack_{what}") for what in ("row", "byte"))
        packed = slower * (row + _WORD * columns * byte)
        for layer in range(work.layers):
            out, into = sending[layer], receiving[layer]
            pack = packed * work.words_sent[layer]
            last = between if layer == work.layers - 1 else 0.0
            kinds.append(
                Step(
                    "forward", layer + 1, pack + out, slower * costs.forward_owned[layer],
                    slower * costs.forward_received[layer] + into + last, pack + out + into,
                    work.sends[layer], bytes_each,
                )
            )  # fmt: skip
        for layer in reversed(range(work.layers)):
            owned = slower * (costs.back[layer] + costs.sampled[layer])
            if layer == 0:
                none = np.zeros(work.ranks)
                kinds.append(Step("backward", 1, none, owned, none, none, None, bytes_each))
                continue
            into, out = sending[layer], receiving[layer]
            pack = packed * work.words_received[layer]
            added = packed * work.words_sent[layer]
            kinds.append(
                Step(
                    "backward", layer + 1, slower * costs.folded[layer] + pack + out, owned,
                    added + into, pack + out + into + added, known[id(work.sends[layer])],
                    bytes_each,
                )
            )  # fmt: skip
        once += list(range(begin, len(kinds))) * count
    order = np.tile(np.array(once, np.int64), steps)
    return Program(work.ranks, tuple(kinds), order, len(once), platform.crowding(work.ranks))


def _piece_sizes(batch: int, tile: int) -> list[int]:
    """Images of the pieces of a step, each size once, ascending; as `sparse.terms.step_costs`."""
    count = max(1, -(-batch // tile))
    edges = [batch * i // count for i in range(count + 1)]
    return [int(size) for size in np.unique(np.diff(edges))]


def _overheads(
    platform: Platform, work: SparseWork, groups: int, streams: int
) -> tuple[_Floats, _Floats]:
    """``(layers, ranks)`` seconds of the processors for sending and for receiving messages."""
    node = np.arange(work.ranks) // platform.node.ranks
    crowding = platform.crowding(work.ranks * groups, streams)
    near = platform.within.overhead_seconds
    far = near if platform.between is None else platform.between.overhead_seconds
    known: dict[int, tuple[_Floats, _Floats]] = {}
    for one in work.sends:
        if id(one) not in known:
            each = crowding * np.where(node[one.source] == node[one.target], near, far)
            known[id(one)] = (
                np.asarray(np.bincount(one.source, each, work.ranks), np.float64),
                np.asarray(np.bincount(one.target, each, work.ranks), np.float64),
            )
    pairs = [known[id(one)] for one in work.sends]
    return np.stack([out for out, _ in pairs]), np.stack([into for _, into in pairs])
