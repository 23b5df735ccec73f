"""`ConvolutionShape`: the geometry of one convolution, and nothing else.

    Out[b, k, y, x] = Σ_{c, r, s} In[b, c, σy + δr - π, σx + δs - π] · Ker[k, c, r, s]

with stride σ, dilation δ and padding π in both directions (a cross-correlation, as in PyTorch);
with groups, the filters of a group see the channels of that group only. Must not know: ranks,
arrays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsednn.errors import ShapeError

__all__ = ["ConvolutionShape", "Window", "output_size"]


@dataclass(frozen=True, slots=True)
class Window:
    """What an operation reads along one axis: `taps` values `dilation` apart, every `stride`.

    `before` is the padding in front of the axis.
    """

    taps: int = 1
    stride: int = 1
    before: int = 0
    dilation: int = 1

    def needed(self, first: int, last: int) -> tuple[int, int]:
        """Return which inputs ``[lo, hi)`` outputs ``[first, last)`` read, padding included.

        ``lo`` may be negative, ``hi`` may lie behind the axis; no outputs read ``(0, 0)``.

        >>> Window(taps=3, stride=2, before=1).needed(4, 8)
        (7, 16)
        """
        if first >= last:
            return 0, 0
        lo = first * self.stride - self.before
        return lo, (last - 1) * self.stride - self.before + self.dilation * (self.taps - 1) + 1


def output_size(size: int, before: int, after: int, window: Window) -> int:
    """Return how many outputs a padded axis has; may be less than 1 where nothing fits."""
    reach = window.dilation * (window.taps - 1) + 1
    return (size + before + after - reach) // window.stride + 1


@dataclass(frozen=True, slots=True)
class ConvolutionShape:
    """Sizes of the input, the kernel and the output of a convolution.

    Parameters
    ----------
    images, channels, height, width
        Of the input; images may be 0.
    filters, taps
        The kernel is ``(filters, channels / groups, *taps)``.
    stride, padding, dilation
        Vertical and horizontal; padding is zeros on both sides.
    groups
        Divides channels and filters.

    Raises
    ------
    ShapeError
        If a size is not positive, groups do not divide, or the kernel is larger than the padded
        image.
    """

    images: int
    channels: int
    height: int
    width: int
    filters: int
    taps: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        """Check that the sizes fit together."""
        sizes = (self.channels, self.height, self.width, self.filters, *self.taps, self.groups)
        if min(*sizes, *self.stride, *self.dilation) < 1 or min(self.images, *self.padding) < 0:
            raise ShapeError(f"convolution: sizes must be positive, found {self}")
        if self.channels % self.groups or self.filters % self.groups:
            raise ShapeError(
                f"convolution: {self.groups} groups do not divide {self.channels} channels and "
                f"{self.filters} filters"
            )
        if min(self.output_height, self.output_width) < 1:
            raise ShapeError(
                f"convolution: a kernel of {self.taps[0]}×{self.taps[1]} (dilation "
                f"{self.dilation[0]}×{self.dilation[1]}) is larger than images of "
                f"{self.height}×{self.width} with padding {self.padding[0]}×{self.padding[1]}"
            )

    def window(self, axis: int) -> Window:
        """Return the window along the height (0) or the width (1)."""
        return Window(self.taps[axis], self.stride[axis], self.padding[axis], self.dilation[axis])

    @property
    def output_height(self) -> int:
        """Rows of the output."""
        return output_size(self.height, self.padding[0], self.padding[0], self.window(0))

    @property
    def output_width(self) -> int:
        """Columns of the output."""
        return output_size(self.width, self.padding[1], self.padding[1], self.window(1))

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """``(images, channels, height, width)``."""
        return self.images, self.channels, self.height, self.width

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """``(filters, channels / groups, rows, columns)``."""
        return self.filters, self.channels // self.groups, *self.taps

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        """``(images, filters, output_height, output_width)``."""
        return self.images, self.filters, self.output_height, self.output_width

    @property
    def flops(self) -> int:
        """Multiplications and additions of a forward pass; each gradient has as many."""
        images, filters, height, width = self.output_shape
        per_output = self.channels // self.groups * self.taps[0] * self.taps[1]
        return 2 * images * filters * height * width * per_output

    @property
    def covers_image(self) -> bool:
        """Whether it is a matrix product: the kernel covers all of the image, without padding."""
        return self.taps == (self.height, self.width) and self.padding == (0, 0)

    def with_images(self, images: int) -> ConvolutionShape:
        """Return the same convolution of another number of images."""
        return replace(self, images=images)
