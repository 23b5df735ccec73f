"""The engines of training: finite differences here, everything else through real mpiexec."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from learning import gradients, make_task, own_examples, serial_engine
from mpi_runs import require_mpi
from networks import ACTIVATIONS
from sparsednn.comm.alone import Alone
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import whole_shard
from sparsednn.errors import ShapeError
from sparsednn.training.compiled import CompiledEngine
from sparsednn.training.losses import LOSSES

HERE = Path(__file__).resolve().parent
ENGINES, AUTOGRAD = HERE / "check_engines.py", HERE / "check_autograd.py"
TRAINER = HERE / "check_trainer.py"


@pytest.mark.parametrize(
    ("name", "ranks"), [*(("openmpi", ranks) for ranks in (1, 2, 3, 4)), ("mpich", 2)]
)
def test_on_ranks(name: str, ranks: int) -> None:
    require_mpi(name).check(ranks, ENGINES, TRAINER, timeout=500)


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_equal_to_autograd(ranks: int) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed: pip install torch==2.13.0")
    require_mpi("openmpi").check(ranks, AUTOGRAD, timeout=500)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("last", [*ACTIVATIONS, "softmax"])
def test_finite_differences(last: str, loss: str, dense: bool) -> None:
    """Central differences in float64, of every weight, bias and input, away from kinks."""
    images = 6
    ids = np.arange(images)
    checked = 0
    for seed in range(2):
        network, inputs, labels, values = make_task(seed, images, last=last, dense=dense, most=8)
        shard = whole_shard(network)
        examples = own_examples(shard, inputs, labels, values)
        engine = serial_engine(network, images, dtype=np.float64)

        def value(theta, engine=engine, shard=shard, examples=examples):
            engine.theta = theta
            return gradients(engine, shard, examples, ids, images, loss, Alone())[0].loss / images

        start = engine.theta.copy()
        here = value(start)
        found = engine.gradient.copy()
        for place in range(start.size):
            ends = []
            for sign in (1, -1):
                moved = start.copy()
                moved[place] += sign * 1e-5
                ends.append(value(moved))
            ahead, behind = (ends[0] - here) / 1e-5, (here - ends[1]) / 1e-5
            if abs(ahead - behind) > 1e-3 * (1 + abs(ahead)):
                continue  # a kink lies here
            assert found[place] == pytest.approx((ahead + behind) / 2, rel=1e-5, abs=1e-7)
            checked += 1
    assert checked > 20


def test_results_do_not_depend_on_threads_bit_by_bit() -> None:
    network, inputs, labels, values = make_task(12, 40, most=70)
    shard = whole_shard(network)
    examples = own_examples(shard, inputs, labels, values)
    found = []
    for threads in (1, 2, 3, 5):
        engine = CompiledEngine(
            shard, plans_of_all([shard])[0], Alone(), Alone(), threads=threads, columns=17,
            input_gradient=True,
        )  # fmt: skip
        _, layers = gradients(engine, shard, examples, np.arange(40), 40, "cross-entropy", Alone())
        found.append(layers)
        engine.free()
    for layers in found[1:]:
        for (a, b), (c, d) in zip(layers, found[0], strict=True):
            assert np.array_equal(a, c)
            assert np.array_equal(b, d)


def test_what_does_not_fit_does_not_reach_the_loops() -> None:
    network, inputs, _, _ = make_task(4, 9)
    shard = whole_shard(network)
    engine = CompiledEngine(
        shard, plans_of_all([shard])[0], Alone(), Alone(), threads=1, columns=4,
        input_gradient=False,
    )  # fmt: skip
    other, *_ = make_task(5, 1)
    assert other.n_in != network.n_in
    with pytest.raises(ShapeError, match="a tile"):
        engine.forward(inputs, np.arange(5))
    with pytest.raises(ShapeError, match="images 7 to 9 of 9"):
        engine.forward(inputs, np.array([7, 9]))
    with pytest.raises(ShapeError, match="features"):
        engine.forward(make_task(5, 9)[1], np.arange(3))
    y = engine.forward(inputs, np.arange(3))
    with pytest.raises(ShapeError, match="delta"):
        engine.backward(np.zeros((y.shape[0] + 1, 3), np.float32))
    with pytest.raises(ShapeError, match="delta"):
        engine.backward(np.zeros((y.shape[0], 2), np.float32))
    engine.free()
