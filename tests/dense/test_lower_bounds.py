"""Bounds: against brute force on small loop nests, known cases, and every algorithm's words."""

from __future__ import annotations

import itertools
from math import prod

import numpy as np
import pytest

from convolutions import random_shape
from sparsednn.dense.convolution import ConvolutionShape
from sparsednn.dense.distribution import Distribution
from sparsednn.dense.grids import REPLICATE, legal_placements
from sparsednn.dense.planning.lower_bounds import (
    loop_points,
    lower_bound,
    words_at_least,
    words_with_memory,
)
from sparsednn.dense.volume import convolution_volume


def matrix_product(m: int, n: int, k: int) -> ConvolutionShape:
    return ConvolutionShape(m, k, 1, 1, n, (1, 1))


def points_of(shape: ConvolutionShape) -> list[tuple[tuple[int, ...], ...]]:
    """Input, kernel and output element of each point of the loop nest."""
    found = []
    channels, filters = shape.channels // shape.groups, shape.filters // shape.groups
    ranges = (
        shape.images, shape.filters, channels, shape.output_height, shape.output_width, *shape.taps
    )  # fmt: skip
    for b, k, c, y, x, r, s in itertools.product(*map(range, ranges)):
        row = y * shape.stride[0] + r * shape.dilation[0] - shape.padding[0]
        column = x * shape.stride[1] + s * shape.dilation[1] - shape.padding[1]
        if 0 <= row < shape.height and 0 <= column < shape.width:
            channel = k // filters * channels + c
            found.append(((b, channel, row, column), (k, c, r, s), (b, k, y, x)))
    return found


def small_shape(source: np.random.Generator) -> ConvolutionShape:
    while True:
        shape = random_shape(source)
        per_point = shape.channels // shape.groups * prod(shape.taps)
        if prod(shape.output_shape) * per_point < 20_000:
            return shape


def test_points_are_counted_without_padding():
    source = np.random.default_rng(0)
    for _ in range(40):
        shape = small_shape(source)
        assert loop_points(shape) == len(points_of(shape)), shape


def test_any_set_of_points_touches_as_much_as_the_bound_says():
    """Boxes, random sets and greedy ones; of each as many points as one of P ranks has at least."""
    source = np.random.default_rng(1)
    checked = 0
    for _ in range(60):
        shape = small_shape(source)
        points = points_of(shape)
        if not points:
            continue
        ranks = int(source.integers(1, 9))
        number = -(-len(points) // ranks)
        orders = [list(source.permutation(len(points)))]
        for _ in range(3):  # sorted by some order of the loops: boxes, nearly
            loops = source.permutation(8)[:7]
            keys = [(*p[2], *p[1], p[0][2]) for p in points]
            orders.append(sorted(range(len(points)), key=lambda i: [keys[i][a] for a in loops]))
        bound = words_at_least(shape, ranks, owned=0.0)
        for order in orders:
            some = [points[i] for i in order[:number]]
            touched = sum(len({point[which] for point in some}) for which in range(3))
            assert touched >= bound - 1e-6, f"{shape} {ranks}"
            checked += 1
    assert checked > 100


@pytest.mark.parametrize(
    ("sizes", "ranks", "touched"),
    [
        # Al Daas et al. 2022, theorem 3, m ≥ n ≥ k: one, two and three dimensions.
        ((1000, 40, 20), 5, (1000 * 40 + 1000 * 20) / 5 + 40 * 20),
        ((1000, 40, 20), 50, 2 * (1000 * 40 * 20 * 20 / 50) ** 0.5 + 1000 * 40 / 50),
        ((1000, 40, 20), 5000, 3 * (1000 * 40 * 20 / 5000) ** (2 / 3)),
    ],
)
def test_matrix_products_have_the_known_bounds(sizes, ranks, touched):
    m, n, k = sizes
    owned = (m * n + m * k + n * k) / ranks
    for order in itertools.permutations(sizes):
        found = words_at_least(matrix_product(*order), ranks)
        assert found == pytest.approx(touched - owned, rel=1e-9), order


def test_the_two_dimensional_case_is_the_textbook_one():
    # mnk with P between m/n and mn/k²: 2 √(mnk²/P) + mn/P.
    m, n, k, ranks = 1000, 40, 20, 50
    assert m / n <= ranks <= m * n / k**2
    found = words_at_least(matrix_product(m, n, k), ranks, owned=0.0)
    assert found == pytest.approx(2 * (m * n * k * k / ranks) ** 0.5 + m * n / ranks)


def wide_shape(source: np.random.Generator) -> ConvolutionShape:
    """Sizes of which none is much larger than the others: there bounds say something."""
    taps = int(source.integers(1, 4))
    return ConvolutionShape(
        images=int(source.integers(1, 16)),
        channels=int(source.integers(4, 80)),
        height=int(source.integers(taps, 8)),
        width=int(source.integers(taps, 8)),
        filters=int(source.integers(4, 80)),
        taps=(taps, taps),
        stride=(int(source.integers(1, 3)), int(source.integers(1, 3))),
        padding=(taps // 2, taps // 2),
    )


def test_no_algorithm_sends_less():
    source = np.random.default_rng(2)
    checked = above = 0
    for number in range(250):
        shape = wide_shape(source) if number % 2 else random_shape(source)
        ranks = int(source.choice([1, 2, 3, 4, 6, 8, 12, 16]))
        every = legal_placements(shape, ranks)
        for at in source.permutation(len(every))[:6]:
            placement = every[int(at)]
            if placement.mode == REPLICATE:
                continue  # kernels have more than one copy: outside of the theory
            distribution = Distribution.of(shape, placement)
            parts = distribution.input, distribution.kernel, distribution.output
            owned = int(sum(each.sizes() for each in parts).max())
            bound = words_at_least(shape, ranks, owned=owned)
            volume = convolution_volume(distribution)
            words = int(volume.total(training=False).max())
            assert words >= bound - 1e-6, f"{shape} {placement}: {words} words, bound {bound}"
            bound = words_at_least(shape, ranks, owned=owned, training=True)
            total = int(volume.total().max())
            assert total >= bound - 1e-6, f"{shape} {placement}: {total} words, bound {bound}"
            checked += 1
            above += bound > 0
    assert checked > 500
    assert above > 100  # of bounds that say something


def test_bounds_grow_with_less_memory_and_more_work():
    shape = ConvolutionShape(64, 256, 14, 14, 256, (3, 3), padding=(1, 1))
    bounds = [lower_bound(shape, 64, memory=2.0**power) for power in range(6, 30)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == words_at_least(shape, 64)
    assert bounds[0] == words_with_memory(shape, 64, 64.0) > 10 * bounds[-1]
    for memory in (None, 1e4):
        forward = lower_bound(shape, 64, memory=memory)
        first = lower_bound(shape, 64, memory=memory, training=True, input_gradient=False)
        step = lower_bound(shape, 64, memory=memory, training=True)
        assert 0 < forward < first < step


def test_memory_bound_of_a_phase_is_no_less_than_a_sequential_run_needs():
    """Blocked matrix products, by hand: loads of b×b blocks with M = 3 b²."""
    for block in (2, 4, 8):
        size, memory = 64, 3 * block * block
        loads = 2 * size**3 // block + size * size  # A and B for every block product, C once
        assert words_with_memory(matrix_product(size, size, size), 1, memory) <= loads


def test_one_rank_moves_nothing():
    source = np.random.default_rng(3)
    for _ in range(50):
        assert words_at_least(random_shape(source), 1) <= 1e-9
        # Everything is touched but what no output sees.
