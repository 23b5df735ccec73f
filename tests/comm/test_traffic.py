"""Counters of words, bytes and messages."""

from __future__ import annotations

import numpy as np
import pytest

from sparsednn.comm.traffic import Traffic
from sparsednn.errors import ShapeError


def test_sums_and_rows():
    traffic = Traffic()
    traffic.count("exchange", 1, 10, 40, 2)
    traffic.count("exchange", 1, 5, 20, 1)
    traffic.count("exchange", 0, 1, 4, 1)
    traffic.count("allreduce", None, 3, 24, 6)
    assert traffic.rows() == [
        ("allreduce", None, 3, 24, 6, 1),
        ("exchange", 0, 1, 4, 1, 1),
        ("exchange", 1, 15, 60, 3, 2),
    ]
    assert (traffic.words(), traffic.nbytes(), traffic.messages()) == (19, 88, 10)
    assert traffic.words("exchange") == 16
    assert traffic.words("exchange", 0) == 1
    assert traffic.nbytes(layer=1) == 60
    assert traffic.messages("gather") == 0
    assert repr(traffic) == "Traffic(words=19, bytes=88, messages=10)"
    traffic.clear()
    assert traffic.rows() == []


def test_counts_of_a_compiled_loop():
    traffic = Traffic()
    traffic.count("exchange", 1, 1, 4, 1)
    words, messages = np.array([7, 0, 2**40]), np.array([2, 0, 3])
    traffic.count_layers("exchange", words, messages, 4, calls=3)
    assert traffic.rows() == [
        ("exchange", 0, 7, 28, 2, 3),
        ("exchange", 1, 1, 4, 1, 4),
        ("exchange", 2, 2**40, 2**42, 3, 3),
    ]
    assert all(type(number) is int for row in traffic.rows() for number in row[2:])
    with pytest.raises(ShapeError, match="traffic of 'exchange'"):
        traffic.count_layers("exchange", words, messages[:2], 4)
