"""One convolution on ranks: forward, and both gradients, with every algorithm.

Who owns what is in `distribution`. On a grid (b, h, w, g, k, c) a rank computes its block of
images, rows, columns, groups and filters, summed over the channels of its c-layer. Ranks that
differ in k only form a *row*: they need the same input; those that differ in (b, h, w) only form a
*column*: they need the same kernel; those that differ in c only hold partial sums of the same
output.

Forward, step by step:

1. Halo: rows and columns of neighbours along h and w, of the channels that this rank owns
   (`moves.Move`; nothing without h and w).
2. `STREAM` (2D, 2.5D): for every panel of channels, broadcast the input along the row and the
   kernel along the column, from their owners; convolve, and add to the output. The next panel's
   broadcasts are under way meanwhile. `GATHER` (3D): allgather both instead, and keep them.
   `REPLICATE` (data, spatial): all is there.
3. Reduce-scatter the output over c; add the bias.

Backward, from the gradient of the output:

1. Allgather it over c.
2. `STREAM`: for every panel, broadcast as before; the kernel's gradient of these channels is
   reduced along the column to the kernel's owner, the input's along the row to the input's owner,
   while the next panel is computed. `GATHER`: nothing to bring; reduce-scatter both. `REPLICATE`:
   allreduce the kernel's gradient over all ranks, under way until `finish`.
3. Halo, backwards: gradients of others' rows and columns go home and are added up.
4. The bias's gradient: allreduce over (b, h, w), under way until `finish` (with `REPLICATE` it goes
   with the kernel's).

So no tensor at rest is on two ranks, except replicated kernels, and all three products have the
output stationary: what moves is input and kernel. Words and memory in closed form: `volume`. Li et
al., SPAA 2021; R. van de Geijn and J. Watts, SUMMA, 1997, for the panels and the variants with a
reduction.

Must not know: networks, optimizers, what computes locally.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.comm.pending import Pending
from sparsednn.comm.staged import StagedPending
from sparsednn.dense.distribution import Distribution, share_of
from sparsednn.dense.grids import GATHER, REPLICATE, STREAM, B, C, H, K, W
from sparsednn.dense.local.base import Array
from sparsednn.dense.moves import Move, contiguous
from sparsednn.dense.pool import GridPool
from sparsednn.errors import ShapeError

if TYPE_CHECKING:
    from sparsednn.dense.local.base import LocalBackend

__all__ = ["DistributedConvolution"]


class DistributedConvolution:
    """A convolution, planned for these ranks.

    Parameters
    ----------
    pool
        The ranks, and their grids.
    distribution
        Who owns what; its grid has as many places as there are ranks.
    local
        Computes on a rank.
    dtype
        Of all tensors.
    layer
        What messages are counted under; also tells messages of layers apart.
    has_bias
        Whether there is one number per filter to add.
    input_gradient
        Whether `backward` gives the gradient of the input; the first layer of a network needs none.

    Attributes
    ----------
    kernel_shape, bias_shape
        Of this rank's tiles: ``(filters, channels / groups, rows, columns)`` and ``(filters,)``.
    parameter_size
        Elements of the two together: they are one flat array, the kernel first.
    """

    def __init__(
        self,
        pool: GridPool,
        distribution: Distribution,
        local: LocalBackend,
        dtype: Any,
        *,
        layer: int = 0,
        has_bias: bool = False,
        input_gradient: bool = True,
    ) -> None:
        self.distribution, self.shape, self.mode = (
            distribution,
            distribution.shape,
            distribution.placement.mode,
        )
        self._local, self.dtype, self._layer = local, np.dtype(dtype), layer
        self._has_bias, self._input_gradient = has_bias, input_gradient
        grid = distribution.grid
        self._own = share_of(distribution, pool.grid(grid).coordinates)
        self._row, self._column = pool.along(grid, K), pool.along(grid, B, H, W)
        self._layers = pool.along(grid, C)
        rank = pool.world.rank
        self.kernel_shape = distribution.kernel.block(rank).shape
        self.bias_shape = distribution.bias.block(rank).shape if has_bias else (0,)
        self.parameter_size = math.prod(self.kernel_shape) + self.bias_shape[0]
        self._halo = Move(
            pool.world, distribution.input, distribution.extended, dtype,
            layer=layer, verb="halo", tag=4 * (layer % 8000), overlapping=True,
            adjoint=input_gradient, copies=pool.copies,
        )  # fmt: skip
        self._geometry: dict[str, Any] = {
            "stride": self.shape.stride,
            "pads": self._own.pads,
            "dilation": self.shape.dilation,
            "groups": self._own.groups,
        }
        self._pieces = self._own.pieces()
        self._panels: list[list[Array]] = []
        self._saved: tuple[Array, ...] = ()
        self._pending: list[Pending | StagedPending] = []

    # Forward --------------------------------------------------------------------------------

    def forward(self, x: Array, parameters: Array) -> Array:
        """Return this rank's tile of the output.

        Parameters
        ----------
        x
            This rank's tile of the input. Kept until `backward`; must not be changed.
        parameters
            ``(parameter_size,)``: kernel and bias.
        """
        extended = self._halo.forward(x)
        kernel, bias = self._split(parameters)
        if self.mode == STREAM:
            self._saved = (extended,)
            y = self._stream(extended, kernel)
        else:
            if self.mode == GATHER:
                extended = self._gather_input(extended)
                kernel = self._gather_kernel(kernel)
            self._saved = (extended, kernel)
            y = self._convolve(extended, kernel)
        y = self._scatter_output(y)
        if self._has_bias:
            y += bias[:, None, None]
        return y

    def _split(self, parameters: Array) -> tuple[Array, Array]:
        """Kernel and bias, views of the flat array."""
        if parameters.shape != (self.parameter_size,):
            raise ShapeError(
                f"parameters of shape {parameters.shape}, ({self.parameter_size},) are needed"
            )
        size = self.parameter_size - self.bias_shape[0]
        return parameters[:size].reshape(self.kernel_shape), parameters[size:]

    def _convolve(self, x: Array, kernel: Array) -> Array:
        if not x.size or not kernel.size:  # nothing to sum, or nothing to compute
            return self._zeros()
        y: Array = self._local.convolution(x, kernel, **self._geometry)
        return y

    def _stream(self, x: Array, kernel: Array) -> Array:
        result: Array | None = None
        for _, xs, ks in self._brought(x, kernel):
            part = self._convolve(xs, ks)
            if result is None:
                result = part
            else:
                result += part
            del part  # or it would be there as long as the next one is made
        if result is None:  # this c-layer has no channels
            result = self._zeros()
        return result

    def _zeros(self) -> Array:
        """The output of this rank's block where nothing is added up."""
        own = self._own
        shape = own.images, own.groups * own.filters, *own.output
        return self._local.zeros(shape, self.dtype)

    # Panels ---------------------------------------------------------------------------------

    def _brought(
        self, x: Array, kernel: Array, *, with_kernel: bool = True
    ) -> Iterator[tuple[tuple[int, int, int, int], Array, Array]]:
        """Yield all panels in order: channels and owners, the input's part, the kernel's part.

        Arrays may be used until the next is asked for. The broadcasts of the next panel start
        before a panel is yielded. Without the kernel its part has the right shape, and any numbers.
        """
        pieces = self._pieces
        following = self._bring(0, x, kernel, with_kernel) if pieces else None
        for index, piece in enumerate(pieces):
            assert following is not None  # there is one for every piece
            xs, ks, pending = following
            if index + 1 < len(pieces):
                following = self._bring(index + 1, x, kernel, with_kernel)
            for one in pending:
                one.wait()
            yield piece, xs, ks

    def _bring(
        self, index: int, x: Array, kernel: Array, with_kernel: bool
    ) -> tuple[Array, Array, list[Pending | StagedPending]]:
        first, last, owner, holder = self._pieces[index]
        own = self._own
        pending = []
        shape = own.images, own.groups, last - first, *own.extended
        mine = slice(first - own.inputs[owner], last - own.inputs[owner])
        if self._row.size == 1:
            xs = contiguous(self._grouped_input(x)[:, :, mine])
        else:
            xs = self._panel(index, 0, shape)
            if self._row.rank == owner:
                xs[...] = self._grouped_input(x)[:, :, mine]
            pending.append(self._row.start_broadcast(xs, owner, layer=self._layer))
        mine = slice(first - own.kernels[holder], last - own.kernels[holder])
        if self._column.size == 1 and with_kernel:
            ks = contiguous(kernel[:, mine])
        else:
            ks = self._panel(index, 1, (kernel.shape[0], last - first, *self.shape.taps))
            if with_kernel and self._column.rank == holder:
                ks[...] = kernel[:, mine]
            if with_kernel:
                pending.append(self._column.start_broadcast(ks, holder, layer=self._layer))
        return xs.reshape(own.images, own.groups * (last - first), *own.extended), ks, pending

    def _panel(self, index: int, which: int, shape: tuple[int, ...]) -> Array:
        """A buffer of this shape: input (0) or kernel (1), one for odd and one for even panels."""
        if not self._panels:
            own = self._own
            most = max(last - first for first, last, _, _ in self._pieces)
            sizes = (
                most * own.images * own.groups * own.extended[0] * own.extended[1],
                most * own.groups * own.filters * self.shape.taps[0] * self.shape.taps[1],
            )
            self._panels = [
                [self._local.empty((one,), self.dtype) for one in sizes] for _ in range(2)
            ]
        return self._panels[index % 2][which][: math.prod(shape)].reshape(shape)

    def _grouped_input(self, x: Array) -> Array:
        """A tile with channels of groups: ``(images, groups, channels of a group, h, w)``."""
        own = self._own
        return x.reshape(own.images, own.groups, x.shape[1] // own.groups, *x.shape[2:])

    # Whole parts ----------------------------------------------------------------------------

    def _gather_input(self, x: Array) -> Array:
        own = self._own
        if self._row.size == 1:
            return x
        per_channel = own.images * own.groups * own.extended[0] * own.extended[1]
        counts = [per_channel * (b - a) for a, b in pairwise(own.inputs)]
        flat = self._row.allgather(contiguous(x), counts, layer=self._layer)
        channels = own.channels[1] - own.channels[0]
        whole = self._local.empty((own.images, own.groups, channels, *own.extended), self.dtype)
        _unpack(flat, whole, own.inputs, axis=2)
        return whole.reshape(own.images, own.groups * channels, *own.extended)

    def _gather_kernel(self, kernel: Array) -> Array:
        own = self._own
        if self._column.size == 1:
            return kernel
        per_channel = own.groups * own.filters * math.prod(self.shape.taps)
        counts = [per_channel * (b - a) for a, b in pairwise(own.kernels)]
        flat = self._column.allgather(contiguous(kernel), counts, layer=self._layer)
        channels = own.channels[1] - own.channels[0]
        whole = self._local.empty(
            (own.groups * own.filters, channels, *self.shape.taps), self.dtype
        )
        _unpack(flat, whole, own.kernels, axis=1)
        return whole

    def _scatter_output(self, y: Array) -> Array:
        own = self._own
        if self._layers.size == 1:
            return y
        grouped = y.reshape(own.images, own.groups, own.filters, *own.output)
        flat, counts = _packed(grouped, own.outputs, axis=2)
        mine = self._layers.reduce_scatter(flat, counts, layer=self._layer)
        at = self._layers.rank
        filters = own.outputs[at + 1] - own.outputs[at]
        return mine.reshape(own.images, own.groups * filters, *own.output)

    def _gather_output(self, dy: Array) -> Array:
        own = self._own
        if self._layers.size == 1:
            return dy
        per_filter = own.images * own.groups * own.output[0] * own.output[1]
        counts = [per_filter * (b - a) for a, b in pairwise(own.outputs)]
        flat = self._layers.allgather(contiguous(dy), counts, layer=self._layer)
        whole = self._local.empty((own.images, own.groups, own.filters, *own.output), self.dtype)
        _unpack(flat, whole, own.outputs, axis=2)
        return whole.reshape(own.images, own.groups * own.filters, *own.output)

    # Backward -------------------------------------------------------------------------------

    def backward(self, dy: Array, parameters: Array, gradient: Array) -> Array | None:
        """Return the gradient of the input's tile, or None without `input_gradient`.

        Parameters
        ----------
        dy
            Gradient of the output's tile.
        parameters
            As in `forward`.
        gradient
            ``(parameter_size,)``: is filled; complete behind `finish`.
        """
        kernel, _ = self._split(parameters)
        d_kernel, d_bias = self._split(gradient)
        if self._has_bias:
            d_bias[...] = dy.sum(axis=(0, 2, 3))
            if self.mode != REPLICATE and self._column.size > 1:
                self._pending.append(
                    self._column.start_allreduce(d_bias, layer=self._layer, verb="bias")
                )
        whole = self._gather_output(dy)
        if self.mode == STREAM:
            extended = self._stream_back(whole, kernel, d_kernel)
        else:
            extended = self._whole_back(whole, d_kernel)
        if self.mode == REPLICATE and self._column.size > 1:
            self._pending.append(
                self._column.start_allreduce(gradient, layer=self._layer, verb="gradient")
            )
        self._saved = ()
        return None if extended is None else self._halo.backward(extended)

    def _gradients(self, x: Array, dy: Array, kernel: Array) -> tuple[Array | None, Array]:
        """Gradients of what was convolved; the input's only if it is wanted."""
        if not x.size or not kernel.size or not dy.size:
            return np.zeros_like(x) if self._input_gradient else None, np.zeros_like(kernel)
        if self._input_gradient:
            return self._local.convolution_gradients(x, dy, kernel, **self._geometry)
        return None, self._local.convolution_kernel_gradient(x, dy, kernel.shape, **self._geometry)

    def _whole_back(self, dy: Array, d_kernel: Array) -> Array | None:
        own = self._own
        x, kernel = self._saved
        dx, dk = self._gradients(x, dy, kernel)
        if self.mode == GATHER and self._column.size > 1:
            flat, counts = _packed(dk, own.kernels, axis=1)
            mine = self._column.reduce_scatter(flat, counts, layer=self._layer)
            d_kernel[...] = mine.reshape(d_kernel.shape)
        else:
            d_kernel[...] = dk
        if dx is None or self.mode == REPLICATE or self._row.size == 1:
            return dx
        flat, counts = _packed(self._grouped_input(dx), own.inputs, axis=2)
        mine = self._row.reduce_scatter(flat, counts, layer=self._layer)
        at = self._row.rank
        channels = own.inputs[at + 1] - own.inputs[at]
        return mine.reshape(own.images, own.groups * channels, *own.extended)

    def _stream_back(self, dy: Array, kernel: Array, d_kernel: Array) -> Array | None:
        own = self._own
        (x,) = self._saved
        dx = np.empty_like(x) if self._input_gradient else None
        under_way: list[_Reduction] = []
        for (first, last, owner, holder), xs, ks in self._brought(
            x, kernel, with_kernel=self._input_gradient
        ):
            part_x, part_k = self._gradients(xs, dy, ks)
            for reduction in under_way:
                reduction.finish()
            start = first - own.kernels[holder]
            into = (
                d_kernel[:, start : start + last - first] if self._column.rank == holder else None
            )
            under_way = [_Reduction(self._column, part_k, holder, into, self._layer)]
            if part_x is not None and dx is not None:
                start = first - own.inputs[owner]
                grouped = self._grouped_input(part_x)
                into = None
                if self._row.rank == owner:
                    into = self._grouped_input(dx)[:, :, start : start + last - first]
                under_way.append(_Reduction(self._row, grouped, owner, into, self._layer))
        for reduction in under_way:
            reduction.finish()
        return dx

    def finish(self) -> None:
        """Wait until the gradient of the parameters is complete."""
        while self._pending:
            self._pending.pop().wait()

    def forget(self) -> None:
        """Drop what was kept for a backward pass that will not come."""
        self._saved = ()

    def free(self) -> None:
        """Free messages and buffers (the grids belong to the pool); a second time does nothing."""
        self.finish()
        self._halo.free()
        self._panels, self._saved = [], ()


class _Reduction:
    """A sum on its way to its owner, who puts it where it belongs."""

    def __init__(self, comm: Any, part: Array, owner: int, into: Array | None, layer: int) -> None:
        self._part: Array | None = contiguous(part)
        self._into = into
        self._pending = comm.start_reduce(self._part, owner, layer=layer) if comm.size > 1 else None

    def finish(self) -> None:
        if self._pending is not None:
            self._pending.wait()
        if self._into is not None:
            self._into[...] = self._part
        self._part = self._into = None  # whoever still has this has no memory of it


def _packed(array: Array, cuts: tuple[int, ...], axis: int) -> tuple[Array, list[int]]:
    """The pieces of an axis after each other, each contiguous, and their sizes.

    Cuts count from the first of them.
    """
    pieces = [
        array[(slice(None),) * axis + (slice(first - cuts[0], last - cuts[0]),)].reshape(-1)
        for first, last in pairwise(cuts)
    ]
    return np.concatenate(pieces), [piece.size for piece in pieces]


def _unpack(flat: Array, array: Array, cuts: tuple[int, ...], axis: int) -> None:
    """Undo `_packed`."""
    at = 0
    for first, last in pairwise(cuts):
        box = (slice(None),) * axis + (slice(first - cuts[0], last - cuts[0]),)
        size = array[box].size
        array[box] = flat[at : at + size].reshape(array[box].shape)
        at += size
