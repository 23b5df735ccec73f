"""State dicts in and out: PyTorch's files and safetensors, whole and by block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import initial_parameters
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import Convolution, FullyConnected, Input
from sparsednn.dense.state_dict import (
    StateFile,
    read_state_dict,
    stored_network,
    to_torch,
    write_state_dict,
)
from sparsednn.errors import FormatError, ShapeError

Arrays = dict[str, Any]


@pytest.fixture(scope="module")
def graph() -> OperationGraph:
    return make_network("resnet20", (3, 8, 8), 5)


@pytest.fixture(scope="module")
def arrays(graph: OperationGraph) -> Arrays:
    source = np.random.default_rng(0)
    return {
        name: source.standard_normal(each.shape).astype(np.float32)
        for name, each in graph.parameters.items()
    }


def equal(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_written_files_are_read_again_and_hold_the_network(
    graph: OperationGraph, arrays: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "net.safetensors"
    write_state_dict(path, graph, arrays)
    found = read_state_dict(path, graph)
    equal(found, arrays)
    assert all(each.flags.writeable and each.flags.c_contiguous for each in found.values())
    wide = read_state_dict(path, graph, np.float64)
    assert all(each.dtype == np.float64 for each in wide.values())
    equal(wide, arrays)
    assert stored_network(path) == graph
    plain = load_file(path)
    assert plain["fc.weight"].shape == (5, 64)
    save_file(plain, tmp_path / "plain.safetensors")
    assert stored_network(tmp_path / "plain.safetensors") is None
    equal(read_state_dict(tmp_path / "plain.safetensors", graph), arrays)


def test_a_block_is_that_of_the_whole_in_both_kinds_of_files(
    small: tuple[OperationGraph, Arrays, list[Path]],
) -> None:
    graph, arrays, paths = small

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(arrays)))
        block: list[Any] = []
        indices = []
        for size in arrays[name].shape:
            if data.draw(st.booleans()):
                block.append(slice(data.draw(st.integers(0, size)), None))
                indices.append(np.arange(size)[block[-1]])
            else:
                chosen = data.draw(st.lists(st.integers(0, size - 1), max_size=6))
                block.append(np.array(chosen, np.int64))
                indices.append(block[-1])
        for path in paths:
            with StateFile(path, graph) as file:
                found = file.array(name, block)
            np.testing.assert_array_equal(found, arrays[name][np.ix_(*indices)])
            assert found.flags.c_contiguous
            assert found.dtype == np.float32

    check()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[OperationGraph, Arrays, list[Path]]:
    """A network of odd sizes with its arrays, in all kinds of files."""
    graph = OperationGraph("small")
    at = graph.add(Input("image", (3, 4, 5)))
    at = graph.add(Convolution("conv", 6, (3, 2), groups=3), at)
    graph.add(FullyConnected("fc", 7), at)
    graph.finish()
    arrays = initial_parameters(graph, seed=1)
    folder = tmp_path_factory.mktemp("small")
    paths = [folder / "net.safetensors"]
    write_state_dict(paths[0], graph, arrays)
    try:
        import torch
    except ImportError:
        return graph, arrays, paths
    paths.append(folder / "net.pt")
    torch.save({k: torch.from_numpy(v) for k, v in to_torch(graph, arrays).items()}, paths[1])
    return graph, arrays, paths


def test_only_the_wanted_bytes_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparsednn.formats import _positioned

    graph = OperationGraph("wide")
    graph.add(FullyConnected("fc", 64), graph.add(Input("image", (256, 8, 8))))
    graph.finish()
    arrays = initial_parameters(graph)
    write_state_dict(tmp_path / "net.safetensors", graph, arrays)
    read: list[int] = []
    original = _positioned.PositionedFile._read

    def counted(self: Any, offset: int, into: Any) -> None:
        read.append(into.nbytes)
        original(self, offset, into)

    monkeypatch.setattr(_positioned.PositionedFile, "_read", counted)
    with StateFile(tmp_path / "net.safetensors", graph) as file:
        assert read == []
        rows = file.array("fc.weight", [slice(16, 32), *[slice(None)] * 3])
        assert sum(read) == rows.nbytes == 16 * 256 * 64 * 4
        read.clear()
        corner = file.array("fc.weight", [np.array([60, 3]), slice(0, 9), slice(8), slice(8)])
        assert sum(read) == corner.nbytes
    np.testing.assert_array_equal(rows, arrays["fc.weight"][16:32])
    np.testing.assert_array_equal(corner, arrays["fc.weight"][[60, 3], :9])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_files_of_pytorch_in_all_its_floats(
    graph: OperationGraph, arrays: Arrays, tmp_path: Path, dtype: str, kind: str
) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / f"net.{kind}"
    state = {
        name: torch.from_numpy(each).to(getattr(torch, dtype))
        for name, each in to_torch(graph, arrays).items()
    }
    expected = {
        name: each.to(torch.float32).numpy().reshape(arrays[name].shape)
        for name, each in state.items()
    }
    state["bn1.num_batches_tracked"] = torch.tensor(7)
    state["aux1.fc1.weight"] = torch.ones(3, 4)  # a head that only helps in training
    if kind == "pt":
        prefixed = {f"module.{name}": each for name, each in state.items()}
        torch.save({"epoch": 3, "state_dict": prefixed}, path)
    else:
        from safetensors.torch import save_file as save_torch

        save_torch(state, path)
    equal(read_state_dict(path, graph), expected)
    with StateFile(path, graph) as file:
        part = file.array("layer3.1.conv2.weight", [slice(3, 60, 7), *[slice(1, None)] * 3])
    np.testing.assert_array_equal(part, expected["layer3.1.conv2.weight"][3:60:7, 1:, 1:, 1:])
    with pytest.raises(FormatError, match=r"no place for parameter 'aux1\.fc1\.weight'"):
        read_state_dict(path, graph, ignore=())


def test_pytorch_loads_what_was_written(
    graph: OperationGraph, arrays: Arrays, tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    write_state_dict(tmp_path / "net.safetensors", graph, arrays)
    state = load_torch(tmp_path / "net.safetensors")
    module = torch.nn.ModuleDict({"fc": torch.nn.Linear(64, 5), "bn1": torch.nn.BatchNorm2d(16)})
    chosen = {key: each for key, each in state.items() if key.startswith(("fc.", "bn1."))}
    module.load_state_dict(chosen, strict=True)
    np.testing.assert_array_equal(module["fc"].weight.detach(), arrays["fc.weight"][:, :, 0, 0])


def change(small: Any, folder: Path, **changes: Any) -> Path:
    """A file with other tensors; None leaves one out."""
    graph, arrays, _ = small
    state = to_torch(graph, arrays) | {key.replace("__", "."): v for key, v in changes.items()}
    path = folder / "changed.safetensors"
    save_file({key: np.asarray(each) for key, each in state.items() if each is not None}, path)
    return path


def test_files_of_another_network(small: Any, tmp_path: Path) -> None:
    graph, arrays, _ = small

    def refused(error: type[Exception], **changes: Any) -> str:
        path = change(small, tmp_path, **changes)
        with pytest.raises(error) as caught:
            StateFile(path, graph)
        text = str(caught.value)
        assert text.startswith(f"{path}: ")
        assert "\n" not in text
        return text.removeprefix(f"{path}: ")

    assert refused(FormatError, fc__bias=None) == (
        "the file lacks parameter 'fc.bias' of network small"
    )
    assert refused(FormatError, conv__bias=None, fc__bias=None) == (
        "the file lacks parameter 'conv.bias' and 1 more of network small"
    )
    assert refused(FormatError, other=np.zeros(3)) == (
        "network small has no place for parameter 'other' of the file"
    )
    assert refused(ShapeError, fc__weight=np.zeros((7, 35), np.float32)) == (
        "parameter 'fc.weight' is [7, 35], network small has [7, 48]"
    )
    assert refused(ShapeError, conv__weight=np.zeros((6, 3, 3, 2), np.float32)) == (
        "parameter 'conv.weight' is [6, 3, 3, 2], network small has [6, 1, 3, 2]"
    )
    assert refused(FormatError, conv__bias=np.zeros(6, np.int64)) == (
        "parameter 'conv.bias' is I64 [6], expected dense F16, BF16, F32, F64"
    )
    # What is as the network has it, rather than a matrix, has the same numbers.
    same = change(small, tmp_path, fc__weight=arrays["fc.weight"])
    equal(read_state_dict(same, graph), arrays)


def test_numbers_too_large_damaged_and_missing_files(small: Any, tmp_path: Path) -> None:
    graph, _, paths = small
    path = change(small, tmp_path, conv__bias=np.array([0, np.inf, 1e39, 0, 0, 0]))
    with pytest.raises(FormatError, match=r"'conv\.bias': a number is too large for float32"):
        read_state_dict(path, graph)
    assert read_state_dict(path, graph, np.float64)["conv.bias"].tolist()[:3] == [0, np.inf, 1e39]
    path = change(small, tmp_path, conv__bias=np.array([0, np.inf, 1e38, 0, 0, 0]))
    assert np.isinf(read_state_dict(path, graph)["conv.bias"][1])
    for each in paths:
        cut = tmp_path / f"cut{each.suffix}"
        cut.write_bytes(each.read_bytes()[:-100])
        with pytest.raises(FormatError, match="cut"):
            read_state_dict(cut, graph)
        with pytest.raises(FormatError, match="no such file"):
            read_state_dict(tmp_path / f"none{each.suffix}", graph)
    with StateFile(paths[0], graph) as file, pytest.raises(ShapeError, match="axis 0 ends at 7"):
        file.array("fc.bias", [slice(0, 8)])


def test_arrays_that_are_not_the_networks_are_not_written(small: Any, tmp_path: Path) -> None:
    graph, arrays, _ = small
    path = tmp_path / "net.safetensors"
    wrong: list[tuple[Arrays, str]] = [
        ({"fc.bias": None}, "no array for parameter 'fc.bias'"),
        ({"fc.bias": np.zeros(8, np.float32)}, r"float32 \[8\], expected .* \[7\]"),
        ({"fc.bias": np.zeros(7, np.int32)}, r"int32 \[7\], expected float32 or float64"),
        ({"more": np.zeros(7, np.float32)}, "there is no parameter 'more'"),
    ]
    for changes, text in wrong:
        with pytest.raises(ShapeError, match=f"^network small: .*{text}"):
            write_state_dict(path, graph, arrays | changes)
    with pytest.raises(FormatError, match=r"ends in \.safetensors"):
        write_state_dict(tmp_path / "net.pt", graph, arrays)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "3", '{"format": "sparsednn operation graph"}'])
def test_a_damaged_network_in_a_file_is_told(small: Any, tmp_path: Path, text: str) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a": np.zeros(3)}, path, {"sparsednn_network": text})
    with pytest.raises(FormatError, match=r"net\.safetensors: "):
        stored_network(path)
