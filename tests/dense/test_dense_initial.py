"""Initial parameters of networks: any block equals the same block of the whole."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.initial import initial_block, initial_parameters, normal_block
from sparsednn.dense.networks import make_network
from sparsednn.dense.operations import BatchNorm, Convolution, Input, Relu
from sparsednn.errors import InputError, ShapeError, UsageError
from sparsednn.initial import normal_numbers, sequence_key

shapes = st.lists(st.integers(1, 7), min_size=1, max_size=4).map(tuple)


@settings(max_examples=80, deadline=None)
@given(shape=shapes, data=st.data(), seed=st.integers(0, 2**64 - 1))
def test_a_block_is_that_of_the_whole(shape: Any, data: st.DataObject, seed: int) -> None:
    whole = normal_block(seed, "conv.weight", shape, None, 0.3)
    block: list[Any] = []
    indices = []
    for size in shape:
        if data.draw(st.booleans()):
            first = data.draw(st.integers(0, size))
            block.append(slice(first, data.draw(st.integers(first, size))))
            indices.append(np.arange(size)[block[-1]])
        else:
            chosen = data.draw(st.lists(st.integers(0, size - 1), max_size=9))
            block.append(np.array(chosen, np.int32))
            indices.append(np.array(chosen, np.int64))
    mine = normal_block(seed, "conv.weight", shape, block, 0.3)
    assert mine.dtype == np.float32
    assert mine.flags.c_contiguous
    np.testing.assert_array_equal(mine, whole[np.ix_(*indices)])


@pytest.mark.parametrize("shape", [(20_000,), (3, 9000), (9000, 3), (5, 40, 3, 100), (1, 1, 1, 1)])
def test_large_and_small_arrays_are_what_the_definition_says(shape: tuple[int, ...]) -> None:
    """Entry i of an array called `name`: normal number i of the sequence of SHA-256(name)."""
    number = int.from_bytes(hashlib.sha256(b"some.weight").digest()[:8], "little")
    size = int(np.prod(shape))
    drawn = normal_numbers(sequence_key(9, number), np.arange(size, dtype=np.uint64)) * 0.25
    expected = drawn.astype(np.float32).reshape(shape)
    np.testing.assert_array_equal(normal_block(9, "some.weight", shape, None, 0.25), expected)
    wide = normal_block(9, "some.weight", shape, None, 0.25, np.float64)
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(wide, expected.astype(np.float64))


def test_every_parameter_of_a_network() -> None:
    graph = make_network("resnet20", (3, 8, 8), 5)
    arrays = initial_parameters(graph, seed=3)
    assert list(arrays) == list(graph.parameters)
    for name, parameter in graph.parameters.items():
        array = arrays[name]
        assert array.shape == parameter.shape
        assert array.dtype == np.float32
        kind = name.rpartition(".")[2]
        if parameter.initial == "normal":
            gain = 1 if name == "fc.weight" else 2
            assert kind == "weight"
            z = array * np.sqrt(parameter.fan_in / gain)
            assert abs(z.mean()) < 5 / np.sqrt(z.size)
            assert abs(z.std() - 1) < 5 / np.sqrt(2 * z.size)
        elif kind == "running_var" or (kind == "weight" and array.ndim == 1):
            assert (array == 1).all()
        else:
            assert kind in ("bias", "running_mean")
            assert (array == 0).all()
    part = initial_block(graph, "bn1.weight", [np.array([3, 1, 3])], seed=3, dtype=np.float64)
    np.testing.assert_array_equal(part, [1.0, 1.0, 1.0])
    assert part.dtype == np.float64
    block = [slice(3, 9), slice(5), slice(1, 2), slice(None)]
    part = initial_block(graph, "layer2.0.conv1.weight", block, seed=3)
    np.testing.assert_array_equal(part, arrays["layer2.0.conv1.weight"][3:9, :5, 1:2])


def test_names_and_seeds_give_other_numbers_that_are_unrelated() -> None:
    here = normal_block(1, "a.weight", (50, 40), None, 1.0).ravel()
    for seed, name in ((2, "a.weight"), (1, "b.weight")):
        other = normal_block(seed, name, (50, 40), None, 1.0).ravel()
        assert abs(np.corrcoef(here, other)[0, 1]) < 4 / np.sqrt(2000)
    np.testing.assert_array_equal(here, normal_block(1, "a.weight", (2000,), None, 1.0))


def test_the_gain_is_that_of_what_follows() -> None:
    """2 where a ReLU comes before the next product, even behind a normalisation; else 1."""
    graph = OperationGraph("n")
    at = graph.add(Input("image", (8, 9, 9)))
    for name in ("a", "b", "c"):
        at = graph.add(Convolution(name, 64, (3, 3)), at)
        if name == "b":
            at = graph.add(Relu("relu"), graph.add(BatchNorm("bn"), at))
    graph.finish()
    spread = {
        name: float(initial_block(graph, f"{name}.weight").std())
        * np.sqrt(graph.parameter(f"{name}.weight").fan_in)
        for name in ("a", "b", "c")
    }
    assert spread["a"] == pytest.approx(1, rel=0.05)
    assert spread["b"] == pytest.approx(np.sqrt(2), rel=0.05)
    assert spread["c"] == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize(
    ("block", "text"),
    [
        ([slice(None)] * 3, "a block of 3 axes, it has 4"),
        ([slice(0, 7), slice(None), slice(None), slice(None)], "a block to 7, axis 0 ends at 6"),
        ([np.array([6]), slice(1), slice(1), slice(1)], "axis 0 is out of range for 6"),
        ([np.array([-1]), slice(1), slice(1), slice(1)], "axis 0 is out of range for 6"),
        ([np.array([0.5]), slice(1), slice(1), slice(1)], "found float64 of shape"),
        ([slice(1), np.zeros((1, 1), int), slice(1), slice(1)], "along axis 1 should be a list"),
    ],
)
def test_blocks_that_are_none(block: Any, text: str) -> None:
    graph = make_network("lenet5")
    with pytest.raises(ShapeError, match=text) as caught:
        initial_block(graph, "conv1.weight", block)
    assert "'conv1.weight'" in str(caught.value)


def test_unknown_names_and_seeds_out_of_range() -> None:
    graph = make_network("lenet5")
    with pytest.raises(InputError, match=r"network lenet5: there is no parameter 'conv9\.weight'"):
        initial_block(graph, "conv9.weight")
    for seed in (-1, 2**64):
        with pytest.raises(UsageError, match="a seed is a whole number"):
            initial_block(graph, "conv1.weight", seed=seed)
