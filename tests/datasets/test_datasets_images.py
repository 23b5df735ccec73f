"""The interpolation, against the 2-D FFT that it stands for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsednn.datasets import images as module
from sparsednn.datasets import interpolate_images, square_side
from sparsednn.errors import InputError, ShapeError


def direct(images: np.ndarray[Any, Any], side: int) -> np.ndarray[Any, Any]:
    """Values over their maximum, ``(side², n)``: one padded 2-D transform of the whole picture."""
    n, height, width = images.shape
    spectrum = np.fft.fftshift(np.fft.fft2(np.hstack(list(images.astype(float)))))
    padded = np.zeros((side, side * n), complex)
    # The constant term stands at size // 2, before and after.
    top, left = side // 2 - height // 2, side * n // 2 - width * n // 2
    padded[top : top + height, left : left + width * n] = spectrum
    value = np.abs(np.fft.ifft2(padded))
    per_image = (value / value.max()).reshape(side, n, side).transpose(2, 0, 1)
    return per_image.reshape(side * side, n)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.integers(1, 7),
    st.integers(0, 12),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 100, 1 << 17]),
)
def test_equals_the_padded_transform(
    height: int, width: int, n: int, more: int, seed: int, chunk: int
) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (n, height, width)).astype(np.uint8)
    assume(images.any())
    side = max(height, width) + more
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK_PIXELS", chunk)
        made = interpolate_images(images, side)
    made._check()
    value = direct(images, side)
    clear = np.abs(value - 0.5) > 1e-9
    assert np.array_equal(made.to_dense()[clear] == 1, value[clear] > 0.5)


@pytest.mark.parametrize("side", [28, 32, 45, 64])
def test_equals_the_padded_transform_at_the_size_of_mnist(side: int) -> None:
    random = np.random.default_rng(side)
    images = (random.integers(0, 256, (9, 28, 28)) * random.integers(0, 2, (9, 28, 28))).astype(
        np.uint8
    )
    value = direct(images, side)
    clear = np.abs(value - 0.5) > 1e-9
    made = interpolate_images(images, side).to_dense()
    assert np.array_equal(made[clear] == 1, value[clear] > 0.5)


def test_without_interpolation_a_pixel_is_compared_with_half_of_the_maximum() -> None:
    """Exactly half is not more than half, whatever the rounding of the transforms."""
    image = np.array([[[254, 127, 128], [126, 0, 200], [127, 127, 129]]], np.uint8)
    images = np.repeat(image, 7, axis=0)
    made = interpolate_images(images, 3).to_dense()
    assert np.array_equal(made[:, 4].reshape(3, 3).T == 1, image[0] > 127)


def test_feature_is_column_times_side_plus_row() -> None:
    image = np.zeros((1, 4, 4), np.uint8)
    image[0, 1, 3] = 9
    assert interpolate_images(image, 4).indices.tolist() == [3 * 4 + 1]


@pytest.mark.parametrize("limit", [0, 1, 4, 5, 99])
def test_a_limit_takes_the_first_images_of_the_whole_set(limit: int) -> None:
    random = np.random.default_rng(5)
    images = random.integers(0, 100, (5, 6, 6)).astype(np.uint8)
    images[4] *= 2  # the maximum is in the last image
    every = interpolate_images(images, 10, name="some")
    some = interpolate_images(images, 10, limit=limit, name="some")
    taken = min(limit, 5)
    assert (some.n_images, some.n_features, some.name) == (taken, 100, "some")
    assert np.array_equal(some.indptr, every.indptr[: taken + 1])
    assert np.array_equal(some.indices, every.indices[: every.indptr[taken]])


@pytest.mark.parametrize(("side", "dtype"), [(256, np.uint16), (257, np.int32)])
def test_indices_are_as_narrow_as_they_can_be(side: int, dtype: Any) -> None:
    made = interpolate_images(np.full((1, 2, 2), 255, np.uint8), side)
    assert made.indices.dtype == dtype
    assert made.nnz == side * side  # a constant stays one
    made._check()


@pytest.mark.parametrize(
    ("images", "side", "limit", "error", "message"),
    [
        (np.ones((4, 4), np.uint8), 8, None, ShapeError, r"found \(4, 4\)"),
        (np.ones((1, 4, 4)), 8, None, InputError, "uint8, found float64"),
        (np.ones((0, 4, 4), np.uint8), 8, None, InputError, "no pixels"),
        (
            np.ones((1, 4, 5), np.uint8),
            4,
            None,
            InputError,
            "4 × 5 pixels .* 5 to 32768 .* found 4",
        ),
        (np.ones((1, 4, 4), np.uint8), 2**16, None, InputError, "found 65536"),
        (np.ones((1, 4, 4), np.uint8), 4, -1, InputError, "limit .* found -1"),
        (np.zeros((1, 4, 4), np.uint8), 4, None, InputError, "all images are black"),
    ],
)
def test_what_cannot_be_interpolated(
    images: Any, side: int, limit: int | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        interpolate_images(images, side, limit=limit)


@pytest.mark.parametrize("neurons", [-4, 0, 2, 1000, 1023])
def test_side_of_a_number_that_is_no_square(neurons: int) -> None:
    with pytest.raises(InputError, match=f"found {neurons}"):
        square_side(neurons)
