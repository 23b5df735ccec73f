"""``--device``: a GPU that is not there, options that exclude each other, and the NumPy twin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli.cli_program import Program

from mpi_runs import MpiRuns
from sparsednn.gpu import usable

INFER = ("infer", "net.safetensors", "--inputs", "digits.npy")
TRAIN = ("train", "mlp:64-32-10@0.3", "--inputs", "digits", "--epochs", "2", "--images", "256")
TWIN = "NumPy twin"
INVISIBLE = {"CUDA_VISIBLE_DEVICES": "-1"}


@pytest.fixture
def no_gpu(small: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program where CuPy is not installed."""
    monkeypatch.delenv("SPARSEDNN_DEVICE", raising=False)
    monkeypatch.setitem(sys.modules, "cupy", None)
    usable.usable_device.cache_clear()
    return small


@pytest.fixture
def twin(no_gpu: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """The program where the twin stands for a GPU."""
    monkeypatch.setenv("SPARSEDNN_DEVICE", "twin")
    return no_gpu


# --- without a GPU --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [INFER, TRAIN], ids=["infer", "train"])
def test_no_gpu_is_exit_code_5(no_gpu: Program, call: tuple[str, ...]) -> None:
    line = no_gpu.fails(5, "^sparsednn: error: --device gpu: ", *call, "--device", "gpu")
    assert line.endswith("pip install 'sparsednn[gpu]'; or use --device cpu")


def test_an_invisible_gpu_is_exit_code_5(small: Program) -> None:
    """CuPy is asked, if it is installed: driver, or device, are missing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sparsednn", *INFER, "--device", "gpu"],
        env={**os.environ, **INVISIBLE, "SPARSEDNN_DEVICE": ""},
        cwd=small.folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("sparsednn: error: --device gpu: ")
    assert done.stderr.endswith("; or use --device cpu\n")
    assert done.stderr.count("\n") == 1


def test_auto_takes_the_cpu_and_says_so(no_gpu: Program) -> None:
    done = no_gpu.ok(*INFER, "--device", "auto", "--json", "--truth", "truth.tsv")
    assert (done.json["device"], done.json["kernel"]) == ("cpu", "numba")
    assert (done.json["truth"], done.json["precision"]) == ("pass", "fp32")
    assert set(done.json["seconds"]) == {"read", "prepare", "infer"}
    assert done.err == (
        "--device auto: CuPy is not installed: pip install 'sparsednn[gpu]': the CPU is used\n"
    )
    table = no_gpu.ok(*INFER, "--device", "auto")
    rows = [line.split() for line in table.out.splitlines()]
    assert ["device", "cpu"] in rows
    done = no_gpu.ok(*TRAIN, "--device", "auto", "--json")
    assert (done.json["device"], done.json["kernel"]) == ("cpu", "numba")
    assert done.err.startswith("--device auto: CuPy is not installed")


def test_the_cpu_is_the_default(twin: Program) -> None:
    """Whatever stands in the environment."""
    for call in (INFER, TRAIN):
        assert twin.ok(*call, "--json").json["device"] == "cpu"
    assert twin.ok(*INFER, "--json", "--device", "auto").json["device"] == "cpu"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", "tpu"), "--device is one of cpu, gpu, auto: 'tpu'"),
        (("--device", "gpu", "--kernel", "numba"), "numba is the CPU's: leave out --device gpu"),
        (("--device", "gpu", "--kernel", "reference"), "reference is the CPU's: leave out --dev"),
        (("--device", "auto", "--kernel", "numba"), "numba is the CPU's: leave out --device auto"),
        (("--kernel", "cupy"), "--kernel cupy is the GPU's: give --device gpu"),
        (("--device", "auto", "--kernel", "cupy"), "--kernel cupy is the GPU's: give --device gpu"),
        (("--kernel", "nothing"), "unknown kernel 'nothing'"),
        (("--device", "gpu", "--kernel", "nothing"), "unknown kernel 'nothing'"),
        (
            ("--transport", "pigeons", "--device", "gpu"),
            "--transport is one of auto, staged, gpu-aware, nccl: 'pigeons'",
        ),
        (("--transport", "pigeons"), "--transport is one of auto, "),
        (("--transport", "nccl"), "--transport nccl is for GPUs: give --device gpu, or auto"),
        (("--transport", "staged", "--ranks", "2"), "staged is for GPUs"),  # no rank is started
    ],
)
def test_devices_and_what_does_not_go_with_them(
    twin: Program, options: tuple[str, ...], says: str
) -> None:
    for call in (INFER, TRAIN):
        twin.fails(2, says, *call, *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ("--precision", "fp8", "--device", "gpu"),
            "--precision is one of fp32, fp16, bf16: 'fp8'",
        ),
        (("--precision", "fp16"), "--precision fp16 is for a GPU: give --device gpu"),
        (("--precision", "bf16", "--device", "auto"), "--precision bf16 is for a GPU: give --dev"),
        (("--no-merge",), "--no-merge is for a GPU: give --device gpu"),
        (("--no-merge", "--device", "gpu", "--partition", "p.npz"), "merge no columns anyway"),
        (
            ("--trace", "t", "--partition", "p", "--device", "gpu"),
            "--trace is of the CPU's kernels",
        ),
    ],
)
def test_options_of_a_gpu(twin: Program, options: tuple[str, ...], says: str) -> None:
    twin.fails(2, says, *INFER, *options)


def test_a_variable_that_means_nothing(twin: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEDNN_DEVICE", "phone")
    twin.fails(2, "SPARSEDNN_DEVICE is 'twin' or nothing: 'phone'", *INFER, "--device", "gpu")


# --- with the twin --------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", ["digits.npy", "digits.tsv", "digits.safetensors"])
def test_inference_on_a_device(twin: Program, inputs: str) -> None:
    """The numbers are dyadic: the outputs are the CPU's, bit by bit."""
    run = ("infer", "net.safetensors", "--inputs", inputs, "--truth", "truth.tsv", "--json")
    found = twin.ok(*run, "--device", "gpu", "--outputs-out", "gpu.npy", "--categories-out", "ids")
    assert found.err == ""
    told = found.json
    assert (told["device"], told["kernel"], told["precision"]) == (TWIN, "cupy", "fp32")
    assert (told["truth"], told["images"], told["edges"]) == ("pass", 300, 1024)
    assert set(told["seconds"]) == {"read", "prepare", "infer", "device", "copies"}
    assert told["merged"] >= 0
    assert "precision_error" not in told
    assert Path("ids").read_bytes() == Path("truth.tsv").read_bytes()
    twin.ok(*run, "--outputs-out", "cpu.npy")
    np.testing.assert_array_equal(np.load("gpu.npy"), np.load("cpu.npy"))


def test_options_of_inference_on_a_device(twin: Program) -> None:
    run = (*INFER, "--device", "gpu", "--truth", "truth.tsv")
    told = twin.ok(*run, "--kernel", "cupy", "--no-merge", "--json").json
    assert (told["merged"], told["truth"]) == (0, "pass")
    told = twin.ok(*run, "--precision", "fp16", "--json").json
    assert (told["precision"], told["truth"]) == ("fp16", "pass")
    assert told["precision_error"] == 0.0, "dyadic numbers"
    table = twin.ok(*run).out
    for name in (f"device +{TWIN}", "seconds device", "seconds copies", "merged", "kernel +cupy"):
        assert re.search(rf"^{name}", table, re.MULTILINE), table


def test_a_wrong_answer_is_exit_code_4_on_a_device(twin: Program) -> None:
    Path("none.tsv").touch()
    done = twin(*INFER, "--device", "gpu", "--truth", "none.tsv", "--json")
    assert (done.code, done.json["truth"]) == (4, "fail")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_training_on_a_device(twin: Program, optimizer: str) -> None:
    run = (*TRAIN, "--optimizer", optimizer, "--json")
    cpu = twin.ok(*run, "-o", "cpu.safetensors").json
    gpu = twin.ok(*run, "-o", "gpu.safetensors", "--device", "gpu").json
    assert (gpu["device"], gpu["kernel"], cpu["device"]) == (TWIN, "cupy", "cpu")
    assert set(gpu) == set(cpu)  # one rank: no transport
    for key in ("loss", "test_loss"):
        assert gpu[key] == pytest.approx(cpu[key], rel=1e-4)
    assert (gpu["steps"], gpu["test_images"]) == (cpu["steps"], cpu["test_images"])
    outputs = []
    for name in ("cpu", "gpu"):
        twin.ok(
            "infer", f"{name}.safetensors", "--inputs", "digits:64", "--outputs-out", f"{name}.npy"
        )
        outputs.append(np.load(f"{name}.npy"))
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-3, atol=1e-4)


# --- on ranks -------------------------------------------------------------------------------------

#: The program, with the twin on some ranks only; whose ranks they are, launchers tell in these.
UNEVEN = """
import os, sys
rank = int(os.environ.get("OMPI_COMM_WORLD_RANK", os.environ.get("PMI_RANK", "0")))
os.environ["SPARSEDNN_DEVICE"] = "twin" if rank in WITH_GPU else ""
sys.modules["cupy"] = None
from sparsednn.cli.main import main
sys.argv = ["sparsednn", *sys.argv[1:]]
main()
"""


def on_ranks(
    mpi: MpiRuns, folder: Path, with_gpu: tuple[int, ...], *arguments: str
) -> subprocess.CompletedProcess[str]:
    program = ["-c", UNEVEN.replace("WITH_GPU", str(with_gpu)), *arguments]
    return mpi.run(2, program, cwd=folder, check=False, timeout=240)


@pytest.mark.parametrize("call", [INFER, TRAIN], ids=["infer", "train"])
def test_all_ranks_need_a_gpu(small: Program, mpi: MpiRuns, call: tuple[str, ...]) -> None:
    done = on_ranks(mpi, small.folder, (0,), *call, "--device", "gpu")
    lines = [line for line in done.stderr.splitlines() if line.startswith("sparsednn: error")]
    assert done.returncode == 5, done.stderr
    assert lines == [
        "sparsednn: error: rank 1: --device gpu: CuPy is not installed: "
        "pip install 'sparsednn[gpu]'; or use --device cpu"
    ]
    assert done.stdout == ""


def divide(program: Program, model: str) -> tuple[str, ...]:
    """Divide among two ranks; returns the options of a run."""
    how = ("--parts", 2, "--method", "multiphase", "--partitioner", "cyclic", "-o", "p2.npz")
    program.ok("partition", model, *how)
    return ("--partition", "p2.npz")


def test_ranks_with_a_device(small: Program, mpi: MpiRuns) -> None:
    split = divide(small, "net.safetensors")
    run = (*INFER, "--truth", "truth.tsv", "--json", "--transport", "staged", "--device")
    done = on_ranks(mpi, small.folder, (0, 1), *run, "gpu", *split)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["device"], told["ranks"], told["kernel"]) == (TWIN, 2, "cupy")
    assert (told["truth"], told["precision"]) == ("pass", "fp32")
    assert told["transport"] == "mpi staged"
    assert told["words_sent"] > 0
    done = on_ranks(mpi, small.folder, (), *run, "auto")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["device"] == "cpu"
    assert "transport" not in told
    assert done.stderr.count("--device auto: CuPy is not installed") == 1


def test_training_on_ranks_with_a_device(small: Program, mpi: MpiRuns) -> None:
    split = (*divide(small, TRAIN[1]), "--transport", "staged", "--json")
    done = on_ranks(mpi, small.folder, (0, 1), *TRAIN, *split, "--device", "gpu")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["device"], told["ranks"], told["transport"]) == (TWIN, 2, "mpi staged")
    alone = small.ok(*TRAIN, "--json").json
    assert told["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert told["words_sent"] == told["words_predicted"] > 0
