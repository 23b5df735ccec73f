"""The interface of a backend: all arithmetic that one rank does on its blocks of a dense network.

An algorithm (distributed convolution, layer) takes a `LocalBackend` and never asks which one it is.
A backend sees tiles only: must not know ranks, grids, or where in the whole image a tile lies; what
depends on that (pads at the border, divisors of averages, sums over ranks) comes in as an argument.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from numpy.typing import DTypeLike, NDArray

__all__ = ["Array", "LocalBackend", "Pads", "Pair", "Shape"]

#: An array of the backend's own kind: NumPy's for those on the CPU, CuPy's on a GPU.
Array: TypeAlias = Any
#: Vertical, horizontal.
Pair: TypeAlias = tuple[int, int]
#: Rows or columns of zeros added at (top, left, bottom, right).
Pads: TypeAlias = tuple[int, int, int, int]
Shape: TypeAlias = tuple[int, int, int, int]


class LocalBackend(Protocol):
    """Convolutions, pooling and what belongs to them on tiles of one rank.

    Notes
    -----
    Activations are ``(images, channels, height, width)``, kernels ``(filters, channels / groups, r,
    s)``, all of them C-contiguous and of one dtype, float32 or float64; results are so, too, are
    new, and belong to the caller. Any extent of a tile may be 0: a sum of nothing is 0.

    A window of ``taps`` rows and columns, ``dilation`` apart, moves by ``stride`` over the tile
    with ``pads`` around it, so the output has ``(height + top + bottom - dilation (r - 1) - 1) //
    stride + 1`` rows, and no less than 0. Pads may be unequal and larger than the window.

    The same input gives the same bits, whatever ran before; another number of threads may round
    otherwise. A backend may be used by one thread at a time.
    """

    name: str
    threads: int
    on_device: bool
    """Whether its arrays are not in the host's memory."""

    def convolution(
        self,
        x: Array,
        kernel: Array,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """``y[b, k, h, w] = Σ x[b, c, σh + δr - top, σw + δs - left] · kernel[k, c, r, s]``.

        The sum is over c, r, s. With ``groups``, filters of group g see the g-th part of the
        channels only.
        """

    def convolution_input_gradient(
        self,
        dy: Array,
        kernel: Array,
        x_shape: Shape,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """Gradient with respect to `x`, of shape `x_shape`: the transpose of `convolution` in x."""

    def convolution_kernel_gradient(
        self,
        x: Array,
        dy: Array,
        kernel_shape: Shape,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> Array:
        """Gradient with respect to the kernel, of shape `kernel_shape`, summed over images."""

    def convolution_gradients(
        self,
        x: Array,
        dy: Array,
        kernel: Array,
        *,
        stride: Pair = (1, 1),
        pads: Pads = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        groups: int = 1,
    ) -> tuple[Array, Array]:
        """Both gradients, ``(dx, dkernel)``; a library may share work between them."""

    def max_pool(
        self, x: Array, *, taps: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0)
    ) -> tuple[Array, Array]:
        """Largest element of each window, and `where` it was, for `max_pool_gradient` alone.

        Pads are never the largest: a window of nothing else gives -inf. Of equal elements the first
        in row order is taken; NaN is larger than all (as in PyTorch).
        """

    def max_pool_gradient(
        self,
        dy: Array,
        where: Array,
        x_shape: Shape,
        *,
        taps: Pair,
        stride: Pair,
        pads: Pads = (0, 0, 0, 0),
    ) -> Array:
        """Add each ``dy`` to the element that was the largest of its window."""

    def average_pool(
        self, x: Array, *, taps: Pair, stride: Pair, pads: Pads = (0, 0, 0, 0), count: float | Array
    ) -> Array:
        """Sum of each window, divided by `count`.

        `count` is one number, or an array ``(output height, output width)``: how many elements of a
        window count at the border depends on where the tile lies, which the caller knows.
        """

    def average_pool_gradient(
        self,
        dy: Array,
        x_shape: Shape,
        *,
        taps: Pair,
        stride: Pair,
        pads: Pads = (0, 0, 0, 0),
        count: float | Array,
    ) -> Array:
        """Add ``dy / count`` to all elements of each window."""

    def relu(self, x: Array, *, in_place: bool = False) -> Array:
        """``max(x, 0)``; NaN stays NaN. With `in_place` the result is `x` itself."""

    def relu_gradient(self, dy: Array, y: Array, *, in_place: bool = False) -> Array:
        """`dy`, and 0 where ``y == 0``. With `in_place` the result is `dy` itself."""

    def channel_sums(self, x: Array) -> Array:
        """``(channels,)`` float64: sums over images, rows and columns, added up in float64."""

    def channel_squares(self, x: Array, mean: Array) -> Array:
        """``(channels,)`` float64: sums of ``(x - mean)²``, with ``mean`` ``(channels,)``."""

    def normalize(
        self, x: Array, mean: Array, inverse_std: Array, gamma: Array, beta: Array
    ) -> Array:
        """``(x - mean) · inverse_std · gamma + beta``; all but `x` are ``(channels,)``.

        The arrays per channel may be of the tile's dtype or float64.
        """

    def normalize_gradient_sums(
        self, dy: Array, x: Array, mean: Array, inverse_std: Array
    ) -> tuple[Array, Array]:
        """``(channels,)`` float64: ``Σ dy`` and ``Σ dy · x̂`` with ``x̂ = (x - mean) · inverse_std``.

        Summed over all ranks that hold a part of the channel they are the gradients of beta and
        gamma; divided by the number of elements they are what `normalize_gradient` wants.
        """

    def normalize_gradient(
        self,
        dy: Array,
        x: Array,
        mean: Array,
        inverse_std: Array,
        gamma: Array,
        mean_dy: Array,
        mean_dy_xhat: Array,
    ) -> Array:
        """``gamma · inverse_std · (dy - mean_dy - x̂ · mean_dy_xhat)`` (Ioffe and Szegedy 2015)."""

    def to_host(self, a: Array) -> NDArray[Any]:
        """NumPy array with the values of `a`: itself where it is one already."""

    def from_host(self, a: NDArray[Any]) -> Array:
        """Array of the backend with the values of `a`: itself where it is one already."""

    def empty(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """New array with any values."""

    def zeros(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """New array of zeros."""
