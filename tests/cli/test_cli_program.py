"""The program as a process: help, imports, pipes, signals, ``--debug``; ``doctor`` and ``demo``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli.cli_program import Program, snapshot

import sparsednn.demo
import sparsednn.doctor
from sparsednn import __version__, inference
from sparsednn.cli import main as cli
from sparsednn.doctor import Finding
from sparsednn.partitioners.methods import NATIVE

RUN = ("infer", "net.safetensors", "--inputs", "digits.npy", "--kernel", "reference")


def process(folder: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "sparsednn", *arguments],
        cwd=folder,
        text=True,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
        **{"stdout": subprocess.PIPE, **options},
    )


HEAVY = (
    "numba", "llvmlite", "mpi4py", "cupy", "sklearn", "torch", "scipy", "pooch", "kahypar",
    "mtkahypar", "matplotlib",
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["infer", "--help"],
        ["partition", "--help"],
        ["train", "--help"],
        ["cnn", "--help"],
        ["cnn", "train", "--help"],
        ["cnn", "plan", "lenet5", "--ranks", "2"],
        ["inspect", "net.safetensors"],
        ["inspect", "net.safetensors", "--json"],
        ["inspect", "neuron64", "--bias", "-0.1"],
        ["inspect", "graph-challenge:1024-2"],
    ],
)
def test_quick_commands_import_nothing_heavy(small: Program, arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from sparsednn.cli.main import main\n"
        f"sys.argv = ['sparsednn', *{arguments!r}]\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code == 0, end.code\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=small.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert done.stdout


@pytest.mark.parametrize("installed", [True, False])
def test_partitioners_load_what_is_asked_for(installed: bool) -> None:
    """The package imports where numba, SciPy and the native libraries are, and are not, there."""
    code = (
        "import sys\n"
        f"if not {installed}:\n    sys.modules.update(dict.fromkeys({HEAVY!r}))\n"
        "import sparsednn.partitioners, sparsednn.partitioners.report\n"
        "import sparsednn.partitioners.plot, sparsednn.partitioners.export\n"
        f"print([name for name in {HEAVY!r} if sys.modules.get(name)])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_partitioners_without_native_libraries(small: Program) -> None:
    """Without kahypar and mtkahypar the default method is still there, and says so once each."""
    code = (
        "import sys\n"
        "for name in ('kahypar', 'mtkahypar', 'matplotlib'):\n"
        "    sys.modules[name] = None\n"
        "from sparsednn.cli.main import main\n"
        "sys.argv = ['sparsednn', *sys.argv[1:]]\n"
        "main()\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *arguments],
            cwd=small.folder,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    done = run("partition", "net.safetensors", "--parts", "4", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["methods"][0]["partitioner"] == "annealing+cyclic"
    # Progress is there, too, where it takes more than two seconds.
    lines = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert [line.partition(":")[2].partition(":")[0] for line in lines] == [
        " joint does without kahypar",
        " joint does without mtkahypar",
    ]
    assert all(f"pip install {name}" in line for name, line in zip(NATIVE, lines, strict=True))
    asked = run("partition", "net.safetensors", "--parts", "4", "--partitioner", "mtkahypar")
    assert (asked.returncode, asked.stdout) == (5, "")
    assert "pip install mtkahypar" in asked.stderr


def test_as_a_process(small: Program) -> None:
    done = process(small.folder, *RUN, "--truth", "truth.tsv", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["truth"] == "pass"
    failed = process(small.folder, "inspect", "nothing.safetensors")
    assert (failed.returncode, failed.stdout) == (3, "")
    assert failed.stderr == ("sparsednn: error: nothing.safetensors: no such file or folder\n")


def test_version_and_help(program: Program) -> None:
    assert program.ok("--version").out == f"sparsednn {__version__}\n"
    for command in ((), ("inspect",), ("convert",), ("infer",), ("datasets",), ("doctor",),
                    ("partition",), ("evaluate",), ("hypergraph",), ("train",)):  # fmt: skip
        assert "Usage" in program.ok(*command, "--help").out
    assert "--kernel" in program.ok("infer", "-h").out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nothing",),
        ("inspect",),
        ("inspect", "npz", "mtx"),
        ("inspect", "npz", "--nothing"),
        ("inspect", "npz", "--layers", "many"),
        ("infer", "npz"),
        ("infer", "npz", "--inputs"),
        ("convert", "npz"),
        ("datasets", "nothing"),
        ("datasets", "digits"),
    ],
)
def test_usage_errors(small: Program, arguments: tuple[str, ...]) -> None:
    before = snapshot(small.folder)
    done = small(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Error" in done.err
    assert "Traceback" not in done.err
    assert snapshot(small.folder) == before


@pytest.mark.parametrize("model", ["net.safetensors", "graph-challenge:1024-1000"])
def test_a_reader_that_has_gone_is_no_error(small: Program, model: str) -> None:
    """Less, and more, than a pipe holds."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = process(small.folder, "inspect", model, "--json", stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("model", ["net.safetensors", "graph-challenge:1024-1000"])
def test_stdout_is_full(small: Program, model: str) -> None:
    with open("/dev/full", "w") as full:
        done = process(small.folder, "inspect", model, "--json", stdout=full)
    assert done.returncode == 3
    assert done.stderr == "sparsednn: error: stdout: No space left on device\n"


def test_a_terminal_of_few_letters(small: Program) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = process(small.folder, "inspect", "graph-challenge:1024-20", env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2026 (8 more" in done.stdout


def test_debug_shows_a_traceback(small: Program) -> None:
    done = small("--debug", "inspect", "nothing")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("Traceback (most recent call last)")
    assert "sparsednn.errors.FormatError: nothing: no such" in done.err
    assert done.err.endswith("\nsparsednn: error: nothing: no such file or folder\n")


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.tsv"])
@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_a_signal_leaves_nothing_behind(
    small: Program,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    number: int,
    code: int,
    says: str,
) -> None:
    def stop(*args: object, sink: Any, **options: object) -> None:
        sink(0, np.ones((64, 5), np.float32))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(inference, "infer", stop)
    small.fails(code, f"error: {says}$", *RUN, "--outputs-out", name)


def test_every_error_is_one_line(small: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: BaseException) -> None:
        def raise_it(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(inference, "infer", raise_it)

    fail(MemoryError("Unable to allocate 9 TiB"))
    small.fails(3, "out of memory: Unable to allocate 9 TiB$", *RUN)
    fail(MemoryError())
    small.fails(3, "out of memory$", *RUN)
    fail(OSError(5, "Input/output error", "some/file"))
    small.fails(3, "some/file: Input/output error$", *RUN)
    fail(RuntimeError("two\n  lines"))
    done = small(*RUN, "--outputs-out", "a.npy")
    assert (done.code, done.out) == (1, "")
    assert done.err == "sparsednn: error: RuntimeError: two lines (--debug shows where)\n"
    assert not Path("a.npy").exists()


def test_what_is_not_installed(small: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    small.fails(
        5, "sklearn.datasets.*'sparsednn doctor' says", "datasets", "digits", "--out", "new"
    )


def test_doctor(program: Program) -> None:
    done = program.ok("doctor", "--json")
    assert done.err == ""
    assert set(done.json) == {"findings"}
    for finding in done.json["findings"]:
        assert set(finding) == {"part", "ok", "found", "advice"}
    parts = {finding["part"] for finding in done.json["findings"]}
    assert parts >= {"sparsednn", "python", "cores", "caches", "numpy", "numba", "mpi", "gpu"}
    assert parts >= {"kahypar", "mtkahypar", "matplotlib"}


def test_doctor_tells_what_is_missing(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        Finding("numpy", True, "2.0"),
        Finding("numba", False, "not installed", "pip install numba"),
        Finding("gpu", None, "cupy is not installed", "pip install 'sparsednn[gpu]'"),
    ]
    monkeypatch.setattr(sparsednn.doctor, "examine", lambda: found)
    table = program("doctor")
    assert table.code == 5
    assert table.err == "sparsednn: error: missing or broken: numba\n"
    assert table.out.splitlines() == [
        "ok   numpy  2.0",
        "BAD  numba  not installed  →  pip install numba",
        "-    gpu    cupy is not installed  →  pip install 'sparsednn[gpu]'",
    ]
    document = program("doctor", "--json")
    assert (document.code, document.err) == (5, table.err)
    assert [finding["ok"] for finding in document.json["findings"]] == [True, False, None]


def test_demo(program: Program) -> None:
    done = program.ok("demo", "--json")
    assert done.json["answer"] == "pass"
    assert set(done.json) >= {
        "network", "layers", "edges", "images", "threads", "categories", "edges_per_second",
    }  # fmt: skip
    assert (done.json["layers"], done.json["edges"], done.json["images"]) == (120, 3932160, 1797)
    assert done.json["words_per_layer_joint"] < done.json["words_per_layer_random"] / 3
    assert len(done.err.splitlines()) == 5, "progress is on stderr"
    assert list(program.folder.iterdir()) == []


def test_demo_that_fails(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sparsednn.demo, "run_demo", lambda progress: {"categories": 1, "answer": "fail"}
    )
    done = program("demo", "--json")
    assert (done.code, done.json["answer"]) == (4, "fail")
    assert done.err.startswith("sparsednn: error: the numba kernel's categories differ")
    assert program("demo").out.splitlines()[-1].split() == ["answer", "fail"]


def test_main_is_callable_outside_the_main_thread(program: Program) -> None:
    """Signal handlers cannot be set there; nothing else is different."""
    from concurrent.futures import ThreadPoolExecutor

    sys.argv = ["sparsednn", "--version"]
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(cli.main).exception()
    assert isinstance(error, SystemExit)
    assert error.code == 0
