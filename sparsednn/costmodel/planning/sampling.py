"""Deep networks with layers that are all alike: partition the first, repeat their work.

To partition 120 layers of 65536 neurons for ten numbers of ranks takes hours; two blocks of
a RadiX-Net say the same. The first layers are counted as they are, and from then on the later of
them, over and over: the first block of an official network has no permutation in front of it, and a
good partition sends far less there than anywhere else.

Must not know: partitions, platforms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.sparse.work import SparseWork
    from sparsednn.formats import ReadOptions
    from sparsednn.network import SparseNetwork

__all__ = ["LAYERS", "Sample", "extended", "load_sample"]

LAYERS: Final = 24
"""Layers that are looked at, about, of a network whose layers are all alike."""

_COPIES: Final = 16  # of the small topology in an official network's layer


@dataclass(frozen=True, slots=True)
class Sample:
    """The layers of a network that are looked at.

    Attributes
    ----------
    network
        All layers, or the first.
    name, depth
        Of the whole network.
    start
        Behind the sample its layers from this one on are repeated.
    """

    network: SparseNetwork
    name: str
    depth: int
    start: int

    @property
    def layers(self) -> int:
        """Layers that are looked at."""
        return len(self.network)

    @property
    def whole(self) -> bool:
        """Whether these are all."""
        return self.layers == self.depth

    @property
    def edges(self) -> int:
        """Weights of the whole network (of the repeated one, if it is sampled)."""
        own = [layer.nnz for layer in self.network]
        return sum(own[k] for k in order(self.layers, self.start, self.depth))

    @property
    def note(self) -> str:
        """One line about what was left out; "" if nothing was."""
        if self.whole:
            return ""
        again = "layer" if self.start + 1 == self.layers else f"layers {self.start + 1} to"
        return (
            f"the first {self.layers} of {self.depth} layers were partitioned; the others count as "
            f"{again} {self.layers} over and over"
        )


def order(layers: int, start: int, depth: int) -> list[int]:
    """Which layer of the sample stands for each layer of the network.

    >>> order(4, 2, 9)
    [0, 1, 2, 3, 2, 3, 2, 3, 2]
    """
    return [k if k < layers else start + (k - start) % (layers - start) for k in range(depth)]


def load_sample(
    model: str,
    *,
    layers: int | None = None,
    sampled: int | None = None,
    bias: float | None = None,
    options: ReadOptions | None = None,
) -> Sample:
    """Load what a person names, or its first layers.

    Parameters
    ----------
    model, layers, bias, options
        As for `sources.load_network`.
    sampled
        How many layers to look at; 0: all; None: about `LAYERS`, if those behind are all alike.

    Raises
    ------
    UsageError
        If `sampled` is negative, or the layers cannot stand for those behind them.
    SparseDNNError
        As `sources.load_network`.
    """
    from sparsednn.sources import is_path, load_network, official_size, summarize

    if sampled is not None and sampled < 0:
        raise UsageError(f"--layers-sampled must be at least 0 (0: all), found {sampled}")
    known: dict[str, Any] = {"bias": bias, "options": options}
    official = None if is_path(model) else official_size(model, layers)
    if official is not None:
        neurons, depth = official
        period = max(1, (neurons // _COPIES).bit_length() - 1)
        if sampled is None:
            # Whole blocks; behind the first, which has no permutation in front of it.
            sampled = max(2, -(-(LAYERS - period // 2) // period)) * period
        start = period if sampled > period else 0
        count = depth if sampled == 0 or sampled >= depth else sampled
        network = load_network(model, layers=count, **known)
        return Sample(network, _named(network.name, depth), depth, start)
    summary = summarize(model, layers=layers, bias=bias, options=options)
    depth = len(summary.layers)
    wanted = LAYERS if sampled is None else sampled
    start = wanted // 2
    if wanted in (0, depth) or wanted > depth:
        wanted = depth
    else:
        kinds = {(one.n_out, one.n_in, one.nnz) for one in summary.layers[start:]}
        if len(kinds) > 1 or any(one.n_in != one.n_out for one in summary.layers[start:]):
            if sampled is not None:
                raise UsageError(
                    f"--layers-sampled {sampled}: the layers of '{model}' behind layer {start} are "
                    "not all alike, so they cannot stand for each other"
                )
            wanted = depth
    network = load_network(model, layers=layers if wanted == depth else wanted, **known)
    return Sample(network, summary.name, depth, start)


def _named(name: str, depth: int) -> str:
    """The name of the whole network: official ones end in the number of their layers."""
    return f"{name.rpartition('-')[0]}-{depth}"


def extended(work: SparseWork, start: int, depth: int) -> SparseWork:
    """Return the work of a network of `depth` layers whose later ones repeat a sample's.

    Parameters
    ----------
    work
        Of the sample.
    start
        The first layer that is repeated.
    depth
        Layers of the result.
    """
    if depth == work.layers:
        return work
    which: Sequence[int] = order(work.layers, start, depth)
    ahead = np.array(which)
    back = ahead if work.trained else ahead[:0]
    names = ("blocks", "lengths", "groups", "patterns")
    arrays: dict[str, Any] = {name: getattr(work, name)[ahead] for name in names}
    arrays |= {f"back_{name}": getattr(work, f"back_{name}")[back] for name in names}
    return replace(
        work,
        widths=np.append(work.widths[0], work.widths[ahead + 1]),
        neurons=np.concatenate([work.neurons[:1], work.neurons[ahead + 1]]),
        sends=tuple(work.sends[k] for k in which),
        **arrays,
    )
