"""A network, placed on the ranks as somebody wishes: grids chosen, backend made, parameters drawn.

What training, inference and benchmarks begin with. Collective.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from sparsednn.comm.failure import together
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.local import make_backend
from sparsednn.dense.model import DenseModel
from sparsednn.dense.planning.plan import NetworkPlan
from sparsednn.dense.planning.request import Planning
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.comm.communicator import Communicator

__all__ = ["DTYPES", "check_dtype", "place_network"]

#: What networks can compute with, the default first.
DTYPES: Final = ("float32", "float64")


def check_dtype(name: str) -> str:
    """Return the name of a dtype; UsageError if networks do not compute with it."""
    if name not in DTYPES:
        raise UsageError(f"--dtype is one of {', '.join(DTYPES)}: '{name}'")
    return name


def place_network(
    world: Communicator,
    graph: OperationGraph,
    planning: Planning | None,
    images: int,
    *,
    backend: str = "auto",
    threads: int = 1,
    dtype: str = "float32",
    training: bool = True,
    slots: int = 0,
    seed: int = 0,
) -> tuple[NetworkPlan, DenseModel]:
    """Place a network on all ranks.

    Parameters
    ----------
    world
        All ranks.
    graph
        The network.
    planning
        How grids are chosen; None: the cheapest.
    images
        Of a batch.
    backend, threads, dtype
        What computes on each rank (`local.make_backend`), on how many threads, with what numbers
        (one of `DTYPES`).
    training, slots
        Whether there is a backward pass; how many arrays the optimizer keeps.
    seed
        Of the initial parameters.

    Returns
    -------
    plan, model
        The plan is rank 0's, on all ranks.

    Raises
    ------
    SparseDNNError
        As `Planning.plan` and `local.make_backend`, on all ranks.
    """
    plan: NetworkPlan | None = None
    with together(world, "choosing the grids"):
        number = np.dtype(check_dtype(dtype))
        local = make_backend(backend, threads)
        if world.rank == 0:  # it may take seconds, and ranks may share cores
            plan = (planning or Planning()).plan(
                graph, images, world.size, training=training, itemsize=number.itemsize, slots=slots
            )
    told = world.broadcast_json(None if plan is None else plan.as_json())
    if plan is None:
        plan = NetworkPlan.from_json(told)
    return plan, DenseModel(world, graph, plan.placements, local, dtype=number, seed=seed)
