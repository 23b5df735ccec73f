"""Input columns for ranks: each gets the images of its data group and the features of its part.

Images are divided among the D groups of the grid's first axis, the features of an image among the
M ranks of the second. Files that can be read in parts are read by every rank (see `input_files`);
anything else is loaded by rank 0, dealt block by block, and sent. Must not know: plans, kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.distributed.features import Features
from sparsednn.distributed.input_files import open_inputs, readable_in_parts, slices
from sparsednn.errors import FormatError, InputError, ShapeError, UsageError
from sparsednn.inputs import InputSet
from sparsednn.sources import load_inputs

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.comm.grid import ProcessGrid

__all__ = ["LocalInputs", "deal_inputs", "distribute_inputs", "image_ranges"]


@dataclass(frozen=True, slots=True, eq=False)
class LocalInputs:
    """One rank's share of the inputs.

    Attributes
    ----------
    inputs
        This rank's images, in the order of `ranges`. Features are local numbers: places among the
        input neurons that this part owns, ascending. ``n_features`` is how many these are, also 0
        (which no other `InputSet` has). uint16 features where every part's numbers fit.
    n_images
        Of all data groups together.
    ranges
        ``(start, stop)`` of this data group's images, see `image_ranges`.
    """

    inputs: InputSet
    n_images: int
    ranges: list[tuple[int, int]]


def image_ranges(
    n_images: int, groups: int, group: int, step: int | None = None
) -> list[tuple[int, int]]:
    """Which images a data group works on: ``(start, stop)`` in ascending order.

    The images are cut into consecutive blocks of `step` (the last may be shorter; None: one block
    of all). Of a block of w images from s on, group d has ``[s + d·w//D, s + (d+1)·w//D)``, so all
    groups take part in each block, and group sizes differ by one at most. There is one range for
    each block, perhaps an empty one.

    >>> image_ranges(10, 2, 1, 4)
    [(2, 4), (6, 8), (9, 10)]

    Raises
    ------
    UsageError
        If `step` is below 1.
    """
    if step is not None and step < 1:
        raise UsageError(f"images of a step must be at least 1, found {step}")
    ranges = []
    for start in range(0, n_images, step or max(n_images, 1)):
        width = min(step or n_images, n_images - start)
        ranges.append((start + group * width // groups, start + (group + 1) * width // groups))
    return ranges


def distribute_inputs(
    source: str,
    world: Communicator,
    grid: ProcessGrid,
    owners: NDArray[np.int32] | None,
    part: int,
    *,
    n_features: int,
    mnist: Path | None = None,
    images: int | None = None,
    step: int | None = None,
) -> LocalInputs:
    """Give every rank its images and features.

    Parameters
    ----------
    source, mnist, images
        As for `sparsednn.sources.load_inputs`.
    world
        All ranks. Collective: one allgather and one broadcast, and for what rank 0 loads, up to
        three messages from it to each other rank for each block of about 64 MiB.
    grid
        D × M ranks of `world`: data groups, and the ranks of a model group.
    owners
        ``(n_features,)``: the part of each input neuron; None if M = 1.
    part
        This rank's.
    n_features
        What the network takes.
    step
        Images of a block that all groups share, see `image_ranges`; None for all images.

    Raises
    ------
    InputError, UsageError, MissingDependencyError
        As `load_inputs` does, the same on every rank.

    Notes
    -----
    A rank that reads a file holds twice its own share for a moment. Rank 0, where it loads, holds
    the whole set until all is sent, and nothing but its own share afterwards.
    """
    groups, parts = grid.shape
    group = grid.coordinates[0]
    if owners is None:
        owners = np.zeros(n_features, np.int32)
    stage = f"loading {source}"
    whole: InputSet | None = None
    in_parts = None
    with together(world, stage):
        image_ranges(1, groups, group, step)  # refuses a step that is none
        if world.rank == 0:
            in_parts = os.path.isfile(source) and readable_in_parts(source)
            if not in_parts:
                whole = load_inputs(source, n_features=n_features, mnist=mnist, images=images)
                _check_features(source, whole.n_features, n_features)
    if not world.broadcast_json(in_parts):
        return deal_inputs(whole, world, grid, owners, part, step=step)
    features = Features(owners, parts)
    with together(world, stage), closing(open_inputs(source)) as file:
        n_images = _image_count(source, file.n_images, images)
        _check_features(source, file.n_features, n_features)
        own_ranges = image_ranges(n_images, groups, group, step)
        own = np.flatnonzero(owners == part).astype(np.int32)
        blocks = file.blocks(_numbers(own_ranges), own)
        mine = _collected(source, blocks, features, part)
    return LocalInputs(mine, n_images, own_ranges)


def deal_inputs(
    whole: InputSet | None,
    world: Communicator,
    grid: ProcessGrid,
    owners: NDArray[np.int32],
    part: int,
    *,
    step: int | None = None,
) -> LocalInputs:
    """Give every rank its images and features of a set that rank 0 of `world` has.

    Parameters
    ----------
    whole
        On rank 0; None elsewhere.
    world, grid, owners, part, step
        As for `distribute_inputs`. Collective: one allgather, one broadcast, and the messages
        that are described there.
    """
    groups, parts = grid.shape
    group = grid.coordinates[0]
    places = world.allgather(np.array([group, part], np.int64)).reshape(-1, 2).tolist()
    features = Features(owners, parts)
    told = world.broadcast_json(
        None if whole is None else _announced(whole, features, groups, step)
    )
    n_images = told["n_images"]
    ranges = [image_ranges(n_images, groups, g, step) for g in range(groups)]
    share = _Share(told, features, group, part)
    if whole is None:
        share.receive(world, told["blocks"][group])
    else:
        for g in range(groups):
            theirs = {p: r for r, (its_group, p) in enumerate(places) if its_group == g}
            _deal(whole, told["blocks"][g], _numbers(ranges[g]), features, world, theirs, share)
    return LocalInputs(share.made(told["name"]), n_images, ranges[group])


def _numbers(ranges: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *(np.arange(a, b) for a, b in ranges)])


def _check_features(source: str, found: int, wanted: int) -> None:
    if found != wanted:
        raise ShapeError(f"{source}: has {found} features, the network takes {wanted}")


def _image_count(source: str, found: int, wanted: int | None) -> int:
    if wanted is not None and wanted < 1:
        raise UsageError(f"--images must be at least 1, found {wanted}")
    if not found:
        raise FormatError(f"{source}: there are no images in it")
    if wanted is not None and wanted > found:
        raise InputError(f"{source}: has {found} images, --images asks for {wanted}")
    return wanted or found


def _collected(
    source: str,
    blocks: Iterable[tuple[NDArray[np.int64], InputSet]],
    features: Features,
    part: int,
) -> InputSet:
    """Keep one part's features of the blocks of a file."""
    counts, indices, values = [np.zeros(1, np.int64)], [np.empty(0, features.dtype)], []
    for images, block in blocks:
        found, numbers, weights = features.keep(block, images, part)
        counts.append(found)
        indices.append(numbers)
        if weights is not None:
            values.append(weights)
    ones = all(np.all(weights == 1) for weights in values)
    return InputSet(
        np.cumsum(np.concatenate(counts)),
        np.concatenate(indices),
        None if ones else np.concatenate(values),
        int(features.counts[part]),
        name=source,
        check=False,  # the blocks were; and a part may own no feature
    )


def _announced(
    whole: InputSet, features: Features, groups: int, step: int | None
) -> dict[str, Any]:
    """What receivers have to know: images of each block, entries of each part, by data group."""
    entry = np.dtype(features.dtype).itemsize + (0 if whole.values is None else 4)
    lengths = np.diff(whole.indptr)
    blocks, totals = [], []
    for group in range(groups):
        images = _numbers(image_ranges(whole.n_images, groups, group, step))
        cuts = list(slices(lengths[images] * entry + features.counts.size * 16))
        blocks.append([last - first for first, last in cuts])
        total = np.zeros(features.counts.size, np.int64)
        for first, last in cuts:
            total += features.count(whole, images[first:last]).sum(axis=0)
        totals.append(total.tolist())
    return {
        "name": whole.name,
        "n_images": whole.n_images,
        "values": whole.values is not None,
        "blocks": blocks,
        "totals": totals,
    }


class _Share:
    """The arrays of one rank's inputs, which fill up block by block."""

    def __init__(self, told: dict[str, Any], features: Features, group: int, part: int) -> None:
        total = told["totals"][group][part]
        self._indptr = np.zeros(sum(told["blocks"][group]) + 1, np.int64)
        self._indices = np.empty(total, features.dtype)
        self._values = np.empty(total, np.float32) if told["values"] else None
        self._n_features = int(features.counts[part])
        self._images = self._entries = 0

    def counts(self, images: int) -> NDArray[np.int64]:
        """Where the next images' numbers of entries go."""
        first = self._images + 1
        self._images += images
        return self._indptr[first : first + images]

    def entries(self, count: int) -> list[NDArray[Any]]:
        """Where the next entries go: their features, and their values if there are any."""
        here = slice(self._entries, self._entries + count)
        self._entries += count
        return [array[here] for array in (self._indices, self._values) if array is not None]

    def receive(self, world: Communicator, blocks: list[int]) -> None:
        """Take from rank 0 what `_deal` sends there."""
        for images in blocks:
            counts = self.counts(images)
            world.receive(counts, 0)
            for into in self.entries(int(counts.sum())):
                world.receive(into, 0)

    def made(self, name: str) -> InputSet:
        """The inputs; the numbers of entries become positions."""
        np.cumsum(self._indptr, out=self._indptr)
        return InputSet(
            self._indptr,
            self._indices,
            self._values,
            self._n_features,
            name=name,
            check=False,  # rank 0 has; and a part may own no feature
        )


def _deal(
    whole: InputSet,
    blocks: list[int],
    images: NDArray[np.int64],
    features: Features,
    world: Communicator,
    ranks: dict[int, int],
    share: _Share,
) -> None:
    """Send the images of one data group to its ranks (by part); this rank's go into `share`."""
    at = 0
    for width in blocks:
        counts, indices, values = features.deal(whole, images[at : at + width])
        at += width
        ends = counts.sum(axis=0).cumsum()
        for part, rank in ranks.items():
            lengths = np.ascontiguousarray(counts[:, part])
            here = slice(int(ends[part] - lengths.sum()), int(ends[part]))
            given = [array[here] for array in (indices, values) if array is not None]
            if rank == world.rank:
                share.counts(width)[:] = lengths
                for array, into in zip(given, share.entries(given[0].size), strict=True):
                    into[:] = array
            else:
                for array in (lengths, *given):
                    world.send(array, rank)
