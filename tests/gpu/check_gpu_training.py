"""Checks of training on several devices (twins): gradients, words, steps, whole trainings."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from gpu.lazy_device import LazyDevice

from learning import (
    IMAGES,
    Ranks,
    close,
    gradients,
    grids,
    make_task,
    own_examples,
    serial_engine,
    tasks,
    trained,
)
from row_wise import by_hand
from sparsednn.comm.alone import Alone
from sparsednn.distributed.shard import whole_shard
from sparsednn.errors import SparseDNNError, UsageError
from sparsednn.gpu.twin import TwinDevice
from sparsednn.partitioners import evaluate
from sparsednn.sources import load_network
from sparsednn.training.device_engine import DeviceEngine
from sparsednn.training.device_stepper import DeviceStepper
from sparsednn.training.optimizers import SGD, Adam
from sparsednn.training.settings import Settings
from sparsednn.training.sparsity import DynamicSparsity
from sparsednn.training.trainer import TrainingRun


def device_engine(ranks, device=None, **given):
    given = {"columns": IMAGES, "input_gradient": True} | given
    device = device or TwinDevice()
    return DeviceEngine(device, ranks.shard, ranks.plans, ranks.group, ranks.across, **given)


def words(world):
    return np.array([world.traffic.words("exchange"), world.traffic.words("fold")], np.int64)


def check_gradients_and_words(world):
    """Gradients of one rank in float64; the words of expand and fold that the partition says."""
    ids = np.random.default_rng(1).permutation(IMAGES)
    for seed, loss, (network, inputs, labels, values) in tasks(world):
        truth = serial_engine(network, IMAGES, dtype=np.float64)
        whole = own_examples(whole_shard(network), inputs, labels, values)
        _, expected = gradients(truth, whole_shard(network), whole, ids, IMAGES, loss, Alone())
        for shape in grids(world):
            ranks = Ranks(world, shape, network, seed)
            examples = own_examples(ranks.shard, inputs, labels, values)
            own = ranks.own(ids)
            for given in ({}, {"columns": 5, "input_gradient": False}):
                # Streams of the second one are as late as they may be, or at random.
                lazy = LazyDevice(None if seed % 2 else seed + world.rank) if given else None
                engine = device_engine(ranks, lazy, **given)
                before = words(world)
                _, found = gradients(engine, ranks.shard, examples, own, IMAGES, loss, ranks.group)
                close(found, expected, network, ranks.shard, relative=2e-4)
                sent = words(world) - before
                world.allreduce(sent)
                stats = evaluate(network, ranks.partition)
                forward = stats.words_total * IMAGES
                skipped = stats.layers[0].words * IMAGES if given else 0
                assert tuple(sent) == (forward, forward - skipped), (shape, network)
                engine.free()
            ranks.free()


def check_steps_follow_one_rank(world):
    """Losses, parameters, and words of gradients: those of the CPU's engines."""
    for seed, given in enumerate(
        [
            {"optimizer": SGD(momentum=0.9, nesterov=True, weight_decay=1e-3), "clip": 0.5},
            {"optimizer": Adam()},
        ]
    ):
        network, inputs, labels, values = make_task(
            seed + 40, 60, last="softmax" if seed else "identity", most=30
        )
        rng = np.random.default_rng(seed)
        # The last one leaves data groups without images.
        batches = [rng.permutation(60)[: rng.integers(5, 33)] for _ in range(5)] + [np.array([7])]
        shard = whole_shard(network)
        examples = own_examples(shard, inputs, labels, values)
        single = serial_engine(network, 60)
        truth, expected = trained(
            single, Alone(), Alone(), shard, examples, lambda ids: ids, batches, "cross-entropy",
            **given,
        )  # fmt: skip
        for shape in grids(world):
            ranks = Ranks(world, shape, network, seed)
            last = ranks.shard.layers[-1]
            counted = []
            for kind in ("device", "reference"):
                before = world.traffic.words("gradient")
                examples = own_examples(ranks.shard, inputs, labels, values)
                if kind == "reference":
                    engine = ranks.engine("reference", columns=32)
                    losses, found = trained(
                        engine, ranks.group, ranks.across, ranks.shard, examples, ranks.own,
                        batches, "cross-entropy", **given,
                    )  # fmt: skip
                else:
                    engine = device_engine(ranks, columns=13, slots=given["optimizer"].slots)
                    stepper = DeviceStepper(
                        engine, ranks.group, ranks.across, rows=last.rows, n_out=last.n_out,
                        loss="cross-entropy", **given,
                    )  # fmt: skip
                    losses = []
                    for step, ids in enumerate(batches, 1):
                        score = stepper.train(
                            examples, ranks.own(ids), ids.size, rate=0.05, step=step
                        )
                        losses.append(score.loss / score.images)
                    found = engine.layers_of(engine.theta)
                    evaluated = stepper.evaluate(examples, ranks.own(np.arange(60)))
                    assert evaluated.images == 60
                np.testing.assert_allclose(losses, truth, rtol=1e-3, err_msg=f"{shape} {kind}")
                close(found, expected, network, ranks.shard, relative=1e-3)
                engine.free()
                counted.append(world.traffic.words("gradient") - before)
            # Rounded up for each layer, and not once for all.
            assert 0 <= counted[0] - counted[1] <= len(batches) * len(network.layers)
            assert (counted[0] > 0) == (shape[0] > 1)
            ranks.free()


def check_the_real_kernels(world):
    """One pass there and back of the PTX that NVRTC makes, interpreted."""
    from ptx import EmulatedDevice
    from ptx.nvrtc import available

    if world.size > 2 or not available():  # once is enough
        return
    network, inputs, labels, values = make_task(41, 40, last="softmax", most=20)
    ids = np.arange(35)
    whole = own_examples(whole_shard(network), inputs, labels, values)
    truth = serial_engine(network, 40, dtype=np.float64)
    given = (ids, 35, "mse")
    _, expected = gradients(truth, whole_shard(network), whole, *given, Alone())
    ranks = Ranks(world, (1, world.size), network, 41)
    engine = device_engine(ranks, EmulatedDevice(multiprocessors=2), columns=40)
    examples = own_examples(ranks.shard, inputs, labels, values)
    _, found = gradients(engine, ranks.shard, examples, *given, ranks.group)
    close(found, expected, network, ranks.shard, relative=2e-4)
    engine.free()
    ranks.free()


def check_one_rank_without_room(world):
    """All ranks learn of it, on every grid, and go on."""
    network, *_ = make_task(3, 5)
    for shape in grids(world):
        ranks = Ranks(world, shape, network, 3)
        device = TwinDevice(memory=100 if world.rank == world.size - 1 else 1 << 30)
        with pytest.raises(SparseDNNError, match="weights to train take about"):
            device_engine(ranks, device)
        world.barrier()
        ranks.free()


MODEL = "mlp:64-30-20-10@0.3#1"


def check_trainings(world):
    """With changing patterns and checkpoints: numbers as on the CPU, words as predicted."""
    path = tempfile.mkdtemp() if world.rank == 0 else None
    folder = Path(world.broadcast_json(path))
    settings = Settings(
        epochs=2, batch_size=50, rate=0.1, optimizer=SGD(momentum=0.9), clip=5.0, seed=3,
        sparsity=DynamicSparsity("rigl", every=2),
    )  # fmt: skip
    network = load_network(MODEL)
    for parts in (m for m in range(1, world.size + 1) if world.size % m == 0):
        file = folder / f"p{parts}.npz"
        if world.rank == 0:
            by_hand(network, parts, parts).save(file)
        world.barrier()
        given = {"partition": file, "images": 100, "validate": "digits"}
        results = []
        for device in (None, TwinDevice()):
            kept = folder / f"{parts}{'cpu' if device is None else 'device'}"
            run = TrainingRun(
                world, MODEL, "digits", settings, kernel="reference", device=device, folder=kept,
                transport="staged", **given,
            )  # fmt: skip
            assert run.transport == ("mpi staged" if device is not None and parts > 1 else "")
            results.append(run.run())
            run.free()
        cpu, gpu = results
        np.testing.assert_allclose(gpu.loss, cpu.loss, rtol=1e-3)
        np.testing.assert_allclose(gpu.test_loss, cpu.test_loss, rtol=1e-3)
        assert gpu.words_sent == gpu.words_predicted == cpu.words_sent
        assert gpu.evaluation_words == cpu.evaluation_words
        if parts > 1:
            with pytest.raises(UsageError, match="'nccl' needs GPUs, not the NumPy twin") as told:
                TrainingRun(
                    world, MODEL, "digits", settings, device=TwinDevice(), transport="nccl", **given
                )
            assert told.value.everywhere
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(folder)
