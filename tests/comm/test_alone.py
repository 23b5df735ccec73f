"""`Alone`: the verbs that only start, where there is no MPI."""

from __future__ import annotations

import numpy as np
import pytest

from sparsednn.comm import Alone, Pending, pending
from sparsednn.errors import UsageError


@pytest.mark.parametrize(
    "start",
    [
        lambda comm, array: comm.start_broadcast(array, 0, layer=1),
        lambda comm, array: comm.start_reduce(array, 0, "max", layer=1),
        lambda comm, array: comm.start_allreduce(array, "max", layer=1, verb="gradients"),
    ],
)
def test_a_start_is_over_at_once(start, monkeypatch):
    monkeypatch.setattr(pending, "load_mpi", lambda: pytest.fail("MPI is not needed"))
    comm, array = Alone(), np.random.default_rng(0).normal(size=(3, 5))
    before = array.copy()
    started = start(comm, array)
    assert isinstance(started, Pending)
    started.wait()
    started.wait()
    assert np.array_equal(array, before)
    assert comm.traffic.rows() == []
    assert not pending._under_way


def test_reduce_leaves_the_array():
    comm, array = Alone(), np.random.default_rng(1).normal(size=7)
    before = array.copy()
    comm.reduce(array, 0)
    assert np.array_equal(array, before)
    assert comm.traffic.rows() == []


@pytest.mark.parametrize("verb", ["start_broadcast", "reduce", "start_reduce"])
def test_a_root_that_is_none(verb):
    name = verb.removeprefix("start_")
    with pytest.raises(UsageError, match=f"{name}: root 1 is none of 1 ranks"):
        getattr(Alone(), verb)(np.zeros(3), 1)
