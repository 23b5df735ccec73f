"""The numba kernel against the reference, and the reference against dense NumPy."""

from __future__ import annotations

import dataclasses
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from networks import input_sets, networks, random_layer
from sparsednn import InputSet, SparseLayer, SparseNetwork
from sparsednn.errors import ShapeError, UsageError
from sparsednn.kernels import CPU_KERNELS, get_kernel
from sparsednn.kernels.cpu import NumbaPlan, make_workspace
from sparsednn.kernels.microkernel import LANES, MAX_VECTORS
from sparsednn.kernels.reference import ReferencePlan, forward
from sparsednn.kernels.sizes import choose_tiling
from sparsednn.kernels.tiles import Tiling
from sparsednn.machine import machine

# Compiling is slow the first time, and the machines are shared.
relaxed = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def tolerance(network: SparseNetwork) -> float:
    """Sums in another order differ by a few units in the last place of the largest partial sum."""
    largest = max(float(np.abs(layer.values).sum()) if layer.nnz else 1.0 for layer in network)
    return 1e-6 * (1 + largest)


def small_tiling(network: SparseNetwork, columns: int, keep: float) -> Tiling:
    """A tiling with a pool in front of every layer that may have one, however small the tile."""
    first = max(1, network.droppable_from)
    pools = np.full(len(network) + 1, -1, np.int64)
    for layer in range(first, len(network)):
        pools[layer] = layer - first
    lines = LANES * (-(-columns // LANES) + 1)
    return Tiling(columns, lines, 2 * columns + LANES, pools, keep)


def run(plan: ReferencePlan | NumbaPlan, network: SparseNetwork, inputs: InputSet):
    outputs = np.zeros((network.n_out, inputs.n_images), np.float32)
    nonzero = plan.run(inputs, outputs)
    np.testing.assert_array_equal(nonzero, plan.run(inputs), "with and without outputs")
    return nonzero, outputs


@given(network=networks())
@relaxed
def test_reference_layers_equal_dense_arithmetic(network: SparseNetwork) -> None:
    rng = np.random.default_rng(0)
    for layer in network:
        x = rng.standard_normal((layer.n_in, 7)).astype(np.float32)
        dense = np.zeros(layer.shape, np.float64)
        for row in range(layer.n_out):
            for k in range(layer.indptr[row], layer.indptr[row + 1]):
                dense[row, layer.indices[k]] = layer.values[k]
        z = dense @ x + layer.bias[:, None]
        match layer.activation.kind:
            case "relu":
                expected = np.where(z > 0, z, 0)
            case "clamped_relu":
                expected = np.minimum(np.where(z > 0, z, 0), 1.5)
            case "sigmoid":
                expected = 1 / (1 + np.exp(-z))
            case "tanh":
                expected = np.tanh(z)
            case "softmax":
                expected = np.exp(z) / np.exp(z).sum(axis=0)
            case _:
                expected = z
        found = forward(layer, x)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@given(data=st.data(), network=networks())
@relaxed
def test_reference_dropping_changes_nothing(data: st.DataObject, network: SparseNetwork) -> None:
    inputs = data.draw(input_sets(network.n_in))
    x = inputs.to_dense()
    for layer in network:
        x = forward(layer, x)
    plan = ReferencePlan(network)
    plan.chunk = 13
    nonzero, outputs = run(plan, network, inputs)
    np.testing.assert_allclose(outputs, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(nonzero, outputs.any(axis=0))


@given(
    data=st.data(),
    network=networks(),
    tile=st.integers(1, 2 * LANES * MAX_VECTORS),
    keep=st.sampled_from([0.0, 0.5, 1.0, 1.1]),
    threads=st.integers(1, 3),
)
@relaxed
def test_numba_equals_reference(
    data: st.DataObject, network: SparseNetwork, tile: int, keep: float, threads: int
) -> None:
    inputs = data.draw(input_sets(network.n_in))
    _, truth = run(ReferencePlan(network), network, inputs)
    default = NumbaPlan(network)
    nonzero, outputs = run(default, network, inputs)
    np.testing.assert_allclose(outputs, truth, rtol=1e-4, atol=tolerance(network))
    np.testing.assert_array_equal(nonzero, outputs.any(axis=0), "alive means a nonzero output")
    # Whatever the tiles, the pools and the threads: the same numbers, bit by bit.
    other = NumbaPlan(network, threads=threads, tiling=small_tiling(network, tile, keep))
    other_nonzero, other_outputs = run(other, network, inputs)
    np.testing.assert_array_equal(other_outputs, outputs)
    np.testing.assert_array_equal(other_nonzero, nonzero)


@given(network=networks(), batch=st.integers(0, 3 * LANES * MAX_VECTORS), threads=st.integers(1, 3))
@relaxed
def test_forward_layer_equals_reference(network: SparseNetwork, batch: int, threads: int) -> None:
    plan = NumbaPlan(network, threads=threads)
    rng = np.random.default_rng(batch)
    for index, layer in enumerate(network):
        x = rng.standard_normal((layer.n_in, batch)).astype(np.float32)
        y = plan.forward_layer(index, x)
        assert y.shape == (layer.n_out, batch)
        np.testing.assert_allclose(
            y, forward(layer, x), rtol=1e-4, atol=tolerance(SparseNetwork([layer]))
        )


def test_binary_fractions_give_the_reference_bit_by_bit() -> None:
    # With weights that are powers of two, a fused multiply-add rounds like a multiplication and an
    # addition, and both kernels add in the order of the columns.
    rng = np.random.default_rng(3)
    base = random_layer(rng, 96, 80, density=0.3, shared=0.8, activation="clamped_relu:32")
    values = np.full(base.nnz, 1 / 16, np.float32)
    layer = SparseLayer(
        base.indptr, base.indices, values, 80, bias=-0.3, activation="clamped_relu:32"
    )
    network = SparseNetwork([layer])
    inputs = InputSet.from_dense(rng.random((80, 200)) * 9)
    _, truth = run(ReferencePlan(network), network, inputs)
    _, outputs = run(NumbaPlan(network), network, inputs)
    np.testing.assert_array_equal(outputs, truth)


def test_positive_bias_revives_dead_columns() -> None:
    rng = np.random.default_rng(5)
    first = random_layer(rng, 20, 10, bias="negative")
    second = random_layer(rng, 6, 20, bias="mixed")
    network = SparseNetwork([first, second])
    assert network.droppable_from == 2
    inputs = InputSet.from_dense(np.zeros((10, 5)))
    for kernel in CPU_KERNELS:
        outputs = np.zeros((6, 5), np.float32)
        nonzero = get_kernel(kernel).plan(network).run(inputs, outputs)
        expected = np.maximum(second.bias, 0)
        np.testing.assert_array_equal(outputs, np.repeat(expected[:, None], 5, axis=1))
        assert nonzero.all()


def test_negative_zero_is_dead() -> None:
    layer = SparseLayer([0, 1], [0], [-1.0], 1, activation="identity")
    inputs = InputSet([0, 1, 2], [0, 0], [0.0, 2.0], 1)
    for kernel in CPU_KERNELS:
        nonzero = get_kernel(kernel).plan(SparseNetwork([layer])).run(inputs)
        np.testing.assert_array_equal(nonzero, [False, True])


def test_nan_is_not_hidden() -> None:
    # An overflow to infinity and the NaN that follows must reach the output.
    big = SparseLayer([0, 1, 2], [0, 0], [3e38, -3e38], 1, activation="identity")
    add = SparseLayer([0, 2], [0, 1], [1.0, 1.0], 2, activation="relu")
    network = SparseNetwork([big, add])
    inputs = InputSet.from_dense(np.array([[10.0, 0.5]]))
    outputs = np.zeros((1, 2), np.float32)
    get_kernel("numba").plan(network).run(inputs, outputs)
    assert np.isnan(outputs[0, 0])
    assert outputs[0, 1] == 0


def test_pools_are_used_and_bounded() -> None:
    # Images die at every layer: the cascade must pack, and still agree with the reference.
    rng = np.random.default_rng(11)
    layers = [
        random_layer(rng, 64, 64, density=0.05, activation="relu", bias="negative")
        for _ in range(30)
    ]
    inputs = InputSet.from_dense(rng.random((64, 5000)) * rng.random(5000) ** 3)
    alive = []
    for depth in (1, 3, 5):
        alive.append(int(ReferencePlan(SparseNetwork(layers[:depth])).run(inputs).sum()))
    assert alive[0] > alive[1] > alive[2], "the test needs columns that die layer by layer"
    for depth in (3, 5, 30):
        part = SparseNetwork(layers[:depth])
        _, truth = run(ReferencePlan(part), part, inputs)
        _, outputs = run(NumbaPlan(part, threads=2), part, inputs)
        np.testing.assert_allclose(outputs, truth, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [1, 1000, 1024, 16384, 65536, 1_000_000])
def test_tile_sizes_follow_the_caches(width: int) -> None:
    layer = SparseLayer(np.zeros(width + 1), [], [], width, activation="relu")
    network = SparseNetwork([layer])
    tiling = choose_tiling(network, machine(), threads=2)
    assert tiling.columns % LANES == 0
    assert tiling.columns >= LANES
    assert tiling.stride >= tiling.columns
    assert tiling.pool_stride >= 2 * tiling.columns + LANES
    assert (tiling.stride * 4 // 64) % 2 == 1, "an odd number of cache lines"


def test_deep_networks_have_few_pools() -> None:
    layer = SparseLayer([0, 1], [0], [1.0], 1, activation="relu")
    tiling = choose_tiling(SparseNetwork([layer] * 1920), machine(), threads=1)
    pools = tiling.pool_of_layer
    assert pools[0] == -1
    assert pools[-1] == -1
    assert (pools[1:17] == np.arange(16)).all(), "a pool in front of each of the first layers"
    assert pools.max() < 100
    little = dataclasses.replace(machine(), memory=1 << 20)
    assert choose_tiling(SparseNetwork([layer] * 1920), little, threads=1).pool_of_layer.max() < 60
    wide = SparseNetwork([SparseLayer(np.zeros(2**20), [], [], 2**20 - 1, activation="relu")] * 3)
    assert choose_tiling(wide, little, threads=1).pool_of_layer.max() == -1


def test_what_does_not_fit_never_reaches_the_compiled_loops() -> None:
    rng = np.random.default_rng(1)
    plan = NumbaPlan(SparseNetwork([random_layer(rng, 6, 4)]))
    inputs = InputSet.from_dense(np.ones((4, 3)))
    with pytest.raises(ShapeError, match="inputs have 5 features, the network takes 4"):
        plan.run(InputSet.from_dense(np.ones((5, 3))))
    with pytest.raises(ShapeError, match=r"outputs have shape \(6, 2\), expected \(6, 3\)"):
        plan.run(inputs, np.zeros((6, 2), np.float32))
    with pytest.raises(ShapeError, match=r"layer 0 takes \(4, batch\) columns, found \(3, 7\)"):
        plan.forward_layer(0, np.zeros((3, 7), np.float32))


def test_a_workspace_can_be_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    network = SparseNetwork(
        [random_layer(rng, 40, 40, density=0.1, bias="negative") for _ in range(5)]
    )
    plan = NumbaPlan(network)
    work = make_workspace(plan.packed, plan.tiling)
    monkeypatch.setattr("sparsednn.kernels.cpu.make_workspace", lambda packed, tiling: work)
    for seed in range(3):
        inputs = InputSet.from_dense(np.random.default_rng(seed).random((40, 500)) > 0.8)
        _, truth = run(ReferencePlan(network), network, inputs)
        _, outputs = run(plan, network, inputs)
        np.testing.assert_allclose(outputs, truth, rtol=1e-4, atol=tolerance(network))


def test_unknown_kernel() -> None:
    with pytest.raises(UsageError, match="unknown kernel 'fast': known are numba, reference"):
        get_kernel("fast")


@pytest.mark.parametrize(
    ("cpu", "features", "lanes"),
    [("haswell", "+avx,+avx2,+fma", 8), ("nehalem", "+sse4.2", 4)],
)
@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86-64 processors")
def test_other_vector_lengths(cpu: str, features: str, lanes: int) -> None:
    """The same kernel compiled for older processors: other lanes, other blocks, same results."""
    program = """
import sys
import numpy as np
from sparsednn import SparseNetwork
from sparsednn.datasets import digits_inputs, graph_challenge_network
from sparsednn.kernels import get_kernel
from sparsednn.kernels.microkernel import LANES
assert LANES == int(sys.argv[1]), LANES
network = graph_challenge_network(1024, 12)
inputs = digits_inputs(1024, limit=301)
outputs = {}
for name in ("numba", "reference"):
    outputs[name] = np.zeros((1024, 301), np.float32)
    get_kernel(name).plan(network, threads=2).run(inputs, outputs[name])
assert outputs["reference"].any()
np.testing.assert_array_equal(outputs["numba"], outputs["reference"])
"""
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    subprocess.run([sys.executable, "-c", program, str(lanes)], env=environment, check=True)
