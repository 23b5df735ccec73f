"""Initial weights: their distribution, and that each depends on its own place only."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn import initial
from sparsednn.activations import Activation
from sparsednn.errors import ShapeError, SparseDNNError, UsageError
from sparsednn.initial import initial_values

RELU = Activation("relu")
Array = np.ndarray[Any, Any]


def values_of(dense: Array, rows: Array | None = None, **other: Any) -> Array:
    """Initial values of a 0/1 pattern's rows (all if None), as a rank would ask for them."""
    rows = np.arange(len(dense)) if rows is None else rows
    mine = dense[rows]
    counts = mine.sum(axis=1)
    given = {"method": "auto", "layer_index": 2, "activation": RELU, "seed": 5} | other
    return initial_values(
        rows=rows,
        indptr=np.concatenate([[0], np.cumsum(counts)]),
        indices=np.nonzero(mine)[1].astype(np.int32),
        fan_in_of_rows=counts,
        n_out=dense.shape[0],
        n_in=dense.shape[1],
        **given,
    )


def full(n_out: int, n_in: int) -> Array:
    return np.ones((n_out, n_in), np.int64)


def pure_python(seed: int, layer: int, row: int, column: int) -> float:
    """The definition: splitmix64, then Box-Muller with the functions of the C library."""
    mask, gamma = 2**64 - 1, 0x9E3779B97F4A7C15

    def mixed(state: int) -> int:
        state &= mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        return state ^ (state >> 31)

    key = mixed(mixed(seed + gamma) + gamma * (layer + 1))
    entry = row << 32 | column
    first = ((mixed(key + gamma * (2 * entry + 1)) >> 11) + 1) / 2**53
    second = (mixed(key + gamma * (2 * entry + 2)) >> 11) / 2**53
    return float(np.sqrt(-2 * np.log(first)) * np.cos(2 * np.pi * second))


def test_splitmix64_gives_the_published_numbers() -> None:
    """The first outputs for the seed 1234567, as in the tests of other implementations."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + gamma * k) % 2**64 for k in (1, 2, 3)], np.uint64)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [initial._mixed(int(state)) for state in states] == expected
    assert initial._mix(states).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    layer=st.integers(0, 2000),
    row=st.integers(0, 2**31 - 2),
    column=st.integers(0, 2**31 - 2),
)
def test_a_value_is_what_the_definition_says(seed: int, layer: int, row: int, column: int) -> None:
    value = initial_values(
        "he",
        layer,
        np.array([row]),
        np.array([0, 1]),
        np.array([column], np.int32),
        np.array([2]),  # the deviation is 1
        2**31 - 1,
        2**31 - 1,
        RELU,
        seed,
    )
    assert value.dtype == np.float32
    expected = pure_python(seed, layer, row, column)
    assert value[0] == pytest.approx(expected, rel=1e-6, abs=1e-10)


def test_logarithm_and_cosine() -> None:
    x = np.concatenate([np.random.default_rng(0).random(10_000), 2.0 ** -np.arange(54), [1 - 1e-9]])
    assert np.allclose(initial._log(x), np.log(x), rtol=1e-12, atol=1e-25)
    assert np.all(initial._log(x) <= 0)
    assert np.allclose(initial._cosine(x), np.cos(2 * np.pi * x), rtol=0, atol=1e-12)


def test_mean_deviation_and_shape_are_those_of_the_normal_distribution() -> None:
    values = values_of(full(512, 512), method="glorot").astype(np.float64) * np.sqrt(512)
    sigma = 1 / np.sqrt(values.size)
    assert abs(values.mean()) < 4 * sigma
    assert abs(values.var() - 1) < 4 * np.sqrt(2) * sigma
    assert abs((values**3).mean()) < 4 * np.sqrt(15) * sigma
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96) * sigma
    for threshold, share in ((1.0, 0.158655), (2.0, 0.022750), (3.0, 0.001350)):
        for tail in (values > threshold, values < -threshold):
            assert abs(tail.mean() - share) < 4 * np.sqrt(share) * sigma


def test_neighbours_layers_and_seeds_are_uncorrelated() -> None:
    here = values_of(full(256, 256)).reshape(256, 256)
    for other in (
        np.roll(here, 1, axis=0),
        np.roll(here, 1, axis=1),
        here.T * (1 - np.eye(256)),
        values_of(full(256, 256), layer_index=3).reshape(256, 256),
        values_of(full(256, 256), seed=6).reshape(256, 256),
    ):
        assert abs(np.corrcoef(here.ravel(), other.ravel())[0, 1]) < 4 / 256


@settings(max_examples=40, deadline=None)
@given(
    pattern=st.integers(0, 2**32),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    parts=st.integers(1, 5),
    block=st.sampled_from([1, 7, 64, 1 << 16]),
)
def test_ranks_get_what_one_rank_would_get(
    pattern: int, shape: tuple[int, int], parts: int, block: int
) -> None:
    """However rows are divided and ordered, whatever the block size, empty rows and ranks too."""
    random = np.random.default_rng(pattern)
    dense = (random.random(shape) < 0.4).astype(np.int64)
    whole = np.zeros(shape, np.float32)
    whole[dense == 1] = values_of(dense)
    owners = random.integers(parts, size=shape[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "_BLOCK", block)
        for part in range(parts):
            rows = random.permutation(np.flatnonzero(owners == part))
            expected = whole[rows][dense[rows] == 1]
            assert np.array_equal(values_of(dense, rows), expected)


def test_a_value_does_not_depend_on_the_size_of_the_layer_nor_on_other_columns() -> None:
    large = values_of(full(9, 8)).reshape(9, 8)
    small = values_of(full(3, 4)).reshape(3, 4) * np.float32(np.sqrt(4 / 8))
    assert np.allclose(small, large[:3, :4], rtol=1e-6)
    some = initial_values(
        "auto",
        2,
        np.array([4, 7]),
        np.array([0, 2, 3]),
        np.array([6, 1, 3], np.int32),
        np.array([8, 8]),  # only some columns of rows of eight
        9,
        8,
        RELU,
        5,
    )
    assert some.tolist() == [large[4, 6], large[4, 1], large[7, 3]]


@pytest.mark.parametrize("text", ["relu", "clamped_relu:32", "tanh", "sigmoid", "identity"])
def test_auto_is_he_for_relu_and_glorot_for_all_others(text: str) -> None:
    activation = Activation.parse(text)
    auto = values_of(full(4, 50), activation=activation)
    he = values_of(full(4, 50), activation=activation, method="he")
    glorot = values_of(full(4, 50), activation=activation, method="glorot")
    assert np.allclose(he, glorot * np.sqrt(2), rtol=1e-6)
    assert np.array_equal(auto, he if "relu" in text else glorot)
    assert not np.array_equal(he, glorot)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"method": "keep"}, UsageError, "one of auto, he, glorot: 'keep'"),
        ({"seed": -1}, UsageError, "from 0 to 2.64 - 1, found -1"),
        ({"seed": 2**64}, UsageError, "found 18446744073709551616"),
        ({"layer_index": -1}, UsageError, "found -1"),
        ({"rows": np.array([0])}, ShapeError, "layer 3: 1 rows, 2 fan-ins"),
        ({"fan_in_of_rows": np.array([1])}, ShapeError, "2 rows, 1 fan-ins"),
        ({"indptr": np.array([0, 1, 3])}, ShapeError, "do not fit together"),
        ({"rows": np.array([0, 4])}, ShapeError, "a row is out of range for 4"),
        ({"indices": np.array([-1, 0], np.int32)}, ShapeError, "a column is out of range for 5"),
        ({"indices": np.array([5, 0], np.int32)}, ShapeError, "a column is out of range for 5"),
    ],
)
def test_what_is_wrong_is_said(
    changed: dict[str, Any], error: type[SparseDNNError], message: str
) -> None:
    given: dict[str, Any] = {
        "method": "auto",
        "layer_index": 2,
        "rows": np.array([0, 3]),
        "indptr": np.array([0, 1, 2]),
        "indices": np.array([0, 4], np.int32),
        "fan_in_of_rows": np.array([1, 1]),
        "n_out": 4,
        "n_in": 5,
        "activation": RELU,
        "seed": 0,
    }
    assert initial_values(**given).size == 2
    with pytest.raises(error, match=message):
        initial_values(**(given | changed))


def test_import_loads_numpy_only() -> None:
    code = (
        "import sys, sparsednn.initial; "
        "print(*{'numba', 'scipy', 'sklearn', 'mpi4py', 'torch'} & set(sys.modules), "
        "*[name for name in sys.modules if name.startswith('sparsednn.training.')])"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert not run.stdout.strip()
