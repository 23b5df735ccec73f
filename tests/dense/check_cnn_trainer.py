"""On ranks: trainings of dense networks are what they are on one rank; checkpoints travel."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

from sparsednn.comm import Alone
from sparsednn.comm.grid import ProcessGrid
from sparsednn.dense.grids import factorizations
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.planning.request import Planning
from sparsednn.dense.runs.checkpoint import CnnCheckpoint
from sparsednn.dense.runs.inference import CnnInference
from sparsednn.dense.runs.trainer import CnnRun
from sparsednn.dense.state_dict import write_state_dict
from sparsednn.errors import FormatError, InputError, UsageError
from sparsednn.training.checkpoints import CHECKPOINT
from sparsednn.training.divergence import DivergenceError
from sparsednn.training.metrics import METRICS, read_metrics
from sparsednn.training.optimizers import SGD, Adam
from sparsednn.training.settings import Settings
from tiny_network import tiny_network

IMAGES, BATCH = 26, 16  # the last batch of an epoch has 10
PER_EPOCH = 2
#: With more ranks than that, a few checks are enough: they share two cores.
MANY = 4
BASE = Settings(
    epochs=2, batch_size=BATCH, rate=0.05, optimizer=SGD(momentum=0.9), clip=5.0, seed=3
)
ALGORITHMS = ("data", "spatial", "filter", "channel", "2d", "2.5d", "3d")


def shared_folder(world):
    path = tempfile.mkdtemp() if world.rank == 0 else None
    return Path(world.broadcast_json(path))


def finished(world, *folders):
    world.barrier()
    if world.rank == 0:
        for folder in folders:
            shutil.rmtree(folder)
    world.barrier()


def start(world, settings=BASE, network="smallcnn", inputs="synthetic:1x8x8", **given):
    given = {"backend": "im2col", "dtype": "float64", "images": IMAGES} | given
    return CnnRun(world, network, inputs, settings, **given)


def told(world, arrays):
    """All arrays of rank 0, on every rank."""
    shapes = world.broadcast_json(
        None if arrays is None else {name: list(one.shape) for name, one in arrays.items()}
    )
    found = {}
    for name, shape in shapes.items():
        found[name] = np.empty(shape) if arrays is None else np.array(arrays[name], np.float64)
        world.broadcast(found[name])
    return found


def trained(world, settings=BASE, **given):
    run = start(world, settings, **given)
    result = run.run()
    arrays = told(world, run.arrays())
    run.free()
    return result, arrays


def nearly(found, expected, tolerance=1e-9):
    assert set(found) == set(expected)
    for name, array in found.items():
        size = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=tolerance * size)


def same_bits(found, expected):
    assert set(found) == set(expected)
    for name, array in found.items():
        assert np.array_equal(array, expected[name]), name


def plannings(world):
    """Every algorithm, with the planner's own grids; and a grid of several axes."""
    if world.size <= MANY:
        yield from (Planning(algorithm) for algorithm in ALGORITHMS)
    grids = [grid for grid in factorizations(world.size) if grid.c > 1 and max(grid) < world.size]
    yield Planning("2.5d", grids[len(grids) // 2]) if grids else Planning()


def check_trainings_agree(world):
    """Several steps on digits, with an evaluation, for every algorithm."""
    given = {"inputs": "digits", "validate": "digits:test"}
    whole, truth = trained(Alone(), **given)
    given["validate"] = "none"  # where many batches of few images take most of the time
    assert whole.words_sent == whole.words_predicted == whole.evaluation_words == 0
    assert whole.records[-1]["loss"] < 0.9 * whole.records[0]["loss"]
    for planning in plannings(world):
        result, arrays = trained(world, planning=planning, **given)
        nearly(arrays, truth)
        assert result.steps == 2 * PER_EPOCH
        assert result.words_sent == result.words_predicted, planning
        assert (result.words_sent > 0) == (world.size > 1)
        assert result.evaluation_words == 0
        for name in ("loss", "train_accuracy"):
            assert abs(getattr(result, name) - getattr(whole, name)) < 1e-9, (planning, name)
    assert whole.test_loss is not None


def check_a_network_with_everything(world):
    """Branches, groups, batch normalisation: a network of a file, with its numbers."""
    if world.size > MANY:
        return
    folder = shared_folder(world)
    path, graph = folder / "tiny.safetensors", tiny_network()
    if world.rank == 0:
        write_state_dict(path, graph, initial_parameters(graph, 5))
    world.barrier()
    given = {"network": str(path), "inputs": "synthetic:3x11x9:5", "images": 13}
    settings = dataclasses.replace(BASE, batch_size=8, optimizer=Adam(), rate=0.003)
    whole, truth = trained(Alone(), settings, **given)
    assert whole.records[-1]["loss"] < whole.records[0]["loss"]
    for planning in (Planning("2d"), Planning("spatial")):
        result, arrays = trained(world, settings, planning=planning, **given)
        # Adam divides by what may be tiny: rounding grows.
        nearly(arrays, truth, 1e-7)
        assert result.words_sent == result.words_predicted
    finished(world, folder)


def check_resuming(world):
    """Stopped in an epoch, and behind one: the same bits; elsewhere the same up to rounding."""
    if world.size > MANY:
        return
    folder = shared_folder(world)
    given = {"planning": Planning("2.5d"), "every": 1}
    whole, truth = trained(world, folder=folder / "whole", **given)
    for stop_at in (1, PER_EPOCH) if world.size == 2 else (1,):
        run = start(world, folder=folder / "parts", **given)
        run.run_until(stop_at)
        run.free()
        with pytest.raises(InputError, match="give --resume"):
            start(world, folder=folder / "parts", **given)
        if world.rank == 0 and stop_at == 1:
            shutil.copytree(folder / "parts", folder / "kept")
        world.barrier()
        run = start(world, folder=folder / "parts", resume=True, **given)
        assert run.resumed_step == stop_at
        result = run.run()
        same_bits(told(world, run.arrays()), truth)
        for name in ("loss", "test_loss", "words_sent", "words_predicted", "messages_sent"):
            assert getattr(result, name) == getattr(whole, name), name
        run.free()
        if world.rank == 0:
            timeless = {"seconds", "images_per_second"}
            one, other = (
                [
                    {key: value for key, value in line.items() if key not in timeless}
                    for line in read_metrics(folder / name / METRICS)
                ]
                for name in ("whole", "parts")
            )
            assert one == other
        finished(world, folder / "parts")
    _on_other_ranks(world, folder, truth)
    _classes_of(world, folder / "whole" / CHECKPOINT, whole)
    finished(world, folder)


def _on_other_ranks(world, folder, truth):
    """Each group of fewer ranks goes on with a copy of what all ranks have begun."""
    for size in (each for each in (1, 2) if each < world.size and world.size % each == 0):
        grid = ProcessGrid(world, (world.size // size, size))
        group = grid.along(1) if size > 1 else Alone()
        mine = folder / f"again{size}-{grid.coordinates[0]}"
        if group.rank == 0:
            shutil.copytree(folder / "kept", mine)
        group.barrier()
        run = start(group, folder=mine, resume=True, planning=Planning("3d"))
        assert run.resumed_step == 1
        run.run()
        nearly(told(group, run.arrays()), truth)
        run.free()
        world.barrier()
        grid.free()


def _classes_of(world, checkpoint, whole):
    """Inference with the checkpoint sees what the last test has seen; every image has its class."""
    run = CnnInference(
        world, str(checkpoint), "synthetic:1x8x8", backend="im2col", dtype="float64",
        batch_size=30, images=IMAGES, planning=Planning("filter"),
    )  # fmt: skip
    result = run.run()
    assert result.words_sent == result.words_predicted
    assert abs(result.score.loss / IMAGES - whole.test_loss) < 1e-9
    assert result.score.correct == round(whole.test_accuracy * IMAGES)
    if world.rank == 0:
        right = int(np.count_nonzero(result.classes == run.pictures.labels))
        assert right == result.score.correct
    else:
        assert result.classes is None
    run.free()


def check_what_does_not_fit(world):
    if world.size > MANY:
        return
    folder = shared_folder(world)
    settings = dataclasses.replace(BASE, epochs=1)
    run = start(world, settings, folder=folder / "run", validate="none")
    run.run()
    run.free()
    given = {"folder": folder / "run", "resume": True}
    with pytest.raises(InputError, match=r"seed 3, asked for is 4"):
        start(world, dataclasses.replace(settings, seed=4), **given)
    with pytest.raises(InputError, match='dtype "float64", asked for is "float32"'):
        start(world, settings, dtype="float32", **given)
    with pytest.raises(InputError, match=r"of another network: it has smallcnn .* resnet20"):
        start(world, settings, network="resnet20", **given)
    with pytest.raises(InputError, match="other images or labels"):
        start(world, settings, **{**given, "images": IMAGES - 1})
    with pytest.raises(UsageError, match=f"{world.size} rank"):
        start(world, planning=Planning.parse(grid="5x1x1x1x1"))
    with pytest.raises(UsageError, match=r"--memory-per-rank 1\.0 KiB: no grid"):
        start(world, planning=Planning.parse(memory_per_rank="1K"))
    if world.rank == 0:
        path = folder / "run" / CHECKPOINT
        data = bytearray(path.read_bytes())
        data[-9] ^= 1
        path.write_bytes(data)
        with pytest.raises(FormatError, match="another checksum"):
            CnnCheckpoint(path)
    world.barrier()
    with pytest.raises(FormatError, match=r"checkpoint\.safetensors: .*damaged"):
        start(world, settings, **given)
    finished(world, folder)


def check_divergence_is_told(world):
    """NaN stops the run on all ranks alike; the checkpoint of before stays."""
    if world.size > MANY:
        return
    folder = shared_folder(world)
    settings = dataclasses.replace(BASE, rate=1e200, clip=None)
    run = start(world, settings, planning=Planning("2d"), folder=folder / "run", every=1)
    with pytest.raises(DivergenceError, match=r"step \d+: the .* is (nan|inf).*--lr") as found:
        run.run()
    assert found.value.everywhere
    run.free()
    assert CnnCheckpoint(folder / "run" / CHECKPOINT).progress["step"] == 1
    finished(world, folder)
