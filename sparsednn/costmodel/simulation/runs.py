"""Replays of inference and of training, from a platform and a `SparseWork`. See the package.

Must not know: the command line, partitioning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.simulation.program import (
    Program,
    inference_program,
    make_plan,
    training_program,
)
from sparsednn.costmodel.simulation.result import Simulation
from sparsednn.costmodel.sparse.inference import INPUT_DENSITY, besides_seconds
from sparsednn.costmodel.sparse.tiles import tiles_of, training_columns
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.errors import SparseDNNError, UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["critical_path", "replay", "simulate_inference", "simulate_training"]

#: Messages that are replayed at most: some ten million take a few seconds.
MOST_MESSAGES: Final = 200_000_000
#: Tiles that are replayed at most; behind the first ones all take the same.
MOST_TILES: Final = 6


def simulate_inference(
    platform: Platform,
    work: SparseWork,
    images: int,
    *,
    groups: int = 1,
    threads: int = 1,
    tile: int | None = None,
    nonzeros_per_image: float | None = None,
    most_tiles: int = MOST_TILES,
    timeline: bool = False,
    rates: Any = None,
) -> Simulation:
    """Replay a run of inference; parameters as for `sparse.inference.predict_inference`.

    One data group is replayed, on the first ranks: the others do the same elsewhere. Of threads,
    which are streams of tiles, the one that has the most to do is replayed; its messages count
    for all, since they share the links.

    Parameters
    ----------
    platform, work, images, groups, threads, tile, nonzeros_per_image, rates
        See there.
    most_tiles
        Full tiles that are replayed at most.
    timeline
        Keep when each rank did what, for `Simulation.trace`.

    Raises
    ------
    UsageError
        If a number is below 1, or there are fewer images than groups.
    """
    if groups < 1 or most_tiles < 1:
        raise UsageError("groups and tiles must be at least 1")
    if images < groups:
        raise UsageError(f"{images} images cannot be divided among {groups} data groups")
    if work.ranks * groups > 1:
        platform.check_ranks(work.ranks * groups)
    share = -(-images // groups)
    tiles = tiles_of(platform, work, share, threads, tile)
    messages = max(1, int(work.messages_sent.sum()))
    full = min(tiles.full, most_tiles, max(1, MOST_MESSAGES // messages))
    nonzeros = INPUT_DENSITY * work.widths[0] if nonzeros_per_image is None else nonzeros_per_image
    program = inference_program(
        platform, work, tiles, full=full, groups=groups, nonzeros_per_image=nonzeros, rates=rates
    )
    return replay(
        platform,
        program,
        words=int(work.words_sent.sum()) * images,
        tiles=tiles.full + (tiles.rest > 0),
        left_out=tiles.full - full,
        full=full,
        besides=besides_seconds(platform, work, tiles, groups, share, rates),
        timeline=timeline,
    )


def simulate_training(
    platform: Platform,
    work: SparseWork,
    batch: int,
    steps: int = 1,
    *,
    tile: int | None = None,
    optimizer: str = "sgd",
    timeline: bool = False,
    rates: Any = None,
) -> Simulation:
    """Replay steps of training on one data group, one thread on each rank.

    Parameters
    ----------
    platform
        The machine.
    work
        What ranks do, counted with ``training=True``.
    batch
        Images of a step.
    steps
        How many; one after another.
    tile
        Images of a piece at most; None: what the engine would choose.
    optimizer
        sgd, momentum or adam.
    timeline, rates
        As for `simulate_inference`.

    Raises
    ------
    UsageError
        If a number is below 1, or the transposed packing was not counted.
    """
    if min(batch, steps) < 1:
        raise UsageError("images and steps must be at least 1")
    if not work.trained:
        raise UsageError(f"'{work.name}': training needs work that was counted with training=True")
    if work.ranks > 1:
        platform.check_ranks(work.ranks)
    columns = tile or training_columns(platform, work, batch)
    program = training_program(
        platform, work, batch, columns, steps, optimizer=optimizer, rates=rates
    )
    # The first layer's words are not sent back.
    words = 2 * int(work.words_sent.sum()) - int(work.words_sent[0].sum())
    return replay(
        platform,
        program,
        words=words * batch * steps,
        tiles=steps,
        left_out=0,
        full=steps,
        besides=0.0,
        timeline=timeline,
    )


def critical_path(platform: Platform, program: Program) -> NDArray[np.float64]:
    """``(ranks,)``: when each rank is done at the earliest, without contention.

    The longest path through the steps: every message has its link for itself (α + n/B) and goes on
    at full speed while ranks compute. No replay of the program is quicker.
    """
    from sparsednn.costmodel.simulation.path import contention_free

    finish = np.zeros(program.ranks)
    contention_free(make_plan(platform, program), finish)
    return finish


def replay(
    platform: Platform,
    program: Program,
    *,
    words: int = 0,
    tiles: int = 1,
    left_out: int = 0,
    full: int = 1,
    besides: float = 0.0,
    timeline: bool = False,
) -> Simulation:
    """Replay a program.

    Parameters
    ----------
    platform, program
        The machine, and what its ranks do.
    words, tiles, besides
        For the result.
    left_out, full
        Full tiles that the program leaves out, and those that it has, at its beginning.
    timeline
        Keep all moments.
    """
    from sparsednn.costmodel.simulation.path import contention_free
    from sparsednn.costmodel.simulation.replay import run

    plan = make_plan(platform, program)
    steps, ranks = plan.kind.size, program.ranks
    finish, waited, earliest = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    step_sum, step_last = np.zeros(steps), np.zeros(steps)
    moments = np.zeros((steps, ranks, 5) if timeline else (0, 0, 5))
    messages = run(plan, finish, waited, step_sum, step_last, moments)
    if messages < 0:
        raise SparseDNNError("the replay ended before all ranks were done: this is a bug")
    contention_free(plan, earliest)
    end = float(finish.max())
    ends = step_last[program.each - 1 :: program.each]
    more = 0.0
    if left_out:
        last = ends[full - 1] - (ends[full - 2] if full > 1 else 0.0)
        more = left_out * float(last)
    handling = program.handling
    return Simulation(
        seconds=end + more + besides,
        replay_seconds=end,
        besides=besides,
        tiles=tiles,
        replayed=tiles - left_out,
        messages=messages,
        words=words,
        finish=finish,
        waited=waited,
        handling=handling,
        computed=finish - waited - handling,
        step_mean=step_sum / ranks,
        step_last=step_last,
        layers=np.array([program.steps[k].layer for k in program.order], np.int64),
        names=tuple(program.steps[k].name for k in program.order),
        critical_seconds=float(earliest.max()),
        moments=moments,
    )
