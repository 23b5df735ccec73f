"""``cnn``: plan, train, infer and bench; in one process and on ranks; what it refuses."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.cli_program import Outcome, Program, snapshot

from mpi_runs import require_mpi, run_session
from onnx_graphs import write_onnx
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import AveragePool, Concatenate, Convolution, Input, Relu
from sparsednn.dense.runs.checkpoint import CnnCheckpoint
from sparsednn.dense.state_dict import write_state_dict
from sparsednn.training.metrics import read_metrics

CALLS = Path(__file__).with_name("calls_on_ranks.py")
BACKEND = ("--backend", "im2col")
TRAIN = ("cnn", "train", "smallcnn", "--inputs", "digits", *BACKEND)
QUICK = (*TRAIN, "--epochs", "1", "--images", "96", "--lr", "0.05")
INFER = ("cnn", "infer", "smallcnn", "--inputs", "digits", *BACKEND)
BENCH = ("cnn", "bench", "smallcnn", *BACKEND, "--image", "1x8x8", "--steps", "2")
PLAN = ("cnn", "plan", "lenet5", "--ranks", "4")
PER_EPOCH = 23  # steps of 64 of the 1437 images
PLACED = {
    "network", "image", "classes", "parameters", "batch_size", "ranks", "algorithm", "grid",
    "threads", "backend", "dtype", "images_per_second", "words_sent", "words_predicted", "plan",
}  # fmt: skip
TRAIN_KEYS = PLACED | {
    "images", "test_images", "seed", "epochs", "steps", "resumed_step", "loss", "train_accuracy",
    "test_loss", "test_accuracy", "seconds", "seconds_read", "seconds_prepare", "pass_seconds",
    "messages_sent", "evaluation_words", "memory_predicted", "checkpoint", "plot", "concurrent",
}  # fmt: skip
INFER_KEYS = PLACED | {
    "concurrent",
    "images",
    "loss",
    "accuracy",
    "seconds",
    "memory_predicted",
    "output",
}
BENCH_KEYS = PLACED | {"training", "steps", "seconds_per_step", "pass_seconds", "layers"}
ROW_KEYS = {"layer", "algorithm", "grid", "words", "memory", "data_parallel_words"}


def strict(text: str) -> Any:
    """JSON without NaN and infinite numbers, which Python would read and others would not."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- plan ---------------------------------------------------------------------------------------


def test_plan(program: Program) -> None:
    told = strict(program.ok(*PLAN, "--json").out)
    assert (told["network"], told["images"], told["ranks"]) == ("lenet5", 256, 4)
    layers = {row["layer"]: row for row in told["layers"]}
    assert set(layers) >= {"conv1", "conv2", "fc1", "fc2", "fc3"}
    assert all(set(row) >= ROW_KEYS for row in told["layers"])
    totals = told["totals"]
    assert totals["words"] == sum(row["words"] for row in told["layers"])
    assert 0 < totals["words"] <= totals["data_parallel_words"]
    data = strict(program.ok(*PLAN, "--algorithm", "data", "--json").out)
    assert data["totals"]["words"] == totals["data_parallel_words"]
    half = strict(program.ok(*PLAN, "--inference", "--json").out)
    assert half["totals"]["words"] < totals["words"]
    assert half["totals"]["memory"] < totals["memory"]
    wide = strict(program.ok(*PLAN, "--dtype", "float64", "--optimizer", "adam", "--json").out)
    assert wide["totals"]["memory"] > 2 * totals["memory"]


def test_plan_for_people(program: Program) -> None:
    done = program.ok(*PLAN, "--grid", "2x1x1x2x1", "--memory-per-rank", "1G", "--batch", "32")
    lines = done.out.splitlines()
    assert lines[0].startswith(
        "lenet5, images of 1x28x28, 61,706 parameters: a training step of 32"
    )
    assert lines[0].endswith("on 4 ranks, at most 1.0 GiB a rank")
    assert lines[1].split()[:3] == ["layer", "algorithm", "grid"]
    rows = [line.split() for line in lines[2:] if "2x1x1x2x1" in line]
    assert [row[0] for row in rows] == ["conv1", "conv2", "fc1", "fc2", "fc3"]
    assert any(line.startswith("all ") for line in lines)
    other = program.ok("cnn", "plan", "resnet20", "--ranks", 2, "--image", "1x16x16",
                       "--classes", 4, "--algorithm", "data")  # fmt: skip
    assert other.out.startswith("resnet20, images of 1x16x16, ")


# --- train, infer -------------------------------------------------------------------------------


def test_digits_are_learned_and_seen(program: Program) -> None:
    """Training, going on, looking at the test images, and the plan of the checkpoint."""
    run = ("--checkpoint", "run", "--lr", "0.05", "--momentum", "0.9", "--threads", "2")
    done = program.ok(*TRAIN, "--epochs", "2", *run, "--json")
    told = strict(done.out)
    assert set(told) == TRAIN_KEYS
    wanted = {
        "network": "smallcnn", "image": "1x8x8", "classes": 10, "images": 1437,
        "test_images": 360, "ranks": 1, "algorithm": "auto", "grid": None, "threads": 2,
        "backend": "im2col", "dtype": "float32", "seed": 0, "epochs": 2, "steps": 2 * PER_EPOCH,
        "resumed_step": 0, "words_sent": 0, "words_predicted": 0, "messages_sent": 0,
        "evaluation_words": 0, "checkpoint": "run", "plot": None, "batch_size": 64,
    }  # fmt: skip
    assert {key: told[key] for key in wanted} == wanted
    assert 0 < told["loss"] < 0.6
    assert told["test_accuracy"] > 0.85
    lines = done.err.splitlines()
    assert len(lines) == 2
    for number, line in enumerate(lines, 1):
        assert re.match(
            rf"epoch {number} of 2: loss \S+, accuracy \S+%, test accuracy \S+%, \S+ images/s", line
        )
    assert {path.name for path in Path("run").iterdir()} == {
        "checkpoint.safetensors", "metrics.jsonl",
    }  # fmt: skip

    again = program.ok(*TRAIN, "--epochs", "3", *run, "--resume", "--json")
    assert again.err.splitlines()[0] == f"run: going on after step {2 * PER_EPOCH}"
    further = strict(again.out)
    assert further["resumed_step"] == 2 * PER_EPOCH
    assert further["loss"] < told["loss"]
    assert [line["epoch"] for line in read_metrics("run/metrics.jsonl")] == [1, 2, 3]

    trained = "run/checkpoint.safetensors"
    call = ("cnn", "infer", trained, *INFER[3:], "-o", "classes.txt", "--batch-size", "100")
    seen = strict(program.ok(*call, "--json").out)
    assert set(seen) == INFER_KEYS
    assert (seen["images"], seen["output"]) == (360, "classes.txt")
    assert seen["accuracy"] == further["test_accuracy"]
    assert math.isclose(seen["loss"], further["test_loss"], rel_tol=1e-5)
    program.ok(*INFER, "--weights", trained, "-o", "classes.npy")
    found = np.load("classes.npy")
    assert np.array_equal(found, np.loadtxt("classes.txt", dtype=np.int64))
    assert (found.shape, found.min(), found.max()) == ((360,), 0, 9)
    plan = program.ok("cnn", "plan", trained, "--ranks", 3)
    assert plan.out.startswith("smallcnn, images of 1x8x8")


def test_for_people(program: Program) -> None:
    """Tables; pictures of the curves; a file with pictures; float64; a cut in the epoch."""
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    source = np.random.default_rng(1)
    np.savez("a.npz", images=source.integers(0, 256, (20, 9, 8)).astype(np.uint8),
             labels=np.arange(20) % 3)  # fmt: skip
    done = program.ok(
        "cnn", "train", "smallcnn", "--inputs", "a.npz", *BACKEND, "--epochs", "2",
        "--batch-size", "8", "--dtype", "float64", "--optimizer", "adam", "--schedule", "cosine",
        "--clip", "1", "--checkpoint", "run", "--plot", "run/curves.svg", "--every", "2",
    )  # fmt: skip
    assert re.search(r"^classes +3$", done.out, re.M)
    assert not re.search(r"^(words|test|algorithm|messages)", done.out, re.M)
    assert "<svg" in Path("run/curves.svg").read_text()
    kept = CnnCheckpoint("run/checkpoint.safetensors")
    assert kept.settings["dtype"] == "float64"
    assert kept.progress["step"] == 6
    done = program.ok("cnn", "infer", "run/checkpoint.safetensors", "--inputs", "a.npz", *BACKEND)
    assert re.search(r"^accuracy +\d+\.\d\d%$", done.out, re.M)


def test_bench(program: Program) -> None:
    told = strict(program.ok(*BENCH, "--batch-size", "5", "--json").out)
    assert set(told) == BENCH_KEYS
    assert told["training"] is True
    assert math.isclose(told["images_per_second"] * told["seconds_per_step"], 5)
    assert [row["name"] for row in told["layers"]][:2] == ["conv1", "relu1"]
    assert all(row["forward"] > 0 and row["backward"] > 0 for row in told["layers"])
    shown = program.ok(*BENCH, "--inference").out
    assert re.search(r"^  conv1 +forward \S+ ms$", shown, re.M)
    assert re.search(r"^training +no$", shown, re.M)


# --- what it refuses ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        # The call
        (2, "--epochs must be at least 1, found 0", (*TRAIN, "--epochs", 0)),
        (2, "--batch-size must be at least 1", (*TRAIN, "--batch-size", 0)),
        (2, "--images must be at least 1", (*TRAIN, "--images", 0)),
        (2, "--threads must be at least 1", (*TRAIN, "--threads", 0)),
        (2, "--lr must be above 0", (*TRAIN, "--lr", 0)),
        (2, "--momentum belongs to --optimizer sgd",
         (*TRAIN, "--optimizer", "adam", "--momentum", 0.9)),
        (2, "--optimizer: unknown 'lion'", (*TRAIN, "--optimizer", "lion")),
        (2, "unknown schedule 'linear'", (*TRAIN, "--schedule", "linear")),
        (2, "--resume is for checkpoints", (*TRAIN, "--resume")),
        (2, "--every must be at least 1", (*TRAIN, "--checkpoint", "run", "--every", 0)),
        (2, "--backend is one of auto, torch, im2col, .*'fast'", (*TRAIN, "--backend", "fast")),
        (2, "--dtype is one of float32, float64: 'half'", (*TRAIN, "--dtype", "half")),
        (2, "--algorithm is one of auto, data, .*'4d'", (*TRAIN, "--algorithm", "4d")),
        (2, "algorithm data: all ranks are along the images; the grid is 1x1x1x2x1",
         (*TRAIN, "--algorithm", "data", "--grid", "1x1x1x2x1")),
        (2, "five positive numbers are needed", (*TRAIN, "--grid", "2x2")),
        (2, "--grid 2x1x1x2x1: .*4.* 1 rank", (*TRAIN, "--grid", "2x1x1x2x1")),
        (2, "an amount such as 2G .* 'much'", (*TRAIN, "--memory-per-rank", "much")),
        (2, r"--memory-per-rank 10.0 KiB: no grid .* [0-9.]+ KiB",
         (*TRAIN, "--memory-per-rank", "10K")),
        (2, "--ranks 0: at least 1 rank", (*TRAIN, "--ranks", 0)),
        (2, "--ranks must be at least 1", ("cnn", "plan", "lenet5", "--ranks", 0)),
        (2, r"--grid 3x1x1x1x1: .*3.* 4 ranks", (*PLAN, "--grid", "3x1x1x1x1")),
        (2, "--memory-per-rank 1.0 KiB: no grid of 4 ranks needs less than [0-9.]+ MiB a rank",
         (*PLAN, "--memory-per-rank", "1K")),
        (2, "--image 'big': channels, height and width", (*PLAN, "--image", "big")),
        (2, "--optimizer is one of sgd, momentum, adam", (*PLAN, "--optimizer", "lion")),
        (2, "--steps must be at least 1", (*BENCH, "--steps", 0)),
        (2, "--std: deviations must be positive", (*INFER, "--std", "0")),
        (2, "smallcnn: is a network without numbers: give --weights", INFER),
        (2, "classes.csv: classes are written as", (*INFER, "-o", "classes.csv")),
        (2, "a.jpg: unknown suffix '.jpg' for a picture", (*TRAIN, "--plot", "a.jpg")),
        # Networks and pictures
        (3, "network 'lenet' is unknown: known are smallcnn",
         ("cnn", "train", "lenet", *TRAIN[3:])),
        (3, "network 'lenet' is unknown", ("cnn", "bench", "lenet")),
        (3, "images of 1×8×8 are too small for", ("cnn", "train", "alexnet", *TRAIN[3:])),
        (3, "'digit': no such file, no such pictures",
         (*TRAIN[:4], "digit", *BACKEND)),
        (3, "has 1437 images, --images asks for 9999", (*TRAIN, "--images", 9999)),
        (3, "none.safetensors: no such file", (*TRAIN, "--weights", "none.safetensors")),
        (3, "small.safetensors: parameter 'conv1.weight' is",
         (*TRAIN, "--weights", "small.safetensors")),
        (3, "digits:train has images of 1×8×8, smallcnn was made for 2×6×6",
         ("cnn", "train", "small.safetensors", *TRAIN[3:])),
        (3, "image 5 has the label 5, but smallcnn has 5 classes",
         ("cnn", "infer", "small.safetensors", "--inputs", "synthetic:2x6x6:7", *BACKEND)),
        (3, "there is no network in it", ("cnn", "plan", "a.pt", "--ranks", 2)),
        (3, "step 2: the loss is (nan|inf).*: try a lower --lr", (*QUICK, "--lr", "1e30")),
        # What is written
        (3, "no/a.png: cannot write: no folder", (*TRAIN, "--plot", "no/a.png")),
        (2, "run/metrics.jsonl: is a file of --checkpoint|unknown suffix",
         (*TRAIN, "--checkpoint", "run", "--plot", "run/metrics.jsonl")),
        (3, "no/a.txt: cannot write", (*INFER, "--weights", "small.safetensors", "-o", "no/a.txt")),
        (3, "a.txt", (*QUICK, "--checkpoint", "a.txt")),
    ],
)  # fmt: skip
def test_bad_call(program: Program, code: int, says: str, arguments: tuple[Any, ...]) -> None:
    graph = make_network("smallcnn", (2, 6, 6), 5)
    write_state_dict("small.safetensors", graph, initial_parameters(graph))
    Path("a.txt").write_text("1\n")
    Path("a.pt").write_bytes(b"PK")
    program.fails(code, says, *arguments)


def test_checkpoints_that_do_not_fit(program: Program) -> None:
    """Of another network, other settings, other images, damaged: told, and left as they are."""
    program.ok(*QUICK, "--checkpoint", "run")
    program.fails(3, "run: has a checkpoint: give --resume", *QUICK, "--checkpoint", "run")
    resume = ("--checkpoint", "run", "--resume")
    other = ("cnn", "train", "resnet20", *QUICK[3:])
    program.fails(3, "another network: it has smallcnn for 1×8×8", *other, *resume)
    program.fails(3, r"lr 0\.05, asked for is 0\.3", *QUICK, *resume, "--lr", "0.3")
    program.fails(3, "other images or labels", *QUICK, *resume, "--images", "95")
    path = Path("run/checkpoint.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    program.fails(3, "checkpoint.safetensors: this checkpoint is damaged", *QUICK, *resume)
    path.write_bytes(data[:-8])
    program.fails(3, "run/checkpoint.safetensors: truncated", *QUICK, *resume)


# --- own networks, and PyTorch's ----------------------------------------------------------------


def own_network() -> OperationGraph:
    """No network of a name: groups, dilation, two branches, and no fully connected layer."""
    graph = OperationGraph("own")
    x = graph.add(Input("image", (1, 8, 8)))
    one = graph.add(Convolution("one", 3, (3, 3), padding=(1, 1)), x)
    two = graph.add(Convolution("two", 5, (3, 3), padding=(2, 2), dilation=(2, 2)), x)
    x = graph.add(Relu("relu"), graph.add(Concatenate("both"), one, two))
    x = graph.add(Convolution("last", 10, (3, 3), groups=2), x)
    graph.add(AveragePool("mean", (6, 6)), x)
    return graph.finish()


def test_a_network_of_ones_own(program: Program) -> None:
    """A graph as JSON is planned, trained, looked through, measured, lowered; what is refused."""
    graph = own_network()
    Path("own.json").write_text(json.dumps(graph.as_json()))
    plan = strict(program.ok("cnn", "plan", "own.json", "--ranks", 4, "--json").out)
    assert (plan["network"], plan["image"], plan["classes"]) == ("own", "1x8x8", 10)
    assert plan["identity"] == graph.identity
    program.ok("cnn", "train", "own.json", *QUICK[3:], "--checkpoint", "run")
    trained = "run/checkpoint.safetensors"
    assert CnnCheckpoint(trained).graph == graph
    weights = ("--weights", trained)
    seen = strict(program.ok("cnn", "infer", "own.json", *INFER[3:], *weights, "--json").out)
    same = strict(program.ok("cnn", "infer", trained, *INFER[3:], "--json").out)
    assert (seen["images"], seen["loss"]) == (360, same["loss"])
    program.ok("cnn", "bench", "own.json", *BACKEND, "--steps", "1", "--batch-size", "5")
    program.ok("cnn", "lower", "own.json", *weights, "--from", "last", "-o", "part.safetensors")

    for option in (("--image", "1x8x8"), ("--classes", "10")):
        for file in ("own.json", trained):  # they would do nothing
            for call in (("plan", file, "--ranks", 2), ("bench", file)):
                program.fails(2, f"{option[0]} belongs to a network's name", "cnn", *call, *option)
    program.fails(2, "--classes belongs", "cnn", "train", "own.json", *QUICK[3:], "--classes", "10")
    program.fails(2, "without numbers: give --weights", "cnn", "infer", "own.json", *INFER[3:])
    program.fails(2, "without numbers: give --weights", "cnn", "lower", "own.json", "-o", "a.npz")
    content = graph.as_json()
    content["operations"][1]["kind"] = []
    Path("kind.json").write_text(json.dumps(content))
    Path("half.json").write_text("{")
    images = OperationGraph("images")
    images.add(Relu("relu"), images.add(Input("image", (1, 2, 2))))
    Path("images.json").write_text(json.dumps(images.finish().as_json()))
    for says, file in (
        ("no such file", "none.json"),
        ("it is not JSON", "half.json"),
        ("kind is one of input, convolution", "kind.json"),
        ("its output 'relu' is 1×2×2, expected was one logit", "images.json"),
    ):
        program.fails(3, rf"{file}: .*{says}", "cnn", "plan", file, "--ranks", 2)


def test_an_onnx_file(program: Program) -> None:
    """Planned, measured, looked through, lowered, and trained on from the numbers in it."""
    pytest.importorskip("onnx", reason="needs onnx: pip install 'sparsednn[onnx]'")
    graph = own_network()
    arrays = initial_parameters(graph, seed=9)
    write_onnx(Path("own.onnx"), graph, arrays)
    write_state_dict("own.safetensors", graph, arrays)
    plan = strict(program.ok("cnn", "plan", "own.onnx", "--ranks", 4, "--json").out)
    assert (plan["network"], plan["identity"]) == ("own", graph.identity)
    program.ok("cnn", "bench", "own.onnx", *BACKEND, "--steps", "1", "--batch-size", "5")

    def loss(command: str, *arguments: str) -> float:
        found: float = strict(program.ok("cnn", command, *arguments, "--json").out)["loss"]
        return found

    sources = (("own.onnx",), ("own.safetensors",), ("own.onnx", "--weights", "own.safetensors"),
               ("own.safetensors", "--weights", "own.onnx"))  # fmt: skip
    assert len({loss("infer", *source, *INFER[3:]) for source in sources}) == 1
    assert len({loss("train", *source, *QUICK[3:]) for source in sources}) == 1
    program.ok("cnn", "lower", "own.onnx", "--from", "last", "-o", "part.safetensors")

    program.fails(2, "--classes belongs", "cnn", "plan", "own.onnx", "--ranks", 2, "--classes", 3)
    program.fails(2, "--weights belongs", "cnn", "lower", "own.onnx", "--weights",
                  "own.safetensors", "-o", "a.npz")  # fmt: skip
    program.fails(3, r"none\.onnx: no such file", "cnn", "bench", "none.onnx")
    program.fails(3, r"'conv1\.weight'", "cnn", "infer", "lenet5", *INFER[3:], "--weights",
                  "own.onnx")  # fmt: skip
    Path("half.onnx").write_bytes(Path("own.onnx").read_bytes()[:300])
    program.fails(3, r"half\.onnx: not an ONNX model", "cnn", "train", "half.onnx", *QUICK[3:])
    program.patch.setitem(sys.modules, "onnx", None)
    says = r"own\.onnx: .* pip install 'sparsednn\[onnx\]'$"
    program.fails(5, says, "cnn", "plan", "own.onnx", "--ranks", 2)


def test_weights_with_more_classes_than_the_images(program: Program) -> None:
    """A file's last layer says how many logits there are; to train, a person does."""
    graph = make_network("smallcnn", (1, 6, 6), 9)
    write_state_dict("nine.safetensors", graph, initial_parameters(graph))
    images = np.arange(8 * 36, dtype=np.int64).astype(np.uint8).reshape(8, 6, 6)
    np.savez("four.npz", images=images, labels=np.arange(8) % 4)
    given = ("smallcnn", "--inputs", "four.npz", *BACKEND, "--weights", "nine.safetensors")
    found = strict(program.ok("cnn", "infer", *given, "--json").out)
    assert (found["classes"], found["images"]) == (9, 8)
    program.fails(3, r"'fc2\.weight' is \[9, 128\].* has \[4, 128\]", "cnn", "train", *given)
    train = ("cnn", "train", *given, "--epochs", "1", "--classes")
    assert strict(program.ok(*train, "9", "--json").out)["classes"] == 9
    program.fails(3, "image 3 has the label 3, but smallcnn has 3 classes", *train, "3")


# --- on ranks -----------------------------------------------------------------------------------


def test_two_ranks(program: Program) -> None:
    """Many calls in one start: algorithms, going on, inference, speed; refusals, told once."""
    run = [*TRAIN, "--epochs", "1", "--images", "200", "--lr", "0.05", "--dtype", "float64",
           "--json"]  # fmt: skip
    calls = {
        "auto": run,
        "data": [*run, "--algorithm", "data", "--checkpoint", "run"],
        "2d": [*run, "--algorithm", "2d"],
        "3d": [*run, "--grid", "1x1x1x2x1"],
        "resumed": [*run, "--epochs", "2", "--checkpoint", "run", "--resume"],
    }
    refused = [
        (2, "--resume is for checkpoints", [*run, "--resume"]),
        (2, "--ranks starts the ranks itself", [*run, "--ranks", "2"]),
        (2, "--grid 3x1x1x1x1", [*run, "--grid", "3x1x1x1x1"]),
        (2, "--memory-per-rank 1.0 KiB: no grid", [*run, "--memory-per-rank", "1K"]),
        (3, "images of 1×8×8 are too small", ["cnn", "train", "alexnet", *run[3:]]),
        (3, "run: has a checkpoint: give --resume", [*run, "--checkpoint", "run"]),
        (3, "run: this checkpoint|lr", [*run, "--checkpoint", "run", "--resume", "--lr", "1"]),
    ]
    infer = ["cnn", "infer", "run/checkpoint.safetensors", *INFER[3:], "--dtype", "float64"]
    others = [
        [*infer, "-o", "classes.txt", "--algorithm", "channel", "--json"],
        [*BENCH, "--algorithm", "2d", "--json"],
    ]
    alone = strict(program.ok(*run, "--threads", "1").out)
    asked, answers = Path("../calls.json").resolve(), Path("../answers").resolve()
    asked.write_text(json.dumps([*calls.values(), *(call for _, _, call in refused), *others]))
    done = require_mpi("openmpi").run(2, [CALLS, asked, answers], timeout=240)
    assert (done.stdout, done.stderr) == ("", "")
    first, second = (json.loads(Path(f"{answers}-{rank}.json").read_text()) for rank in (0, 1))

    told = {}
    for name, (code, out, err, _), other in zip(calls, first, second, strict=False):
        assert code == 0, (name, err)
        assert other[:3] == [0, "", ""], name
        told[name] = found = strict(out)
        assert set(found) == TRAIN_KEYS
        assert (found["ranks"], found["grid"]) == (2, "1x1x1x2x1" if name == "3d" else None)
        assert 0 < found["words_sent"] == found["words_predicted"]
        if name != "resumed":
            assert len(err.splitlines()) == 1, "a line per epoch, of one rank"
            for key in ("loss", "test_loss", "train_accuracy", "test_accuracy"):
                assert math.isclose(found[key], alone[key], rel_tol=1e-9), (name, key)
    rows = {row["layer"]: row for row in told["2d"]["plan"]["layers"]}
    assert rows["fc1"]["algorithm"] == "2d"
    assert told["data"]["words_sent"] == 4 * 2 * told["data"]["parameters"]
    assert told["auto"]["words_sent"] <= told["data"]["words_sent"]
    assert told["resumed"]["resumed_step"] == 4

    (code, out, err, _), (fast_code, fast, fast_err, _) = first[-2:]
    assert code == 0, err
    seen = strict(out)
    assert seen["words_sent"] == seen["words_predicted"] > 0
    assert seen["accuracy"] == told["resumed"]["test_accuracy"]
    assert len(Path("classes.txt").read_text().splitlines()) == 360
    assert fast_code == 0, fast_err
    measured = strict(fast)
    assert measured["words_sent"] == measured["words_predicted"] > 0

    for (code, says, call), one, other in zip(
        refused, first[len(calls) : -2], second[len(calls) : -2], strict=True
    ):
        assert one[:2] == [code, ""], (call, one)
        assert len(one[2].splitlines()) == 1, one[2]
        assert re.match(rf"sparsednn: error: .*({says})", one[2]), one[2]
        # 0 from those that leave the telling to the first, before there is an MPI.
        assert other[0] in (code, 0), (call, other)
        assert other[1:3] == ["", ""], (call, other)
        assert not one[3], call


def test_ranks_option(program: Program) -> None:
    """Processes from beginning to end: one JSON object, one line of progress."""
    before = set(snapshot(program.folder))
    command = [sys.executable, "-m", "sparsednn", *QUICK, "--ranks", "2", "--json"]
    done = run_session(command, require_mpi("openmpi").environ(), 240)
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.code == 0, outcome.err
    found = strict(outcome.out)
    assert found["ranks"] == 2
    assert 0 < found["words_sent"] == found["words_predicted"]
    assert len(outcome.err.splitlines()) == 1
    assert set(snapshot(program.folder)) == before
