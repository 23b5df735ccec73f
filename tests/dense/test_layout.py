"""Who owns what: every element has one owner, shares are even, and formulas are what boxes say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsednn.comm import Alone
from sparsednn.dense.layout import Axis, Block, Layout, bounds, concatenated, overlaps
from sparsednn.dense.moves import Move, moved_words
from sparsednn.errors import ShapeError

SIZES = st.integers(0, 11)
PARTS = st.integers(1, 4)


@st.composite
def layouts(draw: st.DrawFn, shape: tuple[int, ...] | None = None, ranks: int = 12) -> Layout:
    """A division of a tensor over a random grid of so many ranks, each axis by some of its axes."""
    shape = shape or tuple(draw(SIZES) for _ in range(3))
    grid = draw(st.sampled_from([(12, 1), (3, 4), (2, 6), (2, 2, 3), (3, 2, 2), (1, 12)]))
    owners = [draw(st.integers(0, len(shape) - 1)) for _ in grid]
    axes = [
        Axis(size, tuple(g for g in range(len(grid)) if owners[g] == axis))
        for axis, size in enumerate(shape)
    ]
    assert math.prod(grid) == ranks
    return Layout.on_grid(grid, axes)


def _cells(layout: Layout, rank: int) -> set[tuple[int, ...]]:
    grids = np.meshgrid(*layout.block(rank).indices(), indexing="ij")
    return set(zip(*(axis.ravel().tolist() for axis in grids), strict=True))


@given(size=SIZES, parts=st.integers(1, 15), inner=PARTS)
def test_cuts_are_even_and_finer_ones_contain_the_coarser(size: int, parts: int, inner: int):
    cuts = bounds(size, parts)
    lengths = np.diff(cuts)
    assert cuts[0] == 0
    assert cuts[-1] == size
    assert lengths.max() - lengths.min() <= 1
    assert set(cuts) <= set(bounds(size, parts * inner))


@given(layouts())
def test_every_element_has_one_owner(layout: Layout):
    owned = [_cells(layout, rank) for rank in range(layout.ranks)]
    assert sum(map(len, owned)) == math.prod(layout.shape) == layout.sizes().sum()
    assert len(set().union(*owned)) == math.prod(layout.shape)
    assert [len(cells) for cells in owned] == layout.sizes().tolist()


@given(st.data())
def test_common_elements_and_moved_words_are_counted(data: st.DataObject):
    one = data.draw(layouts())
    other = data.draw(layouts(shape=one.shape))
    both = [_cells(one, rank) & _cells(other, rank) for rank in range(one.ranks)]
    assert one.common(other).tolist() == [len(cells) for cells in both]
    sent = [
        sum(len(_cells(one, rank) & _cells(other, to)) for to in range(one.ranks) if to != rank)
        for rank in range(one.ranks)
    ]
    assert moved_words(one, other).tolist() == sent
    assert one.same_as(other) == all(
        _cells(one, rank) == _cells(other, rank) for rank in range(one.ranks)
    )


@given(st.data())
def test_boxes_pick_the_same_numbers_from_both_sides(data: st.DataObject):
    one = data.draw(layouts())
    other = data.draw(layouts(shape=one.shape))
    whole = np.arange(math.prod(one.shape)).reshape(one.shape)
    found = []
    for rank in range(one.ranks):
        mine = whole[np.ix_(*one.block(rank).indices())]
        for to in range(one.ranks):
            theirs = whole[np.ix_(*other.block(to).indices())]
            for own, need in overlaps(one.block(rank), other.block(to)):
                np.testing.assert_array_equal(mine[own], theirs[need])
                found += mine[own].ravel().tolist()
    assert sorted(found) == whole.ravel().tolist()


@given(groups=st.integers(1, 6), each=st.integers(1, 5), over=st.permutations([0, 1, 2]))
def test_groups_are_divided_inside(groups: int, each: int, over: list[int]):
    """Every group's channels are cut alike; a rank has the same part of each of its groups."""
    grid = (2, 3, 2)
    axis = Axis(groups * each, tuple(over[:2]), groups, (over[2],))
    layout = Layout.on_grid(grid, [axis])
    owned = [layout.block(rank).indices()[0] for rank in range(12)]
    assert sorted(np.concatenate(owned).tolist()) == list(range(groups * each))
    for channels in owned:
        parts = {tuple(channels[channels // each == g] % each) for g in set(channels // each)}
        assert len(parts) <= 1


def test_concatenated_channels_stay_where_they_are():
    grid = (2, 2)
    one = Layout.on_grid(grid, [Axis(4, (0,)), Axis(3, (1,))])
    two = Layout.on_grid(grid, [Axis(4, (0,)), Axis(5, (1,))])
    both = concatenated([one, two], axis=1)
    assert both.shape == (4, 8)
    first, second = np.arange(12).reshape(4, 3), 100 + np.arange(20).reshape(4, 5)
    whole = np.concatenate([first, second], axis=1)
    for rank in range(4):
        mine = np.concatenate(
            [
                first[np.ix_(*one.block(rank).indices())],
                second[np.ix_(*two.block(rank).indices())],
            ],
            axis=1,
        )
        np.testing.assert_array_equal(whole[np.ix_(*both.block(rank).indices())], mine)
    other = Layout.on_grid(grid, [Axis(4, (1,)), Axis(5, (0,))])
    with pytest.raises(ShapeError, match="not divided alike along axis 0"):
        concatenated([one, other], axis=1)


def test_what_does_not_fit_is_told():
    layout = Layout.on_grid((2,), [Axis(4, (0,)), Axis(3)])
    with pytest.raises(ShapeError, match="nothing to compare"):
        layout.common(Layout.on_grid((2,), [Axis(5, (0,)), Axis(3)]))
    with pytest.raises(ShapeError, match="one \\(ranks, n, 2\\) per axis"):
        Layout((4, 3), layout.intervals[:1])
    with pytest.raises(ShapeError, match="no slice"):
        Block((((0, 1), (2, 3)),)).slices()
    with pytest.raises(ShapeError, match="shapes and ranks must be the same"):
        Move(Alone(), layout, layout, np.float32)
    one = Layout.on_grid((1,), [Axis(4, (0,))])
    move = Move(Alone(), one, one, np.float32)
    with pytest.raises(ShapeError, match="owned block is float32"):
        move.forward(np.zeros(4))


def test_a_window_of_one_rank_is_moved_without_messages():
    """A tile that needs less than it owns: the rest comes back as zeros."""
    one = Layout.on_grid((1,), [Axis(6, (0,)), Axis(2)])
    part = one.with_axis(0, 6, np.array([[[1, 5]]]))
    move = Move(Alone(), one, part, np.float64, overlapping=True)
    assert not move.needs_messages
    assert not move.unchanged
    x = np.arange(12.0).reshape(6, 2)
    np.testing.assert_array_equal(move.forward(x), x[1:5])
    back = move.backward(np.ones((4, 2)))
    np.testing.assert_array_equal(back[:, 0], [0, 1, 1, 1, 1, 0])


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_unchanged_may_be_empty_along_another_axis(rank):
    """One element, on rank 1 before and after; what rank 0 has of it are no rows, or no columns."""
    world = Alone()
    world.rank, world.size = rank, 2
    owned = Layout.on_grid((2,), [Axis(1, (0,)), Axis(1)])
    needed = Layout.on_grid((2,), [Axis(1), Axis(1, (0,))])
    move = Move(world, owned, needed, np.float64)
    assert move.unchanged
    x = np.full(owned.block(rank).shape, 5.0)
    brought = move.forward(x)
    assert brought.shape == needed.block(rank).shape == ((1, 0), (1, 1))[rank]
    back = move.backward(brought)
    assert back.shape == x.shape
    np.testing.assert_array_equal(back, x)
