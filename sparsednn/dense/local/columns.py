"""Convolution by columns and one batched product, on any array module.

The plain form of `im2col`: no compiled loops, columns of as many images at a time as a bound on
memory allows. What a GPU runs without cuDNN, tested with NumPy. Must not know: the device.
"""

from __future__ import annotations

from collections.abc import Iterator

from sparsednn.dense.local.base import Array, Pads, Pair, Shape
from sparsednn.dense.local.reference import ReferenceBackend, check_convolution
from sparsednn.dense.local.windows import check_output, output_size, pad, tap_slices, unpad

__all__ = ["ColumnBackend"]


class ColumnBackend(ReferenceBackend):
    """`LocalBackend` with columns as a strided view that is copied, and one product for it.

    Class attribute `bytes_of_columns` bounds what is copied at a time; one image may need more.
    """

    bytes_of_columns = 256 << 20

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
        """See `LocalBackend.convolution`."""
        check_convolution(x.shape, kernel.shape, groups)
        xp, b, k, taps = self.xp, len(x), len(kernel), kernel.shape[2:]
        size = output_size(x.shape, taps, stride, pads, dilation)
        y = xp.zeros((b, groups, k // groups, size[0] * size[1]), x.dtype)
        if y.size and kernel.size:
            weights = kernel.reshape(groups, k // groups, -1)
            padded = pad(xp, x, pads)
            for some in self._images(b, kernel[0].size * groups * y.shape[3] * x.itemsize):
                columns = self._columns(padded[some], taps, size, stride, dilation, groups)
                y[some] = xp.matmul(weights, columns)
        return y.reshape(b, k, *size)

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
        """See `LocalBackend.convolution_input_gradient`."""
        check_convolution(x_shape, kernel.shape, groups)
        xp, (b, c, h, w), (k, _, r, s) = self.xp, x_shape, kernel.shape
        check_output(dy.shape, x_shape, k, (r, s), stride, pads, dilation)
        size = dy.shape[2:]
        padded = xp.zeros((b, c, pads[0] + h + pads[2], pads[1] + w + pads[3]), dy.dtype)
        if dy.size and kernel.size:
            weights = kernel.reshape(groups, k // groups, -1).swapaxes(1, 2)
            grouped = dy.reshape(b, groups, k // groups, -1)
            for some in self._images(b, c * r * s * grouped.shape[3] * dy.itemsize):
                columns = xp.matmul(weights, grouped[some]).reshape(-1, c, r, s, *size)
                for i in range(r):
                    for j in range(s):
                        met = tap_slices((i, j), size, stride, dilation)
                        padded[some][:, :, met[0], met[1]] += columns[:, :, i, j]
        return unpad(xp, padded, x_shape, pads)

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
        """See `LocalBackend.convolution_kernel_gradient`."""
        check_convolution(x.shape, kernel_shape, groups)
        xp, b, (k, c, *_), taps = self.xp, len(x), kernel_shape, kernel_shape[2:]
        check_output(dy.shape, x.shape, k, taps, stride, pads, dilation)
        depth = c * taps[0] * taps[1]
        total = xp.zeros((groups, k // groups, depth), x.dtype)
        if dy.size and x.size:
            grouped = dy.reshape(b, groups, k // groups, -1)
            padded = pad(xp, x, pads)
            for some in self._images(b, depth * groups * grouped.shape[3] * x.itemsize):
                columns = self._columns(padded[some], taps, dy.shape[2:], stride, dilation, groups)
                total += xp.matmul(grouped[some], columns.swapaxes(2, 3)).sum(axis=0)
        return total.reshape(kernel_shape)

    def _images(self, images: int, bytes_of_one: int) -> Iterator[slice]:
        """As many images at a time as there is memory for, and no less than one."""
        some = max(1, self.bytes_of_columns // max(1, bytes_of_one))
        for first in range(0, images, some):
            yield slice(first, min(images, first + some))

    def _columns(
        self, padded: Array, taps: Pair, size: Pair, stride: Pair, dilation: Pair, groups: int
    ) -> Array:
        """``(images, groups, channels of a group · r · s, windows)`` of padded images."""
        b, c = padded.shape[:2]
        image, channel, row, element = padded.strides
        taps_apart = dilation[0] * row, dilation[1] * element
        view = self.xp.lib.stride_tricks.as_strided(
            padded,
            (b, c, *taps, *size),
            (image, channel, *taps_apart, stride[0] * row, stride[1] * element),
        )
        depth = c // groups * taps[0] * taps[1]
        return self.xp.ascontiguousarray(view).reshape(b, groups, depth, size[0] * size[1])
