"""Graph Challenge folders: the bytes, the transpose, the bias, and everything that can be wrong."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from formats.formats_samples import challenge_networks, names
from hypothesis import given, settings

from sparsednn import SparseLayer, SparseNetwork
from sparsednn.challenge import OFFICIAL_BIAS
from sparsednn.errors import FormatError, InputError, UsageError
from sparsednn.formats import graph_challenge as gc
from sparsednn.formats import read_network, write_network

# A(1,2) = 1/16, A(3,1) = 1, A(1,1) = 0.5: neuron 1 feeds 1 and 2, neuron 3 feeds 1.
BYTES = b"1\t1\t5.000000e-01\n3\t1\t1.000000e+00\n1\t2\t6.250000e-02\n"


def example_layer(**more: object) -> SparseLayer:
    arguments: dict[str, object] = {"bias": -0.5, "activation": "clamped_relu:32"}
    arguments.update(more)
    return SparseLayer([0, 2, 3, 3], [0, 2, 0], [0.5, 1.0, 0.0625], 3, **arguments)  # type: ignore[arg-type]


def folder_with(tmp_path: Path, *contents: bytes, width: int = 3) -> Path:
    folder = tmp_path / f"neuron{width}"
    folder.mkdir()
    for k, content in enumerate(contents, 1):
        (folder / f"n{width}-l{k}.tsv").write_bytes(content)
    return folder


def test_bytes_are_the_official_ones(tmp_path: Path) -> None:
    network = SparseNetwork([example_layer(), example_layer()])
    write_network(network, tmp_path / "neuron3", format="graph-challenge")
    assert names(tmp_path / "neuron3") == ["n3-l1.tsv", "n3-l2.tsv"]
    assert (tmp_path / "neuron3" / "n3-l1.tsv").read_bytes() == BYTES


def test_reading_transposes(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, BYTES, BYTES)
    for path in (folder, tmp_path):  # the folder itself, or its parent
        network = read_network(path, bias=-0.5)
        assert network.hash == SparseNetwork([example_layer(), example_layer()]).hash
        assert network.name == "neuron3"
    assert len(read_network(folder, bias=-0.5, layers=1)) == 1


@settings(deadline=None, max_examples=40)
@given(challenge_networks())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, network: SparseNetwork) -> None:
    folder = tmp_path_factory.mktemp("gc") / "net"
    if all(layer.nnz for layer in network):
        write_network(network, folder, format="graph-challenge")
        assert read_network(folder, bias=-0.25).hash == network.hash
    else:
        with pytest.raises(InputError, match=r"net: layer \d+: no connections"):
            write_network(network, folder, format="graph-challenge")
        assert not folder.exists()


def test_any_line_order_and_gzip(tmp_path: Path) -> None:
    lines = BYTES.splitlines(keepends=True)
    folder = folder_with(tmp_path, b"".join(lines[::-1]), b"".join(sorted(lines)))
    packed = folder / "n3-l3.tsv.gz"
    packed.write_bytes(gzip.compress(BYTES))
    network = read_network(folder, bias=-0.5)
    assert network.hash == SparseNetwork([example_layer()] * 3).hash


def test_all_ones(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, b"1\t2\t1\n3\t1\t1\n")
    network = read_network(folder, bias=0)
    assert network[0].values.tolist() == [1.0, 1.0]


def test_an_empty_layer_file_was_cut_off(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, b"1\t2\t1\n3\t1\t1\n", b"")
    with pytest.raises(FormatError, match=r"n3-l2\.tsv: no connections: the file was cut off"):
        read_network(folder, bias=0)


def test_official_bias_and_activation(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, b"1\t1024\t6.250000e-02\n", width=1024)
    network = read_network(folder)
    assert network[0].bias[0] == np.float32(-0.3)
    assert str(network[0].activation) == "clamped_relu:32.0"
    assert OFFICIAL_BIAS == {1024: -0.3, 4096: -0.35, 16384: -0.4, 65536: -0.45}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no official bias for 3 neurons: give one with --bias"),
        ({"bias": 0.25}, "bias 0.25: it must not be positive"),
        ({"bias": float("nan")}, "bias nan: it must not be positive"),
        ({"bias": -1.0, "layers": 0}, "layers must be at least 1, found 0"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, float], message: str) -> None:
    folder = folder_with(tmp_path, BYTES)
    with pytest.raises(UsageError, match=message):
        read_network(folder, **options)  # type: ignore[arg-type]


def test_layers_missing_or_too_few(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, BYTES, BYTES, BYTES)
    with pytest.raises(FormatError, match="neuron3: has 3 layers, 4 were asked for"):
        read_network(folder, bias=0, layers=4)
    (folder / "n3-l2.tsv").unlink()
    with pytest.raises(FormatError, match=r"n3-l2\.tsv: no such file, but there is n3-l3\.tsv"):
        read_network(folder, bias=0)
    assert len(read_network(folder, bias=0, layers=1)) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\t1\t1\n4\t1\t1\n", r"n3-l2\.tsv: line 2: row 4 is out of range, the largest is 3"),
        (b"1\t1\t1\n1\t4\t1\n", r"n3-l2\.tsv: line 2: column 4 is out of range"),
        (
            b"1\t1\t1\n1\t2\t1\n1\t1\t1\n",
            r"n3-l2\.tsv: line 3: entry \(1, 1\) is there twice, first in line 1",
        ),
        (b"1\t1\t1\n1\t2", r"n3-l2\.tsv: line 2: found 2 fields"),
    ],
)
def test_malformed_layers(tmp_path: Path, content: bytes, message: str) -> None:
    folder = folder_with(tmp_path, BYTES, content)
    with pytest.raises(FormatError, match=message):
        read_network(folder, bias=-0.5)


def test_ambiguous_folders(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, BYTES)
    (folder / "n4-l1.tsv").write_bytes(BYTES)
    with pytest.raises(FormatError, match=r"layers of several widths \(3, 4\)"):
        read_network(folder, bias=0)
    (tmp_path / "neuron4").mkdir()
    with pytest.raises(FormatError, match="has neuron3, neuron4: name the one to read"):
        read_network(tmp_path, bias=0)
    with pytest.raises(FormatError, match="no Graph Challenge layer"):
        gc.read(tmp_path / "neuron4", bias=0)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            SparseLayer([0, 1], [2], [1.0], 3),
            r"layer 2: shape \(1, 3\): a Graph Challenge layer is",
        ),
        (example_layer(activation="relu"), "layer 2: activation relu: a Graph Challenge layer has"),
        (example_layer(bias=-0.25), "layer 2: bias -0.25 to -0.25: .* one bias for all layers"),
        (example_layer(bias=[-0.5, -0.5, 0]), "layer 2: bias -0.5 to 0.0"),
    ],
)
def test_what_the_format_cannot_hold(tmp_path: Path, layer: SparseLayer, message: str) -> None:
    network = SparseNetwork([example_layer(), layer])
    with pytest.raises(InputError, match=message):
        write_network(network, tmp_path / "net", format="graph-challenge")
    with pytest.raises(InputError, match=message):
        gc.write_layers(iter(network), tmp_path / "net", 3)
    assert names(tmp_path) == []


def test_positive_bias_is_not_written(tmp_path: Path) -> None:
    network = SparseNetwork([example_layer(bias=0.5)])
    with pytest.raises(InputError, match="at most 0"):
        write_network(network, tmp_path / "net", format="graph-challenge")


def test_streaming_failure_leaves_nothing(tmp_path: Path) -> None:
    def layers() -> Iterator[SparseLayer]:
        yield example_layer()
        assert len(names(tmp_path)) == 1  # one temporary folder
        raise RuntimeError("generator broke")

    with pytest.raises(RuntimeError, match="generator broke"):
        gc.write_layers(layers(), tmp_path / "net", 3)
    with pytest.raises(InputError, match="no layers to write"):
        gc.write_layers([], tmp_path / "net", 3)
    assert names(tmp_path) == []


def test_deeper_old_network_is_not_mixed_in(tmp_path: Path) -> None:
    gc.write_layers([example_layer()] * 3, tmp_path / "net", 3)
    (tmp_path / "net" / "notes.txt").touch()
    with pytest.raises(FormatError, match=r"already has n3-l2\.tsv and 1 more"):
        gc.write_layers([example_layer()], tmp_path / "net", 3)
    gc.write_layers([example_layer()] * 4, tmp_path / "net", 3)
    assert names(tmp_path / "net") == [*(f"n3-l{k}.tsv" for k in range(1, 5)), "notes.txt"]
