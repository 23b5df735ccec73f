"""A dense network on ranks: the algorithms of `sparsednn.dense`, each with its cheapest grids.

Grids are those that send least (`dense.planning`); which algorithm is best is a matter of time,
which `costmodel.dense` predicts. ``auto`` chooses algorithm and grid for each layer alone.

Must not know: files, the command line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sparsednn.costmodel.planning.rows import Configuration
from sparsednn.costmodel.planning.sparse import thread_counts
from sparsednn.errors import UsageError

if TYPE_CHECKING:
    from sparsednn.costmodel.platform import Platform
    from sparsednn.costmodel.prediction import Prediction
    from sparsednn.dense.graph import OperationGraph
    from sparsednn.dense.grids import Placement
    from sparsednn.dense.planning.plan import NetworkPlan

__all__ = ["STRATEGIES", "DenseModel", "parse_strategies"]

AUTO: Final = "auto"
HYBRID: Final = "hybrid"
ALONE: Final = "alone"
STRATEGIES: Final = ("data", "spatial", "filter", "channel", HYBRID, "2d", "2.5d", "3d", AUTO)
"""Algorithms for all layers; ``hybrid``: data for convolutions, filter or channel for fully
connected layers (Krizhevsky, 2014); ``auto``: for each layer the one that sends least."""

_FLOAT: Final = 4  # bytes


def parse_strategies(text: str | None, option: str = "--algorithm") -> tuple[str, ...]:
    """Read names with commas between them; None: all.

    >>> parse_strategies("data,3d")
    ('data', '3d')

    Raises
    ------
    UsageError
        If there is no such algorithm.
    """
    if text is None:
        return STRATEGIES
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in STRATEGIES:
            raise UsageError(f"{option} '{name}': known are {', '.join(STRATEGIES)}")
    return names


class DenseModel:
    """A dense network, ready to be planned.

    Parameters
    ----------
    graph
        The network.
    training
        Predict a step of training; otherwise a forward pass.
    strategies
        Of `STRATEGIES`.
    threads
        Of each rank; None: one, or a rank's share of its node.
    optimizer_slots
        Arrays like the parameters that the optimizer has.
    """

    def __init__(
        self,
        graph: OperationGraph,
        *,
        training: bool = True,
        strategies: Sequence[str] = STRATEGIES,
        threads: int | None = None,
        optimizer_slots: int = 0,
    ) -> None:
        self._graph, self._training = graph, training
        self._strategies, self._threads = tuple(strategies), threads
        self._slots = optimizer_slots
        self._plans: dict[tuple[str, int, int, int | None], NetworkPlan | None] = {}
        self._offered: dict[tuple[int, Configuration], Mapping[str, Placement]] = {}

    @property
    def name(self) -> str:
        """Of the network."""
        return self._graph.name

    @property
    def notes(self) -> Sequence[str]:
        """What was left out: nothing."""
        return []

    @property
    def training(self) -> bool:
        """Whether a step of training is predicted."""
        return self._training

    def configurations(
        self, platform: Platform, ranks: int, images: int, limit: float
    ) -> Sequence[Configuration]:
        """Return every algorithm that runs on so many ranks, with every number of threads.

        Where its cheapest grids do not fit the limit, the cheapest that do are there as well. Data
        parallelism with fewer images than ranks has ranks without work; it is kept, to be compared
        with.
        """
        counts = thread_counts(platform, ranks, self._threads)
        found: dict[Configuration, Mapping[str, Placement]] = {}
        for name in self._strategies if ranks > 1 else (ALONE,):
            for one in self._placements(name, platform, ranks, images, limit):
                text = grid_text(one, algorithms=name in (AUTO, HYBRID))
                for threads in counts:
                    found.setdefault(Configuration(ranks, name, text, threads), one)
        self._offered |= {(images, one): placements for one, placements in found.items()}
        return list(found)

    def _placements(
        self, strategy: str, platform: Platform, ranks: int, images: int, limit: float
    ) -> Sequence[Mapping[str, Placement]]:
        if strategy == HYBRID:
            from sparsednn.costmodel.dense.algorithms import strategy_placements

            return strategy_placements(HYBRID, platform, self._graph, images, ranks)
        plan = self.plan(strategy, ranks, images)
        if plan is None:
            return []
        plans = [plan]
        if plan.totals.memory > limit:
            plans += filter(None, [self.plan(strategy, ranks, images, limit)])
        return [one.placements for one in plans]

    def predict(
        self, platform: Platform, configuration: Configuration, images: int
    ) -> Prediction | None:
        """Return what the models say of one of `configurations`."""
        from sparsednn.costmodel.dense.step import predict_step

        return predict_step(
            platform, self._graph, images, self._offered[images, configuration],
            configuration.ranks,
            threads=configuration.threads, training=self._training, optimizer_slots=self._slots,
        )  # fmt: skip

    def plan(
        self, strategy: str, ranks: int, images: int, memory: float | None = None
    ) -> NetworkPlan | None:
        """Return the cheapest grids of a strategy; None if there are none (that fit)."""
        from sparsednn.dense.planning.planner import plan_network

        limit = None if memory is None else int(memory)
        key = strategy, ranks, images, limit
        if key not in self._plans:
            algorithm = {AUTO: None, ALONE: "data"}.get(strategy, strategy)
            try:
                self._plans[key] = plan_network(
                    self._graph, images, ranks, memory_per_rank=limit, algorithm=algorithm,
                    training=self._training, itemsize=_FLOAT, optimizer_slots=self._slots,
                )  # fmt: skip
            except UsageError:
                self._plans[key] = None
        return self._plans[key]


def grid_text(placements: Mapping[str, Placement], *, algorithms: bool) -> str:
    """The grid of most layers, or how many layers have which algorithm; short, for tables."""
    counted = Counter(
        one.algorithm if algorithms else str(one.grid) for one in placements.values()
    ).most_common()
    if algorithms:
        return "+".join(f"{number}·{name}" for name, number in counted)
    others = f" and {len(counted) - 1} more" if len(counted) > 1 else ""
    return f"{counted[0][0]}{others}" if counted else ""
