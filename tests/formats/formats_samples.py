"""Random and hand-made networks for the tests of the formats."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from sparsednn import InputSet, SparseLayer, SparseNetwork
from sparsednn.inference import infer

SPECIAL = np.array(
    [0.0, -0.0, 1.0, 1 / 16, 1e-45, -1.1754944e-38, 3.4028235e38, 16777216.0, 2**-11, 0.1],
    np.float32,
)


def values(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """Mostly ordinary numbers, and those that text formats get wrong."""
    plain = rng.standard_normal(size) * 10.0 ** rng.integers(-30, 30, size)
    return np.where(rng.random(size) < 0.3, rng.choice(SPECIAL, size), plain.astype(np.float32))


def layer(
    rng: np.random.Generator, n_out: int, n_in: int, density: float, activation: str = "relu"
) -> SparseLayer:
    kept = rng.random((n_out, n_in)) < density
    return SparseLayer(
        np.concatenate(([0], np.cumsum(kept.sum(axis=1)))),
        np.nonzero(kept)[1],
        values(rng, int(kept.sum())),
        n_in,
        bias=values(rng, n_out) if rng.random() < 0.5 else values(rng, 1)[0],
        activation=activation,
    )


@st.composite
def networks(draw: st.DrawFn) -> SparseNetwork:
    """One to four layers of 1 to 9 neurons, from empty to full."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    inner = ["relu", "identity", "tanh", "sigmoid", "clamped_relu:32", "clamped_relu:0.1"]
    made = []
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        kinds = [*inner, "softmax"] if k == len(widths) - 2 else inner
        density = draw(st.sampled_from([0.0, 0.2, 0.7, 1.0]))
        made.append(layer(rng, n_out, n_in, density, draw(st.sampled_from(kinds))))
    return SparseNetwork(made, name=draw(st.sampled_from(["net", "é ü", 'quo"te'])))


@st.composite
def challenge_networks(draw: st.DrawFn) -> SparseNetwork:
    """What a Graph Challenge folder can hold; the bias is -0.25."""
    neurons = draw(st.integers(1, 9))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    made = []
    for _ in range(draw(st.integers(1, 3))):
        raw = layer(rng, neurons, neurons, draw(st.sampled_from([0.0, 0.3, 1.0])))
        made.append(
            SparseLayer(
                raw.indptr,
                raw.indices,
                raw.values,
                neurons,
                bias=-0.25,
                activation="clamped_relu:32",
            )
        )
    return SparseNetwork(made)


@st.composite
def input_sets(draw: st.DrawFn) -> InputSet:
    """One to eight features and images, with ones or other values, the last image not empty."""
    n_features, n_images = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    kept = rng.random((n_images, n_features)) < draw(st.sampled_from([0.1, 0.5, 1.0]))
    kept[-1, -1] = True
    nnz = int(kept.sum())
    data = None if draw(st.booleans()) else values(rng, nnz)
    return InputSet(
        np.concatenate(([0], np.cumsum(kept.sum(axis=1)))), np.nonzero(kept)[1], data, n_features
    )


def small_network() -> SparseNetwork:
    """3 inputs, 2 hidden neurons, 1 output."""
    return SparseNetwork(
        [
            SparseLayer(
                [0, 2, 3], [0, 2, 1], [1.5, -2.0, 0.5], 3, bias=[0.1, 0.2], activation="relu"
            ),
            SparseLayer([0, 1], [1], [4.0], 2, bias=-1.0),
        ],
        name="small",
    )


def outputs(network: SparseNetwork, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """What our inference gives for samples ``(batch, n_in)``, as ``(batch, n_out)``."""
    found = np.zeros((network.n_out, len(x)), np.float32)

    def keep(first: int, block: NDArray[np.float32]) -> None:
        found[:, first : first + block.shape[1]] = block

    infer(network, InputSet.from_dense(x.reshape(len(x), -1).T), kernel="reference", sink=keep)
    return found.T


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())
