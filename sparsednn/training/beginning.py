"""How a training begins: with a network as it is, with new weights, or where a checkpoint ended.

What comes out is the same: each rank's rows, the optimizer's arrays, and where the run stands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsednn.comm.failure import together
from sparsednn.distributed.loading import load_shard, load_whole
from sparsednn.distributed.partitions import broadcast_partition
from sparsednn.distributed.shard import NetworkShard, whole_shard
from sparsednn.errors import InputError
from sparsednn.initial import initial_values
from sparsednn.partitioners.partition import Partition, PartitionMeta, read_partition
from sparsednn.sources import is_path, summarize
from sparsednn.training.checkpoints import (
    TrainingState,
    check_origin,
    check_settings,
    read_checkpoint,
)
from sparsednn.training.engine import Layer
from sparsednn.training.settings import Settings
from sparsednn.training.state import scatter_network

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["PARTITION", "Beginning", "begin"]

#: In the folder of the checkpoint: the partition that a run has made for itself, if it has.
PARTITION = "partition.npz"
#: Settings that a run may be resumed with another value of: how long it goes on.
_MAY_DIFFER = ("epochs",)


@dataclass(frozen=True, eq=False)
class Beginning:
    """Where a run stands when it starts, or goes on.

    Attributes
    ----------
    shard
        This rank's rows.
    slots
        The optimizer's arrays of these rows; None at the start.
    progress
        Of the checkpoint; None at the start.
    origin
        Content hash of the network that training began with.
    partition
        Of the neurons; of one part where every rank has all of them.
    """

    shard: NetworkShard
    slots: dict[str, list[Layer]] | None
    progress: dict[str, Any] | None
    origin: str
    partition: Partition


def begin(
    world: Communicator,
    group: Communicator,
    model: str,
    settings: Settings,
    *,
    partition: Partition | None,
    file: str | os.PathLike[str] | None,
    checkpoint: Path | None,
    resume: bool,
    loading: Mapping[str, Any],
) -> Beginning:
    """Load what each rank trains; collective over `world`.

    Parameters
    ----------
    world, group
        All ranks; those that share the neurons.
    model, loading
        As for `sources.load_network`.
    settings
        A checkpoint's must be the same, but for the number of epochs.
    partition, file
        Of as many parts as the group has ranks; None for one. Where it comes from, for messages.
    checkpoint, resume
        The file; whether to go on with it.

    Raises
    ------
    InputError
        If there is a checkpoint and `resume` is not set; if it is of another network, other
        settings, or damaged; as `load_network` and `Partition.check` do. On all ranks.
    """
    state: TrainingState | None = None
    found = False
    with together(world, f"looking for {checkpoint}"):
        if checkpoint is not None and world.rank == 0:
            found = checkpoint.exists()
            if found and not resume:
                raise InputError(
                    f"{checkpoint.parent}: has a checkpoint: give --resume to go on with it, or "
                    "another folder"
                )
    if not world.any_rank(found):
        return _fresh(world, group, model, settings, partition, file, loading)
    with together(world, f"reading {checkpoint}"):
        if world.rank == 0 and checkpoint is not None:
            state = _read_state(checkpoint, model, settings, loading)
            if partition is not None:
                partition = _partition_to_use(
                    partition, state, file or "partition", checkpoint.parent
                )
    if world.any_rank(partition is not None):
        partition = broadcast_partition(world, partition if world.rank == 0 else None)
    kept = world.broadcast_json(
        None if state is None else [state.origin, state.progress, [
            state.network.n_in, *(layer.n_out for layer in state.network)
        ], state.network.name, state.network.hash]
    )  # fmt: skip
    origin, progress, sizes, name, digest = kept
    if partition is None:
        partition = _one_part(sizes, name, digest)
    shard, slots = scatter_network(
        None if state is None else state.network,
        None if state is None else state.slots,
        partition,
        group.rank,
        world,
    )
    return Beginning(shard, slots, progress, origin, partition)


def _fresh(
    world: Communicator,
    group: Communicator,
    model: str,
    settings: Settings,
    partition: Partition | None,
    file: str | os.PathLike[str] | None,
    loading: Mapping[str, Any],
) -> Beginning:
    if group.size == 1:
        network = load_whole(model, world, **loading)
        if partition is not None:
            with together(world, f"checking {file}"):
                partition.check(network, file=file or "partition")
        shard = whole_shard(network)
        sizes = [vector.size for vector in shard.owners]
        partition = partition or _one_part(sizes, network.name, network.hash)
    else:
        assert partition is not None  # grid_shape has seen to that
        shard = load_shard(
            model, partition, group.rank, group, world=world, file=file or "partition", **loading
        )
    origin = shard.hash
    new = settings.initial == "new" or (settings.initial == "auto" and not is_path(model))
    return Beginning(_drawn(shard, settings.seed) if new else shard, None, None, origin, partition)


def _drawn(shard: NetworkShard, seed: int) -> NetworkShard:
    """Draw new weights for the rows; biases become zero. Does not depend on the partition."""
    layers = tuple(
        replace(
            layer,
            values=initial_values(
                "auto", k, layer.rows, layer.indptr, layer.indices, np.diff(layer.indptr),
                layer.n_out, layer.n_in, layer.activation, seed,
            ),
            bias=np.zeros_like(layer.bias),
        )
        for k, layer in enumerate(shard.layers)
    )  # fmt: skip
    return replace(shard, layers=layers)


def _read_state(
    path: Path, model: str, settings: Settings, loading: Mapping[str, Any]
) -> TrainingState:
    state = read_checkpoint(path)
    known = summarize(model, **loading).hash
    if not known:  # the file does not say it
        known = summarize(model, **loading, check=True).hash
    check_origin(state, known or "", path)
    check_settings(state, settings.as_json(), path, may_differ=_MAY_DIFFER)
    return state


def _partition_to_use(
    partition: Partition, state: TrainingState, file: str | os.PathLike[str], folder: Path
) -> Partition:
    """Choose and check the partition that a run goes on with.

    That is the one that the run itself has made since it began (`PARTITION`), if the checkpoint was
    written with it and it has as many parts. Otherwise what is given: for the pattern that the
    training began with, for the checkpoint's, or just what the checkpoint was written with.
    """
    used = state.progress.get("partition")
    own = folder / PARTITION
    if partition.identity != used and own.exists():
        made = read_partition(own)
        if made.identity == used and made.parts == partition.parts:
            partition = made
    meta = partition.meta
    if state.origin == meta.hash or partition.identity == used:
        meta = replace(meta, hash=state.network.hash)
    Partition(partition.owners, partition.parts, meta).check(state.network, file=file)
    return partition


def _one_part(sizes: list[int], name: str, digest: str) -> Partition:
    owners = [np.zeros(size, np.int32) for size in sizes]
    meta = PartitionMeta("rule", "block", None, None, 0, 1, 0.0, name, digest)
    return Partition(owners, 1, meta)
