"""Who gets which images and features: the rule, the dealing, files read in parts, and all ranks."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpi_runs import MpiRuns
from networks import input_sets
from sparsednn import InputSet
from sparsednn.distributed import input_files
from sparsednn.distributed.features import Features
from sparsednn.distributed.input_files import open_inputs, slices
from sparsednn.distributed.inputs import image_ranges
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.formats import read_inputs, write_inputs
from sparsednn.formats._container import write_container

HERE = Path(__file__).parent


@given(st.integers(0, 60), st.integers(1, 7), st.none() | st.integers(1, 70))
def test_every_image_has_one_group_and_no_group_waits_for_many(
    n_images: int, groups: int, step: int | None
) -> None:
    ranges = [image_ranges(n_images, groups, group, step) for group in range(groups)]
    dealt = [image for of in ranges for first, last in of for image in range(first, last)]
    assert sorted(dealt) == list(range(n_images))
    width = step or max(n_images, 1)
    for group, of in enumerate(ranges):
        assert len(of) == -(-n_images // width)
        for block, (first, last) in enumerate(of):
            start = block * width
            wide = min(width, n_images - start)
            assert first == start + group * wide // groups
            assert last == start + (group + 1) * wide // groups


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 1, found 0"):
        image_ranges(10, 2, 0, 0)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(1, 5))
def test_entries_go_to_the_owner_of_their_feature(
    data: st.DataObject, n_features: int, parts: int
) -> None:
    inputs = data.draw(input_sets(n_features, most=20))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    owners = rng.integers(0, parts, n_features).astype(np.int32)
    mask = rng.random(inputs.n_images) < 0.6
    images = np.flatnonzero(mask)
    features = Features(owners, parts)
    assert features.dtype == np.uint16
    counts, indices, values = features.deal(inputs, images)
    np.testing.assert_array_equal(counts, features.count(inputs, images))
    assert (values is None) == (inputs.values is None)
    dense, at = inputs.to_dense(), 0
    for part in range(parts):
        end = at + int(counts[:, part].sum())
        indptr = np.concatenate(([0], np.cumsum(counts[:, part])))
        mine = np.flatnonzero(owners == part)
        assert features.counts[part] == mine.size
        if mine.size:
            dealt = None if values is None else values[at:end]
            found = InputSet(indptr, indices[at:end], dealt, mine.size)  # checks the order
            np.testing.assert_array_equal(found.to_dense(), dense[np.ix_(mine, images)])
        else:
            assert at == end
        alone = features.keep(inputs, images, part)
        np.testing.assert_array_equal(alone[0], counts[:, part])
        np.testing.assert_array_equal(alone[1], indices[at:end])
        if values is not None:
            np.testing.assert_array_equal(alone[2], values[at:end])
        at = end
    assert at == indices.size


def test_wide_inputs_of_narrow_parts_take_two_bytes() -> None:
    owners = (np.arange(70000) % 2).astype(np.int32)
    inputs = InputSet([0, 3], [0, 3, 69999], None, 70000)
    counts, indices, _ = Features(owners, 2).deal(inputs, np.array([0]))
    assert (counts.tolist(), indices.tolist()) == ([[1, 2]], [0, 1, 34999])
    assert indices.dtype == np.uint16
    whole = Features(np.zeros(70000, np.int32), 1).deal(inputs, np.array([0]))[1]
    assert (whole.dtype, whole.tolist()) == (np.int32, [0, 3, 69999])


@settings(max_examples=60, deadline=None)
@given(
    inputs=st.integers(1, 12).flatmap(lambda n: input_sets(n, most=30)),
    suffix=st.sampled_from([".safetensors", ".npy", "-c.npy"]),
    seed=st.integers(0, 99),
    block=st.sampled_from([1, 100, 64 << 20]),
)
def test_files_read_in_parts(
    tmp_path_factory: pytest.TempPathFactory, inputs: InputSet, suffix: str, seed: int, block: int
) -> None:
    path = str(tmp_path_factory.getbasetemp() / f"inputs{suffix}")
    if suffix == "-c.npy":
        np.save(path, np.ascontiguousarray(inputs.to_dense(), np.float64))
    else:
        write_inputs(inputs, path)
    expected = read_inputs(path).to_dense() if inputs.n_images else inputs.to_dense()
    rng = np.random.default_rng(seed)
    images = np.flatnonzero(rng.random(inputs.n_images) < 0.7)
    features = np.flatnonzero(rng.random(inputs.n_features) < 0.7).astype(np.int32)
    file = open_inputs(path)
    assert (file.n_features, file.n_images) == expected.shape
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_files, "_BLOCK_BYTES", block)
        for these, found in file.blocks(images, features):
            assert found.indptr.size == inputs.n_images + 1
            at = np.ix_(features, these)
            np.testing.assert_array_equal(found.to_dense()[at], expected[at])
            others = np.setdiff1d(np.arange(inputs.n_images), these)
            assert not found.to_dense()[:, others].any()
            seen.append(these)
    file.close()
    np.testing.assert_array_equal(np.concatenate([np.empty(0, int), *seen]), images)


@given(st.lists(st.integers(0, 50 << 20), max_size=30))
def test_slices_are_all_items_and_no_slice_is_much_too_large(sizes: list[int]) -> None:
    found = list(slices(np.array(sizes, np.int64)))
    assert [i for first, last in found for i in range(first, last)] == list(range(len(sizes)))
    for first, last in found:
        assert sum(sizes[first:last]) <= (64 << 20) + max(sizes)


def _native(path: Path, **changed: Any) -> str:
    tensors = {"indptr": np.array([0, 2, 3]), "indices": np.array([1, 3, 0], np.int32)}
    tensors |= {name: value for name, value in changed.items() if name in ("indptr", "indices")}
    if "values" in changed:
        tensors["values"] = changed["values"]
    metadata = {"format": "sparsednn-inputs", "n_features": "4"} | changed.get("metadata", {})
    write_container(path / "i.safetensors", tensors, metadata)
    return str(path / "i.safetensors")


def _dense(path: Path, array: Any) -> str:
    np.save(path / "i.npy", array, allow_pickle=False)
    return str(path / "i.npy")


def _raw(path: Path, name: str, content: bytes) -> str:
    (path / name).write_bytes(content)
    return str(path / name)


NAN = np.array([[0, 1], [1, np.nan]])


def read_through(path: str) -> None:
    with closing(open_inputs(path)) as file:
        features = np.arange(file.n_features, dtype=np.int32)
        for _ in file.blocks(np.arange(file.n_images), features):
            pass


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda p: str(p / "x.npy"), FormatError, "x.npy: no such file"),
        (lambda p: str(p / "x.safetensors"), FormatError, "x.safetensors: no such file"),
        (lambda p: _raw(p, "x.npy", b"abc"), FormatError, "not a NumPy array file"),
        (lambda p: _raw(p, "x.safetensors", b"abc"), FormatError, "truncated: 3 bytes"),
        (lambda p: _dense(p, np.zeros(3)), FormatError, r"float64 array of shape \(3,\)"),
        (lambda p: _dense(p, NAN), InputError, "image 1, feature 1 is nan"),
        (lambda p: _dense(p, NAN.T * 1e300), InputError, "it must be finite"),
        (lambda p: _native(p, metadata={"format": "x"}), FormatError, "not a native input set"),
        (lambda p: _native(p, metadata={"n_features": "x"}), FormatError, "lacks n_features"),
        (lambda p: _native(p, metadata={"n_features": "0"}), ShapeError, "0 features"),
        (lambda p: _native(p, indptr=np.array([0, 2, 4])), ShapeError, "ascend from 0 to 3"),
        (lambda p: _native(p, indptr=np.array([0, 5, 3])), ShapeError, "ascend from 0 to 3"),
        (lambda p: _native(p, indptr=np.zeros(3, np.int32)), FormatError, "expected I64"),
        (lambda p: _native(p, indices=np.array([1, 3, 4], np.int32)), ShapeError, "image 1: f"),
        (lambda p: _native(p, indices=np.array([3, 1, 0], np.int32)), InputError, "stands beh"),
        (lambda p: _native(p, values=np.array([1, 2, np.inf], np.float32)), InputError, "is inf"),
    ],
)
def test_files_that_are_wrong(
    tmp_path: Path, make: Callable[[Path], str], kind: Any, message: str
) -> None:
    path = make(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        read_through(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(path)


def test_a_wrong_image_is_found_by_who_reads_it(tmp_path: Path) -> None:
    file = open_inputs(_native(tmp_path, indices=np.array([1, 3, 9], np.int32)))
    assert len(list(file.blocks(np.array([0]), np.arange(4, dtype=np.int32)))) == 1
    with pytest.raises(ShapeError, match="image 1: feature 9"):
        list(file.blocks(np.array([1]), np.arange(4, dtype=np.int32)))
    file.close()


def test_checks(mpi_and_ranks: tuple[MpiRuns, int], monkeypatch: pytest.MonkeyPatch) -> None:
    mpi, ranks = mpi_and_ranks
    monkeypatch.delenv("SPARSEDNN_DATA", raising=False)
    mpi.check(ranks, HERE / "check_inputs.py")


def test_reading_does_not_leave_files_open(tmp_path: Path) -> None:
    path = _native(tmp_path, indptr=np.array([0, 5, 3]))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with pytest.raises(ShapeError):
        open_inputs(path)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert before == after
