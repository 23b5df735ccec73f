"""RadiX-Net: the defining property (equally many paths), the formulas, and the error lines."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.datasets import radix_net, radix_net_layers
from sparsednn.errors import InputError, SparseDNNError, UsageError
from sparsednn.network import SparseLayer, SparseNetwork


def pattern(layer: SparseLayer) -> np.ndarray[Any, Any]:
    """0/1 matrix (n_out, n_in); Python integers, since paths outgrow 64 bits."""
    dense = np.zeros(layer.shape, object)
    for row in range(layer.n_out):
        dense[row, layer.indices[layer.indptr[row] : layer.indptr[row + 1]]] = 1
    return dense


def paths(network: SparseNetwork) -> np.ndarray[Any, Any]:
    """Number of paths from each input (column) to each output (row)."""
    return reduce(
        lambda product, layer: pattern(layer).dot(product),
        network,
        np.eye(network.n_in, dtype=int).astype(object),
    )


def naive(radices: list[list[int]], widths: list[int]) -> list[np.ndarray[Any, Any]]:
    """The paper's matrices (rows = from), written as in the paper: sums of cyclic shifts."""
    nodes = math.prod(radices[0])
    shift = np.roll(np.eye(nodes, dtype=int), 1, axis=1)  # node j to node j + 1
    matrices: list[np.ndarray[Any, Any]] = []
    for radix_list in radices:
        place = 1
        for radix in radix_list:
            small = sum(np.linalg.matrix_power(shift, t * place) for t in range(radix))
            i = len(matrices)
            matrices.append(np.kron(np.ones((widths[i], widths[i + 1]), int), small))
            place *= radix
    return matrices


@st.composite
def topologies(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    """Radix lists of one product (the last of several: a divisor of it), and widths."""
    primes = draw(st.lists(st.sampled_from([2, 2, 3, 5]), min_size=1, max_size=4))
    if math.prod(primes) > 60:
        primes = primes[:2]

    def grouped(factors: list[int]) -> list[int]:
        radices: list[int] = []
        for factor in draw(st.permutations(factors)):
            if radices and draw(st.booleans()):
                radices[-1] *= factor
            else:
                radices.append(factor)
        return radices

    radices = [grouped(primes) for _ in range(draw(st.integers(1, 3)))]
    if len(radices) > 1:
        radices[-1] = grouped(primes[: draw(st.integers(1, len(primes)))])
    layers = sum(map(len, radices))
    widths = draw(st.lists(st.integers(1, 3), min_size=layers + 1, max_size=layers + 1))
    return radices, widths


@settings(max_examples=60, deadline=None)
@given(topologies(), st.sampled_from(["none", "lists"]), st.integers(0, 99))
def test_every_input_reaches_every_output_by_equally_many_paths(
    topology: tuple[list[list[int]], list[int]], permute: Any, seed: int
) -> None:
    radices, widths = topology
    network = radix_net(radices, widths=widths, permute=permute, seed=seed)
    nodes = math.prod(radices[0])
    expected = math.prod(widths[1:-1]) * math.prod(map(math.prod, radices)) // nodes
    assert expected > 0
    assert np.all(paths(network) == expected)


@settings(max_examples=60, deadline=None)
@given(topologies(), st.sampled_from(["none", "lists", "layers"]), st.integers(0, 99))
def test_layers_are_valid_and_have_the_formulas_shape_and_nonzeros(
    topology: tuple[list[list[int]], list[int]], permute: Any, seed: int
) -> None:
    radices, widths = topology
    nodes = math.prod(radices[0])
    flat = [radix for radix_list in radices for radix in radix_list]
    layers = list(radix_net_layers(radices, widths=widths, permute=permute, seed=seed))
    assert len(layers) == len(flat)
    for i, (layer, radix) in enumerate(zip(layers, flat, strict=True)):
        SparseLayer(layer.indptr, layer.indices, layer.values, layer.n_in)  # checks everything
        assert layer.shape == (widths[i + 1] * nodes, widths[i] * nodes)
        assert layer.nnz == widths[i] * widths[i + 1] * nodes * radix
        assert np.all(np.diff(layer.indptr) == widths[i] * radix)
        assert np.all(np.bincount(layer.indices) == widths[i + 1] * radix)


@settings(max_examples=40, deadline=None)
@given(topologies())
def test_unpermuted_layers_are_the_papers_transposed(
    topology: tuple[list[list[int]], list[int]],
) -> None:
    radices, widths = topology
    for layer, matrix in zip(
        radix_net_layers(radices, widths=widths), naive(*topology), strict=True
    ):
        assert np.array_equal(layer.weight.toarray(), matrix.T)


def test_a_node_is_connected_with_itself_and_those_behind_it() -> None:
    """Orientation: input 0 reaches the outputs 0 and 1, so output 0 has the inputs 0 and 5."""
    first, second = radix_net([[2, 3]])
    assert first.indices[:2].tolist() == [0, 5]
    assert first.indices[2:4].tolist() == [0, 1]
    assert second.indices[:3].tolist() == [0, 2, 4]


def test_permutations_depend_on_seed_and_place() -> None:
    def indices(permute: Any, seed: int) -> list[list[int]]:
        net = radix_net([[2, 2, 2], [2, 4]], widths=[2] * 6, permute=permute, seed=seed)
        return [layer.indices.tolist() for layer in net]

    plain = indices("none", 0)
    lists = indices("lists", 1)
    assert [a == b for a, b in zip(plain, lists, strict=True)] == [True] * 3 + [False, True]
    assert [a == b for a, b in zip(plain, indices("layers", 1), strict=True)] == [True] + [
        False
    ] * 4
    assert indices("lists", 1) == lists
    assert indices("lists", 2) != lists


def test_weights_bias_and_activation() -> None:
    network = radix_net([[4, 4]], weight=0.25, bias=-0.5, activation="clamped_relu:32", name="x")
    assert network.name == "x"
    for layer in network:
        assert np.all(layer.values == np.float32(0.25))
        assert np.all(layer.bias == np.float32(-0.5))
        assert str(layer.activation) == "clamped_relu:32.0"


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_random_weights_have_the_variance_two_over_fan_in(kind: Any) -> None:
    (layer,) = radix_net([[64]], widths=[4, 4], weight=kind, seed=3)
    assert layer.values.dtype == np.float32
    assert np.mean(layer.values) == pytest.approx(0, abs=0.003)
    assert np.var(layer.values) == pytest.approx(2 / 256, rel=0.02)
    (again,) = radix_net([[64]], widths=[4, 4], weight=kind, seed=3)
    assert np.array_equal(layer.values, again.values)
    (other,) = radix_net([[64]], widths=[4, 4], weight=kind, seed=4)
    assert not np.array_equal(layer.values, other.values)


@pytest.mark.parametrize(
    ("radices", "options", "error", "message"),
    [
        ([], {}, InputError, "at least one list"),
        ([[]], {}, InputError, "radix list 1 is empty"),
        ([[2, 2], []], {}, InputError, "radix list 2 is empty"),
        ([[2, 1]], {}, InputError, "radix list 1: radices .* found 1"),
        ([[2, 2.0]], {}, InputError, "found 2.0"),
        ([[2, 2], [2], [4]], {}, InputError, "list 2 has the product 2, list 1 has 4.*equal"),
        ([[2, 2], [3]], {}, InputError, "list 2 has the product 3, list 1 has 4.*divide"),
        ([[2, 2]], {"widths": [1, 1]}, InputError, "2 layers, which need 3 widths, found 2"),
        ([[2, 2]], {"widths": [1, 0, 1]}, InputError, "width 1.*found 0"),
        ([[2, 2]], {"widths": [1, 1.5, 1]}, InputError, "width 1.*found 1.5"),
        ([[2, 2]], {"widths": [1, 2**29, 1]}, InputError, "more than 2.31 - 1"),
        ([[2]], {"weight": math.nan}, InputError, "weight .* found nan"),
        ([[2]], {"weight": 1e300}, InputError, "weight .* found 1e.300"),
        ([[2]], {"weight": "heavy"}, UsageError, "normal, uniform: 'heavy'"),
        ([[2]], {"bias": math.inf}, InputError, "bias .* found inf"),
        ([[2]], {"activation": "swish"}, InputError, "unknown activation 'swish'"),
        ([[2]], {"permute": "rows"}, UsageError, "none, lists, layers: 'rows'"),
        ([[2]], {"seed": -1}, UsageError, "found -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_before_the_first_layer(
    radices: Any, options: dict[str, Any], error: type[SparseDNNError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        radix_net_layers(radices, **options)
    assert "\n" not in str(caught.value)
