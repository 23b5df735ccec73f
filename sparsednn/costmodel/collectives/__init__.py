"""Collectives: what each algorithm takes with α, β and γ, and which is the cheapest.

A module for each verb; in all of them f(ranks, nbytes, wire) → seconds, with nbytes of the whole
array as the module says. `choose` takes the cheapest, as MPI libraries do (by tables of sizes:
Thakur, Rabenseifner and Gropp 2005); `measured` prefers what was measured.

Must not know: platforms (but `measured`), MPI, networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from sparsednn.costmodel.collectives import (
    allgather,
    allreduce,
    alltoall,
    barrier,
    broadcast,
    reduce,
    reduce_scatter,
)
from sparsednn.costmodel.collectives.wire import Wire
from sparsednn.errors import UsageError

__all__ = ["ALGORITHMS", "VERBS", "Choice", "Wire", "choose"]

Algorithm: TypeAlias = Callable[[int, float, Wire], float]

#: Verb → name of an algorithm → its seconds. Among equals the first is chosen.
ALGORITHMS: Final[Mapping[str, Mapping[str, Algorithm]]] = MappingProxyType(
    {
        "broadcast": {
            "binomial": broadcast.binomial,
            "scatter-allgather": broadcast.scatter_allgather,
            "pipelined": broadcast.pipelined,
        },
        "reduce": {
            "binomial": reduce.binomial,
            "reduce-scatter-gather": reduce.reduce_scatter_gather,
            "pipelined": reduce.pipelined,
        },
        "allreduce": {
            "recursive doubling": allreduce.recursive_doubling,
            "rabenseifner": allreduce.rabenseifner,
            "ring": allreduce.ring,
        },
        "allgather": {
            "recursive doubling": allgather.recursive_doubling,
            "bruck": allgather.bruck,
            "ring": allgather.ring,
        },
        "reduce_scatter": {
            "recursive halving": reduce_scatter.recursive_halving,
            "ring": reduce_scatter.ring,
            "pairwise": reduce_scatter.pairwise,
        },
        "all_to_all": {"pairwise": alltoall.pairwise},
        "barrier": {"dissemination": barrier.dissemination},
    }
)

VERBS: Final = tuple(ALGORITHMS)


@dataclass(frozen=True, slots=True)
class Choice:
    """The algorithm that is taken, and its seconds.

    Attributes
    ----------
    algorithm
        A name in `ALGORITHMS`; ``"measured"`` where the seconds were measured.
    seconds
        Until the last rank is ready, if all begin together.
    """

    algorithm: str
    seconds: float


def choose(verb: str, ranks: int, nbytes: float, wire: Wire) -> Choice:
    """Return the cheapest algorithm of a verb.

    Parameters
    ----------
    verb
        One of `VERBS`.
    ranks, nbytes
        p and n: the whole array, as the verb's module says.
    wire
        α, β and γ.

    Raises
    ------
    UsageError
        If there is no such verb, no rank, or a negative number of bytes.

    Examples
    --------
    >>> choose("allreduce", 16, 8, Wire(1e-6, 1e-10)).algorithm
    'recursive doubling'
    """
    if verb not in ALGORITHMS:
        raise UsageError(f"no collective '{verb}'; there are {', '.join(VERBS)}")
    costs = {name: cost(ranks, nbytes, wire) for name, cost in ALGORITHMS[verb].items()}
    best = min(costs, key=costs.__getitem__)
    return Choice(best, costs[best])
