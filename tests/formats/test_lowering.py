"""Convolutions as matrices, against loops written out and against PyTorch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsednn import SparseLayer
from sparsednn.errors import InputError, ShapeError
from sparsednn.formats import lowering
from sparsednn.formats.lowering import Convolution


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[NDArray[np.float32], Convolution]:
    """Small kernels (some of their weights zero) and geometries of every kind."""
    small = st.integers(1, 3)
    groups, c, per_group = draw(small), draw(small), draw(small)
    taps, stride, dilation = [(draw(small), draw(small)) for _ in range(3)]
    pads = [draw(st.integers(0, 2)) for _ in range(4)]
    size = [
        draw(st.integers(max(1, d * (t - 1) + 1 - before - after), 7))
        for t, d, before, after in zip(taps, dilation, pads[:2], pads[2:], strict=True)
    ]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (groups * per_group, c, *taps)
    kernel = rng.integers(-2, 3, shape).astype(np.float32)  # exact in any order of sums
    top, left, bottom, right = pads
    geometry = Convolution(
        shape, (groups * c, size[0], size[1]), stride, (top, left, bottom, right), dilation
    )
    return kernel, geometry


def written_out(kernel: NDArray[np.float32], g: Convolution) -> NDArray[np.float32]:
    """The definition of a convolution, one weight and one output pixel at a time."""
    matrix = np.zeros(g.shape, np.float32)
    (_, h, w), (k, h_out, w_out) = g.image, g.output
    for out in range(k):
        group = out // (k // g.groups)
        for (c, i, j), weight in np.ndenumerate(kernel[out]):
            for y in range(h_out):
                for x in range(w_out):
                    at_y = y * g.stride[0] + i * g.dilation[0] - g.pads[0]
                    at_x = x * g.stride[1] + j * g.dilation[1] - g.pads[1]
                    if 0 <= at_y < h and 0 <= at_x < w:
                        channel = group * kernel.shape[1] + c
                        matrix[(out * h_out + y) * w_out + x, (channel * h + at_y) * w + at_x] = (
                            weight
                        )
    return matrix


@settings(deadline=None, max_examples=80)
@given(convolutions())
def test_toeplitz_is_the_definition(made: tuple[NDArray[np.float32], Convolution]) -> None:
    kernel, geometry = made
    layer = SparseLayer(*lowering.toeplitz(kernel, geometry), geometry.shape[1])  # checks all
    assert layer.shape == geometry.shape
    assert layer.values.all(), "zeros of the kernel are not stored"
    np.testing.assert_array_equal(layer.weight.toarray(), written_out(kernel, geometry))


@settings(deadline=None, max_examples=40)
@given(convolutions(), st.integers(0, 2**32))
def test_toeplitz_is_what_torch_computes(
    made: tuple[NDArray[np.float32], Convolution], seed: int
) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    kernel, g = made
    images = np.random.default_rng(seed).integers(-3, 4, (4, *g.image)).astype(np.float32)
    top, left, bottom, right = g.pads
    expected = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.from_numpy(images), (left, right, top, bottom)),
        torch.from_numpy(kernel),
        stride=g.stride,
        dilation=g.dilation,
        groups=g.groups,
    ).numpy()
    assert expected.shape[1:] == g.output
    matrix = SparseLayer(*lowering.toeplitz(kernel, g), g.shape[1]).weight
    found = (matrix @ images.reshape(4, -1).T).T.reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("taps", [(1, 1), (2, 2), (3, 3), (4, 5), (6, 1)])
def test_same_padding_is_that_of_torch(taps: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: pip install torch")
    kernel = np.arange(2 * math.prod(taps), dtype=np.float32).reshape(2, 1, *taps)
    images = np.arange(42, dtype=np.float32).reshape(1, 1, 6, 7)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(images), torch.from_numpy(kernel), padding="same"
    ).numpy()
    top, left, bottom, right = lowering.same_padding(taps)
    g = Convolution((2, 1, *taps), (1, 6, 7), pads=(top, left, bottom, right))
    assert g.output == (2, 6, 7)
    matrix = SparseLayer(*lowering.toeplitz(kernel, g), g.shape[1]).weight
    np.testing.assert_array_equal((matrix @ images.reshape(-1)).reshape(expected.shape), expected)


def test_kernel_matrix_is_the_product_with_patches() -> None:
    rng = np.random.default_rng(0)
    kernel, patch = rng.random((5, 2, 3, 4)), rng.random((2, 3, 4))
    expected = np.einsum("kcij,cij->k", kernel, patch)
    np.testing.assert_allclose(lowering.kernel_matrix(kernel) @ patch.reshape(-1), expected)


@pytest.mark.parametrize(
    ("kernel", "image", "options", "message"),
    [
        ((4, 2, 3, 3), (3, 8, 8), {}, r"takes 2 channels, the image 3×8×8 has 3: no number of gr"),
        ((3, 1, 3, 3), (2, 8, 8), {}, "no number of groups fits"),  # 2 groups, 3 outputs
        ((1, 1, 9, 9), (1, 8, 8), {}, "kernel 9×9 is larger than the padded image 1×8×8"),
        ((1, 1, 3, 3), (1, 8, 8), {"dilation": (4, 1)}, "is larger than the padded image"),
        ((1, 1, 3, 3), (1, 8, 8), {"stride": (0, 1)}, r"strides \(0, 1\) .* must be positive"),
        ((1, 1, 3, 3), (1, 8, 8), {"pads": (0, 0, 0, -1)}, "pads .* must not be negative"),
        ((1, 2**11, 1, 1), (2**11, 2**10, 2**10), {}, r"more than 2\^31 - 1 values"),
    ],
)
def test_geometries_that_do_not_fit(
    kernel: tuple[int, int, int, int], image: tuple[int, int, int], options: Any, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        Convolution(kernel, image, **options)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    kernel = np.ones((2, 1, 2, 2), np.float32)
    kernel[1, 0, 1, 0] = value
    with pytest.raises(InputError, match=rf"kernel weight \(1, 0, 1, 0\) is {value}: it must be"):
        lowering.toeplitz(kernel, Convolution((2, 1, 2, 2), (1, 5, 5)))


def test_what_no_memory_holds_is_refused_before_it_is_tried() -> None:
    kernel = np.ones((256, 128, 3, 3), np.float32)
    with pytest.raises(MemoryError, match=r"128×4000×4000 images is a matrix of \d+ weights, \d+"):
        lowering.toeplitz(kernel, Convolution((256, 128, 3, 3), (128, 4000, 4000)))
