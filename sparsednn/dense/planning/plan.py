"""`NetworkPlan`: which product runs on which grid, and what that costs; with JSON.

Must not know: how it was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

from sparsednn.dense.grids import Grid, Placement, make_placement
from sparsednn.errors import FormatError, UsageError

__all__ = ["LayerPlan", "NetworkPlan", "Totals"]

_FORMAT: Final = "sparsednn network plan"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer; words are those of one step (forward and backward, or forward alone).

    Attributes
    ----------
    layer, kind
        Name and kind of the operation; "loss" is the last.
    algorithm, grid
        Of a convolution or fully connected layer; of others "", as they lie where their input does.
    words
        That the busiest rank sends, moves in front of the layer included. Summed over all layers
        they are the plan's.
    mean_words
        The same, mean of all ranks.
    redistribution
        Words of the busiest rank for moves in front of it.
    memory
        Bytes of the rank that needs most: what stays, and what is needed while it runs.
    data_parallel_words
        `words` with data parallelism in all layers.
    lower_bound
        Words that the theory asks for, see `lower_bounds`; 0 where it says nothing.
    """

    layer: str
    kind: str
    algorithm: str
    grid: str
    words: int
    mean_words: float
    redistribution: int
    memory: int
    data_parallel_words: int
    lower_bound: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Of a network.

    Attributes
    ----------
    words, mean_words
        Sums over all layers.
    memory
        Bytes that no rank needs more than; see `memory`.
    data_parallel_words, data_parallel_memory
        The same for data parallelism in all layers.
    lower_bound
        Sum over layers.
    """

    words: int
    mean_words: float
    memory: int
    data_parallel_words: int
    data_parallel_memory: int
    lower_bound: float


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """A placement for each product of a network, and what all costs.

    Attributes
    ----------
    network, identity
        Name and identity of the graph.
    images, ranks, training, itemsize, optimizer_slots, memory_per_rank
        What it was made for; `memory_per_rank` in bytes, or None.
    placements
        Of every product, by name.
    layers
        Products, and all other operations that send something, in topological order; then the loss.
    totals
        Of all.
    optimal
        Whether no choice of legal placements sends less, by the sum of the layers' busiest ranks
        (no memory limit, or one that is not in the way).
    """

    network: str
    identity: str
    images: int
    ranks: int
    training: bool
    itemsize: int
    optimizer_slots: int
    memory_per_rank: int | None
    placements: Mapping[str, Placement]
    layers: tuple[LayerPlan, ...]
    totals: Totals
    optimal: bool

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` takes: numbers, texts, lists, dictionaries."""
        content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
        for field in fields(self):
            if field.name not in ("placements", "layers", "totals"):
                content[field.name] = getattr(self, field.name)
        content["layers"] = [asdict(layer) for layer in self.layers]
        content["totals"] = asdict(self.totals)
        return content

    @classmethod
    def from_json(cls, content: Any) -> NetworkPlan:
        """Return the plan that `as_json` described.

        Raises
        ------
        FormatError
            If it is something else.
        """
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise FormatError(f"not a plan: its 'format' should be '{_FORMAT}'")
        if content.get("version") != _VERSION:
            raise FormatError(
                f"a plan of format version {content.get('version')}, expected {_VERSION}"
            )
        try:
            layers = tuple(LayerPlan(**row) for row in content["layers"])
            placements = {
                row.layer: make_placement(Grid.parse(row.grid), row.algorithm)
                for row in layers
                if row.algorithm
            }
            own = {
                field.name: content[field.name]
                for field in fields(cls)
                if field.name not in ("placements", "layers", "totals")
            }
            return cls(
                placements=placements, layers=layers, totals=Totals(**content["totals"]), **own
            )
        except (KeyError, TypeError, UsageError) as error:
            raise FormatError(f"a plan that cannot be read: {error}") from error
