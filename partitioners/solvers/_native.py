"""What native partitioners have in common: an input that they cannot fail on, and a checked result.

KaHyPar ends the process for a vertex of weight 0 and may hang or crash on other input that it
does not expect, so it gets a cleaned copy of the hypergraph. In the layers' model three things need
care:

- Fixed vertices stand for ranks and have weight 0, which KaHyPar refuses. They get weight 1, and
  all other weights are multiplied by a common factor, so that this does not count.
- Empty rows have weight 0, too. They are left out, and put afterwards where they cost least.
- Nets of one pin are dropped and identical nets merged (`sparsednn.partitioners.compaction`).
"""

from __future__ import annotations

import importlib
import importlib.metadata
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsednn.errors import InputError, MissingDependencyError, UsageError
from sparsednn.partitioners.compaction import drop_small_nets, merge_identical_nets
from sparsednn.partitioners.hypergraph import FREE, Hypergraph, parts_of_nets
from sparsednn.partitioners.solvers._balance import balance_bound, pack, rebalance

__all__ = [
    "LARGEST_SEED",
    "NativeProblem",
    "check_call",
    "check_labels",
    "import_native",
    "known_preset",
    "solve_native",
]

LARGEST_SEED = 2**31 - 1
"""Native libraries take their seed as a C int, and KaHyPar takes -1 for 'any'."""

_WEIGHT_LIMIT = 2**31 - 1  # native weights and costs are C ints
_SCALED_TOTAL = 2**30
_LARGEST_SCALE = 1000


@dataclass(frozen=True, slots=True)
class NativeProblem:
    """What a native library is given.

    Attributes
    ----------
    hypergraph
        All weights positive, all nets of two or more pins, no two nets identical; there are nets
        and free vertices, at least two parts.
    parts
        Number of parts.
    epsilon
        The imbalance for which the library's bound, ``(1 + epsilon) · ceil(total / parts)`` of
        these weights, is ours.
    seed
        0 to `LARGEST_SEED`.
    """

    hypergraph: Hypergraph
    parts: int
    epsilon: float
    seed: int


def import_native(package: str) -> tuple[Any, str]:
    """The module of a native library and the version of its package.

    Raises
    ------
    MissingDependencyError
        If it is not installed or cannot be loaded.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise MissingDependencyError(
            f"the partitioner {package} cannot be loaded ({error}); to install it: "
            f"pip install {package}"
        ) from error
    # The modules' own __version__ is 'dev' in some wheels.
    return module, importlib.metadata.version(package)


def known_preset(solver: str, preset: str | None, presets: tuple[str, ...]) -> str:
    """The preset, or the first of `presets` for None.

    Raises
    ------
    UsageError
        If it is not one of them.
    """
    if preset is None:
        return presets[0]
    if preset not in presets:
        raise UsageError(f"{solver}: no preset {preset!r}; there are {', '.join(presets)}")
    return preset


def check_call(parts: int, imbalance: float, seed: int) -> None:
    """Check what every solver is called with.

    Raises
    ------
    UsageError
        If there is no part, the imbalance is negative or not finite, or the seed is not in 0 to
        `LARGEST_SEED` (the same range for all solvers).
    """
    if parts < 1:
        raise UsageError(f"parts must be at least 1, found {parts}")
    if not (math.isfinite(imbalance) and imbalance >= 0):
        raise UsageError(f"imbalance must be a number of at least 0, found {imbalance}")
    if not 0 <= seed <= LARGEST_SEED:
        raise UsageError(f"seed must be in 0 to {LARGEST_SEED}, found {seed}")


def check_labels(hypergraph: Hypergraph, labels: NDArray[np.int32], parts: int, name: str) -> None:
    """Reject a result that is not a partition of this hypergraph.

    Raises
    ------
    InputError
        If the number of labels is wrong, one is out of range, or a fixed vertex was moved.
    """
    if labels.shape != (hypergraph.n_vertices,):
        raise InputError(f"{name}: {labels.size} parts for {hypergraph.n_vertices} vertices")
    outside = (labels < 0) | (labels >= parts)
    if outside.any():
        at = int(outside.argmax())
        raise InputError(f"{name}: vertex {at} is in part {labels[at]}, outside 0 to {parts - 1}")
    moved = (hypergraph.fixed != FREE) & (labels != hypergraph.fixed)
    if moved.any():
        at = int(moved.argmax())
        raise InputError(
            f"{name}: vertex {at} is in part {labels[at]}, but is fixed to {hypergraph.fixed[at]}"
        )


def solve_native(
    run: Callable[[NativeProblem], NDArray[np.int32]],
    hypergraph: Hypergraph,
    parts: int,
    *,
    imbalance: float,
    seed: int,
    name: str,
) -> NDArray[np.int32]:
    """Clean, let the library work, check, put back and keep the balance.

    Parameters
    ----------
    run
        Calls the library; gives the parts of the problem's vertices. Not called where there is
        nothing to decide: one part, nothing free that has weight, or no net that could be cut.
    hypergraph, parts, imbalance, seed
        As `Solver.solve` gets them.
    name
        Of the solver, for messages.

    Returns
    -------
    ``(n_vertices,)`` int32 parts; none is heavier than `balance_bound`.

    Raises
    ------
    UsageError
        As `check_call` does.
    InputError
        If weights are too large for the library, or its result is not a partition.
    """
    check_call(parts, imbalance, seed)
    labels = hypergraph.fixed.copy()
    if parts == 1:
        labels[:] = 0
        return labels
    bound = balance_bound(hypergraph, parts, imbalance)
    # Vertices without weight are nobody's load: the library does without them, unless fixed.
    kept = (hypergraph.vertex_weights > 0) | (hypergraph.fixed != FREE)
    core = merge_identical_nets(drop_small_nets(_restricted(hypergraph, kept)))
    if core.n_nets and (core.fixed == FREE).any():
        problem = _problem(core, parts, bound, seed, name)
        found = run(problem)
        check_labels(problem.hypergraph, found, parts, name)
        labels[kept] = found
    else:
        labels[kept] = pack(core, parts)
    _place_weightless(hypergraph, labels, parts)
    labels = rebalance(hypergraph, labels, parts, bound)
    check_labels(hypergraph, labels, parts, name)
    return labels


def _restricted(hypergraph: Hypergraph, kept: NDArray[np.bool_]) -> Hypergraph:
    """The hypergraph of the kept vertices; nets lose the pins of the others."""
    if kept.all():
        return hypergraph
    number = np.cumsum(kept, dtype=np.int32) - 1
    stays = kept[hypergraph.pins]
    before = np.zeros(hypergraph.n_pins + 1, dtype=np.int64)
    np.cumsum(stays, out=before[1:])
    return Hypergraph(
        before[hypergraph.net_ptr],
        number[hypergraph.pins[stays]].astype(np.int32, copy=False),
        hypergraph.vertex_weights[kept],
        hypergraph.net_weights,
        hypergraph.fixed[kept],
    )


def _problem(core: Hypergraph, parts: int, bound: int, seed: int, name: str) -> NativeProblem:
    """Scale the weights so that fixed vertices can have weight 1, and translate the bound."""
    total = int(core.vertex_weights.sum())
    scale = max(1, min(_LARGEST_SCALE, _SCALED_TOTAL // total))
    weightless = core.vertex_weights == 0  # these are fixed
    weights = np.where(weightless, 1, core.vertex_weights * scale)
    added = np.bincount(core.fixed[weightless], minlength=parts)
    native_total = int(weights.sum())
    # A cost is at most so much; parts × weight is what libraries multiply on the way.
    largest_cost = int(core.net_weights.sum()) * min(parts, core.n_vertices)
    for what, value in (("vertex weights", native_total), ("net weights", largest_cost)):
        if value > _WEIGHT_LIMIT:
            raise InputError(f"{name}: the sum of the {what}, {value}, does not fit into 32 bits")
    limit = bound * scale + int(added.max(initial=0))
    # The half keeps rounding from losing the last unit.
    epsilon = (limit + 0.5) / math.ceil(native_total / parts) - 1.0
    scaled = Hypergraph(core.net_ptr, core.pins, weights, core.net_weights, core.fixed)
    return NativeProblem(scaled, parts, epsilon, seed)


def _place_weightless(hypergraph: Hypergraph, labels: NDArray[np.int32], parts: int) -> None:
    """Give the vertices that were left out a part, in place.

    Each goes where most of its nets' weight already has a pin: there it adds least to the cost.
    Ties go to the part with fewest free vertices so far, since weight cannot tell.
    """
    waiting = np.flatnonzero(labels == FREE)
    if not waiting.size:
        return
    place = np.full(hypergraph.n_vertices, -1, dtype=np.int64)
    place[waiting] = np.arange(waiting.size)
    nets = np.repeat(np.arange(hypergraph.n_nets), np.diff(hypergraph.net_ptr))
    waits = place[hypergraph.pins] >= 0
    # Only the nets that wait for a vertex matter; mostly few, or none.
    concerned, pin_net = np.unique(nets[waits], return_inverse=True)
    row_of_net = np.full(hypergraph.n_nets, -1, dtype=np.int64)
    row_of_net[concerned] = np.arange(concerned.size)
    placed = ~waits & (row_of_net[nets] >= 0)
    net_ptr = np.zeros(concerned.size + 1, dtype=np.int64)
    np.cumsum(np.bincount(row_of_net[nets[placed]], minlength=concerned.size), out=net_ptr[1:])
    present = parts_of_nets(net_ptr, hypergraph.pins[placed], labels, parts)
    gains = np.zeros((waiting.size, parts), dtype=np.int64)
    weighted = present * hypergraph.net_weights[concerned, None]
    np.add.at(gains, place[hypergraph.pins[waits]], weighted[pin_net])
    counts = np.bincount(labels[(hypergraph.fixed == FREE) & (labels != FREE)], minlength=parts)
    best = gains == gains.max(axis=1, keepdims=True)
    for vertex, candidates in zip(waiting.tolist(), best, strict=True):
        part = int(np.where(candidates, counts, np.iinfo(np.int64).max).argmin())
        labels[vertex] = part
        counts[part] += 1
