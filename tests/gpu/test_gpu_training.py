"""Training on a device: gradients, steps and whole trainings are those of the CPU's engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from gpu.lazy_device import LazyDevice

from learning import close, gradients, make_task, own_examples, serial_engine
from mpi_runs import require_mpi
from networks import ACTIVATIONS, random_layer
from row_wise import make_inputs
from sparsednn import SparseNetwork
from sparsednn.comm.alone import Alone
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import whole_shard
from sparsednn.errors import DeviceMemoryError, InputError, UsageError
from sparsednn.gpu.twin import TwinDevice
from sparsednn.training.compiled import CompiledEngine
from sparsednn.training.device_engine import DeviceEngine
from sparsednn.training.device_memory import fit_tiles, tile_bytes
from sparsednn.training.device_stepper import DeviceStepper
from sparsednn.training.optimizers import SGD, Adam
from sparsednn.training.settings import Settings
from sparsednn.training.sparsity import DynamicSparsity
from sparsednn.training.stepper import DivergenceError, Stepper
from sparsednn.training.trainer import TrainingRun

HERE = Path(__file__).resolve().parent
IMAGES = 40


class Task:
    """A network with examples on one rank, and engines and steppers for it."""

    def __init__(self, seed, **given):
        """Make a random task, or one for a network."""
        if isinstance(seed, SparseNetwork):
            self.network, values = seed, None
            inputs, labels = make_inputs(seed, IMAGES, 0), np.arange(IMAGES) % seed.n_out
        else:
            self.network, inputs, labels, values = make_task(seed, IMAGES, **given)
        self.shard = whole_shard(self.network)
        self.examples = own_examples(self.shard, inputs, labels, values)

    def engine(self, device, **given):
        given = {"columns": IMAGES, "input_gradient": False} | given
        plans = plans_of_all([self.shard])[0]
        return DeviceEngine(device, self.shard, plans, Alone(), Alone(), **given)

    def compiled(self):
        plans = plans_of_all([self.shard])[0]
        return CompiledEngine(
            self.shard, plans, Alone(), Alone(), threads=1, columns=IMAGES, input_gradient=False
        )

    def stepper(self, engine, loss, **given):
        last = self.shard.layers[-1]
        kind = DeviceStepper if isinstance(engine, DeviceEngine) else Stepper
        return kind(
            engine, Alone(), Alone(), rows=last.rows, n_out=last.n_out, loss=loss, **given
        )  # fmt: skip

    def steps(self, stepper, batches, rate=0.05):
        return [
            stepper.train(self.examples, ids, ids.size, rate=rate, step=step)
            for step, ids in enumerate(batches, 1)
        ]


def batches_of(seed, count):
    rng = np.random.default_rng(seed)
    return [rng.permutation(IMAGES)[: rng.integers(1, IMAGES + 1)] for _ in range(count)]


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
@pytest.mark.parametrize("last", [*ACTIVATIONS, "softmax"])
def test_gradients_are_those_in_float64(quick_device, last, loss):
    for seed in range(2):
        task = Task(10 * seed + len(last), last=last, dense=seed == 1 and loss == "mse")
        ids = np.random.default_rng(seed).permutation(IMAGES)[:37]
        truth = serial_engine(task.network, IMAGES, dtype=np.float64)
        given = (task.shard, task.examples, ids, 37, loss, Alone())
        score, expected = gradients(truth, *given)
        for columns in (37, 5):
            engine = task.engine(quick_device, columns=columns, input_gradient=True)
            assert engine.tile == columns
            found_score, found = gradients(engine, *given)
            close(found, expected, task.network, task.shard, relative=2e-4)
            assert np.isclose(found_score.loss, score.loss, rtol=1e-4)
            if columns == 37:
                for layer in range(len(task.network) + 1):
                    np.testing.assert_allclose(
                        engine.activations_of(layer), truth.activations_of(layer), atol=1e-4
                    )
                size = np.abs(truth.input_gradients()).max(initial=0.0)
                np.testing.assert_allclose(
                    engine.input_gradients(), truth.input_gradients(), rtol=1e-3,
                    atol=1e-4 * size + 1e-30,
                )  # fmt: skip
            engine.free()


STEPS = [
    ("cross-entropy", {"optimizer": SGD()}),
    ("mse", {"optimizer": SGD(momentum=0.9, weight_decay=1e-3)}),
    ("cross-entropy", {"optimizer": SGD(momentum=0.9, nesterov=True), "clip": 0.05}),
    ("mse", {"optimizer": Adam(weight_decay=1e-3), "clip": 100.0}),
    ("cross-entropy", {"optimizer": Adam()}),
]


@pytest.mark.parametrize(("loss", "given"), STEPS, ids=str)
def test_steps_are_those_of_the_cpu(quick_device, loss, given):
    for seed in range(3):
        task = Task(seed + 20, last="softmax" if seed else None, dense=seed == 2)
        batches = batches_of(seed, 8)
        cpu = task.stepper(task.compiled(), loss, **given)
        expected = task.steps(cpu, batches)
        layers = cpu.engine.layers_of(cpu.engine.theta)
        tested = cpu.evaluate(task.examples, np.arange(IMAGES))
        for columns in (IMAGES, 7):
            engine = task.engine(quick_device, columns=columns, slots=given["optimizer"].slots)
            stepper = task.stepper(engine, loss, **given)
            for mine, its in zip(task.steps(stepper, batches), expected, strict=True):
                assert mine.loss == pytest.approx(its.loss, rel=1e-3)
                assert (mine.correct, mine.images) == (its.correct, its.images)
            close(engine.layers_of(engine.theta), layers, task.network, task.shard, relative=1e-3)
            for name, array in stepper.slots.items():
                close(
                    engine.layers_of(array), cpu.engine.layers_of(cpu.slots[name]), task.network,
                    task.shard, relative=2e-3,
                )  # fmt: skip
            found = stepper.evaluate(task.examples, np.arange(IMAGES))
            assert found.loss == pytest.approx(tested.loss, rel=1e-3)
            assert (found.correct, found.images) == (tested.correct, IMAGES)
            # One for whole batches, or one for pieces and one for the update; one to test.
            assert len(engine.graphs) <= (2 if columns == IMAGES else 4)
            assert engine.seconds["device"] > 0
            engine.free()
        cpu.engine.free()


def test_steps_of_the_real_kernels(real_code):
    """Everything end to end as PTX (or on a GPU): two batches of several pieces, and a test."""
    for loss, optimizer in (
        ("cross-entropy", SGD(momentum=0.9, nesterov=True)),
        ("mse", Adam(epsilon=1e-3)),  # otherwise rounding of a small gradient shows
    ):
        task = Task(5, last="softmax", most=14)
        found = []
        for device in (TwinDevice(), real_code):
            engine = task.engine(device, columns=35, slots=optimizer.slots)
            stepper = task.stepper(engine, loss, optimizer=optimizer, clip=0.5)
            scores = task.steps(stepper, [np.arange(35)[::-1], np.arange(38)])
            scores.append(stepper.evaluate(task.examples, np.arange(IMAGES)))
            found.append((scores, engine.theta, stepper.slots))
            engine.free()
        np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)
        for mine, its in zip(found[0][0], found[1][0], strict=True):
            assert mine.loss == pytest.approx(its.loss, rel=1e-5)
            assert mine.correct == its.correct
        for name, array in found[0][2].items():
            np.testing.assert_allclose(array, found[1][2][name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("bias", "clip", "what"),
    [(np.nan, None, "the loss is nan"), (3e38, 1.0, "the norm of the gradient is (inf|nan)")],
)
def test_what_is_no_number_changes_nothing(quick_device, bias, clip, what):
    network = SparseNetwork([random_layer(np.random.default_rng(2), 4, 6, activation="identity")])
    task = Task(network)
    task.examples.inputs.values[:] *= 100  # too much for a gradient before it is for a loss
    engine = task.engine(quick_device, slots=("momentum",))
    stepper = task.stepper(engine, "mse", optimizer=SGD(momentum=0.9), clip=clip)
    task.steps(stepper, batches_of(1, 2), rate=1e-9)
    layers = engine.layers_of(engine.theta)
    layers[-1][1][:] = bias
    engine.theta = engine.flat(layers)
    before, momentum = engine.theta, stepper.slots["momentum"]
    with pytest.raises(DivergenceError, match=f"step 3: {what}; the outputs of "):
        stepper.train(task.examples, np.arange(9), 9, rate=0.1, step=3)
    assert np.array_equal(engine.theta, before, equal_nan=True)
    assert np.array_equal(stepper.slots["momentum"], momentum)
    engine.free()


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_streams_wait_for_each_other(seed):
    """On a device whose streams are as late as they may be, or at random."""
    task = Task(21, last="softmax")
    found = []
    for device in (TwinDevice(), LazyDevice(seed)):
        for columns in (IMAGES, 9):
            engine = task.engine(device, columns=columns, slots=("momentum",))
            stepper = task.stepper(engine, "mse", optimizer=SGD(momentum=0.9), clip=0.1)
            scores = task.steps(stepper, batches_of(4, 4))
            scores.append(stepper.evaluate(task.examples, np.arange(IMAGES)))
            found.append((scores, engine.theta, stepper.slots["momentum"]))
            engine.free()
    assert device.late > 100
    for one, other in zip(found[:2], found[2:], strict=True):
        assert one[0] == other[0]
        assert np.array_equal(one[1], other[1])
        assert np.array_equal(one[2], other[2])


def test_a_tile_is_what_fits():
    lines = [100, 300, 10]
    each = tile_bytes(lines)
    for tiles, columns, expected in ((20, 200, 200), (4, 200, 128), (2, 200, 64), (1.5, 200, 32)):
        device = TwinDevice(memory=int(each * tiles * 64 / 63) + 4096)
        assert fit_tiles(device, lines, columns).columns == expected
    with pytest.raises(DeviceMemoryError, match=r"a tile of 32 images takes .* use more GPUs"):
        fit_tiles(TwinDevice(memory=each // 2), lines, 200)


def test_what_does_not_fit_is_told():
    task = Task(7, most=40)
    with pytest.raises(DeviceMemoryError, match=r"weights to train take about .* on more GPUs"):
        task.engine(TwinDevice(memory=500))
    device = TwinDevice(memory=1 << 20)
    engine = task.engine(device)
    device._total = 0
    with pytest.raises(DeviceMemoryError, match="keeps all images on the GPU"):
        engine.forward(task.examples.inputs, np.arange(3))


def test_memory_comes_back():
    task = Task(7)
    device = TwinDevice()
    free = device.free_bytes()
    engine = task.engine(device, slots=("first", "second"))
    stepper = task.stepper(engine, "mse", optimizer=Adam(), clip=1.0)
    task.steps(stepper, batches_of(2, 2))
    assert device.free_bytes() < free
    engine.free()
    del engine, stepper
    assert device.free_bytes() == free


def test_what_is_refused():
    task = Task(7)
    engine = task.engine(TwinDevice())
    with pytest.raises(UsageError, match="did not go through the first layer"):
        engine.input_gradients()
    labels = np.full(IMAGES, task.network.n_out)
    wrong = dataclasses.replace(task.examples, labels=labels)
    stepper = task.stepper(engine, "mse", optimizer=SGD())
    with pytest.raises(InputError, match="outputs"):
        stepper.train(wrong, np.arange(3), 3, rate=0.1, step=1)


MODEL = "mlp:64-40-30-10@0.3#1"
BASE = Settings(epochs=2, batch_size=32, rate=0.1, optimizer=SGD(momentum=0.9), clip=5.0, seed=3)


def run_training(device, settings=BASE, **given):
    given = {"validate": "digits", "images": 200, "kernel": "reference"} | given
    run = TrainingRun(Alone(), MODEL, "digits", settings, device=device, **given)
    result = run.run()
    network = run.network()
    run.free()
    return result, network


def same_training(mine, its, relative=2e-3):
    for one, other in zip(mine[0].records[-2:], its[0].records[-2:], strict=True):
        for name in ("loss", "test_loss"):
            assert one[name] == pytest.approx(other[name], rel=relative), name
    for one, other in zip(mine[1], its[1], strict=True):
        size = float(np.abs(other.values).max())
        np.testing.assert_allclose(one.values, other.values, atol=relative * size)
        np.testing.assert_allclose(one.bias, other.bias, atol=relative * size)


@pytest.mark.parametrize(
    "settings",
    [
        BASE,
        dataclasses.replace(BASE, optimizer=Adam(), rate=0.01, loss="mse", clip=None),
        dataclasses.replace(BASE, sparsity=DynamicSparsity("rigl", every=3)),
        dataclasses.replace(BASE, sparsity=DynamicSparsity("set", every=3)),
    ],
    ids=["sgd", "adam", "rigl", "set"],
)
def test_trainings_are_those_of_the_cpu(quick_device, settings):
    mine = run_training(quick_device, settings)
    same_training(mine, run_training(None, settings))
    assert mine[0].train_accuracy > 0.3
    assert set(mine[0].pass_seconds) == {"device", "copies"}


def test_a_checkpoint_goes_on_elsewhere(quick_device, tmp_path):
    """From the CPU to the device and back, in the middle of an epoch; as if it had not been."""
    settings = dataclasses.replace(BASE, epochs=3)
    truth = run_training(None, settings)
    given = {"validate": "digits", "images": 200, "kernel": "reference", "every": 2}
    places = [(None, 4), (quick_device, 10), (None, 16), (quick_device, 21)]
    for device, until in places:
        run = TrainingRun(
            Alone(), MODEL, "digits", settings, device=device, folder=tmp_path, resume=True, **given
        )
        run.run_until(until)
        step = run.progress.step
        network = run.network()
        run.free()
        assert step == until
    for one, other in zip(network, truth[1], strict=True):
        size = float(np.abs(other.values).max())
        np.testing.assert_allclose(one.values, other.values, atol=2e-3 * size)


@pytest.mark.parametrize(("name", "ranks"), [("openmpi", 4), ("mpich", 2)])
def test_on_ranks(name, ranks):
    require_mpi(name).check(ranks, HERE / "check_gpu_training.py", timeout=200)
