"""Checks of `ProcessGrid` in all shapes that the number of ranks has."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sparsednn.comm.grid import ProcessGrid
from sparsednn.errors import UsageError


def shapes(ranks):
    """All shapes of one to three axes with so many places."""
    for axes in (1, 2, 3):
        for shape in itertools.product(range(1, ranks + 1), repeat=axes):
            if math.prod(shape) == ranks:
                yield shape


def check_communicators_along_axes(world):
    for shape in shapes(world.size):
        grid = ProcessGrid(world, shape)
        places = np.arange(world.size).reshape(shape)
        assert grid.shape == shape
        assert grid.coordinates == tuple(np.argwhere(places == world.rank)[0])
        for rank in range(world.size):
            assert grid.rank_of(grid.coordinates_of(rank)) == rank
        for number in range(len(shape) + 1):
            for axes in itertools.combinations(range(len(shape)), number):
                index = tuple(
                    slice(None) if axis in axes else coordinate
                    for axis, coordinate in enumerate(grid.coordinates)
                )
                line = grid.along(*axes)
                expected = np.atleast_1d(places[index]).reshape(-1)
                assert line.size == math.prod(shape[axis] for axis in axes)
                assert np.array_equal(line.allgather(np.array([world.rank])), expected)
                assert grid.along(*reversed(axes)) is line
                assert line.traffic is world.traffic
        grid.free()
        grid.free()


def check_wrong_grids(world):
    p = world.size
    with pytest.raises(UsageError, match=f"grid {p}x2 has {2 * p} places for {p} ranks"):
        ProcessGrid(world, (p, 2))
    for shape in ((), (p, 0), (-1, -p)):
        with pytest.raises(UsageError, match="at least one rank"):
            ProcessGrid(world, shape)
    grid = ProcessGrid(world, ProcessGrid.parse(f"1x{p}"))
    assert str(grid) == f"1x{p}"
    for axes in ((2,), (-1,), (0, 0)):
        with pytest.raises(UsageError, match=f"grid 1x{p}: no axes"):
            grid.along(*axes)
    with pytest.raises(UsageError, match="no rank"):
        grid.coordinates_of(p)
    for place in ((0,), (0, p), (0, -1)):
        with pytest.raises(UsageError, match="no place"):
            grid.rank_of(place)
