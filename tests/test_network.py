"""Layers, networks, inputs and activations: what they accept, what they reject, what they hash."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array

from networks import input_sets, networks
from sparsednn import Activation, InputSet, SparseLayer, SparseNetwork
from sparsednn.errors import InputError, ShapeError


def layer(n_out: int, n_in: int, activation: str = "relu") -> SparseLayer:
    return SparseLayer(np.zeros(n_out + 1), [], [], n_in, activation=activation)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"indptr": [0, 1, 3]}, "indptr runs from 0 to 3, but there are 4 nonzeros"),
        ({"indptr": [0, 3, 1, 4]}, "indptr must not descend"),
        ({"indptr": [0]}, "indptr must have n_out + 1 >= 2 entries"),
        ({"n_in": 0}, "at least one input neuron, found 0"),
        ({"n_in": 2**31}, "at most 2^31 - 1 input neurons"),
        ({"indices": [0, 2, 1]}, "indices (3,) and values (4,) must be flat and equally long"),
        ({"indices": [0, 2, 1, 3]}, "row 1: column 3 is out of range for 3"),
        ({"indices": [0, 2, -1, 2]}, "row 1: column -1 is out of range for 3"),
        ({"indices": [0, 2, 1, 2**40]}, f"column {2**40} is out of range for 3"),
        ({"indices": [0, 2, 1, 1]}, "row 1: column 1 is there twice"),
        ({"indices": [2, 0, 1, 2]}, "row 0: column 0 stands behind column 2"),
        ({"values": [1, 2, np.nan, 4]}, "weight (1, 1) is nan: it must be finite"),
        ({"values": [1, np.inf, 3, 4]}, "weight (0, 2) is inf: it must be finite"),
        ({"bias": [0.0, np.nan]}, "bias of row 1 is nan: it must be finite"),
        ({"bias": [0.0]}, "bias has shape (1,), the layer has 2 rows"),
        ({"activation": "gelu"}, "unknown activation 'gelu'"),
        ({"activation": "clamped_relu"}, "needs a positive finite limit, found None"),
        ({"activation": "clamped_relu:-1"}, "needs a positive finite limit, found -1.0"),
        ({"activation": "clamped_relu:x"}, "'x' is not a number"),
        ({"activation": "tanh:3"}, "activation tanh takes no limit"),
    ],
)
def test_a_wrong_layer_is_rejected_in_one_line(change: dict[str, object], message: str) -> None:
    good: dict[str, object] = {
        "indptr": [0, 2, 4],
        "indices": [0, 2, 1, 2],
        "values": [1, 2, 3, 4],
        "n_in": 3,
    }
    SparseLayer(**good)
    with pytest.raises(InputError) as caught:
        SparseLayer(**(good | change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_may_be_empty_at_either_end() -> None:
    made = SparseLayer([0, 0, 2, 2, 3, 3], [1, 2, 0], [1, 2, 3], 3)
    np.testing.assert_array_equal(
        made.weight.toarray(), [[0, 0, 0], [0, 1, 2], [0, 0, 0], [3, 0, 0], [0, 0, 0]]
    )


def test_from_scipy_sorts_and_refuses_duplicates() -> None:
    unsorted = coo_array(([1.0, 2.0, 3.0], ([0, 0, 1], [2, 0, 1])), shape=(2, 3))
    assert SparseLayer.from_scipy(unsorted).indices.tolist() == [0, 2, 1]
    from scipy.sparse import csr_array

    twice = csr_array(([1.0, 2.0], [1, 1], [0, 2]), shape=(1, 3))
    with pytest.raises(InputError, match="row 0: column 1 is there twice"):
        SparseLayer.from_scipy(twice)
    both = coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(1, 3))
    with pytest.raises(InputError, match="1 entries of the matrix are there twice"):
        SparseLayer.from_scipy(both)
    with pytest.raises(InputError, match="x: 1 entries are there twice"):
        InputSet.from_scipy(both, name="x")


def test_layers_must_chain() -> None:
    with pytest.raises(ShapeError, match=r"layer 2 has shape \(5, 3\).*layer 3 has shape \(2, 4\)"):
        SparseNetwork([layer(3, 2), layer(5, 3), layer(2, 4)], name="n")
    with pytest.raises(ShapeError, match="network 'n' has no layers"):
        SparseNetwork([], name="n")
    with pytest.raises(InputError, match="softmax in layer 1 of 2"):
        SparseNetwork([layer(3, 2, "softmax"), layer(5, 3)])


def test_droppable_from_is_the_zero_keeping_tail() -> None:
    positive = SparseLayer([0, 0], [], [], 1, bias=0.5, activation="relu")
    negative = SparseLayer([0, 0], [], [], 1, bias=-0.5, activation="relu")
    assert SparseNetwork([negative, negative]).droppable_from == 0
    assert SparseNetwork([positive, negative]).droppable_from == 1
    assert SparseNetwork([negative, positive]).droppable_from == 2


@pytest.mark.parametrize(
    ("activation", "bias", "keeps"),
    [
        ("relu", [-1.0, 0.0], True),
        ("relu", [-1.0, 1e-9], False),
        ("clamped_relu:32", [-0.3, -0.3], True),
        ("identity", [0.0, 0.0], True),
        ("identity", [0.0, -1.0], False),
        ("tanh", [0.0, 0.0], True),
        ("sigmoid", [0.0, 0.0], False),
        ("softmax", [0.0, 0.0], False),
    ],
)
def test_keeps_zero(activation: str, bias: list[float], keeps: bool) -> None:
    made = SparseLayer([0, 0, 0], [], [], 1, bias=bias, activation=activation)
    assert made.keeps_zero is keeps
    zeros = made.activation.apply(np.repeat(made.bias[:, None], 3, axis=1))
    assert (not zeros.any()) is keeps


@given(text=st.sampled_from(["identity", "relu", "sigmoid", "tanh", "softmax"]))
def test_written_activations_are_read_back(text: str) -> None:
    assert str(Activation.parse(text)) == text


@given(limit=st.floats(min_value=1e-30, max_value=1e30))
def test_written_limits_are_read_back_exactly(limit: float) -> None:
    made = Activation("clamped_relu", limit)
    assert Activation.parse(str(made)) == made


def test_activations_survive_large_values() -> None:
    z = np.array([[-1e4, 1e4], [0.0, 0.0]], np.float32)
    with np.errstate(all="raise", under="ignore"):
        np.testing.assert_array_equal(Activation("sigmoid").apply(z), [[0, 1], [0.5, 0.5]])
        np.testing.assert_allclose(Activation("softmax").apply(z).sum(axis=0), [1, 1])


@given(network=networks())
@settings(deadline=None, max_examples=30)
def test_hash_sees_every_part(network: SparseNetwork) -> None:
    same = SparseNetwork(
        [
            SparseLayer(
                part.indptr.astype(np.int32),
                part.indices.astype(np.int64),
                part.values.astype(np.float64),
                part.n_in,
                bias=part.bias,
                activation=part.activation,
            )
            for part in network
        ],
        name="another name",
    )
    assert same.hash == network.hash
    first = network[0]
    changes = [
        {"bias": np.nextafter(first.bias, np.float32(9))},
        {"activation": "identity" if str(first.activation) != "identity" else "relu"},
    ]
    if first.nnz:
        changes.append({"values": np.nextafter(first.values, np.float32(9))})
    for change in changes:
        parts = {
            "indptr": first.indptr,
            "indices": first.indices,
            "values": first.values,
            "n_in": first.n_in,
            "bias": first.bias,
            "activation": first.activation,
        } | change
        other = SparseNetwork([SparseLayer(**parts), *network.layers[1:]])
        assert other.hash != network.hash


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_input_sets_convert_and_slice(data: st.DataObject) -> None:
    features = data.draw(st.integers(1, 30))
    inputs = data.draw(input_sets(features, most=40))
    dense = inputs.to_dense()
    assert dense.shape == (features, inputs.n_images)
    np.testing.assert_array_equal(inputs.to_scipy().toarray(), dense)
    np.testing.assert_array_equal(InputSet.from_dense(dense).to_dense(), dense)
    first = data.draw(st.integers(0, inputs.n_images))
    last = data.draw(st.integers(first, inputs.n_images))
    np.testing.assert_array_equal(inputs.columns(first, last).to_dense(), dense[:, first:last])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1], [5], None, 5), "image 0: feature 5 is out of range for 5"),
        (([0, 2], [1, 1], None, 5), "image 0: feature 1 is there twice"),
        (([0, 0, 1], [1], [np.nan], 5), "image 1, feature 1 is nan: it must be finite"),
        (
            ([0, 1], [1], [1.0, 2.0], 5),
            "indices (1,) and values (2,) must be flat and equally long",
        ),
        (([0, 2], [1], None, 5), "indptr runs from 0 to 2, but there are 1 nonzeros"),
        (([0, 2, 1], [1], None, 5), "indptr must not descend"),
        (([0, 1], [2**33], None, 5), f"feature {2**33} is out of range"),
    ],
)
def test_wrong_inputs_are_rejected_in_one_line(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        InputSet(*arguments, name="x.tsv")
    assert str(caught.value).startswith("x.tsv: ")
    assert message in str(caught.value)
