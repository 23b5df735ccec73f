"""Initial weights that every rank can make for its own rows.

A weight depends on the seed, the layer, its row and its column (both global), and on the number of
weights in its row: on nothing else, so neither ranks nor the order of rows change it. Each entry
takes two numbers of its own out of a counter-based random sequence, splitmix64 (G. Steele, D. Lea,
C. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), and makes a normal number
of them (G. Box, M. Muller, Ann. Math. Stat. 29, 1958).

Only additions, multiplications, divisions and square roots of float64 are used, which IEEE 754
defines to the last bit: logarithms and cosines of NumPy differ in it between processors, and a
network by name would have another content hash there.

This module knows arrays only: no network, no data set, no rank.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.errors import ShapeError, UsageError

__all__ = ["METHODS", "initial_values", "normal_numbers", "sequence_key"]

METHODS: Final = ("auto", "he", "glorot")
"""How wide the weights are spread: see `initial_values`."""

_MASK: Final = (1 << 64) - 1
_GAMMA: Final = 0x9E3779B97F4A7C15  # from one state of splitmix64 to the next
_BLOCK: Final = 1 << 16  # entries at a time: the temporary arrays stay in the cache

# sin(x·pi/2) on [-1, 1] by its Taylor series, and log((1 + s)/(1 - s)) / 2s in powers of s²; the
# first terms left out are 5e-14 and 4e-14. Made by products: pow() is not exact to the last bit.
_LOG_TERMS: Final = tuple(1.0 / (2 * k + 1) for k in range(8))
_SINE_TERMS: Final[list[float]] = [math.pi / 2]
for _k in range(1, 9):
    _SINE_TERMS.append(-_SINE_TERMS[-1] * (math.pi / 2) * (math.pi / 2) / (2 * _k * (2 * _k + 1)))
_LOG_2: Final = 0.6931471805599453
_SQRT_HALF: Final = 0.7071067811865476


def initial_values(
    method: str,
    layer_index: int,
    rows: NDArray[np.int32] | NDArray[np.int64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    fan_in_of_rows: NDArray[np.int64],
    n_out: int,
    n_in: int,
    activation: Activation,
    seed: int,
) -> NDArray[np.float32]:
    """Draw the weights of some rows of a layer from normal distributions of mean 0.

    Parameters
    ----------
    method
        "he": standard deviation ``sqrt(2 / fan_in)`` (He et al., ICCV 2015, eq. 10), made for
        relu; "glorot": ``sqrt(1 / fan_in)``, which is that of Glorot and Bengio (AISTATS 2010,
        eq. 12) where fan-in and fan-out are equal; "auto": "he" in front of relu and clamped_relu,
        "glorot" in front of all others. The fan-in is that of the sparse row: its stored weights.
    layer_index
        Number of the layer in its network, from 0.
    rows
        ``(m,)``: global numbers of the rows, in any order.
    indptr, indices
        CSR arrays of these rows, ``(m + 1,)`` and ``(nnz,)``, with global columns in any order.
    fan_in_of_rows
        ``(m,)``: the weights that each row has altogether: ``np.diff(indptr)``, unless these are
        only some columns of it.
    n_out, n_in
        Size of the whole layer; rows and columns must be within it, nothing else depends on it.
    activation
        What follows this layer's product.
    seed
        0 to 2**64 - 1.

    Returns
    -------
    array
        ``(nnz,)`` float32, the caller's own. The same bits on every machine.

    Raises
    ------
    UsageError
        If there is no such method, or the seed is out of range.
    ShapeError
        If the arrays do not fit together, or a row or column is outside of the layer.
    """
    if method not in METHODS:
        raise UsageError(f"initial weights are one of {', '.join(METHODS)}: '{method}'")
    key = sequence_key(seed, layer_index)
    _check(layer_index, rows, indptr, indices, fan_in_of_rows, n_out, n_in)
    if method == "auto":
        method = "he" if activation.kind in ("relu", "clamped_relu") else "glorot"
    gain = 2.0 if method == "he" else 1.0
    deviation = np.sqrt(gain / np.maximum(fan_in_of_rows, 1))
    places = rows.astype(np.uint64) << np.uint64(32)
    values = np.empty(indices.size, np.float32)
    for first in range(0, indices.size, _BLOCK):
        last = min(first + _BLOCK, indices.size)
        # The rows that this block of entries belongs to; the outer two perhaps in part.
        a = int(np.searchsorted(indptr, first, side="right")) - 1
        b = int(np.searchsorted(indptr, last, side="left"))
        edges = np.clip(indptr[a : b + 1], first, last)
        counts = edges[1:] - edges[:-1]
        counters = np.repeat(places[a:b], counts)
        counters |= indices[first:last].astype(np.uint64)
        values[first:last] = normal_numbers(key, counters) * np.repeat(deviation[a:b], counts)
    return values


def _check(
    layer_index: int,
    rows: NDArray[np.int32] | NDArray[np.int64],
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    fan_in_of_rows: NDArray[np.int64],
    n_out: int,
    n_in: int,
) -> None:
    where = f"initial weights of layer {layer_index + 1}"
    if layer_index < 0:
        raise UsageError(f"a layer's index must not be negative, found {layer_index}")
    if not (rows.size == fan_in_of_rows.size == indptr.size - 1 and indptr[-1] == indices.size):
        raise ShapeError(
            f"{where}: {rows.size} rows, {fan_in_of_rows.size} fan-ins, indptr of {indptr.size}, "
            f"{indices.size} columns: they do not fit together"
        )
    for what, numbers, size in (("row", rows, n_out), ("column", indices, n_in)):
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < size:
            raise ShapeError(f"{where}: a {what} is out of range for {size}")


def _mixed(state: int) -> int:
    """splitmix64's output for one state."""
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & _MASK
    return state ^ (state >> 31)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's outputs, in the place of the states."""
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def sequence_key(seed: int, number: int) -> int:
    """Where the random sequence of a layer, or of anything with a number, starts.

    Different for each number below 2**64 of one seed.

    Raises
    ------
    UsageError
        If the seed is out of range.
    """
    if not 0 <= seed <= _MASK:
        raise UsageError(f"a seed is a whole number from 0 to 2^64 - 1, found {seed}")
    return _mixed((_mixed((seed + _GAMMA) & _MASK) + _GAMMA * (number + 1)) & _MASK)


def normal_numbers(key: int, counters: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Standard normal numbers: entry c has the numbers 2c + 1 and 2c + 2 behind the key.

    Parameters
    ----------
    key
        From `sequence_key`.
    counters
        Any shape; each below 2**63, or entries repeat.

    Returns
    -------
    array
        Of the counters' shape, float64, the same bits on every machine. A call with more than some
        ten thousand of them is slower: about 20 arrays of that size leave the cache.
    """
    state = counters * np.uint64(2 * _GAMMA & _MASK)
    state += np.uint64((key + _GAMMA) & _MASK)
    second = state + np.uint64(_GAMMA)
    # 53 bits each: the first in (0, 1], since its logarithm is taken, the second in [0, 1).
    lengths = ((_mix(state) >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53
    turns = (_mix(second) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.asarray(np.sqrt(-2.0 * _log(lengths)) * _cosine(turns))


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Natural logarithm of positive numbers, to about 1e-13."""
    mantissa, exponent = np.frexp(x)
    small = mantissa < _SQRT_HALF
    mantissa[small] *= 2.0
    exponent -= small
    s = (mantissa - 1.0) / (mantissa + 1.0)
    return np.asarray(2.0 * s * _polynomial(_LOG_TERMS, s * s) + exponent * _LOG_2)


def _cosine(turns: NDArray[np.float64]) -> NDArray[np.float64]:
    """cos(2·pi·turns) for turns in [0, 1], to about 1e-13."""
    # Even about one half: cos(2·pi·u) = sin(pi/2·(4·|u - 1/2| - 1)), whose argument is in [-1, 1].
    x = 4.0 * np.abs(turns - 0.5) - 1.0
    return np.asarray(x * _polynomial(_SINE_TERMS, x * x))


def _polynomial(
    terms: tuple[float, ...] | list[float], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    total = np.full(x.shape, terms[-1])
    for term in terms[-2::-1]:
        total *= x
        total += term
    return total
