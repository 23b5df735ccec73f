"""Checks of `distribute_inputs` on every grid of the ranks, against the whole set on one rank."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsednn import InputSet
from sparsednn.comm.communicator import Communicator
from sparsednn.comm.grid import ProcessGrid
from sparsednn.distributed import input_files
from sparsednn.distributed.inputs import LocalInputs, distribute_inputs, image_ranges
from sparsednn.errors import (
    FormatError,
    InputError,
    ShapeError,
    SparseDNNError,
    UnknownNameError,
    UsageError,
)
from sparsednn.formats import write_inputs
from sparsednn.sources import load_inputs


def sample(n_features: int, n_images: int, *, values: bool, seed: int = 0) -> InputSet:
    rng = np.random.default_rng(seed)
    dense = (rng.random((n_features, n_images)) < 0.3).astype(np.float32)
    dense[:, n_images // 2] = 0
    dense[-1, -1] = 1  # triplets know no more than the largest feature and image
    if values:
        dense *= rng.standard_normal(dense.shape).astype(np.float32)
    return InputSet.from_dense(dense)


def folder(world: Any) -> Path:
    path = None
    if world.rank == 0:
        path = Path(tempfile.mkdtemp(prefix="sparsednn-check-inputs"))
        for values in (False, True):
            inputs = sample(11, 37, values=values)
            for suffix in ("tsv", "npz", "npy", "safetensors"):
                write_inputs(inputs, path / f"{'values' if values else 'ones'}.{suffix}")
        np.save(path / "rows.npy", np.ascontiguousarray(sample(11, 37, values=True).to_dense()))
    return Path(world.broadcast_json(path and str(path)))


def remove(world: Any, path: Path) -> None:
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(path)


def grids(world: Any) -> list[tuple[int, int]]:
    return [(d, world.size // d) for d in range(1, world.size + 1) if world.size % d == 0]


def expected(whole: InputSet, owners: Any, part: int, ranges: Any) -> np.ndarray[Any, Any]:
    mine = np.arange(whole.n_features) if owners is None else np.flatnonzero(owners == part)
    images = np.concatenate([np.empty(0, int), *(np.arange(a, b) for a, b in ranges)])
    return whole.to_dense()[np.ix_(mine, images)]


def agree(found: LocalInputs, whole: InputSet, owners: Any, grid: Any, step: Any) -> None:
    group, part = grid.coordinates
    assert found.n_images == whole.n_images
    assert found.ranges == image_ranges(whole.n_images, grid.shape[0], group, step)
    mine = found.inputs
    right = expected(whole, owners, part, found.ranges)
    assert (mine.n_features, mine.n_images) == right.shape
    np.testing.assert_array_equal(mine.to_dense(), right)
    assert mine.nnz == np.count_nonzero(right)
    assert mine.name == whole.name
    assert mine.indices.dtype == np.uint16
    assert mine.indptr.dtype == np.int64
    assert mine.indices.base is None  # nothing of a larger array is held
    if mine.n_features:
        InputSet(mine.indptr, mine.indices, mine.values, mine.n_features)  # all its checks


def check_all_formats_on_all_grids(world):
    path = folder(world)
    rng = np.random.default_rng(1)
    for shape in grids(world):
        grid = ProcessGrid(world, shape)
        vectors = [
            rng.integers(0, shape[1], 11),
            np.full(11, shape[1] - 1),  # other parts own nothing
        ]
        owned = [vector.astype(np.int32) for vector in vectors]
        for name in ("ones", "values"):
            for suffix in ("tsv", "npz", "npy", "safetensors"):
                source = str(path / f"{name}.{suffix}")
                whole = load_inputs(source, n_features=11)
                for owners in owned if shape[1] > 1 else [None, owned[0]]:
                    for images, step in ((None, None), (None, 5), (23, 7), (1, None)):
                        part = grid.coordinates[1]
                        found = distribute_inputs(
                            source, world, grid, owners, part,
                            n_features=11, images=images, step=step,
                        )  # fmt: skip
                        cut = whole if images is None else whole.columns(0, images)
                        agree(found, cut, owners, grid, step)
                        if name == "ones":
                            assert found.inputs.values is None
        source = str(path / "rows.npy")
        part = grid.coordinates[1]
        found = distribute_inputs(source, world, grid, owned[0], part, n_features=11, step=4)
        agree(found, load_inputs(source), owned[0], grid, 4)
        grid.free()
    remove(world, path)


def check_many_small_blocks_and_messages(world):
    """The same in blocks of a few images, and in messages of no more than 7 elements."""
    path = folder(world)
    small = Communicator(world.raw, limit=7)
    usual, input_files._BLOCK_BYTES = input_files._BLOCK_BYTES, 64
    try:
        for shape in grids(world):
            grid = ProcessGrid(small, shape)
            owners = (np.arange(11) % shape[1]).astype(np.int32)
            for name in ("ones.npz", "values.tsv", "values.npy", "values.safetensors"):
                source = str(path / name)
                found = distribute_inputs(
                    source, small, grid, owners, grid.coordinates[1], n_features=11, step=9
                )
                agree(found, load_inputs(source), owners, grid, 9)
            grid.free()
    finally:
        input_files._BLOCK_BYTES = usual
    remove(world, path)


def check_inputs_by_name(world):
    whole = load_inputs("digits:1024", images=50)
    for shape in grids(world):
        grid = ProcessGrid(world, shape)
        owners = (np.arange(1024) % shape[1]).astype(np.int32)
        found = distribute_inputs(
            "digits:1024", world, grid, owners, grid.coordinates[1], n_features=1024, images=50
        )
        agree(found, whole, owners, grid, None)
        grid.free()


def check_more_groups_than_images(world):
    path = folder(world)
    grid = ProcessGrid(world, (world.size, 1))
    for name in ("ones.npz", "ones.npy", "ones.safetensors"):
        source = str(path / name)
        found = distribute_inputs(source, world, grid, None, 0, n_features=11, images=1)
        agree(found, load_inputs(source).columns(0, 1), None, grid, None)
    grid.free()
    remove(world, path)


def failing(world: Any, kind: type[SparseDNNError], text: str, source: Any, **given: Any) -> None:
    grid = ProcessGrid(world, (1, world.size))
    owners = (np.arange(11) % world.size).astype(np.int32)
    with pytest.raises(SparseDNNError) as caught:
        distribute_inputs(
            str(source), world, grid, owners, grid.coordinates[1], **{"n_features": 11} | given
        )
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert len(set(world.allgather_text(str(caught.value)))) == 1
    grid.free()


def check_errors_reach_all_ranks(world):
    path = folder(world)
    for suffix in ("npz", "npy", "safetensors", "tsv"):
        failing(world, FormatError, "no such file", path / f"x.{suffix}")
        source = path / f"ones.{suffix}"
        failing(world, InputError, "has 37 images, --images asks for 38", source, images=38)
        failing(world, UsageError, "at least 1, found 0", source, images=0)
        failing(world, UsageError, "at least 1, found 0", source, step=0)
        if suffix != "tsv":  # says which line it is, as a FormatError
            failing(world, ShapeError, "has 11 features", source, n_features=12)
    failing(world, UnknownNameError, "no inputs of this name", "tiger:1024")
    failing(world, ShapeError, "has 1024 features, the network takes 11", "digits:1024")
    empty = path / "empty.npy"
    if world.rank == 0:
        np.save(empty, np.empty((11, 0)))
    world.barrier()
    failing(world, FormatError, "there are no images in it", empty)
    remove(world, path)


def check_a_wrong_image_that_one_group_reads(world):
    path = folder(world)
    bad = path / "bad.npy"
    if world.rank == 0:
        dense = np.ones((11, 4 * world.size))
        dense[3, -1] = np.nan  # of the last group
        np.save(bad, dense)
    world.barrier()
    grid = ProcessGrid(world, (world.size, 1))
    with pytest.raises(InputError) as caught:
        distribute_inputs(str(bad), world, grid, None, 0, n_features=11)
    prefix = f"rank {world.size - 1}: " if world.size > 1 else ""
    image = 4 * world.size - 1
    assert str(caught.value) == (
        f"{prefix}{bad}: image {image}, feature 3 is nan: it must be finite"
    )
    grid.free()
    remove(world, path)
