"""One tile of inference, layer by layer: seconds of each rank's own processor.

The steps of `kernels.linked`, without messages:

    pack       words sent · (pack_row + 4 T pack_byte)
    owned      parts 0 and 1 on T columns, weights that the cache has not kept, and what a layer
               costs besides
    received   part 2

With one rank all rows are in part 0. Beside other busy threads of the node all of it takes
`SparseRates.slowdown` times as long. On GPUs what is packed goes through the host: a copy each way.

Must not know: links, how ranks wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.costmodel.sparse.work import SparseWork

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform
    from sparsednn.costmodel.sparse.kernels import SparseRates

__all__ = [
    "LayerTimes",
    "behind_cache",
    "busy_threads",
    "forward_times",
    "input_seconds",
    "rates_of",
]

_Floats = NDArray[np.float64]
_WORD = 4  # bytes
_INPUT = 6  # bytes of an input's nonzero: a feature and a value


@dataclass(frozen=True, eq=False)
class LayerTimes:
    """Seconds of one tile, each ``(layers, ranks)``.

    `streamed` is the part of `owned` in which weights come from afar, `besides` what each layer
    costs whatever is in it.
    """

    pack: _Floats
    owned: _Floats
    received: _Floats
    streamed: _Floats
    besides: float

    @property
    def total(self) -> _Floats:
        """All three."""
        return self.pack + self.owned + self.received

    def scaled(self, factor: float) -> LayerTimes:
        """Return all of it, so many times."""
        return LayerTimes(
            factor * self.pack,
            factor * self.owned,
            factor * self.received,
            factor * self.streamed,
            factor * self.besides,
        )


def rates_of(platform: Platform, busy: int) -> SparseRates:
    """Rates of one core beside other busy threads of the fullest node, who share its memory.

    Measured ones know what that costs (`SparseRates.slowdown`).
    """
    from sparsednn.costmodel.sparse.kernels import SparseRates

    if "sparse" in platform.measured:
        return SparseRates.of(platform)
    node = platform.node
    share = node.memory_bandwidth / (
        min(busy, node.processors) * platform.processor.memory_bandwidth
    )
    return SparseRates.of(platform.scaled(memory_bandwidth=share) if share < 1 else platform)


def busy_threads(platform: Platform, ranks: int, threads: int) -> int:
    """Busy threads of the fullest node of a run; a GPU's rank is one."""
    per_rank = 1 if platform.processor.kind == "gpu" else threads
    return max(1, min(ranks, platform.node.ranks)) * per_rank


def forward_times(
    platform: Platform,
    rates: Any,
    work: SparseWork,
    columns: int,
    *,
    busy: int = 1,
) -> LayerTimes:
    """Return a tile's seconds.

    Parameters
    ----------
    platform
        For the copies of GPUs.
    rates
        A `SparseRates`, or what does as much.
    work, columns
        What ranks do; columns of the tile.
    busy
        Busy threads of the node, see `busy_threads`.
    """
    from sparsednn.costmodel.sparse.terms import repeated_share, weight_bytes
    from sparsednn.kernels.sizes import row_stride

    own = _WORD * row_stride(columns) * work.neurons[:-1]
    arrived = _WORD * columns * work.words_received
    blocks, lengths = work.blocks, work.lengths
    again = repeated_share(work)
    inner, outer, others = (
        rates.layer_seconds(
            blocks[:, :, part], lengths[:, :, part], columns, tile, again=again[:, :, part]
        )
        for part, tile in enumerate((own, own, arrived))
    )
    linked = work.ranks > 1
    besides = rates.seconds("linked_layer" if linked else "tile_layer")
    weights = weight_bytes(work)
    streamed = rates.stream_seconds(weights, weights.sum(axis=0))
    slower = rates.slowdown(busy)
    sent = work.words_sent
    pack = sent * (rates.seconds("pack_row") + _WORD * columns * rates.seconds("pack_byte"))
    if platform.copies is not None and linked:
        copied = _WORD * columns * (sent + work.words_received)
        starts = platform.copies.latency_seconds * ((sent > 0) + 1.0 * (work.words_received > 0))
        pack = pack + starts + copied / platform.copies.bandwidth
    return LayerTimes(
        np.asarray(slower * pack, float),
        np.asarray(slower * (inner + outer + streamed + besides), float),
        np.asarray(slower * others, float),
        np.asarray(slower * streamed, float),
        slower * besides,
    )


def input_seconds(
    rates: Any,
    work: SparseWork,
    columns: int,
    nonzeros_per_image: float,
    *,
    images: int,
    busy: int = 1,
) -> _Floats:
    """``(ranks,)`` seconds of writing a tile's sparse inputs into it.

    With all inputs of a run of so many images a rank reads more than its own cache keeps, perhaps.
    """
    each = nonzeros_per_image * work.neurons[0] / work.widths[0]
    near, far = rates.streamed(columns * each, _INPUT * images * each)
    beyond = rates.seconds("input_far") * (near + far)
    seconds = rates.seconds("input_nonzero") * columns * each + beyond
    return np.asarray(rates.slowdown(busy) * seconds)


def behind_cache(platform: Platform, work: SparseWork, columns: int) -> NDArray[np.bool_]:
    """``(layers,)``: whether a layer's two tiles do not fit the cache, on the mean rank."""
    rows = (work.neurons[:-1] + work.neurons[1:]).mean(axis=1)
    return np.asarray(_WORD * columns * rows > platform.processor.cache_bytes)
