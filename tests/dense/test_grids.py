"""Grids, algorithms, and what a convolution's geometry says."""

from __future__ import annotations

import math

import numpy as np
import pytest

from convolutions import random_shape
from sparsednn.dense.convolution import ConvolutionShape, Window
from sparsednn.dense.distribution import Distribution, share_of
from sparsednn.dense.grids import (
    ALGORITHMS,
    GATHER,
    REPLICATE,
    STREAM,
    Grid,
    factorizations,
    legal_placements,
    make_placement,
)
from sparsednn.dense.volume import convolution_volume
from sparsednn.errors import ShapeError, UsageError


@pytest.mark.parametrize("ranks", [1, 2, 6, 8, 12, 64])
def test_factorizations_are_all_grids(ranks: int):
    grids = factorizations(ranks)
    assert len(set(grids)) == len(grids)
    assert all(grid.ranks == ranks for grid in grids)
    if ranks == 12:  # 2² · 3 over five axes
        assert len(grids) == math.comb(6, 4) * math.comb(5, 4)


def test_grids_are_read_as_typed():
    assert Grid.parse("2x1X1×2x3") == Grid(2, 1, 1, 2, 3)
    assert str(Grid(2, 1, 1, 2, 3)) == "2x1x1x2x3"
    for text in ("2x2", "2x1x1x2x0", "", "axbxcxdxe", "2x1x1x2x1x1"):
        with pytest.raises(UsageError, match="grid"):
            Grid.parse(text)


def test_algorithms_are_special_grids():
    grid = Grid(b=2, h=2, k=2)
    assert make_placement(grid, "2d").mode == STREAM
    assert make_placement(grid, "3d").mode == GATHER
    assert make_placement(Grid(b=8), "data").mode == REPLICATE
    for name in ("data", "spatial", "filter", "channel"):
        with pytest.raises(UsageError, match=f"algorithm {name}: all ranks are along"):
            make_placement(grid, name)
    with pytest.raises(UsageError, match="one rank along the channels"):
        make_placement(Grid(c=2), "2d")
    with pytest.raises(UsageError, match=r"'4d' is unknown: known are data"):
        make_placement(grid, "4d")


def test_legal_placements_leave_nobody_without_work():
    source = np.random.default_rng(0)
    for _ in range(20):
        shape = random_shape(source)
        for placement in legal_placements(shape, 6):
            placement.check()
            if placement.grid.b > shape.images:
                continue  # there was no grid that suits
        roomy = ConvolutionShape(16, 8, 16, 16, 8, (3, 3), padding=(1, 1))
    for placement in legal_placements(roomy, 8):
        distribution = Distribution.of(roomy, placement)
        assert distribution.output.lengths(0).min() > 0
        assert distribution.extended.sizes().min() > 0
    names = {placement.algorithm for placement in legal_placements(roomy, 8)}
    assert names == set(ALGORITHMS)
    one = ConvolutionShape(1, 1, 1, 1, 1, (1, 1))
    assert legal_placements(one, 4)  # more ranks than work: something is given all the same


def test_distribution_has_each_element_once():
    source = np.random.default_rng(1)
    for _ in range(30):
        shape = random_shape(source)
        for placement in legal_placements(shape, int(source.integers(1, 9))):
            distribution = Distribution.of(shape, placement)
            for layout in (distribution.input, distribution.output):
                assert layout.sizes().sum() == math.prod(layout.shape)
            copies = placement.grid.ranks if placement.mode == REPLICATE else 1
            assert distribution.kernel.sizes().sum() == copies * math.prod(shape.kernel_shape)
            for words in convolution_volume(distribution, has_bias=True).backward.values():
                assert words.min() >= 0


def test_shares_agree_with_layouts():
    source = np.random.default_rng(2)
    for _ in range(30):
        shape = random_shape(source)
        ranks = int(source.choice([1, 2, 4, 6, 8]))
        every = legal_placements(shape, ranks)
        distribution = Distribution.of(shape, every[int(source.integers(len(every)))])
        for rank in range(ranks):
            place = tuple(int(i) for i in np.unravel_index(rank, distribution.grid))
            own = share_of(distribution, place)
            extended = distribution.extended.block(rank).shape
            output = distribution.output.block(rank).shape
            assert (own.images, *own.extended) == (extended[0], *extended[2:])
            assert own.output == output[2:]
            k, c = place[4], place[5]
            assert own.groups * (own.inputs[k + 1] - own.inputs[k]) == extended[1]
            assert own.groups * (own.outputs[c + 1] - own.outputs[c]) == output[1]
            pieces = own.pieces()
            assert [piece[0] for piece in pieces[1:]] == [piece[1] for piece in pieces[:-1]]
            assert sum(last - first for first, last, _, _ in pieces) == (
                own.channels[1] - own.channels[0]
            )
            # The extended tile with its pads gives just the rows of the output.
            for axis in (0, 1):
                size = own.extended[axis] + own.pads[axis] + own.pads[axis + 2]
                reach = shape.dilation[axis] * (shape.taps[axis] - 1) + 1
                outputs = (size - reach) // shape.stride[axis] + 1
                assert max(0, outputs) == own.output[axis] or not own.output[axis]


def test_words_of_a_matrix_product_are_those_of_the_textbook():
    """1×1 kernels: 2D on √P × √P sends both operands once along rows and columns."""
    shape = ConvolutionShape(64, 32, 1, 1, 32, (1, 1))
    placement = make_placement(Grid(b=4, k=4), "2d")
    volume = convolution_volume(Distribution.of(shape, placement), input_gradient=True)
    tile_x, tile_k = 64 * 32 // 16, 32 * 32 // 16
    # Each rank passes on 3 of the 4 panels of its row and of its column.
    assert set(volume.forward["broadcast"].tolist()) == {3 * tile_x + 3 * tile_k}
    assert set(volume.backward["reduce"].tolist()) == {3 * tile_x + 3 * tile_k}
    cube = make_placement(Grid(b=2, k=2, c=2), "3d")
    shape = ConvolutionShape(16, 16, 1, 1, 16, (1, 1))
    volume = convolution_volume(Distribution.of(shape, cube))
    # Blocks are 8 × 8, of which a rank owns a half.
    assert set(volume.forward["allgather"].tolist()) == {32 + 32}
    assert set(volume.forward["reduce_scatter"].tolist()) == {32}


def test_windows():
    assert Window().needed(2, 5) == (2, 5)
    assert Window(3, 2, 1, 2).needed(0, 1) == (-1, 4)
    assert Window(3, 2, 1, 2).needed(3, 3) == (0, 0)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"taps": (0, 1)}, "must be positive"),
        ({"groups": 4}, "4 groups do not divide"),
        ({"taps": (9, 1)}, "larger than images of 5×5"),
        ({"padding": (-1, 0)}, "must be positive"),
        ({"taps": (3, 3), "dilation": (3, 1)}, r"dilation 3×1\) is larger"),
    ],
)
def test_convolutions_that_are_none(change: dict, match: str):
    sizes = {"images": 1, "channels": 6, "height": 5, "width": 5, "filters": 6, "taps": (1, 1)}
    with pytest.raises(ShapeError, match=match):
        ConvolutionShape(**{**sizes, **change})
