"""Shapes of grids as a person types them; grids themselves: check_grid.py."""

from __future__ import annotations

import pytest

from sparsednn.comm.grid import ProcessGrid
from sparsednn.errors import UsageError


@pytest.mark.parametrize(
    ("text", "shape"), [("4", (4,)), ("2x2", (2, 2)), (" 2X3×1 ", (2, 3, 1)), ("16x64", (16, 64))]
)
def test_parse(text, shape):
    assert ProcessGrid.parse(text) == shape


@pytest.mark.parametrize(
    "text", ["", "x", "2x", "0x2", "-1x2", "2 x 2", "a", "1_0", "+2", "2,2", "²"]
)
def test_not_a_shape(text):
    with pytest.raises(UsageError, match="is not like 4, 2x2 or 2x3x1"):
        ProcessGrid.parse(text)
