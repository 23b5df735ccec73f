"""``train``: what it learns, tells, writes and refuses; in one process and on ranks."""

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

from mpi_runs import MpiRuns, require_mpi, run_session
from sparsednn.cli._learning import epoch_text, moment_text
from sparsednn.cli._progress import Progress
from sparsednn.formats import write_inputs
from sparsednn.training import trainer
from sparsednn.training.checkpoints import read_checkpoint
from sparsednn.training.examples import load_examples
from sparsednn.training.metrics import read_metrics
from sparsednn.training.progress import Moment

CALLS = Path(__file__).with_name("calls_on_ranks.py")
MODEL = "mlp:64-32-10@0.3"
TRAIN = ("train", MODEL, "--inputs", "digits")
QUICK = (*TRAIN, "--epochs", "1", "--images", "128")
TRAINED, TESTED = 1437, 360
PER_EPOCH = 23  # steps of 64 images
KEYS = {
    "network", "parameters", "edges", "images", "test_images", "ranks", "grid", "threads",
    "kernel", "device", "seed", "epochs", "steps", "resumed_step", "loss", "train_accuracy",
    "test_loss", "test_accuracy", "images_per_second", "seconds", "seconds_read", "seconds_prepare",
    "pass_seconds", "words_sent", "words_predicted", "messages_sent", "allreduce_words",
    "evaluation_words", "pattern_words", "drift", "checkpoint", "output", "plot",
}  # fmt: skip
TIMES = {"images_per_second", "seconds", "seconds_read", "seconds_prepare", "pass_seconds"}


@pytest.fixture
def examples(program: Program) -> Program:
    """The program in a folder with files of examples: a, b (inputs), their labels and targets."""
    for name, split in (("a", "train"), ("b", "test")):
        found = load_examples("digits", split, images=100)
        assert found.labels is not None
        write_inputs(found.inputs, Path(f"{name}.npy"))
        np.savetxt(f"{name}.txt", found.labels, "%d")
        np.save(f"{name}-dense.npy", np.eye(10, dtype=np.float32)[:, found.labels])
    return program


def strict(text: str) -> Any:
    """JSON without NaN and infinite numbers, which Python would read and others would not."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- what it does -------------------------------------------------------------------------------


def test_digits_are_learned(program: Program) -> None:
    """At least 95% on digits that it has not seen, and ``infer`` says the same of the file."""
    done = program.ok(
        "train", "mlp:64-256-10@0.2", "--inputs", "digits", "--optimizer", "adam", "--lr", "0.01",
        "--threads", "2", "-o", "trained.safetensors", "--json",
    )  # fmt: skip
    told = strict(done.out)
    assert set(told) == KEYS
    assert told["test_accuracy"] >= 0.95
    assert told["train_accuracy"] > 0.95
    wanted = {
        "network": "mlp:64-256-10@0.2", "images": TRAINED, "test_images": TESTED, "ranks": 1,
        "grid": "1x1", "threads": 2, "kernel": "numba", "seed": 0, "epochs": 10,
        "steps": 10 * PER_EPOCH, "resumed_step": 0, "words_sent": 0, "words_predicted": 0,
        "drift": 1.0, "checkpoint": None, "output": "trained.safetensors", "plot": None,
    }  # fmt: skip
    assert {key: told[key] for key in wanted} == wanted
    assert told["parameters"] == told["edges"] + 256 + 10
    assert 0 < told["loss"] < 0.3
    assert told["images_per_second"] > 0
    lines = done.err.splitlines()
    assert len(lines) == 10
    for number, line in enumerate(lines, 1):
        says = rf"epoch {number} of 10: loss [\d.]+, accuracy [\d.]+%, test accuracy [\d.]+%"
        assert re.fullmatch(says + r", [\d,]+ images/s", line), line

    tested = load_examples("digits", "test")
    write_inputs(tested.inputs, Path("test.npy"))
    program.ok("infer", "trained.safetensors", "--inputs", "test.npy", "--outputs-out", "out.npy")
    right = np.argmax(np.load("out.npy"), axis=0) == tested.labels
    assert np.count_nonzero(right) == round(told["test_accuracy"] * TESTED)


def test_table(program: Program) -> None:
    """For people: what was asked for and has happened."""
    done = program.ok(*QUICK)
    rows = dict(re.split(r"  +", line) for line in done.out.splitlines())
    assert {"network", "edges", "loss", "train accuracy", "test accuracy", "seconds"} <= set(rows)
    assert rows["test images"] == "360"
    assert re.fullmatch(r"[\d.]+%", rows["test accuracy"])
    assert not {"output", "checkpoint", "words sent", "grid", "resumed step"} & set(rows)
    assert "test accuracy" not in program.ok(*QUICK, "--validate", "none").out


def test_all_options_arrive(examples: Program) -> None:
    """What a checkpoint keeps of the settings is what was typed."""
    common = [
        "train", MODEL, "--inputs", "a.npy", "--labels", "a.txt", "--images", "90", "--validate",
        "b.npy", "--validate-labels", "b.txt", "--epochs", "2", "--batch-size", "30", "--json",
    ]  # fmt: skip
    told = strict(examples.ok(
        *common, "--lr", "0.05", "--momentum", "0.8", "--nesterov", "--weight-decay", "0.01",
        "--loss", "mse", "--schedule", "step:1,0.5", "--warm-up", "0.5", "--clip", "2", "--init",
        "new", "--seed", "7", "--no-shuffle", "--sparsity", "set:every=2", "--checkpoint", "sgd",
        "--kernel", "reference",
    ).out)  # fmt: skip
    assert (told["images"], told["test_images"], told["steps"]) == (90, 100, 6)
    assert (told["kernel"], told["seed"], told["checkpoint"]) == ("reference", 7, "sgd")
    kept = read_checkpoint("sgd/checkpoint.safetensors").settings
    optimizer = kept.pop("optimizer")
    assert kept == {
        "epochs": 2, "batch_size": 30, "lr": 0.05, "loss": "mse",
        "schedule": "step:1,0.5+warm-up:0.5", "clip": 2.0, "init": "new", "seed": 7,
        "sparsity": "set:every=2,fraction=0.3,until=0.75", "shuffle": False,
        "input_gradient": True,
    }  # fmt: skip
    sgd = {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01}
    assert optimizer == sgd
    examples.ok(
        *common, "--optimizer", "adam", "--betas", "0.8,0.99", "--epsilon", "1e-6",
        "--checkpoint", "adam",
    )  # fmt: skip
    kept = read_checkpoint("adam/checkpoint.safetensors").settings
    assert kept["lr"] == 0.001
    assert kept["optimizer"] == {
        "name": "adam", "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.0,
    }  # fmt: skip


def test_dense_targets_have_no_accuracy(examples: Program) -> None:
    done = examples.ok(
        "train", MODEL, "--inputs", "a.npy", "--labels", "a-dense.npy", "--validate", "b.npy",
        "--validate-labels", "b-dense.npy", "--loss", "mse", "--epochs", "1", "--json",
    )  # fmt: skip
    told = strict(done.out)
    assert told["train_accuracy"] is told["test_accuracy"] is None
    assert 0 < told["test_loss"] < 2
    assert re.fullmatch(r"epoch 1 of 1: loss [\d.]+, [\d,]+ images/s", done.err.strip())


def test_resuming(program: Program) -> None:
    """In two sittings the same numbers; a folder in use is refused; metrics of all epochs."""
    json_of = ("--momentum", "0.9", "--json")
    whole = strict(program.ok(*TRAIN, "--epochs", "3", *json_of).out)
    started = program.ok(*TRAIN, "--epochs", "2", *json_of, "--checkpoint", "run", "--resume")
    assert started.err.splitlines()[0] == "run: no checkpoint there yet: training starts anew"
    assert (started.json["resumed_step"], started.json["steps"]) == (0, 2 * PER_EPOCH)
    assert len(started.err.splitlines()) == 3
    program.fails(
        3, "run: has a checkpoint: give --resume", *TRAIN, "--checkpoint", "run", "--epochs", "3"
    )
    ended = program.ok(*TRAIN, "--epochs", "2", *json_of, "--checkpoint", "run", "--resume")
    assert {k: v for k, v in ended.json.items() if k not in TIMES | {"resumed_step"}} == {
        k: v for k, v in started.json.items() if k not in TIMES | {"resumed_step"}
    }
    more = program.ok(
        *TRAIN, "--epochs", "3", *json_of, "--checkpoint", "run", "--resume", "-o",
        "run/net.safetensors",
    )  # fmt: skip
    lines = more.err.splitlines()
    assert lines[0] == f"run: going on after step {2 * PER_EPOCH}"
    assert len(lines) == 2
    found = strict(more.out)
    assert found["resumed_step"] == 2 * PER_EPOCH
    same = {"steps", "epochs", "loss", "train_accuracy", "test_loss", "test_accuracy", "edges"}
    assert {key: found[key] for key in same} == {key: whole[key] for key in same}
    records = read_metrics("run/metrics.jsonl")
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert records[-1]["test_accuracy"] == found["test_accuracy"]
    for path in ("run/checkpoint.safetensors", "run/net.safetensors"):
        assert program.ok("inspect", path, "--check", "--json").json["edges"] == whole["edges"]


def test_new_folder_with_results_in_it(program: Program) -> None:
    """The folder is not there yet when the call is checked."""
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    program.ok(
        *QUICK, "--checkpoint", "run", "-o", "run/net.safetensors", "--plot", "run/curves.svg"
    )
    names = {path.name for path in Path("run").iterdir()}
    assert names == {"checkpoint.safetensors", "metrics.jsonl", "net.safetensors", "curves.svg"}


def test_checkpoints_within_epochs(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []
    write = trainer.write_checkpoint
    monkeypatch.setattr(
        trainer,
        "write_checkpoint",
        lambda path, state: (steps.append(state.progress["step"]), write(path, state)),
    )
    program.ok(*TRAIN, "--epochs", "2", "--checkpoint", "run", "--every", "10")
    assert steps == [10, 20, 23, 30, 40, 46]


def test_plot(program: Program) -> None:
    """With a checkpoint from the metrics of all sittings, without one from this run."""
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    program.ok(*TRAIN, "--epochs", "2", "--plot", "a.svg")
    program.ok(*TRAIN, "--epochs", "2", "--plot", "b.svg", "--checkpoint", "run")
    program.ok(*TRAIN, "--epochs", "2", "--plot", "c.png", "--checkpoint", "run", "--resume")
    assert Path("c.png").read_bytes()[:4] == b"\x89PNG"
    for name in ("a.svg", "b.svg"):
        assert "<svg" in Path(name).read_text()


def test_progress_on_a_terminal_and_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal one line that goes away, elsewhere a line per epoch and one now and then."""
    now = [100.0]
    monkeypatch.setattr("sparsednn.cli._progress.time.monotonic", lambda: now[0])
    for terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with Progress(period=30.0) as progress:
            for step in range(1, 7):
                now[0] += 20.0
                accuracy = None if step > 3 else step / 10
                moment = Moment((step - 1) // 3, 2, step, 6, 1 / step, accuracy, 4321.0, 9.0, 0.1)
                progress.show(lambda moment=moment: moment_text(moment))
            record = {
                "epoch": 2,
                "loss": 0.25,
                "train_accuracy": 0.5,
                "test_accuracy": None,
                "images_per_second": 4321.0,
                "drift": 1.5,
            }
            progress.log(epoch_text(record, 2))
        err = capsys.readouterr().err
        steps = [
            "epoch 1 of 2: loss 1, accuracy 10.00%, 4,321 images/s, about 9 s left",
            "epoch 1 of 2: loss 0.5, accuracy 20.00%, 4,321 images/s, about 9 s left",
            "epoch 1 of 2: loss 0.3333, accuracy 30.00%, 4,321 images/s, about 9 s left",
            "epoch 2 of 2: loss 0.25, 4,321 images/s, about 9 s left",
            "epoch 2 of 2: loss 0.2, 4,321 images/s, about 9 s left",
            "epoch 2 of 2: loss 0.1667, 4,321 images/s",
        ]
        end = (
            "epoch 2 of 2: loss 0.25, accuracy 50.00%, 4,321 images/s, "
            "1.50 times the words of the start"
        )
        if terminal:
            assert [text.strip() for text in err.split("\r")] == ["", *steps, "", end]
        else:
            assert err.splitlines() == [*(steps[i] for i in (1, 3, 5)), end]


# --- what it refuses ----------------------------------------------------------------------------

FILES = ("train", MODEL, "--inputs", "a.npy", "--labels", "a.txt")


@pytest.mark.parametrize(
    ("code", "says", "arguments"),
    [
        # The call
        (2, "--epochs must be at least 1, found 0", (*TRAIN, "--epochs", 0)),
        (2, "--batch-size must be at least 1", (*TRAIN, "--batch-size", 0)),
        (2, "--images must be at least 1", (*TRAIN, "--images", 0)),
        (2, "--threads must be at least 1, found 0", (*TRAIN, "--threads", 0)),
        (2, "--seed must not be negative", (*TRAIN, "--seed", -1)),
        (2, "--lr must be above 0", (*TRAIN, "--lr", 0)),
        (2, "--clip must be positive", (*TRAIN, "--clip", "nan")),
        (2, "unknown kernel 'fast'", (*TRAIN, "--kernel", "fast")),
        (2, "--loss is one of", (*TRAIN, "--loss", "hinge")),
        (2, "--init is one of", (*TRAIN, "--init", "zero")),
        (2, "--optimizer: unknown 'lion'", (*TRAIN, "--optimizer", "lion")),
        (2, "--betas belongs to --optimizer adam", (*TRAIN, "--betas", "0.9,0.99")),
        (2, "--betas takes two numbers", (*TRAIN, "--optimizer", "adam", "--betas", "0.9")),
        (2, "--betas takes numbers.*'a,b'", (*TRAIN, "--optimizer", "adam", "--betas", "a,b")),
        (2, "--momentum belongs to --optimizer sgd",
         (*TRAIN, "--optimizer", "adam", "--momentum", 0.9)),
        (2, "--nesterov needs a --momentum", (*TRAIN, "--nesterov")),
        (2, "unknown schedule 'linear'", (*TRAIN, "--schedule", "linear")),
        (2, "--warm-up must be 0", (*TRAIN, "--warm-up", -1)),
        (2, "unknown dynamic sparsity 'grow'", (*TRAIN, "--sparsity", "grow")),
        (2, "--resume is for checkpoints: give --checkpoint", (*TRAIN, "--resume")),
        (2, "--every is for checkpoints: give --checkpoint", (*TRAIN, "--every", 5)),
        (2, "--every must be at least 1", (*TRAIN, "--checkpoint", "run", "--every", 0)),
        (2, "--repartition is for .*: give --sparsity", (*TRAIN, "--repartition", 1.5)),
        (2, "--repartition is for .*: give --partition",
         (*TRAIN, "--repartition", 1.5, "--sparsity", "set")),
        (2, "--repartition is how many times .* found 0.5",
         (*TRAIN, "--repartition", 0.5, "--sparsity", "set", "--partition", "a.txt")),
        (2, "--no-input-gradient is for ranks", (*TRAIN, "--no-input-gradient")),
        (2, "grid 'wide' is not like", (*TRAIN, "--grid", "wide")),
        (2, "--ranks 0: at least 1 rank", (*TRAIN, "--ranks", 0)),
        (2, "--lr must be above 0", (*TRAIN, "--lr", 0, "--ranks", 2)),  # none is started
        # Examples
        (2, "--labels does not apply to 'digits'", (*TRAIN, "--labels", "a.txt")),
        (2, "a.npy: a file has no labels .*--labels FILE", FILES[:4]),
        (2, "b.npy: a file has no labels .*--validate-labels", (*FILES, "--validate", "b.npy")),
        (2, "--validate-labels is for", (*FILES, "--validate-labels", "b.txt")),
        (2, "--validate-labels is for",
         (*FILES, "--validate", "none", "--validate-labels", "b.txt")),
        (2, "--validate-labels does not apply to 'digits'",
         (*FILES, "--validate", "digits", "--validate-labels", "b.txt")),
        (3, "none.npy: no such file", (*FILES[:3], "none.npy", *FILES[4:])),
        (3, "none.txt: no such file", (*FILES[:5], "none.txt")),
        (3, "none.txt: no such file",
         (*FILES, "--validate", "b.npy", "--validate-labels", "none.txt")),
        (3, "'digit:64': no such file, and no", ("train", MODEL, "--inputs", "digit:64")),
        (3, "few.txt: labels of 99 images, but a.npy has 100", (*FILES[:5], "few.txt")),
        (3, "image 1 has the label 10, but the network has 10 outputs", (*FILES[:5], "ten.txt")),
        (3, "has 1437 images, --images asks for 9999", (*TRAIN, "--images", 9999)),
        (3, "'digits:81' has 81 features, the network takes 64",
         ("train", MODEL, "--inputs", "digits:81")),
        # MODEL
        (3, "none: no such file", ("train", "none", *TRAIN[2:])),
        (3, "'mlb:64-10': no such file, and no", ("train", "mlb:64-10", *TRAIN[2:])),
        (2, "--bias does not apply", (*TRAIN, "--bias", "-1")),
        (2, "error: .*--activation", (*TRAIN, "--activation", "loud")),
        # The run
        (3, "[Ll]oss|NaN|finite", (*TRAIN, "--lr", "1e30")),
        # What is written
        (2, "net.npz: the trained network is written as .safetensors", (*TRAIN, "-o", "net.npz")),
        (2, "a.jpg: unknown suffix '.jpg' for a picture", (*TRAIN, "--plot", "a.jpg")),
        (3, r"no/net.safetensors: cannot write: no folder", (*TRAIN, "-o", "no/net.safetensors")),
        (3, r"no/a.png: cannot write: no folder", (*TRAIN, "--plot", "no/a.png")),
        (2, "net.safetensors: is the model itself",
         ("train", "net.safetensors", *TRAIN[2:], "-o", "net.safetensors")),
        (2, "run/checkpoint.safetensors: is a file of --checkpoint",
         (*TRAIN, "--checkpoint", "run", "-o", "./run/checkpoint.safetensors")),
        (3, "a.txt", (*TRAIN, "--checkpoint", "a.txt")),
    ],
)  # fmt: skip
def test_bad_call(examples: Program, code: int, says: str, arguments: tuple[Any, ...]) -> None:
    lines = Path("a.txt").read_text().splitlines()
    Path("few.txt").write_text("\n".join(lines[1:]))
    Path("ten.txt").write_text("\n".join([lines[0], "10", *lines[2:]]))
    Path("net.safetensors").touch()
    examples.fails(code, says, *arguments)


def test_checkpoints_that_do_not_fit(program: Program) -> None:
    """Of another network, other settings, damaged: told, and left as they are."""
    program.ok(*QUICK, "--checkpoint", "run")
    resume = ("--checkpoint", "run", "--resume")
    program.fails(3, "another network|other network", "train", f"{MODEL}#1", *QUICK[2:], *resume)
    program.fails(3, "lr", *QUICK, *resume, "--lr", "0.3")
    path = Path("run/checkpoint.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    program.fails(3, "run/checkpoint.safetensors: ", *QUICK, *resume)


# --- on ranks -----------------------------------------------------------------------------------


def partition(program: Program) -> int:
    """Write p2.npz; returns the words of an image in a forward pass."""
    program.ok(
        "partition", MODEL, "--parts", 2, "--method", "multiphase", "--partitioner", "cyclic",
        "--quiet", "-o", "p2.npz",
    )  # fmt: skip
    told = program.ok("evaluate", MODEL, "p2.npz", "--json").json
    return int(told["methods"][0]["words_total"])


@pytest.mark.mnist
def test_mnist_is_learned(mnist_folder: Path) -> None:
    """784-1024-1024-10 at 5%, four epochs on two ranks: at least 97% of unseen images.

    Ten epochs give 97.8%: the same command without --epochs."""
    command = [
        sys.executable, "-m", "sparsednn", "train", "mlp:784-1024-1024-10@0.05",
        "--inputs", "mnist", "--mnist", str(mnist_folder), "--lr", "0.2", "--momentum", "0.9",
        "--schedule", "cosine", "--epochs", "4", "--ranks", "2", "--json",
    ]  # fmt: skip
    done = run_session(command, require_mpi("openmpi").environ(), 300)
    assert done.returncode == 0, done.stderr
    told = strict(done.stdout)
    assert (told["grid"], told["epochs"]) == ("2x1", 4)
    assert told["test_accuracy"] >= 0.97


def test_two_ranks(program: Program) -> None:
    """Many calls in one start: data- and model-parallel, both kernels; and refusals, told once."""
    mpi = require_mpi("openmpi")
    words = partition(program)
    assert words > 0
    run = [*TRAIN, "--epochs", "2", "--json"]
    split = [*run, "--partition", "p2.npz"]
    calls = {
        "data": [*run, "-o", "data.safetensors"],
        "model": [*split, "-o", "model.safetensors", "--checkpoint", "run"],
        "saving": [*split, "--no-input-gradient"],
        "reference": [*split, "--kernel", "reference"],
        "resumed": [*run, "--epochs", "3", "--checkpoint", "run", "--resume"],
    }
    refused = [
        (2, "--resume is for checkpoints", [*run, "--resume"]),
        (2, "--lr must be above 0", [*run, "--lr", "0"]),
        (2, "--grid 3x1: needs 3 ranks, there are 2", [*run, "--grid", "3x1"]),
        (2, "--ranks starts the ranks itself", [*run, "--ranks", "2"]),
        (3, "no/a.safetensors: cannot write", [*split, "-o", "no/a.safetensors"]),
        (3, "'digits:81' has 81 features", ["train", MODEL, "--inputs", "digits:81"]),
        (3, "none.npz: no such file", [*run, "--partition", "none.npz"]),
        (3, "made for network", ["train", f"{MODEL}#1", *split[2:]]),
        (3, "run: has a checkpoint: give --resume", [*split, "--checkpoint", "run"]),
    ]
    # What has been trained is run with the partition that it was trained with.
    infer = ["infer", "model.safetensors", "--inputs", "digits:test", "--partition", "p2.npz"]
    alone = strict(program.ok(*run, "--threads", "1").out)
    further = strict(program.ok(*TRAIN, "--epochs", "3", "--threads", "1", "--json").out)
    asked, answers = Path("../calls.json").resolve(), Path("../answers").resolve()
    asked.write_text(
        json.dumps([*calls.values(), *(call for _, _, call in refused), [*infer, "--json"]])
    )
    done = mpi.run(2, [CALLS, asked, answers], timeout=240)
    assert (done.stdout, done.stderr) == ("", "")
    first, second = (json.loads(Path(f"{answers}-{rank}.json").read_text()) for rank in (0, 1))

    told = {}
    for name, (code, out, err, _), other in zip(calls, first, second, strict=False):
        assert code == 0, (name, err)
        assert other[:3] == [0, "", ""], name
        told[name] = found = strict(out)
        assert set(found) == KEYS
        assert found["grid"] == ("2x1" if name in ("data", "resumed") else "1x2")
        against = further if name == "resumed" else alone
        assert found["steps"] == against["steps"]
        for key in ("loss", "test_loss"):
            assert math.isclose(found[key], against[key], rel_tol=1e-4), (name, key)
        assert found["words_sent"] == found["words_predicted"]
        assert found["drift"] == 1.0
    assert len(first[0][2].splitlines()) == 2, "a line per epoch, of one rank"
    assert told["data"]["words_sent"] == 0
    assert told["data"]["allreduce_words"] >= 2 * PER_EPOCH * told["data"]["parameters"]
    for name in ("model", "reference"):
        assert told[name]["words_sent"] == 2 * TRAINED * 2 * words, name
        assert told[name]["evaluation_words"] == 2 * TESTED * words, name
    assert 2 * TRAINED * words < told["saving"]["words_sent"] < told["model"]["words_sent"]
    assert told["resumed"]["resumed_step"] == 2 * PER_EPOCH
    assert told["resumed"]["words_sent"] == told["model"]["words_sent"], "of both sittings"
    for name in ("data", "model"):
        program.ok("inspect", f"{name}.safetensors", "--check")

    code, out, err, _ = first[-1]
    assert code == 0, err
    assert strict(out)["words_predicted"] == TESTED * words

    for (code, says, call), one, other in zip(
        refused, first[len(calls) : -1], second[len(calls) : -1], strict=True
    ):
        assert one[:2] == [code, ""], (call, one)
        assert len(one[2].splitlines()) == 1, one[2]
        assert re.match(rf"sparsednn: error: .*{re.escape(says)}", one[2]), one[2]
        # 0 from those that leave the telling to the first, before there is an MPI.
        assert other[0] in (code, 0), (call, other)
        assert other[1:3] == ["", ""], (call, other)
        assert not one[3], call


def test_ranks_option(program: Program) -> None:
    """Processes from beginning to end: one JSON object, one line of progress, one file."""
    runs = require_mpi("openmpi")
    words = partition(program)
    before = set(snapshot(program.folder))
    command = [
        sys.executable, "-m", "sparsednn", *TRAIN, "--epochs", "1", "--partition", "p2.npz",
        "--ranks", "2", "-o", "trained.safetensors", "--json",
    ]  # fmt: skip
    done = run_session(command, runs.environ(), 240)
    outcome = Outcome(done.returncode, done.stdout, done.stderr)
    assert outcome.code == 0, outcome.err
    found = strict(outcome.out)
    assert (found["ranks"], found["grid"]) == (2, "1x2")
    assert found["words_sent"] == found["words_predicted"] == 2 * words * TRAINED
    assert len(outcome.err.splitlines()) == 1
    assert set(snapshot(program.folder)) - before == {str(program.folder / "trained.safetensors")}


def test_one_process_loads_no_mpi(program: Program) -> None:
    code = (
        "import sys\n"
        "from sparsednn.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print([name for name in sys.modules if 'mpi4py' in name], file=sys.stderr)\n"
    )
    done = run_session([sys.executable, "-W", "error", "-c", code, *QUICK], environ(), 60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[1:] == ["[]"]


def environ() -> dict[str, str]:
    return MpiRuns("none", Path()).environ()
