"""What trains a dense network takes arrays that are not in the host's memory."""

from __future__ import annotations

import numpy as np
import pytest

from foreign import ForeignArray, ForeignBackend
from sparsednn.comm import Alone
from sparsednn.comm.staged import Staged
from sparsednn.training.optimizers import make_optimizer


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_optimizers_take_arrays_of_a_device(name: str) -> None:
    """float32 there goes through NumPy's operators, and agrees with the compiled loops."""
    source = np.random.default_rng(0)
    momentum = 0.9 if name == "sgd" else None
    optimizer = make_optimizer(name, weight_decay=0.01, momentum=momentum)
    theta, gradient = source.standard_normal((2, 57)).astype(np.float32)
    slots = {slot: np.zeros(57, np.float32) for slot in optimizer.slots}
    there = [ForeignArray(array.copy()) for array in (theta, gradient)]
    slots_there = {slot: ForeignArray(array.copy()) for slot, array in slots.items()}
    for step in (1, 2, 3):
        optimizer.update(theta, gradient, slots, rate=0.1, step=step)
        optimizer.update(*there, slots_there, rate=0.1, step=step)
    np.testing.assert_allclose(ForeignBackend().to_host(there[0]), theta, rtol=2e-5, atol=1e-6)


def test_foreign_arrays_do_not_mix() -> None:
    """The tool itself: it must fail where a device would."""
    one = ForeignArray(np.ones(3))
    with pytest.raises(TypeError):
        one + np.ones(3)
    with pytest.raises(TypeError):
        np.ones(3) + one
    with pytest.raises(TypeError):
        one[...] = np.ones(3)
    with pytest.raises(TypeError):
        np.asarray(one)
    with pytest.raises(TypeError):
        np.concatenate([one, np.ones(2)])
    both = np.concatenate([one, one * 2])
    assert ForeignBackend().to_host(both).tolist() == [1, 1, 1, 2, 2, 2]


def test_staged_verbs_of_one_rank_leave_arrays_alone() -> None:
    staged = Staged(Alone(), ForeignBackend())
    array = ForeignArray(np.arange(4.0))
    staged.allreduce(array)
    for start in (staged.start_broadcast, staged.start_reduce, staged.start_allreduce):
        pending = start(array)
        pending.wait()
        pending.wait()
    for got in (staged.allgather(array, [4]), staged.reduce_scatter(array, [4])):
        assert ForeignBackend().to_host(got).tolist() == [0, 1, 2, 3]
    assert ForeignBackend().to_host(array).tolist() == [0, 1, 2, 3]
    assert staged.traffic.words() == 0
