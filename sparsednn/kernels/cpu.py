"""The numba kernel: packed blocks, cache-resident tiles, a cascade per thread.

This module holds memory and starts threads; sizes are chosen in `sizes`, the loops are in `tiles`
and `cascade`, the registers in `microkernel`, the rearranged weights in `packing`.
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
from sparsednn.kernels.packing import PackedNetwork, pack
from sparsednn.kernels.sizes import choose_tiling
from sparsednn.kernels.tiles import Tiling, multiply_columns
from sparsednn.machine import machine
from sparsednn.network import SparseNetwork

__all__ = ["NumbaKernel", "NumbaPlan", "aligned", "in_threads", "make_images", "make_workspace"]

Scalar = TypeVar("Scalar", bound=np.generic)

_LINE = 64  # bytes of a cache line
_COPY_TILES = 8  # tiles that are copied out of a wide batch at a time


def aligned(shape: tuple[int, ...], dtype: type[Scalar]) -> NDArray[Scalar]:
    """Uninitialised array that starts at a cache line; untouched pages take no memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.empty(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size].view(dtype).reshape(shape)


def _zeros(size: int) -> NDArray[np.float32]:
    array = aligned((size,), np.float32)
    array[:] = 0
    return array


def make_images(inputs: InputSet, outputs: NDArray[np.float32] | None) -> Images:
    """Hand input columns to the compiled loops."""
    values = np.asarray(() if inputs.values is None else inputs.values, np.float32)
    is_narrow = inputs.indices.dtype == np.uint16
    return Images(
        indptr=read_only(inputs.indptr),
        # Both index widths are handed over, one of them empty: one compilation serves both.
        narrow=read_only(np.asarray(inputs.indices if is_narrow else (), np.uint16)),
        wide=read_only(np.asarray(() if is_narrow else inputs.indices, np.int32)),
        values=read_only(values),
        nonzero=np.zeros(inputs.n_images, np.uint8),
        outputs=np.empty((0, 0), np.float32) if outputs is None else outputs,
    )


def make_workspace(packed: PackedNetwork, tiling: Tiling) -> Workspace:
    """One thread's memory for `run_cascade`."""
    stride = tiling.stride
    widest = int(packed.width.max())
    pools = int(tiling.pool_of_layer.max()) + 1
    return Workspace(
        scratch=aligned((2, widest * stride), np.float32),
        entry=_zeros(int(packed.width[0]) * stride),
        alive=aligned((stride,), np.int32),
        pools=aligned((pools, widest * tiling.pool_stride), np.float32),
        pool_ids=np.empty((pools, tiling.pool_stride), np.int64),
        held=np.zeros(pools, np.int64),
        filled=np.zeros((3 + pools, widest), np.uint8),
        order=_order(packed),
        ids=np.zeros(tiling.columns, np.int64),
    )


def _order(packed: PackedNetwork) -> NDArray[np.int32]:
    """0, 1, 2 … as long as the longest pattern, and a row of working space below it."""
    longest = int(np.diff(packed.group_pattern).max(initial=0))
    return np.tile(np.arange(longest + 1, dtype=np.int32), (2, 1))


def in_threads(work: Callable[[], None], threads: int) -> None:
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
        images = make_images(inputs, outputs)
        next_tile = np.zeros(1, np.int64)

        def work() -> None:
            run_cascade(
                self.packed,
                self.tiling,
                images,
                make_workspace(self.packed, self.tiling),
                self._droppable_from,
                next_tile,
                None,
                1,
            )

        tiles = -(-inputs.n_images // self.tiling.columns)
        in_threads(work, max(1, min(self.threads, tiles)))
        return images.nonzero.view(np.bool_)

    def forward_layer(self, layer: int, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """One layer on dense columns, C-contiguous ``(n_in, batch)`` float32."""
        n_in = int(self.packed.width[layer])
        if x.ndim != 2 or x.shape[0] != n_in:
            raise ShapeError(f"layer {layer} takes ({n_in}, batch) columns, found {x.shape}")
        x = np.ascontiguousarray(x, dtype=np.float32)
        y = aligned((int(self.packed.width[layer + 1]), x.shape[1]), np.float32)
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
                aligned((tiles, n_in * tiling.stride), np.float32),
                aligned((tiles, y.shape[0] * tiling.stride), np.float32),
                aligned((tiling.stride,), np.int32),
                _order(self.packed),
            )

        in_threads(work, max(1, min(self.threads, -(-runs // tiles))))
        return y


class NumbaKernel:
    """Compiled CPU kernel on any number of threads."""

    name = "numba"

    def plan(self, network: SparseNetwork, *, threads: int = 1) -> NumbaPlan:
        """Pack the network and choose the tile sizes for this machine."""
        return NumbaPlan(network, threads=threads)
