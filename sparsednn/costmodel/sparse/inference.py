"""Predicted time of inference with a sparse network on a grid of data groups × ranks.

A rank takes the tiles of its stream one after another; in layer l of a tile it packs, starts its
messages, multiplies what it owns, waits, multiplies what it received (`kernels.linked`). Ranks meet
their neighbours in every layer, so that a layer takes as long as its slowest rank:

    tile(T)  = max_r inputs_r + Σ_l max_r (pack + o·messages + owned + exposed + received)_{l,r}
    run      = Σ_tiles tile(T) + start + end

with `exposed` what of the transfer the computation does not hide (`exchanges`). One rank has no
messages, and the maximum is its own. Threads are streams that share the links; the data groups do
the same at the same time. The end: flags are combined within each group and gathered on rank 0.

This is a bound from above where ranks that are slow in one layer are quick in the next: a rank
waits for its neighbours only, which `costmodel.simulation` replays. No column dies (``--no-drop``).

Must not know: measuring, the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.prediction import Prediction
from sparsednn.costmodel.sparse.exchanges import transfers_of
from sparsednn.costmodel.sparse.layers import (
    behind_cache,
    busy_threads,
    forward_times,
    input_seconds,
    rates_of,
)
from sparsednn.costmodel.sparse.linked import linked_costs
from sparsednn.costmodel.sparse.memory import inference_bytes
from sparsednn.costmodel.sparse.tiles import Tiles, tiles_of
from sparsednn.costmodel.sparse.work import SparseWork
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform

__all__ = ["INPUT_DENSITY", "besides_seconds", "predict_inference"]

_Floats = NDArray[np.float64]
#: Share of an image's features that are not zero, where nobody says: that of the official inputs.
INPUT_DENSITY = 0.12
_WORD = 4  # bytes


def predict_inference(
    platform: Platform,
    work: SparseWork,
    images: int,
    *,
    groups: int = 1,
    threads: int = 1,
    tile: int | None = None,
    nonzeros_per_image: float | None = None,
    rates: Any = None,
) -> Prediction:
    """Predict one run of inference.

    Parameters
    ----------
    platform
        The machine.
    work
        What the ranks of one data group do.
    images
        Of all groups together.
    groups
        Data groups: the run has ``groups * work.ranks`` ranks.
    threads
        Of each rank.
    tile
        Columns of a tile; None: what the engine would choose.
    nonzeros_per_image
        Of the inputs; None: 12% of the features, as the official ones have.
    rates
        In place of ``SparseRates.of(platform)``, for tests.

    Returns
    -------
    Prediction
        Seconds from the sparse inputs in the ranks' memories to the categories on rank 0 (what
        `DistributedResult.infer_seconds` is). ``details``: the tile's width, tiles, and images per
        rank, and the seconds of one full tile.

    Raises
    ------
    UsageError
        If there are fewer images than groups, or a number is below 1.
    """
    if groups < 1:
        raise UsageError(f"groups must be at least 1, found {groups}")
    if images < groups:
        raise UsageError(f"{images} images cannot be divided among {groups} data groups")
    share = -(-images // groups)
    ranks = groups * work.ranks
    if work.ranks > 1 or groups > 1:
        platform.check_ranks(ranks)
    nonzeros = INPUT_DENSITY * work.widths[0] if nonzeros_per_image is None else nonzeros_per_image
    tiles = tiles_of(platform, work, share, threads, tile)
    busy = busy_threads(platform, ranks, tiles.threads)
    rates = rates_of(platform, busy) if rates is None else rates
    total = _Account()
    for columns, count in ((tiles.columns, tiles.full), (tiles.rest, 1)):
        if columns and count:
            spent = _tile(platform, rates, work, columns, float(nonzeros), groups, tiles)
            total.add(spent, count)
            total.tile = total.tile or sum(spent.values())
    linked = linked_costs(platform, "inference", ranks, work.ranks)
    start, end = _start(rates, work, tiles, busy), _end(platform, work.ranks, groups, share)
    total.add({("start", "overhead"): linked.others * start}, 1)
    total.add({("end", "latency"): linked.others * end}, 1)
    memory = inference_bytes(work, share, tiles.columns, tiles.threads, float(nonzeros))
    edges = int(work.edges.sum())
    return Prediction(
        seconds=total.seconds,
        parts=total.by(0),
        charged=total.by(1),
        words=int(work.words_sent.sum()) * images,
        memory_bytes=float(memory.max()),
        edges=float(edges) * images,
        details={
            "tile_columns": tiles.columns,
            "tiles_per_rank": tiles.total,
            "images_per_rank": share,
            "tile_seconds": total.tile,
        },
    )


class _Account:
    """Seconds by phase and by what limits them."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], float] = {}
        self.tile = 0.0

    def add(self, seconds: dict[tuple[str, str], float], times: int) -> None:
        """Add them so many times."""
        for key, value in seconds.items():
            self.entries[key] = self.entries.get(key, 0.0) + times * value

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self.entries.values())

    def by(self, place: int) -> dict[str, float]:
        """Sum by phase (0), or by what limits them (1)."""
        found: dict[str, float] = {}
        for key, value in self.entries.items():
            found[key[place]] = found.get(key[place], 0.0) + value
        return found


def _tile(
    platform: Platform,
    rates: Any,
    work: SparseWork,
    columns: int,
    nonzeros: float,
    groups: int,
    tiles: Tiles,
) -> dict[tuple[str, str], float]:
    """Seconds of one tile, by phase and by what limits them; they add up to the tile's."""
    busy = busy_threads(platform, groups * work.ranks, tiles.threads)
    linked = linked_costs(platform, "inference", groups * work.ranks, work.ranks)
    times = forward_times(platform, rates, work, columns, busy=busy).scaled(linked.blocks)
    moved = transfers_of(platform, work, columns, groups=groups, streams=tiles.threads)
    moved = moved.corrected(
        linked.exchanges,
        linked.layer_seconds,
        linked.seconds_per_byte * _WORD * columns * work.words_sent,
    )
    exposed = moved.exposed(times.owned)
    everything = times.total + moved.processor + exposed
    slowest, mean = everything.max(axis=1).sum(), everything.mean(axis=1).sum()
    inputs = linked.others * input_seconds(
        rates, work, columns, nonzeros, images=tiles.images, busy=busy
    )
    computing = (times.owned + times.received - times.streamed - times.besides).mean(axis=1)
    far = behind_cache(platform, work, columns)
    streamed = times.streamed.mean(axis=1).sum()
    waiting = np.minimum(exposed, moved.latency).mean(axis=1).sum()
    return {
        ("inputs", "overhead"): float(inputs.mean()),
        ("pack", "memory bandwidth"): float(times.pack.mean(axis=1).sum()),
        ("compute", "flops"): float(computing[~far].sum()),
        ("compute", "memory bandwidth"): float(computing[far].sum() + streamed),
        ("layers", "overhead"): times.besides * work.layers,
        ("exchange", "latency"): float(moved.processor.mean(axis=1).sum() + waiting),
        ("exchange", "link bandwidth"): float(exposed.mean(axis=1).sum() - waiting),
        ("imbalance", "imbalance"): float(slowest - mean + inputs.max() - inputs.mean()),
    }


def besides_seconds(
    platform: Platform, work: SparseWork, tiles: Tiles, groups: int, images: int, rates: Any = None
) -> float:
    """Seconds of a run before its tiles and behind them; `images` are those of a group."""
    busy = busy_threads(platform, groups * work.ranks, tiles.threads)
    rates = rates_of(platform, busy) if rates is None else rates
    end = _end(platform, work.ranks, groups, images)
    return _start(rates, work, tiles, busy) + end


def _start(rates: Any, work: SparseWork, tiles: Tiles, busy: int) -> float:
    """Seconds until the first tile: the call, its threads, memory."""
    seconds = rates.seconds("run") + (tiles.threads - 1) * rates.seconds("thread")
    if work.ranks == 1:  # a workspace is made for each run; that of a linked plan was made before
        fresh = rates.seconds("workspace_byte") * _workspace(work, tiles)
        seconds += rates.slowdown(busy) * fresh
    return float(seconds)


def _workspace(work: SparseWork, tiles: Tiles) -> float:
    """Bytes of a tile's memory that a run touches first."""
    from sparsednn.kernels.sizes import row_stride

    widest = int(work.widths.max())
    return 4.0 * row_stride(tiles.columns) * (2 * widest + int(work.widths[0]))


def _end(platform: Platform, parts: int, groups: int, images: int) -> float:
    """Seconds of combining flags (a byte per image) in each group, and gathering them on rank 0."""
    if parts * groups == 1:
        return 0.0
    seconds = 0.0
    if parts > 1:
        from sparsednn.costmodel.collectives.measured import collective_seconds

        seconds += collective_seconds(platform, "allreduce", parts, images).seconds
    if groups > 1:
        wire = platform.wire(groups, parts)
        seconds += 2 * (groups - 1) * wire.latency + groups * images * wire.per_byte
    return seconds
