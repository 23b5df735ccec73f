"""A new partition in the middle of a training, made as the first one was."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.network import SparseNetwork
    from sparsednn.partitioners.partition import Partition

__all__ = ["check_remakable", "partition_like"]


def check_remakable(partition: Partition, file: str | os.PathLike[str] | None) -> None:
    """Refuse to repartition where nobody knows how: raises UsageError."""
    from sparsednn.partitioners.methods import NATIVE, RULES

    meta = partition.meta
    if meta.method != "joint" and meta.partitioner not in (*NATIVE, *RULES):
        raise UsageError(
            f"--repartition: {file} was made by {meta.method}, {meta.partitioner}, which cannot be "
            "done again here: begin with a partition by 'sparsednn partition'"
        )


def partition_like(old: Partition, network: SparseNetwork) -> Partition:
    """Divide a network as another one was divided."""
    from sparsednn.partitioners import EFFORTS, Options, make_partition

    meta = old.meta
    options: dict[str, Any] = {"imbalance": meta.imbalance, "seed": meta.seed}
    if meta.method == "joint":
        if meta.preset in EFFORTS:
            options["effort"] = meta.preset
        return make_partition(network, Options(old.parts, **options))
    if meta.preset is not None:
        options["preset"] = meta.preset
    return make_partition(
        network, Options(old.parts, **options), method="multiphase", partitioner=meta.partitioner
    )
