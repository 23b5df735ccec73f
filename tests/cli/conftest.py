"""The program and a folder of small files in all formats."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli.cli_program import Program

from sparsednn.datasets import digits_inputs, radix_net
from sparsednn.formats import write_categories, write_inputs, write_network
from sparsednn.inference import infer

BIAS = -1.5  # dyadic, as is the weight: both kernels give the same bits


@pytest.fixture
def program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Program]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEDNN_DEBUG", "")  # --debug sets it: put back at the end
    before = signal.getsignal(signal.SIGTERM)
    yield Program(tmp_path, capsys, monkeypatch)
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    network = radix_net([[8, 8]], weight=0.5, bias=BIAS, activation="clamped_relu:32", name="small")
    write_network(network, folder / "net.safetensors")
    write_network(network, folder / "npz", format="npz")
    write_network(network, folder / "mtx", format="matrix-market")
    write_network(network, folder / "neuron64", format="graph-challenge")
    inputs = digits_inputs(64, limit=300)
    for suffix in (".tsv", ".npz", ".npy", ".safetensors"):
        write_inputs(inputs, folder / f"digits{suffix}")
    categories = infer(network, inputs, kernel="reference").categories + 1
    assert 0 < categories.size < 300, "a test of categories needs images of both kinds"
    write_categories(categories, folder / "truth.tsv")
    return folder


@pytest.fixture
def small(program: Program, small_files: Path) -> Program:
    """The program in a folder with net.safetensors, npz/, mtx/, neuron64/, digits.*, truth.tsv."""
    shutil.copytree(small_files, program.folder, dirs_exist_ok=True)
    return program
