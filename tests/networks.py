"""Random networks and inputs for property tests: odd sizes, empty rows, shared patterns."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import strategies as st

from sparsednn import InputSet, SparseLayer, SparseNetwork

ACTIVATIONS = ("identity", "relu", "clamped_relu:1.5", "sigmoid", "tanh")


def random_layer(
    rng: np.random.Generator,
    n_out: int,
    n_in: int,
    *,
    density: float = 0.3,
    shared: float = 0.5,
    activation: str = "relu",
    bias: str = "mixed",
) -> SparseLayer:
    """A layer in which about `shared` of the rows repeat the column pattern of another row."""
    mask = rng.random((n_out, n_in)) < density
    for row in range(1, n_out):
        if rng.random() < shared:
            mask[row] = mask[rng.integers(row)]
    rows, columns = np.nonzero(mask)
    indptr = np.zeros(n_out + 1, np.int64)
    np.cumsum(mask.sum(axis=1), out=indptr[1:])
    values = rng.standard_normal(rows.size).astype(np.float32)
    offsets = rng.standard_normal(n_out).astype(np.float32)
    chosen = {"mixed": offsets, "negative": -np.abs(offsets), "zero": np.zeros(n_out, np.float32)}
    return SparseLayer(indptr, columns, values, n_in, bias=chosen[bias], activation=activation)


@st.composite
def networks(
    draw: st.DrawFn, *, last: tuple[str, ...] = (*ACTIVATIONS, "softmax")
) -> SparseNetwork:
    """Networks of one to five layers, one to forty neurons wide."""
    widths = draw(st.lists(st.integers(1, 40), min_size=2, max_size=6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.05, 0.3, 1.0]))
    shared = draw(st.sampled_from([0.0, 0.5, 1.0]))
    layers = []
    for index, (n_in, n_out) in enumerate(pairwise(widths)):
        kinds = last if index == len(widths) - 2 else ACTIVATIONS
        layers.append(
            random_layer(
                rng,
                n_out,
                n_in,
                density=density,
                shared=shared,
                activation=draw(st.sampled_from(kinds)),
                bias=draw(st.sampled_from(["mixed", "negative", "zero"])),
            )
        )
    return SparseNetwork(layers)


@st.composite
def input_sets(draw: st.DrawFn, n_features: int, *, most: int = 150) -> InputSet:
    """Sparse inputs, with and without stored values, narrow and wide indices, dead columns."""
    images = draw(st.integers(0, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.0, 0.1, 0.9]))
    mask = rng.random((images, n_features)) < density
    _, features = np.nonzero(mask)
    indptr = np.zeros(images + 1, np.int64)
    np.cumsum(mask.sum(axis=1), out=indptr[1:])
    values = None
    if draw(st.booleans()):
        values = rng.standard_normal(features.size).astype(np.float32)
    index_type = draw(st.sampled_from([np.uint16, np.int32]))
    return InputSet(indptr, features.astype(index_type), values, n_features)
