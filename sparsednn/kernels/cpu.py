"""The numba kernel: packed blocks, cache-resident tiles, a cascade per thread.

This module chooses sizes from the machine and starts threads; the loops are in `tiles`, the
registers in `microkernel`, the rearranged weights in `packing`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsednn._jit import read_only
from sparsednn.errors import ShapeError
from sparsednn.inputs import InputSet
from sparsednn.kernels.cascade import Images, Workspace, run_cascade
from sparsednn.kernels.microkernel import LANES, MAX_VECTORS
from sparsednn.kernels.packing import pack
from sparsednn.kernels.tiles import Tiling, multiply_columns
from sparsednn.machine import Machine, machine
from sparsednn.network import SparseNetwork

__all__ = ["NumbaKernel", "NumbaPlan", "choose_tiling"]

Scalar = TypeVar("Scalar", bound=np.generic)

_LINE = 64  # bytes of a cache line
#: Part of the cache that a tile's two layers may fill; the rest is for weights and the pools.
_CACHE_SHARE = 0.5
#: A tile goes on unpacked while this much of it is alive. In the second-level cache, packing a tile
#: costs about as much as multiplying a tenth of it; behind it, more.
_KEEP_NEAR, _KEEP_FAR = 0.75, 0.5
_COPY_TILES = 8  # tiles that are copied out of a wide batch at a time
#: Part of the memory that all threads' pools may take if they are all used (they never are).
_POOL_SHARE = 1 / 16
_POOL_LAYERS = 16  # so many layers have a pool each, behind them eight per doubling of the depth


def _stride(columns: int) -> int:
    """Row stride in elements: an odd number of cache lines that holds `columns`."""
    lines = -(-4 * columns // _LINE)
    return (lines | 1) * _LINE // 4


def _pool_layers(first: int, layers: int, most: int) -> NDArray[np.int64]:
    """Which layers have a pool: each of the first ones, then eight per doubling of the depth.

    Columns die early; a pool in front of each of 1920 layers would cost memory for nothing. No
    layer in front of `first` has one, and there are at most `most`.
    """
    result = np.full(layers + 1, -1, np.int64)
    depth, step, pools = 1, 1, 0
    while depth < layers and pools < most:
        if depth >= first:
            result[depth] = pools
            pools += 1
        if depth >= _POOL_LAYERS * step:
            step *= 2
        depth += step
    return result


def choose_tiling(network: SparseNetwork, cpu: Machine, threads: int) -> Tiling:
    """Choose how many columns a tile has, from the caches.

    Two layers' activations of a tile should stay in the second-level cache. A tile has at least
    one full panel of the microkernel (its registers are filled only then), as long as this fits
    the thread's share of the last-level cache, and at least one vector in any case.
    """
    widest = max(network.n_in, *(layer.n_out for layer in network))
    panel = LANES * MAX_VECTORS
    per_column = 2 * 4 * widest
    columns = int(_CACHE_SHARE * cpu.l2) // per_column // panel * panel
    near = columns >= panel
    if not near:
        last_level = int(_CACHE_SHARE * cpu.l3 / max(1, min(threads, cpu.l3_shared_by)))
        columns = min(panel, max(LANES, last_level // per_column // LANES * LANES))
    columns = min(columns, 16 * panel)
    pool_stride = _stride(2 * columns + LANES)
    most = int(_POOL_SHARE * (cpu.memory or 4 << 30)) // (threads * 4 * widest * pool_stride)
    return Tiling(
        columns=columns,
        stride=_stride(columns),
        pool_stride=pool_stride,
        pool_of_layer=_pool_layers(max(1, network.droppable_from), len(network), most),
        keep=_KEEP_NEAR if near else _KEEP_FAR,
    )


def _aligned(shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
    """Uninitialised array that starts at a cache line; untouched pages take no memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _zeros(size: int) -> NDArray[np.float32]:
    array = _aligned((size,), np.float32)
    array[:] = 0
    return array


def _in_threads(work: Callable[[], None], threads: int) -> None:
    """Run `work` (compiled, without the GIL) in several threads; re-raise the first error."""
    if threads == 1:
        work()
        return
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # handed to the caller's thread below
            errors.append(error)

    started = [threading.Thread(target=guarded) for _ in range(threads - 1)]
    for thread in started:
        thread.start()
    guarded()
    for thread in started:
        thread.join()
    if errors:
        raise errors[0]


class NumbaPlan:
    """A network packed for this machine; see `sparsednn.kernels.base.NetworkPlan`.

    Owns a packed copy of the weights (4 bytes per edge) and nothing that grows with the number of
    images.
    """

    def __init__(
        self, network: SparseNetwork, *, threads: int = 1, tiling: Tiling | None = None
    ) -> None:
        self.threads = threads
        self.tiling = tiling or choose_tiling(network, machine(), threads)
        self.packed = pack(network)
        self._droppable_from = network.droppable_from
        self._widest = int(self.packed.width.max())

    def run(
        self, inputs: InputSet, outputs: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Run all layers on all columns, tile by tile; threads take tiles as they come."""
        # The compiled loops write wherever they are told: what does not fit must not reach them.
        n_in, n_out = int(self.packed.width[0]), int(self.packed.width[-1])
        if inputs.n_features != n_in:
            raise ShapeError(f"inputs have {inputs.n_features} features, the network takes {n_in}")
        if outputs is not None and outputs.shape != (n_out, inputs.n_images):
            raise ShapeError(
                f"outputs have shape {outputs.shape}, expected {(n_out, inputs.n_images)}"
            )
        values = np.asarray(() if inputs.values is None else inputs.values, np.float32)
        is_narrow = inputs.indices.dtype == np.uint16
        images = Images(
            indptr=read_only(inputs.indptr),
            # Both index widths are handed over, one of them empty: one compilation serves both.
            narrow=read_only(np.asarray(inputs.indices if is_narrow else (), np.uint16)),
            wide=read_only(np.asarray(() if is_narrow else inputs.indices, np.int32)),
            values=read_only(values),
            nonzero=np.zeros(inputs.n_images, np.uint8),
            outputs=np.empty((0, 0), np.float32) if outputs is None else outputs,
        )
        next_tile = np.zeros(1, np.int64)

        def work() -> None:
            run_cascade(
                self.packed,
                self.tiling,
                images,
                self._workspace(),
                self._droppable_from,
                next_tile,
            )

        tiles = -(-inputs.n_images // self.tiling.columns)
        _in_threads(work, max(1, min(self.threads, tiles)))
        return images.nonzero.view(np.bool_)

    def _workspace(self) -> Workspace:
        stride = self.tiling.stride
        pools = int(self.tiling.pool_of_layer.max()) + 1
        return Workspace(
            scratch=_aligned((2, self._widest * stride), np.float32),
            entry=_zeros(int(self.packed.width[0]) * stride),
            alive=_aligned((stride,), np.int32),
            pools=_aligned((pools, self._widest * self.tiling.pool_stride), np.float32),
            pool_ids=np.empty((pools, self.tiling.pool_stride), np.int64),
            held=np.zeros(pools, np.int64),
            filled=np.zeros((3 + pools, self._widest), np.uint8),
            order=self._order(),
            ids=np.zeros(self.tiling.columns, np.int64),
        )

    def forward_layer(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One layer on dense columns, C-contiguous ``(n_in, batch)`` float32."""
        n_in = int(self.packed.width[layer])
        if x.ndim != 2 or x.shape[0] != n_in:
            raise ShapeError(f"layer {layer} takes ({n_in}, batch) columns, found {x.shape}")
        x = np.ascontiguousarray(x, dtype=np.float32)
        y = _aligned((int(self.packed.width[layer + 1]), x.shape[1]), np.float32)
        tiling = self.tiling
        next_tile = np.zeros(1, np.int64)
        runs = -(-x.shape[1] // tiling.columns)
        tiles = max(1, min(_COPY_TILES, runs // self.threads))

        def work() -> None:
            multiply_columns(
                self.packed,
                tiling,
                layer,
                x,
                y,
                next_tile,
                _aligned((tiles, n_in * tiling.stride), np.float32),
                _aligned((tiles, y.shape[0] * tiling.stride), np.float32),
                _aligned((tiling.stride,), np.int32),
                self._order(),
            )

        _in_threads(work, max(1, min(self.threads, -(-runs // tiles))))
        return y

    def _order(self) -> NDArray[np.int32]:
        """0, 1, 2 … as long as the longest pattern, and a row of working space below it."""
        longest = int(np.diff(self.packed.group_pattern).max())
        return np.tile(np.arange(longest + 1, dtype=np.int32), (2, 1))


class NumbaKernel:
    """Compiled CPU kernel on any number of threads."""

    name = "numba"

    def plan(self, network: SparseNetwork, *, threads: int = 1) -> NumbaPlan:
        """Pack the network and choose the tile sizes for this machine."""
        return NumbaPlan(network, threads=threads)
