"""Labelled examples for ranks: each has the features of its part, of all images, and the labels.

Batches are drawn from all images in a new order each epoch, so every data group holds all of them;
within a group the features are divided as the partition divides the input neurons.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.comm.failure import together
from sparsednn.comm.grid import ProcessGrid
from sparsednn.distributed.inputs import deal_inputs
from sparsednn.inputs import InputSet

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator
    from sparsednn.distributed.shard import NetworkShard
    from sparsednn.training.examples import Examples

__all__ = ["LocalExamples", "share_examples"]


@dataclass(frozen=True, slots=True, eq=False)
class LocalExamples:
    """One rank's share of labelled examples.

    Attributes
    ----------
    inputs
        All images; features are places among the input neurons that the rank owns.
    labels
        ``(images,)`` int64: global numbers of output neurons; or None.
    values
        ``(own outputs, images)`` float32 instead; or None.
    name
        Where they come from.
    identity
        SHA-256 of all images and labels, of all features; the same on all ranks.
    """

    inputs: InputSet
    labels: NDArray[np.int64] | None
    values: NDArray[np.float32] | None
    name: str
    identity: str = ""

    @property
    def n_images(self) -> int:
        """Number of images."""
        return self.inputs.n_images


def share_examples(
    source: str,
    split: Any,
    world: Communicator,
    group: Communicator,
    shard: NetworkShard,
    *,
    mnist: Path | None = None,
    images: int | None = None,
    labels: Path | None = None,
) -> LocalExamples:
    """Load examples on the first rank of each group, and give every rank of it its share.

    Parameters
    ----------
    source, split, mnist, images, labels
        As for `examples.load_examples`.
    world
        All groups, which fail together. Collective.
    group
        The ranks that share the neurons: rank r has part r.
    shard
        This rank's; it knows the owners of inputs and outputs.

    Raises
    ------
    InputError, UsageError, MissingDependencyError
        As `load_examples` does, on all ranks.
    """
    from sparsednn.training.examples import load_examples

    whole: Examples | None = None
    with together(world, f"loading {source}"):
        if group.rank == 0:
            whole = load_examples(
                source, split, n_features=shard.n_in, n_out=shard.n_out, mnist=mnist,
                images=images, labels=labels,
            )  # fmt: skip
    rows = np.flatnonzero(shard.owners[-1] == shard.part)
    if group.size == 1:
        assert whole is not None
        return LocalExamples(whole.inputs, whole.labels, whole.values, whole.name, _identity(whole))
    head = group.broadcast_json(
        None
        if whole is None
        else [whole.name, whole.n_images, whole.labels is not None, _identity(whole)]
    )
    name, n_images, labelled, identity = head
    local = deal_inputs(
        None if whole is None else whole.inputs,
        group,
        ProcessGrid(group, (1, group.size)),
        shard.owners[0],
        group.rank,
    )
    if labelled:
        found = np.empty(n_images, np.int64)
        if whole is not None and whole.labels is not None:
            found[:] = whole.labels
        group.broadcast(found)
        return LocalExamples(local.inputs, found, None, name, identity)
    values = np.empty((shard.n_out, n_images), np.float32)
    if whole is not None and whole.values is not None:
        values[:] = whole.values
    group.broadcast(values)
    return LocalExamples(local.inputs, None, np.ascontiguousarray(values[rows]), name, identity)


def _identity(examples: Examples) -> str:
    digest = hashlib.sha256(f"{examples.inputs.n_features}x{examples.n_images}".encode())
    arrays = (
        (examples.inputs.indptr, "<i8"),
        (examples.inputs.indices, "<i4"),
        (examples.inputs.values, "<f4"),
        (examples.labels, "<i8"),
        (examples.values, "<f4"),
    )
    for array, dtype in arrays:
        digest.update(b"|" if array is None else b":")
        if array is not None:
            digest.update(np.ascontiguousarray(array, dtype).data)
    return digest.hexdigest()
