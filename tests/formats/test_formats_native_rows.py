"""`RowReader`: the same rows as in memory, whatever is read in one go; and damaged files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from formats.formats_samples import networks
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from networks import random_layer
from sparsednn import SparseLayer, SparseNetwork
from sparsednn.errors import FormatError, InputError, ShapeError, SparseDNNError, UsageError
from sparsednn.formats import _positioned, native
from sparsednn.formats._container import read_header


def all_rows(n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    return np.arange(n, dtype=np.int32)


@settings(max_examples=150, deadline=None)
@given(networks(), st.data())
def test_rows_are_those_of_the_network(
    tmp_path_factory: pytest.TempPathFactory, network: SparseNetwork, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.safetensors"
    native.write(network, path)
    gap, block = data.draw(st.sampled_from([(0, 8), (8, 16), (64, 24), (1 << 16, 1 << 22)]))
    with pytest.MonkeyPatch.context() as patch, native.RowReader(path) as reader:
        patch.setattr(_positioned, "_GAP", gap)
        patch.setattr(_positioned, "_BLOCK", block)
        for i, layer in enumerate(network):
            mask = data.draw(st.lists(st.booleans(), min_size=layer.n_out, max_size=layer.n_out))
            chosen = np.flatnonzero(mask).astype(np.int32)
            found = reader.rows(i, chosen)
            expected = layer.weight.toarray()
            expected[~np.array(mask)] = 0
            assert found.shape == layer.shape
            assert found.nnz == int(np.diff(layer.indptr)[chosen].sum())
            np.testing.assert_array_equal(found.weight.toarray(), expected)
            np.testing.assert_array_equal(found.bias, np.where(mask, layer.bias, 0))
            assert found.activation == layer.activation
            whole = reader.layer(i)
            for name in ("indptr", "indices", "values", "bias"):
                np.testing.assert_array_equal(getattr(whole, name), getattr(layer, name))


def test_wide_layers_in_the_usual_blocks(tmp_path: Path) -> None:
    layer = random_layer(np.random.default_rng(5), 3000, 900, density=0.5)
    native.write(SparseNetwork([layer]), tmp_path / "n.safetensors")
    with native.RowReader(tmp_path / "n.safetensors") as reader:
        for rows in (all_rows(3000)[::7], all_rows(3000)[100:2900], all_rows(0)):
            found = reader.rows(0, rows)
            lengths = np.diff(found.indptr)
            assert not np.delete(lengths, rows).any()
            expected = layer.weight[rows]
            np.testing.assert_array_equal(found.indices, expected.indices)
            np.testing.assert_array_equal(found.values, expected.data)


def test_what_is_known_of_the_network(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    network = SparseNetwork([random_layer(rng, 5, 5) for _ in range(3)], name="three")
    path = tmp_path / "n.safetensors"
    native.write(network, path)
    for layers, stored in ((None, network.hash), (3, network.hash), (2, None)):
        with native.RowReader(path, layers=layers) as reader:
            assert (reader.name, reader.hash) == ("three", stored)
            assert len(reader.layers) == layers or len(network)
    with pytest.raises(FormatError, match="has 3 layers, 4 were asked for"):
        native.RowReader(path, layers=4)
    with pytest.raises(UsageError, match="at least 1"):
        native.RowReader(path, layers=0)
    with pytest.raises(FormatError, match="no such file"):
        native.RowReader(tmp_path / "other.safetensors")


def changed(path: Path, name: str, at: int, value: Any, dtype: str) -> None:
    """Overwrite one item of a tensor in the file."""
    tensor = read_header(path).tensors[name]
    with open(path, "r+b") as file:
        file.seek(tensor.begin + at * np.dtype(dtype).itemsize)
        file.write(np.array(value, dtype).tobytes())


@pytest.mark.parametrize(
    ("name", "at", "value", "dtype", "kind", "message"),
    [
        ("indices", 4, 9, "<i4", ShapeError, "row 2: column 9 is out of range for 4"),
        ("indices", 5, 0, "<i4", InputError, "row 2: column 0 is there twice"),
        ("values", 4, np.nan, "<f4", InputError, "weight (2, 0) is nan: it must be finite"),
        ("bias", 2, np.inf, "<f4", InputError, "bias of row 2 is inf: it must be finite"),
        ("indptr", 3, 3, "<i8", ShapeError, "row 2 would be entries 4 to 3, but indptr must"),
        ("indptr", 0, 1, "<i8", ShapeError, "row 0 would be entries 1 to 2, but indptr must"),
        ("indptr", 4, 7, "<i8", ShapeError, "row 3 would be entries 6 to 7, but indptr must"),
        ("indptr", 2, 2**60, "<i8", ShapeError, f"to {2**60}, but indptr must ascend from 0 to 8"),
        ("indptr", 2, -5, "<i8", ShapeError, "row 1 would be entries 2 to -5"),
    ],
)
def test_only_who_reads_a_wrong_row_fails(
    tmp_path: Path, name: str, at: int, value: Any, dtype: str, kind: Any, message: str
) -> None:
    path = tmp_path / "n.safetensors"
    weights = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32)
    native.write(SparseNetwork([SparseLayer.from_scipy(csr_array(weights))]), path)
    changed(path, f"layers.0.{name}", at, value, dtype)
    failed = []
    with native.RowReader(path) as reader:
        for row in range(4):
            try:
                reader.rows(0, np.array([row], np.int32))
            except SparseDNNError as error:
                failed.append((type(error), str(error)))
        with pytest.raises(SparseDNNError, match="layer 1: "):
            reader.layer(0)
    assert any(found is kind and message in text for found, text in failed)
    assert all(text.startswith(f"{path}: layer 1: ") for _, text in failed)
    assert 1 <= len(failed) <= 2  # a row's end is the next row's begin


def test_a_file_that_becomes_shorter(tmp_path: Path) -> None:
    path = tmp_path / "n.safetensors"
    native.write(SparseNetwork([random_layer(np.random.default_rng(1), 50, 50)]), path)
    with native.RowReader(path) as reader:
        os.truncate(path, path.stat().st_size // 2)
        with pytest.raises(FormatError, match="truncated: it ended while it was read"):
            reader.layer(0)
    with pytest.raises(FormatError, match="truncated: its header tells of"):
        native.RowReader(path)
