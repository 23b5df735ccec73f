"""Training of dense networks in one process: against PyTorch, files, refusals, speed.

On ranks: check_cnn_trainer.py, run by test_dense_on_ranks.py.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsednn.comm import Alone
from sparsednn.datasets.pictures import load_pictures
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.layout import Block
from sparsednn.dense.networks import make_network
from sparsednn.dense.planning.request import Planning, memory_bytes
from sparsednn.dense.runs.benchmark import bench_network
from sparsednn.dense.runs.checkpoint import (
    CnnCheckpoint,
    CnnState,
    is_checkpoint,
    write_cnn_checkpoint,
)
from sparsednn.dense.runs.inference import CnnInference
from sparsednn.dense.runs.source import check_pictures, network_for, validation_pictures
from sparsednn.dense.runs.stepper import picture_block
from sparsednn.dense.runs.trainer import CnnRun
from sparsednn.dense.state_dict import read_state_dict, stored_network, write_state_dict
from sparsednn.dense.stopwatch import Stopwatch
from sparsednn.errors import FormatError, InputError, ShapeError, UnknownNameError, UsageError
from sparsednn.training.checkpoints import CHECKPOINT
from sparsednn.training.metrics import METRICS, read_metrics
from sparsednn.training.optimizers import SGD, Adam
from sparsednn.training.order import epoch_order
from sparsednn.training.settings import Settings

BASE = Settings(epochs=2, batch_size=16, rate=0.05, optimizer=SGD(momentum=0.9), clip=5.0, seed=3)


def start(
    settings: Settings = BASE, network: str = "smallcnn", inputs: str = "digits", **given: Any
) -> CnnRun:
    given = {"backend": "im2col", "images": 40, "validate": "none"} | given
    return CnnRun(Alone(), network, inputs, settings, **given)


def trained(*arguments: Any, **given: Any) -> tuple[Any, dict[str, Any]]:
    run = start(*arguments, **given)
    result, arrays = run.run(), run.arrays()
    run.free()
    assert arrays is not None
    return result, arrays


# --- learning -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [SGD(momentum=0.9, nesterov=True, weight_decay=1e-3), Adam(weight_decay=1e-2)],
    ids=["sgd", "adam"],
)
def test_steps_are_pytorchs(optimizer: Any) -> None:
    """The same images in the same order: parameters after two epochs, float64."""
    torch = pytest.importorskip("torch")
    settings = dataclasses.replace(BASE, optimizer=optimizer, rate=0.01, clip=0.5)
    run = start(settings, dtype="float64")
    arrays = run.arrays()
    assert arrays is not None
    weights = {
        name: torch.tensor(one.reshape(run.graph.parameters[name].torch_shape), requires_grad=True)
        for name, one in arrays.items()
    }
    f = torch.nn.functional
    if isinstance(optimizer, SGD):
        theirs = torch.optim.SGD(
            weights.values(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-3
        )
    else:
        theirs = torch.optim.Adam(weights.values(), lr=0.01, weight_decay=1e-2)
    total = 0.0
    for epoch in range(2):
        order, total = epoch_order(40, epoch, 3), 0.0
        for first in range(0, 40, 16):
            ids = order[first : first + 16]
            x = torch.tensor(run.pictures.block(ids, dtype=np.float64))
            for layer in ("conv1", "conv2"):
                x = f.conv2d(x, weights[f"{layer}.weight"], weights[f"{layer}.bias"], padding=1)
                x = x.relu()
            x = f.max_pool2d(x, 2).flatten(1)
            x = f.linear(x, weights["fc1.weight"], weights["fc1.bias"]).relu()
            x = f.linear(x, weights["fc2.weight"], weights["fc2.bias"])
            loss = f.cross_entropy(x, torch.tensor(run.pictures.labels[ids]))
            theirs.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.values(), 0.5)
            theirs.step()
            total += float(loss.detach()) * ids.size
    result = run.run()
    assert result.loss == pytest.approx(total / 40, rel=1e-9)
    found = run.arrays()
    run.free()
    assert found is not None
    for name, one in found.items():
        np.testing.assert_allclose(
            one.ravel(), weights[name].detach().numpy().ravel(), atol=1e-9, err_msg=name
        )


def test_digits_are_learned() -> None:
    settings = dataclasses.replace(BASE, epochs=4, batch_size=64)
    run = start(settings, images=None, validate=None)
    seen, lines = [], []
    result = run.run(seen.append, lines.append)
    assert result.test_accuracy is not None
    assert result.test_accuracy > 0.9
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert [moment.step for moment in seen] == list(range(1, run.steps_total + 1))
    assert result.steps == run.steps_total == 4 * 23
    assert set(result.phase_seconds) == {"data", "forward", "backward", "gradients", "update"}
    assert 0 < sum(result.phase_seconds.values()) < result.seconds
    run.free()


def test_resnet20_learns_small_images() -> None:
    settings = dataclasses.replace(BASE, epochs=4, batch_size=20, rate=0.02)
    result, arrays = trained(settings, "resnet20", "synthetic:3x16x16:4", images=40, validate=None)
    assert result.records[-1]["loss"] < 0.5 * result.records[0]["loss"]
    assert result.test_accuracy > 0.25
    assert any("running_mean" in name for name in arrays)


def test_the_same_seed_gives_the_same_bits() -> None:
    _, first = trained(dtype="float32")
    _, second = trained(dtype="float32")
    _, other = trained(dataclasses.replace(BASE, seed=4))
    for name, array in first.items():
        assert np.array_equal(array, second[name])
        assert not np.array_equal(array, other[name])


# --- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [SGD(), SGD(momentum=0.9), Adam()], ids=str)
@pytest.mark.parametrize("stop_at", [2, 3, 6])
def test_resuming_gives_the_same_bits(tmp_path: Path, optimizer: Any, stop_at: int) -> None:
    settings = dataclasses.replace(BASE, optimizer=optimizer, rate=0.01)
    given = {"every": 1, "inputs": "synthetic:1x8x8", "validate": None}
    whole, truth = trained(settings, folder=tmp_path / "whole", **given)
    run = start(settings, folder=tmp_path / "parts", **given)
    run.run_until(stop_at)
    run.free()
    run = start(settings, folder=tmp_path / "parts", resume=True, **given)
    assert run.resumed_step == stop_at
    result, found = run.run(), run.arrays()
    run.free()
    assert found is not None
    assert all(np.array_equal(found[name], truth[name]) for name in truth)
    assert (result.loss, result.test_loss) == (whole.loss, whole.test_loss)
    lines = read_metrics(tmp_path / "parts" / METRICS)
    assert [line["step"] for line in lines] == [3, 6]


def test_more_epochs_than_before(tmp_path: Path) -> None:
    longer = dataclasses.replace(BASE, epochs=3)
    _, truth = trained(longer)
    trained(folder=tmp_path)
    result, found = trained(longer, folder=tmp_path, resume=True)
    assert result.epochs == 3
    assert all(np.array_equal(found[name], truth[name]) for name in truth)


def test_a_checkpoint_is_a_state_dict_of_pytorch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    load_file = pytest.importorskip("safetensors.torch").load_file
    run = start(BASE, "resnet20", "synthetic:3x16x16:4", images=16, folder=tmp_path)
    run.run()
    arrays = run.arrays()
    assert arrays is not None
    path = tmp_path / CHECKPOINT
    found = load_file(path)
    for name, parameter in run.graph.parameters.items():
        assert tuple(found[name].shape) == parameter.torch_shape
        assert np.array_equal(found[name].numpy().ravel(), arrays[name].ravel())
        assert (f"optimizer.momentum.{name}" in found) == parameter.trained
    layer = torch.nn.Linear(64, 4)
    layer.load_state_dict(
        {name.removeprefix("fc."): one for name, one in found.items() if name[:3] == "fc."}
    )
    assert stored_network(path) == run.graph
    same = read_state_dict(path, run.graph, ignore=("optimizer.",))
    assert all(np.array_equal(same[name], arrays[name]) for name in arrays)
    run.free()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_of_a_file(tmp_path: Path, suffix: str) -> None:
    """By name and file, or just the file where it has its network."""
    graph = make_network("smallcnn", (1, 8, 8), 10)
    arrays = initial_parameters(graph, 77)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch = pytest.importorskip("torch")
        torch.save(
            {
                name: torch.tensor(array.reshape(graph.parameters[name].torch_shape))
                for name, array in arrays.items()
            },
            path,
        )
    else:
        write_state_dict(path, graph, arrays)
        run = start(network=str(path))
        found = run.arrays()
        assert found is not None
        assert np.array_equal(found["fc1.weight"], arrays["fc1.weight"])
        run.free()
    run = start(weights=path)
    found = run.arrays()
    run.free()
    assert found is not None
    assert all(np.array_equal(found[name], arrays[name]) for name in arrays)
    if suffix == ".pt":
        with pytest.raises(FormatError, match=r"there is no network in it.*--weights"):
            start(network=str(path))
    with pytest.raises(ShapeError, match=r"fc1\.weight"):
        start(weights=path, inputs="synthetic:1x12x12")


def test_bad_numbers_are_not_written(tmp_path: Path) -> None:
    graph = make_network("smallcnn", (1, 8, 8), 10)
    arrays = initial_parameters(graph)
    arrays["fc2.bias"][3] = np.nan
    with pytest.raises(InputError, match=r"'fc2\.bias' has numbers that are NaN"):
        write_cnn_checkpoint(tmp_path / "a.safetensors", CnnState(graph, arrays, {}, {}, {}))
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_checkpoints(tmp_path: Path) -> None:
    graph = make_network("smallcnn", (1, 8, 8), 10)
    arrays = initial_parameters(graph, 1)
    path = tmp_path / "a.safetensors"
    write_state_dict(path, graph, arrays)
    assert not is_checkpoint(path)
    with pytest.raises(FormatError, match="not a checkpoint of a training run"):
        CnnCheckpoint(path)
    with pytest.raises(FormatError, match="no checkpoint there"):
        CnnCheckpoint(tmp_path / "none.safetensors")
    write_cnn_checkpoint(path, CnnState(graph, arrays, {"momentum": arrays}, {}, {"step": 3}))
    assert is_checkpoint(path)
    kept = CnnCheckpoint(path)
    block = (np.array([3, 5]), slice(1, 4), slice(0, 2), slice(2, 3))
    for slot in (None, "momentum"):
        part = kept.block("fc1.weight", block, np.float64, slot=slot)
        assert np.array_equal(part, arrays["fc1.weight"][[3, 5], 1:4, 0:2, 2:3])
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    with pytest.raises(FormatError, match="another checksum"):
        CnnCheckpoint(path)


# --- pictures -----------------------------------------------------------------------------------


def test_blocks_of_several_intervals() -> None:
    pictures = load_pictures("synthetic:4x5x6", limit=9)
    ids = np.array([7, 1, 3, 8, 0])
    block = Block((((0, 1), (3, 5)), ((0, 1), (2, 4)), ((1, 4),), ((0, 6),)))
    found = picture_block(pictures, ids, block, np.dtype(np.float64))
    whole = pictures.block(ids, dtype=np.float64)
    assert np.array_equal(found, whole[np.ix_([0, 3, 4], [0, 2, 3], [1, 2, 3], range(6))])
    assert found.flags.c_contiguous
    nothing = Block((((0, 2),), ((0, 4),), (), ((0, 6),)))
    assert picture_block(pictures, ids, nothing, np.dtype(np.float32)).shape == (2, 4, 0, 6)


def test_what_belongs_to_what(tmp_path: Path) -> None:
    learned = dataclasses.replace(
        load_pictures("digits", "train"), mean=np.array([0.5]), std=np.array([2.0])
    )
    tests = validation_pictures("digits", None, learned, None)
    assert tests is not None
    assert (tests.n_images, tests.mean, tests.std) == (360, learned.mean, learned.std)
    assert validation_pictures("digits:test", None, learned, None) is None
    small = load_pictures("synthetic:1x8x8", "train", limit=30)
    tests = validation_pictures("synthetic:1x8x8", None, small, None)
    assert tests is not None
    assert tests.n_images == 30
    assert not np.array_equal(tests.pixels, small.pixels)
    np.savez(tmp_path / "a.npz", images=np.ones((3, 8, 8), np.uint8), labels=np.array([0, 1, 1]))
    assert validation_pictures(str(tmp_path / "a.npz"), None, learned, None) is None
    tests = validation_pictures("digits", str(tmp_path / "a.npz"), learned, None)
    assert tests is not None
    assert tests.n_images == 3


def test_pictures_that_do_not_fit() -> None:
    pictures = load_pictures("digits", "train")
    with pytest.raises(
        ShapeError, match=r"digits:train has images of 1×8×8, lenet5 was made for 1×28×28"
    ):
        check_pictures(make_network("lenet5"), pictures)
    with pytest.raises(InputError, match=r"image \d+ has the label \d, but smallcnn has 5 classes"):
        check_pictures(make_network("smallcnn", (1, 8, 8), 5), pictures)
    with pytest.raises(ShapeError, match="too small for vgg16"):
        network_for("vgg16", (1, 1, 1), 10)
    with pytest.raises(UnknownNameError, match="network 'lenet6' is unknown"):
        network_for("lenet6")
    with pytest.raises(FormatError, match="no such file"):
        network_for("none.safetensors")
    with pytest.raises(FormatError, match=r"none\.pth: no such file"):
        network_for("none.pth")


# --- planning, and measuring --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("4d",), "--algorithm is one of auto, data"),
        (("2d", "2x1x1x1x2"), "one rank along the channels"),
        (("auto", "2x2"), "five positive numbers"),
        (("auto", None, "2 apples"), "an amount such as 2G"),
        (("auto", None, "0"), "at least a byte"),
    ],
)
def test_wishes_that_cannot_be(given: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Planning.parse(*given)


def test_amounts_of_memory() -> None:
    texts = ("7", "2K", "2kb", "3MiB", "1.5G", "1 T")
    amounts = (7, 2048, 2048, 3 << 20, 3 << 29, 1 << 40)
    assert tuple(map(memory_bytes, texts)) == amounts


@pytest.mark.parametrize("training", [True, False])
def test_benchmark(training: bool) -> None:
    graph = make_network("resnet20", (3, 8, 8), 4)
    found = bench_network(
        Alone(), graph, batch_size=3, steps=2, training=training, backend="im2col"
    )
    assert found.images_per_second == pytest.approx(3 / found.step_seconds)
    assert found.words_sent == found.words_predicted == 0
    assert [row["name"] for row in found.layers] == [each.name for each in graph][1:]
    assert all(row["forward"] > 0 for row in found.layers)
    assert all(("backward" in row) == training for row in found.layers)
    assert ("update" in found.phase_seconds) == training


def test_inference_needs_numbers() -> None:
    with pytest.raises(UsageError, match="smallcnn: is a network without numbers"):
        CnnInference(Alone(), "smallcnn", "digits")


def test_pictures_are_normalized_as_in_training(tmp_path: Path) -> None:
    result, _ = trained(folder=tmp_path, validate="digits:test")
    path = tmp_path / CHECKPOINT
    run = CnnInference(Alone(), str(path), "digits:test", backend="im2col", batch_size=50)
    found = run.run()
    assert found.score.loss / 360 == pytest.approx(result.test_loss, rel=1e-5)
    assert found.classes is not None
    right = int(np.count_nonzero(found.classes == run.pictures.labels))
    assert right == found.score.correct == round(result.test_accuracy * 360)
    other = CnnInference(
        Alone(), "smallcnn", "digits:test", weights=path, backend="im2col", mean=[0.0], std=[1.0]
    )
    assert other.run().score.loss != found.score.loss
    with pytest.raises(UsageError, match="--mean: 2 numbers for images of 1 channels"):
        CnnInference(Alone(), str(path), "digits:test", mean=[0.0, 1.0])


def test_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 10.0, 11.0, 13.0, 20.0, 24.0])
    monkeypatch.setattr("sparsednn.dense.stopwatch.time.perf_counter", lambda: next(now))
    watch = Stopwatch()
    watch.start()
    watch.lap("forward", "a")
    watch.lap("forward")
    watch.start()
    watch.lap("forward", "a")
    assert watch.phases() == {"forward": 7.0}
    assert watch.operations("forward") == {"a": 5.0}
