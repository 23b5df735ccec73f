"""Simulated scaling: methods of partitions over numbers of ranks, as events and in closed form.

Must not know: how events are replayed, the command line.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sparsednn.costmodel.planning.ranks import parse_ranks, ranks_up_to
from sparsednn.costmodel.planning.sparse import predict_sparse
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.planning.request import ModelRequest
    from sparsednn.costmodel.planning.sparse import SparseModel
    from sparsednn.costmodel.platform import Platform
    from sparsednn.costmodel.simulation import Simulation
    from sparsednn.costmodel.sparse.work import SparseWork

__all__ = ["SimulatedRow", "simulated_methods", "simulated_ranks", "simulated_rows"]

_DEFAULT_METHODS: Final = "random,joint"
_MOST_RANKS: Final = 512
ALONE: Final = "alone"


@dataclass(frozen=True, slots=True)
class SimulatedRow:
    """A number of ranks and a partition.

    Attributes
    ----------
    ranks, nodes, method
        Nodes that the ranks fill; the partition's method (``alone`` on one rank).
    seconds
        Of the simulation: until the last rank has finished.
    formula_seconds
        Of the closed form.
    path_seconds
        Of the critical path: what is left if no two messages ever share a link (of the tiles that
        were replayed, if these are not all).
    waiting
        Share of the ranks' time that they wait for messages.
    words, messages
        Of all ranks together.
    imbalance
        The largest of a rank's weights over the mean, of all layers together.
    speedup, efficiency
        Against the simulation of one rank; by the number of ranks.
    """

    ranks: int
    nodes: int
    method: str
    seconds: float
    formula_seconds: float
    path_seconds: float
    waiting: float
    words: int
    messages: int
    imbalance: float
    speedup: float
    efficiency: float

    def as_json(self) -> dict[str, Any]:
        """Return numbers and texts."""
        return asdict(self)


def simulated_methods(partition: str | None, compare: str | None) -> str:
    """Put the methods of both options together: names or files, with commas.

    >>> simulated_methods("own.npz", "random"), simulated_methods(None, None)
    ('own.npz,random', 'random,joint')
    """
    given = [text for text in (partition, compare) if text is not None]
    return ",".join(given) if given else _DEFAULT_METHODS


def simulated_ranks(
    text: str | None, request: ModelRequest, platform: Platform, *, traced: bool
) -> tuple[int, ...]:
    """Return the numbers of ranks to simulate.

    Parameters
    ----------
    text
        As typed; None: the parts of the files among the methods, or up to 512, or to what the
        platform has.
    request, platform
        With the methods; where.
    traced
        Whether a time line is wanted: then there is one number and one method.

    Raises
    ------
    UsageError
        If that is not so, or the text is no range.
    FormatError
        If a file is no partition.
    """
    from sparsednn.partitioners import read_partition

    parts = {read_partition(file).parts for file in request.files}
    if text is not None:
        ranks = parse_ranks(text)
    else:
        ranks = tuple(sorted(parts)) if parts else ranks_up_to(_MOST_RANKS, platform)
    if parts and not parts & set(ranks):
        numbers = ", ".join(map(str, sorted(parts)))
        raise UsageError(f"--ranks {text}: the partition's file has {numbers} parts")
    if traced and (len(ranks) > 1 or "," in (request.partition or ",")):
        raise UsageError("--trace is for one number of ranks and one method: name them")
    return ranks


def simulated_rows(
    model: SparseModel,
    platform: Platform,
    ranks: Sequence[int],
    images: int,
    *,
    trace: Path | None = None,
    report: Callable[[str, float], None] | None = None,
) -> list[SimulatedRow]:
    """Simulate every method for each number of ranks; all ranks share the neurons.

    Parameters
    ----------
    model
        The network, its methods, threads and optimizer.
    platform, ranks
        Where, and how many.
    images
        Of a run or a step; 1 is a sparse matrix–vector product in each layer.
    trace
        Write the time line of the last simulation there, in Chrome's format.
    report
        Progress.

    Returns
    -------
    A row for each number and method, as far as partitions can be made.

    Raises
    ------
    UsageError
        If the platform has fewer ranks, no partition could be made, or training has threads.
    FormatError
        If the trace cannot be written.
    """
    if model.training and (model.threads or 1) > 1:
        raise UsageError("--threads: a step of training is simulated with one thread on each rank")
    for number in ranks:
        platform.check_ranks(number)
    rows: list[SimulatedRow] = []
    alone = _simulate(model, platform, _work(model, ALONE, 1), images).seconds
    pairs = [(number, method) for number in ranks for method in _methods(model, number)]
    for done, (number, method) in enumerate(pairs):
        work = model.work(method, number)
        if work is None:
            continue
        if report is not None:
            report(f"simulating {number:,} ranks, {method}", done / len(pairs))
        found = _simulate(model, platform, work, images, timeline=trace is not None)
        rows.append(_row(model, platform, method, work, images, found, alone))
        if trace is not None:
            from sparsednn.atomic import atomic_file

            with atomic_file(trace) as file:
                file.write(json.dumps(found.trace()).encode())
    if not rows:
        raise UsageError(f"{model.name}: no partition could be made, so nothing is simulated")
    return rows


def _methods(model: SparseModel, ranks: int) -> Sequence[str]:
    return model.methods if ranks > 1 else (ALONE,)


def _work(model: SparseModel, method: str, parts: int) -> SparseWork:
    work = model.work(method, parts)
    assert work is not None  # one part needs no partition
    return work


def _simulate(
    model: SparseModel,
    platform: Platform,
    work: SparseWork,
    images: int,
    *,
    timeline: bool = False,
) -> Simulation:
    from sparsednn.costmodel.simulation import simulate_inference, simulate_training

    if model.training:
        return simulate_training(
            platform, work, images, optimizer=model.optimizer, timeline=timeline
        )
    return simulate_inference(platform, work, images, threads=model.threads or 1, timeline=timeline)


def _row(
    model: SparseModel,
    platform: Platform,
    method: str,
    work: SparseWork,
    images: int,
    found: Simulation,
    alone: float,
) -> SimulatedRow:
    formula = predict_sparse(
        platform, work, images, threads=model.threads or 1, training=model.training,
        optimizer=model.optimizer,
    )  # fmt: skip
    edges = work.edges.sum(axis=0)
    speedup = alone / found.seconds
    return SimulatedRow(
        ranks=work.ranks,
        nodes=platform.nodes_of(work.ranks),
        method=method,
        seconds=found.seconds,
        formula_seconds=formula.seconds,
        path_seconds=found.critical_seconds + found.seconds - found.replay_seconds,
        waiting=float(found.waited.sum() / max(found.finish.sum(), 1e-300)),
        words=found.words,
        messages=found.messages * found.tiles // found.replayed,
        imbalance=float(edges.max() / max(float(np.mean(edges)), 1.0)),
        speedup=speedup,
        efficiency=speedup / work.ranks,
    )
