"""Networks by name, to be trained: random sparse patterns and mixed-radix topologies.

=============================  ===================================================================
``mlp:784-300-100-10@0.05``    random pattern, 5% of the weights of each layer
``mlp:784-300-100-10@0.05-erk``  as many weights in total, more of them in the narrow layers
``mlp:784-300-10``             all weights (a dense pattern)
``radixnet:784-1024x4-10``     32 connections for each neuron of a layer's larger side
``radixnet:784-1024x4-10/16``  16 of them
=============================  ===================================================================

``1024x4`` stands for four layers of neurons of that width, and ``#7`` at the end of any name is the
seed (0 if it is not there) of pattern and weights. Hidden layers have relu, the last one has none;
biases are 0; weights are those of `sparsednn.initial` ("auto"). A name means the same
network, bit by bit, on every machine and with every version of NumPy.

*Random patterns.* All rows of a layer have the same number of weights, and all columns, as far as
these numbers can be divided: they differ by at most one. Columns are dealt to rows like cards from
shuffled decks, one deck after the other, each of which has every column once.

*erk*: Erdős-Rényi densities, ``ε (n_in + n_out) / (n_in n_out)`` and at most 1, as in SET (Mocanu
et al., Nature Communications 9, 2018, eq. 1) and RigL (Evci et al., ICML 2020, section 3).

*Mixed-radix.* Where neighbouring layers have the same width, a power of the radix, this is the
topology of RadiX-Net (see `sparsednn.datasets.radixnet`): each input reaches each output of
``log_R(width)`` layers by exactly one path. Otherwise it is the nearest thing to it that has the
same number of connections for all neurons of the larger side.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sparsednn.activations import Activation
from sparsednn.errors import InputError, UnknownNameError, UsageError
from sparsednn.initial import initial_values
from sparsednn.network import SparseLayer, SparseNetwork

__all__ = ["TOPOLOGIES", "Topology", "topology_layers", "topology_network"]

TOPOLOGIES: Final = {
    "mlp": "mlp:WIDTH-WIDTH-…[@DENSITY[-erk]][#SEED], such as mlp:784-300-10@0.05",
    "radixnet": "radixnet:WIDTH-WIDTH-…[/RADIX][#SEED], such as radixnet:784-1024x4-10",
}
"""The kinds of names, and what a name of each kind looks like."""

_RADIX: Final = 32  # of a name that does not tell, as in the official networks
_WIDTH: Final = re.compile(r"([0-9]{1,12})(?:x([0-9]{1,12}))?")
_DENSITY: Final = re.compile(r"[0-9]*\.?[0-9]+(?:e-?[0-9]{1,4})?")
_MOST_LAYERS: Final = 1 << 16
_MOST_WEIGHTS: Final = 1 << 34
_BLOCK: Final = 1 << 20  # cards that are shuffled at a time

Pattern = tuple[NDArray[np.int64], NDArray[np.int32]]  # indptr and indices of a CSR matrix


@dataclass(frozen=True, slots=True)
class Topology:
    """What a name says.

    Parameters
    ----------
    kind
        "mlp" or "radixnet".
    widths
        Neurons: of the inputs, then behind each layer.
    weights
        How many weights each layer has.
    radix
        Of "radixnet": connections of each neuron on the larger side, where there are so many.
    seed
        Of pattern and weights.
    """

    kind: str
    widths: tuple[int, ...]
    weights: tuple[int, ...]
    radix: int
    seed: int

    @classmethod
    def parse(cls, name: str) -> Topology:
        """Read a name.

        Raises
        ------
        UnknownNameError
            If it is not written as such names are.
        InputError
            If a number in it is out of range, or the network would be absurdly large.

        Examples
        --------
        >>> Topology.parse("mlp:784-100x2-10@0.1").weights
        (7840, 1000, 100)
        """
        kind, _, rest = name.partition(":")
        if kind not in TOPOLOGIES:
            raise UnknownNameError(f"'{name}': expected {' or '.join(TOPOLOGIES.values())}")
        rest, hash_sign, seed = rest.partition("#")
        sizes, mark, extra = rest.partition("@" if kind == "mlp" else "/")
        widths = _widths(name, kind, sizes)
        number = _whole(name, kind, "seed", seed) if hash_sign else 0
        if number >= 2**32:
            raise InputError(_about(name, kind, f"the seed must be below 2^32, found {number}"))
        radix = _RADIX
        if kind == "radixnet":
            if mark:
                radix = _whole(name, kind, "radix", extra)
            if radix < 2:
                raise InputError(_about(name, kind, f"the radix must be at least 2, found {radix}"))
            weights = [max(a, b) * min(a, b, radix) for a, b in pairwise(widths)]
        elif mark:
            erk = extra.endswith("-erk")
            density = _density(name, extra.removesuffix("-erk"))
            weights = _weights(widths, density, erk)
        else:
            weights = [a * b for a, b in pairwise(widths)]
        if sum(weights) > _MOST_WEIGHTS:
            raise InputError(
                _about(name, kind, f"{sum(weights):.3g} weights are more than 2^34 (137 GB)")
            )
        return cls(kind, widths, tuple(weights), radix, number)


def topology_network(name: str, *, layers: int | None = None) -> SparseNetwork:
    """Make the network of a name; it takes 8 bytes per weight.

    Parameters
    ----------
    name
        As at the top of this module.
    layers
        Only the first so many layers, just as they are in the whole network.

    Raises
    ------
    UnknownNameError, InputError
        As `Topology.parse`; and if there are fewer layers than asked for.
    UsageError
        If `layers` is below 1.

    Examples
    --------
    >>> topology_network("radixnet:8x4/2")
    SparseNetwork('radixnet:8x4/2', 3 layers, 8 -> 8, edges=48)
    """
    topology = Topology.parse(name)
    if layers is not None and layers < 1:
        raise UsageError(f"--layers must be at least 1, found {layers}")
    if layers is not None and layers > len(topology.weights):
        raise InputError(f"'{name}' has {len(topology.weights)} layers, --layers asks for {layers}")
    return SparseNetwork(list(islice(topology_layers(topology), layers)), name=name)


def topology_layers(topology: Topology) -> Iterator[SparseLayer]:
    """Make the layers of a topology one at a time; each has arrays of its own."""
    last = len(topology.weights) - 1
    for k, (n_in, n_out) in enumerate(pairwise(topology.widths)):
        if topology.kind == "radixnet":
            indptr, indices = _radix_pattern(n_out, n_in, topology.radix, k)
        else:
            indptr, indices = _random_pattern(n_out, n_in, topology.weights[k], topology.seed, k)
        activation = Activation("identity" if k == last else "relu")
        rows = np.arange(n_out)
        fan_in = np.diff(indptr)
        values = initial_values(
            "auto", k, rows, indptr, indices, fan_in, n_out, n_in, activation, topology.seed
        )
        yield SparseLayer(indptr, indices, values, n_in, activation=activation, check=False)


# Names


def _about(name: str, kind: str, what: str) -> str:
    shown = name if len(name) <= 80 else f"{name[:77]}..."
    return f"'{shown}': {what}; expected {TOPOLOGIES[kind]}"


def _whole(name: str, kind: str, what: str, text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UnknownNameError(_about(name, kind, f"'{text[:40]}' is not a {what}"))
    return int(text)


def _widths(name: str, kind: str, text: str) -> tuple[int, ...]:
    widths: list[int] = []
    for part in text.split("-"):
        found = _WIDTH.fullmatch(part)
        if not found:
            raise UnknownNameError(_about(name, kind, f"'{part[:40]}' is not a width"))
        width, count = int(found[1]), int(found[2] or 1)
        if not 1 <= width < 2**31:
            what = f"a width must be from 1 to 2^31 - 1, found {width}"
            raise InputError(_about(name, kind, what))
        if not 1 <= count <= _MOST_LAYERS - len(widths):
            what = f"'{part}': there must be 1 to {_MOST_LAYERS} widths in all"
            raise InputError(_about(name, kind, what))
        widths += [width] * count
    if len(widths) < 2:
        raise InputError(_about(name, kind, "a network needs at least two widths"))
    return tuple(widths)


def _density(name: str, text: str) -> float:
    if not _DENSITY.fullmatch(text):
        raise UnknownNameError(_about(name, "mlp", f"'{text[:40]}' is not a density"))
    density = float(text)
    if not 0 < density <= 1:
        what = f"the density must be above 0 and at most 1, found {text[:40]}"
        raise InputError(_about(name, "mlp", what))
    return density


def _weights(widths: tuple[int, ...], density: float, erk: bool) -> list[int]:
    """Weights of each layer: at least one per row, the same density everywhere or Erdős-Rényi."""
    sizes = [a * b for a, b in pairwise(widths)]
    densities = [density] * len(sizes)
    if erk:
        densities = _erdos_renyi(widths, density)
    return [
        max(round(part * size), n_out)
        for part, size, n_out in zip(densities, sizes, widths[1:], strict=True)
    ]


def _erdos_renyi(widths: tuple[int, ...], density: float) -> list[float]:
    """Densities ``min(1, ε (n_in + n_out) / (n_in n_out))`` that have `density` on the whole."""
    sizes = [a * b for a, b in pairwise(widths)]
    sums = [a + b for a, b in pairwise(widths)]
    budget = density * sum(sizes)
    full: set[int] = set()
    while True:
        # What full layers cannot take goes to the others, which may fill some of these in turn.
        others = [i for i in range(len(sizes)) if i not in full]
        left = budget - sum(sizes[i] for i in full)
        epsilon = left / sum(sums[i] for i in others) if others else 0.0
        more = {i for i in others if epsilon * sums[i] >= sizes[i]}
        if not more:
            break
        full |= more
    return [1.0 if i in full else epsilon * sums[i] / sizes[i] for i in range(len(sizes))]


# Patterns


def _by_columns(indptr: NDArray[np.int64], indices: NDArray[np.int32], minor: int) -> Pattern:
    """Transpose a pattern of rows; the result ascends whether or not the given one did."""
    from scipy.sparse import csr_array

    ones = np.ones(indices.size, np.int8)
    turned = csr_array((ones, indices, indptr), shape=(indptr.size - 1, minor)).tocsc()
    return turned.indptr.astype(np.int64), turned.indices.astype(np.int32, copy=False)


def _random_pattern(n_out: int, n_in: int, weights: int, seed: int, layer: int) -> Pattern:
    """Make a pattern whose rows, and whose columns, have equally many weights (± 1)."""
    if weights == n_out * n_in:
        indices = np.tile(np.arange(n_in, dtype=np.int32), n_out)
        return np.arange(n_out + 1, dtype=np.int64) * n_in, indices
    # The larger side's neurons are the cards, so that there are few decks.
    hands, cards = min(n_out, n_in), max(n_out, n_in)
    # Hands that are larger by one are spread over all, not the first ones.
    starts = np.arange(hands + 1, dtype=np.int64) * (weights // hands)
    starts += np.arange(hands + 1, dtype=np.int64) * (weights % hands) // hands
    random = np.random.PCG64(np.random.SeedSequence([seed, layer]))
    pattern = _by_columns(starts, _deal(starts, cards, random), cards)
    return pattern if n_out > n_in else _by_columns(*pattern, hands)


def _deal(starts: NDArray[np.int64], n: int, random: np.random.PCG64) -> NDArray[np.int32]:
    """Deal from decks of n cards: hand i is ``starts[i]:starts[i+1]``, at most n, all different."""
    total = int(starts[-1])
    dealt = np.empty(total, np.int32)
    at_once = max(1, _BLOCK // n)
    held = np.zeros(n, bool)
    for begin in range(0, total, at_once * n):
        decks = _shuffled(random, min(at_once, -(-(total - begin) // n)), n)
        for first, deck in enumerate(decks):
            first = begin + first * n
            hand = int(np.searchsorted(starts, first, side="right")) - 1
            if starts[hand] < first < total:
                # This hand has begun with the deck before: what it holds must not come again, so
                # such cards change places with others from all over the rest of the deck.
                mine = dealt[starts[hand] : first]
                missing = int(starts[hand + 1]) - first
                held[mine] = True
                twice = np.flatnonzero(held[deck[:missing]])
                fresh = missing + np.flatnonzero(~held[deck[missing:]])
                held[mine] = False
                if twice.size:
                    fresh = fresh[np.arange(twice.size) * fresh.size // twice.size]
                    deck[twice], deck[fresh] = deck[fresh], deck[twice]
            dealt[first : first + n] = deck[: total - first]
    return dealt


def _shuffled(random: np.random.PCG64, decks: int, n: int) -> NDArray[np.int32]:
    """Return so many permutations of 0 … n - 1, ``(decks, n)``."""
    # Sorted by random keys of the raw generator, whose numbers NumPy keeps the same for ever (it
    # does not for `permutation`). The lowest bits are the card, so no two keys are equal.
    bits = np.uint64((1 << max(n - 1, 1).bit_length()) - 1)
    keys = random.random_raw(decks * n).reshape(decks, n)
    keys &= ~bits
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort(axis=1)
    keys &= bits
    return keys.astype(np.int32)


def _radix_pattern(n_out: int, n_in: int, radix: int, layer: int) -> Pattern:
    """Make the mixed-radix pattern of layer k: input j has the outputs ``j + t·ν``, t < radix.

    The smaller side is a ring of ``n`` nodes, onto which the larger side is laid evenly:
    neuron i on node ``⌊i n / larger⌋``. With ``R' = min(radix, n)`` connections, ν is the place
    value ``radix^(k mod m)``, where m digits are enough for n; where ``t·ν`` would come back to
    itself within R' steps, ν is the next number above that does not. So all neurons of the larger
    side have R' connections, and those of the smaller side have ``R'·⌊larger / n⌋`` to
    ``R'·⌈larger / n⌉``.
    """
    n, larger = min(n_out, n_in), max(n_out, n_in)
    count = min(radix, n)
    digits = 1
    while radix**digits < n:
        digits += 1
    place = radix ** (layer % digits)
    while n // math.gcd(place, n) < count:
        place += 1
    nodes = np.arange(larger, dtype=np.int64) * n // larger
    steps = np.arange(count, dtype=np.int64) * place
    starts = np.arange(larger + 1, dtype=np.int64) * count
    if n_out >= n_in:
        ends = np.sort((nodes[:, None] - steps) % n, axis=1)
        return starts, ends.astype(np.int32).ravel()
    ends = (nodes[:, None] + steps) % n
    return _by_columns(starts, ends.astype(np.int32).ravel(), n)
