"""Measures the compiled sparse kernels of one core, and what an engine costs besides them.

Blocks of every height are timed on panels of every width, with tiles that fit the first cache, the
second, the last, and none; two or three pattern lengths give base and slope (`sparse.kernels`). The
matrices are random, with rows (and for the transposed product columns) that share patterns by
eight, four, two, or not: no network that anybody runs.

Rounds go over all points, so that a slow moment of the machine does not hit one point only; a point
is the median of its rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import jit
from sparsednn.costmodel.calibration.fit import Residuals, fit_linear, residuals_of
from sparsednn.costmodel.calibration.timing import FULL, Action, Effort, in_rounds
from sparsednn.costmodel.sparse.kernels import HEIGHTS, KINDS, BlockCosts
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import whole_shard
from sparsednn.kernels.cpu import aligned
from sparsednn.kernels.microkernel import LANES, WHOLE
from sparsednn.kernels.packing import PackedNetwork
from sparsednn.kernels.sampled import sample_layer
from sparsednn.kernels.sizes import row_stride
from sparsednn.kernels.tiles import multiply_layer
from sparsednn.network import SparseLayer, SparseNetwork
from sparsednn.training.packed import PackedParameters

__all__ = ["Loop", "block_matrix", "make_loop", "measure_blocks"]

#: Does something so many times.
Loop = Callable[[int], None]

#: Neurons of the tile that is read: 16 to 64 KiB, … to behind the last private cache.
_TILES: Final = (256, 2048, 16384, 65536)
#: Columns of a pattern.
_LENGTHS: Final = (8, 32, 96)
#: Weights of a matrix, about: few enough for the second cache, so that the tile is what is slow.
_WEIGHTS: Final = 16384


@jit
def _forward(
    net: PackedNetwork,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    ld: int,
    columns: int,
    alive: NDArray[np.int32],
    order: NDArray[np.int32],
    weights: NDArray[np.float32],
    times: int,
) -> None:
    nothing = np.empty(0, np.uint8)
    for _ in range(times):
        multiply_layer(
            net, 0, x.ctypes.data, ld, y.ctypes.data, ld, columns, alive.ctypes.data, 0, nothing,
            order, WHOLE,
        )  # fmt: skip


@jit
def _transposed(
    net: PackedNetwork,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    ld: int,
    columns: int,
    alive: NDArray[np.int32],
    order: NDArray[np.int32],
    weights: NDArray[np.float32],
    times: int,
) -> None:
    nothing = np.empty(0, np.uint8)
    for _ in range(times):  # part 1 of the transposed packing: the owned columns
        multiply_layer(
            net, 1, x.ctypes.data, ld, y.ctypes.data, ld, columns, alive.ctypes.data, 0, nothing,
            order, WHOLE, weights.ctypes.data,
        )  # fmt: skip


@jit
def _sampled(
    net: PackedNetwork,
    x: NDArray[np.float32],
    y: NDArray[np.float32],
    ld: int,
    columns: int,
    alive: NDArray[np.int32],
    order: NDArray[np.int32],
    weights: NDArray[np.float32],
    times: int,
) -> None:
    for _ in range(times):
        sample_layer(
            net, 0, x.ctypes.data, ld, y.ctypes.data, ld, columns, weights.ctypes.data, 0,
            np.float32(1),
        )  # fmt: skip


_LOOPS: Final[dict[str, Callable[..., None]]] = {
    "forward": _forward,
    "transposed": _transposed,
    "sampled": _sampled,
    "outer": _sampled,
}


def block_matrix(
    rows: int, columns: int, height: int, length: int, random: np.random.Generator
) -> SparseLayer:
    """Make a layer whose rows, and whose columns, share patterns by `height`.

    It is a random matrix with `length` / `height` entries a row, each of which is a full block of
    `height` by `height`.
    """
    few = max(1, length // height)
    across = columns // height
    # Sorted numbers with repetition, spread by 0, 1, 2 …: sorted numbers without.
    drawn = random.integers(0, across - few + 1, (rows // height, few))
    places = np.sort(drawn, axis=1) + np.arange(few)
    wide = (places[:, :, None] * height + np.arange(height)).reshape(rows // height, -1)
    indices = np.repeat(wide, height, axis=0).astype(np.int32)
    indptr = np.arange(rows + 1, dtype=np.int64) * indices.shape[1]
    values = random.standard_normal(indices.size).astype(np.float32) / np.float32(length)
    return SparseLayer(
        indptr, indices.reshape(-1), values, columns, bias=0.1, activation="relu", check=False
    )


def _turned(layer: SparseLayer) -> SparseLayer:
    """The transposed matrix."""
    weight = layer.weight.T.tocsr()
    weight.sort_indices()
    return SparseLayer.from_scipy(weight, bias=0.1, activation="relu")


def _packed(layer: SparseLayer) -> PackedParameters:
    network = SparseNetwork([layer], name="calibration")
    shard = whole_shard(network)
    return PackedParameters(shard, plans_of_all([shard])[0], 1)


@dataclass(frozen=True, slots=True)
class _Point:
    """One height, length, tile and number of vectors of a kind: what is timed."""

    loop: Loop
    working_set: float
    blocks: int
    lengths: int


def _point(
    kind: str, packed: PackedParameters, neurons: int, columns: int, random: np.random.Generator
) -> _Point:
    weights = aligned((packed.size + 1024,), np.float32)
    weights[:] = 0.01
    back = kind == "transposed"
    net = packed.back if back else packed.net
    if not back:
        net = net._replace(weight=weights[: packed.net.weight.size])
    ld = row_stride(columns)
    rows = int(net.target.max(initial=0)) + 1
    x, y = (aligned((size * ld + 256,), np.float32) for size in (neurons, rows))
    x[:] = random.random(x.size, np.float32)
    y[:] = 0.1
    longest = int(np.diff(net.group_pattern).max(initial=0))
    order = np.tile(np.arange(longest + 1, dtype=np.int32), (2, 1))
    alive = np.zeros(ld + 256, np.int32)
    loop = _LOOPS[kind]

    def repeat(times: int) -> None:
        loop(net, x, y, ld, columns, alive, order, weights, times)

    return _Point(repeat, 4.0 * neurons * ld, *_census(net, 1 if back else 0))


def make_loop(layer: SparseLayer, columns: int, random: np.random.Generator) -> Loop:
    """Return what multiplies a layer with a tile of so many columns."""
    return _point("forward", _packed(layer), layer.n_in, columns, random).loop


def _timed(loop: Loop) -> Action:
    def action(times: int) -> float:
        begin = time.perf_counter()
        loop(times)
        return time.perf_counter() - begin

    return action


def _census(net: PackedNetwork, part: int) -> tuple[int, int]:
    """Blocks of a part, and the sum of their patterns' lengths."""
    groups = slice(int(net.layer_group[part]), int(net.layer_group[part + 1]))
    blocks = np.diff(net.group_block)[groups]
    lengths = np.diff(net.group_pattern)[groups]
    return int(blocks.sum()), int((blocks * lengths).sum())


def measure_blocks(
    *, effort: Effort = FULL, progress: Callable[[str], None] | None = None
) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """Time blocks on one core.

    Parameters
    ----------
    effort
        How long each point is timed.
    progress
        Is told what is measured.

    Returns
    -------
    tables, residuals
        For each kind a table (`BlockCosts.as_table`); for each kind the errors of
        base + slope · length over all points (`fit.Residuals.as_table`).
    """
    tables, residuals = {}, []
    effort = replace(effort, visit_seconds=effort.visit_seconds / 6)  # there are hundreds
    for kind, panels in KINDS.items():
        if progress is not None:
            progress(f"sparse kernel, {kind}")
        places, points = zip(*_points(kind, panels), strict=True)
        seconds = in_rounds([_timed(point.loop) for point in points], effort)
        tables[kind], errors = _fitted(panels, places, points, seconds)
        residuals.append(errors.as_table(f"sparse {kind}"))
    return tables, residuals


def _points(kind: str, panels: tuple[int, ...]) -> Iterator[tuple[tuple[int, int, int], _Point]]:
    """Level, height and panel, and what is timed: one for each length."""
    random = np.random.default_rng(2021)
    for level, neurons in enumerate(_TILES):
        for h, height in enumerate(HEIGHTS):
            for length in _LENGTHS:
                rows = max(8 * height, _WEIGHTS // length // height * height)
                layer = block_matrix(rows, neurons, height, length, random)
                packed = _packed(_turned(layer) if kind == "transposed" else layer)
                for v, vectors in enumerate(panels):
                    columns = 1 if kind == "outer" else LANES * vectors
                    yield (level, h, v), _point(kind, packed, neurons, columns, random)


def _fitted(
    panels: tuple[int, ...],
    places: Sequence[tuple[int, int, int]],
    points: Sequence[_Point],
    seconds: NDArray[np.float64],
) -> tuple[dict[str, Any], Residuals]:
    """The table of a kind: base and slope of each level, height and panel."""
    shape = len(_TILES), len(HEIGHTS), len(panels)
    base, slope, sets = np.zeros(shape), np.zeros(shape), np.zeros((shape[0], shape[2]))
    blocks = np.array([point.blocks for point in points], float)
    lengths = np.array([point.lengths for point in points], float)
    modelled = np.empty_like(seconds)
    for place in dict.fromkeys(places):
        some = np.array([other == place for other in places])
        b, s = fit_linear([blocks[some], lengths[some]], seconds[some]).coefficients
        level, _, v = place
        base[place], slope[place] = b, s
        modelled[some] = b * blocks[some] + s * lengths[some]
        sets[level, v] = points[int(np.flatnonzero(some)[0])].working_set
    return BlockCosts(panels, sets, base, slope).as_table(), residuals_of(modelled, seconds)
