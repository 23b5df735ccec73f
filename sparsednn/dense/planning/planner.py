"""`plan_network`: for each product of a network the grid and the algorithm that make it cheapest.

What is made small is the sum over layers of the words that the busiest rank sends in a step, moves
between layers, halos of pooling, statistics and the loss included, under a limit of memory for the
whole network. Steps:

1. The same placement for all layers, for every grid and algorithm that may be the best of these:
   the first answers, and what a better one has to beat. Data parallelism is one of them.
2. A few candidates for each layer (`candidates`), those of the answers so far among them.
3. The least sum over all choices of candidates (`search`): exact for chains and ResNets, step by
   step where branches join.
4. With a limit: a price on memory, and a ceiling for what one layer needs while it runs, are raised
   until the network fits; then layers are changed one by one as long as it does.

So no answer is worse than the best placement that is the same for all layers, nor than data
parallelism, if that fits the memory.

Must not know: how layers run, files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from sparsednn.amounts import bytes_text
from sparsednn.dense.graph import OperationGraph
from sparsednn.dense.grids import Grid, Placement
from sparsednn.dense.planning.candidates import (
    Candidate,
    grid_placements,
    legal_or_grid,
    narrowed,
    uniform_placements,
)
from sparsednn.dense.planning.lower_bounds import lower_bound
from sparsednn.dense.planning.placement_costs import LOSS, NetworkCosts
from sparsednn.dense.planning.plan import LayerPlan, NetworkPlan, Totals
from sparsednn.dense.planning.search import Choice, Search
from sparsednn.errors import UsageError

__all__ = ["NetworkPlan", "plan_network"]

Placements = dict[str, Placement]

#: Candidates of each layer, at least and at most; between them as many as `_PAIRS` allows.
_FEWEST, _MOST = 24, 128
_PAIRS = 60_000
#: How many times as many are looked at more closely.
_LOOKS = 4
#: Placements for all layers that are looked at in full under a memory limit.
_UNIFORM = 60
#: Ceilings tried for what one layer needs while it runs; more where only memory is looked at. Where
#: not all are known, these multiples of the least.
_CEILINGS, _ALL_CEILINGS = 6, 48
_FACTORS = (1.0, 1.4, 2.5)
#: Steps of the search for a price; the second where each takes seconds.
_PRICES, _FEW_PRICES = 9, 4


def plan_network(
    graph: OperationGraph,
    images: int,
    ranks: int,
    *,
    memory_per_rank: int | None = None,
    algorithm: str | None = None,
    grid: Grid | None = None,
    training: bool = True,
    itemsize: int = 4,
    optimizer_slots: int = 0,
) -> NetworkPlan:
    """Choose a placement for every convolution and fully connected layer.

    Parameters
    ----------
    graph
        The network.
    images
        Of a batch, of all ranks together.
    ranks
        How many there are.
    memory_per_rank
        Bytes that a rank may need, by `memory`; None: no limit.
    algorithm
        One of `grids.ALGORITHMS` for all layers; None: the cheapest for each.
    grid
        For all layers (a layer that is too small for it has ranks without work); None: the cheapest
        for each.
    training
        Whether a step has a backward pass.
    itemsize
        Bytes of a number.
    optimizer_slots
        Arrays like the parameters that the optimizer has: momentum 1, Adam 2.

    Raises
    ------
    UsageError
        If the grid has another number of places, the algorithm is unknown or is none of such a
        grid, or nothing fits the memory: then the least that was found is told.
    """
    if min(images, ranks) < 1:
        raise UsageError(f"a plan needs at least 1 image and 1 rank, found {images} and {ranks}")
    if grid is not None and grid.ranks != ranks:
        raise UsageError(
            f"--grid {grid}: it has {grid.ranks} places for {ranks} rank{'s' * (ranks != 1)}"
        )
    costs = NetworkCosts(
        graph, images, ranks,
        training=training, itemsize=itemsize, optimizer_slots=optimizer_slots,
    )  # fmt: skip
    planner = _Planner(costs, algorithm, grid, memory_per_rank)
    placements = planner.plan()
    data = dict.fromkeys(costs.products, Placement(Grid(b=ranks), "data"))
    return _described(costs, placements, data, memory_per_rank, optimal=planner.optimal)


@dataclass(slots=True)
class _Planner:
    """One search for placements.

    Attributes
    ----------
    best, words
        The cheapest plan so far that fits, and its words; None, infinite.
    optimal
        Whether nothing better is there.
    """

    costs: NetworkCosts
    algorithm: str | None
    grid: Grid | None
    limit: int | None
    best: Placements | None = None
    words: float = inf
    optimal: bool = False
    known: dict[Hashable, Candidate] = field(default_factory=dict)

    def plan(self) -> Placements:
        costs = self.costs
        every = {name: self._candidates(name) for name in costs.products}
        if not costs.products:
            return {}
        uniform = self._try_uniform()
        search = Search(costs, self._narrowed(every, uniform))
        complete = all(len(search.candidates[name]) >= len(every[name]) for name in every)
        start = search.choice_of(self.best or uniform[0])
        first = search.best(0.0, inf, start)
        self._consider(search.placements(first))
        free = self.best is not None and self.words <= costs.words(search.placements(first))
        if not free:
            self._under_limit(search, start)
        # What `hopeless` and the uniform answers leave out cannot be better.
        self.optimal = search.exact and free and complete
        if self.best is None:
            raise self._too_little(search, start)
        return self.best

    def _consider(self, placements: Placements) -> bool:
        """Take a plan if it fits and is cheaper; says whether it fits."""
        if self.limit is not None and self.costs.memory(placements) > self.limit:
            return False
        words = self.costs.words(placements)
        if words < self.words:
            self.best, self.words = placements, words
        return True

    # -- candidates ------------------------------------------------------------------------------

    def _about(self, name: str, placements: Iterable[Placement]) -> list[Candidate]:
        """Candidates in ascending order of words, each grid and mode once."""
        costs = self.costs
        bias = bool(getattr(costs.graph.operation(name), "bias", False))
        kind = costs.shapes[name], bias, costs.has_gradient(name)
        found: dict[tuple[Grid, str], Candidate] = {}
        for placement in placements:
            key = kind, placement.grid, placement.mode
            if key not in self.known:
                self.known[key] = Candidate.of(
                    *kind[:1], placement, has_bias=kind[1], input_gradient=kind[2],
                    training=costs.training, optimizer_slots=costs.slots,
                )  # fmt: skip
            found.setdefault(key[1:], self.known[key])
        return sorted(found.values(), key=Candidate.order)

    def _candidates(self, name: str) -> list[Candidate]:
        costs = self.costs
        legal = legal_or_grid(costs.shapes[name], costs.ranks, self.algorithm, self.grid)
        return self._about(name, legal)

    def _try_uniform(self) -> list[Placements]:
        """The same placement for all layers: take the best, and return some that are good.

        Means over ranks are no more than what the busiest rank sends, so those whose means are
        more than the best plan's words need not be looked at.
        """
        costs = self.costs
        same = (
            list(uniform_placements(costs.ranks, self.algorithm))
            if self.grid is None
            else grid_placements(self.grid, self.algorithm)
        )
        about: dict[Placement, list[float]] = {each: [0.0, 0.0, 0.0] for each in same}
        for name in costs.products:
            for one in self._about(name, same):
                sums = about[one.placement]
                sums[0] += one.words
                sums[1] += one.resident
                sums[2] = max(sums[2], one.transient)
        same.sort(key=lambda each: (about[each][0], sum(about[each][1:])))
        looked: list[Placements] = []
        for each in same:
            words, resident, transient = about[each]
            if words >= self.words or (self.limit is not None and len(looked) >= _UNIFORM):
                break
            fits = (resident + transient) * costs.itemsize <= (self.limit or inf)
            if fits or not looked:
                plan = dict.fromkeys(costs.products, each)
                self._consider(plan)
                looked.append(plan)
        data = [each for each in same if each.algorithm == "data"]
        frugal = sorted(same, key=lambda each: sum(about[each][1:]))[:2]
        found = [dict.fromkeys(costs.products, each) for each in data + frugal]
        for plan in found:
            self._consider(plan)
        looked.sort(key=costs.words)
        return [*([self.best] if self.best else []), *looked[:4], *found]

    def _narrowed(
        self, every: dict[str, list[Candidate]], uniform: Sequence[Placements]
    ) -> dict[str, list[Placement]]:
        """Candidates for the search: without those that cannot be part of a better plan."""
        slack = self.words - sum(some[0].words for some in every.values())
        kinds = len({self.costs.key_of(step) for step in self.costs.steps})
        most = max(_FEWEST, min(_MOST, int((_PAIRS / kinds) ** 0.5)))
        found: dict[str, list[Placement]] = {}
        for name, some in every.items():
            hopeful = [one for one in some if one.words <= some[0].words + slack]
            every[name] = hopeful
            extra = [plan[name] for plan in uniform]
            if len(hopeful) > most:  # by what the busiest rank sends: parts may be uneven
                hopeful = sorted(
                    (
                        replace(one, words=self.costs.product_words(name, one.placement))
                        for one in hopeful[: _LOOKS * most]
                    ),
                    key=Candidate.order,
                )
            found[name] = _with(narrowed(hopeful, most, extra), extra)
        return found

    # -- memory ----------------------------------------------------------------------------------

    def _under_limit(self, search: Search, start: Choice) -> None:
        """Raise the price of memory until the network fits, under several ceilings."""
        limit = self.limit
        assert limit is not None  # otherwise everything fits
        least = search.placements(self._least(search, start))
        if not self._consider(least):
            return
        for ceiling in self._ceilings(search, start, limit, _CEILINGS):
            found = search.best(inf, ceiling, start)
            if not self._consider(search.placements(found)):
                continue  # not even the least memory fits
            low, high = 1e-6, 1e4  # words for a byte
            for _ in range(_PRICES if search.exact else _FEW_PRICES):
                price = (low * high) ** 0.5
                if self._consider(search.placements(search.best(price, ceiling, start))):
                    high = price
                else:
                    low = price
        assert self.best is not None  # it has the one with the least memory, if no other

        def value(words: float, resident: float, transients: Sequence[int]) -> tuple[float, ...]:
            return max(0.0, resident + max(transients) - limit), words

        self._consider(search.placements(search.improved(search.choice_of(self.best), value)))

    def _ceilings(self, search: Search, start: Choice, limit: float, most: int) -> list[float]:
        """Some ceilings below which a network may fit a limit, ascending."""
        free = search.placements(search.best(inf, inf, start))
        resident = sum(self.costs.cost(step, free).resident for step in self.costs.steps)
        every = search.ceilings()
        if not search.exact:
            every = [every[0] * factor for factor in _FACTORS]
        # With all else at its least, a step that needs more than this is too much.
        possible = [each for each in every if each + resident <= limit]
        if len(possible) <= most:
            return possible
        return [possible[round(i * (len(possible) - 1) / (most - 1))] for i in range(most)]

    def _least(self, search: Search, start: Choice) -> Choice:
        """The choice with the least memory that is found."""

        def value(words: float, resident: float, transients: Sequence[int]) -> tuple[float, ...]:
            return resident + max(transients), words

        found = [search.best(inf, inf, start)]
        most = self.costs.memory(search.placements(found[0]))
        ceilings = self._ceilings(search, start, most, _ALL_CEILINGS)
        found += [search.best(inf, each, start) for each in ceilings]
        first = min(found, key=lambda each: self.costs.memory(search.placements(each)))
        return search.improved(first, value)

    def _too_little(self, search: Search, start: Choice) -> UsageError:
        assert self.limit is not None
        least = self.costs.memory(search.placements(self._least(search, start)))
        ranks = self.costs.ranks
        what = "no grid" if self.grid is None else f"grid {self.grid}"
        what += "" if self.algorithm is None else f" of algorithm {self.algorithm}"
        of = f" of {ranks} rank{'s' * (ranks != 1)}" if self.grid is None else ""
        needs = "needs less than" if self.grid is None else "needs"
        return UsageError(
            f"--memory-per-rank {bytes_text(self.limit)}: {what}{of} {needs} "
            f"{bytes_text(least, up=True)} a rank"
        )


def _with(placements: list[Placement], others: Iterable[Placement]) -> list[Placement]:
    """Both, each grid and mode once, in the order of the first."""
    found = {(one.grid, one.mode): one for one in [*placements, *others][::-1]}
    return sorted(found.values(), key=lambda one: [*placements, *others].index(one))


# --- what it costs ------------------------------------------------------------------------------


def _described(
    costs: NetworkCosts,
    placements: Placements,
    data: Placements,
    limit: int | None,
    *,
    optimal: bool,
) -> NetworkPlan:
    """Return the plan with its rows."""
    graph, rows = costs.graph, []
    words_of_limit = None if limit is None else limit / costs.itemsize
    for step in costs.steps:
        cost, plain = costs.cost(step, placements), costs.cost(step, data)
        placement = placements.get(step)
        if placement is None and not (cost.words or plain.words) and step != LOSS:
            continue
        bound = 0.0
        if placement is not None:
            bound = lower_bound(
                costs.shapes[step], costs.ranks, memory=words_of_limit, training=costs.training,
                input_gradient=costs.has_gradient(step),
            )  # fmt: skip
        rows.append(
            LayerPlan(
                layer=step,
                kind=LOSS if step == LOSS else graph.operation(step).kind,
                algorithm="" if placement is None else placement.algorithm,
                grid="" if placement is None else str(placement.grid),
                words=cost.words,
                mean_words=cost.mean,
                redistribution=cost.moved,
                memory=cost.resident + cost.transient,
                data_parallel_words=plain.words,
                lower_bound=bound,
            )
        )
    totals = Totals(
        words=costs.words(placements),
        mean_words=sum(row.mean_words for row in rows),
        memory=costs.memory(placements),
        data_parallel_words=costs.words(data),
        data_parallel_memory=costs.memory(data),
        lower_bound=sum(row.lower_bound for row in rows),
    )
    return NetworkPlan(
        network=graph.name, identity=graph.identity, images=costs.images, ranks=costs.ranks,
        training=costs.training, itemsize=costs.itemsize, optimizer_slots=costs.slots,
        memory_per_rank=limit, placements=placements, layers=tuple(rows), totals=totals,
        optimal=optimal,
    )  # fmt: skip
