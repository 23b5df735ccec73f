"""The engine of inference on a device: whole networks, against the serial reference kernel."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from networks import input_sets, networks, random_layer
from sparsednn import InputSet, SparseLayer, SparseNetwork
from sparsednn.errors import DeviceMemoryError
from sparsednn.gpu.schedule import drop_points, merge_points
from sparsednn.gpu.twin import TwinDevice
from sparsednn.inference import infer
from sparsednn.kernels.gpu import GpuPlan, precision_error
from sparsednn.kernels.reference import ReferenceKernel
from sparsednn.sources import load_inputs, load_network


def reference(network, inputs):
    outputs = np.zeros((network.n_out, inputs.n_images), np.float32)
    return ReferenceKernel().plan(network).run(inputs, outputs), outputs


def assert_same(network, inputs, plan, *, exact=False):
    """Categories and outputs are the reference's; categories where rounding cannot decide them."""
    expected, outputs = reference(network, inputs)
    found = np.zeros_like(outputs)
    nonzero = plan.run(inputs, found)
    if exact:
        assert np.array_equal(nonzero, expected)
        assert np.array_equal(found, outputs)
        return
    largest = max(1.0, float(np.abs(outputs).max(initial=0)))
    np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-5 * largest)
    assert np.array_equal(nonzero, (found != 0).any(axis=0))
    clear = (np.abs(outputs) > 1e-5 * largest).any(axis=0) == expected
    assert np.array_equal(nonzero[clear], expected[clear])


@given(data=st.data(), network=networks())
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_random_networks(quick_device, data, network):
    inputs = data.draw(input_sets(network.n_in, most=100))
    columns = data.draw(st.sampled_from([None, 32, 64]))
    plan = GpuPlan(
        quick_device,
        network,
        columns=columns,
        drop=data.draw(st.booleans()),
        merge=data.draw(st.booleans()),
    )
    assert_same(network, inputs, plan)


def deep_network(seed, depth=24, width=30):
    """Few inputs die, many columns become equal: sums of weights saturate."""
    rng = np.random.default_rng(seed)
    layers = [
        random_layer(rng, width, width, density=0.3, shared=0.8, bias="negative",
                     activation="clamped_relu:2.0")
        for _ in range(depth)
    ]  # fmt: skip
    return SparseNetwork(layers)


def exact_network(depth, width):
    """Weights of ±1 and ±1/2, and an activation that saturates: sums are exact in any order."""
    rng = np.random.default_rng(depth)
    layers = []
    for _ in range(depth):
        layer = random_layer(rng, width, width, shared=0.8, bias="negative")
        values = np.sign(layer.values) * rng.choice([0.5, 1.0], layer.nnz)
        bias = np.round(2 * layer.bias) / 2
        layers.append(
            SparseLayer(
                layer.indptr, layer.indices, values, width, bias=bias,
                activation="clamped_relu:4.0",
            )
        )  # fmt: skip
    return SparseNetwork(layers)


def test_compiled_kernels_run_a_network(real_code):
    """Everything at once, as PTX: chunks, drops, mergers, layers in shared memory."""
    network = exact_network(13, 40)
    rng = np.random.default_rng(0)
    images = (rng.random((40, 15)) < 0.4) * 1.0
    inputs = InputSet.from_dense(images[:, rng.integers(15, size=50)])
    for columns in (None, 32):
        plan = GpuPlan(real_code, network, columns=columns)
        assert_same(network, inputs, plan, exact=True)
        assert plan.merged_columns


@pytest.mark.parametrize("merge", [False, True])
def test_official_construction(quick_device, merge):
    network = load_network("graph-challenge:1024-120", layers=26)
    inputs = load_inputs("digits:1024", n_features=1024, images=300)
    plan = GpuPlan(quick_device, network, merge=merge)
    assert_same(network, inputs, plan, exact=True)
    assert (plan.merged_columns > 0) == merge
    plan = GpuPlan(quick_device, network, merge=merge, columns=128)
    assert_same(network, inputs, plan, exact=True)


def test_the_same_plan_runs_again_and_more():
    network, device = deep_network(1, depth=5), TwinDevice()
    rng = np.random.default_rng(2)
    plan = GpuPlan(device, network)
    for images in (40, 7, 0, 100):
        inputs = InputSet.from_dense((rng.random((30, images)) < 0.5) * 1.0)
        assert_same(network, inputs, plan)
    halves = InputSet.from_dense((rng.random((30, 20)) < 0.5) * 0.5)  # with stored values
    assert_same(network, halves, plan)


def test_equal_columns_are_computed_once():
    network, device = deep_network(3, depth=30), TwinDevice()
    rng = np.random.default_rng(3)
    images = np.repeat((rng.random((30, 50)) < 0.5) * 1.0, 3, axis=1)[:, rng.permutation(150)]
    inputs = InputSet.from_dense(images)
    merging = GpuPlan(device, network)
    assert_same(network, inputs, merging)
    counts = device.download(merging._cascade.counts)
    plain = GpuPlan(device, network, merge=False)
    assert_same(network, inputs, plain)
    without = device.download(plain._cascade.counts)[-1]
    assert merging.merged_columns >= 2 * without // 3 > 0
    assert counts[-1] <= without // 3


def test_layers_with_two_forms_stay_out_of_shared_memory():
    """They choose by the columns that are left, which `resident` does not."""
    rng = np.random.default_rng(29)
    densities = [0.1, 0.1, 0.5, 0.1, 0.1, 0.1]
    layers = [random_layer(rng, 20, 20, density=d, shared=0.0, bias="mixed") for d in densities]
    network = SparseNetwork(layers)
    inputs = InputSet.from_dense((rng.random((20, 600)) < 0.5) * 1.0)
    plan = GpuPlan(TwinDevice(), network)
    assert_same(network, inputs, plan)
    assert plan.network.two_forms == {2}
    assert all(width == 0 for _, _, width in plan._cascade._segments)
    sparse = SparseNetwork([layers[0], *layers[3:]])
    plan = GpuPlan(TwinDevice(), sparse)
    assert_same(sparse, inputs, plan)
    assert plan._cascade._segments == [(0, 4, 16)]


def test_what_a_bias_revives_is_not_dropped():
    rng = np.random.default_rng(5)
    layers = [random_layer(rng, 12, 12, bias="mixed", activation="relu") for _ in range(12)]
    network = SparseNetwork(layers)
    inputs = InputSet.from_dense(np.zeros((12, 40), np.float32))
    plan = GpuPlan(TwinDevice(), network)
    assert plan.network.droppable_from > 11
    assert_same(network, inputs, plan)
    assert plan.run(inputs).all()


@pytest.mark.parametrize("images", [1, 2, 33, 100_000])
def test_batches_of_every_size(quick_device, images):
    network = deep_network(7, depth=3, width=9)
    rng = np.random.default_rng(images)
    inputs = InputSet.from_dense((rng.random((9, images)) < 0.4) * 1.0)
    assert_same(network, inputs, GpuPlan(quick_device, network))


def test_a_network_larger_than_the_device_is_streamed():
    network = deep_network(11, depth=40, width=60)
    rng = np.random.default_rng(1)
    inputs = InputSet.from_dense((rng.random((60, 150)) < 0.5) * 1.0)
    whole = GpuPlan(TwinDevice(), network)
    assert not whole.streamed
    device = TwinDevice(memory=whole.network.nbytes // 2)
    plan = GpuPlan(device, network)
    assert plan.streamed
    assert_same(network, inputs, plan)
    assert_same(network, inputs, plan)  # once more, with slots in use
    x = rng.standard_normal((60, 5)).astype(np.float32)
    for layer in (0, 39, 1):
        assert np.array_equal(plan.forward_layer(layer, x), whole.forward_layer(layer, x))


def test_columns_are_as_many_as_fit():
    network = deep_network(13, depth=4, width=50)
    rng = np.random.default_rng(1)
    inputs = InputSet.from_dense((rng.random((50, 3000)) < 0.5) * 1.0)
    plenty = GpuPlan(TwinDevice(), network)
    held = plenty.network.nbytes
    plenty.run(inputs.columns(0, 1))
    plan = GpuPlan(TwinDevice(memory=held + 400_000), network)
    assert_same(network, inputs, plan)
    assert not plan.streamed
    assert 32 <= plan._step < 3000


def test_what_does_not_fit_is_said():
    network = deep_network(17, depth=3, width=200)
    with pytest.raises(DeviceMemoryError, match=r"does not fit.*32 columns.*--device cpu") as found:
        GpuPlan(TwinDevice(memory=60_000), network).run(InputSet.from_dense(np.ones((200, 1))))
    assert "\n" not in str(found.value)
    assert found.value.exit_code == 3


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_precision_error_is_measured(precision):
    network = deep_network(19, depth=6)
    rng = np.random.default_rng(1)
    inputs = InputSet.from_dense((rng.random((30, 60)) < 0.5) * 1.0)
    device = TwinDevice()
    result = infer(network, inputs, device=device, precision=precision)
    assert result.precision == precision
    assert 0 < result.precision_error < {"fp16": 0.01, "bf16": 0.08}[precision]
    full = np.zeros((30, 60), np.float32)
    half = np.zeros_like(full)
    GpuPlan(device, network).run(inputs, full)
    GpuPlan(device, network, precision=precision).run(inputs, half)
    assert result.precision_error == np.abs(half - full).max() / np.abs(full).max()
    nothing = InputSet.from_dense(np.zeros((30, 3)))
    assert precision_error(device, network, nothing, precision) is None


def test_infer_tells_device_and_seconds():
    network = deep_network(23, depth=12)
    rng = np.random.default_rng(1)
    inputs = InputSet.from_dense((rng.random((30, 60)) < 0.5) * 1.0)
    expected, outputs = reference(network, inputs)
    found = np.zeros_like(outputs)

    def sink(first, part):
        found[:, first : first + part.shape[1]] = part

    result = infer(network, inputs, device=TwinDevice(), sink=sink)
    np.testing.assert_allclose(found, outputs, rtol=1e-4, atol=1e-5)
    assert np.array_equal(result.categories, np.flatnonzero(expected))
    assert (result.kernel, result.device, result.precision) == ("cupy", "NumPy twin", "fp32")
    assert 0 < result.device_seconds <= result.infer_seconds
    assert 0 < result.copy_seconds <= result.infer_seconds
    assert infer(network, inputs, kernel="reference").device == "cpu"


def test_forward_layer_takes_any_columns(quick_device):
    rng = np.random.default_rng(0)
    widths = (7, 33, 5)
    network = SparseNetwork(
        [random_layer(rng, b, a, activation=kind)
         for (a, b), kind in zip(itertools.pairwise(widths), ("relu", "softmax"), strict=True)]
    )  # fmt: skip
    plan, truth = GpuPlan(quick_device, network), ReferenceKernel().plan(network)
    for k, columns in itertools.product((0, 1), (1, 31, 100)):
        x = rng.standard_normal((widths[k], columns)).astype(np.float32)
        np.testing.assert_allclose(
            plan.forward_layer(k, x), truth.forward_layer(k, x), rtol=1e-5, atol=1e-5
        )


def test_points_are_few_and_early():
    points = drop_points(1920, 1)
    assert points[:3] == [1, 2, 3]
    assert len(points) < 40
    assert all(b > a for a, b in itertools.pairwise(points))
    assert max(points) < 1919
    assert drop_points(10, 11) == []
    assert drop_points(10, 5)[0] >= 4
    assert min(merge_points(points)) == 7
