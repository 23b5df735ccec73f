"""Checks of whole trainings on the ranks: grids, checkpoints, resuming, changing patterns."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from row_wise import by_hand
from sparsednn.errors import FormatError, InputError
from sparsednn.partitioners import Options, evaluate, make_partition
from sparsednn.sources import load_network
from sparsednn.training.checkpoints import read_checkpoint
from sparsednn.training.metrics import read_metrics
from sparsednn.training.optimizers import SGD, Adam
from sparsednn.training.settings import Settings
from sparsednn.training.sparsity import DynamicSparsity
from sparsednn.training.stepper import DivergenceError
from sparsednn.training.trainer import CHECKPOINT, METRICS, TrainingRun

MODEL = "mlp:64-40-30-10@0.3#1"
IMAGES = 300
PER_EPOCH = -(-IMAGES // 32)
BASE = Settings(epochs=2, batch_size=32, rate=0.1, optimizer=SGD(momentum=0.9), clip=5.0, seed=3)


def shared_folder(world):
    path = tempfile.mkdtemp() if world.rank == 0 else None
    return Path(world.broadcast_json(path))


def finished(world, *folders):
    world.barrier()
    if world.rank == 0:
        for folder in folders:
            shutil.rmtree(folder)


def start(world, settings=BASE, **given):
    given = {"validate": "digits", "images": IMAGES} | given
    return TrainingRun(world, MODEL, "digits", settings, **given)


def told(world, network):
    """Weights and biases of the network that rank 0 has, on all ranks."""
    made = None
    if network is not None:
        made = [[layer.values.tolist(), layer.bias.tolist()] for layer in network]
    return [
        (np.array(values, np.float32), np.array(bias, np.float32))
        for values, bias in world.broadcast_json(made)
    ]


def trained(world, settings=BASE, **given):
    run = start(world, settings, **given)
    result = run.run()
    layers = told(world, run.network())
    run.free()
    return result, layers


def partitions(world, folder):
    """A file for each number of parts that divides the ranks."""
    network = load_network(MODEL)
    files = {}
    for parts in (m for m in range(1, world.size + 1) if world.size % m == 0):
        partition = by_hand(network, parts, parts)
        files[parts] = (folder / f"p{parts}.npz", evaluate(network, partition))
        if world.rank == 0:
            partition.save(files[parts][0])
    world.barrier()
    return files


def same_bits(found, expected):
    for (values, bias), (other, other_bias) in zip(found, expected, strict=True):
        assert np.array_equal(values, other)
        assert np.array_equal(bias, other_bias)


def nearly(found, expected):
    for (values, bias), (other, other_bias) in zip(found, expected, strict=True):
        size = float(np.abs(other).max())
        np.testing.assert_allclose(values, other, atol=2e-3 * size)
        np.testing.assert_allclose(bias, other_bias, atol=2e-3 * size)


def check_grids_and_kernels_train_alike(world):
    folder = shared_folder(world)
    _, truth = trained(world, kernel="reference")
    for parts, (file, stats) in partitions(world, folder).items():
        for kernel in ("numba", "reference"):
            for down in (True, False) if kernel == "numba" else (True,):
                settings = dataclasses.replace(BASE, input_gradient=down)
                result, layers = trained(
                    world, settings, partition=file, grid=(world.size // parts, parts),
                    kernel=kernel,
                )  # fmt: skip
                nearly(layers, truth)
                assert result.steps == 2 * PER_EPOCH
                forward = stats.words_total * IMAGES * settings.epochs
                skipped = 0 if down else stats.layers[0].words * IMAGES * settings.epochs
                assert result.words_sent == result.words_predicted == 2 * forward - skipped
                assert result.evaluation_words == stats.words_total * 360 * settings.epochs
                assert result.train_accuracy > 0.3
                assert (result.allreduce_words > 0) == (world.size > parts)
    finished(world, folder)


def check_resuming_gives_the_same_bits(world):
    """Stopped in an epoch, at its end, and after the last: as if it had not been."""
    folder = shared_folder(world)
    parts = world.size
    file = partitions(world, folder)[parts][0]
    # Every start of a run costs turns of the scheduler where ranks share cores: few with many.
    many = world.size > 2
    for optimizer in (Adam(),) if many else (SGD(momentum=0.9, nesterov=True), Adam(), SGD()):
        settings = dataclasses.replace(BASE, optimizer=optimizer, rate=0.01, epochs=3)
        given = {"partition": file, "every": 4}
        whole, truth = trained(world, settings, folder=folder / "whole", **given)
        stops = (4, PER_EPOCH, PER_EPOCH + 2, 3 * PER_EPOCH)
        for stop_at in stops[2:3] if many else stops:
            run = start(world, settings, folder=folder / "parts", **given)
            run.run_until(stop_at)
            run.free()
            with pytest.raises(InputError, match="give --resume"):
                start(world, settings, folder=folder / "parts", **given)
            run = start(world, settings, folder=folder / "parts", resume=True, **given)
            assert run.resumed_step == stop_at
            result = run.run()
            same_bits(told(world, run.network()), truth)
            for name in ("loss", "test_loss", "train_accuracy", "words_sent", "messages_sent"):
                assert getattr(result, name) == getattr(whole, name), name
            run.free()
            if world.rank == 0:
                lines = [read_metrics(folder / name / METRICS) for name in ("whole", "parts")]
                for one, other in zip(*lines, strict=True):
                    timeless = {"seconds", "images_per_second"}
                    assert {k: v for k, v in one.items() if k not in timeless} == {
                        k: v for k, v in other.items() if k not in timeless
                    }
                shutil.rmtree(folder / "parts")
            world.barrier()
        if world.rank == 0:
            shutil.rmtree(folder / "whole")
        world.barrier()
    finished(world, folder)


def check_resuming_on_other_ranks(world):
    """Begun with every grid, gone on with every other one; the numbers differ by rounding."""
    folder = shared_folder(world)
    files = partitions(world, folder)
    _, truth = trained(world, kernel="reference")
    for first, (file, _) in list(files.items())[-2:]:
        run = start(world, folder=folder / "run", partition=file)
        run.run_until(PER_EPOCH)
        run.free()
        for other, _ in files.values():
            again = folder / "again"
            if world.rank == 0:
                shutil.copytree(folder / "run", again)
            world.barrier()
            run = start(world, folder=again, resume=True, partition=other)
            assert run.resumed_step == PER_EPOCH, first
            run.run()
            nearly(told(world, run.network()), truth)
            run.free()
            finished(world, again)
        finished(world, folder / "run")
    finished(world, folder)


def check_patterns_change_and_can_be_divided_anew(world):
    folder = shared_folder(world)
    network = load_network(MODEL)
    made = folder / "p.npz"
    if world.rank == 0:
        make_partition(network, Options(world.size, effort="quick")).save(made)
    world.barrier()
    for method in ("rigl",) if world.size > 2 else ("set", "rigl"):
        settings = dataclasses.replace(
            BASE, epochs=3, sparsity=DynamicSparsity(method, every=5, fraction=0.4)
        )
        given = {"partition": made, "every": 7}
        whole, truth = trained(world, settings, folder=folder / "whole", **given)
        assert whole.words_sent == whole.words_predicted
        if world.rank == 0:
            state = read_checkpoint(folder / "whole" / CHECKPOINT)
            for old, new in zip(network, state.network, strict=True):
                assert old.nnz == new.nnz
                assert not np.array_equal(old.indices, new.indices)
            assert state.network.hash != network.hash
        run = start(world, settings, folder=folder / "parts", **given)
        run.run_until(PER_EPOCH + 4)
        run.free()
        run = start(world, settings, folder=folder / "parts", resume=True, **given)
        result = run.run()
        same_bits(told(world, run.network()), truth)
        assert result.drift == whole.drift
        run.free()
        finished(world, folder / "whole", folder / "parts")
        if world.size > 1:
            assert whole.drift > 1.0
            given |= {"repartition": 1.0}
            result, truth = trained(world, settings, folder=folder / "whole", **given)
            assert result.words_sent == result.words_predicted
            assert result.words_sent < whole.words_sent
            # The run goes on with the partition that it has made, whatever is given.
            run = start(world, settings, folder=folder / "parts", **given)
            run.run_until(2 * PER_EPOCH + 4)
            run.free()
            run = start(world, settings, folder=folder / "parts", resume=True, **given)
            run.run()
            same_bits(told(world, run.network()), truth)
            run.free()
            finished(world, folder / "whole", folder / "parts")
            # Data groups take the same decisions.
            result, _ = trained(world, settings)
            assert result.train_accuracy > 0.3
    finished(world, folder)


def check_divergence_is_told(world):
    """NaN stops the run on all ranks alike, with step, layer and a hint; the checkpoint stays."""
    folder = shared_folder(world)
    for parts, (file, _) in partitions(world, folder).items():
        if world.rank == 0:
            shutil.rmtree(folder / "run", ignore_errors=True)
        world.barrier()
        settings = dataclasses.replace(BASE, rate=1e20, clip=None)
        run = start(
            world, settings, partition=file, grid=(world.size // parts, parts),
            folder=folder / "run", every=1,
        )  # fmt: skip
        with pytest.raises(DivergenceError, match=r"step \d+: the .* is (nan|inf).*--lr") as told:
            run.run()
        assert told.value.everywhere
        run.free()
    finished(world, folder)


def check_checkpoints_that_do_not_fit(world):
    folder = shared_folder(world)
    run = start(world, folder=folder / "run")
    run.run_until(PER_EPOCH)
    run.free()
    given = {"folder": folder / "run", "resume": True}
    with pytest.raises(InputError, match=r"seed 3, asked for is 4"):
        start(world, dataclasses.replace(BASE, seed=4), **given)
    with pytest.raises(InputError, match="of another network"):
        TrainingRun(world, "mlp:64-40-30-10@0.3#2", "digits", BASE, **given)
    with pytest.raises(InputError, match="other images or labels"):
        start(world, images=IMAGES - 1, **given)
    if world.rank == 0:
        path = folder / "run" / CHECKPOINT
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    world.barrier()
    with pytest.raises(FormatError, match=r"checkpoint\.safetensors: .*damaged"):
        start(world, **given)
    finished(world, folder)
