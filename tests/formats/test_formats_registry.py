"""The one door: which format, which errors, and what is not imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from formats.formats_samples import names, small_network

import sparsednn.formats
from sparsednn.errors import FormatError, UsageError
from sparsednn.formats import (
    FORMATS,
    detect_format,
    read_network,
    summarize_network,
    write_network,
)


def test_public_names() -> None:
    for name in sparsednn.formats.__all__:
        assert hasattr(sparsednn.formats, name)
    assert list(FORMATS) == [
        "native", "graph-challenge", "npz", "matrix-market", "shards", "torch", "onnx",
    ]  # fmt: skip


def test_light_imports(tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    write_network(small_network(), path)
    code = (
        "import sys, sparsednn.formats as f; f.summarize_network(sys.argv[1]);"
        "f.read_network(sys.argv[1]); heavy = {'numba', 'scipy', 'safetensors', 'torch', 'onnx'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)


def test_what_is_where(tmp_path: Path) -> None:
    write_network(small_network(), tmp_path / "a.safetensors")
    write_network(small_network(), tmp_path / "npz", format="npz")
    write_network(small_network(), tmp_path / "mtx", format="matrix-market")
    (tmp_path / "gc" / "neuron4").mkdir(parents=True)
    assert detect_format(tmp_path / "a.safetensors") == "native"
    assert detect_format(tmp_path / "npz") == "npz"
    assert detect_format(tmp_path / "mtx") == "matrix-market"
    assert detect_format(tmp_path / "gc") == "graph-challenge"
    for name, format in (
        ("a.pt", "torch"),
        ("a.pth", "torch"),
        ("a.pth.tar", "torch"),
        ("a.bin", "torch"),
        ("a.ckpt", "torch"),
        ("a.onnx", "onnx"),
        ("a.mtx.gz", "matrix-market"),
        ("model.safetensors.index.json", "shards"),
    ):
        (tmp_path / name).touch()
        assert detect_format(tmp_path / name) == format
    hashes = {read_network(tmp_path / n).hash for n in ("a.safetensors", "npz", "mtx")}
    assert hashes == {small_network().hash}


def test_reading_what_is_not_there_or_unknown(tmp_path: Path) -> None:
    for function in (read_network, summarize_network, detect_format):
        with pytest.raises(FormatError, match="nothing: no such file or folder"):
            function(tmp_path / "nothing")
        with pytest.raises(FormatError, match="no network in this folder: known are"):
            function(tmp_path)
    (tmp_path / "a.h5").touch()
    with pytest.raises(FormatError, match=r"a\.h5: unknown suffix '\.h5' .*: known are \.safet"):
        read_network(tmp_path / "a.h5")
    (tmp_path / "x.npz").touch()
    (tmp_path / "x.mtx").touch()
    with pytest.raises(FormatError, match="files of several formats: npz, matrix-market"):
        read_network(tmp_path)
    with pytest.raises(FormatError, match=r"x\.npz: no|is a file|not a folder|cannot read"):
        read_network(tmp_path / "x.npz" / "y")


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    write_network(small_network(), path)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)  # root may read everything
    with pytest.raises(FormatError, match=r"a\.safetensors: cannot read: Permission denied"):
        read_network(path)


def test_wrong_ways_to_write(tmp_path: Path) -> None:
    network = small_network()
    for path, format, message in (
        ("a", "h5", "unknown format 'h5': known are native, graph-challenge, npz"),
        ("a", "onnx", "a: format 'onnx' is only read; written are .safetensors"),
        ("a.pth.tar", None, "a.pth.tar: a file of format 'torch' is only read"),
        ("a.pt", "npz", "a.pt: a file of format 'torch' is only read"),
        ("a.safetensors.index.json", None, "a file of format 'shards' is only read"),
        ("a", None, "a: writing a folder needs a format: graph-challenge, npz or matrix-market"),
        ("a", "native", "the name of a native file must end in .safetensors"),
        ("a.npz", "native", "the suffix '.npz' does not fit format 'native'"),
        ("a.safetensors", "npz", "the suffix '.safetensors' does not fit format 'npz'"),
    ):
        with pytest.raises(UsageError, match=message):
            write_network(network, tmp_path / path, format=format)
    with pytest.raises(FormatError, match=r"no folder .*missing"):
        write_network(network, tmp_path / "missing" / "a.safetensors")
    assert names(tmp_path) == []


def test_folder_with_a_suffix_stays_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "net.npz"
    folder.mkdir()
    write_network(small_network(), folder, format="npz")
    assert read_network(folder).hash == small_network().hash
