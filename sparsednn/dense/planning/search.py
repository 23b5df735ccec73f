"""`Search`: the assignment of candidates to products that costs least, exactly or step by step.

Costs are sums over steps, of which each depends on a few products. Where tables of that are small
(chains, ResNets) elimination gives the least sum; where they are not (the modules of GoogLeNet)
whole paths from the images to the logits are chosen in the same way while all else stays, and
after that product by product, until nothing changes.

Memory is a price on every byte that stays, and a ceiling on what one operation needs while it
runs: for given price and ceiling the cost is again a sum over steps.

Must not know: networks' operations, how candidates were found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import inf, prod
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sparsednn.dense.grids import Placement
from sparsednn.dense.planning.elimination import Table, elimination_order, minimise
from sparsednn.dense.planning.placement_costs import Cost, NetworkCosts

__all__ = ["Choice", "Search"]

#: One number, or a table of them.
_T = TypeVar("_T", float, NDArray[np.float64])

#: Number of the chosen candidate of each product.
Choice = dict[str, int]

#: Elements of a table that elimination may make, and of all tables of costs together.
_LARGEST = 1 << 22
_WORK = 120_000
#: Rounds over all products.
_SWEEPS = 4
#: In place of infinity, so that sums can still be compared.
_FORBIDDEN = 1e30
#: Among equals, what costs less on average; too little to outweigh a word.
_TIE = 1e-10


@dataclass(frozen=True, slots=True)
class _Tables:
    """Costs of a step for all combinations of candidates."""

    words: NDArray[np.float64]
    resident: NDArray[np.float64]
    transient: NDArray[np.float64]

    def beside(self, other: _Tables) -> _Tables:
        """Both steps: sums, and the larger of what they need while they run."""
        return _Tables(
            self.words + other.words,
            self.resident + other.resident,
            np.maximum(self.transient, other.transient),
        )


@dataclass(slots=True)
class Search:
    """A choice among candidates for each product.

    Parameters
    ----------
    costs
        Of all placements.
    candidates
        For each product some.

    Attributes
    ----------
    exact
        Whether `best` gives the least sum of all.
    """

    costs: NetworkCosts
    candidates: Mapping[str, Sequence[Placement]]
    exact: bool = False
    _tables: dict[object, _Tables] = field(default_factory=dict)
    _merged: dict[tuple[str, ...], _Tables] = field(default_factory=dict)
    _readers: dict[str, list[str]] = field(default_factory=dict)
    _order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """See how large tables would be."""
        sizes = {name: len(some) for name, some in self.candidates.items()}
        scopes = {step: self.costs.products_of(step) for step in self.costs.steps}
        work = {
            self._key(step, scope): prod(sizes[each] for each in scope)
            for step, scope in scopes.items()
        }
        self._order, largest = elimination_order(scopes.values(), sizes)
        self.exact = sum(work.values()) <= _WORK and largest <= _LARGEST
        for step, scope in scopes.items():
            for name in scope:
                self._readers.setdefault(name, []).append(step)

    def _key(self, step: str, scope: tuple[str, ...]) -> object:
        """What is equal for steps whose tables are equal."""
        return self.costs.key_of(step), *(tuple(self.candidates[each]) for each in scope)

    def placements(self, choice: Choice) -> dict[str, Placement]:
        """Return the placements of a choice."""
        return {name: self.candidates[name][number] for name, number in choice.items()}

    def choice_of(self, placements: Mapping[str, Placement]) -> Choice:
        """Return the choice of placements that are all among the candidates."""
        return {
            name: [(one.grid, one.mode) for one in some].index(
                (placements[name].grid, placements[name].mode)
            )
            for name, some in self.candidates.items()
        }

    # -- sums over steps -------------------------------------------------------------------------

    def best(self, price: float, ceiling: float, start: Choice) -> Choice:
        """Return the choice with the least words + price · bytes, with no step above the ceiling.

        Parameters
        ----------
        price
            Words for each resident byte; infinite: bytes alone.
        ceiling
            Bytes that a step may need while it runs.
        start
            Where to begin, if it has to be step by step.
        """
        if self.exact:
            return minimise(list(self._whole(price, ceiling)), self._order)[1]
        choice = dict(start)

        def value(words: float, resident: float, transients: Sequence[int]) -> tuple[float, ...]:
            above = sum(1 for each in transients if each > ceiling)
            return above * _FORBIDDEN + _priced(words, resident, price), words

        for path in self._paths():
            found = self._along(path, choice, price, ceiling)
            if self._value(found, value) < self._value(choice, value):
                choice = found
        return self.improved(choice, value)

    def _whole(self, price: float, ceiling: float) -> Iterator[Table]:
        """All costs: a table for each set of products that steps depend on."""
        for scope, tables in self._all_tables().items():
            total = _priced(tables.words, tables.resident, price)
            yield scope, np.where(tables.transient > ceiling, inf, total)

    def _all_tables(self) -> dict[tuple[str, ...], _Tables]:
        if not self._merged:
            for step in self.costs.steps:
                scope = self.costs.products_of(step)
                key = self._key(step, scope)
                if key not in self._tables:
                    self._tables[key] = self._table(step, scope, {})
                one, other = self._tables[key], self._merged.get(scope)
                self._merged[scope] = one if other is None else one.beside(other)
        return self._merged

    def _table(self, step: str, free: tuple[str, ...], fixed: Mapping[str, Placement]) -> _Tables:
        shape = tuple(len(self.candidates[name]) for name in free)
        found = np.empty((3, prod(shape)))
        for place, chosen in enumerate(product(*(self.candidates[name] for name in free))):
            cost = self.costs.cost(step, {**fixed, **dict(zip(free, chosen, strict=True))})
            found[:, place] = cost.words + _TIE * cost.mean, cost.resident, cost.transient
        return _Tables(*(each.reshape(shape) for each in found))

    # -- whole paths -----------------------------------------------------------------------------

    def _paths(self) -> Iterator[list[str]]:
        """Paths from the first to the last product that have each product on one of them."""
        before = self._before()
        last = self.costs.products[-1]
        missing = set(self.costs.products)
        while missing:
            # The path with most products that have not been on one; then the longest.
            most: dict[str, tuple[int, int, str | None]] = {}
            for name in self.costs.products:
                reached = [(*most[each][:2], each) for each in before[name]]
                found, length, source = max(reached, default=(0, 0, None), key=lambda one: one[:2])
                most[name] = found + (name in missing), length + 1, source
            path: list[str] = []
            at: str | None = last
            while at is not None:
                path.append(at)
                at = most[at][2]
            if not missing & set(path):  # the rest lies on no path to the last product
                return
            missing -= set(path)
            yield path[::-1]

    def _before(self) -> dict[str, list[str]]:
        """The products whose outputs come to a product, over operations that are none."""
        graph = self.costs.graph
        reached: dict[str, list[str]] = {}
        before: dict[str, list[str]] = {}
        for operation in graph:
            name = operation.name
            found = dict.fromkeys(
                each for source in graph.predecessors(name) for each in reached[source]
            )
            if name in self.candidates:
                before[name] = list(found)
            reached[name] = [name] if name in self.candidates else list(found)
        return before

    def _along(self, path: list[str], choice: Choice, price: float, ceiling: float) -> Choice:
        """The best candidates for the products of a path, all others as they are."""
        free = set(path)
        placements = self.placements(choice)
        tables = []
        for step in dict.fromkeys(step for name in path for step in self._readers[name]):
            scope = tuple(name for name in self.costs.products_of(step) if name in free)
            if len(scope) > 2:
                return choice
            table = self._table(step, scope, placements)
            total = _priced(table.words, table.resident, price)
            tables.append((scope, np.where(table.transient > ceiling, _FORBIDDEN, total)))
        return {**choice, **minimise(tables)[1]}

    # -- product by product ----------------------------------------------------------------------

    def improved(
        self,
        choice: Choice,
        value: Callable[[float, float, Sequence[int]], tuple[float, ...]],
    ) -> Choice:
        """Change one product after the other as long as that makes the value less.

        Parameters
        ----------
        choice
            Where to begin.
        value
            Of words, resident bytes, and the transient bytes of all steps.
        """
        choice = dict(choice)
        for _ in range(_SWEEPS):
            changed = False
            for name in self.costs.products:
                changed |= self._improve(name, choice, value)
            if not changed:
                break
        return choice

    def _improve(
        self,
        name: str,
        choice: Choice,
        value: Callable[[float, float, Sequence[int]], tuple[float, ...]],
    ) -> bool:
        placements = self.placements(choice)
        readers = set(self._readers[name])
        others = [self.costs.cost(s, placements) for s in self.costs.steps if s not in readers]
        words = sum(one.words for one in others)
        resident = sum(one.resident for one in others)
        # Of the others the largest will do for a sum; a ceiling looks at each.
        transients = [one.transient for one in others]
        best, at = None, choice[name]
        for number, placement in enumerate(self.candidates[name]):
            placements[name] = placement
            own = [self.costs.cost(step, placements) for step in readers]
            found = value(
                words + sum(one.words for one in own),
                resident + sum(one.resident for one in own),
                transients + [one.transient for one in own],
            )
            if number == choice[name]:
                found = (*found, -1.0)  # what is equal stays
            if best is None or found < best:
                best, at = found, number
        changed = at != choice[name]
        choice[name] = at
        return changed

    def _value(
        self,
        choice: Choice,
        value: Callable[[float, float, Sequence[int]], tuple[float, ...]],
    ) -> tuple[float, ...]:
        placements = self.placements(choice)
        found: list[Cost] = [self.costs.cost(step, placements) for step in self.costs.steps]
        return value(
            sum(one.words for one in found),
            sum(one.resident for one in found),
            [one.transient for one in found],
        )

    def ceilings(self) -> list[float]:
        """Return what the largest need of a step while it runs may be, in bytes, ascending.

        All values that occur if `exact`; otherwise only the least that is possible, nearly: what
        the worst step needs with its best candidates, products that it depends on alike.
        """
        if self.exact:
            values = [tables.transient for tables in self._all_tables().values()]
            least = max(float(each.min()) for each in values)
            found = np.unique(np.concatenate([each.ravel() for each in values]))
            return [float(each) for each in found[found >= least]]
        least = 0.0
        for step in self.costs.steps:
            scope = self.costs.products_of(step)
            alike = zip(*(self.candidates[name] for name in scope), strict=False)
            chosen = [dict(zip(scope, each, strict=True)) for each in alike]
            least = max(least, min(self.costs.cost(step, each).transient for each in chosen))
        return [least]


def _priced(words: _T, resident: _T, price: float) -> _T:
    """Words and what bytes cost; an infinite price: the bytes, and words only among equals."""
    return resident + _TIE * words if price == inf else words + price * resident
