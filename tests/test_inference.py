"""The engine: chunks, sinks, categories, and the official answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from networks import random_layer
from sparsednn import InputSet, SparseNetwork, inference
from sparsednn.datasets import graph_challenge_inputs, graph_challenge_network, load_mnist
from sparsednn.errors import FormatError, ShapeError, UsageError
from sparsednn.inference import compare_categories, infer
from sparsednn.outputs import output_sink


@pytest.fixture
def small() -> tuple[SparseNetwork, InputSet]:
    rng = np.random.default_rng(2)
    layers = [random_layer(rng, 30, 20, bias="negative"), random_layer(rng, 12, 30, bias="zero")]
    return SparseNetwork(layers, name="small"), InputSet.from_dense(rng.random((20, 333)))


@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_outputs_come_in_order_and_in_pieces(
    small: tuple[SparseNetwork, InputSet], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, inputs = small
    whole = np.zeros((12, 333), np.float32)
    pieces: list[int] = []

    def keep(first: int, outputs: np.ndarray) -> None:
        pieces.append(first)
        whole[:, first : first + outputs.shape[1]] = outputs

    monkeypatch.setattr(inference, "_OUTPUT_BYTES", 4 * 12 * 100)
    result = infer(network, inputs, kernel=kernel, sink=keep)
    assert pieces == [0, 100, 200, 300]
    x = inputs.to_dense()
    for layer in network:
        x = np.maximum(layer.weight.toarray() @ x + layer.bias[:, None], 0)
    np.testing.assert_allclose(whole, x, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(result.categories, np.flatnonzero(whole.any(axis=0)))
    np.testing.assert_array_equal(
        infer(network, inputs, kernel=kernel).categories, result.categories
    )
    assert result.images == 333
    assert result.edges == network.edges
    assert result.edges_per_second == 333 * network.edges / result.infer_seconds


def test_wrong_width_names_both(small: tuple[SparseNetwork, InputSet]) -> None:
    network, _ = small
    narrow = InputSet.from_dense(np.ones((19, 2)), name="a.tsv")
    with pytest.raises(ShapeError, match=r"'a.tsv' have 19 features, network 'small' takes 20"):
        infer(network, narrow)


def test_no_threads_is_a_usage_error(small: tuple[SparseNetwork, InputSet]) -> None:
    with pytest.raises(UsageError, match="threads must be at least 1, found 0"):
        infer(*small, threads=0)


def test_no_images(small: tuple[SparseNetwork, InputSet]) -> None:
    network, inputs = small
    for kernel in ("numba", "reference"):
        assert infer(network, inputs.columns(0, 0), kernel=kernel).categories.size == 0


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tsv"])
def test_output_files(
    small: tuple[SparseNetwork, InputSet],
    suffix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network, inputs = small
    monkeypatch.setattr(inference, "_OUTPUT_BYTES", 4 * 12 * 50)
    path = tmp_path / f"out{suffix}"
    with output_sink(path, network.n_out, inputs.n_images) as sink:
        infer(network, inputs, sink=sink)
        assert not path.exists(), "a file appears when it is complete"
    x = inputs.to_dense()
    for layer in network:
        x = np.maximum(layer.weight @ x + layer.bias[:, None], 0)
    if suffix == ".npy":
        found = np.load(path)
    elif suffix == ".npz":
        from scipy.sparse import load_npz

        found = load_npz(path).toarray()
    else:
        found = np.zeros_like(x)
        for line in path.read_text().splitlines():
            image, neuron, value = line.split("\t")
            found[int(neuron) - 1, int(image) - 1] = float(value)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)


def test_a_failed_run_leaves_no_output_file(tmp_path: Path) -> None:
    for suffix in (".npy", ".npz", ".tsv"):
        with (
            pytest.raises(RuntimeError, match="stop"),
            output_sink(tmp_path / f"out{suffix}", 3, 4),
        ):
            raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"\.npy, \.npz, \.tsv"), output_sink(Path("o.csv"), 1, 1):
        pass
    with pytest.raises(FormatError, match="no folder"), output_sink(tmp_path / "a" / "o.npy", 1, 1):
        pass


def test_compare_categories() -> None:
    ids = np.array([3, 5, 9])
    assert compare_categories(ids, ids) is None
    assert compare_categories(ids, np.array([3, 5])) == (
        "3 categories found, 2 in the truth; 1 too many (first: 9)"
    )


@pytest.fixture(scope="module")
def official_inputs(mnist_folder: Path) -> InputSet:
    pixels, _ = load_mnist(mnist_folder, "train")
    return graph_challenge_inputs(1024, pixels)


@pytest.mark.mnist
@pytest.mark.parametrize("kernel", ["numba", "reference"])
def test_official_answer(kernel: str, official_inputs: InputSet, official_categories: Path) -> None:
    """All 60,000 images through 1024 x 120 give exactly the official categories."""
    result = infer(graph_challenge_network(1024, 120), official_inputs, kernel=kernel)
    truth = np.loadtxt(official_categories, dtype=np.int64)
    assert truth.size == 1812
    assert compare_categories(result.categories + 1, truth) is None
