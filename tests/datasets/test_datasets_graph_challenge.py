"""The official networks and inputs, against an independent construction and official counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from sparsednn.challenge import OFFICIAL_BIAS
from sparsednn.datasets import (
    OFFICIAL_NONZEROS,
    graph_challenge_inputs,
    graph_challenge_layers,
    graph_challenge_network,
    is_original_mnist,
    load_mnist,
    radix_net,
)
from sparsednn.errors import InputError
from sparsednn.inputs import InputSet
from sparsednn.network import SparseLayer


def recipe(neurons: int, layers: int) -> list[Any]:
    """The recipe as it is told: matrices ``A`` (rows = from), one after the other, in SciPy."""
    n = neurons // 16
    per_block = {1024: 6, 4096: 8, 16384: 10, 65536: 12}[neurons]
    state = np.random.RandomState(5489)
    made = []
    while len(made) < layers:
        order = np.argsort(state.rand(neurons)) if made else np.arange(neurons)
        back = np.empty_like(order)
        back[order] = np.arange(neurons)
        for k in range(per_block):
            identity = np.eye(n)
            small = sparse.csr_array(identity + np.roll(identity, -(2**k), axis=1))
            base = sparse.kron(np.ones((16, 16)), small, format="csr") / 16
            made.append(base[back])  # A[order, :] = base
    return made[:layers]


@pytest.mark.parametrize(("neurons", "layers"), [(1024, 20), (4096, 10)])
def test_layers_are_the_transposed_matrices_of_the_recipe(neurons: int, layers: int) -> None:
    for made, matrix in zip(
        graph_challenge_layers(neurons, layers), recipe(neurons, layers), strict=True
    ):
        expected = matrix.T.tocsr().sorted_indices()
        assert np.array_equal(made.indptr, expected.indptr)
        assert np.array_equal(made.indices, expected.indices)
        assert np.array_equal(made.values, expected.data.astype(np.float32))


@pytest.mark.parametrize(
    ("neurons", "bias"), [(1024, -0.3), (4096, -0.35), (16384, -0.4), (65536, -0.45)]
)
def test_invariants_of_every_size(neurons: int, bias: float) -> None:
    last = None
    for layer in graph_challenge_layers(neurons, 14):
        assert layer.shape == (neurons, neurons)
        assert np.all(np.diff(layer.indptr) == 32)
        assert np.all(np.bincount(layer.indices) == 32)
        assert np.all(layer.values == np.float32(1 / 16))
        assert np.all(layer.bias == np.float32(bias))
        assert str(layer.activation) == "clamped_relu:32.0"
        assert layer.keeps_zero
        last = layer
    assert last is not None
    SparseLayer(last.indptr, last.indices, last.values, neurons, bias=last.bias)  # all checks


def test_layers_share_what_is_equal() -> None:
    first, *others = graph_challenge_network(1024, 30)
    for layer in others:
        assert layer.indptr is first.indptr
        assert layer.values is first.values
        assert layer.bias is first.bias


def test_first_block_is_unpermuted_and_later_ones_share_one_permutation() -> None:
    layers = [layer.weight.toarray().T * 16 for layer in graph_challenge_layers(1024, 18)]
    base, orders = layers[:6], []
    for k in range(6):
        # Unpermuted: inputs of the same residue mod 64 have the same outputs.
        assert np.array_equal(base[k][:64], base[k][64:128])
    for block in (layers[6:12], layers[12:18]):
        # Input i took the place of an input of residue r: the same r in all layers of the block.
        places = []
        for matrix, plain in zip(block, base, strict=True):
            residues: dict[bytes, set[int]] = {}
            for r in range(64):
                residues.setdefault(plain[r].tobytes(), set()).add(r)
            places.append([residues[row.tobytes()] for row in matrix])
        common = [set.intersection(*sets) for sets in zip(*places, strict=True)]
        assert all(len(place) == 1 for place in common)
        orders.append([place.pop() for place in common])
        assert orders[-1] != [i % 64 for i in range(1024)]
    assert orders[0] != orders[1]


def test_first_block_is_a_mirrored_radix_net() -> None:
    """The challenge connects a node with those before it, the paper with those after it."""
    mirror = (np.arange(1024) // 64) * 64 + (-np.arange(1024)) % 64
    network = radix_net([[2] * 6], widths=[16] * 7, weight=1 / 16)
    for ours, papers in zip(graph_challenge_layers(1024, 6), network, strict=True):
        assert np.array_equal(
            ours.weight.toarray(), papers.weight.toarray()[np.ix_(mirror, mirror)]
        )


def test_a_shorter_network_is_the_beginning_of_a_longer_one() -> None:
    long, short = graph_challenge_network(1024, 15), graph_challenge_network(1024, 13)
    assert short.name == "graph-challenge:1024-13"
    assert (len(long), len(short), short.edges) == (15, 13, 13 * 32768)
    assert all(np.array_equal(a.indices, b.indices) for a, b in zip(long, short, strict=False))


def test_the_longest_network_has_the_official_number_of_edges() -> None:
    assert graph_challenge_network(1024, 1920).edges == 62_914_560


@pytest.mark.parametrize(
    ("neurons", "layers", "message"),
    [
        (1000, 120, "networks of 1024, 4096, 16384, 65536 neurons, found 1000"),
        (1024, 0, "1 to 1920 layers .* found 0"),
        (1024, 1921, "1 to 1920 layers .* found 1921"),
    ],
)
def test_unknown_networks_are_refused_at_once(neurons: int, layers: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        graph_challenge_layers(neurons, layers)


def test_inputs_need_a_square() -> None:
    with pytest.raises(InputError, match=r"square number of neurons .* found 1000"):
        graph_challenge_inputs(1000, np.ones((1, 28, 28), np.uint8))
    assert set(OFFICIAL_BIAS) == set(OFFICIAL_NONZEROS)


@pytest.fixture(scope="module")
def official_inputs(mnist_folder: Path) -> InputSet:
    images, _ = load_mnist(mnist_folder)
    if not is_original_mnist(images):
        pytest.skip(f"{mnist_folder} has other images than the original MNIST")
    return graph_challenge_inputs(1024, images)


@pytest.mark.mnist
def test_official_inputs_of_1024(official_inputs: InputSet, mnist_folder: Path) -> None:
    assert official_inputs.nnz == OFFICIAL_NONZEROS[1024]
    assert official_inputs.n_images == 60_000
    assert official_inputs.n_features == 1024
    assert official_inputs.indices.dtype == np.uint16
    assert official_inputs.values is None
    assert official_inputs.name == "graph-challenge:1024"
    official_inputs._check()
    some = graph_challenge_inputs(1024, load_mnist(mnist_folder)[0], limit=1001)
    assert np.array_equal(some.indptr, official_inputs.indptr[:1002])
    assert np.array_equal(some.indices, official_inputs.indices[: some.nnz])


@pytest.mark.mnist
def test_official_inputs_of_4096(official_inputs: InputSet, mnist_folder: Path) -> None:
    made = graph_challenge_inputs(4096, load_mnist(mnist_folder)[0])
    assert made.nnz == OFFICIAL_NONZEROS[4096]


@pytest.mark.mnist
def test_official_answer_of_1024_120(official_inputs: InputSet, official_categories: Path) -> None:
    """Inputs and network together: the images that survive are the official ones."""
    network = graph_challenge_network(1024, 120)
    alive = []
    for first in range(0, 60_000, 4000):
        y = official_inputs.columns(first, first + 4000).to_dense()
        ids = np.arange(first, first + 4000)
        for layer in network:
            y = np.clip(layer.weight @ y + layer.bias[:, None], 0, 32)
            lit = y.any(axis=0)
            y, ids = np.ascontiguousarray(y[:, lit]), ids[lit]
        alive.append(ids + 1)
    expected = np.loadtxt(official_categories, dtype=np.int64, ndmin=2)[:, 0]
    assert np.array_equal(np.concatenate(alive), expected)
