"""Checks of `load_shard` and `load_whole` against the network in memory; the world is one group."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed.samples import assert_same_network, assert_same_shard, network, partition

from sparsednn import SparseNetwork
from sparsednn.distributed.loading import load_shard, load_whole
from sparsednn.distributed.shard import shard_network
from sparsednn.errors import (
    FormatError,
    InputError,
    ShapeError,
    SparseDNNError,
    UnknownNameError,
    UsageError,
)
from sparsednn.formats import ReadOptions, write_network
from sparsednn.formats._container import read_header, write_container
from sparsednn.sources import load_network

FOLDER = "sparsednn-check-loading"


def folder(world: Any, make: Callable[[Path], None]) -> Path:
    """A folder that rank 0 makes and fills, and that all ranks see."""
    path = tempfile.mkdtemp(prefix=FOLDER) if world.rank == 0 else None
    if path is not None:
        make(Path(path))
    return Path(world.broadcast_json(path))


def remove(world: Any, path: Path) -> None:
    world.barrier()
    if world.rank == 0:
        shutil.rmtree(path)


def agree(world: Any, model: Path | str, divided: Any = None, **given: Any) -> None:
    """What ranks load is what one process would load and cut."""
    whole = load_network(str(model), **given)
    divided = divided or partition(whole, world.size)
    found = load_shard(str(model), divided, world.rank, world, **given)
    assert_same_shard(found, shard_network(whole, divided, world.rank))


def failing(world: Any, kind: type[SparseDNNError], text: str, *arguments: Any, **given: Any):
    """All ranks raise the same error; afterwards they still understand each other."""
    with pytest.raises(SparseDNNError) as caught:
        load_shard(*arguments, **given)
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(set(world.allgather_text(str(caught.value)))) == 1


def check_native_files_of_all_kinds_of_partitions(world):
    nets = [
        network(0),
        network(1, (5, 2, 40, 1, 7), bias="negative"),
        network(2, (3, 1, 1, 2), activation="identity", bias="zero"),
        network(3, (9, 9), activation="sigmoid"),
    ]

    def make(path: Path) -> None:
        for i, net in enumerate(nets):
            write_network(net, path / f"{i}.safetensors")

    path = folder(world, make)
    for i, net in enumerate(nets):
        for kind in ("random", "cyclic", "block", "gaps"):
            agree(world, path / f"{i}.safetensors", partition(net, world.size, kind, seed=i))
    remove(world, path)


def check_first_layers_of_a_native_file(world):
    """The stored hash is that of all layers; a partition of the first ones has another."""
    net = network()
    path = folder(world, lambda to: write_network(net, to / "n.safetensors"))
    model = str(path / "n.safetensors")
    for layers in (1, 3, 4):
        agree(world, model, layers=layers)
    group, all_of_it = (world.rank, world), partition(net, world.size)
    failing(world, InputError, "made for network", model, all_of_it, *group, layers=2, file="p")
    first = partition(SparseNetwork(net[:2], name=net.name), world.size)
    failing(world, InputError, "made for network", model, first, *group, file="p")
    failing(world, FormatError, "has 4 layers, 5", model, all_of_it, *group, layers=5)
    failing(world, UsageError, "at least 1", model, all_of_it, *group, layers=0)
    remove(world, path)


def check_a_native_file_without_a_hash(world):
    net = network()

    def make(path: Path) -> None:
        write_network(net, path / "with.safetensors")
        header = read_header(path / "with.safetensors")
        tensors = {
            f"layers.{i}.{name}": getattr(layer, name)
            for i, layer in enumerate(net)
            for name in ("indptr", "indices", "values", "bias")
        }
        del header.metadata["hash"]
        write_container(path / "without.safetensors", tensors, header.metadata)

    path = folder(world, make)
    agree(world, path / "without.safetensors")
    model = str(path / "without.safetensors")
    other = partition(network(1), world.size)
    failing(world, InputError, "made for network", model, other, world.rank, world)
    remove(world, path)


def check_official_networks(world):
    agree(world, "graph-challenge:1024-15")
    agree(world, "graph-challenge:1024-15", layers=8)
    whole = load_network("graph-challenge:1024", layers=9)
    for kind in ("block", "gaps"):
        agree(world, "graph-challenge:1024", partition(whole, world.size, kind), layers=9)
    found = load_shard(
        "graph-challenge:1024-15",
        partition(load_network("graph-challenge:1024-15"), world.size, "cyclic"),
        world.rank,
        world,
    )
    first, *others = found.layers
    for layer in others:
        for name in ("rows", "indptr", "values", "bias"):
            assert getattr(layer, name) is getattr(first, name)


def _write_torch(path: Path) -> None:
    import torch

    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape).astype(np.float32) for shape in ((6, 5), (4, 6))]
    state = {f"{i}.weight": torch.from_numpy(weight) for i, weight in enumerate(weights)}
    torch.save(state, path / "t.pt")


def _write_onnx(path: Path) -> None:
    from onnx import TensorProto, checker, helper, numpy_helper, save

    weight = np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Relu", ["z"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    save(model, path / "m.onnx")


def _write_others(path: Path, *, all_of_them: bool) -> None:
    """One network in every format that rank 0 has to read."""
    square = network(5, (6, 6, 6), activation="clamped_relu:32", bias="zero")
    for format in ("graph-challenge", "npz", "matrix-market"):
        write_network(square, path / format, format=format)
    weight = np.random.default_rng(3).standard_normal((7, 4)).astype(np.float32)
    weight[2] = 0
    tensors = {"a.weight": weight, "b.weight": weight.T.copy(), "a.bias": weight[:, 0].copy()}
    write_container(path / "dense.safetensors", tensors, {})
    shards = dict.fromkeys(tensors, "dense.safetensors")
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    if all_of_them and importlib.util.find_spec("torch"):
        _write_torch(path)
    if all_of_them and importlib.util.find_spec("onnx"):
        _write_onnx(path)


def check_every_other_format(world):
    # Loading these libraries takes seconds on each rank.
    path = folder(world, partial(_write_others, all_of_them=world.size == 3))
    for model, given in (
        ("graph-challenge", {"bias": -0.5}),
        ("graph-challenge", {"bias": -0.25, "layers": 1}),
        ("npz", {}),
        ("npz/layer-1.npz", {"bias": 0.25}),
        ("matrix-market", {}),
        ("matrix-market/layer-2.mtx", {}),
        ("dense.safetensors", {"options": ReadOptions(output_activation="softmax")}),
        ("dense.safetensors", {"layers": 1}),
        ("model.safetensors.index.json", {}),
        ("t.pt", {}),
        ("m.onnx", {}),
    ):
        if (path / model).exists():
            agree(world, path / model, **given)
            whole = load_whole(str(path / model), world, **given)
            assert_same_network(whole, load_network(str(path / model), **given))
    remove(world, path)


def check_whole_networks_that_every_rank_has_itself(world):
    net = network()
    path = folder(world, lambda to: write_network(net, to / "n.safetensors"))
    model = str(path / "n.safetensors")
    assert_same_network(load_whole(model, world), net)
    assert_same_network(load_whole(model, world, layers=2), load_network(model, layers=2))
    official = load_network("graph-challenge:1024-3")
    assert_same_network(load_whole("graph-challenge:1024-3", world), official)
    for kind, name in ((FormatError, str(path / "x.npz")), (UnknownNameError, "tiger:1")):
        with pytest.raises(kind, match="no such file"):
            load_whole(name, world)
    remove(world, path)


def check_wrong_sources_and_partitions(world):
    net = network()
    path = folder(world, lambda to: write_network(net, to / "n.safetensors"))
    right, model = partition(net, world.size), str(path / "n.safetensors")
    fail = partial(failing, world)
    group = (world.rank, world)
    fail(FormatError, "no such file", str(path / "x.safetensors"), right, *group)
    fail(FormatError, "unknown suffix '.txt'", _touched(world, path / "x.txt"), right, *group)
    empty = str(Path(_touched(world, path / "d/x")).parent)
    fail(FormatError, "no network in this folder", empty, right, *group)
    fail(UnknownNameError, "no network of this name", "tiger:1024", right, *group)
    fail(UnknownNameError, "not a number of layers", "graph-challenge:1024-x", right, *group)
    fail(InputError, "found 1000", "graph-challenge:1000-1", right, *group)
    fail(InputError, "--layers asks for 9", "graph-challenge:1024-2", right, *group, layers=9)
    fail(UsageError, "at least 1", "graph-challenge:1024", right, *group, layers=0)
    fail(UsageError, "--bias does not apply", "graph-challenge:1024", right, *group, bias=-1.0)
    fail(UsageError, "has its biases inside", model, right, *group, bias=-1.0)
    options = ReadOptions(transposed=True)
    fail(UsageError, "--transposed does not apply", model, right, *group, options=options)
    text = "p.npz: made for network 'sample-1'"
    for source in (model, "graph-challenge:1024-2"):
        fail(InputError, text, source, partition(network(1), world.size), *group, file="p.npz")
    wrong = partition(net, world.size + 1)
    fail(InputError, f"p.npz: is for {world.size + 1} ranks", model, wrong, *group, file="p.npz")
    # The same hash with other sizes: changed by hand.
    short = partition(net, world.size)
    short.owners = (*short.owners[:-1], short.owners[-1][:-1])
    fail(ShapeError, "layer_4 has 2 neurons, the network's has 3", model, short, *group)
    remove(world, path)


def _touched(world: Any, path: Path) -> str:
    if world.rank == 0:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    world.barrier()
    return str(path)


def check_a_bad_column_that_one_rank_reads(world):
    """Each rank in turn finds it alone; a truncated file is found by rank 0 before any other."""
    net = network(0, (20, 40))
    divided = partition(net, world.size, "cyclic")

    def make(path: Path) -> None:
        write_network(net, path / "n.safetensors")

    path = folder(world, make)
    model = path / "n.safetensors"
    header = read_header(model)
    good = model.read_bytes()
    world.barrier()
    for reader in range(world.size):
        row = next(
            r for r in range(40) if r % world.size == reader and np.diff(net[0].indptr)[r] > 1
        )
        if world.rank == 0:
            at = header.tensors["layers.0.indices"].begin + 4 * int(net[0].indptr[row])
            model.write_bytes(good[:at] + np.array(1000, "<i4").tobytes() + good[at + 4 :])
        world.barrier()
        prefix = "" if world.size == 1 else f"rank {reader}: "
        text = f"{prefix}{model}: layer 1: row {row}: column 1000 is out of range for 20"
        with pytest.raises(SparseDNNError) as caught:
            load_shard(str(model), divided, world.rank, world)
        assert str(caught.value) == text
        world.barrier()
    if world.rank == 0:
        model.write_bytes(good[:-20])
    world.barrier()
    failing(world, FormatError, "truncated", str(model), divided, world.rank, world)
    remove(world, path)


def check_a_file_that_one_rank_does_not_see(world):
    """Nothing is shared but the name: a file in each rank's own folder."""
    net = network()
    own = Path(tempfile.mkdtemp(prefix=FOLDER))
    before = Path.cwd()
    divided = partition(net, world.size)
    for blind in range(1, world.size):
        os.chdir(own)
        Path("n.safetensors").unlink(missing_ok=True)
        if world.rank != blind:
            write_network(net, "n.safetensors")
        text = f"rank {blind}: n.safetensors: no such file"
        failing(world, FormatError, text, "n.safetensors", divided, world.rank, world)
        if world.rank == blind:
            write_network(network(1), "n.safetensors")
        text = f"rank {blind}: n.safetensors: is not the file that rank 0 sees"
        failing(world, FormatError, text, "n.safetensors", divided, world.rank, world)
    os.chdir(before)
    shutil.rmtree(own)
