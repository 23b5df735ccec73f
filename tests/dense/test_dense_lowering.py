"""Chains of operations as sparse networks: the same answers, the kernels' nonzeros, partitions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from convolutions import random_shape
from sparsednn import InputSet, SparseNetwork
from sparsednn.comm import Alone
from sparsednn.dense.flow import products
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, make_placement
from sparsednn.dense.local.reference import ReferenceBackend
from sparsednn.dense.lowering import layer_operations, lower, pieces
from sparsednn.dense.model import DenseModel
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import (
    AveragePool,
    BatchNorm,
    Convolution,
    FullyConnected,
    Input,
    MaxPool,
    Operation,
    Relu,
)
from sparsednn.dense.pruning import prune_kernels
from sparsednn.dense.state_dict import write_state_dict
from sparsednn.distributed.layer import DistributedLayer
from sparsednn.distributed.plan import plans_of_all
from sparsednn.distributed.shard import shard_network
from sparsednn.errors import InputError, ShapeError, SparseDNNError, UsageError
from sparsednn.formats import read_network
from sparsednn.inference import infer
from sparsednn.partitioners import Options, evaluate, make_partition
from tiny_network import tiny_network

Arrays = dict[str, Any]

EPSILON = float(np.finfo(np.float32).eps)


def random_arrays(graph: OperationGraph, seed: int, dtype: Any = np.float32) -> Arrays:
    source = np.random.default_rng(seed)
    arrays = {}
    for name, each in graph.parameters.items():
        numbers = source.standard_normal(each.shape)
        if name.endswith("running_var"):
            numbers = np.abs(numbers) + 0.1
        arrays[name] = numbers.astype(dtype)
    return arrays


def logits_of(graph: OperationGraph, arrays: Arrays, x: Any) -> Any:
    """What the dense network says, in float64."""
    placements = {name: make_placement(Grid(), "data") for name in products(graph)}
    model = DenseModel(Alone(), graph, placements, ReferenceBackend(), dtype=np.float64)
    model.parameters.fill(lambda name, block: arrays[name][np.ix_(*block)].astype(np.float64))
    found = model.batch(len(x)).forward(x.astype(np.float64))
    model.free()
    return found


def run(network: SparseNetwork, columns: Any) -> tuple[Any, Any]:
    """Outputs in float64, and how much rounding of weights to float32 may change them."""
    x, magnitude = columns.astype(np.float64), np.abs(columns.astype(np.float64))
    for layer in network:
        weight = layer.weight.astype(np.float64)
        bias = layer.bias.astype(np.float64)[:, None]
        x = layer.activation.apply(weight @ x + bias)
        magnitude = abs(weight) @ magnitude + np.abs(bias)
    return x, 4 * len(network) * EPSILON * magnitude + 1e-30


def flattened(images: Any) -> Any:
    """Columns of images."""
    return images.reshape(len(images), -1).T


def random_pool(source: Any, name: str, shape: tuple[int, int, int]) -> Operation | None:
    taps = (int(source.integers(1, 4)), int(source.integers(1, 4)))
    pool = AveragePool(
        name,
        taps,
        (int(source.integers(1, 4)), int(source.integers(1, 3))),
        (int(source.integers(0, taps[0] // 2 + 1)), int(source.integers(0, taps[1] // 2 + 1))),
        count_include_pad=bool(source.integers(2)),
    )
    try:
        pool.output_shape(shape)
    except ShapeError:
        return None
    return pool


def random_chain(seed: int) -> OperationGraph:
    """Convolutions of every kind, and what may follow them in any order; ends in logits."""
    source = np.random.default_rng(seed)
    shape = random_shape(source)
    graph = OperationGraph(f"chain-{seed}")
    x = graph.add(Input("image", shape.input_shape[1:]))
    if source.random() < 0.2:
        x = graph.add(BatchNorm("bn0") if source.random() < 0.5 else Relu("relu0"), x)
    for number in range(int(source.integers(1, 4))):
        channels = graph.shape(x)[0]
        if number:
            groups = int(source.choice([g for g in (1, 2, 3, channels) if channels % g == 0]))
            made: Operation = Convolution(
                f"conv{number}", groups * int(source.integers(1, 4)),
                (int(source.integers(1, 4)), int(source.integers(1, 4))),
                (int(source.integers(1, 3)), 1), (2, int(source.integers(1, 3))),
                (1, int(source.integers(1, 3))), groups, bool(source.integers(2)),
            )  # fmt: skip
        else:
            made = Convolution(
                "conv0", shape.filters, shape.taps, shape.stride, shape.padding, shape.dilation,
                shape.groups, bool(source.integers(2)),
            )  # fmt: skip
        try:
            made.output_shape(graph.shape(x))
        except ShapeError:
            continue
        x = graph.add(made, x)
        for follower in source.permutation(["bn", "relu", "pool", "bn2", ""])[:3]:
            name = f"{follower}-{number}"
            operation: Operation | None = None
            if follower.startswith("bn"):
                operation = BatchNorm(name, epsilon=float(source.choice([1e-5, 0.3])))
            elif follower == "relu":
                operation = Relu(name)
            elif follower == "pool":
                operation = random_pool(source, name, graph.shape(x))
            if operation is not None:
                x = graph.add(operation, x)
    graph.add(FullyConnected("fc", int(source.integers(1, 6)), bias=bool(source.integers(2))), x)
    return graph.finish()


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 3), st.sampled_from([np.float32, np.float64]))
def test_a_chain_is_the_dense_network(seed: int, images: int, dtype: Any) -> None:
    graph = random_chain(seed)
    arrays = random_arrays(graph, seed, dtype)
    x = np.random.default_rng(seed + 1).standard_normal((images, *graph.image)).astype(np.float32)
    network = lower(graph, arrays)
    assert network.name == graph.name
    assert (network.n_in, network.n_out) == (int(np.prod(graph.image)), graph.classes)
    groups = layer_operations(graph)
    assert [name for names in groups for name in names] == [each.name for each in graph][1:]
    assert len(groups) == len(network)
    for names, layer in zip(groups, network, strict=True):
        assert layer.n_out == np.prod(graph.shape(names[-1]))
        assert layer.values.all()
    found, tolerance = run(network, flattened(x))
    wanted = logits_of(graph, arrays, x).T
    assert np.all(np.abs(found - wanted) <= tolerance), np.abs(found - wanted).max()


def test_the_random_chains_have_everything() -> None:
    """The test above means something: all kinds and attributes occur."""
    seen = set()
    for seed in range(150):
        graph = random_chain(seed)
        for operation in graph:
            if isinstance(operation, Convolution):
                seen |= {
                    name
                    for name, usual in (("groups", 1), ("stride", (1, 1)), ("padding", (0, 0)),
                                        ("dilation", (1, 1)), ("bias", True))
                    if getattr(operation, name) != usual
                }  # fmt: skip
            if isinstance(operation, AveragePool) and operation.padding != (0, 0):
                seen.add(f"count {operation.count_include_pad}")
            if isinstance(operation, BatchNorm):
                before = graph.operation(graph.predecessors(operation.name)[0])
                seen.add(f"batch norm behind {before.kind}")
    assert seen >= {
        "groups", "stride", "padding", "dilation", "bias", "count True", "count False",
        "batch norm behind input", "batch norm behind relu", "batch norm behind convolution",
        "batch norm behind average_pool", "batch norm behind batch_norm",
    }  # fmt: skip


def test_the_engine_runs_what_was_lowered() -> None:
    graph = random_chain(3)
    arrays = random_arrays(graph, 3)
    x = np.random.default_rng(0).standard_normal((9, *graph.image)).astype(np.float32)
    network = lower(graph, arrays)
    given: list[Any] = []
    infer(network, InputSet.from_dense(flattened(x)), kernel="reference",
          sink=lambda first, outputs: given.append(outputs.copy()))  # fmt: skip
    _, tolerance = run(network, flattened(x))
    wanted = logits_of(graph, arrays, x).T
    # Here sums are in float32, too.
    assert np.all(np.abs(np.concatenate(given, 1) - wanted) <= 30 * tolerance)


@pytest.mark.parametrize("name", ["smallcnn", "lenet5"])
def test_pieces_with_pools_in_between_are_the_network(name: str) -> None:
    image = (2, 14, 12)
    graph = make_network(name, image, 5)
    arrays = random_arrays(graph, 1)
    x = np.random.default_rng(2).standard_normal((3, *image))
    columns = flattened(x)
    local = ReferenceBackend()
    done = graph.input
    for piece in pieces(graph):
        before = graph.predecessors(piece[0])[0]
        if before != done:  # a pool between the pieces
            pool = graph.operation(before)
            assert isinstance(pool, MaxPool)
            assert graph.predecessors(before) == (done,)
            pooled, _ = local.max_pool(
                np.ascontiguousarray(columns.T).reshape(3, *graph.shape(done)),
                taps=pool.taps, stride=pool.stride, pads=pool.pads(graph.shape(done)),
            )  # fmt: skip
            columns = flattened(pooled)
        network = lower(graph, arrays, piece[0], piece[-1])
        assert network.name == f"{name}:{piece[0]}..{piece[-1]}"
        columns, _ = run(network, columns)
        done = piece[-1]
    wanted = logits_of(graph, arrays, x).T
    np.testing.assert_allclose(columns, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_pieces() -> None:
    assert pieces(make_network("smallcnn")) == (
        ("conv1", "relu1", "conv2", "relu2"), ("fc1", "relu3", "fc2"),
    )  # fmt: skip
    assert pieces(tiny_network()) == (
        ("conv1", "bn1", "relu1"), ("a", "a_relu"), ("b", "b_bn"),
        ("conv2", "relu2", "average", "fc1", "fc_relu", "fc2"),
    )  # fmt: skip
    for name in ("resnet20", "googlenet"):
        graph = make_network(name, (3, 32, 32))
        arrays = dict.fromkeys(graph.parameters)
        found = pieces(graph)
        names = [each for piece in found for each in piece]
        assert len(names) == len(set(names))
        assert set(products(graph)) <= set(names)
        assert arrays
        for piece in found:
            assert sum(layer_operations(graph, piece[0], piece[-1]), ()) == piece


def test_a_chain_may_pass_branches_and_begin_anywhere() -> None:
    graph = tiny_network()
    arrays = random_arrays(graph, 1)
    assert layer_operations(graph, "conv1", "b_bn") == (("conv1", "bn1", "relu1"), ("b", "b_bn"))
    columns = np.random.default_rng(1).standard_normal((graph.shape("sum")[0] * 99, 2))
    # A ReLU or a batch norm alone is a diagonal.
    relu = lower(graph, arrays, "sum_relu", "sum_relu")
    assert relu.edges == relu.n_in
    np.testing.assert_array_equal(run(relu, columns)[0], np.maximum(columns, 0))
    norm = lower(graph, arrays, "b_bn", "b_bn")
    gamma, beta, mean, var = (
        np.repeat(arrays[f"b_bn.{name}"].astype(np.float64), 99)[:, None]
        for name in ("weight", "bias", "running_mean", "running_var")
    )
    wanted = (columns - mean) / np.sqrt(var + 1e-5) * gamma + beta
    np.testing.assert_allclose(run(norm, columns)[0], wanted, rtol=1e-5, atol=1e-5)


def written_out(kernel: Any, operation: Convolution, height: int, width: int) -> int:
    """Nonzeros of a convolution's matrix, counted tap by tap."""
    count = 0
    for place in np.argwhere(kernel):
        inside = 1
        for axis, size in enumerate((height, width)):
            taps, stride, pad, gap = (
                getattr(operation, name)[axis] for name in ("taps", "stride", "padding", "dilation")
            )
            outputs = (size + 2 * pad - gap * (taps - 1) - 1) // stride + 1
            at = np.arange(outputs) * stride - pad + place[2 + axis] * gap
            inside *= int(np.count_nonzero((at >= 0) & (at < size)))
        count += inside
    return count


@pytest.mark.parametrize("scope", ["global", "layer"])
@pytest.mark.parametrize("sparsity", [0.0, 0.37, 0.9])
def test_pruned_kernels_give_their_nonzeros(scope: str, sparsity: float) -> None:
    graph = tiny_network()
    arrays = random_arrays(graph, 4)
    before = {name: array.copy() for name, array in arrays.items()}
    pruned = prune_kernels(arrays, sparsity, graph, scope=scope)
    kernels = [f"{name}.weight" for name in products(graph)]
    assert list(pruned) == list(arrays)
    for name, array in pruned.items():
        np.testing.assert_array_equal(arrays[name], before[name])
        assert array.dtype == np.float32
        if name not in kernels:
            assert array is arrays[name]
        else:
            np.testing.assert_array_equal(array[array != 0], arrays[name][array != 0])
    groups = [[name] for name in kernels] if scope == "layer" else [kernels]
    for group in groups:
        flat = np.concatenate([pruned[name].ravel() for name in group])
        gone = np.concatenate([arrays[name].ravel() for name in group])[flat == 0]
        assert gone.size == round(sparsity * flat.size)
        if gone.size:
            assert np.abs(gone).max() <= np.abs(flat[flat != 0]).min()
    for piece in pieces(graph):
        network = lower(graph, pruned, piece[0], piece[-1])
        groups_of = layer_operations(graph, piece[0], piece[-1])
        for names, layer in zip(groups_of, network, strict=True):
            operation = graph.operation(names[0])
            if isinstance(operation, Convolution):
                shape = graph.input_shapes(names[0])[0]
                kernel = pruned[f"{names[0]}.weight"]
                assert layer.nnz == written_out(kernel, operation, *shape[1:])
            elif isinstance(operation, FullyConnected):
                assert layer.nnz == np.count_nonzero(pruned[f"{names[0]}.weight"])


def test_pruning_keeps_what_is_to_stay_and_takes_ties_in_order() -> None:
    graph = OperationGraph("ties")
    x = graph.add(Input("image", (1, 2, 3)))
    x = graph.add(Convolution("conv", 2, (1, 2), bias=False), x)
    graph.add(FullyConnected("fc", 2, bias=False), x)
    graph.finish()
    arrays = {name: np.ones(each.shape) for name, each in graph.parameters.items()}  # float64
    pruned = prune_kernels(arrays, 0.5, graph)  # 20 weights: the kernel and six more stay
    assert pruned["conv.weight"] is arrays["conv.weight"]
    assert pruned["fc.weight"].ravel().tolist() == [1.0] * 6 + [0.0] * 10
    pruned = prune_kernels(arrays, 0.75, graph, keep=["fc"])
    assert pruned["fc.weight"] is arrays["fc.weight"]
    assert pruned["conv.weight"].ravel().tolist() == [1.0, 0.0, 0.0, 0.0]
    assert prune_kernels(arrays, 0.9, graph, keep=["fc", "conv"]) == arrays
    again = prune_kernels(pruned, 0.5, graph, keep=["fc"])  # sparse enough as it is
    np.testing.assert_array_equal(again["conv.weight"], pruned["conv.weight"])


def test_a_threshold_and_filters_that_batch_norm_turns_off() -> None:
    graph = tiny_network()
    arrays = random_arrays(graph, 6)
    arrays["bn1.weight"][2] = 0
    network = lower(graph, arrays, "conv1", "relu1", threshold=0.5)
    kernel = np.where(np.abs(arrays["conv1.weight"]) <= 0.5, 0, arrays["conv1.weight"])
    kernel[2] = 0
    operation = graph.operation("conv1")
    assert isinstance(operation, Convolution)
    assert network.edges == written_out(kernel, operation, 11, 9)
    assert np.diff(network[0].indptr)[2 * 99 : 3 * 99].max() == 0


@pytest.mark.parametrize("partitioner", [None, "cyclic"])
def test_a_pruned_network_is_partitioned_and_runs_on_two_parts(partitioner: str | None) -> None:
    graph = make_network("smallcnn", (1, 8, 8), 4)
    arrays = prune_kernels(random_arrays(graph, 7), 0.6, graph, scope="layer")
    network = lower(graph, arrays, "conv1", "relu2")
    options = Options(2, imbalance=0.1, effort="quick", threads=1)
    divided = make_partition(
        network, options, method="multiphase" if partitioner else "joint", partitioner=partitioner
    )
    promised = evaluate(network, divided)
    most = network.n_in + network[0].n_out  # every word is needed on the other part
    assert promised.words_total == most if partitioner else 0 < promised.words_total < most / 2
    shards = [shard_network(network, divided, part) for part in (0, 1)]
    plans = plans_of_all(shards)
    x = np.random.default_rng(8).standard_normal((network.n_in, 5)).astype(np.float32)
    have = [x[divided.owners[0] == part] for part in (0, 1)]
    for k, counted in enumerate(promised.layers):
        sent = [have[part][plans[part][k].send_rows] for part in (0, 1)]  # all go to the other
        assert sum(map(len, sent)) == counted.words
        assert sum(plans[part][k].messages_sent for part in (0, 1)) == counted.messages
        after = []
        for part in (0, 1):
            layer = DistributedLayer.make(
                shards[part].layers[k], plans[part][k], shards[part].owners[k], part
            )
            z = layer.multiply_owned(have[part])
            layer.add_received(z, sent[1 - part])
            after.append(layer.activation.apply(z))
        have = after
    found = np.empty((network.n_out, 5), np.float32)
    for part in (0, 1):
        found[divided.owners[-1] == part] = have[part]
    wanted, tolerance = run(network, x)
    assert np.abs(wanted).max() > 0
    assert np.all(np.abs(found - wanted) <= 30 * tolerance)


def test_what_cannot_be_lowered() -> None:
    graph = make_network("smallcnn")
    arrays = random_arrays(graph, 1)
    for first, last in ((None, None), ("conv1", None), (None, "fc1"), ("pool", "pool")):
        with pytest.raises(InputError) as error:
            lower(graph, arrays, first, last)
        assert str(error.value) == (
            "network smallcnn: operation 'pool' (max pool) is no matrix; pieces that can be "
            "lowered: conv1…relu2, fc1…fc2"
        )
    tiny = tiny_network()
    numbers = random_arrays(tiny, 1)
    for last, says in (
        ("sum", r"'sum' \(add\) is no matrix.*: conv1…relu1, a…a_relu, b…b_bn, conv2…fc2$"),
        ("concat", r"'c' \(max pool\) is no matrix"),
    ):
        with pytest.raises(InputError, match=says):
            lower(tiny, numbers, "conv1", last)
    with pytest.raises(InputError, match=r"'concat' \(concatenate\) is no matrix"):
        lower(tiny, numbers, "a", "concat")
    with pytest.raises(InputError, match="'conv1' does not depend on 'relu2'"):
        lower(graph, arrays, "relu2", "conv1")
    with pytest.raises(InputError, match="'image' is where images come in"):
        lower(graph, arrays, last=graph.input)
    with pytest.raises(InputError, match="no operation 'conv9'"):
        lower(graph, arrays, "conv9")
    many = make_network("resnet20", (3, 16, 16))
    with pytest.raises(InputError, match=r"conv1…relu, .* and 7 more$"):
        lower(many, {})
    pool = OperationGraph("pool")
    pool.add(MaxPool("pool", (2, 2)), pool.add(Input("image", (1, 4, 4))))
    with pytest.raises(InputError, match=r"lowered: none$"):
        lower(pool.finish(), {})


def change(arrays: Arrays, name: str, place: Any, value: float) -> Arrays:
    changed = {key: array.copy() for key, array in arrays.items()}
    changed[name][place] = value
    return changed


def test_arrays_that_do_not_fit() -> None:
    graph = tiny_network()
    arrays = random_arrays(graph, 1)
    for changed, error, says in (
        ({k: v for k, v in arrays.items() if k != "bn1.bias"}, ShapeError, "no array for 'bn1.b"),
        (arrays | {"conv1.weight": arrays["a.weight"]}, ShapeError, r"conv1.weight' is float32 \["),
        (arrays | {"bn1.bias": np.ones(6, np.int64)}, ShapeError, "bn1.bias' is int64"),
        (change(arrays, "conv1.weight", (1, 2, 0, 0), np.nan), InputError,
         r"tiny: operation 'conv1' \(convolution\): kernel weight \(1, 2, 0, 0\) is nan"),
        (change(arrays, "bn1.running_var", 3, -1.0), InputError, "bn1.*channel 3 would be scaled"),
        (change(arrays, "bn1.bias", 2, np.inf), InputError, "bn1.*channel 2 .* shifted by inf"),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            lower(graph, changed, "conv1", "relu1", threshold=0.1)
    large = {name: array.astype(np.float64) for name, array in arrays.items()}
    for name, place, says in (
        ("a.weight", (1, 2, 0, 0), r"'a' \(convolution\): kernel weight \(1, 2, 0, 0\) is inf"),
        ("a.bias", 1, "bias of row 99 is inf"),
    ):
        with pytest.raises(InputError, match=says):
            lower(graph, change(large, name, place, 1e60), "a", "a")
    with pytest.raises(InputError, match=r"'fc2' \(fully connected\): weight \(3, 4\) is inf"):
        lower(graph, change(large, "fc2.weight", (3, 4, 0, 0), 1e60), "fc2")
    for threshold in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="threshold must be"):
            lower(graph, arrays, "conv1", "relu1", threshold=threshold)
    for error, says, how in (
        (UsageError, "sparsity must be", {"sparsity": 1.0}),
        (UsageError, "unknown scope 'all'", {"scope": "all"}),
        (UsageError, "no kernel 'bn1' to keep: network tiny has conv1, a, b", {"keep": ["bn1"]}),
        (ShapeError, "'a.weight' is missing", {"arrays": {"conv1.weight": arrays["conv1.weight"]}}),
        (ShapeError, r"'a.weight' is \[4\]", {"arrays": arrays | {"a.weight": arrays["a.bias"]}}),
        (InputError, "'fc1.weight' has numbers that are NaN",
         {"arrays": change(arrays, "fc1.weight", 0, np.nan)}),
    ):  # fmt: skip
        with pytest.raises(error, match=says):
            prune_kernels(**({"arrays": arrays, "sparsity": 0.5, "graph": graph} | how))  # type: ignore[arg-type]


# -- the command ---------------------------------------------------------------------------------


class Command:
    """`cnn_lower.lower` by itself."""

    def __init__(self, folder: Path) -> None:
        from sparsednn.cli.cnn_lower import lower as command

        self.app = typer.Typer(pretty_exceptions_enable=False)
        self.app.command("lower")(command)
        self.folder = folder

    def __call__(self, *arguments: object) -> Any:
        return CliRunner().invoke(self.app, [str(each) for each in arguments])

    def ok(self, *arguments: object) -> str:
        done = self(*arguments)
        assert done.exit_code == 0, done.exception
        return str(done.stdout)

    def fails(self, error: type[SparseDNNError], says: str, *arguments: object) -> None:
        before = sorted(self.folder.iterdir())
        done = self(*arguments)
        assert isinstance(done.exception, error), done.exception
        assert says in str(done.exception)
        assert sorted(self.folder.iterdir()) == before


@pytest.fixture
def command(tmp_path: Path) -> Command:
    return Command(tmp_path)


def test_the_command(command: Command, tmp_path: Path) -> None:
    import json

    graph = make_network("lenet5", (1, 12, 12), 4)
    arrays = random_arrays(graph, 1)
    stored, out = tmp_path / "net.safetensors", tmp_path / "sparse.safetensors"
    write_state_dict(stored, graph, arrays)
    told = json.loads(command.ok(
        stored, "-o", out, "--from", "fc1", "--to", "fc3", "--sparsity", 0.8, "--scope", "layer",
        "--keep", "fc3", "--json",
    ))  # fmt: skip
    pruned = prune_kernels(arrays, 0.8, graph, scope="layer", keep=["fc3"])
    wanted = lower(graph, pruned, "fc1", "fc3")
    assert read_network(out).hash == wanted.hash == told["hash"]
    assert (told["from"], told["to"], told["edges"]) == ("fc1", "fc3", wanted.edges)
    assert [row["operations"] for row in told["layer"]] == [
        ["fc1", "relu3"], ["fc2", "relu4"], ["fc3"],
    ]  # fmt: skip
    assert told["layer"][0]["kernel_nonzeros"] == np.count_nonzero(pruned["fc1.weight"])
    # By name, with the numbers of another file.
    text = command.ok("lenet5", "--weights", stored, "--image", "1x12x12", "--classes", 4,
                      "-o", out, "--from", "conv1", "--to", "relu1")  # fmt: skip
    assert read_network(out).hash == lower(graph, arrays, "conv1", "relu1").hash
    assert "conv1, relu1" in text
    assert "144 (1×12×12)" in text


def test_the_command_takes_a_checkpoint_of_a_training(command: Command, tmp_path: Path) -> None:
    from sparsednn.dense.runs.checkpoint import CnnState, write_cnn_checkpoint

    graph = make_network("lenet5", (1, 12, 12), 4)
    arrays = random_arrays(graph, 2)
    slots = {"velocity": {name: array + 1 for name, array in arrays.items()}}
    path, out = tmp_path / "run.safetensors", tmp_path / "sparse.safetensors"
    write_cnn_checkpoint(path, CnnState(graph, arrays, slots, {}, {}))
    command.ok(path, "-o", out, "--from", "fc1")
    assert read_network(out).hash == lower(graph, arrays, "fc1").hash
    command.ok("lenet5", "--weights", path, "--image", "1x12x12", "--classes", 4, "-o", out,
               "--from", "fc2")  # fmt: skip
    assert read_network(out).hash == lower(graph, arrays, "fc2").hash
    command.fails(UsageError, "is a checkpoint of lenet5", "lenet5", "--weights", path, "-o", out,
                  "--from", "fc1")  # fmt: skip


def test_errors_of_the_command(command: Command, tmp_path: Path) -> None:
    graph = make_network("lenet5", (1, 12, 12), 4)
    stored, out = tmp_path / "net.safetensors", tmp_path / "sparse.safetensors"
    write_state_dict(stored, graph, random_arrays(graph, 1))
    to = ("-o", out)
    for error, says, arguments in (
        (InputError, "'pool1' (max pool) is no matrix", (stored, *to)),
        (UsageError, "would be lost", (stored, "-o", stored)),
        (UsageError, "give --weights FILE", ("lenet5", *to)),
        (UsageError, "--image belongs to", (stored, *to, "--image", "1x12x12")),
        (UsageError, "--weights belongs to", (stored, *to, "--weights", stored)),
        (
            UsageError,
            "--image '12': channels",
            ("lenet5", "--image", "12", "--weights", stored, *to),
        ),
        (UsageError, "give --sparsity", (stored, *to, "--keep", "fc1")),
        (UsageError, "sparsity must be", (stored, *to, "--sparsity", 1)),
        (InputError, "network 'lenet9' is unknown", ("lenet9", "--weights", stored, *to)),
        (InputError, "no such file", ("lost.safetensors", *to)),
        (InputError, "missing", (stored, "-o", tmp_path / "missing" / "out.safetensors")),
    ):
        command.fails(error, says, *arguments)


def test_the_command_is_light_to_import() -> None:
    code = (
        "import sys, sparsednn.cli.cnn_lower\n"
        "print([name for name in ('networkx', 'numba', 'scipy', 'torch', 'mpi4py') "
        "if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
