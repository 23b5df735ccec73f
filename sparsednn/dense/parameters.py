"""`ParameterStore`: this rank's tiles of all parameters in flat arrays, and the whole ones on rank
0.

Trained numbers stand in one array `theta`, operation after operation, so that an optimizer is one
loop; their gradient is another like it, and so are the optimizer's own arrays. Numbers that are not
trained (running statistics) stand in `buffers`.

A tile that several ranks have (replicated kernels, biases, batch normalisation) is the same bit by
bit on all of them: they start alike and see the same sums. For a norm or a file it is counted once:
it belongs to the first of these ranks.

Must not know: operations, optimizers, files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.communicator import Communicator
from sparsednn.dense.layers.base import ParameterTile
from sparsednn.dense.layout import Layout
from sparsednn.dense.local.base import Array

if TYPE_CHECKING:
    from sparsednn.dense.local.base import LocalBackend

__all__ = ["Block", "ParameterStore", "first_owners"]


Block = Sequence[NDArray[np.int64]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tile stands in its flat array."""

    tile: ParameterTile
    shape: tuple[int, ...]
    first: int
    last: int
    owners: NDArray[np.bool_]
    mine: bool


class ParameterStore:
    """Tiles of this rank.

    Parameters
    ----------
    world
        All ranks.
    tiles
        For each operation its parameters, in their order; trained ones stand after each other.
    dtype
        Of all arrays.
    local
        Whose arrays these are; what goes in and out by name is the host's.

    Attributes
    ----------
    theta, gradient
        ``(trained numbers of this rank,)``.
    buffers
        ``(other numbers of this rank,)``.
    """

    def __init__(
        self,
        world: Communicator,
        tiles: Sequence[Sequence[ParameterTile]],
        dtype: Any,
        local: LocalBackend,
    ) -> None:
        self._world, self._local = world, local
        self._places: dict[bool, list[_Place]] = {True: [], False: []}
        sizes = {True: 0, False: 0}
        self._spans: list[dict[bool, slice]] = []
        for of_operation in tiles:
            starts = dict(sizes)
            for tile in of_operation:
                trained = tile.parameter.trained
                shape = tile.layout.block(world.rank).shape
                first = sizes[trained]
                sizes[trained] += int(np.prod(shape))
                owners = first_owners(tile.layout)
                place = _Place(tile, shape, first, sizes[trained], owners, bool(owners[world.rank]))
                self._places[trained].append(place)
            self._spans.append({kind: slice(starts[kind], sizes[kind]) for kind in (True, False)})
        self.theta: Array = local.zeros((sizes[True],), dtype)
        self.gradient: Array = local.zeros((sizes[True],), dtype)
        self.buffers: Array = local.zeros((sizes[False],), dtype)
        self._mine = self._own_spans()

    def span(self, operation: int, *, trained: bool = True) -> slice:
        """Return where the numbers of an operation stand in `theta`, or in `buffers`."""
        return self._spans[operation][trained]

    def fill(self, source: Callable[[str, Block], Array]) -> None:
        """Set all tiles: `source` gives a block of the parameter of a name."""
        self.fill_like(self.theta, source)
        self._fill(self.buffers, False, source)

    def fill_like(self, flat: Array, source: Callable[[str, Block], Array]) -> None:
        """Set an array that is like `theta`."""
        self._fill(flat, True, source)

    def _fill(self, flat: Array, trained: bool, source: Callable[[str, Block], Array]) -> None:
        for place in self._places[trained]:
            if place.first < place.last:
                block = place.tile.layout.block(self._world.rank).indices()
                values = source(place.tile.parameter.name, block)
                flat[place.first : place.last] = self._local.from_host(values.reshape(-1))

    def tiles(self, *, trained: bool = True) -> Iterator[tuple[str, Array]]:
        """Yield name and view of this rank's tile of each parameter."""
        yield from self.views(self.theta if trained else self.buffers, trained=trained)

    def views(self, flat: Array, *, trained: bool = True) -> Iterator[tuple[str, Array]]:
        """Yield name and view of each parameter in an array like `theta` (or like `buffers`)."""
        for place in self._places[trained]:
            yield place.tile.parameter.name, flat[place.first : place.last].reshape(place.shape)

    def _own_spans(self) -> list[slice]:
        """What of `theta` belongs to this rank alone, or first; in as few slices as possible."""
        spans: list[slice] = []
        for place in self._places[True]:
            if place.mine and place.first < place.last:
                if spans and spans[-1].stop == place.first:
                    spans[-1] = slice(spans[-1].start, place.last)
                else:
                    spans.append(slice(place.first, place.last))
        return spans

    def norm(self, flat: Array) -> float:
        """Return the Euclidean norm of all of an array that is like `theta`; collective."""
        total = np.zeros(1)
        for span in self._mine:
            part = self._local.to_host(flat[span]).astype(np.float64)
            total += np.dot(part, part)
        self._world.allreduce(total, verb="norm")
        return float(np.sqrt(total[0]))

    def gathered(self, flat: Array, *, trained: bool = True) -> dict[str, Array] | None:
        """Return all parameters of an array like `theta` (or like `buffers`) by name, on rank 0.

        None on the others. Collective: one message from each rank.
        """
        places = self._places[trained]
        host = self._local.to_host(flat)
        parts = [host[place.first : place.last] for place in places if place.mine]
        mine = np.concatenate(parts) if parts else host[:0]
        gathered = self._world.gather(np.ascontiguousarray(mine))
        if gathered is None:
            return None
        whole = {
            place.tile.parameter.name: np.empty(place.tile.parameter.shape, host.dtype)
            for place in places
        }
        for rank, numbers in enumerate(gathered):
            at = 0
            for place in places:
                if place.owners[rank]:
                    block = place.tile.layout.block(rank)
                    values = numbers[at : at + block.size].reshape(block.shape)
                    whole[place.tile.parameter.name][np.ix_(*block.indices())] = values
                    at += block.size
        return whole


def first_owners(layout: Layout) -> NDArray[np.bool_]:
    """Return ``(ranks,)``: whether no rank before has the same block; empty ones: none."""
    keys = np.concatenate([axis.reshape(layout.ranks, -1) for axis in layout.intervals], axis=1)
    _, firsts = np.unique(keys, axis=0, return_index=True)
    owners = np.zeros(layout.ranks, np.bool_)
    owners[firsts] = True
    return owners & (layout.sizes() > 0)
