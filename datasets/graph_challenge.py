"""The official networks and inputs of the Sparse DNN Graph Challenge, made here, not downloaded.

The challenge (graphchallenge.org; Kepner et al., "Sparse Deep Neural Network Graph Challenge",
HPEC 2019) publishes its networks as files, up to 1920 layers of 2 million edges. They are
RadiX-Nets with permuted rows, and the inputs are MNIST images interpolated to the number of
neurons, so both can be made where they are needed. With 1024 neurons the first 120 layers equal
the official files, and the inputs have exactly the official number of nonzeros for every size.
Above 1024 neurons the networks are made in the same way; their permutations were not compared with
the files, but 120 layers leave exactly the official number of images alive (1801, 1918, 1994).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.challenge import ACTIVATION, OFFICIAL_BIAS
from sparsednn.datasets.images import interpolate_images, square_side
from sparsednn.errors import InputError
from sparsednn.inputs import InputSet
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = [
    "OFFICIAL_LAYERS",
    "OFFICIAL_NONZEROS",
    "graph_challenge_inputs",
    "graph_challenge_layers",
    "graph_challenge_name",
    "graph_challenge_network",
    "graph_challenge_rows",
]

OFFICIAL_LAYERS: Final = (120, 480, 1920)
"""The depths that results are published for."""

OFFICIAL_NONZEROS: Final = {1024: 6374505, 4096: 25019051, 16384: 98858913, 65536: 392191985}
"""Nonzeros of the official inputs (60,000 images), by the number of neurons."""

# Copies of the small topology in each layer, in and out: kron(ones(16, 16), ...).
_COPIES: Final = 16
_FAN_IN: Final = 2 * _COPIES
_SEED: Final = 5489
_WEIGHT: Final = 1 / 16


def graph_challenge_layers(neurons: int, layers: int = 120) -> Iterator[SparseLayer]:
    """Make the layers of an official network one at a time.

    In the challenge's notation, where a row-vector of activations is multiplied with ``A`` from the
    right, the layers come in blocks of ``log2 n``, with ``n = neurons / 16``. Layer k of a block is
    ``kron(ones(16, 16), I + roll(I, -2^k, axis=1)) / 16`` with the n × n identity I, and from the
    second block on its rows are permuted, all layers of the block alike:
    ``A[argsort(RandomState.rand(neurons)), :] = base``, from a single RandomState(5489). Ours is
    ``W = A^T``, rows = outputs.

    Parameters
    ----------
    neurons
        1024, 4096, 16384 or 65536.
    layers
        1 to 1920. A shorter network is the beginning of a longer one; 120, 480 and 1920 are the
        official ones.

    Returns
    -------
    iterator of SparseLayer
        ``(neurons, neurons)`` with 32 weights of 1/16 in each row and column, the official bias,
        and clamped_relu:32. All layers share `indptr`, `values` and `bias`, so a layer that is
        kept costs 4 bytes per edge.

    Raises
    ------
    InputError
        If there is no such official network; raised by the call, not by the first layer.
    """
    _check_size(neurons, layers)
    everything: NDArray[np.int32] = np.arange(neurons, dtype=np.int32)
    return _layers(neurons, [everything] * layers)


def graph_challenge_rows(neurons: int, rows: Sequence[NDArray[np.int32]]) -> Iterator[SparseLayer]:
    """Make only some rows of the layers of an official network, one layer at a time.

    Takes as long as making a sixteenth of each layer and copying the rows: outputs that stand for
    the same node of the small topology have the same inputs.

    Parameters
    ----------
    neurons
        As for `graph_challenge_layers`.
    rows
        For each layer, the rows to make: ``(m,)``, in any order, perhaps none.

    Returns
    -------
    iterator of SparseLayer
        ``(m, neurons)``: row r is row ``rows[r]`` of the layer. Layers with equally many rows
        share `indptr`, `values` and `bias`; the others have views on the same memory.

    Raises
    ------
    InputError
        As for `graph_challenge_layers`, with as many layers as `rows` is long.
    """
    _check_size(neurons, len(rows))
    return _layers(neurons, rows)


def _check_size(neurons: int, layers: int) -> None:
    if neurons not in OFFICIAL_BIAS:
        sizes = ", ".join(map(str, OFFICIAL_BIAS))
        raise InputError(f"the Graph Challenge has networks of {sizes} neurons, found {neurons}")
    if not 1 <= layers <= OFFICIAL_LAYERS[-1]:
        raise InputError(
            f"the Graph Challenge has networks of 1 to {OFFICIAL_LAYERS[-1]} layers "
            f"(officially 120, 480, 1920), found {layers}"
        )


def _layers(neurons: int, rows: Sequence[NDArray[np.int32]]) -> Iterator[SparseLayer]:
    n = neurons // _COPIES
    most = max(mine.size for mine in rows)
    indptr = np.arange(most + 1, dtype=np.int64) * _FAN_IN
    values = np.full(most * _FAN_IN, _WEIGHT, np.float32)
    bias = np.full(most, OFFICIAL_BIAS[neurons], np.float32)
    for pattern, mine in zip(_patterns(neurons, len(rows)), rows, strict=True):
        full = mine.size == most  # an array and a view of all of it are not the same object
        yield SparseLayer(
            indptr if full else indptr[: mine.size + 1],
            pattern[mine % n].ravel(),
            values if full else values[: mine.size * _FAN_IN],
            neurons,
            bias=bias if full else bias[: mine.size],
            activation=ACTIVATION,
            check=False,
        )


def _patterns(neurons: int, layers: int) -> Iterator[NDArray[np.int32]]:
    """Make each layer's ``(n, 32)`` ascending inputs of node c: of the outputs c, c + n, …"""
    n = neurons // _COPIES
    per_block = n.bit_length() - 1  # log2: after so many layers of two connections, all n are met
    # MT19937 with this seed is part of the official recipe: a Generator would draw other numbers.
    random = np.random.RandomState(_SEED)
    node = np.arange(n)
    inputs: NDArray[np.int32] = np.arange(neurons, dtype=np.int32)
    for i in range(layers):
        block, k = divmod(i, per_block)
        if block and k == 0:
            inputs = np.argsort(random.rand(neurons)).astype(np.int32)
        # Row c: the inputs that stand for node c, once for each of the 16 copies.
        copies = inputs.reshape(_COPIES, n).T
        # A connects node r with r and r - 2^k, so output c has the inputs c and c + 2^k.
        yield np.sort(np.hstack([copies, copies[(node + (1 << k)) % n]]), axis=1)


def graph_challenge_name(neurons: int, layers: int) -> str:
    """Return the name of an official network, such as ``graph-challenge:1024-120``."""
    return f"graph-challenge:{neurons}-{layers}"


def graph_challenge_network(neurons: int, layers: int = 120) -> SparseNetwork:
    """Make an official network, named like ``graph-challenge:1024-120``.

    Parameters, errors and what is shared between the layers: as for `graph_challenge_layers`.
    Takes 4 bytes per edge: 16 MB for 1024-120, 252 MB for 1024-1920, 16 GB for 65536-1920.

    Examples
    --------
    >>> graph_challenge_network(1024, 120)
    SparseNetwork('graph-challenge:1024-120', 120 layers, 1024 -> 1024, edges=3932160)
    """
    made = list(graph_challenge_layers(neurons, layers))
    return SparseNetwork(made, name=graph_challenge_name(neurons, layers))


def graph_challenge_inputs(
    neurons: int, images: NDArray[np.uint8], *, limit: int | None = None
) -> InputSet:
    """Make the challenge's inputs of the 60,000 MNIST training images (or of any others).

    Parameters
    ----------
    neurons
        1024, 4096, 16384, 65536, or the square of any other side that is not smaller than the
        images.
    images
        ``(n, h, w)`` uint8; the official inputs are made of the first array that
        ``load_mnist(split="train")`` returns, in full.
    limit
        Return the first `limit` images of the same set only.

    Returns
    -------
    InputSet
        Named like ``graph-challenge:1024``; see `interpolate_images` for the recipe, the order of
        the features, and the memory. `OFFICIAL_NONZEROS` has the counts to expect.

    Raises
    ------
    InputError
        If `neurons` is not a square, or as `interpolate_images`.
    """
    side = square_side(neurons)
    return interpolate_images(images, side, limit=limit, name=f"graph-challenge:{neurons}")
